//! What a constant must be: sizes, element type and storage that agree.

use super::super::show::{component, type_of, type_text};
use super::super::{DType, Dim, Payload, Tensor, TensorType};
use crate::budget;

/// True if a declared type says nothing that the tensor contradicts.
pub(super) fn agrees(ty: &TensorType, t: &Tensor) -> bool {
    ty.dtype == t.dtype
        && ty.shape.as_ref().is_none_or(|s| {
            s.len() == t.dims.len() && s.iter().zip(&t.dims).all(|(d, n)| !matches!(d, Dim::Known(k) if k != n))
        })
}

/// What is wrong with a constant, as ends of a sentence that begins with its name.
pub(super) fn tensor_problems(t: &Tensor) -> Vec<String> {
    if let Some(d) = t.dims.iter().find(|d| **d < 0) {
        return vec![format!("has a negative size, {d}")];
    }
    let Some(len) = budget::elements(t.dims.iter().copied()).and_then(|n| usize::try_from(n).ok()) else {
        return vec!["has sizes whose product no memory can hold".to_owned()];
    };
    if t.dtype == DType::UNDEFINED {
        return vec!["has no element type".to_owned()];
    }
    if t.dtype.name().is_none() {
        return vec![format!("has element type {}, which the standard does not have", t.dtype.0)];
    }
    if !storage_fits(t) {
        return vec![format!("keeps its elements in a field that is not for {}", t.dtype)];
    }
    let bytes = t.byte_len();
    let (want, have, unit) = match &t.data {
        Payload::Raw(b) if t.dtype.bits().is_some() => (bytes, b.len(), "byte"),
        Payload::Raw(_) | Payload::External(_) => return Vec::new(),
        Payload::F32(v) => (complex_len(t.dtype, len), v.len(), "element"),
        Payload::F64(v) => (complex_len(t.dtype, len), v.len(), "element"),
        // Sub-byte elements are packed, one byte to an entry.
        Payload::I32(v) => (if t.dtype.bits().is_some_and(|b| b < 8) { bytes } else { len }, v.len(), "element"),
        Payload::I64(v) => (len, v.len(), "element"),
        Payload::U64(v) => (len, v.len(), "element"),
        Payload::Str(v) => (len, v.len(), "element"),
    };
    if want == have {
        return Vec::new();
    }
    vec![format!("holds {}, but {} needs {want}", plural(have, unit), type_text(&type_of(t)))]
}

/// Entries of a typed field: complex elements take two.
fn complex_len(t: DType, len: usize) -> usize {
    if component(t) == t { len } else { 2 * len }
}

/// True if the standard lets elements of this type stand in this field. Types it does not know may stand anywhere.
fn storage_fits(t: &Tensor) -> bool {
    if t.dtype.name().is_none() {
        return true;
    }
    match &t.data {
        Payload::Raw(_) => t.dtype != DType::STRING,
        Payload::External(_) => t.dtype != DType::STRING,
        Payload::F32(_) => matches!(t.dtype, DType::FLOAT | DType::COMPLEX64),
        Payload::F64(_) => matches!(t.dtype, DType::DOUBLE | DType::COMPLEX128),
        Payload::I64(_) => t.dtype == DType::INT64,
        Payload::U64(_) => matches!(t.dtype, DType::UINT32 | DType::UINT64),
        Payload::Str(_) => t.dtype == DType::STRING,
        Payload::I32(_) => {
            t.dtype == DType::INT32 || (t.dtype.bits().is_some_and(|b| b <= 16) && t.dtype != DType::STRING)
        }
    }
}

fn plural(n: usize, what: &str) -> String {
    if n == 1 { format!("{n} {what}") } else { format!("{n} {what}s") }
}
