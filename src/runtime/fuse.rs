//! MatMul, Gemm, Conv and LayerNormalization of values that are codes: operators on the codes themselves.
//!
//! Where both operands of a MatMul come from DequantizeLinear (moved at most by Transpose, Reshape, Slice and their like), the
//! product of the codes, taken exactly, times both scales is the product of the values, without the rounding of a sum in
//! float. What then leaves the file's operators after the product is, operator by operator, what these compute
//! ([`steps`](super::steps)). The contract: `((a - za) (b - zb)` summed exactly in 32 bits, to the nearest float, times the
//! product of the scales rounded once. That is what onnxruntime's fused operators compute; without fusion a runtime's sum
//! carries rounding errors of its own, so codes after may differ by one where the value is close to a tie.
//!
//! Everything else is left to tract's own operator.

use std::sync::Arc;

use tract_onnx::Onnx;
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::absorb::by_column;
use super::attend;
use super::codes::{LONGEST, codes};
use super::conv::{CodeConv, Spec, stock};

use super::norm;
use super::product::{Product, Weights, Zero};
use super::steps::{Step, Steps};

/// Puts operators in place of tract's that look at what their operands come from.
pub fn register(onnx: &mut Onnx) {
    onnx.op_register.insert("MatMul", |ctx, node| build(ctx, node, Layered::MatMul));
    onnx.op_register.insert("Gemm", |ctx, node| {
        let flag = |name: &str| node.get_attr_opt::<i64>(name).map(|x| x.unwrap_or(0) != 0);
        let factor = |name: &str| node.get_attr_opt::<f32>(name).map(|x| x.unwrap_or(1.0));
        let transposed = [flag("transA")?, flag("transB")?];
        let plain = factor("alpha")? == 1.0 && factor("beta")? == 1.0;
        build(ctx, node, if plain { Layered::Gemm { transposed } } else { Layered::Other })
    });
    onnx.op_register.insert("Conv", |ctx, node| build(ctx, node, Layered::Conv));
    onnx.op_register.insert("LayerNormalization", |ctx, node| {
        let axis = node.get_attr_opt("axis")?.unwrap_or(-1);
        let epsilon = node.get_attr_opt("epsilon")?.unwrap_or(1e-5);
        let alone = node.output.iter().filter(|o| !o.is_empty()).count() == 1;
        build(ctx, node, if alone { Layered::LayerNorm { axis, epsilon } } else { Layered::Other })
    });
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Layered {
    MatMul,
    Gemm { transposed: [bool; 2] },
    Conv,
    LayerNorm { axis: i64, epsilon: f32 },
    Other,
}

/// An operator of the file, and what tract makes of it.
#[derive(Clone, Debug)]
struct Compute {
    kind: Layered,
    stock: Box<dyn InferenceOp>,
}

fn build(ctx: &ParsingContext, node: &NodeProto, kind: Layered) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let (stock, closures) = stock(ctx, node, &node.op_type)?;
    Ok((Box::new(Compute { kind, stock }), closures))
}

/// Two are never the same: they are not compared.
impl PartialEq for Compute {
    fn eq(&self, _: &Self) -> bool {
        false
    }
}

impl Eq for Compute {}

impl Op for Compute {
    fn name(&self) -> StaticName {
        self.stock.name()
    }

    fn validation(&self) -> Validation {
        self.stock.validation()
    }

    not_a_typed_op!();
}

impl EvalOp for Compute {
    fn eval(&self, ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        self.stock.eval(ctx, inputs)
    }

    fn eval_out_of_plan(&self, inputs: TVec<TValue>) -> TractResult<Option<TVec<TValue>>> {
        self.stock.eval_out_of_plan(inputs)
    }
}

impl InferenceOp for Compute {
    fn infer_facts(
        &mut self,
        inputs: TVec<&InferenceFact>,
        outputs: TVec<&InferenceFact>,
        observed: TVec<&InferenceFact>,
    ) -> TractResult<(TVec<InferenceFact>, TVec<InferenceFact>, TVec<InferenceFact>)> {
        self.stock.infer_facts(inputs, outputs, observed)
    }

    fn nboutputs(&self) -> TractResult<usize> {
        self.stock.nboutputs()
    }

    fn to_typed(
        &self,
        source: &InferenceModel,
        node: &InferenceNode,
        target: &mut TypedModel,
        mapping: &HashMap<OutletId, OutletId>,
    ) -> TractResult<TVec<OutletId>> {
        let inputs: TVec<OutletId> = node.inputs.iter().map(|i| mapping[i]).collect();
        let fused = match self.kind {
            Layered::MatMul => match attend::fuse(&node.name, target, &inputs)? {
                Some(wire) => Some(wire),
                None => product([false; 2], &node.name, target, &inputs)?,
            },
            Layered::Gemm { transposed } => product(transposed, &node.name, target, &inputs)?,
            Layered::LayerNorm { axis, epsilon } => norm::fuse(&node.name, target, &inputs, (axis, epsilon))?,
            Layered::Conv => self.conv(&node.name, target, &inputs)?,
            Layered::Other => None,
        };
        match fused {
            Some(wire) => Ok(wire),
            None => self.stock.to_typed(source, node, target, mapping),
        }
    }

