//! Sums over rows of what a linear layer reads and gives.
//!
//! [`RowSums`] adds rows; [`Centred`] has the means taken out, so that a free bias need not be thought
//! of. What is made of them is in [`gptq`](super::gptq).

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayViewMut2, s};

use super::triangular::{Factor, factored};

/// Rows that wait to be added at once: products of many rows are worth the pass over all sums that adding them takes. Half
/// as many are added as they come.
const AT_ONCE: usize = if cfg!(test) { 6 } else { 64 };
/// Rows of a symmetric sum that are made at once, from their diagonal on.
const STRIP: usize = if cfg!(test) { 8 } else { 128 };

/// What a layer reads and gives in some rows, row-major.
#[derive(Clone, Debug, Default)]
pub struct LayerRows {
    /// The input as its codes give it, `rows x ins`.
    pub x: Vec<f32>,
    /// What the codes lose: the float input less `x`.
    pub lost: Vec<f32>,
    /// The output of the float model, `rows x outs`.
    pub y: Vec<f32>,
    /// How much each row counts.
    pub weights: Vec<f64>,
}

/// Sums over rows of a layer's input `x` (as its codes give it), of what the codes lose of it and of the output `y` (as the
/// float model does), input and output less what the first row held: where rows hardly differ, as those of a class token
/// before training, what they have in common would take the digits that the rest needs.
#[derive(Clone, Debug)]
pub struct RowSums {
    pub ins: usize,
    pub outs: usize,
    /// Number of rows, each as often as it counts.
    rows: f64,
    /// The first row, which is taken off; nothing before rows were added.
    first_x: Vec<f32>,
    first_y: Vec<f32>,
    x: Vec<f64>,
    lost: Vec<f64>,
    /// `sum lost^2` of each input.
    lost_lost: Vec<f64>,
    y: Vec<f64>,
    /// `sum y^2` of each output.
    yy: Vec<f64>,
    /// `sum x x^T` in strips of rows, each from its diagonal on.
    xx: Vec<f64>,
    /// Rows that are still to be added.
    waiting: LayerRows,
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
    /// Variance of what the codes lose of each input.
    pub lost_lost: Vec<f64>,
}

/// How a covariance was regularised.
#[derive(Clone, Copy, Debug)]
pub struct Regularised {
    shrink: f64,
    more: f64,
}

impl Regularised {
    /// The error of weights that are `off` (`outs x ins`) by the covariance as the samples say, from that by `c`.
    pub fn undone(&self, error: f64, c: &Centred, off: impl Iterator<Item = f64>) -> f64 {
        let extra = |i: usize| self.shrink * (c.xx[i * c.ins + i] - self.more) + self.more;
        let extra: Vec<f64> = (0..c.ins).map(extra).collect();
        let added: f64 = off.enumerate().map(|(i, e)| e * e * extra[i % c.ins]).sum();
        ((error - added) / (1.0 - self.shrink)).max(0.0)
    }
}

impl RowSums {
    /// Bytes of sums over so many inputs.
    pub fn bytes(ins: usize) -> usize {
        strips_len(ins) * size_of::<f64>()
    }

    /// No rows yet, of a layer with so many inputs and outputs.
    pub fn new(ins: usize, outs: usize) -> RowSums {
        RowSums {
            ins,
            outs,
            rows: 0.0,
            first_x: Vec::new(),
            first_y: Vec::new(),
            x: vec![0.0; ins],
            lost: vec![0.0; ins],
            lost_lost: vec![0.0; ins],
            y: vec![0.0; outs],
            yy: vec![0.0; outs],
            xx: vec![0.0; strips_len(ins)],
            waiting: Default::default(),
        }
    }

    /// Adds rows. The result depends on the order of calls in its last bits, so callers add in a fixed order.
    ///
    /// They are in the sums after [`RowSums::end`].
    pub fn add(&mut self, rows: &LayerRows) {
        if self.waiting.weights.len() + rows.weights.len() > AT_ONCE {
            self.add_waiting();
        }
        if rows.weights.len() >= AT_ONCE / 2 {
            return self.add_now(rows);
        }
        let w = &mut self.waiting;
        // Buffers that grow step by step leave their former selves behind.
        if w.x.capacity() == 0 {
            w.x = Vec::with_capacity(AT_ONCE * self.ins);
            w.lost = Vec::with_capacity(AT_ONCE * self.ins);
            w.y = Vec::with_capacity(AT_ONCE * self.outs);
        }
        w.x.extend_from_slice(&rows.x);
        w.lost.extend_from_slice(&rows.lost);
        w.y.extend_from_slice(&rows.y);
        w.weights.extend_from_slice(&rows.weights);
    }

