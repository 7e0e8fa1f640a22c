//! The one definition of quantize and dequantize. Observers, planner, passes and the runtime's operators call these.
//!
//! The definition is ONNX's QuantizeLinear: `q = clamp(round_half_even(x / scale) + zero)`, in f32, with a division
//! (not a multiplication by the reciprocal: the two differ near ties).

use super::QParams;

/// `1.5 * 2^23`: a float this large has a unit in the last place of exactly 1, over `±2^22` around it.
const MAGIC: f32 = 12_582_912.0;

/// The rounded quotient, held between `low` and `high`: integers within `±2^22`. NaN gives `low`.
///
/// After the clamp, `v + 1.5 * 2^23` has the rounded integer, half to even, in its low mantissa bits. That is one add an
/// element, and vectorises on every target, which `f32::round_ties_even` does not: the runtime's loops over whole
/// tensors call this.
#[inline(always)]
pub fn rounded(x: f32, scale: f32, low: f32, high: f32) -> i32 {
    let v = x / scale;
    // Written as comparisons, not `f32::max`: a NaN must fall to `low`, and this form is one instruction.
    let v = if v > low { v } else { low };
    let v = if v < high { v } else { high };
    ((v + MAGIC).to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32)
}

/// The code of `x`. NaN gives the lowest code, as onnxruntime's vector code has it.
#[inline]
pub fn quantize(x: f32, scale: f32, zero: i32, lo: i32, hi: i32) -> i32 {
    const NARROW: std::ops::RangeInclusive<i64> = -(1 << 22)..=1 << 22;
    let (low, high) = (lo as i64 - zero as i64, hi as i64 - zero as i64);
    if NARROW.contains(&low) && NARROW.contains(&high) {
        return rounded(x, scale, low as f32, high as f32) + zero;
    }
    let v = (x / scale).round_ties_even() as f64 + zero as f64;
    if v > lo as f64 { v.min(hi as f64) as i32 } else { lo }
}

/// The real value of a code.
#[inline(always)]
pub fn dequantize(q: i32, scale: f32, zero: i32) -> f32 {
    q.wrapping_sub(zero) as f32 * scale
}

/// How elements of a tensor map to channels: `outer x channels x inner`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub outer: usize,
    pub channels: usize,
    pub inner: usize,
}

impl Layout {
    /// The layout of `dims` along `axis` (negative counts from the end); `None` if the axis does not exist.
    pub fn of(dims: &[usize], axis: i64) -> Option<Layout> {
        let a = if axis < 0 { axis + dims.len() as i64 } else { axis };
        let a = usize::try_from(a).ok().filter(|a| *a < dims.len())?;
        Some(Layout { outer: dims[..a].iter().product(), channels: dims[a], inner: dims[a + 1..].iter().product() })
    }

    /// Everything in one channel.
    pub fn whole(len: usize) -> Layout {
        Layout { outer: 1, channels: 1, inner: len }
    }
}

/// Why a tensor could not be quantized with given parameters.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum KernelError {
    #[error("axis {axis} of a tensor of rank {rank} does not exist")]
    Axis { axis: i64, rank: usize },
    #[error("parameters for {params} channels, the tensor has {tensor}")]
    Channels { params: usize, tensor: usize },
}

/// The layout parameters expect of a tensor of these sizes.
///
/// # Errors
/// If the tensor has no such axis, or another number of channels.
pub fn layout(p: &QParams, dims: &[usize]) -> Result<Layout, KernelError> {
    let Some(axis) = p.axis() else { return Ok(Layout::whole(dims.iter().product())) };
    let l = Layout::of(dims, axis).ok_or(KernelError::Axis { axis, rank: dims.len() })?;
    if l.channels != p.channels() {
        return Err(KernelError::Channels { params: p.channels(), tensor: l.channels });
    }
    Ok(l)
}

/// Codes of a whole tensor.
///
/// # Errors
/// If the parameters do not fit the tensor's sizes.
pub fn quantize_tensor(x: &[f32], dims: &[usize], p: &QParams) -> Result<Vec<i32>, KernelError> {
    let l = layout(p, dims)?;
    let (lo, hi) = p.code().range();
    let mut out = Vec::with_capacity(x.len());
    for (i, row) in x.chunks(l.inner.max(1)).enumerate() {
        let c = i % l.channels;
        let (s, z) = (p.scale(c), p.zero(c));
        out.extend(row.iter().map(|v| quantize(*v, s, z, lo, hi)));
    }
    Ok(out)
}

/// What a tensor becomes when it goes through its codes and back.
///
/// # Errors
/// If the parameters do not fit the tensor's sizes.
pub fn fake_quantize(x: &mut [f32], dims: &[usize], p: &QParams) -> Result<(), KernelError> {
    let l = layout(p, dims)?;
    let (lo, hi) = p.code().range();
    for (i, row) in x.chunks_mut(l.inner.max(1)).enumerate() {
        let c = i % l.channels;
        let (s, z) = (p.scale(c), p.zero(c));
        for v in row {
            *v = dequantize(quantize(*v, s, z, lo, hi), s, z);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Code;
    use super::*;

    #[test]
    fn ties_go_to_even_and_ends_saturate() {
        let q = |x| quantize(x, 1.0, 10, 0, 255);
        assert_eq!([q(0.5), q(1.5), q(-0.5), q(2.5)], [10, 12, 10, 12]);
        assert_eq!([q(-1e9), q(1e9), q(f32::INFINITY)], [0, 255, 255]);
        assert_eq!(quantize(f32::NAN, 1.0, 0, -128, 127), -128);
    }

    /// Wide codes take another way to the same numbers.
    #[test]
    fn thirty_two_bits() {
        let q = |x| quantize(x, 1.0, 0, i32::MIN, i32::MAX);
        assert_eq!([q(2.5), q(-3.5), q(16_777_216.0), q(3e9), q(-3e9)], [2, -4, 16_777_216, i32::MAX, i32::MIN]);
        assert_eq!(q(f32::NAN), i32::MIN);
        assert_eq!(quantize(1e8, 1.0, i32::MAX - 5, i32::MIN, i32::MAX), i32::MAX);
    }

    #[test]
    fn channels_follow_the_axis() {
        let p = QParams::per_axis(Code::U8, 1, vec![1.0, 10.0], vec![0, 0]).unwrap();
        // [2, 2, 1]: channel is the middle index
        assert_eq!(quantize_tensor(&[20.0, 20.0, 30.0, 30.0], &[2, 2, 1], &p).unwrap(), vec![20, 2, 30, 3]);
        assert!(quantize_tensor(&[1.0; 6], &[2, 3], &p).is_err());
        assert!(quantize_tensor(&[1.0; 6], &[6], &p).is_err());
    }

    proptest::proptest! {
        #[test]
        fn codes_are_fixed_points(v in -1000f32..1000.0, s in 1e-3f32..10.0, z in 0i32..256) {
            let q = quantize(v, s, z, 0, 255);
            let back = dequantize(q, s, z);
            proptest::prop_assert_eq!(quantize(back, s, z, 0, 255), q);
        }

        #[test]
        fn inside_the_reach_the_error_is_half_a_step(x in -1f32..1.0, s in 0.01f32..0.1) {
            let p = QParams::covering(Code::U8, -1.0, 1.0);
            let _ = s;
            let mut v = [x];
            fake_quantize(&mut v, &[1], &p).unwrap();
            proptest::prop_assert!((v[0] - x).abs() <= p.scale(0) * 1.0001);
        }
    }
}
