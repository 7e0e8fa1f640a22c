//! Weights that know their input: least-squares refit, and rounding that compensates its own error.
//!
//! Both minimise the squared error at a linear layer's output, `sum |y - (V x + b)|^2`, where `x` is what the layer reads
//! through its input's codes and `y` what it gives in the float model. [`Normal`](super::normal::Normal) holds the sums that this needs; the free
//! bias takes the means, so that everything else is about deviations from them.
//!
//! *Refit.* The best real `V` is `W + D C^-1` with `C` the covariance of `x` and `D` that of the residual `y - W x` with
//! `x`: a Wiener filter against the noise of the codes in front of the layer. A ridge holds `V` near `W`, and a share of
//! the step, chosen for each output on samples the step was not computed from, keeps it from learning noise.
//!
//! *Rounding.* With `C = R^T R`, the squared error of codes is `|R (V - s q)|^2`. Columns are rounded from the last row of
//! `R` to the first, each with the errors made so far added to it: the closed form that GPTQ (arXiv 2210.17323) reaches
//! through the inverse, here without the inverse (Babai's nearest plane). Columns of large variance come first.

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, Axis, s};
use rayon::prelude::*;

use super::normal::Centred;
use super::pairs::{self, Mates};

/// Output channels rounded side by side, with all their scales: few enough that their weights stay in the cache.
const LANES: usize = 16;
/// Columns of the input whose errors are carried on together, as one product of matrices.
const BLOCK: usize = if cfg!(test) { 8 } else { 64 };
/// Weights refitted to what a layer really reads.
#[derive(Clone, Debug)]
pub struct Refit {
    /// `outs x ins`, row-major.
    pub weights: Vec<f64>,
    /// Mean share of the step that was taken; 0 where the input never varies.
    pub share: f64,
    /// Mean squared error at the output, summed over outputs: before, and after it, on samples that it does not come from.
    pub before: f64,
    pub after: f64,
}

/// Refits the weights `w` (`outs x ins`). `halves` are the sums over two disjoint sets of samples: each judges how far to
/// follow the step computed from the other, and the step taken is the mean of the two.
///
/// (Their mean is as good as the step from all samples, for two systems in place of three: with `p` inputs and `n` rows the
/// error of a fit exceeds the least one by about `p / (n - p)`, of the mean of two halves by half of `p / (n / 2 - p)`.)
pub fn refit(halves: [&Centred; 2], w: &[f64], ridge: f64) -> Refit {
    let [a, b] = halves;
    let [da, db] = [a, b].map(|c| c.residual(w));
    let before = 0.5 * (a.error_with(w, &da) + b.error_with(w, &db));
    let (Some(sa), Some(sb)) = (a.step(&da, ridge), b.step(&db, ridge)) else {
        return Refit { weights: w.to_vec(), share: 0.0, before, after: before };
    };
    let mut after = before;
    let share: Vec<f64> = (b.gain(&db, &sa).into_iter().zip(a.gain(&da, &sb)))
        .map(|((p, q), (r, s))| {
            let share = if q + s > 0.0 { ((p + r) / (q + s)).clamp(0.0, 1.0) } else { 0.0 };
            after -= share * (p + r) - 0.5 * share * share * (q + s);
            share
        })
        .collect();
    let n = a.ins.max(1);
    let steps = sa.iter().zip(&sb).enumerate();
    let weights = w.iter().zip(steps).map(|(w, (i, (a, b)))| w + 0.5 * share[i / n] * (a + b)).collect();
    Refit { weights, share: share.iter().sum::<f64>() / share.len().max(1) as f64, before, after }
}

/// Codes of a weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Rounded {
    /// One an output channel.
    pub scales: Vec<f32>,
    /// `outs x ins`, row-major.
    pub codes: Vec<i8>,
    /// Squared error at the output, summed over output channels, a row.
    pub error: f64,
}

/// How codes are searched.
#[derive(Clone, Copy, Debug)]
pub struct CodeSearch<'a> {
    /// Largest code; the smallest is its negative.
    pub top: i32,
    /// Scales to try, as shares of the one that reaches the largest weight.
    pub clips: &'a [f32],
    /// Smallest scale allowed, one per output channel.
    pub least: &'a [f32],
    /// Share of the mean variance added to every variance.
    pub damp: f64,
    /// Weights that must not saturate together, if any must not: a code is then held to what its neighbours leave it, and
    /// the error goes into the weights that are rounded later, like any other.
    pub mates: Option<&'a Mates>,
}

