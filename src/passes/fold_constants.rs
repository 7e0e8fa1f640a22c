use std::collections::BTreeSet;

use super::common::{commit, erasable, is_plain, is_read};
use super::{Context, Numerics, Outcome, Pass, PassError};
use crate::infer::ShapeMap;
use crate::ir::{Graph, NodeId, Tensor, ValueId};
use crate::rewrite::Patch;

/// A folded tensor up to this many bytes is always worth its place in the file.
const SMALL: usize = 1 << 20;
/// Moving a weight that others read as well would store it twice; below this nobody minds.
const TINY: usize = 1 << 16;

/// # What it does
/// Replaces what does not depend on the model's inputs by its value.
///
/// # When it fires
/// On outputs that [`infer`](crate::infer) knows as a constant: moves (Reshape, Transpose, Slice, Gather, Concat, Expand, Pad,
/// ScatterND, ...), integer arithmetic, the exactly defined part of float arithmetic, `Shape` and all that follows from
/// it where only sizes known at compile time are used. A result over 1 MiB must not be larger than what it was made of.
///
/// # Why it is correct
/// The evaluator computes only what IEEE 754 or the standard fixes to the bit; Exp, Erf, Pow, sums and matrix products
/// are left to `fold-close`. DequantizeLinear is not folded: it is what makes a weight an integer weight.
///
/// # Numerics
/// Bit-exact.
///
/// # Before / after
/// ```text
/// s = Shape (x)                # x: float[batch, 197, 64]
/// d = Gather <axis = 0> (s, two)
/// f = Cast <to = 1> (d)        <float scale = {8.0}>
/// scale = Sqrt (f)
/// y = Div (x, scale)           y = Div (x, scale)
/// ```
///
/// # Source
/// The run-time scale of `scaled_dot_product_attention` and the window masks of Swin, as exporters write them.
pub struct FoldConstants;

impl Pass for FoldConstants {
    fn id(&self) -> &'static str {
        "fold-constants"
    }

    fn summary(&self) -> &'static str {
        "Folds constants: computes what does not depend on the inputs."
    }

    fn numerics(&self) -> Numerics {
        Numerics::BitExact
    }

    fn run(&self, model: &mut Context) -> Result<Outcome, PassError> {
        let map = model.shapes();
        fold(self.id(), model, &map)
    }
}

/// Replaces what the map knows as a constant.
pub(super) fn fold(by: &str, model: &mut Context, map: &ShapeMap) -> Result<Outcome, PassError> {
    let mut out = Outcome::default();
    let g = &model.graph;
    let order = g.schedule();
    let folded: BTreeSet<NodeId> = order.iter().copied().filter(|n| foldable(g, *n, map)).collect();
    // Values inside a folded region vanish with it; only those that something outside reads become initializers.
    let wanted: Vec<(NodeId, ValueId)> = order
        .iter()
        .filter(|n| folded.contains(n))
        .flat_map(|n| g.node(*n).outputs.iter().flatten().map(|v| (*n, *v)))
        .filter(|(_, v)| g.uses(*v).iter().any(|(u, slot)| *slot != usize::MAX && !folded.contains(u)))
        .collect();
    for (n, v) in wanted {
        let Some(t) = map.constant(v) else { continue };
        let mut patch = Patch::new(by);
        let new = patch.constant(model.graph.name_of(v), t.clone());
        patch.replace(v, new);
        if erasable(&model.graph, n, &[v]) {
            patch.erase(n);
        }
        commit(patch, model, &mut out)?;
    }
    // The rest of the folded regions has lost its last reader.
    for n in order.iter().rev().filter(|n| folded.contains(n)) {
        if model.graph.try_node(*n).is_some() && erasable(&model.graph, *n, &[]) {
            let mut patch = Patch::new(by);
            patch.erase(*n);
            commit(patch, model, &mut out)?;
        }
    }
    Ok(out)
}

/// True if all outputs of the node that are read are constants worth storing.
fn foldable(g: &Graph, n: NodeId, map: &ShapeMap) -> bool {
    let node = g.node(n);
    // Identity is another pass's: it stores nothing twice.
    if !is_plain(g, n) || node.op.is("Constant") || node.op.is("Identity") {
        return false;
    }
    let read: Vec<ValueId> = node.outputs.iter().flatten().copied().filter(|v| g.use_count(*v) > 0).collect();
    if read.is_empty() || read.iter().any(|v| g.is_output(*v)) || !read.iter().any(|v| is_read(g, *v)) {
        return false;
    }
    let constants: Option<Vec<&Tensor>> = read.iter().map(|v| map.constant(*v)).collect();
    let Some(constants) = constants else { return false };
    let bytes: usize = constants.iter().map(|t| t.byte_len()).sum();
    let sources = node.inputs.iter().flatten().filter_map(|v| Some((*v, map.constant(*v)?.byte_len())));
    let largest = sources.max_by_key(|(_, n)| *n);
    let shared = largest.is_some_and(|(v, _)| g.use_count(v) > 1 && bytes > TINY);
    !shared && (bytes <= SMALL || largest.is_some_and(|(_, n)| bytes <= n))
}
