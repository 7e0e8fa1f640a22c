//! What codes make of a value, in bins.

use super::super::metrics::decibels;
use super::Bins;
use crate::quant::QParams;
use crate::quant::kernel::{Layout, dequantize, quantize};

/// Bins over what codes reach, and beyond it on each side.
const BINS: usize = 64;
const BEYOND: usize = 32;

/// An element is clipped if its code is off by more than this share of a step: half of it is rounding.
const CLIPPED: f32 = 0.51;

/// A value of the float model and the codes that the quantized one has for it.
#[derive(Clone, Debug)]
pub struct CodedValue {
    /// Name in the float model.
    pub value: String,
    /// Name of the codes in the quantized model.
    pub codes: String,
    pub reading: Reading,
}

/// How codes become the float model's numbers: `x = factor[c] * scale[c] * (q - zero[c]) + offset[c]`.
#[derive(Clone, Debug)]
pub struct Reading {
    pub params: QParams,
    /// Axis of factors and offsets; `None` where there are none.
    pub folded: Option<i64>,
    pub factors: Vec<f32>,
    /// Empty if all are 0.
    pub offsets: Vec<f32>,
    /// Numbers below count as this: their readers tell no difference.
    pub floor: Option<f32>,
}

/// One channel's way between numbers and codes.
#[derive(Clone, Copy)]
struct Channel {
    scale: f32,
    zero: i32,
    factor: f32,
    offset: f32,
}

impl Reading {
    /// Number of channels that are read in different ways.
    fn channels(&self) -> usize {
        self.params.channels().max(self.factors.len())
    }

    fn channel(&self, c: usize) -> Channel {
        let own = if self.params.channels() > 1 { c } else { 0 };
        Channel {
            scale: self.params.scale(own),
            zero: self.params.zero(own),
            factor: self.factors.get(c).copied().unwrap_or(1.0),
            offset: self.offsets.get(c).copied().unwrap_or(0.0),
        }
    }

    /// The layout of channels in a tensor of these sizes, if it has as many.
    fn layout(&self, dims: &[usize]) -> Option<Layout> {
        let axis = self.params.axis().filter(|_| self.params.channels() > 1).or(self.folded);
        match axis {
            Some(axis) => Layout::of(dims, axis).filter(|l| l.channels == self.channels()),
            None if self.channels() > 1 => None,
            None => Some(Layout::whole(dims.iter().product())),
        }
    }

    /// The smallest and largest step between codes.
    pub fn step(&self) -> [f64; 2] {
        let steps = (0..self.channels()).map(|c| self.channel(c)).map(|c| f64::from(c.scale * c.factor));
        steps.fold([f64::INFINITY, 0.0], |[a, b], s| [a.min(s), b.max(s)])
    }

    /// The lowest and highest number that a code stands for.
    pub fn reach(&self) -> [f64; 2] {
        let (lo, hi) = self.params.code().range();
        let ends = (0..self.channels()).map(|i| {
            let c = self.channel(i);
            let end = |q: i32| f64::from(c.factor * dequantize(q, c.scale, c.zero) + c.offset);
            [end(lo), end(hi)]
        });
        ends.fold([f64::INFINITY, f64::NEG_INFINITY], |[a, b], [lo, hi]| [a.min(lo), b.max(hi)])
    }
}

impl Channel {
    /// What the float model's number becomes by its own code, and whether it is clipped.
    #[inline]
    fn rounded(&self, x: f32, (lo, hi): (i32, i32)) -> (f32, bool) {
        let code = quantize((x - self.offset) / self.factor, self.scale, self.zero, lo, hi);
        let own = self.factor * dequantize(code, self.scale, self.zero) + self.offset;
        (own, (x - own).abs() > CLIPPED * self.scale * self.factor)
    }
}

/// Where the bins of a value lie: on whole codes where all channels have the same.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    from: f64,
    width: f64,
    len: usize,
}

impl Places {
    pub(super) fn of(r: &Reading) -> Places {
        let [lo, hi] = r.reach();
        let (first, last) = r.params.code().range();
        let codes = (f64::from(last) - f64::from(first) + 1.0) as usize;
        let [step, most] = r.step();
        let alike = step == most && r.offsets.is_empty() && r.params.channels() == 1;
        let (begin, width, inner) = if alike {
            let each = codes.div_ceil(BINS);
            (lo - step / 2.0, step * each as f64, codes.div_ceil(each))
        } else {
            let half = (hi - lo) / codes as f64 / 2.0;
            (lo - half, (hi - lo + 2.0 * half) / BINS as f64, BINS)
        };
        let beyond = BEYOND.min(inner);
        Places { from: begin - beyond as f64 * width, width, len: inner + 2 * beyond }
    }

    /// The bin of a number, and whether it lies below or above all.
    #[inline]
    fn of_number(&self, x: f32) -> (usize, bool, bool) {
        let at = (f64::from(x) - self.from) / self.width;
        // A cast holds what is too small at 0.
        ((at as usize).min(self.len - 1), at < 0.0, at >= self.len as f64)
    }
}

