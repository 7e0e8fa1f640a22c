//! Sums over rows of what a linear layer reads and gives: the normal equations of its weights.
//!
//! [`Normal`] adds rows and joins with others; [`Centred`] has the means taken out, so that a free bias need not be thought
//! of. What is made of them is in [`gptq`](super::gptq).

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, s};

use super::triangular::{Factor, factored};

/// Rows that wait to be added at once: products of many rows are worth the pass over all sums that adding them takes. Half
/// as many are added as they come.
const AT_ONCE: usize = if cfg!(test) { 6 } else { 64 };
/// Rows of a symmetric sum that are made at once, from their diagonal on.
const STRIP: usize = if cfg!(test) { 8 } else { 128 };

/// Sums over rows of a layer's input `x` (as its codes give it) and output `y` (as the float model does), both less what the
/// first row held: where rows hardly differ, as those of a class token before training, what they have in common would take
/// the digits that the rest needs.
#[derive(Clone, Debug)]
pub struct Normal {
    pub ins: usize,
    pub outs: usize,
    /// Number of rows, each as often as it counts.
    rows: f64,
    /// The first row, which is taken off; nothing before rows were added.
    first_x: Vec<f32>,
    first_y: Vec<f32>,
    x: Vec<f64>,
    y: Vec<f64>,
    /// `sum y^2` of each output.
    yy: Vec<f64>,
    /// `sum x x^T` in strips of rows, each from its diagonal on.
    xx: Vec<f64>,
    /// `sum y x^T`, row-major, `outs x ins`.
    yx: Vec<f64>,
    /// Rows that are still to be added, with their weights.
    waiting: (Vec<f32>, Vec<f32>, Vec<f64>),
}

/// Second moments about the means: what is left when the bias is free.
#[derive(Clone, Debug)]
pub struct Centred {
    pub ins: usize,
    pub outs: usize,
    pub mean_x: Vec<f64>,
    pub mean_y: Vec<f64>,
    /// Variance of each output.
    pub yy: Vec<f64>,
    /// Covariance of the input, `ins x ins`.
    pub xx: Vec<f64>,
    /// Covariance of output and input, `outs x ins`.
    pub yx: Vec<f64>,
}

impl Normal {
    /// Bytes of sums over so many inputs and outputs.
    pub fn bytes(ins: usize, outs: usize) -> usize {
        (strips_len(ins) + ins * outs) * size_of::<f64>()
    }

    pub fn new(ins: usize, outs: usize) -> Normal {
        Normal {
            ins,
            outs,
            rows: 0.0,
            first_x: Vec::new(),
            first_y: Vec::new(),
            x: vec![0.0; ins],
            y: vec![0.0; outs],
            yy: vec![0.0; outs],
            xx: vec![0.0; strips_len(ins)],
            yx: vec![0.0; outs * ins],
            waiting: Default::default(),
        }
    }

    /// Adds rows: `x` is `rows x ins`, `y` is `rows x outs`, both row-major; `weights` says how much each row counts. The
    /// result depends on the order of calls in its last bits, so callers add in a fixed order.
    ///
    /// They are in the sums after [`Normal::end`].
    pub fn add(&mut self, x: &[f32], y: &[f32], weights: &[f64]) {
        if self.waiting.2.len() + weights.len() > AT_ONCE {
            self.add_waiting();
        }
        if weights.len() >= AT_ONCE / 2 {
            return self.add_now(x, y, weights);
        }
        let (xs, ys, ws) = &mut self.waiting;
        // Buffers that grow step by step leave their former selves behind.
        if xs.capacity() == 0 {
            *xs = Vec::with_capacity(AT_ONCE * self.ins);
            *ys = Vec::with_capacity(AT_ONCE * self.outs);
        }
        xs.extend_from_slice(x);
        ys.extend_from_slice(y);
        ws.extend_from_slice(weights);
    }

    /// Adds the rows that are waiting, after the last.
    pub fn end(&mut self) {
        self.add_waiting();
        self.waiting = Default::default();
    }

