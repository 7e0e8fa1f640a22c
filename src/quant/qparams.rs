//! Quantization parameters. Every value of these types is usable: constructors refuse what is not.

use serde::{Deserialize, Serialize};

use crate::ir::{DType, Tensor};

/// An integer code type with its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    U8,
    /// Symmetric int8, -127..=127: weights.
    I8,
    /// int8 with all 256 codes: activations with a zero point.
    S8,
    U16,
    I16,
    I32,
    /// 4-bit signed codes, -7..=7 (symmetric: -8 is not used).
    I4,
    /// 7-bit signed codes in an int8 container, for processors whose 8-bit products saturate.
    I7,
    /// 4-bit signed codes in an int8 container, for runtimes without 4-bit types.
    I4in8,
}

impl Code {
    /// Smallest and largest code used. Signed weights leave the most negative code out, so that negation never
    /// overflows and the range is symmetric.
    pub fn range(self) -> (i32, i32) {
        match self {
            Code::U8 => (0, 255),
            Code::I8 => (-127, 127),
            Code::S8 => (-128, 127),
            Code::U16 => (0, 65535),
            Code::I16 => (-32767, 32767),
            Code::I32 => (i32::MIN + 1, i32::MAX),
            Code::I4 | Code::I4in8 => (-7, 7),
            Code::I7 => (-63, 63),
        }
    }

    /// The element type codes are stored in.
    pub fn dtype(self) -> DType {
        match self {
            Code::U8 => DType::UINT8,
            Code::I8 | Code::S8 | Code::I7 | Code::I4in8 => DType::INT8,
            Code::U16 => DType::UINT16,
            Code::I16 => DType::INT16,
            Code::I32 => DType::INT32,
            Code::I4 => DType::INT4,
        }
    }

    /// Number of distinct codes minus one.
    pub fn steps(self) -> f64 {
        let (lo, hi) = self.range();
        hi as f64 - lo as f64
    }
}

/// Why parameters were refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ParamError {
    #[error("scale {0} is not a positive finite number")]
    Scale(f32),
    #[error("zero point {zero} is outside {lo}..={hi}")]
    Zero { zero: i32, lo: i32, hi: i32 },
    #[error("{scales} scales but {zeros} zero points")]
    Lengths { scales: usize, zeros: usize },
    #[error("no channels")]
    Empty,
    #[error("shift {0} is outside 0..=15")]
    Shift(u8),
    #[error("factor {0} is outside 1..=32768")]
    Factor(u32),
}

/// How a real tensor maps to codes: `x ~ scale[c] * (q - zero[c])`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Raw", into = "Raw")]
pub struct QParams {
    code: Code,
    form: Form,
}

#[derive(Clone, Debug, PartialEq)]
enum Form {
    Affine {
        scale: f32,
        zero: i32,
    },
    PerAxis {
        axis: i64,
        scales: Vec<f32>,
        zeros: Vec<i32>,
    },
    /// Scale `base * factors[c]`: whole numbers, powers of two with Power-of-Two Factors.
    Factors {
        axis: i64,
        base: f32,
        factors: Vec<u32>,
        zeros: Vec<i32>,
    },
}

/// The readable form: vectors as space-separated text, so that a plan stays one line a tensor.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
enum Raw {
    Affine {
        code: Code,
        scale: f32,
        zero_point: i32,
    },
    PerAxis {
        code: Code,
        axis: i64,
        scales: String,
        zero_points: String,
    },
    Ptf {
        code: Code,
        axis: i64,
        scale: f32,
        shifts: String,
        /// One number, or one per channel.
        zero_points: String,
    },
    Factors {
        code: Code,
        axis: i64,
        scale: f32,
        factors: String,
        /// One number, or one per channel.
        zero_points: String,
    },
}

fn join<T: ToString>(v: &[T]) -> String {
    if v.len() > 1 && v.iter().all(|x| x.to_string() == v[0].to_string()) {
        return format!("{} x{}", v[0].to_string(), v.len());
    }
    v.iter().map(T::to_string).collect::<Vec<_>>().join(" ")
}

fn split<T: std::str::FromStr>(s: &str) -> Result<Vec<T>, String> {
    let words: Vec<&str> = s.split_whitespace().collect();
    let one = |w: &str| w.parse::<T>().map_err(|_| format!("`{w}` is not a number of the expected kind"));
    if let [v, times] = words[..]
        && let Some(n) = times.strip_prefix('x')
    {
        let n: usize = n.parse().map_err(|_| format!("`{times}` is not a repeat count"))?;
        return (0..n).map(|_| one(v)).collect();
    }
    words.into_iter().map(one).collect()
}

