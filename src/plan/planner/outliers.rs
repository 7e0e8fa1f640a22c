//! Channels that one byte is not enough for.
//!
//! In some vision transformers one channel of the residual stream reaches a hundred times as far as the others in a few
//! tokens, and lies as near to 0 as they do in all the rest, where its coarse step is then most of the whole error. Such a
//! channel gets a second code: a coarse one that reaches as far as it does, and the usual one for what the coarse one
//! leaves. (Outlier channels as two channels: Zhao et al., arXiv 1901.09504.)

use crate::plan::Outlier;
use crate::quant::observe::Stats;
use crate::quant::ptf::{self, PtfRule};
use crate::quant::range;
use crate::quant::{Code, QParams};

/// No more channels of one value than these: each is some element-wise operators more.
const MOST: usize = 4;
/// Steps of the finer code in one step of the coarser one: nearly all its codes, so that what is left never clips.
const STEPS: i32 = 252;
/// Room of the coarse code beyond what was seen.
const ROOM: f32 = 1.25;
/// Factors beyond this have no exact statistics behind them.
const WIDEST: u32 = 256;

/// Parameters by the rule, and second codes for the channels that make more than a share `beyond` of the error.
pub(super) fn split(stats: &Stats, axis: i64, rule: PtfRule, beyond: f64) -> (QParams, Vec<Outlier>) {
    let moments = ptf::distributions(stats, rule);
    let mut rest = stats.clone();
    let mut apart: Vec<usize> = Vec::new();
    let plain = ptf::ptf(Code::U8, stats, axis, rule, |_| 1.0);
    let mut p = plain.clone();
    while apart.len() < MOST {
        let errors: Vec<f64> = (0..moments.len())
            .map(|c| if apart.contains(&c) { 0.0 } else { range::window_error(&moments[c], &p, c) })
            .collect();
        let all: f64 = errors.iter().sum();
        let Some((worst, most)) = errors.iter().copied().enumerate().max_by(|a, b| a.1.total_cmp(&b.1)) else { break };
        if most <= beyond * all {
            break;
        }
        // The others choose their base and factors as if it were one of them.
        let Some(typical) = typical(stats, &apart, worst) else { break };
        apart.push(worst);
        for c in &apart {
            rest.channels[*c] = stats.channels[typical].clone();
        }
        p = ptf::ptf(Code::U8, &rest, axis, rule, |_| 1.0);
    }
    apart.sort_unstable();
    second_codes(stats, &p, &apart).unwrap_or((plain, Vec::new()))
}

/// The channel with the median range among the others.
fn typical(stats: &Stats, apart: &[usize], worst: usize) -> Option<usize> {
    let width = |c: usize| {
        let (lo, hi) = stats.channel_range(c);
        hi - lo
    };
    let mut others: Vec<usize> = (0..stats.channels.len()).filter(|c| *c != worst && !apart.contains(c)).collect();
    others.sort_by(|a, b| width(*a).total_cmp(&width(*b)).then(a.cmp(b)));
    others.get(others.len() / 2).copied()
}

/// `p` with the channels `apart` in two codes; `None` if a factor would be too large.
fn second_codes(stats: &Stats, p: &QParams, apart: &[usize]) -> Option<(QParams, Vec<Outlier>)> {
    let (base, factors) = p.factors()?;
    let mut factors = factors.to_vec();
    let mut zeros: Vec<i32> = (0..factors.len()).map(|c| p.zero(c)).collect();
    let mut outliers = Vec::with_capacity(apart.len());
    for c in apart {
        let (lo, hi) = stats.channel_range(*c);
        let (lo, hi) = (lo * ROOM, hi * ROOM);
        // The finest step with which the coarse codes still reach from one end to the other.
        let finest = (hi - lo) / (STEPS as f32 * 255.0);
        let f = (finest / base).ceil().max(1.0);
        if f > WIDEST as f32 {
            return None;
        }
        factors[*c] = f as u32;
        zeros[*c] = 128;
        let scale = base * (f as i32 * STEPS) as f32;
        let reach = (lo / scale, hi / scale);
        let zero = (127.5 - (reach.0 + reach.1) / 2.0).round().clamp(0.0, 255.0) as i32;
        outliers.push(Outlier { channel: *c, scale, zero_point: zero });
    }
    let p = QParams::factored(Code::U8, p.axis()?, base, factors, zeros).ok()?;
    Some((p, outliers))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::observe::Watch;
    use crate::quant::ptf::Factors;
    use crate::quant::range::Range;

    const RULE: PtfRule = PtfRule {
        max_shift: 7,
        factors: Factors::Whole,
        channel_zeros: true,
        range: Range::Mse,
        published_base: false,
        normalised: false,
    };

    /// Ninety-nine tokens of eight like channels, and one in which channel 5 reaches to -500.
    fn stats(far: f32) -> Stats {
        let mut s = Stats::new(Watch::Channels { axis: -1 });
        let mut x: Vec<f32> = (0..800).map(|i| ((i * 37 % 101) as f32 - 50.0) / 10.0).collect();
        x[5] = far;
        s.observe(&x, &[100, 8], 0).expect("finite");
        s
    }

    #[test]
    fn a_far_channel_gets_a_second_code_and_a_small_error() {
        let s = stats(-500.0);
        let (p, outliers) = split(&s, -1, RULE, 0.25);
        assert_eq!(outliers.iter().map(|o| o.channel).collect::<Vec<_>>(), [5]);
        let o = &outliers[0];
        for x in [-500.0f32, -499.3, -3.0, 0.0, 4.9] {
            let coarse =
                ((x / o.scale).round_ties_even() + o.zero_point as f32).clamp(0.0, 255.0) - o.zero_point as f32;
            let left = x - coarse * o.scale;
            let fine = (left / p.scale(5)).round_ties_even();
            assert!((-128.0..=127.0).contains(&fine), "{x}: {fine}");
            assert!((coarse * o.scale + fine * p.scale(5) - x).abs() <= 0.51 * p.scale(5), "{x}");
        }
        assert!(p.scale(5) < 0.05, "{}", p.scale(5));
        let ratio = o.scale / p.factors().expect("factors").0;
        assert_eq!(ratio, ratio.round());
    }

    #[test]
    fn like_channels_stay_as_they_are() {
        let s = stats(3.0);
        let (p, outliers) = split(&s, -1, RULE, 0.25);
        assert!(outliers.is_empty());
        assert_eq!(p, ptf::ptf(Code::U8, &s, -1, RULE, |_| 1.0));
    }
}
