//! Operands in the order a kernel reads them.
//!
//! A panel holds `rows` rows of the left operand (or `cols` columns of the right one) over the whole summed axis: for each
//! group of neighbours along that axis, the group of every row, one after the other. What a panel lacks is zeros.

use super::isa::Isa;
use crate::quant::wide::wide;

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
    /// Zero points: one, or one per line.
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

/// Rows of unsigned codes that a kernel reads as they lie.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    pub(super) isa: Isa,
    pub(super) codes: &'a [u8],
    pub(super) lines: usize,
    pub(super) depth: usize,
    pub(super) stride: usize,
    /// Zero points: one, or one per line.
    pub(super) zeros: &'a [i32],
}

impl<'a> Rows<'a> {
    /// An operand that needs no packing: bytes are what the instructions take, every row is a run of them, there are rows
    /// for a tile, and the last group of the last row lies in the slice. (What a last group reads of the next row is
    /// multiplied with zeros.)
    ///
    /// # Panics
    /// As [`Packed::pack`].
    pub fn of(isa: Isa, x: Operand<'a>) -> Option<Rows<'a>> {
        assert!(x.fits(), "an operand of {}x{} codes does not fit its slice of {}", x.lines, x.depth, x.codes.len());
        let shape = isa.shape();
        let whole = x.depth.div_ceil(shape.group) * shape.group;
        let lie = shape.bytes && !x.signed && x.depth_stride == 1 && x.lines >= shape.rows && x.depth > 0;
        let reach = (x.lines.saturating_sub(1)).checked_mul(x.line_stride)?.checked_add(whole)?;
        let rows = Rows { isa, codes: x.codes, lines: x.lines, depth: x.depth, stride: x.line_stride, zeros: x.zero };
        (lie && x.line_stride >= shape.group && reach <= x.codes.len()).then_some(rows)
    }

    /// The sum of each line's codes.
    pub(super) fn sums(&self, sums: &mut Vec<i32>) {
        let line = |l: usize| &self.codes[l * self.stride..][..self.depth];
        sums.extend((0..self.lines).map(|l| sum(line(l))));
    }
}

wide! {
    fn sum(codes: &[u8]) -> i32 {
        codes.iter().map(|b| *b as i32).sum()
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
    /// If the strides lead out of the slice, or if there is neither one zero point nor one per line.
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
            if lines < height || !x.depth.is_multiple_of(shape.group) {
                panel.fill(0);
            }
            let part = PanelLines { x, first, lines, height };
            match (shape.bytes, shape.group) {
                (true, _) => {
                    let flip = if x.signed == (side == Side::Left) { 0x80u8 } else { 0 };
                    part.pack(panel, |c: [u8; 4]| c.map(|b| b ^ flip));
                    part.sums(flip, side, &mut self.sums);
                    // A flipped bit moves the code, and the zero point with it.
                    let shift = match (flip, side) {
                        (0, _) => 0,
                        (_, Side::Left) => 128,
                        (_, Side::Right) => -128,
                    };
                    self.zeros.extend((first..first + lines).map(|l| x.zero_of(l).wrapping_add(shift)));
                }
                (false, 2) => part.pack_words(panel, |c: [i16; 2]| {
                    let [a, b] = c.map(i16::to_le_bytes);
                    [a[0], a[1], b[0], b[1]]
                }),
                (false, _) => part.pack_words(panel, |[c]: [i16; 1]| c.to_le_bytes()),
            }
        }
    }
}

/// Some lines of an operand, which fill one panel.
struct PanelLines<'a> {
    x: Operand<'a>,
    first: usize,
    lines: usize,
    height: usize,
}

