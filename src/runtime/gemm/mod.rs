//! Products of matrices of 8-bit codes, exact in 32 bits.
//!
//! `sum over k of (a[m,k] - za[m]) * (b[k,n] - zb[n])` for codes of either sign on either side, modulo 2^32, the same bits
//! on every processor. Operands are packed first ([`Packed`]); weights once, when a model is loaded. The product then comes
//! in strips, a few columns wide and all rows high, which stay in the nearest cache until the caller has turned them into
//! what it needs ([`multiply`]).
//!
//! Where there is an instruction for groups of four codes, it takes unsigned codes on the left and signed ones on the
//! right. Others have their highest bit flipped, which is 128 added or taken away, and zero points are put right at the
//! end: `sum (a - za)(b - zb) = sum a b - za sum b - zb sum a + K za zb`. Elsewhere the zero point is taken off before, and
//! the product is one of 16-bit integers.

mod isa;
mod pack;
#[cfg(test)]
mod tests;
mod tile;

pub use isa::{Isa, Shape, VARIABLE};
pub use pack::{Operand, Packed, Rows, Side};

use crate::quant::wide::wide;

/// Some columns of a product, all its rows.
#[derive(Debug)]
pub struct Strip<'a> {
    /// Sums, row after row, `width` of them a row, of which the first `cols` count.
    pub sums: &'a mut [i32],
    pub width: usize,
    pub rows: usize,
    /// The first column, and how many there are.
    pub first: usize,
    pub cols: usize,
}

/// Memory that products need on the way, kept from one to the next.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    sums: Vec<i32>,
    /// Sums of the lines of a left operand that is not packed.
    lines: Vec<i32>,
}

/// The left operand: packed, or rows of unsigned codes as they lie in memory.
#[derive(Clone, Copy, Debug)]
pub enum Left<'a> {
    Packed(&'a Packed),
    Rows(Rows<'a>),
}

impl<'a> Left<'a> {
    /// An operand as it lies, if the instructions can read it so; otherwise packed into memory that `packed` lends.
    ///
    /// # Panics
    /// As [`Packed::pack`].
    pub fn of(isa: Isa, x: Operand<'a>, packed: &'a mut Packed) -> Left<'a> {
        match Rows::of(isa, x) {
            Some(rows) => Left::Rows(rows),
            None => {
                packed.pack(isa, Side::Left, x);
                Left::Packed(packed)
            }
        }
    }
}

impl<'a> From<&'a Packed> for Left<'a> {
    fn from(packed: &'a Packed) -> Left<'a> {
        Left::Packed(packed)
    }
}

/// What a kernel reads of the left operand: where a tile of rows begins, and the bytes from row to row and from group to
/// group.
#[derive(Clone, Copy)]
struct Step {
    row: usize,
    group: usize,
}

/// Multiplies operands and hands the product out in strips, from left to right.
///
/// # Panics
/// If the operands were packed for different instructions or have different depths.
pub fn multiply<'a>(a: impl Into<Left<'a>>, b: &Packed, scratch: &mut Scratch, each: &mut dyn FnMut(Strip<'_>)) {
    let isa = b.isa.expect("the right operand is packed");
    multiply_with(tile::kernel(isa), isa, a.into(), b, scratch, each)
}