    as_op!();
}

/// MatMul or Gemm as a product of codes.
fn product(
    transposed: [bool; 2],
    name: &str,
    target: &mut TypedModel,
    inputs: &[OutletId],
) -> TractResult<Option<TVec<OutletId>>> {
    let fact = target.outlet_fact(inputs[1])?.clone();
    let rank = fact.rank();
    if rank < 2 || target.outlet_fact(inputs[0])?.rank() < 2 {
        return Ok(None);
    }
    let axis = if transposed[1] { rank - 2 } else { rank - 1 };
    let Ok(cols) = fact.shape[axis].to_usize() else { return Ok(None) };
    let bias = inputs.get(2).map(|b| target.outlet_fact(*b).map(|f| f.konst.clone())).transpose()?;
    let bias = match bias {
        None => None,
        // Where it is no constant by column, Gemm stays as it is.
        Some(k) => {
            let column = |k: Arc<Tensor>| by_column::<f32>(&k, k.rank().saturating_sub(1), cols);
            match k.map(column).transpose()?.flatten() {
                Some(b) => Some(b),
                None => return Ok(None),
            }
        }
    };
    let Some(a) = codes(target, inputs[0], &format!("{name}.a"))? else { return Ok(None) };
    let Some((sa, za)) = a.single() else { return Ok(None) };
    let Some(b) = codes(target, inputs[1], &format!("{name}.b"))? else { return Ok(None) };
    let Some((sb, zb)) = b.by_line(axis, cols) else { return Ok(None) };
    let depth = target.outlet_fact(b.outlet)?.shape[rank - 1 - (axis + 2 - rank)].to_usize().unwrap_or(usize::MAX);
    if depth > LONGEST {
        return Ok(None);
    }
    let weights = match &target.outlet_fact(b.outlet)?.konst {
        Some(k) => Some(Arc::new(Weights::pack(k, transposed[1], &zb)?)),
        None => None,
    };
    let wires: TVec<OutletId> = if weights.is_some() { tvec![a.outlet] } else { tvec![a.outlet, b.outlet] };
    let zeros = [Zero::Known(Arc::new(vec![za])), Zero::Known(Arc::new(zb))];
    let op = Product { transposed, zeros, weights, steps: scaled(sa, &sb, bias), out: f32::datum_type() };
    target.wire_node(name, op, &wires).map(Some)
}

/// From a product of codes to one of values, with a bias.
fn scaled(a: f32, b: &[f32], bias: Option<Vec<f32>>) -> Steps {
    let steps = Steps::default().with(Step::Float).with(Step::Mul(b.iter().map(|b| a * b).collect()));
    match bias {
        Some(v) => steps.with(Step::Add(v)),
        None => steps,
    }
}

impl Compute {
    fn conv(&self, name: &str, target: &mut TypedModel, inputs: &[OutletId]) -> TractResult<Option<TVec<OutletId>>> {
        let Some(spec) = Spec::of(&*self.stock) else { return Ok(None) };
        let fact = target.outlet_fact(inputs[1])?;
        let Some(cols) = fact.shape.first().and_then(|d| d.to_usize().ok()) else { return Ok(None) };
        if spec.narrow(cols) {
            return Ok(None);
        }
        let bias = match inputs.get(2) {
            None => None,
            Some(b) => {
                let Some(k) = target.outlet_fact(*b)?.konst.clone() else { return Ok(None) };
                let Some(v) = by_column::<f32>(&k, 0, cols)? else { return Ok(None) };
                Some(v)
            }
        };
        let Some(x) = codes(target, inputs[0], &format!("{name}.x"))? else { return Ok(None) };
        let Some((sx, zx)) = x.single() else { return Ok(None) };
        let Some(w) = codes(target, inputs[1], &format!("{name}.w"))? else { return Ok(None) };
        let Some((sw, zw)) = w.by_line(0, cols) else { return Ok(None) };
        let weights = target.outlet_fact(w.outlet)?.shape.volume().to_usize().unwrap_or(usize::MAX);
        if weights > LONGEST.saturating_mul(cols) {
            return Ok(None);
        }
        let steps = (scaled(sx, &sw, bias), f32::datum_type());
        CodeConv::wire(&spec, name, target, [x.outlet, w.outlet], [Ok(vec![zx]), Ok(zw)], steps).map(Some)
    }
}