/// Figures of a value, added up in the order of samples.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    signal: f64,
    noise: f64,
    rounding: f64,
    clipped: u64,
    elements: u64,
    float: Vec<u64>,
    quantized: Vec<u64>,
    open: [bool; 2],
}

impl Measured {
    /// Of one sample: the float model's numbers, and the quantized model's codes of the same sizes or as rows of a matrix.
    /// `None` if sizes or channels are others.
    pub(super) fn of(
        r: &Reading,
        places: &Places,
        (y, dims): (&[f32], &[usize]),
        (codes, code_dims): (&[f32], &[usize]),
    ) -> Option<Measured> {
        let alike = y.len() == codes.len() && dims.last() == code_dims.last();
        let layout = r.layout(dims).filter(|_| alike)?;
        let range = r.params.code().range();
        let mut m = Measured { float: vec![0; places.len], quantized: vec![0; places.len], ..Measured::default() };
        let inner = layout.inner.max(1);
        for (i, (y, q)) in y.chunks(inner).zip(codes.chunks(inner)).enumerate() {
            let c = r.channel(i % layout.channels);
            for (y, q) in y.iter().zip(q) {
                let x = c.factor * c.scale * (q - c.zero as f32) + c.offset;
                if !(y.is_finite() && x.is_finite()) {
                    continue;
                }
                // The lowest code may lie above the floor.
                let told = |x: f32| r.floor.map_or(x, |floor| x.max(floor));
                let (y, x) = (told(*y), told(x));
                m.count(places, y, x, c.rounded(y, range));
            }
        }
        Some(m)
    }

    #[inline]
    fn count(&mut self, places: &Places, y: f32, x: f32, (own, clipped): (f32, bool)) {
        let square = |e: f32| f64::from(e) * f64::from(e);
        self.elements += 1;
        self.signal += square(y);
        self.noise += square(x - y);
        self.rounding += square(own - y);
        self.clipped += u64::from(clipped);
        for (number, bins) in [(y, &mut self.float), (x, &mut self.quantized)] {
            let (at, below, above) = places.of_number(number);
            bins[at] += 1;
            self.open[0] |= below;
            self.open[1] |= above;
        }
    }

    pub(super) fn add(&mut self, other: &Measured) {
        if self.elements == 0 {
            *self = other.clone();
            return;
        }
        self.signal += other.signal;
        self.noise += other.noise;
        self.rounding += other.rounding;
        self.clipped += other.clipped;
        self.elements += other.elements;
        for (a, b) in [(&mut self.float, &other.float), (&mut self.quantized, &other.quantized)] {
            a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        }
        self.open = [self.open[0] | other.open[0], self.open[1] | other.open[1]];
    }

    /// How many elements were compared.
    pub fn elements(&self) -> u64 {
        self.elements
    }

    /// Of what the codes stand for, in dB.
    pub fn sqnr_db(&self) -> f64 {
        decibels(self.signal, self.noise)
    }

    /// Of the float model's numbers by their own codes, in dB.
    pub fn rounding_db(&self) -> f64 {
        decibels(self.signal, self.rounding)
    }

    /// Share of the elements that lie beyond the codes.
    pub fn clipped(&self) -> f64 {
        self.clipped as f64 / self.elements.max(1) as f64
    }

