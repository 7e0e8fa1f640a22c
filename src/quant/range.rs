//! Ranges of values, and the parameters of one scale for all of a tensor.
//!
//! Everything is scored by expected squared error: `step^2 / 12` for a value inside the range, the squared distance for
//! a clipped one ([`Moments::error`]).

use serde::{Deserialize, Serialize};

use super::hist::{Hist, Moments};
use super::observe::{Channel, Ends, Stats};
use super::{Code, QParams};

/// How a range is chosen. In a recipe: `min-max`, `mse`, `{ headroom: 1.25 }`, `{ percentile: 0.9999 }`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RangeText", into = "RangeText")]
pub enum Range {
    /// All that was seen.
    MinMax,
    /// All that was seen and this many times as far: room for what calibration did not see. Values with heavy tails need
    /// it where each channel has its own range.
    Headroom(f32),
    /// The central fraction of the observations, such as 0.9999.
    Percentile(f64),
    /// The range of least squared error.
    Mse,
}

impl Range {
    /// How many times as far as what was seen it reaches.
    pub fn room(self) -> f32 {
        if let Range::Headroom(h) = self { h } else { 1.0 }
    }
}

/// A [`Range`] as recipes write it: YAML's tags do not work inside a tagged candidate.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(untagged, expecting = "a range is `min-max`, `mse`, `{ headroom: 1.2 }` or `{ percentile: 0.9999 }`")]
enum RangeText {
    Plain(PlainRange),
    Headroom { headroom: f32 },
    Percentile { percentile: f64 },
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum PlainRange {
    MinMax,
    Mse,
}

impl TryFrom<RangeText> for Range {
    type Error = String;
    fn try_from(t: RangeText) -> Result<Range, String> {
        match t {
            RangeText::Plain(PlainRange::MinMax) => Ok(Range::MinMax),
            RangeText::Plain(PlainRange::Mse) => Ok(Range::Mse),
            RangeText::Headroom { headroom: h } if h.is_finite() && h > 0.0 => Ok(Range::Headroom(h)),
            RangeText::Headroom { headroom } => Err(format!("headroom {headroom} is not a positive number")),
            RangeText::Percentile { percentile: p } if p > 0.0 && p <= 1.0 => Ok(Range::Percentile(p)),
            RangeText::Percentile { percentile } => {
                Err(format!("percentile {percentile} is not a fraction in 0..1, such as 0.9999"))
            }
        }
    }
}

impl From<Range> for RangeText {
    fn from(r: Range) -> RangeText {
        match r {
            Range::MinMax => RangeText::Plain(PlainRange::MinMax),
            Range::Mse => RangeText::Plain(PlainRange::Mse),
            Range::Headroom(headroom) => RangeText::Headroom { headroom },
            Range::Percentile(percentile) => RangeText::Percentile { percentile },
        }
    }
}

/// Parameters for one scale per tensor.
pub fn affine(code: Code, stats: &Stats, range: Range) -> QParams {
    let mut seen = stats.range();
    // One scale: what counts is how many values were seen, of whatever channel.
    let values: u64 = stats.channels.iter().map(|c| c.hist.total()).sum();
    if let Range::Headroom(h) = range
        && values < SEEN_OFTEN_AT_ONCE
    {
        let mut all = Hist::default();
        stats.channels.iter().for_each(|c| all.merge(&c.hist));
        let (lo, hi) = reaching((seen.0.into(), seen.1.into()), nearly_all(&all));
        seen = (seen.0.min(lo as f32 / h), seen.1.max(hi as f32 / h));
    }
    let pooled = match range {
        Range::MinMax | Range::Headroom(_) => Moments::default(),
        Range::Percentile(_) | Range::Mse => stats.pooled(|_| 1.0),
    };
    affine_of(code, &pooled, seen, range)
}

/// As [`affine`], over any distribution with its extreme values.
pub fn affine_of(code: Code, m: &Moments, seen: (f32, f32), range: Range) -> QParams {
    let (lo, hi) = (seen.0.min(0.0), seen.1.max(0.0));
    match range {
        Range::MinMax => QParams::covering(code, lo, hi),
        Range::Headroom(h) => QParams::covering(code, lo * h, hi * h),
        Range::Percentile(p) => {
            let (a, b) = m.central(p);
            QParams::covering(code, (a as f32).max(lo), (b as f32).min(hi))
        }
        Range::Mse => {
            let mut best = (f64::INFINITY, QParams::covering(code, lo, hi));
            // Both ends shrink on their own: a lopsided tail costs only its own side.
            let grid: Vec<f32> = (0..=40).map(|i| 1.0 - 0.0225 * i as f32).collect();
            for a in &grid {
                for b in &grid {
                    let p = QParams::covering(code, lo * a, hi * b);
                    let e = window_error(m, &p, 0);
                    if e < best.0 {
                        best = (e, p);
                    }
                    if hi == 0.0 {
                        break;
                    }
                }
                if lo == 0.0 {
                    break;
                }
            }
            best.1
        }
    }
}

/// Expected squared error of channel `c`'s parameters on a distribution.
pub fn window_error(m: &Moments, p: &QParams, c: usize) -> f64 {
    let (lo, hi) = p.reach(c);
    m.error(lo as f64, hi as f64, p.scale(c) as f64)
}

/// Expected sum of squared errors of parameters on everything seen, channel `c` weighted by `weight(c)`.
pub fn expected_error(stats: &Stats, p: &QParams, weight: impl Fn(usize) -> f64) -> f64 {
    stats
        .channels
        .iter()
        .enumerate()
        .map(|(c, ch)| weight(c) * window_error(&ch.moments(), p, if p.axis().is_some() { c } else { 0 }))
        .sum()
}

/// A channel seen this often has shown its range: room beyond it changed nothing at 22 000 tokens.
const SEEN_OFTEN: u64 = 5000;
/// The same where the quarters of the samples are not told apart: more room was measured to cost more than it saves.
const SEEN_OFTEN_AT_ONCE: u64 = 64;
/// So many standard deviations on either side of the mean, normal values are nearly always: one in 5000 is not.
const NEARLY_ALL: f64 = 3.7;
/// So many times as far as all samples reach beyond a quarter of them, others may reach beyond all: 1.5, 2, 3 and 5 times
/// were tried.
const BEYOND_ALL: f64 = 3.0;

/// Where nearly all values lie if they are normal with this mean and these deviations.
fn nearly_all(seen: &Hist) -> Option<(f64, f64)> {
    seen.deviations().map(|(mean, below, above)| (mean - NEARLY_ALL * below, mean + NEARLY_ALL * above))
}

/// The range, reaching as far as `to` as well. What ends at 0 is made to, as by a Relu.
fn reaching((lo, hi): (f64, f64), to: Option<(f64, f64)>) -> (f64, f64) {
    let Some((a, b)) = to else { return (lo, hi) };
    (if lo < 0.0 { lo.min(a) } else { lo }, if hi > 0.0 { hi.max(b) } else { hi })
}

/// The range of a channel, widened for values that calibration has not seen if it saw few: `count` of them, of which the
/// histogram may hold only a sample.
pub(super) fn foreseen((lo, hi): (f64, f64), c: &Channel, count: u64) -> (f64, f64) {
    let quarters: Vec<_> = c.quarters.iter().filter(|q| q.are_seen()).collect();
    let often = if quarters.len() > 1 { SEEN_OFTEN } else { SEEN_OFTEN_AT_ONCE };
    if count >= often {
        return (lo, hi);
    }
    let mut to = nearly_all(&c.hist);
    // Where every quarter of the samples reaches as far as all of them, more samples will not reach much further.
    if let Some((a, b)) = to.filter(|_| quarters.len() > 1) {
        let end = |of: fn(&Ends) -> f32| quarters.iter().map(|q| f64::from(of(q))).sum::<f64>() / quarters.len() as f64;
        to = Some((
            a.max(lo - BEYOND_ALL * (end(|q| q.min) - f64::from(c.min))),
            b.min(hi + BEYOND_ALL * (f64::from(c.max) - end(|q| q.max))),
        ));
    }
    reaching((lo, hi), to)
}

/// The distribution of a channel in which one value of as many as were seen lies at either end of the range.
pub(super) fn with_foreseen(m: &Moments, range: (f64, f64), seen: &Hist) -> Moments {
    // One of the values in the end bin.
    let one = |end: Option<(f64, u32)>| end.map_or(1.0, |(_, count)| 1.0 / f64::from(count.max(1)));
    let (first, last) = (one(seen.bins().next()), one(seen.bins().last()));
    m.with_ends((range.0, first), (range.1, last), m.total() / seen.total().max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::super::kernel::fake_quantize;
    use super::super::observe::Watch;
    use super::*;

    #[test]
    fn ranges_are_read_as_recipes_write_them() {
        use crate::plan::recipe::Candidate;
        for (text, range) in [
            ("min-max", Range::MinMax),
            ("mse", Range::Mse),
            ("{ headroom: 1.25 }", Range::Headroom(1.25)),
            ("{ percentile: 0.9999 }", Range::Percentile(0.9999)),
        ] {
            let c: Candidate = crate::yaml::from_str(&format!("{{ kind: affine, range: {text} }}")).unwrap();
            assert_eq!(c, Candidate::Affine { code: Code::U8, range });
            assert_eq!(crate::yaml::from_str::<Candidate>(&crate::yaml::to_string(&c).unwrap()).unwrap(), c);
        }
        for text in ["{ headroom: 0 }", "{ percentile: 99.9 }", "widest"] {
            assert!(
                crate::yaml::from_str::<Candidate>(&format!("{{ kind: affine, range: {text} }}")).is_err(),
                "{text}"
            );
        }
    }

    #[test]
    fn outputs_of_an_untrained_network_are_not_all_zeros() {
        // timm's mobilenetv4_hybrid_medium makes 7e-16.
        let x: Vec<f32> = (0..200).map(|i| (i as f32 - 99.5) * 1e-17).collect();
        let mut s = Stats::new(Watch::Channels { axis: -1 });
        s.observe(&x, &[100, 2], 0).unwrap();
        let mut y = x.clone();
        fake_quantize(&mut y, &[100, 2], &affine(Code::U8, &s, Range::MinMax)).unwrap();
        assert!(x.iter().zip(&y).all(|(a, b)| (a - b).abs() < 1e-17), "{y:?}");
    }

    #[test]
    fn an_output_seen_a_few_times_keeps_room_for_the_next_value() {
        // Forty logits of about unit width, none of which lies further out than 1.6.
        let few: Vec<f32> = (0..40).map(|i| (i as f32 - 19.5) / 12.0).collect();
        let of = |times: usize| {
            let mut s = Stats::new(Watch::Channels { axis: -1 });
            s.observe(&few.repeat(times), &[20 * times, 2], 0).unwrap();
            affine(Code::U8, &s, Range::Headroom(1.2)).reach(0)
        };
        assert!(of(1).0 < -3.3 && of(1).1 > 3.3, "{:?}", of(1));
        assert!(of(50).0 > -2.1 && of(50).1 < 2.1, "{:?}", of(50));
    }
}