    fn add_waiting(&mut self) {
        let (mut x, mut y, mut weights) = std::mem::take(&mut self.waiting);
        self.add_now(&x, &y, &weights);
        x.clear();
        y.clear();
        weights.clear();
        self.waiting = (x, y, weights);
    }

    fn add_now(&mut self, x: &[f32], y: &[f32], weights: &[f64]) {
        let rows = x.len() / self.ins.max(1);
        if rows == 0 {
            return;
        }
        if self.first_x.is_empty() {
            (self.first_x, self.first_y) = (x[..self.ins].to_vec(), y[..self.outs].to_vec());
        }
        // With the root of its weight in every row, both products come from the same two matrices.
        let roots: Vec<f64> = weights.iter().map(|w| w.sqrt()).collect();
        let scaled = |v: &[f32], first: &[f32]| -> Array2<f32> {
            let mut m = Array2::zeros((rows, first.len()));
            for ((mut to, from), root) in m.outer_iter_mut().zip(v.chunks_exact(first.len())).zip(&roots) {
                let root = *root as f32;
                to.iter_mut().zip(from.iter().zip(first)).for_each(|(t, (v, f))| *t = (v - f) * root);
            }
            m
        };
        let (mx, my) = (scaled(x, &self.first_x), scaled(y, &self.first_y));
        let sum = |into: &mut [f64], m: &Array2<f32>| {
            let rows = m.outer_iter().zip(&roots);
            rows.for_each(|(r, w)| into.iter_mut().zip(r).for_each(|(s, v)| *s += w * f64::from(*v)));
        };
        sum(&mut self.x, &mx);
        sum(&mut self.y, &my);
        for r in my.outer_iter() {
            self.yy.iter_mut().zip(r).for_each(|(s, v)| *s += f64::from(*v).powi(2));
        }
        // A few hundred rows in f32, the sums over samples in f64. Of what is symmetric, the upper part of whole strips.
        let n = self.ins;
        let mut product = vec![0f32; STRIP * n];
        let mut add = |into: &mut [f64], left: ArrayView2<'_, f32>, from: usize| {
            let right = mx.slice(s![.., from..]);
            let product = &mut product[..into.len()];
            let mut to = ArrayViewMut2::from_shape((left.ncols(), n - from), product).expect("a matrix");
            general_mat_mul(1.0, &left.t(), &right, 0.0, &mut to);
            into.iter_mut().zip(product).for_each(|(s, v)| *s += f64::from(*v));
        };
        let mut rest = &mut self.xx[..];
        for strip in strips(n) {
            let (here, more) = rest.split_at_mut(strip.len() * (n - strip.start));
            add(here, mx.slice(s![.., strip.clone()]), strip.start);
            rest = more;
        }
        for (i, strip) in self.yx.chunks_mut(n * STRIP).enumerate() {
            add(strip, my.slice(s![.., i * STRIP..i * STRIP + strip.len() / n]), 0);
        }
        self.rows += weights.iter().sum::<f64>();
    }

    /// Joins two sets of sums.
    pub fn plus(&self, o: &Normal) -> Normal {
        debug_assert!(self.waiting.2.is_empty() && o.waiting.2.is_empty(), "rows that are not finished");
        if self.first_x.is_empty() || o.first_x.is_empty() {
            return if self.first_x.is_empty() { o } else { self }.clone();
        }
        let o = &o.less(self);
        let add = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a + b).collect();
        Normal {
            ins: self.ins,
            outs: self.outs,
            rows: self.rows + o.rows,
            first_x: self.first_x.clone(),
            first_y: self.first_y.clone(),
            x: add(&self.x, &o.x),
            y: add(&self.y, &o.y),
            yy: add(&self.yy, &o.yy),
            xx: add(&self.xx, &o.xx),
            yx: add(&self.yx, &o.yx),
            waiting: Default::default(),
        }
    }

    /// The same sums, less the first row of others.
    fn less(&self, others: &Normal) -> Normal {
        let moved = |from: &[f32], to: &[f32]| -> Vec<f64> {
            from.iter().zip(to).map(|(a, b)| f64::from(*a) - f64::from(*b)).collect()
        };
        let (dx, dy) = (moved(&self.first_x, &others.first_x), moved(&self.first_y, &others.first_y));
        let (n, mut s) = (self.rows, self.clone());
        // (u + a)(v + b) = u v + a v + b (u + a)
        let shift = |row: &mut [f64], from: usize, u: f64, a: f64| {
            let right = self.x[from..].iter().zip(&dx[from..]);
            row.iter_mut().zip(right).for_each(|(s, (v, b))| *s += a * v + b * (u + n * a));
        };
        for (i, from, at) in strip_rows(self.ins) {
            shift(&mut s.xx[at], from, self.x[i], dx[i]);
        }
        for (o, row) in s.yx.chunks_mut(self.ins.max(1)).enumerate() {
            shift(row, 0, self.y[o], dy[o]);
        }
        s.yy.iter_mut().zip(self.y.iter().zip(&dy)).for_each(|(s, (u, a))| *s += 2.0 * a * u + n * a * a);
        s.x.iter_mut().zip(&dx).for_each(|(s, a)| *s += n * a);
        s.y.iter_mut().zip(&dy).for_each(|(s, a)| *s += n * a);
        (s.first_x, s.first_y) = (others.first_x.clone(), others.first_y.clone());
        s
    }

    pub fn centred(&self) -> Centred {
        debug_assert!(self.waiting.2.is_empty(), "rows that are not finished");
        let n = self.rows.max(1.0);
        let mean = |v: &[f64]| -> Vec<f64> { v.iter().map(|s| s / n).collect() };
        let (mx, my) = (mean(&self.x), mean(&self.y));
        let about = |row: &[f64], from: usize, mean: f64, to: &mut [f64]| {
            to.iter_mut().zip(row.iter().zip(&mx[from..])).for_each(|(t, (s, b))| *t = s / n - mean * b);
        };
        let width = self.ins;
        let (mut xx, mut yx) = (vec![0.0; width * width], vec![0.0; self.yx.len()]);
        for (i, from, at) in strip_rows(width) {
            about(&self.xx[at], from, mx[i], &mut xx[i * width + from..(i + 1) * width]);
        }
        mirror(&mut xx, width);
        let rows = self.yx.chunks(width.max(1)).zip(yx.chunks_mut(width.max(1))).zip(&my);
        rows.for_each(|((row, to), mean)| about(row, 0, *mean, to));
        let yy = self.yy.iter().zip(&my).map(|(s, m)| s / n - m * m).collect();
        let whole = |mean: Vec<f64>, first: &[f32]| match first {
            [] => mean,
            _ => mean.iter().zip(first).map(|(m, f)| m + f64::from(*f)).collect(),
        };
        let (mean_x, mean_y) = (whole(mx, &self.first_x), whole(my, &self.first_y));
        Centred { ins: self.ins, outs: self.outs, mean_x, mean_y, yy, xx, yx }
    }
}

