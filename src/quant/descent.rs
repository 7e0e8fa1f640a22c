//! Codes changed one at a time, as long as the error at the output shrinks.
//!
//! [`gptq`](super::gptq) rounds each column once and never comes back to it. Here each code is asked again, with all others
//! in place. The error of a row of weights `w` with codes `q` at scale `s` is `e^T C e` with `e = w - s q`; when code `k`
//! grows by `d` it changes by `-2 s d (C e)_k + s^2 d^2 C_kk`. So `C e` says where a change pays, and a change costs one
//! row of `C`. Between two rounds over all codes the scale moves to `q^T C w / q^T C q`, the best one for these codes.
//!
//! *Source.* Cyclic coordinate descent as in QuantEase (arXiv 2309.01885); the scale is a least-squares solution.

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, ArrayViewMut2};

use super::pairs::{self, Mates};
use super::wide::wide;

/// Rounds over all codes at most. Few codes change after the third.
const SWEEPS: usize = 6;

/// One output channel: its weights and what they became.
pub(super) struct Row<'a> {
    pub weights: &'a [f32],
    pub scale: f32,
    pub codes: Vec<i8>,
    /// Smallest scale allowed.
    pub least: f32,
}

/// Changes codes (in `-top..=top`) and scales of rows so that `e^T C e` shrinks; gives that error of each row.
///
/// `c` is symmetric. Codes that do not saturate with their neighbours stay so.
pub(super) fn descend(c: &Array2<f32>, rows: &mut [Row<'_>], top: i32, mates: Option<&Mates>) -> Vec<f64> {
    let n = c.nrows();
    let product = |of: &dyn Fn(&Row<'_>, usize) -> f32| {
        let from: Vec<f32> = rows.iter().flat_map(|r| (0..n).map(move |i| of(r, i))).collect();
        let mut to = vec![0f32; from.len()];
        let from = ArrayView2::from_shape((rows.len(), n), &from).expect("rows");
        let mut into = ArrayViewMut2::from_shape((rows.len(), n), &mut to).expect("rows");
        general_mat_mul(1.0, &from, c, 0.0, &mut into);
        to
    };
    let mut errors = product(&|r, i| r.error(i));
    let mut codes = product(&|r, i| f32::from(r.codes[i]));
    let pulls = errors.chunks_exact_mut(n).zip(codes.chunks_exact_mut(n));
    rows.iter_mut()
        .zip(pulls)
        .map(|(row, (of_error, of_codes))| row.descend(c, of_error, of_codes, top, mates))
        .collect()
}

impl Row<'_> {
    fn error(&self, i: usize) -> f32 {
        self.weights[i] - self.scale * f32::from(self.codes[i])
    }

    /// `of_error` is `C e`, `of_codes` is `C q`; both are kept up to date.
    fn descend(
        &mut self,
        c: &Array2<f32>,
        of_error: &mut [f32],
        of_codes: &mut [f32],
        top: i32,
        mates: Option<&Mates>,
    ) -> f64 {
        for _ in 0..SWEEPS {
            self.rescale(of_error, of_codes);
            let mut changed = false;
            for k in 0..self.codes.len() {
                let row = c.row(k).to_slice().expect("row-major");
                let steps = self.steps(k, of_error[k] / (row[k] * self.scale), top, mates);
                if steps != 0 {
                    changed = true;
                    self.codes[k] = (i32::from(self.codes[k]) + steps) as i8;
                    add(of_error, row, -self.scale * steps as f32);
                    add(of_codes, row, steps as f32);
                }
            }
            if !changed {
                break;
            }
        }
        (0..self.codes.len()).map(|i| f64::from(self.error(i)) * f64::from(of_error[i])).sum()
    }

    /// Moves the scale to where the error is least.
    fn rescale(&mut self, of_error: &mut [f32], of_codes: &[f32]) {
        let with_codes = |a: &[f32]| a.iter().zip(&self.codes).map(|(a, q)| f64::from(*a) * f64::from(*q)).sum::<f64>();
        let power = with_codes(of_codes);
        // Without a code that is not 0, nothing says what the scale should be.
        if power > 0.0 {
            let scale = ((f64::from(self.scale) + with_codes(of_error) / power) as f32).max(self.least);
            add(of_error, of_codes, self.scale - scale);
            self.scale = scale;
        }
    }

    /// By how many steps code `k` changes if `best` steps would suit it best.
    fn steps(&self, k: usize, best: f32, top: i32, mates: Option<&Mates>) -> i32 {
        if best.abs() <= 0.5 || !best.is_finite() {
            return 0;
        }
        let now = i32::from(self.codes[k]);
        let (mut lo, mut hi) = (-top, top);
        for m in mates.map_or(&[][..], |m| m.of(k)) {
            let (l, h) = pairs::range(i32::from(self.codes[*m]));
            (lo, hi) = (lo.max(l), hi.min(h));
        }
        (now + best.round().clamp(-256.0, 256.0) as i32).max(lo).min(hi) - now
    }
}

