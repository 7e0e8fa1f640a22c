//! Weights rounded with their input in mind, so that what one code loses others make up for.
//!
//! Minimised is the squared error that codes add at a linear layer's output, `sum |(W - s q) x|^2`, where `x` is what the
//! layer reads through its input's codes. [`RowSums`](super::row_sums::RowSums) holds the sums that this needs; the free bias
//! takes the means, so that everything else is about deviations from them.
//!
//! With their covariance `C = R^T R`, that error is `|R (W - s q)|^2`. Columns are rounded from the last row of `R` to the
//! first, each with the errors made so far added to it: the closed form that GPTQ (arXiv 2210.17323) reaches through the
//! inverse, here without the inverse (Babai's nearest plane). Columns of large variance come first. Codes and scales are
//! then improved one at a time (`descent`).

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayViewMut1, s};
use rayon::prelude::*;

use super::descent::{Row, descend};
use super::pairs::{self, Mates};
use super::row_sums::Centred;
use super::wide::wide;

/// Output channels times scales that are rounded side by side: few enough that their weights stay in the cache.
const LANES: usize = 128;
/// Columns of the input whose errors are carried on together, as one product of matrices.
const BLOCK: usize = if cfg!(test) { 8 } else { 64 };
/// Scales that an output is rounded with: of all that are to be tried, those of the least error to expect.
const KEPT: usize = 2;
/// Up to so many outputs, all scales are tried on each. That hardly takes time.
const FEW: usize = 64;
/// Output channels that are improved together: enough for a product of matrices.
const TOGETHER: usize = 32;

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
    /// Weights that must not saturate together, if any must not: a code is then held to what its neighbours leave it, and
    /// the error goes into the weights that are rounded later, like any other.
    pub mates: Option<&'a Mates>,
}

/// Rounds weights `w` (`outs x ins`) for inputs of covariance `c.xx`; `None` if the input never varies.
///
/// What samples say of covariances is not all true of others: see [`Centred::regularise`].
pub fn round(c: &Centred, w: &[f32], how: &CodeSearch<'_>) -> Option<Rounded> {
    let n = c.ins;
    let mut order: Vec<usize> = (0..n).collect();
    // The last is rounded first.
    order.sort_by(|a, b| c.xx[a * n + a].total_cmp(&c.xx[b * n + b]).then(a.cmp(b)));
    let l = c.factor(&order)?;
    let diag: Vec<f64> = l.diagonal();
    let mut pull = Array2::<f32>::zeros((n, n));
    for (k, mut row) in pull.outer_iter_mut().enumerate() {
        for (j, d) in diag[..k].iter().enumerate() {
            row[j] = (l.at(k, j) / d) as f32;
        }
    }
    let power: Vec<f32> = diag.iter().map(|d| (d * d) as f32).collect();
    let columns = Columns { order: &order, pull, power, earlier: rounded_before(&order, how.mates) };
    let kept = if c.outs <= FEW { how.clips.len() } else { how.clips.len().min(KEPT) };
    let outs: Vec<usize> = (0..c.outs).collect();
    let lanes = |outs: &[usize]| {
        let rows: Vec<&[f32]> = outs.iter().map(|o| &w[o * n..][..n]).collect();
        let scales = rows.iter().zip(outs).flat_map(|(row, o)| how.scales(row, *o)).collect();
        let grid = columns.likeliest(&rows, Grid::new(scales, how), kept);
        outs.iter().copied().zip(columns.rounded(&rows, grid)).collect::<Vec<_>>()
    };
    let found = outs.par_chunks((LANES / kept.max(1)).max(1)).flat_map_iter(lanes).collect();
    let done = improved(c, w, &order, found, how);
    let mut out = Rounded { scales: Vec::with_capacity(c.outs), codes: Vec::with_capacity(c.outs * n), error: 0.0 };
    for (row, error) in done {
        out.scales.push(row.scale);
        out.codes.extend(row.codes);
        out.error += error;
    }
    Some(out)
}