impl From<QParams> for Raw {
    fn from(p: QParams) -> Raw {
        let code = p.code;
        match p.form {
            Form::Affine { scale, zero } => Raw::Affine { code, scale, zero_point: zero },
            Form::PerAxis { axis, scales, zeros } => {
                Raw::PerAxis { code, axis, scales: join(&scales), zero_points: join(&zeros) }
            }
            Form::Factors { axis, base, factors, zeros } => {
                let zero_points = join(&zeros);
                if factors.iter().all(|f| f.is_power_of_two()) {
                    let shifts: Vec<u32> = factors.iter().map(|f| f.trailing_zeros()).collect();
                    Raw::Ptf { code, axis, scale: base, shifts: join(&shifts), zero_points }
                } else {
                    Raw::Factors { code, axis, scale: base, factors: join(&factors), zero_points }
                }
            }
        }
    }
}

impl TryFrom<Raw> for QParams {
    type Error = String;
    fn try_from(r: Raw) -> Result<QParams, String> {
        match r {
            Raw::Affine { code, scale, zero_point } => QParams::affine(code, scale, zero_point),
            Raw::PerAxis { code, axis, scales, zero_points } => {
                QParams::per_axis(code, axis, split(&scales)?, split(&zero_points)?)
            }
            Raw::Ptf { code, axis, scale, shifts, zero_points } => {
                QParams::ptf(code, axis, scale, split(&shifts)?, split(&zero_points)?)
            }
            Raw::Factors { code, axis, scale, factors, zero_points } => {
                QParams::factored(code, axis, scale, split(&factors)?, split(&zero_points)?)
            }
        }
        .map_err(|e| e.to_string())
    }
}

fn check_scale(s: f32) -> Result<(), ParamError> {
    if s.is_finite() && s >= f32::MIN_POSITIVE { Ok(()) } else { Err(ParamError::Scale(s)) }
}

fn check_zero(code: Code, z: i32) -> Result<(), ParamError> {
    let (lo, hi) = code.range();
    if (lo..=hi).contains(&z) { Ok(()) } else { Err(ParamError::Zero { zero: z, lo, hi }) }
}

impl QParams {
    /// One scale and one zero point for the whole tensor.
    ///
    /// # Errors
    /// If the scale is no positive finite number, or the zero point is no code.
    pub fn affine(code: Code, scale: f32, zero: i32) -> Result<QParams, ParamError> {
        check_scale(scale)?;
        check_zero(code, zero)?;
        Ok(QParams { code, form: Form::Affine { scale, zero } })
    }

    /// One scale and zero point for each index along `axis`.
    ///
    /// # Errors
    /// If there are not as many zero points as scales, a scale is no positive finite number, or a zero point is no code.
    pub fn per_axis(code: Code, axis: i64, scales: Vec<f32>, zeros: Vec<i32>) -> Result<QParams, ParamError> {
        if scales.is_empty() {
            return Err(ParamError::Empty);
        }
        if scales.len() != zeros.len() {
            return Err(ParamError::Lengths { scales: scales.len(), zeros: zeros.len() });
        }
        scales.iter().try_for_each(|s| check_scale(*s))?;
        zeros.iter().try_for_each(|z| check_zero(code, *z))?;
        Ok(QParams { code, form: Form::PerAxis { axis, scales, zeros } })
    }

    /// Power-of-Two Factors: channel `c` along `axis` has scale `base * 2^shifts[c]`. `zeros` holds one zero point for
    /// the tensor or one per channel.
    ///
    /// Source: FQ-ViT, arXiv 2111.13824, section 3.2; the zero point per channel is this project's.
    ///
    /// # Errors
    /// If the numbers of shifts and zero points differ, a shift is too large, a scale is no positive finite number, or a zero
    /// point is no code.
    pub fn ptf(code: Code, axis: i64, base: f32, shifts: Vec<u8>, zeros: Vec<i32>) -> Result<QParams, ParamError> {
        if let Some(s) = shifts.iter().find(|s| **s > 15) {
            return Err(ParamError::Shift(*s));
        }
        QParams::factored(code, axis, base, shifts.iter().map(|s| 1 << s).collect(), zeros)
    }

    /// As [`QParams::ptf`] with any whole factors up to 2^15: channel `c` has scale `base * factors[c]`. What needs
    /// channels on one grid, such as exact statistics of a LayerNorm, works on `(q - zero[c]) * factors[c]` as it does on
    /// shifted codes.
    ///
    /// # Errors
    /// As [`QParams::ptf`], and if a factor is 0 or too large.
    pub fn factored(
        code: Code,
        axis: i64,
        base: f32,
        factors: Vec<u32>,
        zeros: Vec<i32>,
    ) -> Result<QParams, ParamError> {
        if factors.is_empty() {
            return Err(ParamError::Empty);
        }
        if zeros.len() != 1 && zeros.len() != factors.len() {
            return Err(ParamError::Lengths { scales: factors.len(), zeros: zeros.len() });
        }
        check_scale(base)?;
        for f in &factors {
            if !(1..=1 << 15).contains(f) {
                return Err(ParamError::Factor(*f));
            }
            check_scale(base * *f as f32)?;
        }
        zeros.iter().try_for_each(|z| check_zero(code, *z))?;
        Ok(QParams { code, form: Form::Factors { axis, base, factors, zeros } })
    }

