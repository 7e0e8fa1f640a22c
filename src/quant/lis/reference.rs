//! The number: what a log-int-softmax is, computed one row at a time in plain integers.
//!
//! The emitted operators give these bits and no others. Where float32 appears here, it appears in the emission too, in
//! the same order and with every result rounded to nearest.
//!
//! Codes are `c = floor((A + K d + 2^(F-1)) / 2^F)`, where `d` is the distance to the row's largest score and `A` is 0
//! for anchor `max` and `p (log2 S - log2 e(0))` for the sum anchors: `log2(S / e(d))` with `log2 e(d)` taken as linear
//! in `d`. No element is divided.

use super::plan::{LOG_BITS, LisPlan, Product, Weights, at, exponential, paper_code};
use super::spec::{Anchor, Rounding, Tail};

/// `round(2^14 log2(1 + i / 256))`, the corners of [`log2_fixed`].
pub(crate) fn log2_corners() -> Vec<i32> {
    (0..=256).map(|i| ((1.0 + f64::from(i) / 256.0).log2() * f64::from(1 << LOG_BITS)).round() as i32).collect()
}

/// `2^14 log2 S` by a 256-piece linear interpolation, rounded down; within 2 units of the true value.
pub fn log2_fixed(sum: u32) -> i32 {
    let n = 31 - sum.max(1).leading_zeros();
    let m = sum.max(1) << (31 - n);
    let (piece, frac) = (m >> 23, (m >> 9) & 0x3FFF);
    let g = log2_corners();
    let i = piece as usize - 256;
    ((n as i32) << LOG_BITS) + g[i] + (((g[i + 1] - g[i]) * frac as i32) >> 14)
}

/// Distances to the largest score that the mask keeps; `None` where the mask drops.
fn distances(row: &[u8], mask: Option<&[bool]>) -> Vec<Option<u8>> {
    let kept = |j: usize| mask.is_none_or(|m| m[j]);
    let top = (0..row.len()).filter(|j| kept(*j)).map(|j| row[j]).max().unwrap_or(0);
    row.iter().enumerate().map(|(j, x)| kept(j).then(|| top - x)).collect()
}

/// The row sum of exponentials; at least `e(0)`.
fn row_sum(plan: &LisPlan, head: usize, ds: &[Option<u8>]) -> u32 {
    let sum: u32 = ds.iter().flatten().map(|d| exponential(plan, head, *d)).sum();
    sum.max(*at(&plan.e0, head))
}

/// The position of code 0 relative to distance 0, over `2^bits`.
fn offset(plan: &LisPlan, head: usize, ds: &[Option<u8>]) -> u32 {
    if !plan.spec.anchor().is_sum() {
        return 0;
    }
    let log = log2_fixed(row_sum(plan, head, ds)) - log2_fixed(*at(&plan.e0, head));
    let drop = LOG_BITS - plan.bits;
    (log as u32 * at(&plan.steps, head)) >> drop
}

/// What selects the weight of every key: positions on the code axis, or distances where the table goes by distance.
fn positions(plan: &LisPlan, head: usize, ds: &[Option<u8>]) -> Vec<Option<u32>> {
    if let Weights::Ratio { .. } = plan.weights {
        let sum = row_sum(plan, head, ds);
        let code = |d: &u8| {
            let e = exponential(plan, head, *d);
            paper_code(f64::from((sum + e / 2) / e))
        };
        return ds.iter().map(|d| d.as_ref().map(code)).collect();
    }
    let offset = offset(plan, head, ds);
    let half = (1u32 << plan.bits) >> 1;
    if let Weights::Knee { fine, .. } = &plan.weights {
        let knee = (at(fine, head) / 2) << plan.bits;
        let code = |d: u8| {
            let t = at(&plan.k, head) * u32::from(d);
            (t + t.min(knee) + half) >> plan.bits
        };
        return ds.iter().map(|d| d.map(code)).collect();
    }
    ds.iter().map(|d| d.map(|d| (offset + at(&plan.k, head) * u32::from(d) + half) >> plan.bits)).collect()
}

/// The codes of a row of score codes, not clipped to the width: a weight is `base^-c` before the tail is cut. `None`
/// where the mask drops. Under paper rounding they are the paper's codes (anchor `max` has 1 for the row sum), under
/// rounding `none` the distances.
pub fn codes(plan: &LisPlan, head: usize, row: &[u8], mask: Option<&[bool]>) -> Vec<Option<u32>> {
    let ds = distances(row, mask);
    if plan.spec.anchor() == Anchor::Max && plan.spec.rounding() == Rounding::Paper {
        return ds.into_iter().map(|d| d.map(|d| plan.paper_code_of(head, d))).collect();
    }
    positions(plan, head, &ds)
}

