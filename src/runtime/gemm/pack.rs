//! Operands in the order a kernel reads them.
//!
//! A panel holds `rows` rows of the left operand (or `cols` columns of the right one) over the whole summed axis: for each
//! group of neighbours along that axis, the group of every row, one after the other. What a panel lacks is zeros.

use super::isa::{Isa, Shape};

/// 64 bytes, as the processor moves them.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Bytes that begin at a multiple of 64.
#[derive(Clone, Debug, Default)]
pub struct Bytes(Vec<Line>);

impl Bytes {
    /// Makes room for `len` bytes. What they hold is left over from earlier use.
    pub fn grow(&mut self, len: usize) {
        let lines = len.div_ceil(64);
        if self.0.len() < lines {
            self.0.resize(lines, Line([0; 64]));
        }
    }

    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: lines are bytes without gaps (`repr(C)`, 64 of them in a size of 64), and all are initialized.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * 64) }
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and every pattern of bits is a line.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * 64) }
    }
}

/// One operand: `lines x depth` codes anywhere in a slice. A line is a row of the left operand or a column of the right
/// one; depth is the axis that is summed over.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'a> {
    /// Codes; signed ones as their bit patterns.
    pub codes: &'a [u8],
    pub signed: bool,
    pub lines: usize,
    pub depth: usize,
    /// Distance from a code to the same place of the next line, and to its neighbour along the depth.
    pub line_stride: usize,
    pub depth_stride: usize,
    /// Zero points: one, or one a line.
    pub zero: &'a [i32],
}

impl Operand<'_> {
    /// Whether every code the strides lead to lies in the slice.
    fn fits(&self) -> bool {
        let last = |n: usize, stride: usize| n.saturating_sub(1).checked_mul(stride);
        let end = last(self.lines, self.line_stride)
            .zip(last(self.depth, self.depth_stride))
            .and_then(|(a, b)| a.checked_add(b));
        let zeros = self.zero.len() == 1 || self.zero.len() == self.lines;
        zeros && (self.lines * self.depth == 0 || end.is_some_and(|e| e < self.codes.len()))
    }

    fn zero_of(&self, line: usize) -> i32 {
        if self.zero.len() == 1 { self.zero[0] } else { self.zero[line] }
    }
}

/// A packed operand.
#[derive(Clone, Debug, Default)]
pub struct Packed {
    pub(super) data: Bytes,
    pub(super) lines: usize,
    pub(super) depth: usize,
    /// Bytes of a panel.
    pub(super) panel: usize,
    pub(super) isa: Option<Isa>,
    /// Of bytes only: for each line the sum of its codes as they are stored, and the zero point on the same scale.
    pub(super) sums: Vec<i32>,
    pub(super) zeros: Vec<i32>,
}

/// Which of the two operands is packed. The instructions take unsigned codes on the left, signed ones on the right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Left,
    Right,
}

impl Packed {
    /// Packs an operand; `self` lends its memory.
    ///
    /// # Panics
    /// If the strides lead out of the slice, or if there is neither one zero point nor one a line.
    pub fn pack(&mut self, isa: Isa, side: Side, x: Operand<'_>) {
        assert!(x.fits(), "an operand of {}x{} codes does not fit its slice of {}", x.lines, x.depth, x.codes.len());
        let shape = isa.shape();
        let height = if side == Side::Left { shape.rows } else { shape.cols };
        let width = if shape.bytes { 1 } else { 2 };
        let groups = x.depth.div_ceil(shape.group);
        self.panel = groups * height * shape.group * width;
        let panels = x.lines.div_ceil(height);
        self.data.grow(self.panel * panels);
        (self.lines, self.depth, self.isa) = (x.lines, x.depth, Some(isa));
        self.sums.clear();
        self.zeros.clear();
        for p in 0..panels {
            let first = p * height;
            let lines = height.min(x.lines - first);
            let panel = &mut self.data.as_mut_slice()[p * self.panel..(p + 1) * self.panel];
            if lines < height || x.depth % shape.group != 0 {
                panel.fill(0);
            }
            for r in 0..lines {
                if shape.bytes {
                    let flip = if x.signed == (side == Side::Left) { 0x80 } else { 0 };
                    let sum = pack_bytes(panel, r, height, flip, side, x, first + r);
                    self.sums.push(sum);
                    let shift = match (flip, side) {
                        (0, _) => 0,
                        (_, Side::Left) => 128,
                        (_, Side::Right) => -128,
                    };
                    self.zeros.push(x.zero_of(first + r).wrapping_add(shift));
                } else {
                    pack_words(panel, r, height, shape, x, first + r);
                }
            }
        }
    }
}

/// Packs one line as bytes and returns their sum.
fn pack_bytes(panel: &mut [u8], r: usize, height: usize, flip: u8, side: Side, x: Operand<'_>, line: usize) -> i32 {
    // Without depth there may be no codes at all.
    let from = x.codes.get(line * x.line_stride..).unwrap_or_default();
    let value = |b: u8| if side == Side::Left { b as i32 } else { b as i8 as i32 };
    let mut sum = 0i32;
    let step = height * 4;
    if x.depth_stride == 1 {
        let from = &from[..x.depth];
        let (whole, rest) = from.as_chunks::<4>();
        for (k, c) in whole.iter().enumerate() {
            let c = c.map(|b| b ^ flip);
            sum += c.iter().map(|b| value(*b)).sum::<i32>();
            panel[k * step + r * 4..][..4].copy_from_slice(&c);
        }
        for (t, b) in rest.iter().enumerate() {
            sum += value(b ^ flip);
            panel[whole.len() * step + r * 4 + t] = b ^ flip;
        }
    } else {
        for k in 0..x.depth {
            let b = from[k * x.depth_stride] ^ flip;
            sum += value(b);
            panel[(k / 4) * step + r * 4 + k % 4] = b;
        }
    }
    sum
}

/// Packs one line as 16-bit integers, zero point taken off. Codes and zero points have 8 bits, so differences have nine.
fn pack_words(panel: &mut [u8], r: usize, height: usize, shape: Shape, x: Operand<'_>, line: usize) {
    let zero = x.zero_of(line);
    // Without depth there may be no codes at all.
    let from = x.codes.get(line * x.line_stride..).unwrap_or_default();
    let value = |b: u8| {
        let v = if x.signed { b as i8 as i32 } else { b as i32 };
        (v - zero) as i16
    };
    let g = shape.group;
    let step = height * g * 2;
    if x.depth_stride == 1 && g == 2 {
        let (whole, rest) = from[..x.depth].as_chunks::<2>();
        for (k, [a, b]) in whole.iter().enumerate() {
            let both = (value(*a) as u16 as u32) | ((value(*b) as u16 as u32) << 16);
            panel[k * step + r * 4..][..4].copy_from_slice(&both.to_le_bytes());
        }
        if let [b] = rest {
            panel[whole.len() * step + r * 4..][..2].copy_from_slice(&value(*b).to_le_bytes());
        }
    } else {
        for k in 0..x.depth {
            let at = (k / g) * step + (r * g + k % g) * 2;
            panel[at..][..2].copy_from_slice(&value(from[k * x.depth_stride]).to_le_bytes());
        }
    }
}
