//! Which scores get a weight, from the masks of an attention.
//!
//! Softmax compares: an entry is hidden if what its masks make of it lies far below the largest of its row, not if it is very
//! negative by itself. A row of which everything is hidden keeps what was hidden least.

use crate::ir::masks::{DROWNED_BELOW, HIDDEN, HIDES};
use crate::ir::{DType, Dim, Graph, Tensor};
use crate::pattern::{Attention, Mask, MaskKind};
use crate::plan::scores::ScoreSite;

use crate::rewrite::{Patch, Ref, Under};

/// What the masks of an attention do to its scores. Absent where they do nothing of the kind.
pub(super) struct Hiding {
    /// True for entries that get a weight.
    pub keep: Option<Ref>,
    /// True for entries whose score is still a score: the others are a number that is the same for all of them.
    pub left: Option<Ref>,
}

/// What the masks hide, row by row.
///
/// # Errors
/// If one of the masks is a bias.
pub(super) fn hiding(
    g: &Graph,
    a: &Attention,
    site: &ScoreSite<'_>,
    opset: i64,
    p: &mut Patch,
) -> Result<Hiding, String> {
    let masks = &site.masks[..];
    let keep = above(g, masks, HIDES, p)?;
    let Some(one) = keep.filter(|_| may_hide_a_row(g, a, masks)) else { return Ok(Hiding { keep, left: None }) };
    // What is added to scores may be small enough to leave them as they are, if all of a row have it.
    let left = above(g, masks, DROWNED_BELOW, p)?;
    let mut e = p.under(g.name_of(site.value));
    let fill = |m: &Mask| match m.kind {
        MaskKind::Boolean { fill, .. } => g.constant(fill)?.as_scalar().map(|x| x as f32),
        _ => None,
    };
    let fills: Vec<Option<f32>> = masks.iter().map(|m| fill(m)).collect();
    let keep = if fills.iter().all(|f| f.is_some() && *f == fills[0]) {
        or_whole_rows(&mut e, one, opset)
    } else {
        by_level(masks, &fills, &mut e, opset)
    };
    Ok(Hiding { keep: Some(keep), left })
}

/// What the masks hide wherever it stands.
///
/// # Errors
/// If one of the masks is a bias.
pub(super) fn seen(g: &Graph, masks: &[&Mask], p: &mut Patch) -> Result<Option<Ref>, String> {
    above(g, masks, HIDES, p)
}

/// True if the masks may hide all keys of some query, without a guard that gives it nothing.
fn may_hide_a_row(g: &Graph, a: &Attention, masks: &[&Mask]) -> bool {
    if a.guard.iter().any(|n| g.node(*n).op.is("IsNaN") || g.node(*n).op.is("Where")) {
        return false;
    }
    let always_seen = |m: &Mask| {
        let seen: Option<Vec<bool>> = g.constant(m.value).and_then(|t| match m.kind {
            MaskKind::Boolean { keep, .. } => Some(t.to_i64s()?.iter().map(|x| (*x != 0) == keep).collect()),
            _ => Some(t.to_f32s()?.iter().map(|x| *x > HIDES).collect()),
        });
        let keys =
            g.shape(m.value).and_then(|s| if let Some(Dim::Known(n)) = s.last() { Some(*n as usize) } else { None });
        seen.zip(keys).is_some_and(|(seen, keys)| keys > 0 && seen.chunks(keys).all(|row| row.contains(&true)))
    };
    !masks.is_empty() && !matches!(masks, [m] if always_seen(m))
}

/// `keep`, and all keys of a query of which it keeps none: where all that hides is one number, they are alike.
fn or_whole_rows(e: &mut Under<'_>, keep: Ref, opset: i64) -> Ref {
    let count = e.cast("keep_u8", keep, DType::UINT8);
    let any = e.reduced("ReduceMax", "keep_any", count, opset);
    let any = e.cast("keep_any_bool", any, DType::BOOL);
    let none = e.op("Not", "keep_none", &[any]);
    e.op("Or", "keep_or_none", &[keep, none])
}

/// What lies less far than `HIDES` below the largest number that the masks put in its row.
fn by_level(masks: &[&Mask], fills: &[Option<f32>], e: &mut Under<'_>, opset: i64) -> Ref {
    let mut level: Option<Ref> = None;
    for (i, (m, fill)) in masks.iter().zip(fills).enumerate() {
        let mut e = e.part(&format!("level_{i}"));
        level = Some(match (m.kind, level) {
            (MaskKind::Boolean { keep, .. }, before) => {
                let before = before.unwrap_or_else(|| e.scalar("of_all", 0.0));
                let fill = fill.unwrap_or(HIDDEN).max(f32::MIN);
                let fill = e.scalar("hidden", fill);
                let order = if keep { [before, fill] } else { [fill, before] };
                e.op("Where", "", &[m.value.into(), order[0], order[1]])
            }
            (_, None) => m.value.into(),
            (_, Some(before)) => e.op("Add", "", &[before, m.value.into()]),
        });
    }
    let level = level.unwrap_or_else(|| e.scalar("level", 0.0));
    let top = e.reduced("ReduceMax", "level_top", level, opset);
    let below = e.op("Sub", "level_below", &[level, top]);
    let limit = e.scalar("level_limit", HIDES);
    e.op("Greater", "keep_by_level", &[below, limit])
}

/// The masks as one condition, true where each lets through or adds more than `limit`.
fn above(g: &Graph, masks: &[&Mask], limit: f32, p: &mut Patch) -> Result<Option<Ref>, String> {
    let mut all: Option<Ref> = None;
    for m in masks {
        let mut e = p.under(g.name_of(m.value));
        let one = match m.kind {
            MaskKind::Bias => return Err(format!("`{}` is a bias, not a mask", g.name_of(m.value))),
            MaskKind::Boolean { keep: true, .. } => m.value.into(),
            MaskKind::Boolean { keep: false, .. } => e.op("Not", "keep", &[m.value.into()]),
            MaskKind::Additive | MaskKind::Mixed => {
                match g.constant(m.value).and_then(|t| Some((t.dims.clone(), t.to_f32s()?))) {
                    Some((dims, data)) => {
                        let keep: Vec<bool> = data.iter().map(|x| *x > limit).collect();
                        if !keep.contains(&false) {
                            continue;
                        }
                        e.constant("keep", Tensor::bool(&dims, &keep))
                    }
                    None => {
                        let limit = e.scalar("keep_limit", limit);
                        e.op("Greater", "keep", &[m.value.into(), limit])
                    }
                }
            }
        };
        all = Some(match all {
            None => one,
            Some(k) => e.op("And", "keep", &[k, one]),
        });
    }
    Ok(all)
}