/// The weights of a row; 0 where the mask drops.
pub fn weights(plan: &LisPlan, head: usize, row: &[u8], mask: Option<&[bool]>) -> Vec<u32> {
    let weight = |c: u32| match &plan.weights {
        Weights::Shift { one, clip } => one >> c.min(*clip),
        Weights::Table { tables, clip } => at(tables, head)[c.min(*clip) as usize],
        Weights::Knee { fine, a, b, zero, clip } => {
            let c = c.min(*clip);
            let k = c + c.saturating_sub(*at(fine, head));
            if zero.is_some_and(|z| c >= z) { 0 } else { (a >> k.div_ceil(2)) + (b >> (k / 2)) }
        }
        Weights::Ratio { one, floor } => (one >> c.min(31)).max(*floor),
    };
    positions(plan, head, &distances(row, mask)).into_iter().map(|c| c.map_or(0, weight)).collect()
}

/// What each code stands for, as a share of code 0: `base^-c`, and 0 for the code that means nothing. Codes beyond the last
/// one are it. `None` where weights have no codes.
pub fn code_weights(plan: &LisPlan, head: usize) -> Option<Vec<f64>> {
    let spec = plan.spec();
    if spec.rounding() == Rounding::None {
        return None;
    }
    let octaves = |c: u32| match &plan.weights {
        Weights::Knee { fine, .. } => f64::from(c + c.saturating_sub(*at(fine, head))) / 2.0,
        _ => f64::from(c) / f64::from(*at(&plan.steps, head)),
    };
    let weights = (0..spec.levels()).map(|c| (-octaves(c)).exp2());
    Some(weights.chain((spec.tail() != Tail::Saturate).then_some(0.0)).collect())
}

/// The weight of a key at each distance from the largest score of its row, of which there are 256; `None` where it depends
/// on the rest of the row as well.
pub fn weights_by_distance(plan: &LisPlan, head: usize) -> Option<Vec<u32>> {
    if plan.spec.anchor().is_sum() || matches!(plan.weights, Weights::Ratio { .. }) {
        return None;
    }
    let row: Vec<u8> = (0..=u8::MAX).rev().collect();
    Some(weights(plan, head, &row, None))
}

/// The weights of a row as shares of it; what [`attend`] multiplies V with, if nothing is rounded for the product.
pub fn shares(plan: &LisPlan, head: usize, row: &[u8], mask: Option<&[bool]>) -> Vec<f32> {
    let w = weights(plan, head, row, mask);
    let total: u64 = w.iter().map(|w| u64::from(*w)).sum();
    let factor = if plan.renormalised() { 1.0 / total.max(1) as f32 } else { plan.plain_factor(head) };
    w.iter().map(|w| *w as f32 * factor).collect()
}

/// One output row: the weighted sum of V's rows in V's units. `v` holds V's codes (zero point not subtracted), one row
/// of `width` values for each key.
///
/// # Panics
/// If `v` is shorter than `row.len() * width` or a mask is shorter than the row.
pub fn attend(plan: &LisPlan, head: usize, row: &[u8], mask: Option<&[bool]>, v: &[i32], width: usize) -> Vec<f32> {
    let w = weights(plan, head, row, mask);
    let sum: u64 = w.iter().map(|w| u64::from(*w)).sum();
    let total = sum.max(1) as f32;
    let used: Vec<f64> = match plan.product {
        Product::Planes | Product::Float => w.iter().map(|w| f64::from(*w)).collect(),
        Product::Guarded { ratio } => {
            // Adding 2^23 R and taking it away rounds R to a power of two; adding M and taking it away rounds a weight
            // to the spacing of floats near M.
            let far = total * 8_388_608.0;
            let m = ((total + far) - far) * ratio;
            w.iter().map(|w| f64::from((*w as f32 + m) - m)).collect()
        }
    };
    let factor = if plan.renormalised() { 1.0 / (total * plan.v_inverse(head)) } else { plan.plain_factor(head) };
    let zero = plan.facts.v_zero;
    (0..width)
        .map(|c| {
            // Integers far below 2^53: f64 adds them exactly.
            let acc: f64 = used.iter().enumerate().map(|(j, w)| w * f64::from(v[j * width + c] - zero)).sum();
            (acc + 0.0) as f32 * factor
        })
        .collect()
}

#[cfg(test)]
#[path = "reference_tests.rs"]
mod tests;
