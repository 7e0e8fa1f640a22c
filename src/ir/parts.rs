//! What a graph consists of: nodes, values, and their types.

use std::fmt;

use super::{AttrValue, Attrs, DType, Rider, Tensor};

/// A node's identity. Numbers are never reused, so an id kept across a rewrite names its node or nothing at all
/// (petgraph's own indices are recycled).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub(crate) u32);

/// A value's identity; never reused either.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ValueId(pub(crate) u32);

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

impl fmt::Debug for ValueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0)
    }
}

/// One size of a shape.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Dim {
    Known(i64),
    /// A named size such as `batch`.
    Symbol(String),
    Unknown,
}

/// Element type and, if declared, shape of a tensor value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorType {
    pub dtype: DType,
    pub shape: Option<Vec<Dim>>,
}

impl TensorType {
    /// A type whose number of axes is known.
    pub fn new(dtype: DType, shape: impl IntoIterator<Item = Dim>) -> TensorType {
        TensorType { dtype, shape: Some(shape.into_iter().collect()) }
    }

    /// The sizes, if every one is a number.
    pub fn known_dims(&self) -> Option<Vec<i64>> {
        self.shape.as_ref()?.iter().map(|d| if let Dim::Known(n) = d { Some(*n) } else { None }).collect()
    }
}

/// What makes a value.
#[derive(Clone, Debug, PartialEq)]
pub enum Def {
    /// Output `slot` of a node.
    Node { node: NodeId, slot: usize },
    /// A graph input.
    Input,
    /// A constant of the graph.
    Init(Tensor),
    /// A graph input with a default (an initializer under an input's name): a caller may override it, so it is no
    /// constant.
    InputWithDefault(Tensor),
    /// A sparse initializer: a constant the IR does not read. It rides along in the graph's rider.
    Sparse,
    /// Nothing in this graph. Validation refuses a use of it.
    Nothing,
}

/// A value: what flows along edges.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    pub name: String,
    pub def: Def,
    /// The type the file declares (or a pass knows).
    pub ty: Option<TensorType>,
    /// What a declaration said that the IR does not model (doc string, denotations, non-tensor types).
    pub rider: Rider,
    /// Readers, in no meaningful order: `(node, input slot)`.
    pub(crate) uses: Vec<(NodeId, usize)>,
    /// How often the graph lists it as an output.
    pub(super) outs: u32,
    /// Whether it has a `value_info` entry.
    pub(super) listed: bool,
}

/// Where a node comes from: told in reports and error messages.
#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    Imported,
    /// Made by a rule or pass out of the named nodes or values.
    Made {
        by: String,
        from: Vec<String>,
    },
}

/// Operator name and domain. The empty domain is ONNX's own.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Op {
    pub domain: String,
    pub name: String,
}

impl Op {
    /// An operator of the standard domain.
    pub fn onnx(name: &str) -> Op {
        Op { domain: String::new(), name: name.to_owned() }
    }

    /// True if this is the standard operator `name`.
    pub fn is(&self, name: &str) -> bool {
        self.name == name && self.is_onnx()
    }

    /// True for ONNX's own domain (written as `""` or `ai.onnx`).
    pub fn is_onnx(&self) -> bool {
        self.domain.is_empty() || self.domain == "ai.onnx"
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.domain.is_empty() { f.write_str(&self.name) } else { write!(f, "{}.{}", self.domain, self.name) }
    }
}

/// An operator call.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub op: Op,
    /// The node's own name; may be empty or repeated, the standard allows both.
    pub name: String,
    /// `None` is an omitted optional input.
    pub inputs: Vec<Option<ValueId>>,
    pub outputs: Vec<Option<ValueId>>,
    pub attrs: Attrs,
    /// Outer values that nested graphs read.
    pub captures: Vec<ValueId>,
    pub origin: Origin,
    pub rider: Rider,
    /// Place in the written order; see [`Graph::schedule`].
    pub(crate) rank: (u32, u32),
}

impl Node {
    /// A node as a front end makes it; the graph fills in its place.
    pub fn new(op: Op, inputs: Vec<Option<ValueId>>, outputs: Vec<Option<ValueId>>, attrs: Attrs) -> Node {
        Node {
            op,
            name: String::new(),
            inputs,
            outputs,
            attrs,
            captures: Vec::new(),
            origin: Origin::Imported,
            rider: Rider::default(),
            rank: (0, 0),
        }
    }

    /// Input `i`, if present.
    pub fn input(&self, i: usize) -> Option<ValueId> {
        self.inputs.get(i).copied().flatten()
    }

    /// Output `i`, if present.
    pub fn output(&self, i: usize) -> Option<ValueId> {
        self.outputs.get(i).copied().flatten()
    }

    /// Output 0; nearly every standard operator has one (of an LSTM it may be left out).
    pub fn out(&self) -> Option<ValueId> {
        self.output(0)
    }

    /// True if this pass or rule made the node.
    pub fn origin_is(&self, maker: &str) -> bool {
        self.maker() == Some(maker)
    }

    /// The pass or rule that made the node; `None` for a node of the file.
    pub fn maker(&self) -> Option<&str> {
        match &self.origin {
            Origin::Made { by, .. } => Some(by),
            Origin::Imported => None,
        }
    }

    /// True if the node holds a nested graph.
    pub fn has_subgraph(&self) -> bool {
        self.attrs.0.iter().any(|a| matches!(a.value, AttrValue::Graph(_) | AttrValue::Graphs(_)))
    }
}
