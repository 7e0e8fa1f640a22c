use super::common::{flat, patch_nodes};
use super::{Context, Numerics, Outcome, Pass, PassError};
use crate::infer::ShapeMap;
use crate::ir::{Graph, NodeId};
use crate::rewrite::Patch;

/// # What it does
/// Takes the leading axes of size 1 off a constant vector.
///
/// # When it fires
/// On a float constant of the form `[1, .., 1, n]` that an Add, Sub, Mul or Div combines with a value of as many axes or
/// more.
///
/// # Why it is correct
/// Broadcasting puts these axes in front again.
///
/// # Numerics
/// Bit-exact.
///
/// # Before / after
/// ```text
/// y = Mul (x, gamma)               # x: float[2, 17, 48]; gamma: float[1, 1, 48], then float[48]
/// ```
///
/// # Source
/// The gains of Keras 3, the biases of TensorFlow's GPT-2.
pub struct SqueezeVectors;

impl Pass for SqueezeVectors {
    fn id(&self) -> &'static str {
        "squeeze-vectors"
    }

    fn summary(&self) -> &'static str {
        "Removes leading axes of size 1 from constant vectors."
    }

    fn numerics(&self) -> Numerics {
        Numerics::BitExact
    }

    fn run(&self, model: &mut Context) -> Result<Outcome, PassError> {
        let map = model.shapes();
        patch_nodes(model, |g, id| patch(g, id, &map))
    }
}

fn patch(g: &Graph, id: NodeId, map: &ShapeMap) -> Option<Patch> {
    let n = g.node(id);
    if !n.is_elementary() {
        return None;
    }
    let (slot, t) = (0..2).find_map(|i| Some((i, g.constant(n.input(i)?)?)))?;
    let width = *t.dims.last()?;
    if width < 2 || t.dims.len() < 2 || t.len() as i64 != width || map.rank(n.input(1 - slot)?)? < t.dims.len() {
        return None;
    }
    let y = n.out()?;
    let mut p = Patch::new("squeeze-vectors").before(id).made_from([g.name_of(y).to_owned()]);
    let mut inputs = [n.input(0)?.into(), n.input(1)?.into()];
    inputs[slot] = flat(g, &mut p, n.input(slot)?)?;
    let new = p.node(&n.op.name, g.name_of(y), &inputs, n.attrs.clone());
    p.succeed(y, new);
    Some(p)
}
