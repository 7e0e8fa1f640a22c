//! Observers: what calibration remembers of a value.
//!
//! They stream (memory does not grow with the number of samples) and merge: the statistics of two shards combine to the
//! same bits in any order, because everything kept is an integer, a minimum or maximum, or a fixed-point sum.

use serde::{Deserialize, Serialize};

pub use super::channel::{Channel, Ends, ExactSum};
use super::channel::{HALVES, QUARTERS};
pub use super::count::Seen;
use super::count::{ends, key};
use super::hist::{Hist, Moments};
pub use super::watch::{ObserveError, Watch, first_unfit};
use crate::ir::masks::HIDDEN_BELOW;

/// Places of tokens that are told apart.
const MOST_PLACES: usize = 4096;

/// A row of scores kept whole, chosen by a hash of where it stood so that the choice does not depend on order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeptRow {
    pub key: u64,
    pub head: u32,
    pub values: Vec<f32>,
}

/// Rows kept for each head.
const ROWS_PER_HEAD: usize = 96;

/// What is known of a value after calibration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    pub watch: Watch,
    /// Sizes of the first sample seen (leading axis: the batch).
    pub dims: Vec<usize>,
    pub channels: Vec<Channel>,
    /// Elements seen in each channel.
    pub count: u64,
    /// Scores only: for each head, the smallest maximum of a row, over unmasked entries.
    pub row_max_min: Vec<f32>,
    pub rows: Vec<KeptRow>,
    /// [`Watch::Tokens`] only: for each place of a token, the sum of the inverse variances there, and how many were summed.
    #[serde(default)]
    pub inverse_variances: Vec<(ExactSum, ExactSum)>,
}

impl Stats {
    /// Nothing seen yet.
    pub fn new(watch: Watch) -> Stats {
        Stats {
            watch,
            dims: Vec::new(),
            channels: Vec::new(),
            count: 0,
            row_max_min: Vec::new(),
            rows: Vec::new(),
            inverse_variances: Vec::new(),
        }
    }

    /// The axis channels run along, if there is one.
    pub fn axis(&self) -> Option<i64> {
        self.watch.axis()
    }

    /// Whether there are as many channels as the sizes say, each row of scores is of a head that there is, and all are numbers
    /// that observation can give: true of what was observed, but not of whatever a file may say.
    pub fn holds_together(&self) -> bool {
        let heads = self.channels.len();
        if heads == 0 {
            return *self == Stats::new(self.watch.clone());
        }
        let numbers = |values: &[f32]| values.iter().all(|v| !v.is_nan());
        self.watch.channels(&self.dims) == Some(heads)
            && self.channels.iter().all(Channel::holds_together)
            && self.rows.iter().all(|r| (r.head as usize) < heads && numbers(&r.values))
            && [0, heads].contains(&self.row_max_min.len())
            && numbers(&self.row_max_min)
            && self.inverse_variances.len() <= MOST_PLACES
    }

    /// Takes in the value's contents for one sample. `sample` numbers the sample in the whole data set, whatever shard
    /// sees it.
    ///
    /// # Errors
    /// If an element is not finite, or the sizes do not fit what was seen before.
    pub fn observe(&mut self, x: &[f32], dims: &[usize], sample: u64) -> Result<(), ObserveError> {
        let seen = Seen::of(&self.watch, x, dims, sample, usize::MAX)?;
        self.take(&seen)
    }

    /// Takes in what was seen of one sample.
    ///
    /// # Errors
    /// If the sizes do not fit what was seen before.
    pub fn take(&mut self, seen: &Seen<'_>) -> Result<(), ObserveError> {
        let Seen { x, dims, sample, layout, .. } = *seen;
        // How many there are, other samples say, whether they come before or after.
        if layout.channels == 0 {
            return Ok(());
        }
        if self.channels.is_empty() {
            self.dims = dims.to_vec();
            self.channels = vec![Channel::default(); layout.channels];
        } else if self.channels.len() != layout.channels {
            return Err(ObserveError::Shape { now: dims.to_vec(), channels: self.channels.len() });
        }
        if x.is_empty() {
            return Ok(());
        }
        // First the ranges, then the counts: each histogram makes room once per sample.
        let [quarter, half] = [QUARTERS, HALVES].map(|parts| (sample % parts as u64) as usize);
        let sums = &seen.sums;
        for (c, ch) in self.channels.iter_mut().enumerate() {
            let (lo, hi) = (sums.lo[c], sums.hi[c]);
            if seen.tokens.is_some() {
                ch.quarters.resize(QUARTERS, Ends::default());
                ch.quarters[quarter].widen(Ends { min: lo, max: hi });
                ch.halves.resize(HALVES, Hist::default());
                ch.halves[half].prepare(lo, hi);
            }
            if lo <= hi {
                (ch.min, ch.max) = (ch.min.min(lo), ch.max.max(hi));
                ch.sum.add(sums.sum[c]);
                ch.square_sum.add(sums.squares[c]);
                ch.hist.prepare(lo, hi);
            }
        }
        seen.levels(&mut self.channels);
        seen.count(&mut self.channels);
        self.count += (x.len() / layout.channels) as u64;
        if let Some(t) = &seen.tokens {
            seen.weigh(&mut self.channels, &t.weights, half);
            self.add_inverse_variances(&t.inverse);
        }
        if seen.masked() {
            self.keep_rows(x, dims, sample);
        }
        Ok(())
    }

