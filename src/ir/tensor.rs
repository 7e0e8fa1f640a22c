//! Constant tensors. Their storage is shared: cloning a tensor clones a handle, never the weights.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;

use super::{DType, Rider};

/// A constant tensor: an initializer or a tensor-valued attribute.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub dtype: DType,
    /// Sizes, outermost first; empty for a scalar.
    pub dims: Vec<i64>,
    pub data: Payload,
    /// What the file said of this tensor that the IR does not model (doc string, segment, name of an attribute tensor).
    pub rider: Rider,
}

/// Where the elements are, exactly as the file held them: the round trip writes the same field back.
#[derive(Clone, Debug, PartialEq)]
pub enum Payload {
    /// Little-endian bytes; sub-byte types packed low bits first.
    Raw(Bytes),
    F32(Arc<[f32]>),
    /// Also holds int8, uint8, int16, uint16, bool, float16 and bfloat16 (as bit patterns) and packed 4-bit elements.
    I32(Arc<[i32]>),
    I64(Arc<[i64]>),
    F64(Arc<[f64]>),
    /// Also holds uint32.
    U64(Arc<[u64]>),
    Str(Arc<[Bytes]>),
    /// In a file beside the model that was not read: the key/value entries as written (`location`, `offset`, `length`,
    /// `checksum`). A model that was loaded from its folder has none of these.
    External(Arc<[(String, String)]>),
}

impl Tensor {
    /// A tensor over little-endian bytes.
    pub fn raw(dtype: DType, dims: &[i64], bytes: impl Into<Bytes>) -> Tensor {
        let t = Tensor { dtype, dims: dims.to_vec(), data: Payload::Raw(bytes.into()), rider: Rider::default() };
        debug_assert_eq!(Some(t.byte_len()), t.raw_bytes().map(|b| b.len()));
        t
    }

