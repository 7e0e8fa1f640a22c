//! Padding that cuts.

use super::common::patch_nodes;
use super::fuse_pad::added;
use super::{Context, Numerics, Outcome, Pass, PassError};
use crate::ir::{Graph, NodeId};
use crate::rewrite::Patch;

/// # What it does
/// Writes a Pad that cuts on some side as a Slice, and a Pad for what is left to add. tract does not run the former.
///
/// # When it fires
/// On a Pad of mode `constant` whose `pads` are an input, constant, and below 0 for some side.
///
/// # Why it is correct
/// Cutting and adding concern different sides, or cut on one what the other does not touch.
///
/// # Numerics
/// Bit-exact.
///
/// # Before / after
/// ```text
/// y = Pad (x, [0, 1, 0, -1])     c = Slice (x, [0], [-1], [1])
///                                y = Pad (c, [0, 1, 0, 0])
/// ```
///
/// # Source
/// `F.pad` with a negative size, by which vit-pytorch shifts the image of its shifted patch tokens.
pub struct CropPad;

impl Pass for CropPad {
    fn id(&self) -> &'static str {
        "crop-pad"
    }

    fn summary(&self) -> &'static str {
        "Replaces padding by negative amounts with a Slice."
    }

    fn numerics(&self) -> Numerics {
        Numerics::BitExact
    }

    fn run(&self, model: &mut Context) -> Result<Outcome, PassError> {
        patch_nodes(model, patch)
    }
}

fn patch(g: &Graph, id: NodeId) -> Option<Patch> {
    let n = g.node(id);
    if !n.op.is("Pad") || !n.says("mode", "constant") {
        return None;
    }
    let (x, pads, y) = (n.input(0)?, n.input(1)?, n.out()?);
    let rank = if n.input(3).is_some() { g.rank(x)? } else { g.constant(pads)?.len() / 2 };
    let sides = added(g, id, rank)?;
    let cut: Vec<usize> = (0..rank).filter(|a| sides[*a].0.min(sides[*a].1) < 0).collect();
    if cut.is_empty() {
        return None;
    }
    let along = |f: &dyn Fn(usize) -> i64| cut.iter().map(|a| f(*a)).collect::<Vec<_>>();
    let name = g.name_of(y);
    let mut p = Patch::new("crop-pad").before(id).made_from([name.to_owned()]);
    let mut e = p.under(name);
    let from = e.ints("from", &along(&|a| sides[a].0.min(0).saturating_neg()));
    let to = e.ints("to", &along(&|a| if sides[a].1 < 0 { sides[a].1 } else { i64::MAX }));
    let axes = e.ints("axes", &along(&|a| a as i64));
    let adds = sides.iter().any(|(a, b)| *a > 0 || *b > 0);
    let mut new = e.op("Slice", if adds { "cut" } else { "" }, &[x.into(), from, to, axes]);
    if adds {
        let list: Vec<i64> = sides.iter().map(|s| s.0.max(0)).chain(sides.iter().map(|s| s.1.max(0))).collect();
        let list = e.ints("pads", &list);
        let inputs = [Some(new), Some(list), n.input(2).map(Into::into)];
        new = e.node_with(n.op.clone(), &inputs, &[name], n.attrs.clone())[0];
    }
    p.succeed(y, new);
    Some(p)
}
