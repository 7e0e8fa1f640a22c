//! QuantizeLinear and DequantizeLinear on slices, bit for bit as onnxruntime's CPU provider computes them.
//!
//! `Q(x) = clamp(round_half_even(x / s) + z, min, max)` and `DQ(q) = (q - z) * s` in f32 (ONNX operator reference,
//! opsets 10 to 24). NaN quantizes to the lowest code, as onnxruntime's vector code has it.
//!
//! What one code is, [`quant::kernel`](crate::quant::kernel) defines; here are the loops over whole tensors.

use crate::quant::kernel::{dequantize, rounded};
use crate::quant::wide::wide;

/// An integer type that codes are stored in.
pub trait CodeType: Copy + Send + Sync + 'static {
    /// The smallest code.
    const MIN: i32;
    /// The largest code.
    const MAX: i32;
    /// The code as int32.
    fn wide(self) -> i32;
    /// The low bits.
    fn narrow(x: i32) -> Self;
}

macro_rules! codes {
    ($($ty:ty)*) => {$(
        impl CodeType for $ty {
            const MIN: i32 = <$ty>::MIN as i32;
            const MAX: i32 = <$ty>::MAX as i32;
            #[inline(always)]
            fn wide(self) -> i32 { self as i32 }
            #[inline(always)]
            fn narrow(x: i32) -> $ty { x as $ty }
        }
    )*};
}
codes!(u8 i8 u16 i16 i32);

/// How scales and zero points spread over a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grain {
    /// One scale.
    Tensor,
    /// One scale per index of this axis.
    Axis(usize),
    /// One scale for each `size` neighbours along this axis, separately for every index of the other axes.
    Block { axis: usize, size: usize },
}

/// Why parameters do not fit a tensor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrainError {
    #[error("axis {axis} is not an axis of a tensor of rank {rank}")]
    Axis { axis: usize, rank: usize },
    #[error("{got} {what} do not fit a tensor of shape {dims:?} quantized {grain:?}: {want} are needed")]
    Count { what: &'static str, got: usize, want: usize, dims: Vec<usize>, grain: Grain },
    #[error("input and output have {0} and {1} elements, the shape has {2}")]
    Length(usize, usize, usize),
}

/// QuantizeLinear of a matrix whose columns may differ: a number for each.
#[derive(Clone, Debug, PartialEq)]
pub struct Requantize {
    pub scale: Vec<f32>,
    /// The reciprocals of the scales, where a product with them is the quotient to the last bit, as with powers of two.
    pub factor: Option<Vec<f32>>,
    pub zero: Vec<i32>,
    /// Lowest and highest code minus the zero point.
    pub low: Vec<f32>,
    pub high: Vec<f32>,
}

/// Scales and zero points, ready for use on whole tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct Params {
    grain: Grain,
    scale: Vec<f32>,
    zero: Vec<i32>,
    /// Lowest and highest code minus the zero point: bounds of the rounded quotient.
    low: Vec<f32>,
    high: Vec<f32>,
}

impl Params {
    /// `zero` holds as many zero points as there are scales, or one for all, or none (0). Codes lie in `range` (both
    /// ends included), which for 4-bit codes is narrower than the type they are stored in.
    ///
    /// # Errors
    /// If the numbers of scales and zero points do not fit.
    pub fn new(grain: Grain, scale: &[f32], zero: &[i32], range: (i32, i32)) -> Result<Params, GrainError> {
        let zero = match zero {
            [] => vec![0; scale.len()],
            [z] => vec![*z; scale.len()],
            z if z.len() == scale.len() => z.to_vec(),
            z => {
                return Err(GrainError::Count {
                    what: "zero points",
                    got: z.len(),
                    want: scale.len(),
                    dims: vec![],
                    grain,
                });
            }
        };
        let bound = |end: i32| zero.iter().map(|z| (end as i64 - *z as i64) as f32).collect();
        Ok(Params { grain, low: bound(range.0), high: bound(range.1), scale: scale.to_vec(), zero })
    }

    /// Along what the scales run.
    pub fn grain(&self) -> Grain {
        self.grain
    }

    /// How many scales there are.
    pub fn scales(&self) -> usize {
        self.scale.len()
    }

    /// Scales and zero points, as many of these as of those.
    pub fn numbers(&self) -> (&[f32], &[i32]) {
        (&self.scale, &self.zero)
    }