    /// Adds the rows that are waiting, after the last.
    pub fn end(&mut self) {
        self.add_waiting();
        self.waiting = Default::default();
    }

    fn add_waiting(&mut self) {
        let mut w = std::mem::take(&mut self.waiting);
        self.add_now(&w);
        w.x.clear();
        w.lost.clear();
        w.y.clear();
        w.weights.clear();
        self.waiting = w;
    }

    fn add_now(&mut self, LayerRows { x, lost, y, weights }: &LayerRows) {
        let n = self.ins;
        let rows = x.len() / n.max(1);
        if rows == 0 {
            return;
        }
        if self.first_x.is_empty() {
            (self.first_x, self.first_y) = (x[..n].to_vec(), y[..self.outs].to_vec());
        }
        // With the root of its weight in every row, its product with itself holds the weight.
        let mut mx = Array2::<f32>::zeros((rows, n));
        let each = x.chunks_exact(n).zip(lost.chunks_exact(n)).zip(weights);
        for (mut to, ((x, lost), weight)) in mx.outer_iter_mut().zip(each) {
            let root = weight.sqrt() as f32;
            let to = to.as_slice_mut().expect("row-major");
            to.iter_mut().zip(x.iter().zip(&self.first_x)).for_each(|(t, (v, f))| *t = v - f);
            self.x.iter_mut().zip(&*to).for_each(|(s, v)| *s += weight * f64::from(*v));
            for ((s, ss), l) in self.lost.iter_mut().zip(&mut self.lost_lost).zip(lost) {
                let l = f64::from(*l);
                (*s, *ss) = (*s + weight * l, *ss + weight * l * l);
            }
            to.iter_mut().for_each(|t| *t *= root);
        }
        for (y, weight) in y.chunks_exact(self.outs.max(1)).zip(weights) {
            for ((s, ss), (v, f)) in self.y.iter_mut().zip(&mut self.yy).zip(y.iter().zip(&self.first_y)) {
                let v = f64::from(v - f);
                (*s, *ss) = (*s + weight * v, *ss + weight * v * v);
            }
        }
        // A few hundred rows in f32, the sums over samples in f64. Of what is symmetric, the upper part of whole strips.
        let mut product = vec![0f32; STRIP * n];
        let mut rest = &mut self.xx[..];
        for strip in strips(n) {
            let wide = n - strip.start;
            let (here, more) = rest.split_at_mut(strip.len() * wide);
            let (left, right) = (mx.slice(s![.., strip.clone()]), mx.slice(s![.., strip.start..]));
            let product = &mut product[..here.len()];
            let mut to = ArrayViewMut2::from_shape((strip.len(), wide), &mut *product).expect("a matrix");
            general_mat_mul(1.0, &left.t(), &right, 0.0, &mut to);
            here.iter_mut().zip(product).for_each(|(s, v)| *s += f64::from(*v));
            rest = more;
        }
        self.rows += weights.iter().sum::<f64>();
    }

    /// The moments about the means, after [`RowSums::end`].
    pub fn centred(&self) -> Centred {
        debug_assert!(self.waiting.weights.is_empty(), "rows that are not finished");
        let n = self.rows.max(1.0);
        let mean = |v: &[f64]| -> Vec<f64> { v.iter().map(|s| s / n).collect() };
        let about = |squares: &[f64], means: &[f64]| -> Vec<f64> {
            squares.iter().zip(means).map(|(s, m)| (s / n - m * m).max(0.0)).collect()
        };
        let (mx, my, ml) = (mean(&self.x), mean(&self.y), mean(&self.lost));
        let width = self.ins;
        let mut xx = vec![0.0; width * width];
        for (i, from, at) in strip_rows(width) {
            let to = xx[i * width + from..(i + 1) * width].iter_mut();
            to.zip(self.xx[at].iter().zip(&mx[from..])).for_each(|(t, (s, b))| *t = s / n - mx[i] * b);
        }
        mirror(&mut xx, width);
        let (lost_lost, yy) = (about(&self.lost_lost, &ml), about(&self.yy, &my));
        let whole = |mean: Vec<f64>, first: &[f32]| match first {
            [] => mean,
            _ => mean.iter().zip(first).map(|(m, f)| m + f64::from(*f)).collect(),
        };
        let (mean_x, mean_y) = (whole(mx, &self.first_x), whole(my, &self.first_y));
        Centred { ins: width, outs: self.outs, mean_x, mean_y, yy, xx, lost_lost }
    }
}

