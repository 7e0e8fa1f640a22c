//! Node attributes, in file order.

use std::sync::Arc;

use bytes::Bytes;

use super::{Rider, Tensor};

/// One attribute of a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Attr {
    pub name: String,
    pub value: AttrValue,
    pub rider: Rider,
}

/// An attribute's value, one variant for each ONNX attribute type.
#[derive(Clone, Debug, PartialEq)]
pub enum AttrValue {
    Float(f32),
    Int(i64),
    Str(Bytes),
    Tensor(Tensor),
    Floats(Arc<[f32]>),
    Ints(Arc<[i64]>),
    Strs(Arc<[Bytes]>),
    Tensors(Arc<[Tensor]>),
    /// A nested graph, kept encoded: bodies of If, Loop and Scan are carried, never rewritten. What they read from
    /// outside stands in [`Node::captures`](super::Node::captures).
    Graph(Bytes),
    Graphs(Arc<[Bytes]>),
    /// A reference to an attribute of the enclosing model-local function.
    Ref {
        attr: String,
        kind: i32,
    },
    /// Sparse tensors, type protos, and whatever a later standard adds: the encoded attribute.
    Other(Bytes),
}

/// The attributes of a node. Order is the file's; lookups are linear because nodes have few.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Attrs(pub Vec<Attr>);

impl Attrs {
    /// No attributes.
    pub fn new() -> Attrs {
        Attrs::default()
    }

    /// The attribute of this name, whatever its type.
    pub fn get(&self, name: &str) -> Option<&AttrValue> {
        self.0.iter().find(|a| a.name == name).map(|a| &a.value)
    }

    /// The integer of this name; `None` if there is none or it has another type.
    pub fn int(&self, name: &str) -> Option<i64> {
        match self.get(name)? {
            AttrValue::Int(v) => Some(*v),
            _ => None,
        }
    }

    /// The float of this name; `None` if there is none or it has another type.
    pub fn float(&self, name: &str) -> Option<f32> {
        match self.get(name)? {
            AttrValue::Float(v) => Some(*v),
            _ => None,
        }
    }

    /// The list of integers of this name; `None` if there is none or it has another type.
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        match self.get(name)? {
            AttrValue::Ints(v) => Some(v),
            _ => None,
        }
    }

    /// The text of this name; `None` if there is none, it has another type, or it is not UTF-8.
    pub fn str(&self, name: &str) -> Option<&str> {
        match self.get(name)? {
            AttrValue::Str(v) => std::str::from_utf8(v).ok(),
            _ => None,
        }
    }

    /// The tensor of this name; `None` if there is none or it has another type.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        match self.get(name)? {
            AttrValue::Tensor(v) => Some(v),
            _ => None,
        }
    }

    /// Sets or replaces one attribute; a replaced one keeps its place.
    pub fn set(&mut self, name: &str, value: AttrValue) {
        match self.0.iter_mut().find(|a| a.name == name) {
            Some(a) => a.value = value,
            None => self.0.push(Attr { name: name.to_owned(), value, rider: Rider::default() }),
        }
    }

    /// Takes an attribute out, if it is there.
    pub fn remove(&mut self, name: &str) {
        self.0.retain(|a| a.name != name);
    }

    /// Builder form of [`Attrs::set`].
    pub fn with(mut self, name: &str, value: AttrValue) -> Attrs {
        self.set(name, value);
        self
    }

    /// With an integer.
    pub fn with_int(self, name: &str, v: i64) -> Attrs {
        self.with(name, AttrValue::Int(v))
    }

    /// With a float.
    pub fn with_float(self, name: &str, v: f32) -> Attrs {
        self.with(name, AttrValue::Float(v))
    }

    /// With a list of integers.
    pub fn with_ints(self, name: &str, v: &[i64]) -> Attrs {
        self.with(name, AttrValue::Ints(v.into()))
    }

    /// With a text.
    pub fn with_str(self, name: &str, v: &str) -> Attrs {
        self.with(name, AttrValue::Str(Bytes::copy_from_slice(v.as_bytes())))
    }
}