    /// The same for each of `cols` columns along `axis`; `None` if scales differ along another, or in blocks.
    pub fn columns(&self, axis: usize, cols: usize) -> Option<Requantize> {
        let fits = match self.grain {
            Grain::Tensor => true,
            Grain::Axis(a) => a == axis && self.scale.len() == cols,
            Grain::Block { .. } => false,
        };
        fits.then(|| self.by_column(cols))
    }

    /// The same for each of `cols` columns, if there is one scale, or as many as columns.
    fn by_column(&self, cols: usize) -> Requantize {
        fn each<T: Copy>(v: &[T], cols: usize) -> Vec<T> {
            if v.len() == 1 { vec![v[0]; cols] } else { v.to_vec() }
        }
        let exact = |s: &f32| s.is_normal() && s.to_bits() << 9 == 0 && s.recip().is_normal();
        let factor: Vec<f32> = self.scale.iter().map(|s| s.recip()).collect();
        Requantize {
            factor: self.scale.iter().all(exact).then(|| each(&factor, cols)),
            scale: each(&self.scale, cols),
            zero: each(&self.zero, cols),
            low: each(&self.low, cols),
            high: each(&self.high, cols),
        }
    }

    /// The same parameters for a tensor whose axes were moved: `f` says where an axis went. `None` when it vanished or
    /// when blocks make the scales a tensor of their own.
    pub fn with_axis(&self, f: impl Fn(usize) -> Option<usize>) -> Option<Params> {
        match self.grain {
            Grain::Tensor => Some(self.clone()),
            Grain::Axis(a) => Some(Params { grain: Grain::Axis(f(a)?), ..self.clone() }),
            Grain::Block { .. } => None,
        }
    }

    /// Quantizes a row-major tensor of shape `dims`.
    ///
    /// # Errors
    /// If the channels do not fit the sizes.
    pub fn quantize<C: CodeType>(&self, dims: &[usize], x: &[f32], y: &mut [C]) -> Result<(), GrainError> {
        self.spans(dims, x.len(), y.len(), |span| match span {
            Span::One { at, len, p } => {
                q_one(&x[at..at + len], &mut y[at..at + len], self.scale[p], self.zero[p], self.low[p], self.high[p])
            }
            Span::Each { at, len, p } => {
                let r = p..p + len;
                q_each(
                    &x[at..at + len],
                    &mut y[at..at + len],
                    [&self.scale[r.clone()], &self.low[r.clone()], &self.high[r.clone()]],
                    &self.zero[r],
                )
            }
        })
    }

    /// [`Params::quantize`] of a tensor to which a number is added first, for each index of an axis: that of the scales, if
    /// they have one.
    ///
    /// # Errors
    /// If the channels do not fit the sizes.
    pub fn quantize_shifted<C: CodeType>(
        &self,
        dims: &[usize],
        (axis, by): (usize, &[f32]),
        x: &[f32],
        y: &mut [C],
    ) -> Result<(), GrainError> {
        let shifts = Params { grain: Grain::Axis(axis), scale: by.to_vec(), ..self.clone() };
        let one = self.grain == Grain::Tensor;
        if !one && self.grain != Grain::Axis(axis) {
            return Err(GrainError::Axis { axis, rank: dims.len() });
        }
        self.count(if one { 1 } else { by.len() }, dims)?;
        let of = |p: usize| if one { 0 } else { p };
        let len_out = y.len();
        let mut run = |at: usize, len: usize, p: usize| {
            let q = of(p);
            let numbers = [by[p], self.scale[q], self.low[q], self.high[q]];
            q_shifted(&x[at..at + len], &mut y[at..at + len], numbers, self.zero[q]);
        };
        shifts.spans(dims, x.len(), len_out, |span| match span {
            Span::One { at, len, p } => run(at, len, p),
            Span::Each { at, len, p } => (0..len).for_each(|i| run(at + i, 1, p + i)),
        })
    }

    /// Dequantizes a row-major tensor of shape `dims`.
    ///
    /// # Errors
    /// If the channels do not fit the sizes.
    pub fn dequantize<C: CodeType>(&self, dims: &[usize], q: &[C], y: &mut [f32]) -> Result<(), GrainError> {
        self.spans(dims, q.len(), y.len(), |span| match span {
            Span::One { at, len, p } => dq_one(&q[at..at + len], &mut y[at..at + len], self.scale[p], self.zero[p]),
            Span::Each { at, len, p } => {
                dq_each(&q[at..at + len], &mut y[at..at + len], &self.scale[p..p + len], &self.zero[p..p + len])
            }
        })
    }