    fn keep_rows(&mut self, x: &[f32], dims: &[usize], sample: u64) {
        let keys = *dims.last().unwrap_or(&1);
        let queries = if dims.len() >= 2 { dims[dims.len() - 2] } else { 1 };
        let heads = self.channels.len();
        if self.row_max_min.is_empty() {
            self.row_max_min = vec![f32::INFINITY; heads];
        }
        let mut bounds: Vec<u64> = (0..heads).map(|h| self.bound(h as u32)).collect();
        for (i, row) in x.chunks(keys).enumerate() {
            let head = (i / queries) % heads;
            let top = ends(row, f32::NEG_INFINITY).1;
            if top > HIDDEN_BELOW {
                self.row_max_min[head] = self.row_max_min[head].min(top);
                let key = key(sample, i);
                if key < bounds[head] {
                    self.keep(KeptRow { key, head: head as u32, values: Vec::new() }, Some(row));
                    bounds[head] = self.bound(head as u32);
                }
            }
        }
    }

    /// Rows of a head with keys as large as this or larger are not kept.
    fn bound(&self, head: u32) -> u64 {
        let (n, top) = self.rows.iter().filter(|r| r.head == head).fold((0, 0), |(n, top), r| (n + 1, r.key.max(top)));
        if n < ROWS_PER_HEAD { u64::MAX } else { top }
    }

    /// Keeps the rows with the smallest keys of each head.
    fn keep(&mut self, mut row: KeptRow, values: Option<&[f32]>) {
        let (mut n, mut worst) = (0, None::<usize>);
        for (i, r) in self.rows.iter().enumerate() {
            if r.head == row.head {
                n += 1;
                if worst.is_none_or(|w| self.rows[w].key < r.key) {
                    worst = Some(i);
                }
            }
        }
        let at = if n < ROWS_PER_HEAD {
            None
        } else {
            match worst {
                Some(w) if self.rows[w].key > row.key => Some(w),
                _ => return,
            }
        };
        if let Some(v) = values {
            row.values = v.to_vec();
        }
        match at {
            None => self.rows.push(row),
            Some(w) => self.rows[w] = row,
        }
    }

    /// Joins the statistics of another shard.
    ///
    /// # Errors
    /// If the other shard saw another number of channels.
    pub fn merge(&mut self, o: &Stats) -> Result<(), ObserveError> {
        if o.channels.is_empty() {
            return Ok(());
        }
        if self.channels.is_empty() {
            *self = o.clone();
            return Ok(());
        }
        if self.channels.len() != o.channels.len() {
            return Err(ObserveError::Shape { now: o.dims.clone(), channels: self.channels.len() });
        }
        for (a, b) in self.channels.iter_mut().zip(&o.channels) {
            a.merge(b);
        }
        self.count = self.count.saturating_add(o.count);
        self.room_for_places(o.inverse_variances.len());
        for (a, b) in self.inverse_variances.iter_mut().zip(&o.inverse_variances) {
            a.0.merge(b.0);
            a.1.merge(b.1);
        }
        // Of values without elements there are no rows.
        self.row_max_min.resize(self.row_max_min.len().max(o.row_max_min.len()), f32::INFINITY);
        for (a, b) in self.row_max_min.iter_mut().zip(&o.row_max_min) {
            *a = a.min(*b);
        }
        for r in &o.rows {
            self.keep(KeptRow { key: r.key, head: r.head, values: Vec::new() }, Some(&r.values));
        }
        Ok(())
    }