/// Each output channel with its codes in the order of the inputs, improved one at a time, and its error.
fn improved<'w>(
    c: &Centred,
    w: &'w [f32],
    order: &[usize],
    found: Vec<(usize, Lane)>,
    how: &CodeSearch<'_>,
) -> Vec<(Row<'w>, f64)> {
    let n = c.ins;
    let of_inputs = Array2::from_shape_fn((n, n), |(i, j)| c.xx[i * n + j] as f32);
    let row = |(o, lane): &(usize, Lane)| {
        let mut codes = vec![0; n];
        order.iter().zip(&lane.codes).for_each(|(i, q)| codes[*i] = *q);
        Row { weights: &w[o * n..][..n], scale: lane.scale, codes, least: how.least[*o] }
    };
    let part = |part: &[(usize, Lane)]| {
        let mut rows: Vec<Row<'w>> = part.iter().map(row).collect();
        let errors = descend(&of_inputs, &mut rows, how.top, how.mates);
        rows.into_iter().zip(errors).collect::<Vec<_>>()
    };
    found.par_chunks(TOGETHER).flat_map_iter(part).collect()
}

/// Codes of one output channel.
struct Lane {
    scale: f32,
    /// In rounding order.
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

impl CodeSearch<'_> {
    /// The scales to try for output `o`.
    fn scales(&self, weights: &[f32], o: usize) -> impl Iterator<Item = f32> {
        let reach = weights.iter().fold(0f32, |r, x| r.max(x.abs())) / self.top as f32;
        self.clips.iter().map(move |c| (reach * c).max(self.least[o]))
    }
}

/// What codes may be: for each scale of each output, the scale, and the least and largest code.
struct Grid {
    /// All of the first output, then of the next.
    scale: Vec<f32>,
    lo: Vec<f32>,
    hi: Vec<f32>,
    top: f32,
}

impl Grid {
    fn new(scale: Vec<f32>, how: &CodeSearch<'_>) -> Grid {
        let (n, top) = (scale.len(), how.top as f32);
        Grid { scale, lo: vec![-top; n], hi: vec![top; n], top }
    }
}

/// The columns of a layer's weights in rounding order, the last first.
struct Columns<'a> {
    order: &'a [usize],
    /// Row k: how an error in column k moves the columns rounded after it.
    pull: Array2<f32>,
    /// What a squared error in each column costs at the output, if later ones make up for what they can.
    power: Vec<f32>,
    /// For each column, those of its neighbours that have their codes when it is rounded.
    earlier: Vec<Vec<usize>>,
}