    /// The affine parameters that cover `lo..=hi` (widened to hold 0) with every code of an unsigned type, or
    /// symmetrically with a signed one. An empty or tiny range gets a scale floor instead of a division by zero.
    pub fn covering(code: Code, lo: f32, hi: f32) -> QParams {
        let (lo, hi) = (lo.min(0.0), hi.max(0.0));
        let (qmin, qmax) = code.range();
        let (scale, zero) = if qmin < 0 && code != Code::S8 {
            (lo.abs().max(hi) / qmax as f32, 0)
        } else {
            let s = ((hi as f64 - lo as f64) / code.steps()) as f32;
            let s = s.max(SCALE_FLOOR);
            (s, ((qmin as f64 - lo as f64 / s as f64).round_ties_even() as i32).clamp(qmin, qmax))
        };
        QParams { code, form: Form::Affine { scale: scale.max(SCALE_FLOOR), zero } }
    }

    /// The same real values with the other 8-bit container: uint8 codes become int8 codes 128 lower, and back. Other
    /// codes stay.
    pub fn recoded(mut self) -> QParams {
        let (code, by) = match self.code {
            Code::U8 => (Code::S8, -128),
            Code::S8 => (Code::U8, 128),
            _ => return self,
        };
        self.code = code;
        match &mut self.form {
            Form::Affine { zero, .. } => *zero += by,
            Form::PerAxis { zeros, .. } | Form::Factors { zeros, .. } => zeros.iter_mut().for_each(|z| *z += by),
        }
        self
    }

    /// The type of the codes.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The channel axis; `None` for one scale per tensor.
    pub fn axis(&self) -> Option<i64> {
        match self.form {
            Form::Affine { .. } => None,
            Form::PerAxis { axis, .. } | Form::Factors { axis, .. } => Some(axis),
        }
    }

    /// Base scale and whole factors of the channels; powers of two for Power-of-Two Factors.
    pub fn factors(&self) -> Option<(f32, &[u32])> {
        match &self.form {
            Form::Factors { base, factors, .. } => Some((*base, factors)),
            _ => None,
        }
    }

    /// True for Power-of-Two Factors.
    pub fn is_ptf(&self) -> bool {
        self.factors().is_some_and(|(_, f)| f.iter().all(|f| f.is_power_of_two()))
    }

    /// How scales are given, for people.
    pub fn kind(&self) -> &'static str {
        match &self.form {
            Form::Affine { .. } => "one scale",
            Form::PerAxis { .. } => "a scale per channel",
            Form::Factors { .. } if self.is_ptf() => "PTF",
            Form::Factors { .. } => "factors",
        }
    }

    /// Number of channels; 1 for one scale per tensor.
    pub fn channels(&self) -> usize {
        match &self.form {
            Form::Affine { .. } => 1,
            Form::PerAxis { scales, .. } => scales.len(),
            Form::Factors { factors, .. } => factors.len(),
        }
    }

    /// Scale of channel `c` (any `c` for one scale per tensor).
    pub fn scale(&self, c: usize) -> f32 {
        match &self.form {
            Form::Affine { scale, .. } => *scale,
            Form::PerAxis { scales, .. } => scales[c],
            Form::Factors { base, factors, .. } => base * factors[c] as f32,
        }
    }

    /// Zero point of channel `c`.
    pub fn zero(&self, c: usize) -> i32 {
        match &self.form {
            Form::Affine { zero, .. } => *zero,
            Form::PerAxis { zeros, .. } => zeros[c],
            Form::Factors { zeros, .. } => zeros[if zeros.len() == 1 { 0 } else { c }],
        }
    }

    /// The same parameters along another axis (after a Transpose, say).
    pub fn with_axis(mut self, new: i64) -> QParams {
        match &mut self.form {
            Form::Affine { .. } => {}
            Form::PerAxis { axis, .. } | Form::Factors { axis, .. } => *axis = new,
        }
        self
    }

    /// Scale tensor for Quantize/DequantizeLinear: a scalar, or a vector of the channels.
    pub fn scale_tensor(&self) -> Tensor {
        match self.form {
            Form::Affine { scale, .. } => Tensor::f32(&[], &[scale]),
            _ => {
                let n = self.channels();
                Tensor::f32(&[n as i64], &(0..n).map(|c| self.scale(c)).collect::<Vec<_>>())
            }
        }
    }

    /// Zero-point tensor of the same shape, in the code type.
    pub fn zero_tensor(&self) -> Tensor {
        let per_axis = !matches!(self.form, Form::Affine { .. });
        let n = self.channels();
        let dims: &[i64] = if per_axis { &[n as i64] } else { &[] };
        code_tensor(self.code, dims, &(0..n).map(|c| self.zero(c)).collect::<Vec<_>>())
    }

    /// Real values codes can stand for in channel `c`: `(lowest, highest)`.
    pub fn reach(&self, c: usize) -> (f32, f32) {
        let (lo, hi) = self.code.range();
        let (s, z) = (self.scale(c), self.zero(c));
        (s * (lo - z) as f32, s * (hi - z) as f32)
    }
}