    /// Puts what has no natural order into a fixed one, so that equal statistics are equal bytes.
    pub fn finish(&mut self) {
        self.rows.sort_by_key(|r| (r.head, r.key));
    }

    /// For each half of the samples, what the other half saw and what it saw itself, every value counted with the weight of its
    /// token.
    ///
    /// Parameters that come from the first and are judged on the second show what they will do to samples never seen.
    /// One pair of the same where tokens were not counted, or samples of one half alone were seen.
    pub fn trials(&self) -> Vec<(Stats, Stats)> {
        let half = |h: usize| -> Option<Stats> {
            let channels = self.channels.iter().map(|c| c.half(h)).collect::<Option<Vec<_>>>()?;
            Some(Stats { channels, dims: self.dims.clone(), count: self.count, ..Stats::new(self.watch.clone()) })
        };
        match (half(0), half(1)) {
            (Some(a), Some(b)) => vec![(b.clone(), a.clone()), (a, b)],
            _ => vec![(self.clone(), self.clone())],
        }
    }

    /// Smallest and largest value over all channels; `(0, 0)` if nothing was seen.
    pub fn range(&self) -> (f32, f32) {
        self.channels
            .iter()
            .filter(|c| c.min <= c.max)
            .fold((0.0, 0.0), |(a, b): (f32, f32), c| (a.min(c.min), b.max(c.max)))
    }

    /// Range of one channel, widened to hold 0.
    pub fn channel_range(&self, c: usize) -> (f32, f32) {
        let c = &self.channels[c];
        if c.min > c.max { (0.0, 0.0) } else { (c.min.min(0.0), c.max.max(0.0)) }
    }

    fn room_for_places(&mut self, places: usize) {
        let room = places.max(self.inverse_variances.len()).min(MOST_PLACES);
        self.inverse_variances.resize(room, Default::default());
    }

    fn add_inverse_variances(&mut self, more: &[(f64, f64)]) {
        self.room_for_places(more.len());
        for (a, b) in self.inverse_variances.iter_mut().zip(more) {
            a.0.add(b.0);
            a.1.add(b.1);
        }
    }

    /// [`Watch::Tokens`] only: what a squared error of 1 is in the place whose tokens are faintest and in the median place, on
    /// average over the tokens there, in shares of the variance of the token it happens in, which is what a LayerNorm after
    /// makes of it. 0 where no token was seen.
    pub fn faintness(&self) -> (f64, f64) {
        let mean = |(sum, count): &(ExactSum, ExactSum)| (count.get() > 0.0).then(|| sum.get() / count.get());
        let mut shares: Vec<f64> = self.inverse_variances.iter().filter_map(mean).collect();
        shares.sort_by(f64::total_cmp);
        (shares.last().copied().unwrap_or(0.0), shares.get(shares.len() / 2).copied().unwrap_or(0.0))
    }

    /// Ranges and distributions of `max(x, floor)`, for readers to which everything below is the same.
    pub fn at_least(&self, floor: f32) -> Stats {
        Stats { channels: self.channels.iter().map(|c| c.at_least(floor)).collect(), ..self.clone() }
    }

    /// Mean of channel `c`.
    pub fn mean(&self, c: usize) -> f64 {
        self.channels[c].sum.get() / self.count.max(1) as f64
    }

    /// Mean square of channel `c`.
    pub fn mean_square(&self, c: usize) -> f64 {
        self.channels[c].square_sum.get() / self.count.max(1) as f64
    }

    /// One histogram of all channels, channel `c`'s values multiplied by `factor(c)`.
    pub fn pooled(&self, factor: impl Fn(usize) -> f64) -> Moments {
        let mut pts: Vec<(f64, f64)> = Vec::new();
        for (c, ch) in self.channels.iter().enumerate() {
            let f = factor(c);
            pts.extend(ch.hist.bins().map(|(x, n)| (x * f, n as f64)));
        }
        pts.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        // Channels of one bin width share their bins; few points are searched faster than many.
        pts.dedup_by(|b, a| {
            a.0 == b.0 && {
                a.1 += b.1;
                true
            }
        });
        Moments::from_bins(pts.into_iter())
    }

    /// One histogram of all channels.
    pub fn pooled_hist(&self) -> Hist {
        let mut h = Hist::default();
        for c in &self.channels {
            h.merge(&c.hist);
        }
        h
    }

    /// Mean square of the whole tensor.
    pub fn power(&self) -> f64 {
        let n = self.channels.len().max(1);
        (0..self.channels.len()).map(|c| self.mean_square(c)).sum::<f64>() / n as f64
    }
}

