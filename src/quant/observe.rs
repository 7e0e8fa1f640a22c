//! Observers: what calibration remembers of a value.
//!
//! They stream (memory does not grow with the number of samples) and merge: the statistics of two shards combine to the
//! same bits in any order, because everything kept is an integer, a minimum or maximum, or a fixed-point sum.

use serde::{Deserialize, Serialize};

use super::hist::{Hist, Moments};
use super::kernel::Layout;
use super::levels::Levels;
use super::tokens::{Read, token_weights};

/// A sum whose result does not depend on the order of its terms: 2^-40 steps in 128 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExactSum(i128);

impl ExactSum {
    const ONE: f64 = (1u64 << 40) as f64;

    /// Adds a partial sum. Terms beyond 2^80 saturate.
    pub fn add(&mut self, v: f64) {
        self.0 = self.0.saturating_add((v * Self::ONE).round_ties_even() as i128);
    }

    pub fn merge(&mut self, o: ExactSum) {
        self.0 = self.0.saturating_add(o.0);
    }

    pub fn get(self) -> f64 {
        self.0 as f64 / Self::ONE
    }
}

/// Statistics of one channel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Channel {
    pub min: f32,
    pub max: f32,
    pub sum: ExactSum,
    pub square_sum: ExactSum,
    pub hist: Hist,
    /// Its distinct values, if they are few.
    pub levels: Levels,
    /// [`Watch::Tokens`] only: what each quarter of the samples saw.
    pub quarters: Vec<Quarter>,
}

/// Places of tokens that are told apart.
const MOST_PLACES: usize = 4096;

/// Into how many parts samples are divided, by their number.
const QUARTERS: usize = 4;

/// What one quarter of the samples saw of a channel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quarter {
    pub min: f32,
    pub max: f32,
    /// Each value counted with the weight of its token.
    pub weighted: Hist<256>,
}

impl Default for Quarter {
    fn default() -> Quarter {
        Quarter { min: f32::INFINITY, max: f32::NEG_INFINITY, weighted: Hist::default() }
    }
}

impl Default for Channel {
    fn default() -> Channel {
        Channel {
            min: f32::INFINITY,
            max: f32::NEG_INFINITY,
            sum: ExactSum::default(),
            square_sum: ExactSum::default(),
            hist: Hist::default(),
            levels: Levels::default(),
            quarters: Vec::new(),
        }
    }
}

impl Channel {
    fn merge(&mut self, o: &Channel) {
        self.min = self.min.min(o.min);
        self.max = self.max.max(o.max);
        self.sum.merge(o.sum);
        self.square_sum.merge(o.square_sum);
        self.hist.merge(&o.hist);
        self.levels.merge(&o.levels);
        if self.quarters.is_empty() {
            self.quarters.clone_from(&o.quarters);
        } else {
            for (a, b) in self.quarters.iter_mut().zip(&o.quarters) {
                a.min = a.min.min(b.min);
                a.max = a.max.max(b.max);
                a.weighted.merge(&b.weighted);
            }
        }
    }

    /// [`Watch::Tokens`] only: each value counted with the weight of its token.
    pub fn weighted(&self) -> Hist {
        let mut h = Hist::<256>::default();
        for q in &self.quarters {
            h.merge(&q.weighted);
        }
        h.with_room()
    }

    /// Its distribution. Middles of bins that lie outside of what was seen are moved to its ends.
    pub fn moments(&self) -> Moments {
        let (lo, hi) = (f64::from(self.min), f64::from(self.max));
        let inside = |x: f64| if lo <= hi { x.clamp(lo, hi) } else { x };
        Moments::from_bins(self.hist.bins().map(|(x, n)| (inside(x), f64::from(n))))
    }

    /// What the chosen quarters alone saw, every value counted with the weight of its token; `None` if that is nothing.
    fn part(&self, keep: impl Fn(usize) -> bool) -> Option<Channel> {
        let mut ch = Channel::default();
        for (_, q) in self.quarters.iter().enumerate().filter(|(i, q)| keep(*i) && q.min <= q.max) {
            ch.min = ch.min.min(q.min);
            ch.max = ch.max.max(q.max);
            ch.quarters.push(q.clone());
        }
        ch.hist = ch.weighted();
        (ch.min <= ch.max).then_some(ch)
    }
}

