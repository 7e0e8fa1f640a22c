//! Assignments to all of a value.

use super::common::{has, patch_nodes};
use super::{Context, Numerics, Outcome, Pass, PassError};
use crate::infer::{ShapeMap, Size};
use crate::ir::{Graph, NodeId, ValueId};
use crate::rewrite::Patch;

/// # What it does
/// Takes the updates of a ScatterND that replaces every element for its result.
///
/// # When it fires
/// Where the updates have the shape of the data and the indices are all places in order: a constant that says so, or a Concat
/// of one Range for each axis, expanded to the shape.
///
/// # Why it is correct
/// Nothing of the data is left.
///
/// # Numerics
/// Bit-exact.
///
/// # Before / after
/// ```text
/// y = ScatterND (x, every_place, u)      y = u
/// ```
///
/// # Source
/// `x[:, :, 0:, 0:] = u` by the TorchScript exporter; the attention of MViT of version 2.
pub struct DropFullScatter;

impl Pass for DropFullScatter {
    fn id(&self) -> &'static str {
        "drop-full-scatter"
    }

    fn summary(&self) -> &'static str {
        "Replaces a ScatterND that overwrites every element by what it writes."
    }

    fn numerics(&self) -> Numerics {
        Numerics::BitExact
    }

    fn run(&self, model: &mut Context) -> Result<Outcome, PassError> {
        if !has(model, "ScatterND") {
            return Ok(Outcome::default());
        }
        let map = model.shapes();
        patch_nodes(model, |g, id| patch(g, id, &map))
    }
}

fn patch(g: &Graph, id: NodeId, map: &ShapeMap) -> Option<Patch> {
    let n = g.node(id);
    if !n.op.is("ScatterND") || n.attrs.str("reduction").is_some_and(|r| r != "none") {
        return None;
    }
    let (data, indices, updates, y) = (n.input(0)?, n.input(1)?, n.input(2)?, n.out()?);
    let dims = map.dims(data)?;
    if g.is_output(y)
        || !map.same_shape(data, updates)
        || !(all_places(map, indices, dims) || ranges(g, map, indices, dims))
    {
        return None;
    }
    let mut p = Patch::new("drop-full-scatter").made_from([g.name_of(y).to_owned()]);
    p.replace(y, updates.into());
    Some(p)
}

/// True for a constant that names every place of such a shape, the last axis fastest.
fn all_places(map: &ShapeMap, indices: ValueId, dims: &[Size]) -> bool {
    let known: Option<Vec<i64>> = dims.iter().map(Size::known).collect();
    let (Some(dims), Some(found)) = (known, map.constant(indices).and_then(|t| t.to_i64s())) else { return false };
    let count = dims.iter().try_fold(1i64, |a, d| a.checked_mul(*d)).and_then(|c| usize::try_from(c).ok());
    if count.and_then(|c| c.checked_mul(dims.len())) != Some(found.len()) {
        return false;
    }
    found.chunks(dims.len().max(1)).enumerate().all(|(at, place)| {
        let mut rest = at as i64;
        place.iter().zip(&dims).rev().all(|(p, d)| {
            let here = rest % d;
            rest /= d;
            *p == here
        })
    })
}

/// True for one Range for each axis, each of which counts its own.
fn ranges(g: &Graph, map: &ShapeMap, indices: ValueId, dims: &[Size]) -> bool {
    let Some(all) = g.producer_is(indices, "Concat").map(|n| g.node(n)) else { return false };
    let last = map.rank(indices).is_some_and(|r| {
        all.attrs.int("axis").is_some_and(|a| a.rem_euclid(r.max(1) as i64) == r as i64 - 1) && r == dims.len() + 1
    });
    let counts = |(axis, v): (usize, &Option<ValueId>)| v.and_then(|v| counts(g, map, v, axis, dims)) == Some(true);
    last && all.inputs.len() == dims.len() && all.inputs.iter().enumerate().all(counts)
}

/// Whether `v`, which has one axis more at its end, holds the place of each element along `axis`; `None` if that is not told.
fn counts(g: &Graph, map: &ShapeMap, v: ValueId, axis: usize, dims: &[Size]) -> Option<bool> {
    let relabelled = |v: ValueId| {
        let n = g.producer(v).map(|n| g.node(n)).filter(|n| n.op.is("Unsqueeze") || n.op.is("Reshape"))?;
        n.input(0)
    };
    let one = Size::Known(1);
    let mut at = relabelled(v)?;
    if map.dims(v)?.split_last() != Some((&one, dims)) || map.dims(at)? != dims {
        return Some(false);
    }
    if let Some(expand) = g.producer_is(at, "Expand") {
        at = g.node(expand).input(0)?;
    }
    // Before it is repeated, the axis that counts stands alone.
    let (shape, behind) = (map.dims(at)?, dims.len() - axis - 1);
    let is_alone = |(i, d): (usize, &Size)| *d == if i == behind { dims[axis].clone() } else { one.clone() };
    if shape.len() <= behind || !shape.iter().rev().enumerate().all(is_alone) {
        return Some(false);
    }
    while let Some(x) = relabelled(at) {
        at = x;
    }
    if let Some(places) = map.constant(at).and_then(|t| t.to_i64s()) {
        return Some(places.iter().enumerate().all(|(i, p)| *p == i as i64));
    }
    let range = g.node(g.producer_is(at, "Range")?);
    let number = |slot: usize| map.constant(range.input(slot)?)?.as_scalar();
    Some(number(0)? == 0.0 && number(2)? == 1.0 && map.dims(at)? == &dims[axis..=axis])
}
