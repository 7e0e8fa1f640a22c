//! Attributes, both directions.

use bytes::Bytes;
use prost::Message;

use super::proto;
use super::proto::attribute_proto::AttributeType as Kind;
use super::tensor::{put_str, rest, rider, take_str, take_tensor, tensor_proto};
use crate::ir::{Attr, AttrValue, Rider, Tensor};

/// Reads one attribute.
///
/// Two remarks can stand in the rider's `type` field, which is otherwise the IR's: `UNDEFINED` says that the file gave
/// no type (format version 1), the attribute's own type says that the value field was left at its default, unwritten.
pub(super) fn take_attr(mut p: proto::AttributeProto) -> Attr {
    // What goes undecoded goes as it came.
    let name = p.name.clone().unwrap_or_default();
    let kind = match p.r#type {
        Some(k) => Kind::try_from(k).ok(),
        None => sole_kind(&p),
    };
    let other = |p: proto::AttributeProto| Attr {
        name: name.clone(),
        value: AttrValue::Other(p.encode_to_vec().into()),
        rider: Rider::default(),
    };
    let odd = p.r#type == Some(Kind::Undefined as i32);
    let Some(kind) = kind.filter(|_| !odd) else { return other(p) };
    let typed = p.r#type.is_some();

    if p.ref_attr_name.is_some() {
        let mut bare = p.clone();
        bare.name = None;
        bare.doc_string = None;
        bare.r#type = None;
        bare.ref_attr_name = None;
        if bare.encoded_len() > 0 || !typed {
            return other(p);
        }
        let attr = p.ref_attr_name.take().unwrap_or_default();
        p.r#type = None;
        take_str(&mut p.name);
        return Attr { name, value: AttrValue::Ref { attr, kind: kind as i32 }, rider: rider(&p) };
    }

    let mut absent = false;
    let value = match kind {
        Kind::Float => AttrValue::Float(p.f.take().unwrap_or_else(|| flag(&mut absent))),
        Kind::Int => AttrValue::Int(p.i.take().unwrap_or_else(|| flag(&mut absent))),
        Kind::String => AttrValue::Str(p.s.take().unwrap_or_else(|| flag(&mut absent))),
        Kind::Tensor => match p.t.take() {
            Some(t) => AttrValue::Tensor(attr_tensor(t)),
            None => return other(p),
        },
        Kind::Graph => match p.g.take() {
            Some(g) => AttrValue::Graph(g.encode_to_vec().into()),
            None => return other(p),
        },
        Kind::Floats => AttrValue::Floats(std::mem::take(&mut p.floats).into()),
        Kind::Ints => AttrValue::Ints(std::mem::take(&mut p.ints).into()),
        Kind::Strings => AttrValue::Strs(std::mem::take(&mut p.strings).into()),
        Kind::Tensors => AttrValue::Tensors(std::mem::take(&mut p.tensors).into_iter().map(attr_tensor).collect()),
        Kind::Graphs => AttrValue::Graphs(
            std::mem::take(&mut p.graphs).into_iter().map(|g| Bytes::from(g.encode_to_vec())).collect(),
        ),
        Kind::SparseTensor | Kind::SparseTensors | Kind::TypeProto | Kind::TypeProtos | Kind::Undefined => {
            return other(p);
        }
    };
    p.r#type = match (typed, absent) {
        (false, _) => Some(Kind::Undefined as i32),
        (true, true) => Some(kind as i32),
        (true, false) => None,
    };
    take_str(&mut p.name);
    Attr { name, value, rider: rider(&p) }
}

fn flag<T: Default>(absent: &mut bool) -> T {
    *absent = true;
    T::default()
}

/// The type of an attribute that does not state it, if exactly one value field is written.
fn sole_kind(p: &proto::AttributeProto) -> Option<Kind> {
    let fields = [
        (p.f.is_some(), Kind::Float),
        (p.i.is_some(), Kind::Int),
        (p.s.is_some(), Kind::String),
        (p.t.is_some(), Kind::Tensor),
        (p.g.is_some(), Kind::Graph),
        (!p.floats.is_empty(), Kind::Floats),
        (!p.ints.is_empty(), Kind::Ints),
        (!p.strings.is_empty(), Kind::Strings),
        (!p.tensors.is_empty(), Kind::Tensors),
        (!p.graphs.is_empty(), Kind::Graphs),
    ];
    let mut written = fields.iter().filter(|(w, _)| *w).map(|(_, k)| *k);
    let first = written.next()?;
    if written.next().is_some() { None } else { Some(first) }
}

fn attr_tensor(mut p: proto::TensorProto) -> Tensor {
    let t = take_tensor(&mut p);
    Tensor { rider: rider(&p), ..t }
}

/// The graph an attribute value holds encoded.
///
/// # Panics
/// If the bytes are no graph: only the front end makes them.
pub(super) fn body(b: &Bytes) -> proto::GraphProto {
    proto::GraphProto::decode(b.clone()).expect("a nested graph is what the front end encoded")
}

/// The message of an attribute.
pub(super) fn attr_proto(a: &Attr) -> proto::AttributeProto {
    if let AttrValue::Other(b) = &a.value {
        let mut p =
            proto::AttributeProto::decode(b.clone()).expect("an undecoded attribute is what the front end encoded");
        put_str(&mut p.name, &a.name);
        return p;
    }
    let mut p: proto::AttributeProto = rest(&a.rider);
    put_str(&mut p.name, &a.name);
    let remark = p.r#type.take();
    let kind = match &a.value {
        AttrValue::Float(v) => {
            p.f = Some(*v);
            Kind::Float
        }
        AttrValue::Int(v) => {
            p.i = Some(*v);
            Kind::Int
        }
        AttrValue::Str(v) => {
            p.s = Some(v.clone());
            Kind::String
        }
        AttrValue::Tensor(t) => {
            p.t = Some(tensor_proto(t));
            Kind::Tensor
        }
        AttrValue::Graph(b) => {
            p.g = Some(body(b));
            Kind::Graph
        }
        AttrValue::Floats(v) => {
            p.floats = v.to_vec();
            Kind::Floats
        }
        AttrValue::Ints(v) => {
            p.ints = v.to_vec();
            Kind::Ints
        }
        AttrValue::Strs(v) => {
            p.strings = v.to_vec();
            Kind::Strings
        }
        AttrValue::Tensors(v) => {
            p.tensors = v.iter().map(tensor_proto).collect();
            Kind::Tensors
        }
        AttrValue::Graphs(v) => {
            p.graphs = v.iter().map(body).collect();
            Kind::Graphs
        }
        AttrValue::Ref { attr, kind } => {
            p.ref_attr_name = Some(attr.clone());
            p.r#type = Some(*kind);
            return p;
        }
        AttrValue::Other(_) => unreachable!("returned above"),
    };
    p.r#type = Some(kind as i32);
    if remark == Some(Kind::Undefined as i32) {
        p.r#type = None;
    } else if remark == Some(kind as i32) {
        // Unwritten defaults stay unwritten; a value a pass has set is written.
        match kind {
            Kind::Float => p.f = p.f.filter(|v| v.to_bits() != 0),
            Kind::Int => p.i = p.i.filter(|v| *v != 0),
            Kind::String => p.s = p.s.filter(|v| !v.is_empty()),
            _ => {}
        }
    }
    p
}