    /// Cuts the tensor into runs of neighbouring elements that share one scale or walk along the scales.
    fn spans(&self, dims: &[usize], len_in: usize, len_out: usize, mut f: impl FnMut(Span)) -> Result<(), GrainError> {
        let total: usize = dims.iter().product();
        if len_in != total || len_out != total {
            return Err(GrainError::Length(len_in, len_out, total));
        }
        let axis = match self.grain {
            Grain::Tensor => {
                self.count(1, dims)?;
                f(Span::One { at: 0, len: total, p: 0 });
                return Ok(());
            }
            Grain::Axis(axis) | Grain::Block { axis, .. } => axis,
        };
        if axis >= dims.len() {
            return Err(GrainError::Axis { axis, rank: dims.len() });
        }
        let (outer, d): (usize, usize) = (dims[..axis].iter().product(), dims[axis]);
        let inner: usize = dims[axis + 1..].iter().product();
        match self.grain {
            Grain::Tensor => {}
            Grain::Axis(_) => {
                self.count(d, dims)?;
                if inner == 1 {
                    (0..outer).for_each(|o| f(Span::Each { at: o * d, len: d, p: 0 }));
                } else {
                    (0..outer * d).for_each(|r| f(Span::One { at: r * inner, len: inner, p: r % d }));
                }
            }
            Grain::Block { size, .. } => {
                let size = size.max(1);
                let blocks = d.div_ceil(size);
                self.count(outer * blocks * inner, dims)?;
                for o in 0..outer {
                    if inner == 1 {
                        (0..blocks).for_each(|b| {
                            let len = size.min(d - b * size);
                            f(Span::One { at: o * d + b * size, len, p: o * blocks + b })
                        });
                    } else {
                        (0..d).for_each(|i| {
                            f(Span::Each { at: (o * d + i) * inner, len: inner, p: (o * blocks + i / size) * inner })
                        });
                    }
                }
            }
        }
        Ok(())
    }

    fn count(&self, want: usize, dims: &[usize]) -> Result<(), GrainError> {
        if self.scale.len() == want {
            return Ok(());
        }
        Err(GrainError::Count { what: "scales", got: self.scale.len(), want, dims: dims.to_vec(), grain: self.grain })
    }
}

enum Span {
    /// `len` elements from `at`, all with parameter `p`.
    One { at: usize, len: usize, p: usize },
    /// `len` elements from `at`, with parameters `p`, `p + 1`, ...
    Each { at: usize, len: usize, p: usize },
}

#[inline(always)]
fn code<C: CodeType>(x: f32, scale: f32, zero: i32, low: f32, high: f32) -> C {
    C::narrow(rounded(x, scale, low, high).wrapping_add(zero))
}

