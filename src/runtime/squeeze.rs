//! Squeeze of axes in any order. tract takes them out one by one from the last that is named, wherever that lies: with axes
//! -1 and -2 the second is not there any more.

use tract_onnx::Onnx;
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::ops::change_axes::AxisOp;
use tract_onnx::tract_hir::internal::*;

/// Puts the operator in place of tract's.
pub fn register(onnx: &mut Onnx) {
    onnx.op_register.insert("Squeeze", read);
}

fn read(_: &ParsingContext, node: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let as_input = node.input.get(1).is_some_and(|n| !n.is_empty());
    let axes = node.get_attr_opt_vec::<i64>("axes")?;
    Ok((expand(Squeeze { axes, as_input }), vec![]))
}

/// `axes` as an attribute (until opset 13) or an input; without either, every axis of size 1 goes.
#[derive(Clone, Debug)]
struct Squeeze {
    axes: Option<Vec<i64>>,
    as_input: bool,
}

/// The axes among those of `shape` that go, from the last to the first.
fn gone<D: DimLike>(axes: Option<&[i64]>, shape: &[D]) -> TractResult<Vec<usize>> {
    let rank = shape.len() as i64;
    let mut gone = match axes {
        None => (0..shape.len()).filter(|i| shape[*i].is_one()).collect(),
        Some(axes) => {
            let place = |a: &i64| usize::try_from(if *a < 0 { a + rank } else { *a }).ok().filter(|a| *a < shape.len());
            let all: Option<Vec<usize>> = axes.iter().map(place).collect();
            all.with_context(|| format!("axes {axes:?} of a value with {rank} axes"))?
        }
    };
    gone.sort_unstable();
    gone.dedup();
    gone.reverse();
    Ok(gone)
}

fn numbers(t: &Tensor) -> TractResult<Vec<i64>> {
    Ok(t.cast_to::<i64>()?.try_as_plain_ram()?.as_slice::<i64>()?.to_vec())
}

fn squeezed(axes: Option<&[i64]>, mut shape: TVec<TDim>) -> TractResult<TVec<TDim>> {
    for axis in gone(axes, &shape)? {
        let size = shape.remove(axis);
        ensure!(size.is_one(), "axis {axis} to be taken out has size {size}, not 1");
    }
    Ok(shape)
}

impl Expansion for Squeeze {
    fn name(&self) -> StaticName {
        "Squeeze".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 1 + self.as_input as usize)?;
        check_output_arity(outputs, 1)?;
        s.equals(&outputs[0].datum_type, &inputs[0].datum_type)?;
        if self.as_input {
            s.given_2(&inputs[0].shape, &inputs[1].value, move |s, shape, axes| {
                s.equals(&outputs[0].shape, squeezed(Some(&numbers(&axes)?), shape)?)
            })
        } else {
            if let Some(axes) = &self.axes {
                s.equals(&outputs[0].rank, (&inputs[0].rank).bex() - axes.len() as i64)?;
            }
            s.given(&inputs[0].shape, move |s, shape| {
                s.equals(&outputs[0].shape, squeezed(self.axes.as_deref(), shape)?)
            })
        }
    }

    fn wire(&self, prefix: &str, target: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        let axes = match self.as_input {
            true => {
                let known = target.outlet_fact(inputs[1])?.konst.clone();
                Some(numbers(&*known.context("the axes must be a constant, not computed")?)?)
            }
            false => self.axes.clone(),
        };
        let mut wire = inputs[0];
        let shape = target.outlet_fact(wire)?.shape.to_tvec();
        for (i, axis) in gone(axes.as_deref(), &shape)?.into_iter().enumerate() {
            let name = if i == 0 { prefix.to_owned() } else { format!("{prefix}.{i}") };
            wire = target.wire_node(name, AxisOp::Rm(axis), &[wire])?[0];
        }
        Ok(tvec!(wire))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Array;
    use super::super::build::{Build, Value};
    use crate::ir::{DType, Tensor};

    #[test]
    fn axes_in_any_order_go() {
        let x = Array::from(ndarray::ArrayD::from_shape_vec(vec![1, 3, 1, 1], vec![1f32, 2., 3.]).unwrap());
        for (axes, dims) in [
            (&[-1, -2][..], &[1, 3][..]),
            (&[-2, -1], &[1, 3]),
            (&[3, 2, 0], &[3]),
            (&[2, -1], &[1, 3]),
            (&[-1, 0], &[3, 1]),
            (&[3, -4, -2], &[3]),
        ] {
            let late = Build::new(17)
                .input("x", DType::FLOAT, &["1", "3", "1", "1"])
                .constant("a", Tensor::i64(&[axes.len() as i64], axes))
                .node("y = Squeeze(x, a)", &[]);
            let early = Build::new(11)
                .input("x", DType::FLOAT, &["1", "3", "1", "1"])
                .node("y = Squeeze(x)", &[("axes", Value::Ints(axes.to_vec()))]);
            for model in [late, early] {
                let y = model.run(&["y"], &[("x", x.clone())]).remove(0);
                assert_eq!((y.dims(), &*y.f32s()), (dims, &[1f32, 2., 3.][..]), "{axes:?}");
            }
        }
        let all = Build::new(17).input("x", DType::FLOAT, &["1", "3", "1", "1"]).node("y = Squeeze(x)", &[]);
        assert_eq!(all.run(&["y"], &[("x", x)])[0].dims(), &[3]);
    }
}
