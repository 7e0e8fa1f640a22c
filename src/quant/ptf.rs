//! The search for a base scale, and for a factor and a zero point of each channel, from statistics.
//!
//! Scored by expected squared error, as [`range`](super::range) has it. Channels may be weighted by what an error in them
//! costs at the consumer.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::hist::Moments;
use super::observe::{Stats, Watch};
use super::qparams::SCALE_FLOOR;
use super::range::{Range, foreseen, with_foreseen};
use super::{Code, QParams};

/// What the factors of the channels may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Factors {
    /// Powers of two, as published.
    #[default]
    Powers,
    /// Whole numbers: a step within some percent of the best one, where a power of two may be off by half an octave.
    Whole,
}

impl Factors {
    /// What a factor up to `2^k` may be. Beyond 32 whole numbers lie closer than a step needs, so some are left out.
    fn up_to(self, k: u8) -> Vec<u32> {
        let top = 1u32 << k.min(15);
        match self {
            Factors::Powers => (0..=k.min(15)).map(|a| 1 << a).collect(),
            Factors::Whole => (1..=top).filter(|f| f % (f / 16).max(1).next_power_of_two() == 0).collect(),
        }
    }
}

/// How factors of the channels are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PtfRule {
    /// The largest factor is 2^K.
    pub max_shift: u8,
    #[serde(default)]
    pub factors: Factors,
    /// One zero point per channel instead of one per tensor.
    pub channel_zeros: bool,
    /// `min-max`: no value seen in calibration is clipped. `mse`: least squared error.
    pub range: Range,
    /// `true`: the published base scale `(max - min) / 255 / 2^K`; `false`: the best of a search.
    #[serde(default)]
    pub published_base: bool,
    /// Count an error relative to the variance of the token it happens in, as a LayerNorm after divides by it, and more in
    /// the tokens that the outputs read ([`Watch::Tokens`]). A few tokens with one massive channel then no longer dictate
    /// that channel's step to all the others.
    #[serde(default)]
    pub normalised: bool,
}

/// Distributions of the channels, each value counted with what an error in it costs under the rule.
fn distributions(stats: &Stats, rule: PtfRule) -> Vec<Moments> {
    let weighted = rule.normalised && matches!(stats.watch, Watch::Tokens { .. });
    stats.channels.iter().map(|c| if weighted { Moments::new(&c.weighted()) } else { Moments::new(&c.hist) }).collect()
}

/// What one scale comes to for a channel.
#[derive(Clone, Copy, Debug)]
struct AtScale {
    zero: i32,
    error: f64,
    /// No zero point loses less than this by clipping, and none at a smaller scale does: its window lies inside that of
    /// the same zero point at this scale.
    clipped: f64,
}

/// The best zero point of a channel at a given scale.
fn best_zero(m: &Moments, (lo, hi): (f64, f64), scale: f64, code: Code, clip: bool) -> Option<AtScale> {
    let (qmin, qmax) = code.range();
    let steps = code.steps();
    let window = |z: i32| m.window((qmin - z) as f64 * scale, (qmax - z) as f64 * scale, scale);
    let need = (hi - lo) / scale;
    let cover =
        |z: i32| (qmin - z) as f64 * scale <= lo + 0.51 * scale && (qmax - z) as f64 * scale >= hi - 0.51 * scale;
    if need <= steps + 1.0 {
        // The range fits: any zero point that covers it will do; take the middle one, which leaves room on both sides.
        let mid = -((lo + hi) / 2.0 / scale) + (qmin as f64 + qmax as f64) / 2.0;
        let z = (mid.round() as i32).clamp(qmin, qmax);
        let z = if cover(z) { z } else { ((-lo / scale).round() as i32 + qmin).clamp(qmin, qmax) };
        let found = || AtScale { zero: z, error: window(z).sum(), clipped: 0.0 };
        return if clip || cover(z) { Some(found()) } else { None };
    }
    if !clip {
        return None;
    }
    // The window is too narrow: slide it from "nothing lost below" to "nothing lost above".
    let a = (qmin as f64 - lo / scale).round().clamp(qmin as f64, qmax as f64) as i32;
    let b = (qmax as f64 - hi / scale).round().clamp(qmin as f64, qmax as f64) as i32;
    let (from, to) = (a.min(b), a.max(b));
    let stride = ((to - from) / 24).max(1);
    let mut best = (from, window(from).sum());
    // A higher zero point moves the window down: between two that were tried, no less is lost above than at the lower
    // one and no less below than at the higher one.
    let (mut clipped, mut above) = (f64::INFINITY, 0.0);
    let mut z = from;
    while z <= to {
        let w = window(z);
        if w.sum() < best.1 {
            best = (z, w.sum());
        }
        clipped = clipped.min(above + w.below);
        above = w.above;
        z += stride;
    }
    clipped = clipped.min(above);
    for z in (best.0 - stride + 1).max(qmin)..(best.0 + stride).min(qmax + 1) {
        let e = window(z).sum();
        if e < best.1 {
            best = (z, e);
        }
    }
    Some(AtScale { zero: best.0, error: best.1, clipped })
}