fn multiply_with(
    kernel: tile::Kernel,
    isa: Isa,
    a: Left<'_>,
    b: &Packed,
    scratch: &mut Scratch,
    each: &mut dyn FnMut(Strip<'_>),
) {
    let Shape { rows, cols: width, group, bytes } = isa.shape();
    let (made_for, lines, depth) = match a {
        Left::Packed(p) => (p.isa, p.lines, p.depth),
        Left::Rows(r) => (Some(r.isa), r.lines, r.depth),
    };
    assert!(made_for == b.isa && depth == b.depth, "operands of {} and {} do not fit", depth, b.depth);
    let groups = depth.div_ceil(group);
    let panels = lines.div_ceil(rows);
    scratch.sums.resize(panels * rows * width, 0);
    let sums_matter = bytes && lines > 0 && b.zeros.iter().any(|z| *z != 0);
    let (codes, step, zeros, line_sums) = match a {
        Left::Packed(p) => {
            let group = if bytes { group } else { group * 2 };
            (p.data.as_slice(), Step { row: group, group: group * rows }, &p.zeros[..], &p.sums[..])
        }
        Left::Rows(r) => {
            scratch.lines.clear();
            if sums_matter {
                r.sums(&mut scratch.lines);
            }
            (r.codes, Step { row: r.stride, group }, r.zeros, &scratch.lines[..])
        }
    };
    // Where a tile begins, in the left operand and among the sums. The last tile of rows that are not packed reaches back
    // over some that the one before it had, and computes them again.
    let tile = |p: usize| match a {
        Left::Packed(packed) => (p * packed.panel, p * rows),
        Left::Rows(r) => {
            let first = (p * rows).min(lines - rows);
            (first * r.stride, first)
        }
    };
    let same = |v: &[i32]| v.iter().all(|x| *x == v[0]);
    let left_zero = (bytes && lines > 0 && same(zeros)).then(|| zeros[0]);
    let mut init = vec![0i32; width];
    for (s, first) in (0..b.lines).step_by(width).enumerate() {
        let cols = width.min(b.lines - first);
        // What is left of column n once every product of codes is summed, for each unit of a's zero point.
        let rest = |n: usize| b.sums[n].wrapping_sub((depth as i32).wrapping_mul(b.zeros[n]));
        init.fill(0);
        if let Some(z) = left_zero {
            (0..cols).for_each(|c| init[c] = z.wrapping_mul(rest(first + c)).wrapping_neg());
        }
        let right = b.data.as_slice()[s * b.panel..(s + 1) * b.panel].as_ptr();
        for p in 0..panels {
            let (at, row) = tile(p);
            let reach =
                if groups == 0 { 0 } else { (rows - 1) * step.row + (groups - 1) * step.group + step.row.min(4) };
            let left = codes[at..at + reach].as_ptr();
            let out = scratch.sums[row * width..(row + rows) * width].as_mut_ptr();
            // SAFETY: `tile::kernel` has asked the processor; packing made the right panel of `groups` groups; the slices
            // just taken hold every group of every row of the left operand, and a whole tile.
            unsafe { kernel(groups, left, step.row, step.group, right, init.as_ptr(), out) }
        }
        let sums = &mut scratch.sums[..lines * width];
        if bytes && lines > 0 {
            let zb = &b.zeros[first..first + cols];
            if zb.iter().any(|z| *z != 0) {
                add_outer(sums, width, line_sums, zb);
            }
            if left_zero.is_none() {
                let rest: Vec<i32> = (0..cols).map(|c| rest(first + c)).collect();
                add_outer(sums, width, zeros, &rest);
            }
        }
        each(Strip { sums, width, rows: lines, first, cols });
    }
}

/// Takes the product of `u` (a number per row) and `v` (a number per column) off.
fn add_outer(sums: &mut [i32], width: usize, u: &[i32], v: &[i32]) {
    if v.len() == width {
        return add_outer_whole(sums, u, v);
    }
    for (row, u) in sums.chunks_exact_mut(width).zip(u) {
        for (s, v) in row.iter_mut().zip(v) {
            *s = s.wrapping_sub(u.wrapping_mul(*v));
        }
    }
}

wide! {
    /// The same where every column counts.
    fn add_outer_whole(sums: &mut [i32], u: &[i32], v: &[i32]) {
        for (row, u) in sums.chunks_exact_mut(v.len()).zip(u) {
            for (s, v) in row.iter_mut().zip(v) {
                *s = s.wrapping_sub(u.wrapping_mul(*v));
            }
        }
    }
}
