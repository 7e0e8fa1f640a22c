//! The intermediate representation: what a model is while it is being compiled.
//!
//! A [`Model`] is one ONNX file. Its [`Graph`] holds *nodes* (operator calls) and *values* (what flows between them).
//! Every value has one definition: a node's output, a graph input, or a constant. Nodes sit in a petgraph
//! `StableDiGraph`, whose edges say which value goes into which input; values have a table of their own because a graph
//! input or a constant has no node. Ids ([`NodeId`], [`ValueId`]) are never reused.
//!
//! What the IR does not model (doc strings, metadata, functions, training information, unknown attributes) rides along
//! as a [`Rider`], undecoded, and is written back where it was.
//!
//! What may change a graph: the front ends while they build it, and a [`Patch`](crate::rewrite::Patch), which is
//! checked and committed whole. What may read it: everybody. This module knows none of its users.

mod attr;
mod dtype;
mod graph;
mod history;
pub mod masks;
mod nearest;
pub mod ops;
mod parts;
pub mod show;
mod tensor;
pub mod validate;
pub mod vocabulary;

use bytes::Bytes;

pub use attr::{Attr, AttrValue, Attrs};
pub use dtype::DType;
pub use graph::Graph;
pub(crate) use history::{Changed, Moment};
pub use nearest::nearest;
pub use parts::{Def, Dim, Node, NodeId, Op, Origin, TensorType, Value, ValueId};
pub use tensor::{Payload, Tensor};
pub use validate::{Invalid, Validated, Violation};
pub use vocabulary::{Class, axis};

/// Encoded fields that the IR carries without understanding them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rider(pub Bytes);

impl Rider {
    /// True if it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// One operator set import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opset {
    pub domain: String,
    pub version: i64,
}

/// A whole ONNX file.
#[derive(Clone, Debug, Default)]
pub struct Model {
    pub ir_version: i64,
    /// In file order.
    pub opsets: Vec<Opset>,
    pub graph: Graph,
    /// `(domain, name)` of the model-local functions; their bodies are in the rider.
    pub functions: Vec<(String, String)>,
    /// Model fields the IR does not model.
    pub rider: Rider,
}

impl Model {
    /// Version of the standard operator set; 0 if the file imports none.
    pub fn opset(&self) -> i64 {
        self.opsets.iter().find(|o| o.domain.is_empty() || o.domain == "ai.onnx").map_or(0, |o| o.version)
    }
}
