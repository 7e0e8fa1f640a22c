//! What becomes of the sums of a product before they leave: bias, scale, requantization.
//!
//! A [`Step`] is one operator of the file, on one element, with a constant for each column of the product. They are applied
//! to a strip of the product one after the other while it lies in the nearest cache, each rounding as the operator alone
//! would, so that fusing them changes no bit.

use std::ops::Range;
use std::sync::Arc;

use super::gemm::Strip;
use super::kernel::{CodeType, Requantize};
use crate::quant::kernel::rounded;
use crate::quant::wide::wide;

/// One operator after a product. Vectors hold a number for each column.
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
    /// After them, floats become codes.
    pub requantize: Option<Arc<Requantize>>,
    /// Codes of 8 bits that become others by a table, one for all columns or one for each.
    pub tables: Option<Arc<Vec<[u8; 256]>>>,
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
        Steps { list: Arc::new(list), requantize: None, tables: None }
    }

    /// Turns a strip into what the steps make of it, and puts it in its place. `floats` lends its memory. The strip's first
    /// column is column `base + strip.first` for the steps: a convolution's groups have one product each.
    pub fn finish(&self, strip: Strip<'_>, base: usize, floats: &mut Vec<f32>, out: &mut Out<'_>, place: Place) {
        let (rows, first, cols) = (strip.rows, strip.first, strip.cols);
        self.compute(strip, base, floats, out, place);
        self.tabulated((rows, first, cols), base, out, place);
    }

    /// The same from where sums have become floats: `strip` lends its memory and says where its columns are.
    pub fn finish_floats(&self, strip: Strip<'_>, base: usize, floats: &mut [f32], out: &mut Out<'_>, place: Place) {
        let (rows, first, cols) = (strip.rows, strip.first, strip.cols);
        self.compute_floats(strip, base, floats, out, place);
        self.tabulated((rows, first, cols), base, out, place);
    }

    /// What the tables make of the codes of a strip.
    fn tabulated(&self, (rows, first, cols): (usize, usize, usize), base: usize, out: &mut Out<'_>, place: Place) {
        let Some(tables) = &self.tables else { return };
        let tables = if tables.len() == 1 { &tables[..] } else { &tables[base + first..][..cols] };
        match out {
            Out::U8(out) => look_up(tables, |c, t| t[c as usize], out, rows, first, cols, place),
            Out::I8(out) => look_up(tables, |c, t| t[c as u8 as usize] as i8, out, rows, first, cols, place),
            _ => {}
        }
    }

    /// All but the tables.
    fn compute(&self, strip: Strip<'_>, base: usize, floats: &mut Vec<f32>, out: &mut Out<'_>, place: Place) {
        let Strip { sums, width, first, cols, .. } = strip;
        let of = base + first..base + first + cols;
        if place.col == 1 && place.row > 0 && self.at_once(sums, width, of.clone(), first, out, place.row) {
            return;
        }
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
        self.compute_floats(Strip { sums, ..strip }, base, floats, out, place);
    }

    /// The steps after [`Step::Float`], and codes.
    fn compute_floats(&self, strip: Strip<'_>, base: usize, floats: &mut [f32], out: &mut Out<'_>, place: Place) {
        let Strip { sums, width, first, cols, .. } = strip;
        let of = base + first..base + first + cols;
        let start = self.list.iter().position(|s| *s == Step::Float).map_or(0, |at| at + 1);
        for step in &self.list[start..] {
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

/// More columns than any strip has.
const NONE: [f32; 64] = [0.0; 64];

impl Steps {
    /// A scale, perhaps a bias, perhaps codes, which is what most layers have: one loop instead of one for each step. The
    /// operations are the same; `false` where the steps are others.
    fn at_once<'s>(
        &'s self,
        sums: &[i32],
        width: usize,
        of: Range<usize>,
        first: usize,
        out: &mut Out<'_>,
        row: usize,
    ) -> bool {
        let (scale, bias) = match &self.list[..] {
            [Step::Float, Step::Mul(m)] => (&m[of.clone()], None),
            [Step::Float, Step::Mul(m), Step::Add(b)] => (&m[of.clone()], Some(&b[of.clone()])),
            _ => return false,
        };
        // Of a rounded value the sign of a zero is lost, so that no bias is one of 0.
        let q = |requantize: &'s Requantize| Layer {
            scale,
            bias: bias.unwrap_or(&NONE[..of.len()]),
            requantize,
            of: of.clone(),
        };
        match (&self.requantize, out) {
            (None, Out::F32(out)) => {
                let out = out.get_mut(first..).unwrap_or_default();
                match bias {
                    Some(b) => scaled_with_bias(sums, width, scale, b, out, row),
                    None => scaled(sums, width, scale, out, row),
                }
            }
            (Some(r), Out::U8(out)) => q(r).codes(sums, width, out.get_mut(first..).unwrap_or_default(), row),
            (Some(r), Out::I8(out)) => q(r).codes(sums, width, out.get_mut(first..).unwrap_or_default(), row),
            _ => return false,
        }
        true
    }
}

/// Numbers for each column of a strip, and for all of them those of which the strip's are `of`.
struct Layer<'a> {
    scale: &'a [f32],
    bias: &'a [f32],
    requantize: &'a Requantize,
    of: Range<usize>,
}

