//! Weights of attention that are known from codes: how far a score lies below the largest of its row tells its weight.
//!
//! Where scores are codes and what Softmax reads is a function of a code and of the largest code of its row, so is the
//! weight before it is divided by the row's sum: `exp(l[d] - l[0])`, `d` the distance to the largest. It is kept in fixed
//! point, with [`BITS`] bits after the point, which is as fine as a float below 1 is, and cut into digits of 8 bits: weights
//! times codes are then products of codes, exact in 32 bits, one for each digit.

use super::bytes::look_up;
use crate::quant::wide::wide;

/// Digits of 8 bits that a weight has at most.
pub const DIGITS: usize = 3;

/// Bits after the point of a weight; the largest is 1.
const BITS: u32 = 23;

/// How far the sum of a row's weights, or of weights times values, may be off for rounding them, as a share of it: 2^-18,
/// about what a sum of some dozens of floats may be off.
const LARGEST_ERROR: f64 = 1.0 / (1u32 << 18) as f64;

/// Rows of a head that need tables of their own; more of them are no function of the distance.
const MOST_TABLES: usize = 64;

/// The weights of every row: of each head, and for each code that may be the largest of the row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowWeights {
    /// Digits by the distance from the largest code, one table for each digit.
    tables: Vec<[[u8; 256]; DIGITS]>,
    /// For each head and each largest code the tables, 256 a head.
    of: Vec<usize>,
    digits: usize,
}

impl RowWeights {
    /// From what Softmax reads: for each head, for each largest code, for each code. Codes above the largest do not count.
    /// `None` if a score below the largest may weigh more than it, if rows are too different, or if so many as `keys` weights
    /// may be too small for fixed point.
    pub fn of(logits: &[f32], keys: usize) -> Option<RowWeights> {
        // Weights by distance, for each head and largest code.
        let mut rows: Vec<Vec<u32>> = Vec::with_capacity(logits.len() / 256);
        for (i, row) in logits.chunks_exact(256).enumerate() {
            let largest = i % 256;
            let top = row[largest];
            if !top.is_finite() || !row[..=largest].iter().all(|l| *l <= top) {
                return None;
            }
            let mut weights = Vec::with_capacity(largest + 1);
            for l in row[..=largest].iter().rev() {
                let exact = (*l as f64 - top as f64).exp();
                let fixed = (exact * (1u32 << BITS) as f64).round_ties_even();
                // The sum is 1 at least, and as many times the weight as there are such keys.
                let off = (fixed / (1u32 << BITS) as f64 - exact).abs();
                if off * keys as f64 > LARGEST_ERROR && off > LARGEST_ERROR * exact {
                    return None;
                }
                weights.push(fixed as u32);
            }
            rows.push(weights);
        }
        let all = rows.iter().flatten().fold(0, |all, w| all | w);
        let shift = all.trailing_zeros().min(BITS);
        let mut known: Vec<&[u32]> = Vec::new();
        let mut of = vec![0; rows.len()];
        let most = MOST_TABLES * (rows.len() / 256);
        // From the largest code down: a shorter row is mostly the beginning of a longer one.
        for (i, row) in rows.iter().enumerate().rev() {
            of[i] = known.iter().rposition(|k| k.starts_with(row)).unwrap_or_else(|| {
                known.push(row);
                known.len() - 1
            });
            if known.len() > most {
                return None;
            }
        }
        let digit = |w: u32, d: usize| (w >> shift >> (8 * d)) as u8;
        let table = |row: &&[u32]| {
            let at = |i: usize, d| row.get(i).map_or(0, |w| digit(*w, d));
            std::array::from_fn(|d| std::array::from_fn(|i| at(i, d)))
        };
        let digits = (BITS + 1 - shift).div_ceil(8) as usize;
        Some(RowWeights { tables: known.iter().map(table).collect(), of, digits })
    }

    /// How many digits a weight has.
    pub fn digits(&self) -> usize {
        self.digits
    }

    pub fn heads(&self) -> usize {
        self.of.len() / 256
    }

    /// The digits of the weights of a matrix of codes, whose rows have `cols` each: first the lowest digit of every row,
    /// then the next. Rows are `stride` apart, and zeros stand after their ends. The sum of each row's weights goes to
    /// `sums`.
    pub fn fill(&self, head: usize, codes: &[u8], cols: usize, stride: usize, to: &mut [u8], sums: &mut [f64]) {
        let plane = sums.len() * stride;
        let mut distances = vec![0u8; cols];
        for (r, (row, total)) in codes.chunks_exact(cols).zip(sums).enumerate() {
            let largest = largest(row);
            let tables = &self.tables[self.of[head * 256 + largest as usize]];
            below(row, largest, &mut distances);
            *total = 0.0;
            for (digit, table) in tables[..self.digits].iter().enumerate() {
                let at = digit * plane + r * stride;
                let (to, rest) = to[at..at + stride].split_at_mut(cols);
                rest.fill(0);
                look_up(table, &distances, to);
                *total += (1u64 << (8 * digit)) as f64 * total_of(to) as f64;
            }
        }
    }
}