    /// A float32 tensor of these sizes, its elements in row-major order.
    pub fn f32(dims: &[i64], v: &[f32]) -> Tensor {
        Tensor::raw(DType::FLOAT, dims, v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
    }

    /// An int64 tensor of these sizes, its elements in row-major order.
    pub fn i64(dims: &[i64], v: &[i64]) -> Tensor {
        Tensor::raw(DType::INT64, dims, v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
    }

    /// An int32 tensor of these sizes, its elements in row-major order.
    pub fn i32(dims: &[i64], v: &[i32]) -> Tensor {
        Tensor::raw(DType::INT32, dims, v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
    }

    /// A uint32 tensor of these sizes, its elements in row-major order.
    pub fn u32(dims: &[i64], v: &[u32]) -> Tensor {
        Tensor::raw(DType::UINT32, dims, v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
    }

    /// A uint16 tensor of these sizes, its elements in row-major order.
    pub fn u16(dims: &[i64], v: &[u16]) -> Tensor {
        Tensor::raw(DType::UINT16, dims, v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
    }

    /// An int8 tensor of these sizes, its elements in row-major order.
    pub fn i8(dims: &[i64], v: &[i8]) -> Tensor {
        Tensor::raw(DType::INT8, dims, v.iter().map(|x| *x as u8).collect::<Vec<u8>>())
    }

    /// A uint8 tensor of these sizes, its elements in row-major order.
    pub fn u8(dims: &[i64], v: &[u8]) -> Tensor {
        Tensor::raw(DType::UINT8, dims, v.to_vec())
    }

    /// A bool tensor of these sizes, its elements in row-major order.
    pub fn bool(dims: &[i64], v: &[bool]) -> Tensor {
        Tensor::raw(DType::BOOL, dims, v.iter().map(|x| *x as u8).collect::<Vec<u8>>())
    }

    /// One float32, without axes.
    pub fn scalar_f32(v: f32) -> Tensor {
        Tensor::f32(&[], &[v])
    }

    /// True for `n` elements along the last axis, all other axes being of size 1: one for each column of a matrix.
    pub fn is_row_of(&self, n: usize) -> bool {
        self.len() == n && self.dims.last() == Some(&(n as i64))
    }

    /// Number of elements; a negative size counts as 0.
    pub fn len(&self) -> usize {
        self.dims.iter().try_fold(1usize, |a, d| a.checked_mul(usize::try_from(*d).ok()?)).unwrap_or(0)
    }

    /// True if it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes the elements take when stored raw; 0 for strings and unknown types.
    pub fn byte_len(&self) -> usize {
        self.dtype.bits().map_or(0, |b| self.len().saturating_mul(b).div_ceil(8))
    }

    /// The little-endian bytes, when the elements are stored so.
    pub fn raw_bytes(&self) -> Option<&Bytes> {
        match &self.data {
            Payload::Raw(b) => Some(b),
            _ => None,
        }
    }

    /// Little-endian bytes whatever the storage; `None` for strings, missing external data, or a payload that does not
    /// fit the type.
    pub fn to_le_bytes(&self) -> Option<Cow<'_, [u8]>> {
        if let Some(b) = self.raw_bytes() {
            return Some(Cow::Borrowed(b));
        }
        let bits = self.dtype.bits()?;
        let v: Vec<u8> = match &self.data {
            Payload::F32(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Payload::F64(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Payload::I64(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Payload::U64(v) if bits == 32 => v.iter().flat_map(|x| (*x as u32).to_le_bytes()).collect(),
            Payload::U64(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Payload::I32(v) => match bits {
                32 => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
                16 => v.iter().flat_map(|x| (*x as u16).to_le_bytes()).collect(),
                _ => v.iter().map(|x| *x as u8).collect(),
            },
            Payload::Raw(_) | Payload::External(_) | Payload::Str(_) => return None,
        };
        Some(Cow::Owned(v))
    }

    /// The elements as f32; float16, bfloat16 and double are converted. `None` when the type is no float type or the
    /// payload is missing or too short.
    pub fn to_f32s(&self) -> Option<Cow<'_, [f32]>> {
        if let (Payload::F32(v), DType::FLOAT) = (&self.data, self.dtype) {
            return (v.len() == self.len()).then_some(Cow::Borrowed(&v[..]));
        }
        let b = self.to_le_bytes()?;
        if b.len() != self.byte_len() {
            return None;
        }
        let v: Vec<f32> = match self.dtype {
            DType::FLOAT => {
                // A mapped file gives no alignment promise; borrow when it happens to hold.
                if let Cow::Borrowed(s) = b
                    && cfg!(target_endian = "little")
                {
                    // SAFETY: every bit pattern is a valid f32 and align_to only yields aligned elements.
                    let (pre, mid, post) = unsafe { s.align_to::<f32>() };
                    if pre.is_empty() && post.is_empty() {
                        return Some(Cow::Borrowed(mid));
                    }
                }
                b.chunks_exact(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect()
            }
            DType::DOUBLE => {
                b.chunks_exact(8).map(|c| f64::from_le_bytes(c.try_into().expect("8 bytes")) as f32).collect()
            }
            DType::FLOAT16 => b.chunks_exact(2).map(|c| half::f16::from_le_bytes([c[0], c[1]]).to_f32()).collect(),
            DType::BFLOAT16 => b.chunks_exact(2).map(|c| half::bf16::from_le_bytes([c[0], c[1]]).to_f32()).collect(),
            _ => return None,
        };
        Some(Cow::Owned(v))
    }

    /// The elements of an integer or bool tensor as i64; `None` for other types, a missing payload, or a uint64 value
    /// that does not fit.
    pub fn to_i64s(&self) -> Option<Vec<i64>> {
        let b = self.to_le_bytes()?;
        if b.len() != self.byte_len() {
            return None;
        }
        Some(match self.dtype {
            DType::INT64 => b.chunks_exact(8).map(|c| i64::from_le_bytes(c.try_into().expect("8 bytes"))).collect(),
            DType::UINT64 => b
                .chunks_exact(8)
                .map(|c| i64::try_from(u64::from_le_bytes(c.try_into().expect("8 bytes"))).ok())
                .collect::<Option<_>>()?,
            DType::INT32 => b.chunks_exact(4).map(|c| i32::from_le_bytes([c[0], c[1], c[2], c[3]]) as i64).collect(),
            DType::UINT32 => b.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]]) as i64).collect(),
            DType::INT16 => b.chunks_exact(2).map(|c| i16::from_le_bytes([c[0], c[1]]) as i64).collect(),
            DType::UINT16 => b.chunks_exact(2).map(|c| u16::from_le_bytes([c[0], c[1]]) as i64).collect(),
            DType::INT8 => b.iter().map(|c| *c as i8 as i64).collect(),
            DType::UINT8 | DType::BOOL => b.iter().map(|c| *c as i64).collect(),
            DType::INT4 | DType::UINT4 => (0..self.len())
                .map(|i| {
                    let n = (b[i / 2] >> (4 * (i % 2))) & 15;
                    if self.dtype == DType::INT4 { (((n << 4) as i8) >> 4) as i64 } else { n as i64 }
                })
                .collect(),
            _ => return None,
        })
    }

    /// The value of a one-element tensor of any float, integer or bool type.
    pub fn as_scalar(&self) -> Option<f64> {
        if self.len() != 1 {
            return None;
        }
        if self.dtype == DType::DOUBLE {
            let b = self.to_le_bytes()?;
            return Some(f64::from_le_bytes(b.get(..8)?.try_into().ok()?));
        }
        if self.dtype.is_float() { Some(self.to_f32s()?[0] as f64) } else { Some(self.to_i64s()?[0] as f64) }
    }

    /// The same tensor with every float element widened to f32; other types unchanged.
    pub fn widened(&self) -> Tensor {
        match self.to_f32s() {
            Some(v) if self.dtype != DType::FLOAT => Tensor::f32(&self.dims, &v),
            _ => self.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typed_and_raw_storage_read_the_same() {
        let raw = Tensor::f32(&[2], &[1.5, -2.0]);
        let typed = Tensor { data: Payload::F32(vec![1.5, -2.0].into()), ..raw.clone() };
        assert_eq!(raw.to_f32s(), typed.to_f32s());
        assert_eq!(raw.to_le_bytes(), typed.to_le_bytes());
    }

    #[test]
    fn four_bit_elements_unpack_low_nibble_first() {
        let t = Tensor::raw(DType::INT4, &[3], vec![0xF1u8, 0x07]);
        assert_eq!(t.to_i64s(), Some(vec![1, -1, 7]));
    }

    #[test]
    fn a_short_payload_is_not_read() {
        let t = Tensor {
            dtype: DType::FLOAT,
            dims: vec![3],
            data: Payload::Raw(Bytes::from_static(&[0; 8])),
            rider: Rider::default(),
        };
        assert_eq!(t.to_f32s(), None);
    }

    #[test]
    fn int32_payload_narrows_to_the_element_type() {
        let t = Tensor {
            dtype: DType::FLOAT16,
            dims: vec![1],
            data: Payload::I32(vec![0x3C00].into()),
            rider: Rider::default(),
        };
        assert_eq!(t.to_f32s().as_deref(), Some(&[1.0f32][..]));
    }
}
