//! Assignments to all of a value.

use super::common::patch_nodes;
use super::{Numerics, Outcome, Pass, PassError};
use crate::infer::{self, ShapeMap, Size};
use crate::ir::{Graph, Model, NodeId, ValueId};
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
pub struct WholeUpdate;

impl Pass for WholeUpdate {
    fn id(&self) -> &'static str {
        "whole-update"
    }

    fn summary(&self) -> &'static str {
        "a ScatterND that replaces every element is what it replaces them with"
    }

    fn numerics(&self) -> Numerics {
        Numerics::BitExact
    }

    fn run(&self, model: &mut Model) -> Result<Outcome, PassError> {
        if !model.graph.nodes().any(|(_, n)| n.op.is("ScatterND")) {
            return Ok(Outcome::default());
        }
        let map = infer::shapes(model);
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
    let mut p = Patch::new("whole-update").made_from([g.name_of(y).to_owned()]);
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
    last && all.inputs.len() == dims.len()
        && all.inputs.iter().enumerate().all(|(axis, v)| v.is_some_and(|v| counts(g, map, v, axis, dims)))
}

/// True if `v`, which has one axis more at its end, holds the place of each element along `axis`.
fn counts(g: &Graph, map: &ShapeMap, v: ValueId, axis: usize, dims: &[Size]) -> bool {
    let whole: Vec<Size> = dims.iter().cloned().chain([Size::Known(1)]).collect();
    if map.dims(v) != Some(&whole) {
        return false;
    }
    // From the end to the Range: where the axis that counts is, from the right, after the axis of size 1 is gone.
    let Some(mut at) = g
        .producer(v)
        .map(|n| g.node(n))
        .filter(|n| n.op.is("Unsqueeze") || n.op.is("Reshape"))
        .and_then(|n| n.input(0))
    else {
        return false;
    };
    if map.dims(at) != Some(dims) {
        return false;
    }
    if let Some(expand) = g.producer_is(at, "Expand") {
        let Some(x) = g.node(expand).input(0) else { return false };
        at = x;
    }
    let Some(shape) = map.dims(at) else { return false };
    let from_right = dims.len() - axis;
    let alone = shape.len() >= from_right
        && shape
            .iter()
            .rev()
            .enumerate()
            .all(|(i, d)| *d == if i + 1 == from_right { dims[axis].clone() } else { Size::Known(1) });
    while let Some(n) = g.producer(at).map(|n| g.node(n)).filter(|n| n.op.is("Reshape") || n.op.is("Unsqueeze")) {
        let Some(x) = n.input(0) else { return false };
        at = x;
    }
    if let Some(places) = map.constant(at).and_then(|t| t.to_i64s()) {
        return alone && places.iter().enumerate().all(|(i, p)| *p == i as i64);
    }
    let Some(range) = g.producer_is(at, "Range").map(|n| g.node(n)) else { return false };
    let number = |slot: usize| range.input(slot).and_then(|v| map.constant(v)).and_then(|t| t.as_scalar());
    alone && number(0) == Some(0.0) && number(2) == Some(1.0) && map.dims(at) == Some(&dims[axis..=axis])
}
