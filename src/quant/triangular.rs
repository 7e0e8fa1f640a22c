//! Factors of symmetric positive definite matrices: blocked, so that nearly all of the work is products of matrices.
//!
//! The order of every sum is fixed, whatever the number of threads.

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayViewMut2, Axis, s};
use rayon::prelude::*;

/// Rows and columns of a block.
const BLOCK: usize = 64;

/// The lower triangle `L` of a matrix `A = L L^T`; what lies right of its diagonal means nothing.
pub(super) struct Factor(Array2<f64>);

/// Factors a symmetric matrix, of which what lies left of the diagonal is read; `None` if it is not positive definite.
pub(super) fn factored(mut a: Array2<f64>) -> Option<Factor> {
    let n = a.nrows();
    for from in (0..n).step_by(BLOCK) {
        let to = (from + BLOCK).min(n);
        let (mut here, mut below) = a.slice_mut(s![from.., from..]).split_at(Axis(0), to - from);
        diagonal(&mut here.slice_mut(s![.., ..to - from]))?;
        // The panel below: X L^T = A, row by row.
        let l = here.slice(s![.., ..to - from]).to_owned();
        blocks(below.view_mut()).into_par_iter().for_each(|mut rows| {
            rows.outer_iter_mut().for_each(|mut row| {
                let row = row.as_slice_mut().expect("row-major");
                for (j, l) in l.outer_iter().enumerate() {
                    let l = l.to_slice().expect("row-major");
                    row[j] = (row[j] - dot(&row[..j], &l[..j])) / l[j];
                }
            });
        });
        // What is left loses the panel's products; of it, strips up to the diagonal.
        let panel = below.slice(s![.., ..to - from]).to_owned();
        let mut rest = below.slice_mut(s![.., to - from..]);
        blocks(rest.view_mut()).into_par_iter().enumerate().for_each(|(i, mut strip)| {
            let (first, last) = (i * BLOCK, i * BLOCK + strip.nrows());
            let (left, right) = (panel.slice(s![first..last, ..]), panel.slice(s![..last, ..]));
            general_mat_mul(-1.0, &left, &right.t(), 1.0, &mut strip.slice_mut(s![.., ..last]));
        });
    }
    Some(Factor(a))
}

/// The sum of products, in an order that does not depend on the processor.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    const LANES: usize = 8;
    let mut sums = [0f64; LANES];
    let (mut left, mut right) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    for (a, b) in left.by_ref().zip(right.by_ref()) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(s, (a, b))| *s += a * b);
    }
    let rest = left.remainder().iter().zip(right.remainder());
    sums.iter().sum::<f64>() + rest.map(|(a, b)| a * b).sum::<f64>()
}

/// A matrix in parts of so many rows, for as many threads.
fn blocks(m: ArrayViewMut2<'_, f64>) -> Vec<ArrayViewMut2<'_, f64>> {
    let (mut parts, mut rest) = (Vec::new(), m);
    while rest.nrows() > BLOCK {
        let (part, more) = rest.split_at(Axis(0), BLOCK);
        parts.push(part);
        rest = more;
    }
    parts.push(rest);
    parts
}

/// Factors one block in place.
fn diagonal(a: &mut ArrayViewMut2<'_, f64>) -> Option<()> {
    for j in 0..a.nrows() {
        let known = a.slice(s![j, ..j]);
        let d = a[[j, j]] - known.dot(&known);
        if !(d > 0.0 && d.is_finite()) {
            return None;
        }
        let d = d.sqrt();
        a[[j, j]] = d;
        for i in j + 1..a.nrows() {
            let known = a.slice(s![i, ..j]).dot(&a.slice(s![j, ..j]));
            a[[i, j]] = (a[[i, j]] - known) / d;
        }
    }
    Some(())
}

impl Factor {
    pub fn diagonal(&self) -> Vec<f64> {
        self.0.diag().to_vec()
    }

    /// Row `i`, column `j` of the triangle, `j <= i`.
    pub fn at(&self, i: usize, j: usize) -> f64 {
        self.0[[i, j]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn matrices_of_all_sizes_about_a_block_are_factored() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        for n in [1, 2, 63, 64, 65, 150, 200] {
            let b = Array2::from_shape_fn((n, n + 3), |_| rng.random_range(-1.0f64..1.0));
            let a = b.dot(&b.t()) + Array2::<f64>::eye(n) * 0.1;
            // What lies right of the diagonal is not read.
            let mut lower = a.clone();
            lower.indexed_iter_mut().for_each(|((i, j), v)| {
                if j > i {
                    *v = f64::NAN
                }
            });
            let f = factored(lower).expect("positive definite");
            let l = Array2::from_shape_fn((n, n), |(i, j)| if j <= i { f.at(i, j) } else { 0.0 });
            let far = (l.dot(&l.t()) - &a).iter().fold(0f64, |m, v| m.max(v.abs()));
            assert!(far < 1e-9 * n as f64, "{n}: {far}");
            assert_eq!(f.diagonal(), l.diag().to_vec());
        }
    }

    #[test]
    fn what_is_not_positive_definite_has_no_factor() {
        let mut a = Array2::<f64>::eye(130);
        a[[129, 129]] = -1.0;
        assert!(factored(a.clone()).is_none());
        a[[129, 129]] = f64::NAN;
        assert!(factored(a).is_none());
    }
}