/// Rounds weights `v` (`outs x ins`) for inputs of covariance `c.xx`; `None` if the input never varies.
pub fn round(c: &Centred, v: &[f64], how: &CodeSearch<'_>) -> Option<Rounded> {
    let n = c.ins;
    let mut order: Vec<usize> = (0..n).collect();
    // The last is rounded first.
    order.sort_by(|a, b| c.xx[a * n + a].total_cmp(&c.xx[b * n + b]).then(a.cmp(b)));
    let l = c.factor(Some(&order), how.damp)?;
    // Row k: how an error in column k moves the columns rounded after it.
    let diag: Vec<f64> = l.diagonal();
    let mut pull = Array2::<f32>::zeros((n, n));
    for (k, mut row) in pull.outer_iter_mut().enumerate() {
        for (j, d) in diag[..k].iter().enumerate() {
            row[j] = (l.at(k, j) / d) as f32;
        }
    }
    let power: Vec<f32> = diag.iter().map(|d| (d * d) as f32).collect();
    let earlier = rounded_before(&order, how.mates);
    let parts: Vec<Vec<Lane>> = (0..c.outs.div_ceil(LANES))
        .into_par_iter()
        .map(|p| {
            let outs: Vec<usize> = (p * LANES..((p + 1) * LANES).min(c.outs)).collect();
            lanes(&outs, v, &order, (&pull, &power, &earlier), how)
        })
        .collect();
    let mut out = Rounded { scales: Vec::new(), codes: vec![0; c.outs * n], error: 0.0 };
    for (o, lane) in parts.into_iter().flatten().enumerate() {
        out.scales.push(lane.scale);
        out.error += lane.error;
        for (k, q) in lane.codes.iter().enumerate() {
            out.codes[o * n + order[k]] = *q;
        }
    }
    Some(out)
}

/// The best codes of one output channel so far, in rounding order.
struct Lane {
    scale: f32,
    error: f64,
    codes: Vec<i8>,
}

/// `1.5 * 2^23`: added and taken away again, it rounds a float within `±2^22` to a whole number, half to even.
const MAGIC: f32 = 12_582_912.0;

/// For each column in rounding order, those of its neighbours that have their codes when it is rounded.
fn rounded_before(order: &[usize], mates: Option<&Mates>) -> Vec<Vec<usize>> {
    let Some(mates) = mates else { return vec![Vec::new(); order.len()] };
    let mut place = vec![0; order.len()];
    order.iter().enumerate().for_each(|(k, i)| place[*i] = k);
    let of = |(k, i): (usize, &usize)| mates.of(*i).iter().map(|m| place[*m]).filter(|m| *m > k).collect();
    order.iter().enumerate().map(of).collect()
}