#[cfg(test)]
mod tests {
    use super::super::hist::Hist;
    use super::super::tokens::Read;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_value_without_elements_is_seen_as_that() {
        let watches = [
            Watch::Tensor,
            Watch::Channels { axis: 1 },
            Watch::Channels { axis: -1 },
            Watch::Tokens { axis: -1, read: Read::default() },
            Watch::Tokens { axis: 1, read: Read::default() },
            Watch::Scores { by_head: true },
            Watch::Scores { by_head: false },
        ];
        for watch in watches {
            for dims in [[0, 2, 3, 4], [2, 0, 3, 4], [2, 3, 0, 4], [2, 3, 4, 0]] {
                let mut s = Stats::new(watch.clone());
                s.observe(&[], &dims, 0).unwrap();
                s.observe(&[], &dims, 1).unwrap();
                assert_eq!((s.count, s.range()), (0, (0.0, 0.0)), "{watch:?} of {dims:?}");
                assert!(s.holds_together(), "{watch:?} of {dims:?}");
            }
        }
    }

    /// Raising statistics comes to the same as observing what was raised, but for the width of bins.
    #[test]
    fn statistics_are_raised_as_values_would_be() {
        let size = [1.0, 1e-30, 0.0, 3e38, 20.0];
        let x = |sample: u64| -> Vec<f32> {
            (0..40 * 5u64)
                .map(|i| ((i * 37 + sample * 11) % 41) as f32 / 40.0 - 0.6)
                .zip((0..5).cycle())
                .map(|(x, c)| x * size[c])
                .collect()
        };
        for watch in [Watch::Channels { axis: -1 }, Watch::Tokens { axis: -1, read: Read::default() }] {
            for floor in [-3.5f32, -0.1, -1e-31, -2e38] {
                let (mut whole, mut raised) = (Stats::new(watch.clone()), Stats::new(watch.clone()));
                for sample in 0..3 {
                    let x = x(sample);
                    whole.observe(&x, &[1, 40, 5], sample).unwrap();
                    let up: Vec<f32> = x.iter().map(|x| x.max(floor)).collect();
                    raised.observe(&up, &[1, 40, 5], sample).unwrap();
                }
                for (a, b) in whole.at_least(floor).channels.iter().zip(&raised.channels) {
                    assert_eq!((a.min, a.max, &a.quarters), (b.min, b.max, &b.quarters), "{watch:?} {floor}");
                    let quantiles = |h: &Hist| [0.0, 0.3, 0.5, 0.9, 1.0].map(|p| h.quantile(p));
                    for (a, b) in std::iter::once((&a.hist, &b.hist)).chain(a.halves.iter().zip(&b.halves)) {
                        // Tokens are weighted by their own variance, which is another after raising.
                        if matches!(watch, Watch::Channels { .. }) || floor == -2e38 {
                            let width = a.bin_width().max(b.bin_width());
                            let far = quantiles(a).iter().zip(quantiles(b)).any(|(a, b)| (a - b).abs() > 2.0 * width);
                            assert!(!far, "{watch:?} {floor}: {:?} {:?}", quantiles(a), quantiles(b));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_shard_without_elements_takes_nothing_from_another() {
        let watch = Watch::Scores { by_head: true };
        let (mut empty, mut whole) = (Stats::new(watch.clone()), Stats::new(watch));
        empty.observe(&[], &[1, 2, 0, 3], 0).unwrap();
        whole.observe(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[1, 2, 1, 3], 1).unwrap();
        let mut joined = empty.clone();
        joined.merge(&whole).unwrap();
        assert_eq!(joined.row_max_min, [3.0, 6.0]);
        whole.merge(&empty).unwrap();
        assert_eq!(joined, Stats { dims: joined.dims.clone(), ..whole });
    }

    proptest! {
        #[test]
        fn shards_join_to_the_same_bits(
            samples in prop::collection::vec(prop::collection::vec(-9f32..9.0, 24), 1..9),
            cut in 0usize..9,
            which in 0usize..5,
        ) {
            let (watch, dims) = match which {
                0 => (Watch::Tensor, vec![1, 24]),
                1 => (Watch::Channels { axis: -1 }, vec![1, 6, 4]),
                2 => (Watch::Scores { by_head: true }, vec![1, 2, 3, 4]),
                3 => (Watch::Tokens { axis: -1, read: Read { tokens: vec![0], alone: false } }, vec![1, 6, 4]),
                _ => (Watch::Tokens { axis: -1, read: Read { tokens: vec![0], alone: true } }, vec![1, 6, 4]),
            };
            let run = |ids: &mut dyn Iterator<Item = usize>| {
                let mut s = Stats::new(watch.clone());
                for i in ids { s.observe(&samples[i], &dims, i as u64).unwrap(); }
                s
            };
            let mut whole = run(&mut (0..samples.len()));
            let mut back = run(&mut (0..samples.len()).rev());
            let cut = cut.min(samples.len());
            let mut joined = run(&mut (cut..samples.len()));
            joined.merge(&run(&mut (0..cut))).unwrap();
            whole.finish(); back.finish(); joined.finish();
            let bytes = |s: &Stats| serde_json::to_string(&(&s.channels, s.count, &s.row_max_min, &s.rows)).unwrap();
            prop_assert_eq!(bytes(&whole), bytes(&back));
            prop_assert_eq!(bytes(&whole), bytes(&joined));
        }
    }

    #[test]
    fn masked_scores_do_not_enter_the_range() {
        let mut s = Stats::new(Watch::Scores { by_head: true });
        s.observe(&[1.0, f32::NEG_INFINITY, 2.0, -1e4], &[1, 1, 2, 2], 0).unwrap();
        assert_eq!(s.range(), (0.0, 2.0));
        assert_eq!(s.row_max_min, vec![1.0]);
    }

    #[test]
    fn heads_that_the_batch_is_part_of_are_one() {
        let mut s = Stats::new(Watch::Scores { by_head: false });
        s.observe(&[1.0; 8], &[2, 2, 2], 0).unwrap();
        s.observe(&[2.0; 12], &[3, 2, 2], 1).unwrap();
        assert_eq!((s.channels.len(), s.count, s.row_max_min.len()), (1, 20, 1));
    }

    #[test]
    fn a_single_number_has_one_channel() {
        for watch in [Watch::Channels { axis: -1 }, Watch::Tokens { axis: -1, read: Read::default() }] {
            let mut s = Stats::new(watch);
            s.observe(&[3.0], &[], 0).unwrap();
            s.observe(&[-1.0], &[], 1).unwrap();
            assert_eq!((s.channels.len(), s.range(), s.count), (1, (-1.0, 3.0), 2));
        }
    }

    #[test]
    fn samples_are_divided_by_their_number() {
        let mut s = Stats::new(Watch::Tokens { axis: -1, read: Read::default() });
        for i in 0..6u8 {
            s.observe(&[f32::from(i), -1.0], &[1, 1, 2], i.into()).unwrap();
        }
        let seen: Vec<_> = s.channels[0].quarters.iter().map(|q| (q.min, q.max)).collect();
        assert_eq!(seen, [(0.0, 4.0), (1.0, 5.0), (2.0, 2.0), (3.0, 3.0)]);
        assert_eq!(s.channels[0].halves.iter().map(|h| h.bins().count()).collect::<Vec<_>>(), [3, 3]);
        let ranges: Vec<_> = s.trials().iter().map(|(fit, judge)| (fit.range(), judge.range())).collect();
        assert_eq!(ranges, [((-1.0, 5.0), (-1.0, 4.0)), ((-1.0, 4.0), (-1.0, 5.0))]);
        let mut one = Stats::new(s.watch.clone());
        one.observe(&[1.0, 2.0], &[1, 1, 2], 3).unwrap();
        assert_eq!(one.trials(), [(one.clone(), one.clone())]);
    }

    #[test]
    fn nan_is_refused_with_its_place() {
        let mut s = Stats::new(Watch::Tensor);
        assert_eq!(s.observe(&[0.0, f32::NAN], &[2], 0), Err(ObserveError::NotFinite { what: "NaN", at: 1 }));
    }

    #[test]
    fn values_are_counted_with_the_weight_of_their_token() {
        // Variances 1, 1, 16 and 4.
        let x = [-1.0, 1.0, -1.0, 1.0, -4.0, 4.0, -2.0, 2.0];
        let mut s = Stats::new(Watch::Tokens { axis: -1, read: Read::default() });
        s.observe(&x, &[1, 4, 2], 0).unwrap();
        let at_four: u32 = s.channels[1].weighted().bins().filter(|(x, _)| *x > 3.0).map(|(_, n)| n).sum();
        assert_eq!(at_four, crate::quant::tokens::TOKEN as u32 / 4);
    }
}