/// What a channel comes to at one base.
#[derive(Clone, Copy, Debug)]
struct AtBase {
    error: f64,
    factor: u32,
    zero: i32,
}

/// The best of steps from coarse to fine, each with its number and factor; of equals the finest. Once clipping alone costs
/// more at a step than the best of all, no finer one needs a look.
fn finer(steps: impl Iterator<Item = (usize, u32)>, mut at: impl FnMut(usize) -> AtScale) -> Option<AtBase> {
    let mut best: Option<AtBase> = None;
    for (n, factor) in steps {
        let s = at(n);
        if best.is_none_or(|b| s.error <= b.error) {
            best = Some(AtBase { error: s.error, factor, zero: s.zero });
        }
        if best.is_some_and(|b| s.clipped > b.error) {
            break;
        }
    }
    best
}

/// The best factor of a channel at a base and a zero point that all channels share.
///
/// Windows of one zero point lie inside each other. From the first one on that holds all there is, the error grows with the
/// step; and coarser ones are not asked.
fn shared_zero(
    m: &Moments,
    range: (f64, f64),
    (base, factors): (f64, &[u32]),
    z: i32,
    code: Code,
    clip: bool,
    whatever_fits: bool,
) -> Option<AtBase> {
    let (qmin, qmax) = code.range();
    let reach = |f: u32| {
        let s = base * f64::from(f);
        (s, (qmin - z) as f64 * s, (qmax - z) as f64 * s)
    };
    let holds_all = |f: &u32| {
        let (_, l, h) = reach(*f);
        m.within(l, h) && l <= range.0 && h >= range.1
    };
    let fits = |f: &u32| {
        let (s, l, h) = reach(*f);
        l <= range.0 + 0.51 * s && h >= range.1 - 0.51 * s
    };
    let coarsest = factors.partition_point(|f| !holds_all(f)).min(factors.len() - 1);
    let finest = if clip || whatever_fits { 0 } else { factors.partition_point(|f| !fits(f)).min(coarsest) };
    finer(factors[finest..=coarsest].iter().copied().enumerate().rev(), |n| {
        let (s, l, h) = reach(factors[finest + n]);
        let w = m.window(l, h, s);
        AtScale { zero: z, error: w.sum(), clipped: w.below + w.above }
    })
}

