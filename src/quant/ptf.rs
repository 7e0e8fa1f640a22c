//! The search for quantization parameters from statistics.
//!
//! Everything is scored by expected squared error: `step^2 / 12` for a value inside the range, the squared distance for
//! a clipped one ([`Moments::error`]). Channels may be weighted by what an error in them costs at the consumer.

use serde::{Deserialize, Serialize};

use super::hist::Moments;
use super::observe::Stats;
use super::qparams::SCALE_FLOOR;
use super::{Code, QParams};

/// How a range is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Range {
    /// All that was seen.
    MinMax,
    /// The central fraction of the observations, such as 0.9999.
    Percentile(f64),
    /// The range of least squared error.
    Mse,
}

/// How Power-of-Two Factors are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PtfRule {
    /// Largest shift K.
    pub max_shift: u8,
    /// One zero point a channel instead of one a tensor.
    pub channel_zeros: bool,
    /// `min-max`: no value seen in calibration is clipped. `mse`: least squared error.
    pub range: Range,
    /// `true`: the published base scale `(max - min) / 255 / 2^K`; `false`: the best of a search.
    #[serde(default)]
    pub published_base: bool,
    /// Count an error relative to the variance of the token it happens in, as a LayerNorm behind divides by it. A few
    /// tokens with one massive channel then no longer dictate that channel's step to all the others.
    #[serde(default)]
    pub normalised: bool,
}

/// Distributions of the channels, each value counted with what an error in it costs under the rule.
///
/// Which values stood in one token is not recorded; a value `x` of `n` channels is taken to stand in a token of
/// variance `v + x^2 / n`, with `v` the median variance of a channel.
fn distributions(stats: &Stats, rule: PtfRule) -> Vec<Moments> {
    if !rule.normalised {
        return stats.channels.iter().map(|c| Moments::new(&c.hist)).collect();
    }
    let n = stats.channels.len();
    let mut variances: Vec<f64> = (0..n).map(|c| (stats.mean_square(c) - stats.mean(c).powi(2)).max(0.0)).collect();
    variances.sort_by(f64::total_cmp);
    let v = variances.get(n / 2).copied().unwrap_or(0.0).max(1e-24);
    let weighed = |(x, count): (f64, u32)| (x, f64::from(count) * v / (v + x * x / n as f64));
    stats.channels.iter().map(|c| Moments::from_bins(c.hist.bins().map(weighed))).collect()
}

/// Parameters for one scale a tensor.
pub fn affine(code: Code, stats: &Stats, range: Range) -> QParams {
    affine_of(code, &stats.pooled(|_| 1.0), stats.range(), range)
}