fn lanes(
    outs: &[usize],
    v: &[f64],
    order: &[usize],
    (pull, power, earlier): (&Array2<f32>, &[f32], &[Vec<usize>]),
    how: &CodeSearch<'_>,
) -> Vec<Lane> {
    let (n, clips) = (order.len(), how.clips.len());
    let top = how.top as f32;
    // One column for each scale of each output.
    let columns = outs.len() * clips;
    let mut start = Array2::<f32>::zeros((n, columns));
    for (mut row, i) in start.outer_iter_mut().zip(order) {
        for (c, to) in row.iter_mut().enumerate() {
            *to = v[outs[c / clips] * n + i] as f32;
        }
    }
    let mut reach = vec![0f32; columns];
    for row in start.outer_iter() {
        reach.iter_mut().zip(row).for_each(|(r, x)| *r = r.max(x.abs()));
    }
    let scale: Vec<f32> =
        (0..columns).map(|c| (reach[c] / top * how.clips[c % clips]).max(how.least[outs[c / clips]])).collect();
    let mut codes = Array2::<i8>::zeros((n, columns));
    let mut error = vec![0f64; columns];
    let mut w = start.clone();
    let mut carried = Array2::<f32>::zeros((BLOCK, columns));
    let (mut lo, mut hi) = (vec![-top; columns], vec![top; columns]);
    for to in (0..n).rev().step_by(BLOCK).map(|k| k + 1) {
        let from = to.saturating_sub(BLOCK);
        for k in (from..to).rev() {
            lo.fill(-top);
            hi.fill(top);
            for m in &earlier[k] {
                for ((q, lo), hi) in codes.row(*m).iter().zip(&mut lo).zip(&mut hi) {
                    let (l, h) = pairs::range(i32::from(*q));
                    (*lo, *hi) = (lo.max(l as f32), hi.min(h as f32));
                }
            }
            let (mut before, here) = w.view_mut().split_at(Axis(0), k);
            let (here, start, mut codes) = (here.row(0), start.row(k), codes.row_mut(k));
            let mut carried = carried.row_mut(k - from);
            let rows = (here.as_slice(), start.as_slice(), codes.as_slice_mut(), carried.as_slice_mut());
            let (Some(here), Some(start), Some(codes), Some(carried)) = rows else { unreachable!("row-major") };
            for c in 0..columns {
                let q = ((here[c] / scale[c]).clamp(lo[c], hi[c]) + MAGIC) - MAGIC;
                let off = here[c] - q * scale[c];
                error[c] += f64::from(power[k] * off * off);
                codes[c] = q as i8;
                // What is carried on is the error against the weight as it was, not against the moved target.
                carried[c] = start[c] - q * scale[c];
            }
            for j in from..k {
                let (p, mut row) = (pull[[k, j]], before.row_mut(j));
                let row = row.as_slice_mut().expect("row-major");
                row.iter_mut().zip(&*carried).for_each(|(w, c)| *w += p * c);
            }
        }
        // The columns in front of the block take what the whole block carries on.
        let moves = pull.slice(s![from..to, ..from]);
        general_mat_mul(1.0, &moves.t(), &carried.slice(s![..to - from, ..]), 1.0, &mut w.slice_mut(s![..from, ..]));
    }
    let best = |o: usize| {
        let all = o * clips..(o + 1) * clips;
        let c = all.reduce(|a, b| if error[b] < error[a] { b } else { a }).expect("a scale at least");
        Lane { scale: scale[c], error: error[c], codes: codes.column(c).to_vec() }
    };
    (0..outs.len()).map(best).collect()
}

#[cfg(test)]
mod tests {
    use super::super::normal::Normal;
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    const N: usize = 24;
    const OUTS: usize = 19;

    /// Rows of correlated inputs: every channel is mostly a mixture of five.
    fn inputs(rng: &mut ChaCha8Rng, mix: &[f32], rows: usize) -> Vec<f32> {
        let mut x = Vec::with_capacity(rows * N);
        for _ in 0..rows {
            let z: Vec<f32> = (0..5).map(|_| rng.random_range(-1.0..1.0)).collect();
            for i in 0..N {
                let m: f32 = (0..5).map(|k| mix[i * 5 + k] * z[k]).sum();
                x.push(m + rng.random_range(-0.1..0.1) + 0.5);
            }
        }
        x
    }

    fn times(w: &[f64], x: &[f32]) -> Vec<f32> {
        let row = |r: &[f32], o: usize| (0..N).map(|i| w[o * N + i] * r[i] as f64).sum::<f64>() as f32;
        x.chunks(N).flat_map(|r| (0..OUTS).map(|o| row(r, o)).collect::<Vec<_>>()).collect()
    }

