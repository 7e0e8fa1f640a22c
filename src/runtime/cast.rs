//! Casts from one type of floats to another, which tract leaves alone.
//!
//! tract-core 0.23.9 makes a Cast that follows a product the type in which the product is stored, where a kernel can do that, and then
//! takes an Add that follows into the product as well, with an operand of that type. The kernel reads the operand as what it
//! computes in: after a product of float64 twice as many bytes as there are, from wrong places, and past the end. A Cast that is
//! no `Cast` to tract stays where it is.

use tract_onnx::Onnx;
use tract_onnx::tract_core::ops::cast::Cast;
use tract_onnx::tract_hir::internal::*;

use super::conv::stock;

/// Puts the operators in place of tract's.
pub fn register(onnx: &mut Onnx) {
    onnx.op_register.insert("Cast", |ctx, node| alone(stock(ctx, node, "Cast")?));
    onnx.op_register.insert("CastLike", |ctx, node| alone(stock(ctx, node, "CastLike")?));
}

type Made = (Box<dyn InferenceOp>, Vec<String>);

fn alone((op, needs): Made) -> TractResult<Made> {
    let stock = op.as_op().downcast_ref::<Box<dyn Expansion>>().cloned();
    Ok((stock.map_or(op, |stock| expand(Alone { stock })), needs))
}

/// What tract makes of the node, but for casts from floats to floats.
#[derive(Clone, Debug)]
struct Alone {
    stock: Box<dyn Expansion>,
}

impl Expansion for Alone {
    fn name(&self) -> StaticName {
        self.stock.name()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        self.stock.rules(s, inputs, outputs)
    }

    fn wire(&self, prefix: &str, target: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        let wires = self.stock.wire(prefix, target, inputs)?;
        let from = target.outlet_fact(inputs[0])?.datum_type;
        let to = target.node(wires[0].node).op_as::<Cast>().map(|c| c.to);
        match to.filter(|to| from.is_float() && to.is_float() && *to != from) {
            // tract's own is left without a reader.
            Some(to) => target.wire_node(format!("{prefix}.alone"), Float { to }, &inputs[..1]),
            None => Ok(wires),
        }
    }
}

/// Floats of one type as another.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Float {
    to: DatumType,
}

impl Op for Float {
    fn name(&self) -> StaticName {
        "FloatCast".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Float {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        Ok(tvec!(args_1!(inputs).cast_to_dt(self.to)?.into_owned().into_tvalue()))
    }
}

impl TypedOp for Float {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(self.to.fact(inputs[0].shape.clone())))
    }

    as_op!();
}

#[cfg(test)]
mod tests {
    use super::super::build::{Build, Value};
    use super::super::{Array, Session, SessionOptions};
    use crate::ir::{DType, Tensor};

    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| (((i * 7 + seed) * 2_654_435_761) % 1000) as f32 / 500.0 - 1.0).collect()
    }

    /// `y = float32(float64(x) w) + x`, for row counts that fill a kernel's tile and do not.
    #[test]
    fn an_add_after_a_narrowed_product_reads_its_operand_as_it_is() {
        const WIDTH: usize = 24;
        let w = numbers(WIDTH * WIDTH, 3);
        let wide: Vec<f64> = w.iter().map(|x| f64::from(*x)).collect();
        for rows in [1, 3, 5, 7, 8, 197] {
            let x = numbers(rows * WIDTH, 5);
            let n = rows.to_string();
            let model = Build::new(17)
                .input("x", DType::FLOAT, &[&n, "24"])
                .constant(
                    "w",
                    Tensor::raw(
                        DType::DOUBLE,
                        &[24, 24],
                        wide.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>(),
                    ),
                )
                .node("d = Cast(x)", &[("to", Value::Int(11))])
                .node("p = MatMul(d, w)", &[])
                .node("f = Cast(p)", &[("to", Value::Int(1))])
                .node("y = Add(f, x)", &[])
                .bytes(&["y"]);
            let input = Array::from(ndarray::ArrayD::from_shape_vec(vec![rows, WIDTH], x.clone()).unwrap());
            let session = Session::of_bytes(&model, None, &SessionOptions::default()).unwrap();
            let y = session.run(&[("x", input)]).unwrap().outputs.remove(0);
            for (i, y) in y.f32s().iter().enumerate() {
                let (r, c) = (i / WIDTH, i % WIDTH);
                let sum: f64 = (0..WIDTH).map(|k| f64::from(x[r * WIDTH + k]) * wide[k * WIDTH + c]).sum();
                let exact = (sum as f32) + x[i];
                assert!((y - exact).abs() < 1e-5, "{rows} rows, element {i}: {y}, not {exact}");
            }
        }
    }
}