impl Centred {
    /// The mean of several, each about its own means: moments of layers that have one weight and a bias each.
    pub fn pooled(all: Vec<Centred>) -> Option<Centred> {
        let n = all.len() as f64;
        let mut all = all.into_iter();
        let mut c = all.next()?;
        for o in all {
            let sums = [(&mut c.mean_x, &o.mean_x), (&mut c.mean_y, &o.mean_y), (&mut c.yy, &o.yy)];
            for (to, from) in sums.into_iter().chain([(&mut c.xx, &o.xx), (&mut c.yx, &o.yx)]) {
                to.iter_mut().zip(from).for_each(|(t, f)| *t += f);
            }
        }
        for v in [&mut c.mean_x, &mut c.mean_y, &mut c.yy, &mut c.xx, &mut c.yx] {
            v.iter_mut().for_each(|x| *x /= n);
        }
        Some(c)
    }

    fn mean_variance(&self) -> f64 {
        (0..self.ins).map(|i| self.xx[i * self.ins + i]).sum::<f64>() / self.ins.max(1) as f64
    }

    /// Mean squared error of `y ~ W x + b` with the best `b`, summed over outputs.
    pub fn error(&self, w: &[f64]) -> f64 {
        self.error_with(w, &self.residual(w))
    }

    /// As [`Centred::error`], where the residual's covariance with the input is known.
    pub(super) fn error_with(&self, w: &[f64], d: &Array2<f64>) -> f64 {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
        // yy - 2 W yx + W xx W = yy - W yx - W (yx - W xx)
        self.yy.iter().sum::<f64>() - dot(w, &self.yx) - dot(w, d.as_slice().expect("row-major"))
    }

