//! What the clean-up passes share.

use super::{Context, Outcome, PassError};
use crate::infer::ShapeMap;
use crate::ir::{DType, Graph, Model, Node, NodeId, ValueId};
use crate::rewrite::{Patch, PatchError, Ref, Under};

/// True if the model has a standard operator of this name.
pub(super) fn has(m: &Model, op: &str) -> bool {
    m.graph.nodes().any(|(_, n)| n.op.is(op))
}

/// True if some node reads the value in a place that can be redirected (a nested graph's reading cannot).
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

/// The only use of a value, at whatever slot; an output of the graph has others.
pub(super) fn sole_use(g: &Graph, v: ValueId) -> Option<NodeId> {
    match g.uses(v)[..] {
        [(n, slot)] if slot != usize::MAX && !g.is_output(v) => Some(n),
        _ => None,
    }
}

/// The permutation that swaps the last two of so many axes, of which there are two or more.
pub(super) fn last_two_swapped(rank: usize) -> Vec<i64> {
    let mut perm: Vec<i64> = (0..rank as i64).collect();
    perm.swap(rank - 2, rank - 1);
    perm
}

/// Moves between `from` (excluded) and `to`, in order from `from`.
pub(super) fn moves_between(g: &Graph, from: ValueId, to: ValueId) -> Vec<NodeId> {
    let mut path = Vec::new();
    let mut v = to;
    while v != from {
        let Some(p) = g.producer(v) else { break };
        path.push(p);
        match g.node(p).input(0) {
            Some(x) => v = x,
            None => break,
        }
    }
    path.reverse();
    path
}

/// The same moves of another value, each named after what the old one makes and `what`.
pub(super) fn moved(g: &Graph, p: &mut Patch, moves: &[NodeId], mut x: Ref, what: &str) -> Ref {
    for id in moves {
        let n = g.node(*id);
        x = p.under(n.out().map_or("", |v| g.name_of(v))).like(n, what, &[(0, x)]);
    }
    x
}

/// Nodes between the product and the Softmax of attention that are looked at.
pub(super) const MOST_STEPS: u32 = 12;

/// True if a product of two computed values is behind `v`, through what is done to scores. `most` bounds
/// the depth: where operands are shared, a chain of n sums has 2^n paths.
pub(super) fn leads(g: &Graph, v: ValueId, most: u32) -> bool {
    let Some(n) = g.producer(v).map(|n| g.node(n)).filter(|n| n.op.is_onnx()) else { return false };
    let Some(less) = most.checked_sub(1) else { return false };
    let any = |slots: &[usize]| slots.iter().any(|i| n.input(*i).is_some_and(|x| leads(g, x, less)));
    match n.op.name.as_str() {
        "MatMul" => n.inputs.iter().flatten().all(|x| g.constant(*x).is_none()),
        "Reshape" | "Transpose" | "Clip" | "ReduceMax" | "ReduceMean" => any(&[0]),
        "Where" => any(&[1, 2]),
        _ if n.is_elementary() => any(&[0, 1]),
        _ => false,
    }
}

/// True if a mask of so many queries by so many keys is written out as a constant, of at most 64 MiB.
pub(super) fn fits_mask(queries: i64, keys: i64) -> bool {
    queries.checked_mul(keys).is_some_and(|n| n <= 1 << 26)
}

/// The order that a Transpose gives so many axes.
pub(super) fn perm_of(g: &Graph, id: NodeId, rank: usize) -> Option<Vec<usize>> {
    match g.node(id).attrs.ints("perm") {
        Some(p) => p.iter().map(|a| usize::try_from(*a).ok().filter(|a| *a < rank)).collect(),
        None => Some((0..rank).rev().collect()),
    }
}

/// The elements of a float constant along one axis.
pub(super) fn flat(g: &Graph, p: &mut Patch, v: ValueId) -> Option<Ref> {
    let t = g.constant(v).filter(|t| t.dtype == DType::FLOAT)?;
    let data = t.to_f32s()?;
    Some(p.under(g.name_of(v)).floats("flat", &data))
}

/// A value less its mean over the last axis.
pub(super) fn deviation(e: &mut Under<'_>, x: Ref, opset: i64) -> Ref {
    let mean = e.reduced("ReduceMean", "mean", x, opset);
    e.op("Sub", "deviation", &[x, mean])
}

/// The root of the mean square over the last axis and `eps`: of a deviation, the standard deviation.
pub(super) fn root_mean_square(e: &mut Under<'_>, d: Ref, eps: Ref, opset: i64) -> Ref {
    let square = e.op("Mul", "square", &[d, d]);
    let variance = e.reduced("ReduceMean", "variance", square, opset);
    let sum = e.op("Add", "variance_eps", &[variance, eps]);
    e.op("Sqrt", "std", &[sum])
}

/// True if a reduction goes over the last of so many axes, and no other.
pub(super) fn over_last(g: &Graph, n: &Node, rank: i64) -> bool {
    g.ints(n, 1, "axes").is_some_and(|a| a.len() == 1 && a[0].rem_euclid(rank.max(1)) == rank - 1)
}

/// The numbers of a constant that varies along `axis` of a value with `rank` axes, and along no other.
pub(super) fn one_a_channel(g: &Graph, v: ValueId, rank: usize, axis: usize) -> Option<Vec<f32>> {
    let t = g.constant(v)?;
    let at = (t.dims.len() + axis).checked_sub(rank)?;
    let alone = t.dims.iter().enumerate().all(|(i, n)| *n == 1 || i == at);
    (alone && t.dims.len() <= rank && t.len() > 1).then(|| t.to_f32s().map(|x| x.to_vec()))?
}

/// Commits what `patch` makes of each node, in the order of the model, and sweeps what became dead.
pub(super) fn patch_nodes(
    m: &mut Context,
    patch: impl Fn(&Graph, NodeId) -> Option<Patch>,
) -> Result<Outcome, PassError> {
    let mut out = Outcome::default();
    for id in m.graph.schedule() {
        // An earlier patch may have taken the node.
        if m.graph.try_node(id).is_some()
            && let Some(p) = patch(&m.graph, id)
        {
            m.commit(p)?;
            out.changes += 1;
        }
    }
    m.sweep();
    Ok(out)
}

/// As `patch_nodes`, again and again until nothing changes: what one round makes has its shape known in the next.
pub(super) fn patch_rounds(
    m: &mut Context,
    patch: impl Fn(&Graph, NodeId, &ShapeMap) -> Option<Patch>,
) -> Result<Outcome, PassError> {
    let mut all = Outcome::default();
    loop {
        let map = m.shapes();
        let out = patch_nodes(m, |g, id| patch(g, id, &map))?;
        all.changes += out.changes;
        if out.changes == 0 {
            return Ok(all);
        }
    }
}

/// Commits the patch and counts it. A patch that contradicts a shape the file declares is left out with a note: the
/// declaration may be wrong, but that is for validation to say.
pub(super) fn commit(patch: Patch, model: &mut Context, out: &mut Outcome) -> Result<bool, PassError> {
    match model.commit(patch) {
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
    model: &mut Context,
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
