//! Attention weights that are seen in another shape.

use super::common::{patch_nodes, sole_reader};
use super::{Numerics, Outcome, Pass, PassError};
use crate::infer::{self, ShapeMap};
use crate::ir::{Attrs, Graph, Model, NodeId};
use crate::rewrite::Patch;

/// # What it does
/// Moves a Reshape of what Softmax makes in front of the Softmax, where the rules for attention look for it.
///
/// # When it fires
/// On a Softmax over the last axis that nothing but a Reshape reads, which keeps that axis.
///
/// # Why it is correct
/// Softmax takes each row by itself, and the rows stay the same in the same order.
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
/// DeBERTa of version 2 and 3: heads and batch are one axis except where the mask is applied.
pub struct SoftmaxLast;

impl Pass for SoftmaxLast {
    fn id(&self) -> &'static str {
        "softmax-last"
    }

    fn summary(&self) -> &'static str {
        "a Softmax comes behind a change of shape that keeps its rows"
    }

    fn numerics(&self) -> Numerics {
        Numerics::BitExact
    }

    fn run(&self, model: &mut Model) -> Result<Outcome, PassError> {
        let map = infer::shapes(model);
        let opset = model.opset();
        patch_nodes(model, |g, id| patch(g, id, &map, opset))
    }
}

fn patch(g: &Graph, id: NodeId, map: &ShapeMap, opset: i64) -> Option<Patch> {
    let softmax = g.node(id);
    if !softmax.op.is("Softmax") {
        return None;
    }
    let (x, w) = (softmax.input(0)?, softmax.out()?);
    let moved = sole_reader(g, w).filter(|n| g.node(*n).op.is("Reshape"))?;
    let reshape = g.node(moved);
    let (shape, y) = (reshape.input(1)?, reshape.out()?);
    let (from, to) = (map.dims(x)?, map.dims(y)?);
    let rank = i64::try_from(from.len()).ok()?;
    let axis = softmax.attrs.int("axis").unwrap_or(if opset < 13 { 1 } else { -1 });
    if axis.rem_euclid(rank.max(1)) != rank - 1 || to.is_empty() || from.last() != to.last() {
        return None;
    }
    let mut p = Patch::new("softmax-last").before(moved).made_from([g.name_of(y).to_owned()]);
    let seen = format!("{}_seen", g.name_of(x));
    let rows =
        p.node_with(reshape.op.clone(), &[Some(x.into()), Some(shape.into())], &[&seen], reshape.attrs.clone())[0];
    let last = Attrs::new().with_int("axis", to.len() as i64 - 1);
    let new = p.node_with(softmax.op.clone(), &[Some(rows)], &[g.name_of(y)], last)[0];
    p.succeed(y, new);
    Some(p)
}
