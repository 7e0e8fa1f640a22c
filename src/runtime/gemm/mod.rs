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
pub use pack::{Operand, Packed, Side};

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
}

/// Multiplies packed operands and hands the product out in strips, from left to right.
///
/// # Panics
/// If the operands were packed for different instructions or have different depths.
pub fn multiply(a: &Packed, b: &Packed, scratch: &mut Scratch, each: &mut dyn FnMut(Strip<'_>)) {
    let isa = a.isa.expect("the left operand is packed");
    assert!(b.isa == Some(isa) && a.depth == b.depth, "operands of {} and {} do not fit", a.depth, b.depth);
    multiply_with(tile::kernel(isa), isa.shape(), a, b, scratch, each)
}

fn multiply_with(
    kernel: tile::Kernel,
    shape: Shape,
    a: &Packed,
    b: &Packed,
    scratch: &mut Scratch,
    each: &mut dyn FnMut(Strip<'_>),
) {
    let Shape { rows, cols: width, group, bytes } = shape;
    let groups = a.depth.div_ceil(group);
    let panels = a.lines.div_ceil(rows);
    scratch.sums.resize(panels * rows * width, 0);
    let same = |v: &[i32]| v.iter().all(|x| *x == v[0]);
    let left_zero = (bytes && a.lines > 0 && same(&a.zeros)).then(|| a.zeros[0]);
    let mut init = vec![0i32; width];
    for (s, first) in (0..b.lines).step_by(width).enumerate() {
        let cols = width.min(b.lines - first);
        // What is left of column n once every product of codes is summed, for each unit of a's zero point.
        let rest = |n: usize| b.sums[n].wrapping_sub((a.depth as i32).wrapping_mul(b.zeros[n]));
        init.fill(0);
        if let Some(z) = left_zero {
            (0..cols).for_each(|c| init[c] = z.wrapping_mul(rest(first + c)).wrapping_neg());
        }
        let right = b.data.as_slice()[s * b.panel..(s + 1) * b.panel].as_ptr();
        for p in 0..panels {
            let left = a.data.as_slice()[p * a.panel..(p + 1) * a.panel].as_ptr();
            let out = scratch.sums[p * rows * width..(p + 1) * rows * width].as_mut_ptr();
            // SAFETY: `tile::kernel` has asked the processor; packing made panels of `groups` groups, and the slices just
            // taken are whole panels and a whole tile.
            unsafe { kernel(groups, left, right, init.as_ptr(), out) }
        }
        let sums = &mut scratch.sums[..a.lines * width];
        if bytes && a.lines > 0 {
            let zb = &b.zeros[first..first + cols];
            if zb.iter().any(|z| *z != 0) {
                add_outer(sums, width, &a.sums, zb);
            }
            if left_zero.is_none() {
                let rest: Vec<i32> = (0..cols).map(|c| rest(first + c)).collect();
                add_outer(sums, width, &a.zeros, &rest);
            }
        }
        each(Strip { sums, width, rows: a.lines, first, cols });
    }
}

/// Takes the product of `u` (a number per row) and `v` (a number per column) off.
fn add_outer(sums: &mut [i32], width: usize, u: &[i32], v: &[i32]) {
    for (row, u) in sums.chunks_exact_mut(width).zip(u) {
        for (s, v) in row.iter_mut().zip(v) {
            *s = s.wrapping_sub(u.wrapping_mul(*v));
        }
    }
}
