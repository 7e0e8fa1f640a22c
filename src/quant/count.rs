//! What observers do with the values of one sample: ends and sums of all of them, counts of as many as are worth counting.

use super::channel::Channel;
use super::kernel::Layout;
use super::tokens::{Read, TOKEN, TokenSums, Tokens, sums};
use super::watch::{ObserveError, Watch, first_unfit};
use super::wide::wide;
use crate::ir::masks::HIDDEN_BELOW;

/// Channels whose values are gathered at once: a line of the cache.
const COLUMNS: usize = 16;

/// Rows that are looked at together.
const ROWS: usize = 8;

/// Values that are compared side by side.
const LANES: usize = 8;

fn mix(mut x: u64) -> u64 {
    // splitmix64's finalizer: a fixed, well-spread choice of rows.
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// A number for each place of each sample, as good as random and always the same.
pub(super) fn key(sample: u64, place: usize) -> u64 {
    mix(mix(sample.wrapping_add(1)).wrapping_add(place as u64))
}

/// Ends and sums of the channels of one sample.
pub(super) struct Sums {
    pub lo: Vec<f32>,
    pub hi: Vec<f32>,
    pub sum: Vec<f64>,
    pub squares: Vec<f64>,
}

impl Sums {
    /// As [`Sums::of`] where each row is a token, whose sums are made on the way, while it is in the cache.
    fn with_tokens(x: &[f32], layout: Layout, tokens: &mut TokenSums) -> Sums {
        let mut s = Sums::of(&[], layout, f32::NEG_INFINITY);
        let n = layout.channels;
        for (part, at) in x.chunks(ROWS * n).zip((0..).step_by(ROWS)) {
            by_row(part, (&mut s.lo, &mut s.hi), (&mut s.sum, &mut s.squares));
            tokens.add_rows(part, n, at);
        }
        s
    }

    /// Over all values above `hidden`.
    pub fn of(x: &[f32], layout: Layout, hidden: f32) -> Sums {
        let n = layout.channels;
        let mut s = Sums {
            lo: vec![f32::INFINITY; n],
            hi: vec![f32::NEG_INFINITY; n],
            sum: vec![0.0; n],
            squares: vec![0.0; n],
        };
        if x.is_empty() {
            return s;
        }
        if layout.inner == 1 && hidden == f32::NEG_INFINITY {
            by_row(x, (&mut s.lo, &mut s.hi), (&mut s.sum, &mut s.squares));
            return s;
        }
        for (r, run) in x.chunks(layout.inner).enumerate() {
            let c = r % n;
            let (lo, hi) = ends(run, hidden);
            (s.lo[c], s.hi[c]) = (s.lo[c].min(lo), s.hi[c].max(hi));
            let (sum, squares) = sums(run, hidden);
            (s.sum[c], s.squares[c]) = (s.sum[c] + sum, s.squares[c] + squares);
        }
        s
    }
}

/// The smallest and the largest of the values above `hidden`.
pub(super) fn ends(run: &[f32], hidden: f32) -> (f32, f32) {
    let mut out = (f32::INFINITY, f32::NEG_INFINITY);
    widen_ends(run, hidden, &mut out);
    out
}

wide! {
    /// Ends and sums of each column.
    fn by_row(x: &[f32], ends: (&mut [f32], &mut [f32]), sums: (&mut [f64], &mut [f64])) {
        let n = ends.0.len();
        let (lo, hi, sum, squares) = (ends.0, &mut ends.1[..n], &mut sums.0[..n], &mut sums.1[..n]);
        // What is kept of a column is read and written once for some rows.
        let mut some = x.chunks_exact(4 * n);
        for rows in some.by_ref() {
            let (a, b) = rows.split_at(2 * n);
            let ((a, b), (c, d)) = (a.split_at(n), b.split_at(n));
            let (b, c, d) = (&b[..n], &c[..n], &d[..n]);
            for i in 0..n {
                let v = [a[i], b[i], c[i], d[i]];
                for v in v {
                    lo[i] = if v < lo[i] { v } else { lo[i] };
                    hi[i] = if v > hi[i] { v } else { hi[i] };
                }
                let v = v.map(f64::from);
                sum[i] += (v[0] + v[1]) + (v[2] + v[3]);
                squares[i] += (v[0] * v[0] + v[1] * v[1]) + (v[2] * v[2] + v[3] * v[3]);
            }
        }
        for row in some.remainder().chunks_exact(n) {
            for i in 0..n {
                let v = row[i];
                lo[i] = if v < lo[i] { v } else { lo[i] };
                hi[i] = if v > hi[i] { v } else { hi[i] };
                let v = f64::from(v);
                sum[i] += v;
                squares[i] += v * v;
            }
        }
    }

    fn widen_ends(run: &[f32], hidden: f32, out: &mut (f32, f32)) {
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
        *out = (lo.into_iter().fold(out.0, f32::min), hi.into_iter().fold(out.1, f32::max));
    }
}

/// Which pieces of a sample are counted.
///
/// A hash of the sample's number and the piece decides, not a stride: that would always meet the same column of an image or
/// the same token of a window. So the choice depends neither on the order of samples nor on how they are divided.
pub(super) struct Picked {
    pieces: Vec<usize>,
    /// Of so many pieces about one was chosen; 1: all were.
    of: u32,
    /// Those that weigh too much to be left to chance.
    always: Vec<usize>,
}

impl Picked {
    /// About `most` of `pieces`. Those of `always` are told apart for what is counted by weight.
    pub fn of(pieces: usize, most: usize, sample: u64, always: &[usize]) -> Picked {
        let of = pieces.div_ceil(most.max(1)) as u64;
        // The high half of the hash, as a share of 2^32, against 1 / of.
        let bound = (1u64 << 32) / of.max(1);
        let chosen = |p: &usize| of <= 1 || key(sample, *p) >> 32 < bound;
        Picked { pieces: (0..pieces).filter(chosen).collect(), of: of.max(1) as u32, always: always.to_vec() }
    }

    /// The pieces and what each weighs of `weights`, without those that weigh nothing.
    pub fn weighted(&self, weights: &[u32]) -> (Vec<usize>, Vec<u32>) {
        let heavy = |(p, w): (usize, u32)| if w > 0 { Some((p, (w / self.of).max(1))) } else { None };
        let by_chance = self.pieces.iter().filter(|p| self.of == 1 || self.always.binary_search(p).is_err());
        let light = by_chance.map(|p| (*p, weights[*p])).filter(|(_, w)| *w > 0);
        let always = if self.of == 1 { &[][..] } else { &self.always };
        light.chain(always.iter().map(|p| (*p, weights[*p])).filter_map(heavy)).unzip()
    }
}

/// Which rows of a sample are taken: about `most` of them.
#[derive(Clone, Copy, Debug)]
pub struct Pick {
    /// Number of the sample in its data set.
    pub sample: u64,
    pub most: usize,
}

/// Some rows of `channels` numbers, and how much each counts: the inverse of its variance, in shares of a row of median
/// variance, and the tokens that are read as [`Read`] says. `rows` tokens stand in a row one after the other; 0: rows are no
/// tokens.
pub fn picked_rows(x: &[f32], channels: usize, rows: usize, read: &Read, pick: Pick) -> (Vec<usize>, Vec<f64>) {
    let layout = Layout { outer: x.len() / channels.max(1), channels, inner: 1 };
    let tokens = TokenSums::of(x, layout).weights(layout, rows, read);
    let (chosen, weights) = Picked::of(layout.outer, pick.most, pick.sample, &tokens.read).weighted(&tokens.weights);
    (chosen, weights.into_iter().map(|w| f64::from(w) / TOKEN).collect())
}

/// What one sample holds of a value: what can be said of it without knowing the other samples.
pub struct Seen<'a> {
    pub(super) x: &'a [f32],
    pub(super) dims: &'a [usize],
    pub(super) sample: u64,
    pub(super) layout: Layout,
    pub(super) sums: Sums,
    pub(super) tokens: Option<Tokens>,
    /// Values in a piece, which lie side by side; divides the inner size of the layout.
    piece: usize,
    picked: Picked,
    /// Values up to this are not counted.
    hidden: f32,
}