impl PanelLines<'_> {
    /// Codes of a line from a place along the depth on; without depth there may be none at all.
    fn from(&self, line: usize, k: usize) -> &[u8] {
        let at = (self.first + line) * self.x.line_stride + k * self.x.depth_stride;
        self.x.codes.get(at..).unwrap_or_default()
    }

    /// Packs groups of `G` codes, each turned into `B` bytes. What is missing in the last group is left as it is: zero.
    fn pack<const G: usize, const B: usize>(&self, panel: &mut [u8], bytes: impl Fn([u8; G]) -> [u8; B]) {
        let (depth, stride) = (self.x.depth, self.x.depth_stride);
        let (whole, rest) = (depth / G, depth % G);
        let (panel, _) = panel.as_chunks_mut::<B>();
        if stride == 1 {
            let rows: Vec<&[[u8; G]]> = (0..self.lines).map(|r| self.from(r, 0).as_chunks::<G>().0).collect();
            for (k, to) in panel.chunks_exact_mut(self.height).take(whole).enumerate() {
                for (to, row) in to.iter_mut().zip(&rows) {
                    *to = bytes(row[k]);
                }
            }
        } else if self.x.line_stride == 1 {
            for (k, to) in panel.chunks_exact_mut(self.height).take(whole).enumerate() {
                let cols: [&[u8]; G] = std::array::from_fn(|t| &self.from(0, k * G + t)[..self.lines]);
                for (r, to) in to[..self.lines].iter_mut().enumerate() {
                    *to = bytes(cols.map(|c| c[r]));
                }
            }
        } else {
            for (k, to) in panel.chunks_exact_mut(self.height).take(whole).enumerate() {
                for (r, to) in to[..self.lines].iter_mut().enumerate() {
                    *to = bytes(std::array::from_fn(|t| self.from(r, k * G + t)[0]));
                }
            }
        }
        if rest > 0 {
            for r in 0..self.lines {
                let last: [u8; G] = std::array::from_fn(|t| if t < rest { self.from(r, whole * G + t)[0] } else { 0 });
                let width = B / G * rest;
                panel[whole * self.height + r][..width].copy_from_slice(&bytes(last)[..width]);
            }
        }
    }

    /// Packs codes as 16-bit integers, zero point taken off. Codes and zero points have 8 bits, so differences have nine.
    fn pack_words<const G: usize, const B: usize>(&self, panel: &mut [u8], bytes: impl Fn([i16; G]) -> [u8; B]) {
        let signed = self.x.signed;
        let value = move |b: u8, zero: i32| ((if signed { b as i8 as i32 } else { b as i32 }) - zero) as i16;
        if self.x.zero.len() == 1 {
            let zero = self.x.zero[0];
            return self.pack(panel, |c: [u8; G]| bytes(c.map(|b| value(b, zero))));
        }
        for r in 0..self.lines {
            let zero = self.x.zero_of(self.first + r);
            for k in 0..self.x.depth {
                let one = bytes([value(self.from(r, k)[0], zero); G]);
                let at = (k / G * self.height + r) * B + k % G * 2;
                panel[at..at + 2].copy_from_slice(&one[..2]);
            }
        }
    }

    /// Adds the sum of each line's codes, as they are packed, to `sums`.
    fn sums(&self, flip: u8, side: Side, sums: &mut Vec<i32>) {
        let value = |b: &u8| match side {
            Side::Left => (b ^ flip) as i32,
            Side::Right => (b ^ flip) as i8 as i32,
        };
        let at = sums.len();
        sums.resize(at + self.lines, 0);
        if self.x.depth_stride == 1 {
            for (r, s) in sums[at..].iter_mut().enumerate() {
                *s = self.from(r, 0)[..self.x.depth].iter().map(value).sum();
            }
        } else if self.x.line_stride == 1 {
            for k in 0..self.x.depth {
                for (s, b) in sums[at..].iter_mut().zip(&self.from(0, k)[..self.lines]) {
                    *s += value(b);
                }
            }
        } else {
            for (r, s) in sums[at..].iter_mut().enumerate() {
                *s = (0..self.x.depth).map(|k| value(&self.from(r, k)[0])).sum();
            }
        }
    }
}