/// Factors for the channels of `stats` along `axis`, each channel's error weighted by `weight(c)`.
///
/// The base scale is searched over one octave and all octaves that matter; for each base every channel takes the factor
/// and zero point of least error.
pub fn ptf(code: Code, stats: &Stats, axis: i64, rule: PtfRule, weight: impl Fn(usize) -> f64 + Sync) -> QParams {
    let n = stats.channels.len();
    let search = FactorSearch::of(code, stats, rule);
    let tries = search.tries();
    let errors = |c: usize| search.best(c, &tries).into_iter().map(|f| f.error).collect();
    let channels: Vec<Vec<f64>> = (0..n).into_par_iter().map(errors).collect();
    let total = |t: usize| channels.iter().enumerate().fold(0.0, |sum, (c, e)| sum + weight(c) * e[t]);
    let found: Vec<(f64, usize)> = (0..tries.len()).map(|t| (total(t), t)).collect();
    let least = found.iter().map(|f| f.0).fold(f64::INFINITY, f64::min);
    // A finer base always gives whole factors a little more choice, and makes the numbers they stand for longer.
    let enough = if rule.factors == Factors::Whole { least * 1.01 } else { least };
    let (_, t) = found.into_iter().find(|f| f.0 <= enough).expect("at least one base");
    let (chosen, mut zeros): (Vec<u32>, Vec<i32>) =
        (0..n).map(|c| search.best(c, &tries[t..=t])[0]).map(|f| (f.factor, f.zero)).unzip();
    let mut base = (tries[t].base as f32).max(SCALE_FLOOR);
    if rule.factors == Factors::Whole {
        // Sixteen bits, so that its multiples are exact.
        base = f32::from_bits(base.to_bits() & !0xff);
        for c in (0..n).filter(|_| rule.channel_zeros) {
            let s = f64::from(base) * f64::from(chosen[c]);
            let (m, range) = (&search.moments[c], search.ranges[c]);
            zeros[c] = best_zero(m, range, s, code, true).map_or(zeros[c], |z| z.zero);
        }
    }
    if !rule.channel_zeros {
        zeros.truncate(1);
    }
    QParams::factored(code, axis, base, chosen, zeros).expect("searched values are in range")
}

/// Bases stand sixteen to the octave, so that base i with factor 2^a has the step of base i - 16 a: each step's best zero
/// point is searched once. Other factors take the nearest.
const PER_OCTAVE: i32 = 16;

/// A base scale, its place among the bases, and the zero point that all channels share, if they do.
#[derive(Clone, Copy, Debug)]
struct Try {
    place: i32,
    base: f64,
    zero: Option<i32>,
}

/// What a base scale and factors are searched on.
struct FactorSearch {
    code: Code,
    rule: PtfRule,
    /// Distributions and ranges of the channels, with what values that were not seen may add.
    moments: Vec<Moments>,
    ranges: Vec<(f64, f64)>,
    /// The least of all values, and the scale that holds all of them.
    low: f64,
    top: f64,
    factors: Vec<u32>,
    /// Bases between a factor's step and the base.
    offsets: Vec<i32>,
    /// Bases between the largest factor's step and the base.
    span: i32,
    /// Values may be clipped.
    clip: bool,
}

impl FactorSearch {
    fn of(code: Code, stats: &Stats, rule: PtfRule) -> FactorSearch {
        let n = stats.channels.len();
        let mut moments = distributions(stats, rule);
        let room = f64::from(rule.range.room());
        let wider = |(a, b): (f32, f32)| (f64::from(a) * room, f64::from(b) * room);
        let mut ranges: Vec<(f64, f64)> = (0..n).map(|c| wider(stats.channel_range(c))).collect();
        let (mut low, mut high) = wider(stats.range());
        if rule.range == Range::Mse {
            for c in 0..n {
                let more = foreseen(ranges[c], &stats.channels[c], stats.count);
                if more == ranges[c] {
                    continue;
                }
                ranges[c] = more;
                moments[c] = with_foreseen(&moments[c], more, &stats.channels[c].hist);
                (low, high) = (low.min(ranges[c].0), high.max(ranges[c].1));
            }
        }
        let factors = rule.factors.up_to(rule.max_shift);
        let offset = |f: &u32| (f64::from(*f).log2() * f64::from(PER_OCTAVE)).round() as i32;
        FactorSearch {
            code,
            rule,
            moments,
            ranges,
            low,
            top: ((high - low) / code.steps()).max(SCALE_FLOOR as f64),
            offsets: factors.iter().map(offset).collect(),
            factors,
            span: i32::from(rule.max_shift) * PER_OCTAVE,
            clip: !matches!(rule.range, Range::MinMax | Range::Headroom(_)),
        }
    }

