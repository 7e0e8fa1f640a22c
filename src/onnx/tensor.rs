//! Tensors and declared types: both directions side by side, so that what one takes out the other puts back.
//!
//! The pattern, here and in [`super::attr`]: `take_*` moves what the IR models out of a message; what stays after, if
//! anything, is encoded as the rider. `*_proto` starts from the rider and puts the modelled fields over it.

use std::sync::Arc;

use prost::Message;

use super::proto;
use crate::ir::{DType, Dim, Payload, Rider, Tensor, TensorType};

/// Encodes what is left of a message.
pub(super) fn rider(rest: &impl Message) -> Rider {
    // Nothing left is the normal case and must not allocate.
    if rest.encoded_len() == 0 { Rider::default() } else { Rider(rest.encode_to_vec().into()) }
}

/// The message a rider holds.
///
/// # Panics
/// If the rider is not of this message: only the front end makes riders.
pub(super) fn rest<M: Message + Default>(rider: &Rider) -> M {
    M::decode(rider.0.clone()).expect("a rider holds the message the front end encoded")
}

/// Takes a string out. An explicitly written empty string stays, so that it is written again.
pub(super) fn take_str(slot: &mut Option<String>) -> String {
    if slot.as_deref().is_some_and(|s| !s.is_empty()) { slot.take().unwrap_or_default() } else { String::new() }
}

/// Puts back what [`take_str`] took.
pub(super) fn put_str(slot: &mut Option<String>, s: &str) {
    if !s.is_empty() {
        *slot = Some(s.to_owned());
    } else if slot.as_deref().is_some_and(|s| !s.is_empty()) {
        *slot = None;
    }
}

/// What `data_location` says of a tensor whose elements lie in another file.
pub(super) const FAR: i32 = proto::tensor_proto::DataLocation::External as i32;

/// Takes the tensor out of a message; the name is left to the caller.
pub(super) fn take_tensor(p: &mut proto::TensorProto) -> Tensor {
    let dims = std::mem::take(&mut p.dims);
    let dtype = DType(if p.data_type == Some(0) { 0 } else { p.data_type.take().unwrap_or(0) });
    Tensor { dtype, dims, data: take_payload(p, dtype), rider: Rider::default() }
}

fn take_payload(p: &mut proto::TensorProto, dtype: DType) -> Payload {
    if p.data_location == Some(FAR) {
        // A half-written entry cannot be told from an empty one in the IR: such a list stays in the rider as well.
        let whole = p.external_data.iter().all(|e| e.key.is_some() && e.value.is_some());
        let list = if whole { std::mem::take(&mut p.external_data) } else { p.external_data.clone() };
        p.data_location = None;
        let entries: Arc<[(String, String)]> =
            list.into_iter().map(|e| (e.key.unwrap_or_default(), e.value.unwrap_or_default())).collect();
        return Payload::External(entries);
    }
    if let Some(b) = p.raw_data.take() {
        Payload::Raw(b)
    } else if !p.float_data.is_empty() {
        Payload::F32(std::mem::take(&mut p.float_data).into())
    } else if !p.int32_data.is_empty() {
        Payload::I32(std::mem::take(&mut p.int32_data).into())
    } else if !p.int64_data.is_empty() {
        Payload::I64(std::mem::take(&mut p.int64_data).into())
    } else if !p.double_data.is_empty() {
        Payload::F64(std::mem::take(&mut p.double_data).into())
    } else if !p.uint64_data.is_empty() {
        Payload::U64(std::mem::take(&mut p.uint64_data).into())
    } else if !p.string_data.is_empty() {
        Payload::Str(std::mem::take(&mut p.string_data).into())
    } else {
        // No elements written: an empty list of the kind this type would use writes nothing either.
        match dtype {
            DType::FLOAT | DType::COMPLEX64 => Payload::F32(Arc::from([])),
            DType::DOUBLE | DType::COMPLEX128 => Payload::F64(Arc::from([])),
            DType::INT64 => Payload::I64(Arc::from([])),
            DType::UINT32 | DType::UINT64 => Payload::U64(Arc::from([])),
            DType::STRING => Payload::Str(Arc::from([])),
            _ => Payload::I32(Arc::from([])),
        }
    }
}