/// How a value is to be watched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Watch {
    /// One set of statistics for the tensor.
    Tensor,
    /// One for each index along the axis (negative: from the end).
    Channels { axis: i64 },
    /// As `Channels`, and for each quarter of the samples every value counted with the weight of its token, the vector of
    /// all channels at one place: the inverse of the token's variance over the channels, which is what a LayerNorm after
    /// makes of an error.
    Tokens { axis: i64, read: Read },
    /// Attention scores `[.., heads, queries, keys]`: one for each head, the smallest row maximum, and a bounded sample
    /// of whole rows. Without `by_head` all heads are one: their axis holds the batch as well, so that its size is not
    /// that of the next batch.
    Scores { by_head: bool },
}

/// Why a value could not be observed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ObserveError {
    #[error("holds {what} at element {at}")]
    NotFinite { what: &'static str, at: usize },
    #[error("has shape {now:?}, which does not fit the channels seen before ({channels})")]
    Shape { now: Vec<usize>, channels: usize },
    #[error("has rank {rank}, too small for axis {axis}")]
    Axis { rank: usize, axis: i64 },
}

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

/// What an additive mask adds at or below this hides: -100, -1e4, -1e9, minus infinity.
pub const MASKED_BELOW: f32 = -60.0;

/// Added to a score, a number above this leaves something of the score: float32 has steps of 1/4 there.
pub const DROWNED_BELOW: f32 = -3e6;

/// Scores at or below this are masks, not measurements. Much lower than [`MASKED_BELOW`], because products of queries and
/// keys before their scale reach some hundreds.
pub const HIDDEN_BELOW: f32 = -3000.0;