impl Columns<'_> {
    /// Narrows codes of column `k` down to what those of its neighbours leave it.
    fn narrow(&self, k: usize, codes: &[i8], grid: &mut Grid) {
        let columns = grid.scale.len();
        grid.lo.fill(-grid.top);
        grid.hi.fill(grid.top);
        for m in &self.earlier[k] {
            for ((q, lo), hi) in codes[m * columns..][..columns].iter().zip(&mut grid.lo).zip(&mut grid.hi) {
                let (l, h) = pairs::range(i32::from(*q));
                (*lo, *hi) = (lo.max(l as f32), hi.min(h as f32));
            }
        }
    }

    /// Column `k` of the weights, once for each scale of each output.
    fn spread(&self, rows: &[&[f32]], k: usize, to: &mut [f32]) {
        let scales = to.len() / rows.len();
        to.chunks_exact_mut(scales).zip(rows).for_each(|(to, row)| to.fill(row[self.order[k]]));
    }

    /// Of the scales of each output the `most` of least error to expect: a code that reaches its weight is off by anything up
    /// to half a step, and one that its range or a neighbour holds back by what is missing.
    fn likeliest(&self, rows: &[&[f32]], mut grid: Grid, most: usize) -> Grid {
        let (n, columns) = (self.order.len(), grid.scale.len());
        let each = columns / rows.len().max(1);
        if each <= most {
            return grid;
        }
        let (mut codes, mut start) = (vec![0i8; n * columns], vec![0f32; columns]);
        let mut error = vec![0f64; columns];
        for k in (0..n).rev() {
            self.narrow(k, &codes, &mut grid);
            self.spread(rows, k, &mut start);
            expect_row(&start, &grid, self.power[k], &mut codes[k * columns..][..columns], &mut error);
        }
        let kept = |o: usize| {
            let mut all: Vec<usize> = (o * each..(o + 1) * each).collect();
            all.sort_by(|a, b| error[*a].total_cmp(&error[*b]).then(a.cmp(b)));
            all.truncate(most);
            all
        };
        let kept: Vec<usize> = (0..rows.len()).flat_map(kept).collect();
        let of = |v: &[f32]| kept.iter().map(|c| v[*c]).collect();
        Grid { scale: of(&grid.scale), lo: of(&grid.lo), hi: of(&grid.hi), top: grid.top }
    }

    /// Each output with the best of its scales.
    fn rounded(&self, rows: &[&[f32]], mut grid: Grid) -> Vec<Lane> {
        let (n, columns) = (self.order.len(), grid.scale.len());
        let each = columns / rows.len().max(1);
        let pulls = self.pull.as_slice().expect("row-major");
        let mut codes = vec![0i8; n * columns];
        let mut error = vec![0f64; columns];
        let mut carried = Array2::<f32>::zeros((n, columns));
        let mut block = Array2::<f32>::zeros((BLOCK, columns));
        let mut start = vec![0f32; columns];
        for to in (0..n).rev().step_by(BLOCK).map(|k| k + 1) {
            let from = to.saturating_sub(BLOCK);
            let mut here = block.slice_mut(s![..to - from, ..]);
            here.outer_iter_mut().enumerate().for_each(|(k, mut row)| self.spread(rows, from + k, slice(&mut row)));
            // What all columns rounded so far carry on to these.
            let moves = self.pull.slice(s![to.., from..to]);
            general_mat_mul(1.0, &moves.t(), &carried.slice(s![to.., ..]), 1.0, &mut here);
            let here = here.as_slice_mut().expect("row-major");
            for k in (from..to).rev() {
                self.narrow(k, &codes, &mut grid);
                self.spread(rows, k, &mut start);
                let (before, target) = here[..(k - from + 1) * columns].split_at_mut((k - from) * columns);
                let mut carried = carried.row_mut(k);
                let carried = slice(&mut carried);
                let codes = &mut codes[k * columns..][..columns];
                round_row(target, &start, &grid, self.power[k], codes, carried, &mut error);
                carry_on(carried, &pulls[k * n + from..k * n + k], before);
            }
        }
        let best = |o: usize| {
            let all = o * each..(o + 1) * each;
            let c = all.reduce(|a, b| if error[b] < error[a] { b } else { a }).expect("a scale at least");
            Lane { scale: grid.scale[c], codes: codes.iter().skip(c).step_by(columns).copied().collect() }
        };
        (0..rows.len()).map(best).collect()
    }
}

/// The numbers of a row of a matrix.
fn slice<'r>(row: &'r mut ArrayViewMut1<'_, f32>) -> &'r mut [f32] {
    row.as_slice_mut().expect("row-major")
}