impl Layer<'_> {
    fn codes<C: CodeType>(&self, sums: &[i32], width: usize, out: &mut [C], row: usize) {
        let (q, of) = (self.requantize, self.of.clone());
        let bounds = [&q.low[of.clone()], &q.high[of.clone()]];
        let zero = &q.zero[of.clone()];
        match &q.factor {
            Some(f) => codes_by_product(sums, width, [self.scale, self.bias, &f[of]], bounds, zero, out, row),
            None => codes_by_quotient(sums, width, [self.scale, self.bias, &q.scale[of]], bounds, zero, out, row),
        }
    }
}

/// Puts codes in their place. `sums` lends its memory.
fn codes<C: CodeType>(
    q: &Requantize,
    x: &[f32],
    sums: &mut [i32],
    (width, first): (usize, usize),
    of: Range<usize>,
    out: &mut [C],
    place: Place,
) {
    let bounds = [&q.scale[of.clone()], &q.low[of.clone()], &q.high[of.clone()]];
    let zero = &q.zero[of];
    if place.col == 1 && place.row > 0 {
        return quantize_rows_to(x, width, bounds, zero, out.get_mut(first..).unwrap_or_default(), place.row);
    }
    quantize_rows(x, sums, width, bounds, zero);
    for (r, row) in sums.chunks_exact(width).enumerate() {
        for (c, x) in row[..zero.len()].iter().enumerate() {
            out[r * place.row + (first + c) * place.col] = C::narrow(*x);
        }
    }
}

/// Replaces the codes of a strip, which have just been put in their place, by what the tables have for them.
fn look_up<C: Copy>(
    tables: &[[u8; 256]],
    code: impl Fn(C, &[u8; 256]) -> C,
    out: &mut [C],
    rows: usize,
    first: usize,
    cols: usize,
    place: Place,
) {
    for r in 0..rows {
        let at = r * place.row + first * place.col;
        match tables {
            [table] => (0..cols).for_each(|c| out[at + c * place.col] = code(out[at + c * place.col], table)),
            _ if place.col == 1 => {
                let row = out[at..at + cols].iter_mut().zip(tables);
                row.for_each(|(c, table)| *c = code(*c, table));
            }
            _ => tables.iter().enumerate().for_each(|(c, table)| {
                out[at + c * place.col] = code(out[at + c * place.col], table);
            }),
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

    /// Sums times a scale per column. Rows begin `row` elements apart.
    fn scaled(sums: &[i32], width: usize, scale: &[f32], out: &mut [f32], row: usize) {
        let n = scale.len();
        for (x, y) in sums.chunks_exact(width).zip(out.chunks_mut(row)) {
            let (x, y) = (&x[..n], &mut y[..n]);
            for i in 0..n {
                y[i] = x[i] as f32 * scale[i];
            }
        }
    }

    fn scaled_with_bias(sums: &[i32], width: usize, scale: &[f32], bias: &[f32], out: &mut [f32], row: usize) {
        let n = scale.len();
        let bias = &bias[..n];
        for (x, y) in sums.chunks_exact(width).zip(out.chunks_mut(row)) {
            let (x, y) = (&x[..n], &mut y[..n]);
            for i in 0..n {
                y[i] = x[i] as f32 * scale[i] + bias[i];
            }
        }
    }

    /// Codes of scaled sums; `v` are scale, bias, and what the result is multiplied with.
    fn codes_by_product<C: CodeType>(sums: &[i32], width: usize, v: [&[f32]; 3], bounds: [&[f32]; 2], zero: &[i32], out: &mut [C], row: usize) {
        let n = zero.len();
        let ([scale, bias, factor], [low, high]) = (v.map(|v| &v[..n]), bounds.map(|b| &b[..n]));
        for (x, y) in sums.chunks_exact(width).zip(out.chunks_mut(row)) {
            let (x, y) = (&x[..n], &mut y[..n]);
            for i in 0..n {
                let value = (x[i] as f32 * scale[i] + bias[i]) * factor[i];
                y[i] = C::narrow(rounded(value, 1.0, low[i], high[i]).wrapping_add(zero[i]));
            }
        }
    }

    /// Codes of scaled sums; `v` are scale, bias, and what the result is divided by.
    fn codes_by_quotient<C: CodeType>(sums: &[i32], width: usize, v: [&[f32]; 3], bounds: [&[f32]; 2], zero: &[i32], out: &mut [C], row: usize) {
        let n = zero.len();
        let ([scale, bias, step], [low, high]) = (v.map(|v| &v[..n]), bounds.map(|b| &b[..n]));
        for (x, y) in sums.chunks_exact(width).zip(out.chunks_mut(row)) {
            let (x, y) = (&x[..n], &mut y[..n]);
            for i in 0..n {
                let value = x[i] as f32 * scale[i] + bias[i];
                y[i] = C::narrow(rounded(value, step[i], low[i], high[i]).wrapping_add(zero[i]));
            }
        }
    }

    /// Rows of codes, each column with its own scale, bounds and zero point. Rows begin `row` elements apart.
    fn quantize_rows_to<C: CodeType>(x: &[f32], width: usize, bounds: [&[f32]; 3], zero: &[i32], out: &mut [C], row: usize) {
        let n = zero.len();
        // One length for all, so that the bounds checks leave the loop.
        let [scale, low, high] = bounds.map(|b| &b[..n]);
        for (x, y) in x.chunks_exact(width).zip(out.chunks_mut(row)) {
            let (x, y) = (&x[..n], &mut y[..n]);
            for i in 0..n {
                y[i] = C::narrow(rounded(x[i], scale[i], low[i], high[i]).wrapping_add(zero[i]));
            }
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
