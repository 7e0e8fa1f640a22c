//! Statistics of a value whose channels are divided by factors, from those of the value itself.

use rayon::prelude::*;

use super::hist::Hist;
use super::levels::Levels;
use super::observe::{Channel, Ends, ExactSum, Stats};

/// The counts of `h`, whose values lie in `lo..=hi`, at a `k`-th of their places. Middles of bins stand for what is in
/// them.
fn counts(h: &Hist, (lo, hi): (f32, f32), k: f32) -> Hist {
    let mut out = Hist::default();
    if lo > hi {
        return out;
    }
    out.prepare(lo / k, hi / k);
    let inv = out.inverse_width();
    for (x, n) in h.bins() {
        out.count_times(inv, (x as f32).clamp(lo, hi) / k, n);
    }
    out
}

fn sum(s: ExactSum, k: f64) -> ExactSum {
    let mut out = ExactSum::default();
    out.add(s.get() / k);
    out
}

fn channel(c: &Channel, k: f32) -> Channel {
    let half = |(i, h): (usize, &Hist)| {
        let Ends { min, max } = c.ends_of_half(i);
        counts(h, (min, max), k)
    };
    Channel {
        min: c.min / k,
        max: c.max / k,
        sum: sum(c.sum, k.into()),
        square_sum: sum(c.square_sum, f64::from(k).powi(2)),
        hist: counts(&c.hist, (c.min, c.max), k),
        // Of no use after layers, where equalisation is.
        levels: Levels::default(),
        quarters: c.quarters.iter().map(|q| Ends { min: q.min / k, max: q.max / k }).collect(),
        halves: c.halves.iter().enumerate().map(half).collect(),
    }
}

impl Stats {
    /// What these statistics would be with channel `c` divided by `factors[c]`, all of which are positive; channels
    /// beyond the last factor stay as they are. Ranges and moments are exact, counts as exact as a bin is narrow. The
    /// weights of tokens stay those of the undivided value.
    pub fn divided(&self, factors: &[f32]) -> Stats {
        let factor = |c: usize| factors.get(c).copied().unwrap_or(1.0);
        let channels = self.channels.par_iter().enumerate().map(|(i, c)| channel(c, factor(i))).collect();
        Stats { channels, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::observe::Watch;
    use crate::quant::tokens::Read;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn as_if_the_divided_value_had_been_watched(
            samples in prop::collection::vec(prop::collection::vec(-50f32..50.0, 12), 1..9),
            factors in prop::collection::vec(0.05f32..20.0, 3),
        ) {
            let watch = Watch::Tokens { axis: -1, read: Read::default() };
            let (mut seen, mut wanted) = (Stats::new(watch.clone()), Stats::new(watch));
            for (i, s) in samples.iter().enumerate() {
                let small: Vec<f32> = s.iter().enumerate().map(|(j, v)| v / factors[j % 3]).collect();
                seen.observe(s, &[1, 4, 3], i as u64).unwrap();
                wanted.observe(&small, &[1, 4, 3], i as u64).unwrap();
            }
            let got = seen.divided(&factors);
            prop_assert_eq!(got.range(), wanted.range());
            for c in 0..3 {
                prop_assert_eq!(got.channel_range(c), wanted.channel_range(c));
                let reach = f64::from(wanted.channels[c].max.abs().max(wanted.channels[c].min.abs()));
                prop_assert!((got.mean(c) - wanted.mean(c)).abs() <= 1e-5 * reach);
                prop_assert!((got.mean_square(c) - wanted.mean_square(c)).abs() <= 1e-5 * reach * reach);
                prop_assert_eq!(got.channels[c].hist.total(), wanted.channels[c].hist.total());
                prop_assert_eq!(&got.channels[c].quarters, &wanted.channels[c].quarters);
                prop_assert_eq!(got.channels[c].halves.len(), wanted.channels[c].halves.len());
                prop_assert_eq!(got.channels[c].weighted().total(), seen.channels[c].weighted().total());
                let power = |s: &Stats| s.channels[c].moments().power() / 4.0 / samples.len() as f64;
                prop_assert!((power(&got) - power(&wanted)).abs() <= 0.02 * reach * reach, "{} {}", power(&got), power(&wanted));
            }
        }
    }
}
