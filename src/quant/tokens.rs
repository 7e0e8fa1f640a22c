//! How much the tokens of a value count: an error in one is worth what the LayerNorm after makes of it, and what the outputs
//! read of it.

use serde::{Deserialize, Serialize};

use super::kernel::Layout;
use super::wide::wide;

/// Which tokens of a value the outputs read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Read {
    /// Their places on the second last axis (negative: from the end). Together they weigh as much as all the others of
    /// the same variance. None: all tokens are alike.
    pub tokens: Vec<i64>,
    /// Nothing after the value mixes tokens, so that the others weigh nothing.
    pub alone: bool,
}

/// Which of `rows` tokens are meant, counted from the front.
fn places(read: &[i64], rows: usize) -> Vec<usize> {
    let at = |i: &i64| usize::try_from(if *i < 0 { i + rows as i64 } else { *i }).ok().filter(|i| *i < rows);
    read.iter().filter_map(at).collect()
}

/// Weight of a token of median variance.
pub(super) const TOKEN: f64 = 4096.0;

/// The tokens of one sample.
pub(super) struct Tokens {
    /// `TOKEN` times the median variance of a token over its own, between 1 and `256 TOKEN`.
    pub weights: Vec<u32>,
    /// For each place of a row, the sum of the inverse variances of the tokens there, and how many these are. Tokens that no
    /// output reads, and those without a variance, are left out.
    pub inverse: Vec<(f64, f64)>,
    /// The tokens that the outputs read, lowest first; none if these are not told apart.
    pub read: Vec<usize>,
}

/// A token this faint counts no more than that.
const FAINTEST: f64 = 1e-12;

wide! {
    /// Adds the values above `hidden`, and their squares.
    fn add_sums(run: &[f32], hidden: f32, out: &mut (f64, f64)) {
        const LANES: usize = 8;
        let (mut sums, mut squares) = ([0f64; LANES], [0f64; LANES]);
        let mut add = |part: &[f32]| {
            for ((v, sum), square) in part.iter().zip(&mut sums).zip(&mut squares) {
                let v = if *v > hidden { f64::from(*v) } else { 0.0 };
                *sum += v;
                *square += v * v;
            }
        };
        let mut parts = run.chunks_exact(LANES);
        parts.by_ref().for_each(&mut add);
        add(parts.remainder());
        *out = (out.0 + sums.iter().sum::<f64>(), out.1 + squares.iter().sum::<f64>());
    }
}

/// The sum of the values above `hidden` and that of their squares, in an order that does not depend on the processor.
pub(super) fn sums(run: &[f32], hidden: f32) -> (f64, f64) {
    let mut out = (0.0, 0.0);
    add_sums(run, hidden, &mut out);
    out
}

/// Sums over the channels of each token, and those of the squares.
pub(super) struct TokenSums {
    sum: Vec<f64>,
    squares: Vec<f64>,
}

impl TokenSums {
    pub fn new(layout: Layout) -> TokenSums {
        let tokens = layout.outer * layout.inner;
        TokenSums { sum: vec![0.0; tokens], squares: vec![0.0; tokens] }
    }

    pub fn of(x: &[f32], layout: Layout) -> TokenSums {
        let mut s = TokenSums::new(layout);
        if x.is_empty() {
            return s;
        }
        if layout.inner == 1 {
            s.add_rows(x, layout.channels.max(1), 0);
            return s;
        }
        for (r, run) in x.chunks(layout.inner).enumerate() {
            let first = r / layout.channels * layout.inner;
            for ((v, a), b) in run.iter().zip(&mut s.sum[first..]).zip(&mut s.squares[first..]) {
                *a += f64::from(*v);
                *b += f64::from(*v).powi(2);
            }
        }
        s
    }

    /// Adds rows of `channels` numbers, the first of which is token `at`.
    pub fn add_rows(&mut self, rows: &[f32], channels: usize, at: usize) {
        let into = self.sum[at..].iter_mut().zip(&mut self.squares[at..]);
        rows.chunks_exact(channels).zip(into).for_each(|(row, (a, b))| (*a, *b) = sums(row, f32::NEG_INFINITY));
    }

    /// How much the tokens count; `rows` of them stand in a row one after the other.
    pub fn weights(&self, layout: Layout, rows: usize, read: &Read) -> Tokens {
        let tokens = layout.outer * layout.inner;
        let n = layout.channels as f64;
        let variances: Vec<f64> =
            self.sum.iter().zip(&self.squares).map(|(a, b)| (b / n - (a / n).powi(2)).max(0.0)).collect();
        let mut sorted = variances.clone();
        sorted.sort_by(f64::total_cmp);
        let median = sorted.get(tokens / 2).copied().unwrap_or(0.0);
        let places = places(&read.tokens, rows);
        let (more, less) = match places.len() {
            0 => (1.0, 1.0),
            n => ((rows as f64 / n as f64).max(1.0), if read.alone { 0.0 } else { 1.0 }),
        };
        let share = |t: usize| if rows > 0 && places.contains(&(t % rows)) { more } else { less };
        let one = |(t, v): (usize, &f64)| {
            let w = if *v > 0.0 { (TOKEN * median / v).clamp(1.0, 256.0 * TOKEN) } else { TOKEN };
            (w * share(t)).round() as u32
        };
        let mut inverse = vec![(0.0, 0.0); rows.max(1)];
        for (t, v) in variances.iter().enumerate().filter(|(t, v)| **v > 0.0 && share(*t) > 0.0) {
            let place = &mut inverse[t % rows.max(1)];
            *place = (place.0 + 1.0 / v.max(FAINTEST), place.1 + 1.0);
        }
        let read = if rows == 0 { Vec::new() } else { (0..tokens).filter(|t| places.contains(&(t % rows))).collect() };
        Tokens { weights: variances.iter().enumerate().map(one).collect(), inverse, read }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_count_by_the_inverse_of_their_variance() {
        // Variances 1, 1, 16 and 4; the first token is read.
        let x = [-1.0, 1.0, -1.0, 1.0, -4.0, 4.0, -2.0, 2.0];
        let layout = Layout::of(&[1, 4, 2], -1).unwrap();
        let all =
            |read: &[i64]| TokenSums::of(&x, layout).weights(layout, 4, &Read { tokens: read.to_vec(), alone: false });
        let w = |read: &[i64]| all(read).weights;
        let unit = TOKEN as u32;
        assert_eq!(w(&[]), [4 * unit, 4 * unit, unit / 4, unit]);
        assert_eq!(w(&[0]), [16 * unit, 4 * unit, unit / 4, unit]);
        assert_eq!(w(&[0]), w(&[-4]));
        let alone = TokenSums::of(&x, layout).weights(layout, 4, &Read { tokens: vec![0], alone: true });
        assert_eq!(
            (alone.weights, alone.inverse),
            (vec![16 * unit, 0, 0, 0], vec![(1.0, 1.0), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0)])
        );
        assert_eq!(all(&[0]).inverse, [(1.0, 1.0), (1.0, 1.0), (1.0 / 16.0, 1.0), (1.0 / 4.0, 1.0)]);
        let two = TokenSums::of(&x, layout).weights(layout, 2, &Read::default());
        assert_eq!(two.inverse, [(1.0 + 1.0 / 16.0, 2.0), (1.0 + 1.0 / 4.0, 2.0)]);
    }
}