wide! {
    fn largest(row: &[u8]) -> u8 {
        row.iter().fold(0, |a, b| a.max(*b))
    }

    fn below(row: &[u8], largest: u8, to: &mut [u8]) {
        row.iter().zip(to).for_each(|(x, y)| *y = largest - x);
    }

    fn total_of(digits: &[u8]) -> u32 {
        digits.iter().map(|d| *d as u32).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Logits of a head, of every largest code and every code, from those by distance.
    fn by_distance(l: impl Fn(usize, usize) -> f32) -> Vec<f32> {
        (0..256 * 256).map(|i| l(i / 256, (i / 256).saturating_sub(i % 256))).collect()
    }

    /// What the weights are by definition, read back from the digits.
    fn check(w: &RowWeights, logits: &[f32], codes: &[u8], cols: usize, head: usize) {
        let (rows, stride) = (codes.len() / cols, cols.next_multiple_of(4));
        let mut planes = vec![7u8; w.digits() * rows * stride];
        let mut sums = vec![0.0; rows];
        w.fill(head, codes, cols, stride, &mut planes, &mut sums);
        for (r, row) in codes.chunks_exact(cols).enumerate() {
            let largest = *row.iter().max().unwrap() as usize;
            let l = |c: usize| logits[(head * 256 + largest) * 256 + c] as f64;
            let mut total = 0.0;
            let value = |k: usize| {
                (0..w.digits()).map(|d| (planes[(d * rows + r) * stride + k] as u64) << (8 * d)).sum::<u64>() as f64
            };
            // The largest weighs 1, whatever the point's place.
            let one = value(row.iter().position(|c| *c as usize == largest).unwrap());
            for (k, c) in row.iter().enumerate() {
                total += value(k);
                let want = (l(*c as usize) - l(largest)).exp();
                assert!((value(k) / one - want).abs() <= 1.001 * 2f64.powi(-24), "{} {want}", value(k) / one);
            }
            (cols..stride).for_each(|k| assert_eq!(value(k), 0.0));
            assert_eq!(sums[r], total);
        }
    }

    #[test]
    fn every_code_below_every_largest() {
        let octaves = |d: usize| -(d.div_ceil(9).min(15) as f32) * std::f32::consts::LN_2;
        let halves = |d: usize| if d > 120 { -64.0 } else { -(d.div_ceil(9) as f32) * 0.5 * std::f32::consts::LN_2 };
        // A step that lies elsewhere below some of the largest codes.
        let uneven = |m: usize, d: usize| if d + m % 3 > 40 { -1.5 } else { 0.25 };
        let cases: [(Vec<f32>, usize); 3] =
            [(by_distance(|_, d| octaves(d)), 2), (by_distance(|_, d| halves(d)), 3), (by_distance(uneven), 3)];
        let rows: Vec<u8> = (0..256).flat_map(|m| (0..=255).map(move |c: usize| c.min(m) as u8)).collect();
        for (logits, digits) in &cases {
            let w = RowWeights::of(logits, 40).unwrap();
            assert_eq!((w.digits(), w.heads()), (*digits, 1));
            check(&w, logits, &rows, 256, 0);
        }
        let smooth = by_distance(|_, d| -(d as f32) * 0.013);
        check(&RowWeights::of(&smooth, 40).unwrap(), &smooth, &rows, 256, 0);
        let both = [cases[0].0.clone(), cases[1].0.clone()].concat();
        let w = RowWeights::of(&both, 40).unwrap();
        assert_eq!((w.digits(), w.heads()), (3, 2));
        (0..2).for_each(|head| check(&w, &both, &rows, 256, head));
    }

    #[test]
    fn other_functions_have_no_tables() {
        assert!(RowWeights::of(&by_distance(|_, d| if d == 3 { 1.0 } else { 0.0 }), 40).is_none());
        assert!(RowWeights::of(&by_distance(|m, d| -((d * (m + 1)) as f32) * 0.01), 40).is_none());
        assert!(RowWeights::of(&by_distance(|_, _| f32::NAN), 40).is_none());
        assert!(RowWeights::of(&by_distance(|_, d| if d > 9 { f32::NEG_INFINITY } else { 0.0 }), 40).is_some());
    }

    /// Thousands of keys whose weights lie below the last place would be missed in the sum; a few are not.
    #[test]
    fn weights_too_small_for_their_number() {
        let halves = by_distance(|_, d| -(d.div_ceil(4) as f32) * 0.5 * std::f32::consts::LN_2);
        assert!(RowWeights::of(&halves, 10_000).is_none());
        assert!(RowWeights::of(&halves, 30).is_some());
        // Octaves that have an exact place do not sum up.
        let octaves = by_distance(|_, d| -(d.div_ceil(17) as f32) * std::f32::consts::LN_2);
        assert!(RowWeights::of(&octaves, 30_000).is_some());
    }

    proptest! {
        #[test]
        fn any_row(cols in 1usize..150, seed in any::<u64>(), width in 4usize..60) {
            let logits = by_distance(|_, d| -(d.div_ceil(width).min(15) as f32) * 0.7);
            let w = RowWeights::of(&logits, 60).unwrap();
            let mut x = seed | 1;
            let codes: Vec<u8> = (0..3 * cols).map(|_| {
                x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (x >> 40) as u8
            }).collect();
            check(&w, &logits, &codes, cols, 0);
        }
    }
}