impl<'a> Seen<'a> {
    /// Looks at `x` of sizes `dims`, in the sample of this number in the whole data set. Of each channel about `most` places
    /// are to be counted (fewer rows, of scores and of a tensor without channels); ranges, sums, weights of tokens and distinct
    /// values are those of all.
    ///
    /// # Errors
    /// If an element is not finite, or there is no such axis.
    pub fn of(
        watch: &Watch,
        x: &'a [f32],
        dims: &'a [usize],
        sample: u64,
        most: usize,
    ) -> Result<Seen<'a>, ObserveError> {
        let masked = matches!(watch, Watch::Scores { .. });
        let layout = match watch.axis_of(dims) {
            None => Layout::whole(x.len()),
            Some(axis) => Layout::of(dims, axis).ok_or(ObserveError::Axis { rank: dims.len(), axis })?,
        };
        let hidden = if masked { HIDDEN_BELOW } else { f32::NEG_INFINITY };
        let mut of_tokens = None;
        let sums = match watch {
            Watch::Tokens { .. } if layout.inner == 1 && layout.channels > 0 => {
                Sums::with_tokens(x, layout, of_tokens.insert(TokenSums::new(layout)))
            }
            _ => Sums::of(x, layout, hidden),
        };
        // Sums of rows of numbers are numbers: those need not be looked at twice. (Sums of runs leave out what is hidden.)
        let look = masked || layout.inner != 1 || sums.squares.iter().any(|s| !s.is_finite());
        if let Some(at) = look.then(|| first_unfit(x, masked)).flatten() {
            let what = if x[at].is_nan() { "NaN" } else { "infinity" };
            return Err(ObserveError::NotFinite { what, at });
        }
        let tokens = match watch {
            Watch::Tokens { read, .. } => {
                let rows = if layout.inner == 1 && dims.len() >= 3 { dims[dims.len() - 2] } else { 0 };
                let sums = of_tokens.unwrap_or_else(|| TokenSums::of(x, layout));
                Some(sums.weights(layout, rows, read))
            }
            _ => None,
        };
        // Of scores and of tensors without channels, a row of the last axis is one piece; it shows as much of a distribution
        // as a few single values.
        let rows = masked || *watch == Watch::Tensor;
        let piece = if rows { dims.last().copied().unwrap_or(1).max(1) } else { 1 };
        let piece = if layout.inner.is_multiple_of(piece) { piece } else { layout.inner.max(1) };
        let most = if piece == 1 { most } else { most.div_ceil(4) };
        let always = tokens.as_ref().map_or(&[][..], |t| &t.read);
        let picked = Picked::of(layout.outer * (layout.inner / piece), most, sample, always);
        Ok(Seen { x, dims, sample, layout, sums, tokens, piece, picked, hidden })
    }

    /// True if values that are hidden from a Softmax are left out.
    pub(super) fn masked(&self) -> bool {
        self.hidden > f32::NEG_INFINITY
    }

    /// Distinct values, as long as they are few: of all places, as one that was left out might be off the others' grid.
    pub(super) fn levels(&self, channels: &mut [Channel]) {
        if self.masked() || channels.iter().all(|c| c.levels.are_many()) {
            return;
        }
        let Layout { outer, channels: n, inner } = self.layout;
        for (c, ch) in channels.iter_mut().enumerate().filter(|(_, ch)| !ch.levels.are_many()) {
            if inner == 1 {
                ch.levels.add(self.x.iter().skip(c).step_by(n).copied());
            } else {
                (0..outer).for_each(|o| ch.levels.add(self.x[(o * n + c) * inner..][..inner].iter().copied()));
            }
        }
    }

    /// Counts each picked value once.
    pub(super) fn count(&self, channels: &mut [Channel]) {
        let masked = self.masked();
        if self.piece == 1 {
            return self.columns(channels, &self.picked.pieces, |ch, column| ch.hist.count_all(column));
        }
        let Layout { channels: n, inner, .. } = self.layout;
        let pieces = inner / self.piece;
        let mut seen = Vec::new();
        for p in &self.picked.pieces {
            let (o, k) = (p / pieces, p % pieces);
            for (c, ch) in channels.iter_mut().enumerate() {
                let run = &self.x[(o * n + c) * inner + k * self.piece..][..self.piece];
                if masked {
                    seen.clear();
                    seen.extend(run.iter().copied().filter(|v| *v > self.hidden));
                    ch.hist.count_all(&seen);
                } else {
                    ch.hist.count_all(run);
                }
            }
        }
    }

    /// Counts the values of picked tokens by the weights of these in one half of the samples. Pieces are single values.
    pub(super) fn weigh(&self, channels: &mut [Channel], weights: &[u32], half: usize) {
        let (tokens, weights) = self.picked.weighted(weights);
        self.columns(channels, &tokens, |ch, column| {
            ch.halves[half].count_weighted(column, &weights);
        });
    }

    /// Hands every channel its values at these places. Some channels at a time are gathered, so that lines of the cache are
    /// read once and counts stay in it.
    fn columns(&self, channels: &mut [Channel], places: &[usize], mut take: impl FnMut(&mut Channel, &[f32])) {
        let Layout { channels: n, inner, .. } = self.layout;
        let mut columns = vec![0f32; places.len() * COLUMNS];
        if places.is_empty() {
            return;
        }
        for (at, block) in channels.chunks_mut(COLUMNS).enumerate() {
            let first = at * COLUMNS;
            for (r, p) in places.iter().enumerate() {
                let from = (p / inner * n + first) * inner + p % inner;
                if inner == 1 {
                    let row = &self.x[from..][..block.len()];
                    row.iter().enumerate().for_each(|(k, v)| columns[k * places.len() + r] = *v);
                } else {
                    (0..block.len()).for_each(|k| columns[k * places.len() + r] = self.x[from + k * inner]);
                }
            }
            for (ch, column) in block.iter_mut().zip(columns.chunks_exact(places.len())) {
                take(ch, column);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn about_as_many_are_picked_as_asked_for_and_not_in_step() {
        for (pieces, most) in [(197, 64), (197, 197), (3136, 100), (10, 1), (0, 5)] {
            let of = |sample| Picked::of(pieces, most, sample, &[]).pieces;
            let mean = (0..400).map(|s| of(s).len()).sum::<usize>() as f64 / 400.0;
            let want = pieces as f64 / pieces.div_ceil(most).max(1) as f64;
            assert!((mean - want).abs() <= 0.05 * want, "{pieces}, {most}: {mean}");
            // Each place has its turn, whatever its number.
            let mut met = vec![0usize; pieces];
            (0..400).flat_map(of).for_each(|p| met[p] += 1);
            let (least, top) = (met.iter().min().copied().unwrap_or(1), met.iter().max().copied().unwrap_or(0));
            assert!(least > 0 || most < 5, "{pieces}, {most}: a place was never met");
            assert!(top <= 400);
        }
    }

    #[test]
    fn what_is_always_read_weighs_what_it_would_among_all() {
        let weights: Vec<u32> = (0..197).map(|t| if t == 0 { 197 * 4096 } else { 4096 }).collect();
        let (mut read, mut rest) = (0u64, 0u64);
        for sample in 0..200 {
            let (tokens, w) = Picked::of(197, 50, sample, &[0]).weighted(&weights);
            assert_eq!(tokens.iter().filter(|t| **t == 0).count(), 1);
            for (t, w) in tokens.iter().zip(w) {
                *(if *t == 0 { &mut read } else { &mut rest }) += u64::from(w);
            }
        }
        let share = read as f64 / rest as f64;
        assert!((share - 197.0 / 196.0).abs() < 0.05, "{share}");
        // All counted: as they are.
        assert_eq!(Picked::of(197, 197, 3, &[0]).weighted(&weights).1, weights);
    }

    #[test]
    fn sampled_counts_are_those_of_the_whole_in_shares() {
        use crate::quant::observe::Stats;
        let x: Vec<f32> = (0..400 * 24).map(|i| ((i * 7919) % 1009) as f32 / 100.0).collect();
        for (watch, dims) in [
            (Watch::Tensor, vec![1, 400, 24]),
            (Watch::Channels { axis: -1 }, vec![1, 400, 24]),
            (Watch::Channels { axis: 1 }, vec![1, 24, 20, 20]),
            (Watch::Scores { by_head: true }, vec![1, 4, 100, 24]),
        ] {
            let of = |most| {
                let mut s = Stats::new(watch.clone());
                (0..40).for_each(|i| s.take(&Seen::of(&watch, &x, &dims, i, most).unwrap()).unwrap());
                s
            };
            let (all, some) = (of(usize::MAX), of(40));
            for (a, b) in all.channels.iter().zip(&some.channels) {
                assert_eq!((a.min, a.max, a.sum, &a.levels), (b.min, b.max, b.sum, &b.levels));
                assert!(b.hist.total() * 2 < a.hist.total() && b.hist.total() > 0, "{watch:?}");
                for p in [0.1, 0.5, 0.9] {
                    assert!((a.hist.quantile(p) - b.hist.quantile(p)).abs() < 0.5, "{watch:?} {p}");
                }
            }
        }
    }
}