    /// The covariance with `share` of its mean diagonal added, factored. Grows the share until the factor exists.
    pub(super) fn factor(&self, order: Option<&[usize]>, share: f64) -> Option<Factor> {
        let n = self.ins;
        let unit = self.mean_variance();
        if !unit.is_finite() || unit <= 0.0 {
            return None;
        }
        let mut share = share;
        while share <= 10.0 {
            let mut m = match order {
                None => Array2::from_shape_vec((n, n), self.xx.clone()).expect("a matrix"),
                Some(o) => {
                    let mut m = Array2::zeros((n, n));
                    let rows = m.outer_iter_mut().zip(o);
                    rows.for_each(|(mut to, i)| to.iter_mut().zip(o).for_each(|(t, j)| *t = self.xx[i * n + j]));
                    m
                }
            };
            m.diag_mut().iter_mut().for_each(|d| *d += share * unit);
            if let Some(c) = factored(m) {
                return Some(c);
            }
            share = (share * 10.0).max(1e-8);
        }
        None
    }

    /// Covariance of the residual `y - W x` with `x`: `outs x ins`.
    pub(super) fn residual(&self, w: &[f64]) -> Array2<f64> {
        let view = |v, rows| ArrayView2::from_shape((rows, self.ins), v).expect("a matrix");
        let mut d = view(&self.yx, self.outs).to_owned();
        general_mat_mul(-1.0, &view(w, self.outs), &view(&self.xx, self.ins), 1.0, &mut d);
        d
    }

    /// The full step `D (C + ridge)^-1`, where `d` is the residual's covariance with the input; `None` if the input never
    /// varies.
    pub(super) fn step(&self, d: &Array2<f64>, ridge: f64) -> Option<Array2<f64>> {
        let mut step = d.clone();
        self.factor(None, ridge)?.solve(&mut step);
        Some(step)
    }

    /// For each output, `(a, b)`: moving the weights, whose residual's covariance with the input is `d`, by `t` times `step`
    /// lowers the squared error by `2 t a - t^2 b`.
    pub(super) fn gain(&self, d: &Array2<f64>, step: &Array2<f64>) -> Vec<(f64, f64)> {
        let mx = ArrayView2::from_shape((self.ins, self.ins), &self.xx).expect("a matrix");
        let sx = step.dot(&mx);
        (0..self.outs).map(|o| (d.row(o).dot(&step.row(o)), sx.row(o).dot(&step.row(o)))).collect()
    }
}

/// The strips of a symmetric sum over `n` inputs.
fn strips(n: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    (0..n).step_by(STRIP).map(move |from| from..(from + STRIP).min(n))
}

/// Numbers in all strips.
fn strips_len(n: usize) -> usize {
    strips(n).map(|s| s.len() * (n - s.start)).sum()
}

/// For each row of the sum: its number, the column it begins with, and where it lies.
fn strip_rows(n: usize) -> impl Iterator<Item = (usize, usize, std::ops::Range<usize>)> {
    let mut at = 0;
    strips(n).flat_map(|s| s.clone().map(move |i| (i, s.start))).map(move |(i, from)| {
        let here = at..at + n - from;
        at = here.end;
        (i, from, here)
    })
}

/// What lies left of the diagonal of a symmetric matrix, from what lies right of it.
fn mirror(m: &mut [f64], n: usize) {
    for i in 0..n {
        for j in 0..i {
            m[i * n + j] = m[j * n + i];
        }
    }
}
