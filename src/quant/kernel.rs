//! The one definition of quantize and dequantize. Observers, planner, lowering, tests and reports call these.
//!
//! The definition is ONNX's QuantizeLinear: `q = clamp(round_half_even(x / scale) + zero)`, in f32, with a division
//! (not a multiplication by the reciprocal: the two differ near ties).

use super::QParams;

/// The code of `x`. NaN gives the code of the lowest value, as a saturating cast does.
#[inline]
pub fn quantize(x: f32, scale: f32, zero: i32, lo: i32, hi: i32) -> i32 {
    let q = (x / scale).round_ties_even() + zero as f32;
    q.clamp(lo as f32, hi as f32) as i32
}

/// The real value of a code.
#[inline]
pub fn dequantize(q: i32, scale: f32, zero: i32) -> f32 {
    (q - zero) as f32 * scale
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
pub fn layout(p: &QParams, dims: &[usize]) -> Result<Layout, KernelError> {
    let Some(axis) = p.axis() else { return Ok(Layout::whole(dims.iter().product())) };
    let l = Layout::of(dims, axis).ok_or(KernelError::Axis { axis, rank: dims.len() })?;
    if l.channels != p.channels() {
        return Err(KernelError::Channels { params: p.channels(), tensor: l.channels });
    }
    Ok(l)
}

/// Codes of a whole tensor.
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