/// As [`affine`], over any distribution with its extreme values.
pub fn affine_of(code: Code, m: &Moments, seen: (f32, f32), range: Range) -> QParams {
    let (lo, hi) = (seen.0.min(0.0), seen.1.max(0.0));
    match range {
        Range::MinMax => QParams::covering(code, lo, hi),
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
        .map(|(c, ch)| weight(c) * window_error(&Moments::new(&ch.hist), p, if p.axis().is_some() { c } else { 0 }))
        .sum()
}

/// The best zero point of a channel at a given scale, with its error.
fn best_zero(m: &Moments, (lo, hi): (f64, f64), scale: f64, code: Code, clip: bool) -> Option<(i32, f64)> {
    let (qmin, qmax) = code.range();
    let steps = code.steps();
    let error = |z: i32| m.error((qmin - z) as f64 * scale, (qmax - z) as f64 * scale, scale);
    let need = (hi - lo) / scale;
    let cover =
        |z: i32| (qmin - z) as f64 * scale <= lo + 0.51 * scale && (qmax - z) as f64 * scale >= hi - 0.51 * scale;
    if need <= steps + 1.0 {
        // The range fits: any zero point that covers it will do; take the middle one, which leaves room on both sides.
        let mid = -((lo + hi) / 2.0 / scale) + (qmin as f64 + qmax as f64) / 2.0;
        let z = (mid.round() as i32).clamp(qmin, qmax);
        let z = if cover(z) { z } else { ((-lo / scale).round() as i32 + qmin).clamp(qmin, qmax) };
        return if clip || cover(z) { Some((z, error(z))) } else { None };
    }
    if !clip {
        return None;
    }
    // The window is too narrow: slide it from "nothing lost below" to "nothing lost above".
    let a = (qmin as f64 - lo / scale).round().clamp(qmin as f64, qmax as f64) as i32;
    let b = (qmax as f64 - hi / scale).round().clamp(qmin as f64, qmax as f64) as i32;
    let (from, to) = (a.min(b), a.max(b));
    let stride = ((to - from) / 24).max(1);
    let mut best = (from, error(from));
    let mut z = from;
    while z <= to {
        let e = error(z);
        if e < best.1 {
            best = (z, e);
        }
        z += stride;
    }
    for z in (best.0 - stride + 1).max(qmin)..(best.0 + stride).min(qmax + 1) {
        let e = error(z);
        if e < best.1 {
            best = (z, e);
        }
    }
    Some(best)
}

/// Power-of-Two Factors for the channels of `stats` along `axis`, each channel's error weighted by `weight(c)`.
///
/// The base scale is searched over one octave and all octaves that matter; for each base every channel takes the shift
/// (0..=K) and zero point of least error.
pub fn ptf(code: Code, stats: &Stats, axis: i64, rule: PtfRule, weight: impl Fn(usize) -> f64) -> QParams {
    let n = stats.channels.len();
    let moments = distributions(stats, rule);
    let ranges: Vec<(f64, f64)> = (0..n).map(|c| stats.channel_range(c)).map(|(a, b)| (a as f64, b as f64)).collect();
    let (lo, hi) = stats.range();
    let (lo, hi) = (lo as f64, hi as f64);
    let steps = code.steps();
    let k = rule.max_shift;
    let top = ((hi - lo) / steps).max(SCALE_FLOOR as f64);
    let clip = !matches!(rule.range, Range::MinMax);
    // With one zero point the largest scale fixes it: all channels share `z`, and each gets the range `(0-z, 255-z)`
    // times its own scale.
    let shared_zeros: Vec<i32> = if rule.channel_zeros {
        Vec::new()
    } else {
        let (qmin, qmax) = code.range();
        let z0 = (qmin as f64 - lo / top).round().clamp(qmin as f64, qmax as f64) as i32;
        if rule.published_base {
            vec![z0]
        } else {
            let mut v: Vec<i32> = (0..=8).map(|i| (z0 + (i - 4) * 16).clamp(qmin, qmax)).collect();
            v.push((qmin + qmax + 1) / 2);
            v.sort_unstable();
            v.dedup();
            v
        }
    };
    // Bases stand sixteen to the octave, so that base i with shift a has the step of base i - 16 a: each step's best zero
    // point is searched once.
    const PER_OCTAVE: i32 = 16;
    let span = i32::from(k) * PER_OCTAVE;
    let step_of = |j: i32| top * f64::powf(2.0, -f64::from(j) / f64::from(PER_OCTAVE));
    let known: Vec<Vec<Option<(i32, f64)>>> = if rule.channel_zeros && clip && !rule.published_base {
        let all =
            |c: usize| (-span..=span).map(|j| best_zero(&moments[c], ranges[c], step_of(j), code, true)).collect();
        (0..n).map(all).collect()
    } else {
        Vec::new()
    };
    let choose = |i: i32, base: f64, zero: Option<i32>| -> (f64, Vec<u8>, Vec<i32>) {
        let (mut total, mut shifts, mut zeros) = (0.0, Vec::with_capacity(n), Vec::with_capacity(n));
        for c in 0..n {
            let mut best: Option<(f64, u8, i32)> = None;
            for a in 0..=k {
                let s = base * f64::powi(2.0, a as i32);
                let found = match zero {
                    None if !known.is_empty() => known[c][(i - i32::from(a) * PER_OCTAVE + span) as usize],
                    None => best_zero(&moments[c], ranges[c], s, code, clip || a == k),
                    Some(z) => {
                        let (qmin, qmax) = code.range();
                        let (l, h) = ((qmin - z) as f64 * s, (qmax - z) as f64 * s);
                        let fits = l <= ranges[c].0 + 0.51 * s && h >= ranges[c].1 - 0.51 * s;
                        (clip || a == k || fits || rule.published_base).then(|| (z, moments[c].error(l, h, s)))
                    }
                };
                if let Some((z, e)) = found
                    && best.is_none_or(|b| e < b.0)
                {
                    best = Some((e, a, z));
                }
            }
            let (e, a, z) = best.expect("the largest shift is always a candidate");
            total += weight(c) * e;
            shifts.push(a);
            zeros.push(z);
        }
        (total, shifts, zeros)
    };
    let bases: Vec<f64> = if rule.published_base {
        vec![top / f64::powi(2.0, k as i32)]
    } else {
        // Octaves: the widest channel at shift K, K-1, ... as low as the K allows; sixteen steps an octave.
        (0..=span).map(step_of).collect()
    };
    let mut best: Option<(f64, f64, Vec<u8>, Vec<i32>)> = None;
    let zs: Vec<Option<i32>> =
        if rule.channel_zeros { vec![None] } else { shared_zeros.into_iter().map(Some).collect() };
    for z in &zs {
        for (i, b) in bases.iter().enumerate() {
            let (e, shifts, zeros) = choose(i as i32, *b, *z);
            if best.as_ref().is_none_or(|x| e < x.0) {
                best = Some((e, *b, shifts, zeros));
            }
        }
    }
    let (_, base, shifts, mut zeros) = best.expect("at least one base");
    if !rule.channel_zeros {
        zeros.truncate(1);
    }
    QParams::ptf(code, axis, (base as f32).max(SCALE_FLOOR), shifts, zeros).expect("searched values are in range")
}

#[cfg(test)]
mod tests {
    use super::super::kernel::fake_quantize;
    use super::super::observe::Watch;
    use super::*;

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
        let rule = |k, cz| PtfRule {
            max_shift: k,
            channel_zeros: cz,
            range: Range::Mse,
            published_base: false,
            normalised: false,
        };
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
            PtfRule {
                max_shift: 3,
                channel_zeros: false,
                range: Range::MinMax,
                published_base: true,
                normalised: false,
            },
            |_| 1.0,
        );
        let (base, shifts) = p.shifts().unwrap();
        let (lo, hi) = s.range();
        assert!((base - (hi - lo) / 255.0 / 8.0).abs() < 1e-6 * base);
        assert_eq!(shifts[3], 3);
        assert_eq!(shifts[0], 0);
    }

    #[test]
    fn expected_error_is_close_to_the_real_one() {
        let (x, dims, s) = sample();
        let p = ptf(
            Code::U8,
            &s,
            -1,
            PtfRule { max_shift: 7, channel_zeros: true, range: Range::Mse, published_base: false, normalised: false },
            |_| 1.0,
        );
        let mut y = x.clone();
        fake_quantize(&mut y, &dims, &p).unwrap();
        let real: f64 = x.iter().zip(&y).map(|(a, b)| ((a - b) as f64).powi(2)).sum();
        let expected = expected_error(&s, &p, |_| 1.0);
        assert!((expected / real).ln().abs() < 0.5, "{expected} {real}");
    }

    #[test]
    fn min_max_clips_nothing_by_more_than_half_a_step() {
        let (x, dims, s) = sample();
        let p = ptf(
            Code::U8,
            &s,
            -1,
            PtfRule {
                max_shift: 7,
                channel_zeros: true,
                range: Range::MinMax,
                published_base: false,
                normalised: false,
            },
            |_| 1.0,
        );
        let mut y = x.clone();
        fake_quantize(&mut y, &dims, &p).unwrap();
        for (i, (a, b)) in x.iter().zip(&y).enumerate() {
            assert!((a - b).abs() <= 1.02 * p.scale(i % 6), "{i} {a} {b}");
        }
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
        let mut s = Stats::new(Watch::Channels { axis: -1 });
        s.observe(&x, &[rows, n], 0).unwrap();
        let rule =
            PtfRule { max_shift: 7, channel_zeros: true, range: Range::Mse, published_base: false, normalised: false };
        let plain = ptf(Code::U8, &s, -1, rule, |_| 1.0);
        let relative = ptf(Code::U8, &s, -1, PtfRule { normalised: true, ..rule }, |_| 1.0);
        assert!(plain.reach(0).0 < -480.0, "{:?}", plain.reach(0));
        assert!(relative.scale(0) < 0.9 * plain.scale(0), "{} {}", relative.scale(0), plain.scale(0));
        assert!((1..n).all(|c| relative.scale(c) < 0.05), "ordinary channels keep their steps");
    }
}