    fn setting(seed: u64) -> (ChaCha8Rng, Vec<f32>, Vec<f64>) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mix = (0..N * 5).map(|_| rng.random_range(-1.0f32..1.0)).collect();
        let w = (0..N * OUTS).map(|_| rng.random_range(-1.0f64..1.0)).collect();
        (rng, mix, w)
    }

    fn sums(x: &[f32], y: &[f32]) -> Normal {
        let mut s = Normal::new(N, OUTS);
        s.add(x, y, &vec![1.0; x.len() / N]);
        s.end();
        s
    }

    fn real(r: &Rounded) -> Vec<f64> {
        r.codes.iter().enumerate().map(|(i, q)| *q as f64 * r.scales[i / N] as f64).collect()
    }

    #[test]
    fn compensated_codes_beat_the_nearest_ones() {
        let (mut rng, mix, w) = setting(1);
        let x = inputs(&mut rng, &mix, 400);
        let c = sums(&x, &times(&w, &x)).centred();
        let least = [0.0; OUTS];
        let how = CodeSearch { top: 7, clips: &[1.0], least: &least, damp: 1e-6, mates: None };
        let r = round(&c, &w, &how).unwrap();
        let nearest: Vec<f64> = w
            .iter()
            .enumerate()
            .map(|(i, w)| {
                let s = r.scales[i / N] as f64;
                (w / s).round_ties_even().clamp(-7.0, 7.0) * s
            })
            .collect();
        let (a, b) = (c.error(&real(&r)), c.error(&nearest));
        assert!(a < 0.5 * b, "compensated {a}, nearest {b}");
        // What it says of itself is what it does.
        assert!((r.error - a).abs() < 0.02 * a, "{} {a}", r.error);
        let wide = CodeSearch { clips: &[1.0, 0.9, 0.8, 0.7], ..how };
        assert!(round(&c, &w, &wide).unwrap().error <= r.error);
    }

    #[test]
    fn rows_count_by_their_weight() {
        let (mut rng, mix, w) = setting(6);
        let x = inputs(&mut rng, &mix, 30);
        let y = times(&w, &x);
        // A row that counts three times is a row given three times; one that counts nothing is none.
        let weights: Vec<f64> = (0..30).map(|i| (i % 4) as f64).collect();
        let mut weighted = Normal::new(N, OUTS);
        weighted.add(&x, &y, &weights);
        weighted.end();
        let again =
            |v: &[f32], n: usize| -> Vec<f32> { v.chunks(n).enumerate().flat_map(|(i, r)| r.repeat(i % 4)).collect() };
        let (a, b) = (weighted.centred(), sums(&again(&x, N), &again(&y, OUTS)).centred());
        let near = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4 * (1.0 + a.abs()));
        assert!(near(&a.xx, &b.xx) && near(&a.yx, &b.yx) && near(&a.yy, &b.yy));
        assert!(near(&a.mean_x, &b.mean_x) && near(&a.mean_y, &b.mean_y));
    }

    #[test]
    fn independent_inputs_leave_nothing_to_compensate() {
        let (_, _, w) = setting(2);
        let mut c = sums(&[0.0; N * 2], &[0.0; OUTS * 2]).centred();
        (0..N).for_each(|i| c.xx[i * N + i] = 1.0 + i as f64);
        let least = [0.0; OUTS];
        let r = round(&c, &w, &CodeSearch { top: 127, clips: &[1.0], least: &least, damp: 0.0, mates: None }).unwrap();
        for (i, q) in r.codes.iter().enumerate() {
            assert_eq!(*q, (w[i] as f32 / r.scales[i / N]).round_ties_even() as i8);
        }
    }

    #[test]
    fn scales_and_codes_keep_to_their_limits() {
        let (mut rng, mix, w) = setting(3);
        let x = inputs(&mut rng, &mix, 100);
        let c = sums(&x, &times(&w, &x)).centred();
        let least: Vec<f32> = (0..OUTS).map(|o| o as f32 * 0.05).collect();
        let r =
            round(&c, &w, &CodeSearch { top: 7, clips: &[1.0, 0.5], least: &least, damp: 0.001, mates: None }).unwrap();
        assert!(r.codes.iter().all(|q| (-7..=7).contains(q)));
        assert!(r.scales.iter().zip(&least).all(|(s, l)| s >= l));
        let dead = sums(&[0.0; N], &[0.0; OUTS]).centred();
        assert_eq!(
            round(&dead, &w, &CodeSearch { top: 7, clips: &[1.0], least: &least, damp: 0.001, mates: None }),
            None
        );
    }

    #[test]
    fn a_refit_filters_noise_and_leaves_a_clean_layer_alone() {
        let (mut rng, mix, w) = setting(4);
        let mut noisy = |rows| {
            let x = inputs(&mut rng, &mix, rows);
            let y = times(&w, &x);
            let seen: Vec<f32> = x.iter().map(|v| v + rng.random_range(-0.3..0.3)).collect();
            (x, seen, y)
        };
        let (a, b, fresh) = (noisy(500), noisy(500), noisy(2000));
        let judge = sums(&fresh.1, &fresh.2).centred();
        let halves = |x: [&[f32]; 2]| [sums(x[0], &a.2).centred(), sums(x[1], &b.2).centred()];
        let noisy = halves([&a.1, &b.1]);
        let r = refit([&noisy[0], &noisy[1]], &w, 1e-3);
        let (before, after) = (judge.error(&w), judge.error(&r.weights));
        assert!(after < 0.6 * before, "{after} {before}");
        assert!(r.share > 0.8);
        // What it says of itself is what fresh samples say.
        assert!((r.before / before - 1.0).abs() < 0.1, "{} {before}", r.before);
        assert!((r.after / after - 1.0).abs() < 0.1, "{} {after}", r.after);
        let clean = halves([&a.0, &b.0]);
        let v = refit([&clean[0], &clean[1]], &w, 1e-3).weights;
        assert!(v.iter().zip(&w).all(|(v, w)| (v - w).abs() < 1e-3));
    }

    #[test]
    fn rows_that_hardly_differ_keep_their_digits() {
        // A class token before training: a long vector that all rows have, and a thousandth of it that is their own.
        let (mut rng, mix, w) = setting(7);
        let mut near = |rows| {
            let x: Vec<f32> =
                inputs(&mut rng, &mix, rows).iter().enumerate().map(|(i, v)| (i % N) as f32 + v * 1e-3).collect();
            let y = times(&w, &x);
            (x, y)
        };
        let (a, b, fresh) = (near(9), near(9), near(2000));
        let v = refit([&sums(&a.0, &a.1).centred(), &sums(&b.0, &b.1).centred()], &w, 1e-3).weights;
        let far = v.iter().zip(&w).map(|(v, w)| (v - w).abs()).fold(0.0, f64::max);
        assert!(far < 0.1, "weights moved by {far}");
        let c = sums(&fresh.0, &fresh.1).centred();
        assert!((0.0..1e-6 * c.yy.iter().sum::<f64>()).contains(&c.error(&w).abs()), "{}", c.error(&w));
    }

    #[test]
    fn sums_in_parts_are_the_sums_of_all() {
        let (mut rng, mix, w) = setting(8);
        let x = inputs(&mut rng, &mix, 40);
        let y = times(&w, &x);
        let parts = sums(&x[..N * 13], &y[..OUTS * 13]).plus(&sums(&x[N * 13..], &y[OUTS * 13..]));
        let (a, b) = (parts.plus(&Normal::new(N, OUTS)).centred(), sums(&x, &y).centred());
        let near = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6 * (1.0 + a.abs()));
        assert!(near(&a.xx, &b.xx) && near(&a.yx, &b.yx) && near(&a.yy, &b.yy));
        assert!(near(&a.mean_x, &b.mean_x) && near(&a.mean_y, &b.mean_y));
    }

    #[test]
    fn a_refit_on_few_rows_does_no_harm() {
        let (mut rng, mix, w) = setting(5);
        let mut noisy = |rows| {
            let x = inputs(&mut rng, &mix, rows);
            let y = times(&w, &x);
            (x.iter().map(|v| v + rng.random_range(-0.05..0.05)).collect::<Vec<f32>>(), y)
        };
        let (a, b, fresh) = (noisy(13), noisy(13), noisy(2000));
        let judge = sums(&fresh.0, &fresh.1).centred();
        let v = refit([&sums(&a.0, &a.1).centred(), &sums(&b.0, &b.1).centred()], &w, 1e-3).weights;
        assert!(judge.error(&v) < 1.05 * judge.error(&w), "{} {}", judge.error(&v), judge.error(&w));
    }

    #[test]
    fn pooled_moments_keep_each_layer_about_its_own_mean() {
        let of = |shift: f32| {
            let mut n = Normal::new(1, 1);
            n.add(&[1.0 + shift, 3.0 + shift], &[2.0, 6.0], &[1.0, 1.0]);
            n.end();
            n.centred()
        };
        let c = Centred::pooled(vec![of(0.0), of(100.0)]).unwrap();
        // Variances do not see the shift; of one sum over all rows they would.
        assert_eq!((c.xx[0], c.yx[0], c.yy[0]), (1.0, 2.0, 4.0));
        assert!((c.mean_x[0] - 52.0).abs() < 1e-9);
        assert!(Centred::pooled(Vec::new()).is_none());
    }
}
