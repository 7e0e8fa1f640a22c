use super::common::{bypass, is_plain};
use super::identity::all_are;
use super::{Context, Numerics, Outcome, Pass, PassError};
use crate::infer::ShapeMap;
use crate::ir::{DType, Graph, NodeId, Tensor, ValueId};

/// # What it does
/// Removes masks that mask nothing.
///
/// # When it fires
/// On `Where` with a constant condition that is the same everywhere, if the chosen side already has the result's shape;
/// and on `Add` of a constant that is 0 everywhere, if all readers are `Softmax`.
///
/// # Why it is correct
/// `x + 0.0` gives the bits of `x` except for -0.0, which becomes 0.0. Softmax cannot tell the two apart: it looks at
/// them through a maximum of a row and through `exp(x - max)`, and the difference of equal numbers, whatever the sign of
/// zero, has the exponential 1; of different numbers it is the same for both zeros.
///
/// # Numerics
/// Bit-exact.
///
/// # Before / after
/// ```text
/// m = Add (scores, zeros)
/// p = Softmax (m)              p = Softmax (scores)
/// ```
///
/// # Source
/// All-true attention masks, as exporters write them for inputs without padding.
pub struct ConstantMasks;

impl Pass for ConstantMasks {
    fn id(&self) -> &'static str {
        "constant-masks"
    }

    fn summary(&self) -> &'static str {
        "Removes masks that mask nothing."
    }

    fn numerics(&self) -> Numerics {
        Numerics::BitExact
    }

    fn run(&self, model: &mut Context) -> Result<Outcome, PassError> {
        let mut out = Outcome::default();
        let map = model.shapes();
        for id in model.graph.schedule() {
            if model.graph.try_node(id).is_some()
                && is_plain(&model.graph, id)
                && let Some(x) = unmasked(&model.graph, id, &map)
            {
                bypass(self.id(), id, x, model, &mut out)?;
            }
        }
        Ok(out)
    }
}

/// What a mask hands on everywhere.
fn unmasked(g: &Graph, id: NodeId, map: &ShapeMap) -> Option<ValueId> {
    let node = g.node(id);
    let y = node.out()?;
    if node.op.is("Where") {
        let c = map.constant(node.input(0)?);
        let slot = if all_are(c, 1.0, false) {
            1
        } else if all_are(c, 0.0, false) {
            2
        } else {
            return None;
        };
        return node.input(slot).filter(|x| map.same_shape(*x, y));
    }
    if node.op.is("Add") && map.dtype(y) == Some(DType::FLOAT) {
        let uses = g.uses(y);
        if uses.is_empty() || !uses.iter().all(|(u, slot)| *slot == 0 && g.node(*u).op.is("Softmax")) {
            return None;
        }
        let (a, b) = (node.input(0)?, node.input(1)?);
        let zero = |t: Option<&Tensor>| all_are(t, 0.0, false) || all_are(t, 0.0, true);
        return [(a, b), (b, a)]
            .into_iter()
            .find(|(x, m)| zero(map.constant(*m)) && map.same_shape(*x, y))
            .map(|p| p.0);
    }
    None
}