    /// The histograms, without empty bins at either end.
    pub fn bins(&self, r: &Reading) -> Bins {
        let p = Places::of(r);
        let used = |i: &usize| self.float[*i] + self.quantized[*i] > 0;
        let (Some(a), Some(b)) = ((0..self.float.len()).find(used), (0..self.float.len()).rfind(used)) else {
            return Bins::default();
        };
        Bins {
            from: p.from + a as f64 * p.width,
            width: p.width,
            float: self.float[a..=b].to_vec(),
            quantized: self.quantized[a..=b].to_vec(),
            open: self.open,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::Code;

    fn plain(scale: f32, zero: i32) -> Reading {
        let params = QParams::affine(Code::U8, scale, zero).unwrap();
        Reading { params, folded: None, factors: vec![], offsets: vec![], floor: None }
    }

    fn measured(r: &Reading, dims: &[usize], y: &[f32], q: &[f32]) -> Measured {
        Measured::of(r, &Places::of(r), (y, dims), (q, dims)).unwrap()
    }

    #[test]
    fn figures_by_hand() {
        let r = plain(0.5, 10);
        // A fifth and 1, which have codes of their own, 130, beyond the last code, and -2, whose code is two off.
        let m = measured(&r, &[4], &[0.2, 1.0, 130.0, -2.0], &[10.0, 12.0, 255.0, 8.0]);
        assert!((m.signal - (0.04 + 1.0 + 16900.0 + 4.0)).abs() < 1e-4);
        assert!((m.noise - (0.04 + 56.25 + 1.0)).abs() < 1e-4);
        assert!((m.rounding - (0.04 + 56.25)).abs() < 1e-4);
        assert_eq!((m.elements, m.clipped(), m.open), (4, 0.25, [false, false]));
        let b = m.bins(&r);
        // Four codes a bin: the first of them holds -5.25 to -3.25.
        assert_eq!(b.width, 2.0);
        assert_eq!((b.float.iter().sum::<u64>(), b.quantized.iter().sum::<u64>()), (4, 4));
        let bin = |x: f64| ((x - b.from) / b.width) as usize;
        assert_eq!((b.float[bin(130.0)], b.quantized[bin(122.5)], b.quantized[bin(130.0)]), (1, 1, 0));
        assert_eq!((r.step(), r.reach()), ([0.5, 0.5], [-5.0, 122.5]));
    }

    /// Rounding to its own code moves no element to another bin, so what differs in the picture is error.
    #[test]
    fn codes_and_what_they_round_share_their_bins() {
        for (code, scale, zero) in
            [(Code::U8, 0.3, 100), (Code::S8, 0.01, -5), (Code::I4in8, 2.0, 0), (Code::U16, 1e-3, 99)]
        {
            let r = Reading { params: QParams::affine(code, scale, zero).unwrap(), ..plain(1.0, 0) };
            let p = Places::of(&r);
            let (lo, hi) = code.range();
            for q in (lo..=hi).step_by(((hi - lo) as usize / 300).max(1)) {
                let x = dequantize(q, scale, zero);
                let (at, ..) = p.of_number(x);
                for y in [x - 0.49 * scale, x + 0.49 * scale] {
                    assert_eq!(p.of_number(y).0, at, "{code:?} {q}");
                }
            }
            assert!(p.len <= BINS + 2 * BEYOND);
        }
    }

    #[test]
    fn what_lies_far_beyond_goes_into_the_last_bin() {
        let r = plain(1.0, 128);
        let m = measured(&r, &[3], &[1e9, -1.0, 0.0], &[255.0, 127.0, 128.0]);
        let b = m.bins(&r);
        assert_eq!((b.open, b.float.last(), b.quantized.last()), ([false, true], Some(&1), Some(&0)));
        assert!(b.float.len() <= BINS + 2 * BEYOND);
    }

    #[test]
    fn channels_and_folds_are_read_back() {
        let params = QParams::per_axis(Code::U8, -1, vec![1.0, 2.0], vec![0, 10]).unwrap();
        let r = Reading { params, ..plain(1.0, 0) };
        let m = measured(&r, &[2, 2], &[3.0, 4.0, 5.0, -6.0], &[3.0, 12.0, 5.0, 7.0]);
        assert_eq!((m.noise, m.rounding, r.step(), r.reach()), (0.0, 0.0, [1.0, 2.0], [-20.0, 490.0]));
        // The fold divided by 2 and 4, after offsets of 1 and 0.
        let r = Reading { folded: Some(-1), factors: vec![2.0, 4.0], offsets: vec![1.0, 0.0], ..plain(0.5, 0) };
        let m = measured(&r, &[1, 2], &[4.0, 6.0], &[3.0, 3.0]);
        assert_eq!((m.noise, m.rounding), (0.0, 0.0));
    }

    #[test]
    fn below_a_floor_nothing_is_error() {
        // Codes from -3.5 up; -9 counts as -3.5, and so does a code below it.
        let r = Reading { floor: Some(-3.5), ..plain(0.5, 7) };
        let m = measured(&r, &[4], &[-9.0, -3.5, 2.0, -3.0], &[0.0, 0.0, 11.0, 1.0]);
        assert_eq!((m.noise, m.rounding, m.clipped()), (0.0, 0.0, 0.0));
        let r = Reading { floor: Some(-3.5), ..plain(0.5, 9) };
        assert_eq!(measured(&r, &[1], &[-9.0], &[0.0]).noise, 0.0);
        assert_eq!(measured(&r, &[1], &[-9.0], &[4.0]).noise, 1.0);
    }

    #[test]
    fn infinite_elements_are_left_out_and_other_sizes_refused() {
        let r = plain(1.0, 0);
        let m = measured(&r, &[3], &[f32::NEG_INFINITY, f32::NAN, 2.0], &[0.0, 0.0, 3.0]);
        assert_eq!((m.elements, m.noise), (1, 1.0));
        let p = Places::of(&r);
        let of = |dims: &[usize], code_dims: &[usize]| {
            Measured::of(&r, &p, (&[1.0; 6], dims), (&[1.0; 6], code_dims)).is_some()
        };
        assert!(of(&[1, 2, 3], &[2, 3]), "rows of a matrix lie as they did");
        assert!(!of(&[1, 2, 3], &[1, 3, 2]) && !of(&[6], &[2, 3]));
    }

    #[test]
    fn samples_add_up() {
        let r = plain(1.0, 0);
        let parts = [measured(&r, &[2], &[1.0, 2.5], &[1.0, 4.0]), measured(&r, &[1], &[300.0], &[255.0])];
        let mut all = Measured::default();
        parts.iter().for_each(|p| all.add(p));
        let whole = measured(&r, &[3], &[1.0, 2.5, 300.0], &[1.0, 4.0, 255.0]);
        assert_eq!((all.elements, all.noise, all.clipped, &all.float), (3, whole.noise, 1, &whole.float));
    }
}