wide! {
    /// Rounds one column of the input, for each scale of each output: `target` is what it should be with all that was
    /// carried on to it, `start` what it was.
    fn round_row(
        target: &[f32],
        start: &[f32],
        grid: &Grid,
        power: f32,
        codes: &mut [i8],
        carried: &mut [f32],
        error: &mut [f64],
    ) {
        let n = target.len();
        let (start, scale, lo, hi) = (&start[..n], &grid.scale[..n], &grid.lo[..n], &grid.hi[..n]);
        let (codes, carried, error) = (&mut codes[..n], &mut carried[..n], &mut error[..n]);
        for c in 0..n {
            let q = ((target[c] / scale[c]).max(lo[c]).min(hi[c]) + MAGIC) - MAGIC;
            let off = target[c] - q * scale[c];
            error[c] += f64::from(power * off * off);
            codes[c] = q as i8;
            // What is carried on is the error against the weight as it was, not against the moved target.
            carried[c] = start[c] - q * scale[c];
        }
    }

    /// Rounds one column of the input to the nearest codes, for each scale of each output, and adds the error to expect.
    fn expect_row(start: &[f32], grid: &Grid, power: f32, codes: &mut [i8], error: &mut [f64]) {
        let n = start.len();
        let (scale, lo, hi) = (&grid.scale[..n], &grid.lo[..n], &grid.hi[..n]);
        let (codes, error) = (&mut codes[..n], &mut error[..n]);
        for c in 0..n {
            let q = ((start[c] / scale[c]).max(lo[c]).min(hi[c]) + MAGIC) - MAGIC;
            let off = start[c] - q * scale[c];
            // A step that is as likely anywhere between two codes: a twelfth of its square.
            let step = scale[c] * scale[c];
            let square = if off * off > 0.25 * step { off * off } else { step / 12.0 };
            error[c] += f64::from(power * square);
            codes[c] = q as i8;
        }
    }

    /// Adds `carried`, times one factor each, to every row of `rows`.
    fn carry_on(carried: &[f32], factors: &[f32], rows: &mut [f32]) {
        for (row, p) in rows.chunks_exact_mut(carried.len()).zip(factors) {
            row.iter_mut().zip(carried).for_each(|(w, c)| *w += p * c);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::row_sums::{LayerRows, RowSums};
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

    fn times(w: &[f32], x: &[f32]) -> Vec<f32> {
        let row = |r: &[f32], o: usize| (0..N).map(|i| f64::from(w[o * N + i]) * f64::from(r[i])).sum::<f64>() as f32;
        x.chunks(N).flat_map(|r| (0..OUTS).map(|o| row(r, o)).collect::<Vec<_>>()).collect()
    }

    fn setting(seed: u64) -> (ChaCha8Rng, Vec<f32>, Vec<f32>) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mix = (0..N * 5).map(|_| rng.random_range(-1.0f32..1.0)).collect();
        let w = (0..N * OUTS).map(|_| rng.random_range(-1.0f32..1.0)).collect();
        (rng, mix, w)
    }

    /// Sums over rows of which the codes lose `lost`.
    fn sums_of(x: &[f32], lost: &[f32], y: &[f32]) -> RowSums {
        let mut s = RowSums::new(N, OUTS);
        let weights = vec![1.0; x.len() / N];
        s.add(&LayerRows { x: x.to_vec(), lost: lost.to_vec(), y: y.to_vec(), weights });
        s.end();
        s
    }

    fn sums(x: &[f32], y: &[f32]) -> RowSums {
        sums_of(x, &vec![0.0; x.len()], y)
    }

    /// How far codes are from the weights.
    fn off(r: &Rounded, w: &[f32]) -> Vec<f64> {
        let real = r.codes.iter().enumerate().map(|(i, q)| f64::from(*q) * f64::from(r.scales[i / N]));
        real.zip(w).map(|(r, w)| r - f64::from(*w)).collect()
    }

    #[test]
    fn compensated_codes_beat_the_nearest_ones() {
        let (mut rng, mix, w) = setting(1);
        let x = inputs(&mut rng, &mix, 400);
        let c = sums(&x, &times(&w, &x)).centred();
        let least = [0.0; OUTS];
        let how = CodeSearch { top: 7, clips: &[1.0], least: &least, mates: None };
        let r = round(&c, &w, &how).unwrap();
        let mut nearest = r.clone();
        for (i, (q, w)) in nearest.codes.iter_mut().zip(&w).enumerate() {
            *q = (w / r.scales[i / N]).round_ties_even().clamp(-7.0, 7.0) as i8;
        }
        let (a, b) = (c.error(&off(&r, &w)), c.error(&off(&nearest, &w)));
        assert!(a < 0.5 * b, "compensated {a}, nearest {b}");
        // What it says of itself is what it does.
        assert!((r.error - a).abs() < 0.02 * a, "{} {a}", r.error);
        let wide = CodeSearch { clips: &[1.0, 0.9, 0.8, 0.7], ..how };
        assert!(round(&c, &w, &wide).unwrap().error <= r.error);
    }

    #[test]
    fn the_error_by_the_samples_is_told_from_that_by_the_regularised_covariance() {
        let (mut rng, mix, w) = setting(11);
        let x = inputs(&mut rng, &mix, 300);
        let plain = sums(&x, &times(&w, &x)).centred();
        let mut c = plain.clone();
        let how = c.regularise(0.2, 0.01);
        let least = [0.0; OUTS];
        let r = round(&c, &w, &CodeSearch { top: 7, clips: &[1.0], least: &least, mates: None }).unwrap();
        let (off, by_samples) = (off(&r, &w), plain.error(&off(&r, &w)));
        assert!((c.error(&off) / r.error - 1.0).abs() < 1e-3, "{} {}", c.error(&off), r.error);
        let undone = how.undone(r.error, &c, off.iter().copied());
        assert!((undone / by_samples - 1.0).abs() < 1e-2, "{undone} {by_samples}");
        assert!((r.error / by_samples - 1.0).abs() > 0.05);
    }

    #[test]
    fn the_likeliest_scales_are_nearly_as_good_as_all() {
        let (mut rng, mix, _) = setting(9);
        let outs = 4 * FEW;
        let mut w: Vec<f32> = (0..N * outs).map(|_| rng.random_range(-1.0f32..1.0)).collect();
        // Half of the outputs have one weight far out, anywhere.
        for o in (0..outs).filter(|o| o % 16 < 8) {
            w[o * N + rng.random_range(0..N)] = 4.0;
        }
        let x = inputs(&mut rng, &mix, 400);
        let own = sums(&x, &vec![0.0; x.len() / N * OUTS]).centred();
        let (whole, part) = (Centred { outs, ..own.clone() }, Centred { outs: FEW, ..own });
        let (least, mates) = (vec![0.0; outs], Mates::of_row(N));
        let clips = [2.0, 1.6, 1.25, 1.0, 0.95, 0.9, 0.85, 0.8];
        for (top, mates) in [(7, None), (127, None), (127, Some(&mates))] {
            let how = CodeSearch { top, clips: &clips, least: &least, mates };
            let found = round(&whole, &w, &how).unwrap().error;
            let all: f64 = w.chunks(N * FEW).map(|w| round(&part, w, &how).unwrap().error).sum();
            // Of so few columns chance decides much: the best of eight draws is better than that of two.
            assert!(found >= all * 0.999 && found < all * 1.3, "{top}: {found} {all}");
        }
    }

    #[test]
    fn rows_count_by_their_weight() {
        let (mut rng, mix, w) = setting(6);
        let x = inputs(&mut rng, &mix, 30);
        let y = times(&w, &x);
        // A row that counts three times is a row given three times; one that counts nothing is none.
        let weights: Vec<f64> = (0..30).map(|i| (i % 4) as f64).collect();
        let mut weighted = RowSums::new(N, OUTS);
        let lost: Vec<f32> = x.iter().map(|v| v * 0.01).collect();
        weighted.add(&LayerRows { x: x.clone(), lost: lost.clone(), y: y.clone(), weights });
        weighted.end();
        let again =
            |v: &[f32], n: usize| -> Vec<f32> { v.chunks(n).enumerate().flat_map(|(i, r)| r.repeat(i % 4)).collect() };
        let (a, b) = (weighted.centred(), sums_of(&again(&x, N), &again(&lost, N), &again(&y, OUTS)).centred());
        let near = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4 * (1.0 + a.abs()));
        assert!(near(&a.xx, &b.xx) && near(&a.yy, &b.yy));
        assert!(near(&a.mean_x, &b.mean_x) && near(&a.mean_y, &b.mean_y));
        assert!(a.noise(&w) > 0.0 && (a.noise(&w) / b.noise(&w) - 1.0).abs() < 1e-4);
    }

    #[test]
    fn independent_inputs_leave_nothing_to_compensate() {
        let (_, _, w) = setting(2);
        let mut c = sums(&[0.0; N * 2], &[0.0; OUTS * 2]).centred();
        (0..N).for_each(|i| c.xx[i * N + i] = 1.0 + i as f64);
        let least = [0.0; OUTS];
        let r = round(&c, &w, &CodeSearch { top: 127, clips: &[1.0], least: &least, mates: None }).unwrap();
        for (i, q) in r.codes.iter().enumerate() {
            assert_eq!(*q, (w[i] / r.scales[i / N]).round_ties_even() as i8);
        }
    }

    #[test]
    fn scales_and_codes_keep_to_their_limits() {
        let (mut rng, mix, w) = setting(3);
        let x = inputs(&mut rng, &mix, 100);
        let c = sums(&x, &times(&w, &x)).centred();
        let least: Vec<f32> = (0..OUTS).map(|o| o as f32 * 0.05).collect();
        let r = round(&c, &w, &CodeSearch { top: 7, clips: &[1.0, 0.5], least: &least, mates: None }).unwrap();
        assert!(r.codes.iter().all(|q| (-7..=7).contains(q)));
        assert!(r.scales.iter().zip(&least).all(|(s, l)| s >= l));
        let dead = sums(&[0.0; N], &[0.0; OUTS]).centred();
        assert_eq!(round(&dead, &w, &CodeSearch { top: 7, clips: &[1.0], least: &least, mates: None }), None);
    }

    #[test]
    fn noise_of_the_input_is_what_it_makes_at_the_output() {
        let (mut rng, mix, w) = setting(4);
        let x = inputs(&mut rng, &mix, 3000);
        let lost: Vec<f32> = x.iter().map(|_| rng.random_range(-0.3..0.3) + 0.1).collect();
        let seen: Vec<f32> = x.iter().zip(&lost).map(|(x, l)| x - l).collect();
        let (y, z) = (times(&w, &x), times(&w, &seen));
        // About its mean: that goes into the bias.
        let made: Vec<f64> = y.iter().zip(&z).map(|(y, z)| f64::from(y - z)).collect();
        let rows = made.len() / OUTS;
        let mean = |o: usize| made.iter().skip(o).step_by(OUTS).sum::<f64>() / rows as f64;
        let means: Vec<f64> = (0..OUTS).map(mean).collect();
        let made = made.iter().enumerate().map(|(i, d)| (d - means[i % OUTS]).powi(2)).sum::<f64>() / rows as f64;
        let said = sums_of(&seen, &lost, &y).centred().noise(&w);
        assert!((said / made - 1.0).abs() < 0.1, "{said} {made}");
    }

    #[test]
    fn rows_that_hardly_differ_keep_their_digits() {
        // A class token before training: a long vector that all rows have, and a thousandth of it that is their own.
        let (mut rng, mix, w) = setting(7);
        let own = inputs(&mut rng, &mix, 40);
        let near: Vec<f32> = own.iter().enumerate().map(|(i, v)| (i % N) as f32 + v * 1e-3).collect();
        let (c, alone) = (sums(&near, &times(&w, &near)).centred(), sums(&own, &times(&w, &own)).centred());
        let far = c.xx.iter().zip(&alone.xx).map(|(a, b)| (a * 1e6 - b).abs()).fold(0.0, f64::max);
        let most = alone.xx.iter().copied().fold(0.0, f64::max);
        assert!(far < 0.01 * most, "{far} of {most}");
    }

    #[test]
    fn pooled_moments_keep_each_layer_about_its_own_mean() {
        let of = |shift: f32| {
            let mut n = RowSums::new(1, 1);
            n.add(&LayerRows {
                x: vec![1.0 + shift, 3.0 + shift],
                lost: vec![0.0; 2],
                y: vec![2.0, 6.0],
                weights: vec![1.0; 2],
            });
            n.end();
            n.centred()
        };
        let c = Centred::pooled(vec![of(0.0), of(100.0)]).unwrap();
        // Variances do not see the shift; of one sum over all rows they would.
        assert_eq!((c.xx[0], c.yy[0]), (1.0, 4.0));
        assert!((c.mean_x[0] - 52.0).abs() < 1e-9);
        assert!(Centred::pooled(Vec::new()).is_none());
    }
}