impl Centred {
    /// The mean of several, each about its own means: moments of layers that have one weight and a bias each.
    pub fn pooled(all: Vec<Centred>) -> Option<Centred> {
        let n = all.len() as f64;
        let mut all = all.into_iter();
        let mut c = all.next()?;
        for o in all {
            let from = [&o.mean_x, &o.mean_y, &o.yy, &o.xx, &o.lost_lost];
            for (to, from) in c.moments().into_iter().zip(from) {
                to.iter_mut().zip(from).for_each(|(t, f)| *t += f);
            }
        }
        if n > 1.0 {
            c.moments().into_iter().flatten().for_each(|x| *x /= n);
        }
        Some(c)
    }

    fn moments(&mut self) -> [&mut Vec<f64>; 5] {
        [&mut self.mean_x, &mut self.mean_y, &mut self.yy, &mut self.xx, &mut self.lost_lost]
    }

    fn mean_variance(&self) -> f64 {
        (0..self.ins).map(|i| self.xx[i * self.ins + i]).sum::<f64>() / self.ins.max(1) as f64
    }

    /// Mean squared error at the output that the codes of the input make with the weights `w`, summed over outputs, as if
    /// what they lose of one input had nothing to do with the others. (On vision transformers within 0.1 dB of what it is.)
    pub fn noise(&self, w: &[f32]) -> f64 {
        let row = |r: &[f32]| r.iter().zip(&self.lost_lost).map(|(w, v)| f64::from(*w).powi(2) * v).sum::<f64>();
        w.chunks_exact(self.ins.max(1)).map(row).sum()
    }

    /// Mean squared error at the output that another set of weights makes, `d` away, for an input without error.
    #[cfg(test)]
    pub fn error(&self, d: &[f64]) -> f64 {
        let n = self.ins;
        let row =
            |r: &[f64]| -> f64 { (0..n).map(|i| r[i] * (0..n).map(|j| self.xx[i * n + j] * r[j]).sum::<f64>()).sum() };
        d.chunks_exact(n).map(row).sum()
    }

    /// Takes covariances of different inputs to be smaller by `shrink`, and adds `damp` of the mean variance to every
    /// variance. Rows of few samples make inputs look more dependent than they are; what is fitted to them does better on
    /// others when these covariances are trusted less.
    ///
    /// *Source.* Shrinkage towards a diagonal: Schäfer and Strimmer, Stat. Appl. Genet. Mol. Biol. 4 (2005).
    ///
    /// Returns what the least error is taken from to have it as the samples say: see [`Regularised`].
    pub fn regularise(&mut self, shrink: f64, damp: f64) -> Regularised {
        let (n, more) = (self.ins, damp * self.mean_variance());
        for (i, row) in self.xx.chunks_exact_mut(n.max(1)).enumerate() {
            let own = row[i] + more;
            row.iter_mut().for_each(|c| *c *= 1.0 - shrink);
            row[i] = own;
        }
        Regularised { shrink, more }
    }

    /// The covariance, factored, its rows and columns in the given order. Where it has no factor, a share of the mean
    /// variance is added that grows until it has; `None` if the input never varies.
    pub(super) fn factor(&self, order: &[usize]) -> Option<Factor> {
        let n = self.ins;
        let unit = self.mean_variance();
        if !unit.is_finite() || unit <= 0.0 {
            return None;
        }
        let mut share = 0.0;
        while share <= 10.0 {
            let mut m = Array2::zeros((n, n));
            let rows = m.outer_iter_mut().zip(order);
            rows.for_each(|(mut to, i)| to.iter_mut().zip(order).for_each(|(t, j)| *t = self.xx[i * n + j]));
            m.diag_mut().iter_mut().for_each(|d| *d += share * unit);
            if let Some(c) = factored(m) {
                return Some(c);
            }
            share = (share * 10.0_f64).max(1e-8);
        }
        None
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