/// The message of a tensor, without its name.
pub(super) fn tensor_proto(t: &Tensor) -> proto::TensorProto {
    let mut p: proto::TensorProto = rest(&t.rider);
    p.dims = t.dims.clone();
    if t.dtype != DType::UNDEFINED {
        p.data_type = Some(t.dtype.0);
    }
    match &t.data {
        Payload::Raw(b) => p.raw_data = Some(b.clone()),
        Payload::F32(v) => p.float_data = v.to_vec(),
        Payload::I32(v) => p.int32_data = v.to_vec(),
        Payload::I64(v) => p.int64_data = v.to_vec(),
        Payload::F64(v) => p.double_data = v.to_vec(),
        Payload::U64(v) => p.uint64_data = v.to_vec(),
        Payload::Str(v) => p.string_data = v.to_vec(),
        Payload::External(entries) => {
            p.data_location = Some(FAR);
            let same = p.external_data.len() == entries.len()
                && p.external_data
                    .iter()
                    .zip(entries.iter())
                    .all(|(a, b)| a.key.as_deref().unwrap_or("") == b.0 && a.value.as_deref().unwrap_or("") == b.1);
            if !same {
                p.external_data = entries
                    .iter()
                    .map(|(k, v)| proto::StringStringEntryProto { key: Some(k.clone()), value: Some(v.clone()) })
                    .collect();
            }
            return p;
        }
    }
    p
}

/// The tensor type a declaration states, if it states one.
pub(super) fn type_of(p: &proto::TypeProto) -> Option<TensorType> {
    let t = p.tensor_type.as_ref()?;
    let shape = t.shape.as_ref().map(|s| s.dim.iter().map(dim_of).collect());
    Some(TensorType { dtype: DType(t.elem_type.unwrap_or(0)), shape })
}

fn dim_of(d: &proto::tensor_shape_proto::Dimension) -> Dim {
    use proto::tensor_shape_proto::dimension::Value;
    match &d.value {
        Some(Value::DimValue(n)) => Dim::Known(*n),
        Some(Value::DimParam(s)) => Dim::Symbol(s.clone()),
        None => Dim::Unknown,
    }
}

/// The declaration of a tensor type.
pub(super) fn type_proto(t: &TensorType) -> proto::TypeProto {
    use proto::tensor_shape_proto::{Dimension, dimension::Value};
    let dim = |d: &Dim| Dimension {
        value: match d {
            Dim::Known(n) => Some(Value::DimValue(*n)),
            Dim::Symbol(s) => Some(Value::DimParam(s.clone())),
            Dim::Unknown => None,
        },
        denotation: None,
    };
    proto::TypeProto {
        tensor_type: Some(proto::type_proto::Tensor {
            elem_type: Some(t.dtype.0),
            shape: t.shape.as_ref().map(|s| proto::TensorShapeProto { dim: s.iter().map(dim).collect() }),
        }),
        ..Default::default()
    }
}

/// Takes type and rider out of a declaration; a type the IR cannot hold exactly stays in the rider too.
pub(super) fn take_declaration(p: &proto::ValueInfoProto) -> (Option<TensorType>, Rider) {
    let ty = p.r#type.as_ref().and_then(type_of);
    let exact = match (&ty, &p.r#type) {
        (Some(t), Some(p)) => type_proto(t) == *p,
        (None, None) => true,
        _ => false,
    };
    let left = proto::ValueInfoProto {
        // The empty name, if written, is the caller's error; otherwise the name is the value's.
        name: None,
        r#type: if exact { None } else { p.r#type.clone() },
        doc_string: p.doc_string.clone(),
        metadata_props: p.metadata_props.clone(),
    };
    (ty, rider(&left))
}

/// The declaration of a value with this name, type and rider.
pub(super) fn declaration(name: &str, ty: Option<&TensorType>, kept: &Rider) -> proto::ValueInfoProto {
    let mut p: proto::ValueInfoProto = rest(kept);
    p.name = Some(name.to_owned());
    // The kept type says more than the IR's; it stands as long as no pass changed the type.
    let stands = p.r#type.as_ref().is_some_and(|k| type_of(k).as_ref() == ty);
    if !stands {
        p.r#type = ty.map(type_proto);
    }
    p
}
