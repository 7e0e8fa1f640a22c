//! MatMul, Gemm and Conv of values that are codes: products of the codes themselves.
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
use tract_onnx::tract_core::ops::array::Slice;
use tract_onnx::tract_hir::internal::*;

use super::absorb::by_column;
use super::conv::{CodeConv, Spec, stock};
use super::kernel::{Grain, Params};
use super::product::{Product, Weights, Zero};
use super::qdq::Qdq;
use super::steps::{Step, Steps};

/// Puts operators in place of tract's that look at what their operands come from.
pub fn register(onnx: &mut Onnx) {
    onnx.op_register.insert("MatMul", |ctx, node| build(ctx, node, Kind::MatMul));
    onnx.op_register.insert("Gemm", |ctx, node| {
        let flag = |name: &str| node.get_attr_opt::<i64>(name).map(|x| x.unwrap_or(0) != 0);
        let factor = |name: &str| node.get_attr_opt::<f32>(name).map(|x| x.unwrap_or(1.0));
        let transposed = [flag("transA")?, flag("transB")?];
        let plain = factor("alpha")? == 1.0 && factor("beta")? == 1.0;
        build(ctx, node, if plain { Kind::Gemm { transposed } } else { Kind::Other })
    });
    onnx.op_register.insert("Conv", |ctx, node| build(ctx, node, Kind::Conv));
}

/// A sum of so many products of codes always fits into 32 bits: `2^31 / 255^2`.
const LONGEST: usize = 33_025;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    MatMul,
    Gemm { transposed: [bool; 2] },
    Conv,
    Other,
}

/// An operator of the file, and what tract makes of it.
#[derive(Clone, Debug)]
struct Compute {
    kind: Kind,
    stock: Box<dyn InferenceOp>,
}

fn build(ctx: &ParsingContext, node: &NodeProto, kind: Kind) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
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
            Kind::MatMul => product([false; 2], &node.name, target, &inputs)?,
            Kind::Gemm { transposed } => product(transposed, &node.name, target, &inputs)?,
            Kind::Conv => self.conv(&node.name, target, &inputs)?,
            Kind::Other => None,
        };
        match fused {
            Some(wire) => Ok(wire),
            None => self.stock.to_typed(source, node, target, mapping),
        }
    }

    as_op!();
}

/// Codes that a value comes from, moved as the value is.
struct Codes {
    outlet: OutletId,
    params: Params,
}

/// Looks through moves for a DequantizeLinear of 8-bit codes, and if there is one, wires the same moves for the codes.
fn codes(target: &mut TypedModel, value: OutletId, name: &str) -> TractResult<Option<Codes>> {
    let mut moves: Vec<Box<dyn TypedOp>> = Vec::new();
    let mut at = value;
    let (mut params, mut outlet) = loop {
        let node = target.node(at.node);
        if let Some(p) = node.op_as::<Qdq>().and_then(Qdq::dequantizes) {
            let dt = target.outlet_fact(node.inputs[0])?.datum_type;
            if dt != DatumType::U8 && dt != DatumType::I8 {
                return Ok(None);
            }
            break (p.clone(), node.inputs[0]);
        }
        if at.slot != 0 || node.inputs.len() != 1 || !(node.op_is::<AxisOp>() || node.op_is::<Slice>()) {
            return Ok(None);
        }
        moves.push(node.op.clone());
        at = node.inputs[0];
    };
    // Where the scales go.
    for op in moves.iter().rev() {
        let moved = match (params.grain(), op.downcast_ref::<AxisOp>()) {
            (Grain::Tensor, _) => continue,
            (Grain::Axis(_), Some(AxisOp::Reshape(..)) | None) | (Grain::Block { .. }, _) => None,
            (Grain::Axis(_), Some(change)) => params.with_axis(|a| change.transform_axis(a)),
        };
        let Some(moved) = moved else { return Ok(None) };
        params = moved;
    }
    for (i, op) in moves.into_iter().rev().enumerate() {
        let konst = target.outlet_fact(outlet)?.konst.clone();
        let name = target.unique_name(format!("{name}.codes{i}"));
        outlet = match konst.map(|k| op.eval_out_of_plan(tvec!(k.into_tvalue()))).transpose()?.flatten() {
            Some(moved) => target.add_const(name, moved[0].clone().into_arc_tensor())?,
            None => target.wire_node(name, op, &[outlet])?[0],
        };
    }
    Ok(Some(Codes { outlet, params }))
}

impl Codes {
    /// One scale and zero point for each of `n` lines along `axis`.
    fn by_line(&self, axis: usize, n: usize) -> Option<(Vec<f32>, Vec<i32>)> {
        let (scale, zero) = self.params.numbers();
        match self.params.grain() {
            Grain::Tensor => Some((vec![scale[0]; n], vec![zero[0]])),
            Grain::Axis(a) if a == axis && scale.len() == n => Some((scale.to_vec(), zero.to_vec())),
            _ => None,
        }
    }

    /// The only scale and zero point.
    fn single(&self) -> Option<(f32, i32)> {
        let (scale, zero) = self.params.numbers();
        (self.params.grain() == Grain::Tensor).then(|| (scale[0], zero[0]))
    }
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
