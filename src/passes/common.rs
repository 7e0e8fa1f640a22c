//! What the clean-up passes share.

use super::{Outcome, PassError};
use crate::ir::{Attrs, Graph, Model, NodeId, Tensor, ValueId};
use crate::rewrite::{Patch, PatchError, Ref, sweep};

/// True if some node reads the value in a place that can be redirected (a nested graph's reading can not).
pub(super) fn is_read(g: &Graph, v: ValueId) -> bool {
    g.uses(v).iter().any(|(_, slot)| *slot != usize::MAX)
}

/// True if a nested graph reads the value.
pub(crate) fn is_captured(g: &Graph, v: ValueId) -> bool {
    g.uses(v).iter().any(|(_, slot)| *slot == usize::MAX)
}

/// True for a node clean-up may look at: standard domain, no nested graphs.
pub(super) fn is_plain(g: &Graph, n: NodeId) -> bool {
    let node = g.node(n);
    node.op.is_onnx() && !node.has_subgraph()
}

/// The only reader of a value, at slot 0; an output of the graph is read by others.
pub(super) fn sole_reader(g: &Graph, v: ValueId) -> Option<NodeId> {
    match g.uses(v)[..] {
        [(n, 0)] if !g.is_output(v) && g.node(n).op.is_onnx() => Some(n),
        _ => None,
    }
}

/// A reduction over the last axis, which stays with size 1. From opset 18 on the axes are an input.
pub(super) fn over_last_axis(p: &mut Patch, op: &str, hint: &str, x: Ref, opset: i64) -> Ref {
    let keep = Attrs::new().with_int("keepdims", 1);
    if opset < 18 {
        return p.node(op, hint, &[x], keep.with_ints("axes", &[-1]));
    }
    let axes = p.constant(&format!("{hint}_axes"), Tensor::i64(&[1], &[-1]));
    p.node(op, hint, &[x, axes], keep)
}

/// Commits what `patch` makes of each node, in the order of the model, and sweeps what became dead.
pub(super) fn patch_nodes(
    m: &mut Model,
    patch: impl Fn(&Graph, NodeId) -> Option<Patch>,
) -> Result<Outcome, PassError> {
    let mut out = Outcome::default();
    for id in m.graph.schedule() {
        // An earlier patch may have taken the node.
        if m.graph.try_node(id).is_some()
            && let Some(p) = patch(&m.graph, id)
        {
            p.commit(m)?;
            out.changes += 1;
        }
    }
    sweep(m);
    Ok(out)
}

/// Commits the patch and counts it. A patch that contradicts a shape the file declares is left out with a note: the
/// declaration may be wrong, but that is for validation to say.
pub(super) fn commit(patch: Patch, model: &mut Model, out: &mut Outcome) -> Result<bool, PassError> {
    match patch.commit(model) {
        Ok(_) => {
            out.changes += 1;
            Ok(true)
        }
        Err(e @ PatchError::Incompatible { .. }) => {
            out.notes.push(e.to_string());
            Ok(false)
        }
        Err(e) => Err(e.into()),
    }
}

/// Makes every reader of a node's output read `new` and erases the node if nothing else holds it. Outputs of the graph
/// stay: they would only be passed on by an Identity.
pub(super) fn bypass(
    by: &str,
    node: NodeId,
    new: ValueId,
    model: &mut Model,
    out: &mut Outcome,
) -> Result<bool, PassError> {
    let g = &model.graph;
    let Some(old) = g.node(node).out() else { return Ok(false) };
    if g.is_output(old) || !is_read(g, old) {
        return Ok(false);
    }
    let mut patch = Patch::new(by);
    patch.replace(old, Ref::Old(new));
    if erasable(g, node, &[old]) {
        patch.erase(node);
    }
    commit(patch, model, out)
}

/// True if a node can go once the `replaced` outputs are: nothing reads the others and no nested graph reads any.
pub(super) fn erasable(g: &Graph, node: NodeId, replaced: &[ValueId]) -> bool {
    g.node(node)
        .outputs
        .iter()
        .flatten()
        .all(|v| if replaced.contains(v) { !is_captured(g, *v) } else { g.use_count(*v) == 0 })
}