wide! {
    fn q_one<C: CodeType>(x: &[f32], y: &mut [C], scale: f32, zero: i32, low: f32, high: f32) {
        for (x, y) in x.iter().zip(y) {
            *y = code(*x, scale, zero, low, high);
        }
    }

    fn q_shifted<C: CodeType>(x: &[f32], y: &mut [C], numbers: [f32; 4], zero: i32) {
        let [shift, scale, low, high] = numbers;
        for (x, y) in x.iter().zip(y) {
            *y = code(*x + shift, scale, zero, low, high);
        }
    }

    fn q_each<C: CodeType>(x: &[f32], y: &mut [C], bounds: [&[f32]; 3], zero: &[i32]) {
        let n = y.len();
        // One length for all, so that the bounds checks leave the loop.
        let [scale, low, high] = bounds.map(|b| &b[..n]);
        let (x, zero) = (&x[..n], &zero[..n]);
        for i in 0..n {
            y[i] = code(x[i], scale[i], zero[i], low[i], high[i]);
        }
    }

    fn dq_one<C: CodeType>(q: &[C], y: &mut [f32], scale: f32, zero: i32) {
        for (q, y) in q.iter().zip(y) {
            *y = dequantize(q.wide(), scale, zero);
        }
    }

    fn dq_each<C: CodeType>(q: &[C], y: &mut [f32], scale: &[f32], zero: &[i32]) {
        let n = y.len();
        let (q, scale, zero) = (&q[..n], &scale[..n], &zero[..n]);
        for i in 0..n {
            y[i] = dequantize(q[i].wide(), scale[i], zero[i]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, in double precision and without tricks. The quotient itself is the f32 one.
    fn plain(x: f32, s: f32, z: i32, (lo, hi): (i32, i32)) -> i32 {
        let v = x / s;
        if v.is_nan() {
            return lo;
        }
        (v as f64).round_ties_even().clamp(-1e9, 1e9).mul_add(1.0, z as f64).clamp(lo as f64, hi as f64) as i32
    }

    fn one<C: CodeType>(x: f32, s: f32, z: i32) -> i32 {
        let p = Params::new(Grain::Tensor, &[s], &[z], (C::MIN, C::MAX)).unwrap();
        let mut y = [C::narrow(0)];
        p.quantize(&[1], &[x], &mut y).unwrap();
        y[0].wide()
    }

    #[test]
    fn ties_go_to_even_and_the_ends_saturate() {
        let x = [0.5, 1.5, 2.5, -0.5, -1.5, 1e30, -1e30, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 127.5, 254.5];
        let want = [10, 12, 12, 10, 8, 255, 0, 255, 0, 0, 138, 255];
        for (x, want) in x.into_iter().zip(want) {
            assert_eq!(one::<u8>(x, 1.0, 10), want, "{x}");
        }
        assert_eq!(one::<i8>(f32::NAN, 1.0, 10), -128);
        assert_eq!(one::<i16>(-40000.0, 1.0, 32767), -7233);
        assert_eq!(one::<u16>(70000.0, 1.0, 65535), 65535);
    }

    /// The reciprocal form differs here; a division does not.
    #[test]
    fn the_quotient_is_a_division() {
        let (x, s) = (0..20_000)
            .map(|i| (0.37 * (i as f32 + 0.5), 0.37f32))
            .find(|(x, s)| (x / s).round_ties_even() != (x * (1.0 / s)).round_ties_even())
            .expect("some product differs from its quotient at a tie");
        assert_eq!(one::<i16>(x, s, 0), (x / s).round_ties_even() as i32);
    }

    proptest! {
        #[test]
        fn as_defined(x in any::<f32>(), near in -400i32..400, s in 1e-4f32..1e3, z in 0i32..256, tie in any::<bool>()) {
            let x = if tie { (near as f32 + 0.5) * s } else { x };
            prop_assert_eq!(one::<u8>(x, s, z), plain(x, s, z, (0, 255)));
            prop_assert_eq!(one::<i8>(x, s, z - 128), plain(x, s, z - 128, (-128, 127)));
            prop_assert_eq!(one::<u16>(x, s, z * 257), plain(x, s, z * 257, (0, 65535)));
            prop_assert_eq!(one::<i16>(x, s, z * 257 - 32768), plain(x, s, z * 257 - 32768, (-32768, 32767)));
        }

        /// Every grain against an index computed element by element.
        #[test]
        fn grains(dims in prop::collection::vec(1usize..6, 1..4), axis in 0usize..4, size in 1usize..4, seed in any::<u32>()) {
            let axis = axis % dims.len();
            let total: usize = dims.iter().product();
            let inner: usize = dims[axis + 1..].iter().product();
            let blocks = dims[axis].div_ceil(size);
            let x: Vec<f32> = (0..total).map(|i| ((i as u32).wrapping_mul(2654435761).wrapping_add(seed) % 2000) as f32 * 0.1 - 100.0).collect();
            for (grain, count) in [
                (Grain::Tensor, 1),
                (Grain::Axis(axis), dims[axis]),
                (Grain::Block { axis, size }, total / dims[axis] * blocks),
            ] {
                let scale: Vec<f32> = (0..count).map(|i| 0.3 + 0.17 * i as f32).collect();
                let zero: Vec<i32> = (0..count).map(|i| (i as i32 * 7) % 200).collect();
                let p = Params::new(grain, &scale, &zero, (0, 255)).unwrap();
                let (mut q, mut back) = (vec![0u8; total], vec![0f32; total]);
                p.quantize(&dims, &x, &mut q).unwrap();
                p.dequantize(&dims, &q, &mut back).unwrap();
                for i in 0..total {
                    let d = i / inner % dims[axis];
                    let k = match grain {
                        Grain::Tensor => 0,
                        Grain::Axis(_) => d,
                        Grain::Block { .. } => (i / inner / dims[axis] * blocks + d / size) * inner + i % inner,
                    };
                    prop_assert_eq!(q[i] as i32, plain(x[i], scale[k], zero[k], (0, 255)));
                    prop_assert_eq!(back[i], (q[i] as i32 - zero[k]) as f32 * scale[k]);
                }
                prop_assert!(Params::new(grain, &[scale, vec![1.0]].concat(), &[], (0, 255)).unwrap().quantize(&dims, &x, &mut q).is_err());
            }
        }
    }
}
