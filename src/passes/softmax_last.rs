//! Attention weights that are seen in another shape.

use super::common::{patch_rounds, sole_reader};
use super::{Context, Numerics, Outcome, Pass, PassError};
use crate::infer::ShapeMap;
use crate::ir::{Attrs, Graph, NodeId};
use crate::rewrite::Patch;

/// # What it does
/// Moves a Reshape of what Softmax makes in front of the Softmax, and a Reshape of a product after its scale: what the
/// rules for attention look for is then next to each other.
///
/// # When it fires
/// On a Softmax over the last axis that nothing but a Reshape reads, which keeps that axis; on a Mul or Div by one number of
/// a Reshape of a MatMul, each read once.
///
/// # Why it is correct
/// Softmax takes each row by itself, and the rows stay the same in the same order. A number meets each element alike.
///
/// # Numerics
/// Bit-exact.
///
/// # Before / after
/// ```text
/// w = Softmax (s)                  # s: float[2, 3, 17, 17]
/// y = Reshape (w, [6, 17, 17])     r = Reshape (s, [6, 17, 17])
///                                  y = Softmax (r)
/// ```
///
/// # Source
/// DeBERTa of version 2 and 3: heads and batch are one axis except where the mask is applied. Keras by tf2onnx.
pub struct SoftmaxLast;

impl Pass for SoftmaxLast {
    fn id(&self) -> &'static str {
        "softmax-last"
    }

    fn summary(&self) -> &'static str {
        "Moves changes of shape after the scale of a product and before a Softmax whose rows they keep."
    }

    fn numerics(&self) -> Numerics {
        Numerics::BitExact
    }

    fn run(&self, model: &mut Context) -> Result<Outcome, PassError> {
        let opset = model.opset();
        patch_rounds(model, |g, id, map| patch(g, id, map, opset))
    }
}

fn patch(g: &Graph, id: NodeId, map: &ShapeMap, opset: i64) -> Option<Patch> {
    let softmax = g.node(id);
    if !softmax.op.is("Softmax") {
        return scaled(g, id);
    }
    let (x, w) = (softmax.input(0)?, softmax.out()?);
    let moved = sole_reader(g, w).filter(|n| g.node(*n).op.is("Reshape"))?;
    let reshape = g.node(moved);
    let y = reshape.out()?;
    let (from, to) = (map.dims(x)?, map.dims(y)?);
    if softmax.axis_at(from.len(), opset) + 1 != from.len() || to.is_empty() || from.last() != to.last() {
        return None;
    }
    let mut p = Patch::new("softmax-last").before(moved).made_from([g.name_of(y).to_owned()]);
    let rows = p.under(g.name_of(x)).like(reshape, "seen", &[(0, x.into())]);
    let last = Attrs::new().with_int("axis", to.len() as i64 - 1);
    let new = p.node("Softmax", g.name_of(y), &[rows], last);
    p.succeed(y, new);
    Some(p)
}

/// A scale after a Reshape of a product, in front of it.
fn scaled(g: &Graph, id: NodeId) -> Option<Patch> {
    let scale = g.node(id);
    let slots = match scale.op.name.as_str() {
        "Mul" if scale.op.is_onnx() => 2,
        "Div" if scale.op.is_onnx() => 1,
        _ => return None,
    };
    let y = scale.out()?;
    let slot = (0..slots).find(|i| scale.input(1 - i).and_then(|c| g.constant(c)).is_some_and(|t| t.len() == 1))?;
    let (seen, factor) = (scale.input(slot)?, scale.input(1 - slot)?);
    let moved = g.producer_is(seen, "Reshape")?;
    let reshape = g.node(moved);
    let product = reshape.input(0)?;
    g.producer_is(product, "MatMul")?;
    // A number with more axes would give its own to the result.
    let plain = g.constant(factor).is_some_and(|t| t.dims.len() <= 1);
    if !plain || g.use_count(seen) != 1 || g.is_output(seen) || sole_reader(g, product) != Some(moved) {
        return None;
    }
    let mut p = Patch::new("softmax-last").before(id).made_from([g.name_of(y).to_owned()]);
    let mut inputs = [product.into(), factor.into()];
    if slot == 1 {
        inputs.swap(0, 1);
    }
    let new = p.under(g.name_of(product)).op(&scale.op.name, "scaled", &inputs);
    let new = p.under(g.name_of(y)).like(reshape, "", &[(0, new)]);
    p.succeed(y, new);
    Some(p)
}