    fn step_of(&self, place: i32) -> f64 {
        self.top * f64::powf(2.0, -f64::from(place) / f64::from(PER_OCTAVE))
    }

    fn tries(&self) -> Vec<Try> {
        let bases: Vec<f64> = if self.rule.published_base {
            vec![self.top / f64::powi(2.0, self.rule.max_shift.into())]
        } else {
            // Octaves: the widest channel at factor 2^K, 2^(K-1), ... as low as the K allows.
            (0..=self.span).map(|i| self.step_of(i)).collect()
        };
        let at = |zero: Option<i32>| {
            let bases = bases.iter().enumerate();
            bases.map(move |(i, base)| Try { place: i as i32, base: *base, zero })
        };
        self.shared_zeros().into_iter().flat_map(at).collect()
    }

    /// Zero points to try. With one for all channels the largest scale fixes it: all share `z`, and each gets the range
    /// `(0-z, 255-z)` times its own scale.
    fn shared_zeros(&self) -> Vec<Option<i32>> {
        if self.rule.channel_zeros {
            return vec![None];
        }
        let (qmin, qmax) = self.code.range();
        let z0 = (qmin as f64 - self.low / self.top).round().clamp(qmin as f64, qmax as f64) as i32;
        if self.rule.published_base {
            return vec![Some(z0)];
        }
        let mut v: Vec<i32> = (0..=8).map(|i| (z0 + (i - 4) * 16).clamp(qmin, qmax)).collect();
        v.push((qmin + qmax + 1) / 2);
        v.sort_unstable();
        v.dedup();
        v.into_iter().map(Some).collect()
    }

