//! What becomes of the sums of a product before they leave: bias, scale, requantization.
//!
//! A [`Step`] is one operator of the file, on one element, with a constant for each column of the product. They are applied
//! to a strip of the product one after the other while it lies in the nearest cache, each rounding as the operator alone
//! would, so that fusing them changes no bit.

use std::ops::Range;
use std::sync::Arc;

use super::gemm::Strip;
use super::kernel::{Code, Requantize};
use super::wide::wide;
use crate::quant::kernel::rounded;

/// One operator behind a product. Vectors hold a number for each column.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Integer bias, modulo 2^32; only before [`Step::Float`].
    AddInt(Vec<i32>),
    /// From 32-bit integers to floats, rounded to the nearest.
    Float,
    Add(Vec<f32>),
    Mul(Vec<f32>),
    Div(Vec<f32>),
}

/// Steps in order. Until a [`Step::Float`] the elements are integers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Steps {
    pub list: Arc<Vec<Step>>,
    /// The last step: floats become codes.
    pub requantize: Option<Arc<Requantize>>,
}

/// Where a product goes.
pub enum Out<'a> {
    I32(&'a mut [i32]),
    F32(&'a mut [f32]),
    U8(&'a mut [u8]),
    I8(&'a mut [i8]),
    U16(&'a mut [u16]),
    I16(&'a mut [i16]),
}

/// Distances between the rows and between the columns of a product where it goes.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub row: usize,
    pub col: usize,
}

impl Steps {
    /// Whether the elements have become floats.
    pub fn float(&self) -> bool {
        self.list.contains(&Step::Float)
    }

    /// These and one more.
    pub fn with(&self, step: Step) -> Steps {
        let mut list = (*self.list).clone();
        list.push(step);
        Steps { list: Arc::new(list), requantize: None }
    }

    /// Turns a strip into what the steps make of it, and puts it in its place. `floats` lends its memory. The strip's first
    /// column is column `base + strip.first` for the steps: a convolution's groups have one product each.
    pub fn finish(&self, strip: Strip<'_>, base: usize, floats: &mut Vec<f32>, out: &mut Out<'_>, place: Place) {
        let Strip { sums, width, first, cols, .. } = strip;
        let of = base + first..base + first + cols;
        let ints = self.list.iter().position(|s| *s == Step::Float).unwrap_or(self.list.len());
        for step in &self.list[..ints] {
            if let Step::AddInt(b) = step {
                add_int(sums, width, &b[of.clone()]);
            }
        }
        if !self.float() {
            if let Out::I32(out) = out {
                put(sums, width, cols, first, out, place);
            }
            return;
        }
        floats.resize(sums.len(), 0.0);
        to_float(sums, floats);
        for step in &self.list[ints + 1..] {
            match step {
                Step::Add(v) => add(floats, width, &v[of.clone()]),
                Step::Mul(v) => mul(floats, width, &v[of.clone()]),
                Step::Div(v) => div(floats, width, &v[of.clone()]),
                Step::AddInt(_) | Step::Float => {}
            }
        }
        match (&self.requantize, out) {
            (None, Out::F32(out)) => put(floats, width, cols, first, out, place),
            (Some(q), Out::U8(out)) => codes(q, floats, sums, (width, first), of, out, place),
            (Some(q), Out::I8(out)) => codes(q, floats, sums, (width, first), of, out, place),
            (Some(q), Out::U16(out)) => codes(q, floats, sums, (width, first), of, out, place),
            (Some(q), Out::I16(out)) => codes(q, floats, sums, (width, first), of, out, place),
            _ => {}
        }
    }
}

/// Puts codes in their place. `sums` lends its memory.
fn codes<C: Code>(
    q: &Requantize,
    x: &[f32],
    sums: &mut [i32],
    (width, first): (usize, usize),
    of: Range<usize>,
    out: &mut [C],
    place: Place,
) {
    let cols = of.len();
    let bounds = [&q.scale[of.clone()], &q.low[of.clone()], &q.high[of.clone()]];
    let zero = &q.zero[of];
    if place.col == 1 {
        for (r, row) in x.chunks_exact(width).enumerate() {
            quantize_row(&row[..cols], &mut out[r * place.row + first..][..cols], bounds, zero);
        }
        return;
    }
    quantize_rows(x, sums, width, bounds, zero);
    for (r, row) in sums.chunks_exact(width).enumerate() {
        for (c, x) in row[..cols].iter().enumerate() {
            out[r * place.row + (first + c) * place.col] = C::narrow(*x);
        }
    }
}

/// Copies a strip to its place.
fn put<T: Copy>(strip: &[T], width: usize, cols: usize, first: usize, out: &mut [T], place: Place) {
    for (r, row) in strip.chunks_exact(width).enumerate() {
        if place.col == 1 {
            out[r * place.row + first..][..cols].copy_from_slice(&row[..cols]);
        } else {
            for (c, x) in row[..cols].iter().enumerate() {
                out[r * place.row + (first + c) * place.col] = *x;
            }
        }
    }
}

wide! {
    fn to_float(sums: &[i32], floats: &mut [f32]) {
        for (x, y) in sums.iter().zip(floats) {
            *y = *x as f32;
        }
    }

    fn add_int(sums: &mut [i32], width: usize, v: &[i32]) {
        for row in sums.chunks_exact_mut(width) {
            row.iter_mut().zip(v).for_each(|(x, v)| *x = x.wrapping_add(*v));
        }
    }

    fn add(x: &mut [f32], width: usize, v: &[f32]) {
        for row in x.chunks_exact_mut(width) {
            row.iter_mut().zip(v).for_each(|(x, v)| *x += v);
        }
    }

    fn mul(x: &mut [f32], width: usize, v: &[f32]) {
        for row in x.chunks_exact_mut(width) {
            row.iter_mut().zip(v).for_each(|(x, v)| *x *= v);
        }
    }

    fn div(x: &mut [f32], width: usize, v: &[f32]) {
        for row in x.chunks_exact_mut(width) {
            row.iter_mut().zip(v).for_each(|(x, v)| *x /= v);
        }
    }

    /// One row of codes, each column with its own scale, bounds and zero point.
    fn quantize_row<C: Code>(x: &[f32], y: &mut [C], bounds: [&[f32]; 3], zero: &[i32]) {
        let n = y.len();
        // One length for all, so that the bounds checks leave the loop.
        let [scale, low, high] = bounds.map(|b| &b[..n]);
        let (x, zero) = (&x[..n], &zero[..n]);
        for i in 0..n {
            y[i] = C::narrow(rounded(x[i], scale[i], low[i], high[i]).wrapping_add(zero[i]));
        }
    }

    fn quantize_rows(x: &[f32], y: &mut [i32], width: usize, bounds: [&[f32]; 3], zero: &[i32]) {
        let n = zero.len();
        let [scale, low, high] = bounds.map(|b| &b[..n]);
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            let (x, y) = (&x[..n], &mut y[..n]);
            for i in 0..n {
                y[i] = rounded(x[i], scale[i], low[i], high[i]).wrapping_add(zero[i]);
            }
        }
    }
}