wide! {
    /// Adds `from`, times a factor.
    fn add(to: &mut [f32], from: &[f32], by: f32) {
        to.iter_mut().zip(from).for_each(|(t, f)| *t += by * f);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    const N: usize = 16;

    /// A covariance of inputs that go together, and rows of weights with their nearest codes.
    type Setting = (Array2<f32>, Vec<Vec<f32>>, Vec<f32>, Vec<Vec<i8>>);

    fn setting(seed: u64, top: i32) -> Setting {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mix = Array2::from_shape_fn((N, N), |_| rng.random_range(-1.0f32..1.0));
        let c = mix.t().dot(&mix) + Array2::<f32>::eye(N) * 0.05;
        let weights: Vec<Vec<f32>> =
            (0..12).map(|_| (0..N).map(|_| rng.random_range(-1.0f32..1.0)).collect()).collect();
        let reach = |w: &Vec<f32>| w.iter().fold(0f32, |r, x| r.max(x.abs()));
        let scales: Vec<f32> = weights.iter().map(|w| reach(w) / top as f32).collect();
        let nearest = |(w, s): (&Vec<f32>, &f32)| w.iter().map(|x| (x / s).round() as i8).collect();
        let codes = weights.iter().zip(&scales).map(nearest).collect();
        (c, weights, scales, codes)
    }

    fn error(c: &Array2<f32>, w: &[f32], scale: f32, codes: &[i8]) -> f64 {
        let e: Vec<f64> = w.iter().zip(codes).map(|(w, q)| f64::from(*w) - f64::from(scale) * f64::from(*q)).collect();
        (0..N).map(|i| (0..N).map(|j| e[i] * f64::from(c[[i, j]]) * e[j]).sum::<f64>()).sum()
    }

    #[test]
    fn no_single_change_of_a_code_or_scale_is_left_that_helps() {
        for top in [7, 127] {
            let (c, weights, scales, codes) = setting(1, top);
            let row = |i: usize| Row { weights: &weights[i], scale: scales[i], codes: codes[i].clone(), least: 0.0 };
            let mut rows: Vec<Row<'_>> = (0..weights.len()).map(row).collect();
            // As often as it takes.
            (0..20).for_each(|_| drop(descend(&c, &mut rows, top, None)));
            let said = descend(&c, &mut rows, top, None);
            for (i, r) in rows.iter().enumerate() {
                let now = error(&c, r.weights, r.scale, &r.codes);
                let before = error(&c, r.weights, scales[i], &codes[i]);
                assert!((said[i] / now - 1.0).abs() < 1e-2, "{} {now}", said[i]);
                assert!(now < before, "{now} {before}");
                for k in 0..N {
                    for step in [-1, 1] {
                        let mut other = r.codes.clone();
                        let code = i32::from(other[k]) + step;
                        let allowed = code.abs() <= top;
                        other[k] = code.clamp(-top, top) as i8;
                        assert!(!allowed || error(&c, r.weights, r.scale, &other) > now * 0.999, "row {i} code {k}");
                    }
                }
                for by in [0.99, 1.01] {
                    assert!(error(&c, r.weights, r.scale * by, &r.codes) > now * 0.999, "scale of row {i}");
                }
            }
        }
    }

    #[test]
    fn limits_of_codes_neighbours_and_scales_hold() {
        let (c, weights, scales, codes) = setting(2, 127);
        let mates = Mates::of_row(N);
        let settled = |q: &Vec<i8>| {
            let mut wide: Vec<i32> = q.iter().map(|q| i32::from(*q)).collect();
            mates.settle(&mut wide);
            wide.into_iter().map(|q| q as i8).collect::<Vec<i8>>()
        };
        let row =
            |i: usize| Row { weights: &weights[i], scale: scales[i], codes: settled(&codes[i]), least: scales[i] };
        let mut rows: Vec<Row<'_>> = (0..weights.len()).map(row).collect();
        descend(&c, &mut rows, 127, Some(&mates));
        let mut moved = 0;
        for (i, r) in rows.iter().enumerate() {
            let wide: Vec<i32> = r.codes.iter().map(|q| i32::from(*q)).collect();
            assert!(mates.are_safe(&wide) && r.scale >= scales[i]);
            assert!(r.codes.iter().all(|q| (-127..=127).contains(q)));
            assert!(error(&c, r.weights, r.scale, &r.codes) < error(&c, r.weights, scales[i], &settled(&codes[i])));
            moved += usize::from(r.scale > scales[i]);
        }
        assert!(moved > 0);
        // Weights of nothing but zeros stay as they are.
        let zeros = vec![0.0; N];
        let mut rows = [Row { weights: &zeros, scale: 0.5, codes: vec![0; N], least: 0.0 }];
        assert_eq!(descend(&c, &mut rows, 7, None), [0.0]);
        assert_eq!((rows[0].scale, &rows[0].codes), (0.5, &vec![0; N]));
    }
}
