//! The codes that a value comes from.

use tract_onnx::tract_core::ops::array::Slice;
use tract_onnx::tract_hir::internal::*;

use super::kernel::{Grain, Params};
use super::qdq::Qdq;

/// A sum of so many products of codes always fits into 32 bits: `2^31 / 255^2`.
pub const LONGEST: usize = 33_025;

/// Codes that a value comes from, moved as the value is.
pub struct Codes {
    pub outlet: OutletId,
    params: Params,
}

/// Looks through moves for a DequantizeLinear of 8-bit codes, and if there is one, wires the same moves for the codes.
pub fn codes(target: &mut TypedModel, value: OutletId, name: &str) -> TractResult<Option<Codes>> {
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
    pub fn by_line(&self, axis: usize, n: usize) -> Option<(Vec<f32>, Vec<i32>)> {
        let (scale, zero) = self.params.numbers();
        match self.params.grain() {
            Grain::Tensor => Some((vec![scale[0]; n], vec![zero[0]])),
            Grain::Axis(a) if a == axis && scale.len() == n => Some((scale.to_vec(), zero.to_vec())),
            _ => None,
        }
    }

    /// The only scale and zero point.
    pub fn single(&self) -> Option<(f32, i32)> {
        let (scale, zero) = self.params.numbers();
        (self.params.grain() == Grain::Tensor).then(|| (scale[0], zero[0]))
    }
}
