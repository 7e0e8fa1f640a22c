//! Tensor elements from text to bytes; [`show`](crate::ir::show) has the way back.
//!
//! As in ONNX's own text, float16, bfloat16 and the 8- and 4-bit floats stand as the integers of their bit patterns
//! when written without a point; `1.0` is accepted for float16 and bfloat16 and means the number. Every NaN is read
//! back as the canonical one. Complex elements are pairs.

use half::{bf16, f16};

use crate::ir::DType;
use crate::ir::show::component;

/// Smallest and largest integer an element of this type is written as; `None` for float, double and strings.
fn int_range(t: DType) -> Option<(i128, i128)> {
    let bits = u32::try_from(t.bits()?).ok()?;
    match t {
        DType::FLOAT | DType::DOUBLE | DType::COMPLEX64 | DType::COMPLEX128 => None,
        DType::BOOL => Some((0, 1)),
        DType::INT2 | DType::INT4 | DType::INT8 | DType::INT16 | DType::INT32 | DType::INT64 => {
            Some((-(1 << (bits - 1)), (1 << (bits - 1)) - 1))
        }
        _ => Some((0, (1 << bits) - 1)),
    }
}

/// The bits of one written element.
fn element_bits(t: DType, text: &str) -> Result<u64, String> {
    let overflow = || format!("`{text}` does not fit {t}");
    let finite = |v: f64| v.is_finite() || text.contains(['i', 'n']);
    if super::lex::is_float_text(text) || matches!(t, DType::FLOAT | DType::DOUBLE) {
        let wide: f64 = text.parse().map_err(|_| format!("`{text}` is no number"))?;
        let (bits, back) = match t {
            DType::FLOAT => {
                let v: f32 = text.parse().map_err(|_| format!("`{text}` is no number"))?;
                (u64::from(v.to_bits()), f64::from(v))
            }
            DType::DOUBLE => (wide.to_bits(), wide),
            DType::FLOAT16 => (u64::from(f16::from_f64(wide).to_bits()), f16::from_f64(wide).to_f64()),
            DType::BFLOAT16 => (u64::from(bf16::from_f64(wide).to_bits()), bf16::from_f64(wide).to_f64()),
            _ if t.is_int() || t == DType::BOOL => return Err(format!("`{text}` is no {t}")),
            _ => return Err(format!("{t} elements are written as the integers of their bit patterns")),
        };
        return if finite(back) { Ok(bits) } else { Err(overflow()) };
    }
    let (lo, hi) = int_range(t).ok_or_else(|| format!("elements of {t} cannot be written"))?;
    let v: i128 = text.parse().map_err(|_| overflow())?;
    if v < lo || v > hi {
        return Err(overflow());
    }
    // Two's complement; the caller cuts it to the element's width.
    Ok(v as u64)
}

/// Packs elements one after the other, little end first, sub-byte ones from the low bits up.
pub(super) struct Packer {
    kind: DType,
    bits: usize,
    bytes: Vec<u8>,
    /// Bits of the last byte already taken, for sub-byte types.
    fill: usize,
}

impl Packer {
    /// A packer for elements of this type; `None` for strings and unknown types.
    pub(super) fn new(t: DType) -> Option<Packer> {
        let kind = component(t);
        Some(Packer { kind, bits: kind.bits()?, bytes: Vec::new(), fill: 0 })
    }

    pub(super) fn push(&mut self, text: &str) -> Result<(), String> {
        let raw = element_bits(self.kind, text)?;
        if self.bits >= 8 {
            self.bytes.extend_from_slice(&raw.to_le_bytes()[..self.bits / 8]);
            return Ok(());
        }
        if self.fill == 0 {
            self.bytes.push(0);
        }
        if let Some(last) = self.bytes.last_mut() {
            *last |= ((raw & ((1 << self.bits) - 1)) as u8) << self.fill;
        }
        self.fill = (self.fill + self.bits) % 8;
        Ok(())
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// The bytes after hexadecimal digits.
pub(super) fn unhex(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |b: u8| (b as char).to_digit(16);
    if !text.len().is_multiple_of(2) {
        return None;
    }
    text.chunks_exact(2).map(|p| Some((digit(p[0])? * 16 + digit(p[1])?) as u8)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Tensor;
    use crate::ir::show::elements_text;

    fn read(t: DType, texts: &[&str]) -> Result<Vec<u8>, String> {
        let mut p = Packer::new(t).unwrap();
        texts.iter().try_for_each(|x| p.push(x))?;
        Ok(p.finish())
    }

    #[test]
    fn sub_byte_elements_fill_a_byte_from_below() {
        assert_eq!(read(DType::INT4, &["-1", "7", "-8"]), Ok(vec![0x7f, 0x08]));
        let t = Tensor::raw(DType::INT4, &[3], vec![0x7fu8, 0x08]);
        assert_eq!(elements_text(&t).as_deref(), Some("-1, 7, -8"));
    }

    #[test]
    fn elements_that_do_not_fit_are_refused() {
        for (t, bad) in [
            (DType::UINT8, "256"),
            (DType::INT8, "-129"),
            (DType::BOOL, "2"),
            (DType::FLOAT, "1e39"),
            (DType::FLOAT16, "70000.0"),
            (DType::INT64, "1.5"),
            (DType::FLOAT8E4M3FN, "1.5"),
        ] {
            assert!(read(t, &[bad]).is_err(), "{t} {bad}");
        }
    }

    #[test]
    fn float16_reads_numbers_with_a_point_and_bits_without() {
        assert_eq!(read(DType::FLOAT16, &["1.0", "15360"]), Ok(vec![0, 0x3c, 0, 0x3c]));
    }
}