fn mix(mut x: u64) -> u64 {
    // splitmix64's finalizer: a fixed, well-spread choice of rows.
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// Channels whose values are gathered at once: a line of the cache.
const COLUMNS: usize = 16;

/// Values that are compared side by side.
const LANES: usize = 8;

/// The place of the first value that is not finite; with `masked`, of the first that no mask can have made so: NaN, or above
/// all numbers.
pub fn first_unfit(x: &[f32], masked: bool) -> Option<usize> {
    const MAGNITUDE: u32 = 0x7fff_ffff;
    let fits = |v: &f32| v.is_finite() || (masked && *v <= HIDDEN_BELOW);
    // Without a branch for each value, and as good as always enough.
    let top = x.iter().fold(0i32, |m, v| m.max((v.to_bits() & MAGNITUDE) as i32));
    if top < f32::INFINITY.to_bits() as i32 { None } else { x.iter().position(|v| !fits(v)) }
}

/// Ends and sums of the channels of one sample.
struct Sums {
    lo: Vec<f32>,
    hi: Vec<f32>,
    sum: Vec<f64>,
    squares: Vec<f64>,
}

impl Sums {
    /// Over all values above `hidden`.
    fn of(x: &[f32], layout: Layout, hidden: f32) -> Sums {
        let n = layout.channels;
        let mut s = Sums {
            lo: vec![f32::INFINITY; n],
            hi: vec![f32::NEG_INFINITY; n],
            sum: vec![0.0; n],
            squares: vec![0.0; n],
        };
        if layout.inner == 1 && hidden == f32::NEG_INFINITY {
            for row in x.chunks_exact(n) {
                for ((v, lo), hi) in row.iter().zip(&mut s.lo).zip(&mut s.hi) {
                    *lo = if *v < *lo { *v } else { *lo };
                    *hi = if *v > *hi { *v } else { *hi };
                }
                for ((v, sum), squares) in row.iter().zip(&mut s.sum).zip(&mut s.squares) {
                    let v = f64::from(*v);
                    *sum += v;
                    *squares += v * v;
                }
            }
            return s;
        }
        for (r, run) in x.chunks(layout.inner).enumerate() {
            let c = r % n;
            let (lo, hi) = ends(run, hidden);
            (s.lo[c], s.hi[c]) = (s.lo[c].min(lo), s.hi[c].max(hi));
            let (mut sum, mut squares) = (s.sum[c], s.squares[c]);
            for v in run.iter().filter(|v| **v > hidden).map(|v| f64::from(*v)) {
                sum += v;
                squares += v * v;
            }
            (s.sum[c], s.squares[c]) = (sum, squares);
        }
        s
    }
}

/// The smallest and the largest of the values above `hidden`.
fn ends(run: &[f32], hidden: f32) -> (f32, f32) {
    let (mut lo, mut hi) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    let mut add = |part: &[f32]| {
        for ((v, lo), hi) in part.iter().zip(&mut lo).zip(&mut hi) {
            let seen = *v > hidden;
            *lo = if seen && *v < *lo { *v } else { *lo };
            *hi = if seen && *v > *hi { *v } else { *hi };
        }
    };
    let mut parts = run.chunks_exact(LANES);
    parts.by_ref().for_each(&mut add);
    add(parts.remainder());
    (lo.into_iter().fold(f32::INFINITY, f32::min), hi.into_iter().fold(f32::NEG_INFINITY, f32::max))
}

impl Stats {
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
        match self.watch {
            Watch::Tensor => None,
            Watch::Channels { axis } | Watch::Tokens { axis, .. } => Some(axis),
            Watch::Scores { by_head } => by_head.then_some(-3),
        }
    }

    /// Takes in the value's contents for one sample. `sample` numbers the sample in the whole data set, whatever shard
    /// sees it.
    ///
    /// # Errors
    /// If an element is not finite, or the sizes do not fit what was seen before.
    pub fn observe(&mut self, x: &[f32], dims: &[usize], sample: u64) -> Result<(), ObserveError> {
        let layout = match self.axis() {
            None => Layout::whole(x.len()),
            // A single number has one channel.
            Some(_) if dims.is_empty() => Layout::whole(x.len()),
            // One head, without an axis for heads.
            Some(_) if dims.len() == 2 && matches!(self.watch, Watch::Scores { .. }) => Layout::whole(x.len()),
            Some(axis) => Layout::of(dims, axis).ok_or(ObserveError::Axis { rank: dims.len(), axis })?,
        };
        if self.channels.is_empty() {
            self.dims = dims.to_vec();
            self.channels = vec![Channel::default(); layout.channels];
        } else if self.channels.len() != layout.channels {
            return Err(ObserveError::Shape { now: dims.to_vec(), channels: self.channels.len() });
        }
        if x.is_empty() {
            return Ok(());
        }
        let hidden = if matches!(self.watch, Watch::Scores { .. }) { HIDDEN_BELOW } else { f32::NEG_INFINITY };
        let masked = hidden > f32::NEG_INFINITY;
        if let Some(at) = first_unfit(x, masked) {
            let what = if x[at].is_nan() { "NaN" } else { "infinity" };
            return Err(ObserveError::NotFinite { what, at });
        }
        // First the ranges, then the counts: each histogram makes room once per sample.
        let sums = Sums::of(x, layout, hidden);
        let tokens = match &self.watch {
            Watch::Tokens { read, .. } => {
                let rows = if layout.inner == 1 && dims.len() >= 3 { dims[dims.len() - 2] } else { 0 };
                Some(token_weights(x, layout, rows, read))
            }
            _ => None,
        };
        let which = (sample % QUARTERS as u64) as usize;
        for (c, ch) in self.channels.iter_mut().enumerate() {
            let (lo, hi) = (sums.lo[c], sums.hi[c]);
            if tokens.is_some() {
                ch.quarters.resize(QUARTERS, Quarter::default());
                let q = &mut ch.quarters[which];
                (q.min, q.max) = (q.min.min(lo), q.max.max(hi));
                q.weighted.prepare(lo, hi);
            }
            if lo <= hi {
                (ch.min, ch.max) = (ch.min.min(lo), ch.max.max(hi));
                ch.sum.add(sums.sum[c]);
                ch.square_sum.add(sums.squares[c]);
                ch.hist.prepare(lo, hi);
            }
        }
        let weights = tokens.as_ref().map(|t| &t.weights[..]);
        match layout.inner {
            1 if !masked => self.count_columns(x, weights, which),
            _ => self.count_runs(x, layout, weights, which, masked),
        }
        self.count += (x.len() / layout.channels) as u64;
        if let Some(t) = &tokens {
            self.add_inverse_variances(&t.inverse);
        }
        if masked {
            self.keep_rows(x, dims, sample);
        }
        Ok(())
    }

    /// Counts rows of one value a channel. Some channels at a time are gathered, so that their counts stay in the cache.
    fn count_columns(&mut self, x: &[f32], weights: Option<&[u32]>, which: usize) {
        let n = self.channels.len();
        let rows = x.len() / n;
        // Tokens of no weight change nothing.
        let weighing: Option<(Vec<usize>, Vec<u32>)> =
            weights.map(|w| w.iter().copied().enumerate().filter(|(_, w)| *w > 0).unzip());
        let mut columns = vec![0f32; rows * COLUMNS];
        let mut some = Vec::new();
        for (at, block) in self.channels.chunks_mut(COLUMNS).enumerate() {
            for (r, row) in x.chunks_exact(n).enumerate() {
                for (k, v) in row[at * COLUMNS..][..block.len()].iter().enumerate() {
                    columns[k * rows + r] = *v;
                }
            }
            for (ch, column) in block.iter_mut().zip(columns.chunks_exact(rows)) {
                ch.hist.count_all(column);
                ch.levels.add(column);
                match &weighing {
                    None => {}
                    Some((all, weights)) if all.len() == rows => {
                        ch.quarters[which].weighted.count_weighted(column, weights);
                    }
                    Some((rows, weights)) => {
                        some.clear();
                        some.extend(rows.iter().map(|r| column[*r]));
                        ch.quarters[which].weighted.count_weighted(&some, weights);
                    }
                }
            }
        }
    }

    /// Counts runs of values of one channel.
    fn count_runs(&mut self, x: &[f32], layout: Layout, weights: Option<&[u32]>, which: usize, masked: bool) {
        let mut seen = Vec::new();
        for (r, run) in x.chunks(layout.inner).enumerate() {
            let (o, c) = (r / layout.channels, r % layout.channels);
            let ch = &mut self.channels[c];
            if masked {
                seen.clear();
                seen.extend(run.iter().copied().filter(|v| *v > HIDDEN_BELOW));
                ch.hist.count_all(&seen);
                continue;
            }
            ch.hist.count_all(run);
            ch.levels.add(run);
            if let Some(weights) = weights {
                ch.quarters[which].weighted.count_weighted(run, &weights[o * layout.inner..][..layout.inner]);
            }
        }
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
            let top = row.iter().fold(f32::NEG_INFINITY, |m, v| if *v > m { *v } else { m });
            if top > HIDDEN_BELOW {
                self.row_max_min[head] = self.row_max_min[head].min(top);
                let key = mix(mix(sample.wrapping_add(1)).wrapping_add(i as u64));
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
        self.count += o.count;
        self.room_for_places(o.inverse_variances.len());
        for (a, b) in self.inverse_variances.iter_mut().zip(&o.inverse_variances) {
            a.0.merge(b.0);
            a.1.merge(b.1);
        }
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

    /// For each quarter, what the other three saw and what it saw itself, every value counted with the weight of its token.
    ///
    /// Parameters that come from the first and are judged on the second show what they will do to samples never seen.
    /// One pair of the same where tokens were not counted, or samples of one quarter alone were seen.
    pub fn trials(&self) -> Vec<(Stats, Stats)> {
        let part = |keep: &dyn Fn(usize) -> bool| -> Option<Stats> {
            let channels = self.channels.iter().map(|c| c.part(keep)).collect::<Option<Vec<_>>>()?;
            Some(Stats { channels, dims: self.dims.clone(), count: self.count, ..Stats::new(self.watch.clone()) })
        };
        let trials: Vec<_> = (0..QUARTERS).filter_map(|k| Some((part(&|i| i != k)?, part(&|i| i == k)?))).collect();
        if trials.is_empty() { vec![(self.clone(), self.clone())] } else { trials }
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
    use super::*;
    use proptest::prelude::*;

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
    fn quarters_are_of_every_fourth_sample() {
        let mut s = Stats::new(Watch::Tokens { axis: -1, read: Read::default() });
        for i in 0..6u8 {
            s.observe(&[f32::from(i), -1.0], &[1, 1, 2], i.into()).unwrap();
        }
        let seen: Vec<_> = s.channels[0].quarters.iter().map(|q| (q.min, q.max, q.weighted.bins().count())).collect();
        assert_eq!(seen, [(0.0, 4.0, 2), (1.0, 5.0, 2), (2.0, 2.0, 1), (3.0, 3.0, 1)]);
        let ranges: Vec<_> = s.trials().iter().map(|(fit, judge)| (fit.range(), judge.range())).collect();
        assert_eq!(ranges[1], ((-1.0, 4.0), (-1.0, 5.0)));
        assert_eq!(ranges.len(), 4);
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