/// Smallest scale ever used. A dead channel (all zeros) gets it instead of 0; products of two floors stay normal.
pub const SCALE_FLOOR: f32 = 1e-18;

/// Codes as a tensor of the code's element type; 4-bit codes are packed, low nibble first.
pub fn code_tensor(code: Code, dims: &[i64], q: &[i32]) -> Tensor {
    match code.dtype() {
        DType::UINT8 => Tensor::u8(dims, &q.iter().map(|v| *v as u8).collect::<Vec<_>>()),
        DType::INT8 => Tensor::i8(dims, &q.iter().map(|v| *v as i8).collect::<Vec<_>>()),
        DType::UINT16 => Tensor::u16(dims, &q.iter().map(|v| *v as u16).collect::<Vec<_>>()),
        DType::INT16 => {
            Tensor::raw(DType::INT16, dims, q.iter().flat_map(|v| (*v as i16).to_le_bytes()).collect::<Vec<u8>>())
        }
        DType::INT4 => {
            let nib = |v: Option<&i32>| v.map_or(0, |v| (*v as u8) & 15);
            let bytes: Vec<u8> = q.chunks(2).map(|c| nib(c.first()) | (nib(c.get(1)) << 4)).collect();
            Tensor::raw(DType::INT4, dims, bytes)
        }
        _ => Tensor::i32(dims, q),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(QParams::affine(Code::U8, 0.0, 0), Err(ParamError::Scale(0.0)));
        assert!(QParams::affine(Code::U8, f32::NAN, 0).is_err());
        assert!(QParams::affine(Code::U8, 1.0, 256).is_err());
        assert!(QParams::per_axis(Code::I8, 0, vec![1.0, 2.0], vec![0]).is_err());
        assert!(QParams::ptf(Code::U8, -1, 1.0, vec![16], vec![0]).is_err());
        assert!(QParams::ptf(Code::U8, -1, 1.0, vec![], vec![0]).is_err());
        assert_eq!(QParams::factored(Code::U8, -1, 1.0, vec![0], vec![0]), Err(ParamError::Factor(0)));
    }

    #[test]
    fn covering_holds_zero_exactly() {
        for (lo, hi) in [(-1.0, 1.0), (0.5, 3.0), (-7.0, -2.0), (0.0, 0.0), (-585.0, 34.0)] {
            let p = QParams::covering(Code::U8, lo, hi);
            let z = p.zero(0);
            assert!((0..=255).contains(&z));
            let (a, b) = p.reach(0);
            assert!(a <= lo.min(0.0) + p.scale(0) && b >= hi.max(0.0) - p.scale(0), "{lo} {hi} {a} {b}");
        }
    }

    #[test]
    fn text_form_round_trips() {
        let all = [
            QParams::affine(Code::U8, 0.1, 3).unwrap(),
            QParams::per_axis(Code::I8, 1, vec![0.1, 1.0 / 3.0], vec![0, 0]).unwrap(),
            QParams::ptf(Code::U8, -1, 0.017, vec![0, 3, 7], vec![128]).unwrap(),
            QParams::ptf(Code::U8, -1, 0.017, vec![0, 0, 0], vec![1, 2, 3]).unwrap(),
            QParams::factored(Code::U8, -1, 0.017, vec![1, 3, 100], vec![1, 2, 3]).unwrap(),
        ];
        for p in all {
            let y = crate::yaml::to_string(&p).unwrap();
            assert_eq!(crate::yaml::from_str::<QParams>(&y).unwrap(), p, "{y}");
        }
    }

    #[test]
    fn a_plan_with_a_bad_number_is_refused() {
        let y = "kind: affine\ncode: u8\nscale: -1.0\nzero_point: 0\n";
        assert!(crate::yaml::from_str::<QParams>(y).unwrap_err().to_string().contains("positive"));
    }
}