    /// What is best for a channel at each base.
    fn best(&self, c: usize, tries: &[Try]) -> Vec<AtBase> {
        let (m, range, code) = (&self.moments[c], self.ranges[c], self.code);
        let on_grid = self.rule.channel_zeros && self.clip && !self.rule.published_base;
        let mut known: Vec<Option<AtScale>> = vec![None; 2 * self.span as usize + 1];
        let one = |t: &Try| match t.zero {
            None if on_grid => finer(self.factors.iter().copied().enumerate().rev(), |n| {
                let place = t.place - self.offsets[n];
                *known[(place + self.span) as usize].get_or_insert_with(|| {
                    best_zero(m, range, self.step_of(place), code, true).expect("clipping is allowed")
                })
            }),
            None => {
                let found = |f: u32| {
                    let clip = self.clip || f == 1 << self.rule.max_shift;
                    let best = best_zero(m, range, t.base * f64::from(f), code, clip)?;
                    Some(AtBase { error: best.error, factor: f, zero: best.zero })
                };
                self.factors.iter().filter_map(|f| found(*f)).reduce(|a, b| if b.error < a.error { b } else { a })
            }
            Some(z) => shared_zero(m, range, (t.base, &self.factors), z, code, self.clip, self.rule.published_base),
        };
        tries.iter().map(one).map(|f| f.expect("the largest factor is always a candidate")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::kernel::fake_quantize;
    use super::super::observe::Watch;
    use super::super::range::{affine, expected_error};
    use super::super::tokens::Read;
    use super::*;

    /// Least squared error with a zero point per channel; tests change what they are about.
    const RULE: PtfRule = PtfRule {
        max_shift: 7,
        channel_zeros: true,
        range: Range::Mse,
        published_base: false,
        factors: Factors::Powers,
        normalised: false,
    };

    fn sample() -> (Vec<f32>, Vec<usize>, Stats) {
        // Channels of very different width, one lopsided and massive, one dead.
        let (rows, n) = (200usize, 6usize);
        let amp = [0.1f32, 1.0, 9.0, 585.0, 34.0, 0.0];
        let x: Vec<f32> = (0..rows * n)
            .map(|i| {
                let (r, c) = (i / n, i % n);
                let t = ((r * 37 + c * 11) % 101) as f32 / 50.0 - 1.0;
                amp[c] * if c == 3 { -0.5 - 0.5 * t.abs() } else { t }
            })
            .collect();
        let mut s = Stats::new(Watch::Channels { axis: -1 });
        s.observe(&x, &[rows, n], 0).unwrap();
        (x, vec![rows, n], s)
    }

    fn error(x: &[f32], dims: &[usize], p: &QParams) -> f64 {
        let mut y = x.to_vec();
        fake_quantize(&mut y, dims, p).unwrap();
        // relative, channel by channel: small channels count as much as the massive one
        let n = dims[1];
        (0..n)
            .map(|c| {
                let e: f64 = (0..dims[0]).map(|r| ((y[r * n + c] - x[r * n + c]) as f64).powi(2)).sum();
                let p: f64 = (0..dims[0]).map(|r| (x[r * n + c] as f64).powi(2)).sum();
                if p > 0.0 { e / p } else { e }
            })
            .fold(0.0, f64::max)
    }

    #[test]
    fn factors_save_the_small_channels() {
        let (x, dims, s) = sample();
        let flat = error(&x, &dims, &affine(Code::U8, &s, Range::MinMax));
        let rule = |k, cz| PtfRule { max_shift: k, channel_zeros: cz, ..RULE };
        // Weighted so that every channel's relative error counts the same.
        let w = |c: usize| 1.0 / s.mean_square(c).max(1e-3);
        let total = |p: &QParams| expected_error(&s, p, w);
        let p3 = ptf(Code::U8, &s, -1, rule(3, false), w);
        let p7 = ptf(Code::U8, &s, -1, rule(7, false), w);
        let pz = ptf(Code::U8, &s, -1, rule(7, true), w);
        let (k3, k7, zeros) = (total(&p3), total(&p7), total(&pz));
        let worst = error(&x, &dims, &pz);
        assert!(flat > 0.9, "{flat}");
        assert!(worst < 1e-2, "{worst}");
        assert!(k7 <= k3 * 1.001, "{k3} {k7}");
        assert!(zeros <= k7 * 1.001, "{zeros} {k7}");
    }

    #[test]
    fn the_published_rule_is_k3_with_one_zero_point() {
        let (_, _, s) = sample();
        let p = ptf(
            Code::U8,
            &s,
            -1,
            PtfRule { max_shift: 3, channel_zeros: false, range: Range::MinMax, published_base: true, ..RULE },
            |_| 1.0,
        );
        let (base, factors) = p.factors().unwrap();
        let (lo, hi) = s.range();
        assert!((base - (hi - lo) / 255.0 / 8.0).abs() < 1e-6 * base);
        assert_eq!(factors[3], 8);
        assert_eq!(factors[0], 1);
    }

    proptest::proptest! {
        /// A search that stops where clipping alone costs more than the best so far finds what a look at everything finds.
        #[test]
        fn a_short_search_finds_what_a_long_one_does(
            body in proptest::collection::vec(-1f32..1.0, 1..60),
            tail in proptest::collection::vec(-40f32..10.0, 0..6),
            base in 1e-4f64..0.02,
            z in 0i32..256,
        ) {
            let x: Vec<f32> = body.iter().chain(&tail).copied().collect();
            let mut s = Stats::new(Watch::Tensor);
            s.observe(&x, &[x.len()], 0).unwrap();
            let (m, (lo, hi)) = (s.channels[0].moments(), s.channel_range(0));
            let range = (f64::from(lo), f64::from(hi));
            let factors = Factors::Whole.up_to(7);
            let long = |all: &mut dyn Iterator<Item = (u32, i32, f64)>| {
                all.reduce(|a, b| if b.2 < a.2 { b } else { a }).unwrap()
            };
            let same = |a: (u32, i32, f64), b: AtBase| a == (b.factor, b.zero, b.error);
            let at = |f: u32| best_zero(&m, range, base * f64::from(f), Code::U8, true).unwrap();
            let all = long(&mut factors.iter().map(|f| (*f, at(*f).zero, at(*f).error)));
            let short = finer(factors.iter().copied().enumerate().rev(), |n| at(factors[n])).unwrap();
            proptest::prop_assert!(same(all, short), "{all:?} {short:?}");
            for clip in [false, true] {
                let one = |f: &u32| {
                    let s = base * f64::from(*f);
                    let (l, h) = (f64::from(-z) * s, f64::from(255 - z) * s);
                    let fits = l <= range.0 + 0.51 * s && h >= range.1 - 0.51 * s;
                    (clip || fits || *f == 128).then(|| (*f, z, m.error(l, h, s)))
                };
                let all = long(&mut factors.iter().filter_map(one));
                let short = shared_zero(&m, range, (base, &factors), z, Code::U8, clip, false).unwrap();
                proptest::prop_assert!(same(all, short), "{clip} {all:?} {short:?}");
            }
        }
    }

    #[test]
    fn whole_factors_come_closer_than_powers_of_two() {
        // Channels of all widths within an octave and a half, where powers of two are half an octave off at worst.
        let (rows, n) = (200usize, 24usize);
        let x: Vec<f32> = (0..rows * n)
            .map(|i| (1.0 + (i % n) as f32 / 12.0) * (((i / n * 37 + i % n * 11) % 101) as f32 / 50.0 - 1.0))
            .collect();
        let mut s = Stats::new(Watch::Channels { axis: -1 });
        s.observe(&x, &[rows, n], 0).unwrap();
        let w = |c: usize| 1.0 / s.mean_square(c).max(1e-3);
        let rule = |factors| PtfRule { factors, ..RULE };
        let error = |p: &QParams| expected_error(&s, p, w);
        let (powers, whole) =
            (ptf(Code::U8, &s, -1, rule(Factors::Powers), w), ptf(Code::U8, &s, -1, rule(Factors::Whole), w));
        assert!(error(&whole) < 0.95 * error(&powers), "{} {}", error(&whole), error(&powers));
        let (base, factors) = whole.factors().unwrap();
        assert!(factors.iter().any(|f| !f.is_power_of_two()), "{factors:?}");
        // A channel's scale is the exact product, which is what exact integer statistics rest on.
        assert!(factors.iter().all(|f| f64::from(base * *f as f32) == f64::from(base) * f64::from(*f)));
    }

    #[test]
    fn expected_error_is_close_to_the_real_one() {
        let (x, dims, s) = sample();
        let p = ptf(Code::U8, &s, -1, RULE, |_| 1.0);
        let mut y = x.clone();
        fake_quantize(&mut y, &dims, &p).unwrap();
        let real: f64 = x.iter().zip(&y).map(|(a, b)| ((a - b) as f64).powi(2)).sum();
        let expected = expected_error(&s, &p, |_| 1.0);
        assert!((expected / real).ln().abs() < 0.5, "{expected} {real}");
    }

    #[test]
    fn min_max_clips_nothing_by_more_than_half_a_step() {
        let (x, dims, s) = sample();
        let p = ptf(Code::U8, &s, -1, PtfRule { range: Range::MinMax, ..RULE }, |_| 1.0);
        let mut y = x.clone();
        fake_quantize(&mut y, &dims, &p).unwrap();
        for (i, (a, b)) in x.iter().zip(&y).enumerate() {
            assert!((a - b).abs() <= 1.02 * p.scale(i % 6), "{i} {a} {b}");
        }
    }

    #[test]
    fn a_channel_seen_a_few_times_keeps_room_for_the_next_value() {
        // Values that show once per sample, as pooled features do: about normal, and none below 0 in the first channel. Eight
        // calibration samples, then more of the same kind.
        let (n, rows) = (16, 1000);
        let mut state = 7u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        let mut one = |i: usize| {
            let v: f32 = (0..6).map(|_| next()).sum();
            if i.is_multiple_of(n) { v.max(0.0) } else { v }
        };
        let many: Vec<f32> = (0..rows * n).map(&mut one).collect();
        let stats = |x: &[f32]| {
            let mut s = Stats::new(Watch::Tokens { axis: -1, read: Read::default() });
            s.observe(x, &[x.len() / n, n], 0).unwrap();
            s
        };
        let few = stats(&many[..8 * n]);
        let rule = PtfRule { factors: Factors::Whole, ..RULE };
        let error = |p: &QParams| {
            let mut y = many.clone();
            fake_quantize(&mut y, &[rows, n], p).unwrap();
            many.iter().zip(&y).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>()
        };
        let from_few = ptf(Code::U8, &few, -1, rule, |_| 1.0);
        let from_all = ptf(Code::U8, &stats(&many), -1, rule, |_| 1.0);
        let lost = |c: usize, v: f32| v < from_few.reach(c).0 - 0.05 || v > from_few.reach(c).1 + 0.05;
        let lost = many.iter().enumerate().filter(|(i, v)| lost(i % n, **v)).count();
        assert!(lost < many.len() / 50, "{lost} of {}", many.len());
        assert!(from_few.reach(0).0 > -0.3, "{:?}", from_few.reach(0));
        // Where every channel was seen often, the room costs nothing.
        let seen = stats(&many).channel_range(1);
        assert!(from_all.reach(1).1 < seen.1 + 0.1, "{:?}, seen {seen:?}", from_all.reach(1));
        assert!(error(&from_all) < error(&from_few));
    }

    #[test]
    fn room_is_made_where_samples_differ_in_how_far_they_reach() {
        // Two channels of the same values in sixteen samples of twenty tokens: in the first every sample holds all values,
        // in the second half as many values more with each.
        let ramp = |i: usize| (i as f32 - 9.5) / 9.5;
        let mut s = Stats::new(Watch::Tokens { axis: -1, read: Read::default() });
        for k in 0..16u64 {
            let x: Vec<f32> = (0..20).flat_map(|i| [ramp(i), ramp(i) * (k as f32 + 1.0) / 16.0]).collect();
            s.observe(&x, &[1, 20, 2], k).unwrap();
        }
        let p = ptf(Code::U8, &s, -1, PtfRule { factors: Factors::Whole, ..RULE }, |_| 1.0);
        let (alike, growing) = (p.reach(0), p.reach(1));
        assert!(alike.0 > -1.1 && alike.1 < 1.1, "{alike:?}");
        assert!(growing.0 < -1.25 && growing.1 > 1.25, "{growing:?}");
    }

    #[test]
    fn a_massive_channel_is_clipped_when_errors_count_relative_to_their_token() {
        // Channel 0 is -500 in one token of a hundred and small in all others.
        let (rows, n) = (400usize, 64usize);
        let x: Vec<f32> = (0..rows * n)
            .map(|i| {
                let (r, c) = (i / n, i % n);
                let t = ((r * 37 + c * 11) % 101) as f32 / 50.0 - 1.0;
                if c == 0 && r % 100 == 0 { -500.0 } else { 3.0 * t }
            })
            .collect();
        let mut s = Stats::new(Watch::Tokens { axis: -1, read: Read::default() });
        s.observe(&x, &[rows, n], 0).unwrap();
        let rule = RULE;
        let plain = ptf(Code::U8, &s, -1, rule, |_| 1.0);
        let relative = ptf(Code::U8, &s, -1, PtfRule { normalised: true, ..rule }, |_| 1.0);
        assert!(plain.reach(0).0 < -480.0, "{:?}", plain.reach(0));
        assert!(relative.scale(0) < 0.9 * plain.scale(0), "{} {}", relative.scale(0), plain.scale(0));
        assert!((1..n).all(|c| relative.scale(c) < 0.05), "ordinary channels keep their steps");
    }
}
