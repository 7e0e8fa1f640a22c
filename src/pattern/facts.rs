//! What can be known of a model's values without running it: constants, ranks, and which attribute a node really has.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::ir::{AttrValue, DType, Def, Dim, Graph, Model, Node, NodeId, Tensor, ValueId};

use super::ops;

/// Facts about one state of a model. A rewrite makes them stale: build new ones after a commit.
#[derive(Clone, Debug)]
pub struct Facts<'m> {
    pub model: &'m Model,
    ranks: BTreeMap<ValueId, usize>,
    /// Lengths of one-dimensional integer values, of which shapes are made.
    lengths: BTreeMap<ValueId, usize>,
}

/// Longest chain of Identity and Cast nodes that is followed; a file with a cycle ends there too.
const FAR: usize = 64;

impl<'m> Facts<'m> {
    pub fn new(model: &'m Model) -> Facts<'m> {
        let mut f = Facts { model, ranks: BTreeMap::new(), lengths: BTreeMap::new() };
        for id in model.graph.schedule() {
            let n = model.graph.node(id);
            for (i, v) in n.outputs.iter().enumerate() {
                let Some(v) = *v else { continue };
                if i == 0
                    && let Some(len) = f.length_made(n)
                {
                    f.lengths.insert(v, len);
                }
                let declared = f.graph().value(v).ty.as_ref().and_then(|t| t.shape.as_ref()).map(Vec::len);
                if let Some(r) = declared.or_else(|| f.rank_made(n)) {
                    f.ranks.insert(v, r);
                }
            }
        }
        f
    }

    pub fn graph(&self) -> &'m Graph {
        &self.model.graph
    }

    /// The value behind Identity nodes.
    pub fn source(&self, mut v: ValueId) -> ValueId {
        for _ in 0..FAR {
            match self.graph().producer_is(v, "Identity").and_then(|n| self.graph().node(n).input(0)) {
                Some(x) => v = x,
                None => break,
            }
        }
        v
    }

    /// The constant behind a value, seen through Identity, Cast and Constant nodes of every form. The tensor is the one
    /// before the casts: its numbers are what counts here, not its type.
    pub fn constant(&self, v: ValueId) -> Option<Cow<'m, Tensor>> {
        let mut v = v;
        for _ in 0..FAR {
            match &self.graph().try_value(v)?.def {
                Def::Init(t) => return Some(Cow::Borrowed(t)),
                Def::Node { node, .. } => {
                    let n = self.graph().node(*node);
                    if n.op.is("Constant") {
                        return constant_node(n);
                    }
                    if !n.op.is("Identity") && !n.op.is("Cast") {
                        return None;
                    }
                    v = n.input(0)?;
                }
                _ => return None,
            }
        }
        None
    }

    /// True if the two are the same value, or constants of equal type, shape and content (large ones are not compared).
    pub fn same(&self, a: ValueId, b: ValueId) -> bool {
        const LARGE: usize = 1 << 16;
        if self.source(a) == self.source(b) {
            return true;
        }
        let (Some(x), Some(y)) = (self.constant(a), self.constant(b)) else { return false };
        self.dtype(a) == self.dtype(b)
            && x.dtype == y.dtype
            && x.dims == y.dims
            && x.byte_len() <= LARGE
            && x.to_le_bytes().is_some()
            && x.to_le_bytes() == y.to_le_bytes()
    }

    /// Element type: declared, or of the constant, or handed through from the first input of a node that keeps it.
    pub fn dtype(&self, v: ValueId) -> Option<DType> {
        let mut v = v;
        for _ in 0..4 * FAR {
            let x = self.graph().try_value(v)?;
            if let Some(t) = &x.ty {
                return Some(t.dtype);
            }
            match &x.def {
                Def::Init(t) | Def::InputWithDefault(t) => return Some(t.dtype),
                Def::Node { node, slot: 0 } => {
                    let n = self.graph().node(*node);
                    match n.op.name.as_str() {
                        "Constant" => return constant_node(n).map(|t| t.dtype),
                        "Cast" => return n.attrs.int("to").map(|t| DType(t as i32)),
                        "IsNaN" | "IsInf" | "Equal" | "Less" | "Greater" | "Not" | "And" | "Or" => {
                            return Some(DType::BOOL);
                        }
                        "Shape" | "Size" | "ArgMax" | "ArgMin" | "NonZero" => return Some(DType::INT64),
                        "Where" => v = n.input(1)?,
                        name if KEEPS_TYPE.contains(&name) && n.op.is_onnx() => v = n.input(0)?,
                        _ => return None,
                    }
                }
                _ => return None,
            }
        }
        None
    }

    /// Number of dimensions, where declared or derivable.
    pub fn rank(&self, v: ValueId) -> Option<usize> {
        if let Some(r) = self.ranks.get(&v) {
            return Some(*r);
        }
        let x = self.graph().try_value(v)?;
        match &x.def {
            Def::Init(t) | Def::InputWithDefault(t) => Some(t.dims.len()),
            _ => x.ty.as_ref()?.shape.as_ref().map(Vec::len),
        }
    }

    /// Sizes, where declared (or of a constant).
    pub fn shape(&self, v: ValueId) -> Option<Vec<Dim>> {
        if let Some(s) = self.graph().try_value(v)?.ty.as_ref().and_then(|t| t.shape.clone()) {
            return Some(s);
        }
        self.constant(v).map(|t| t.dims.iter().map(|d| Dim::Known(*d)).collect())
    }

    /// An axis counted from the end (`-1` is the last) where the rank of what it counts in is known, otherwise as it is.
    pub fn axis_from_end(&self, node: NodeId, axis: i64) -> i64 {
        let n = self.graph().node(node);
        // Unsqueeze counts in its output; everybody else in the first input.
        let counted = if n.op.is("Unsqueeze") { n.out() } else { n.input(0) };
        match counted.and_then(|v| self.rank(v)) {
            Some(r) if axis >= 0 => axis - r as i64,
            _ => axis,
        }
    }

    /// What an attribute is: as written, or as the constant input that carries it in later opsets, or its default. With
    /// it the input slot that was read for it.
    pub fn attribute(&self, node: NodeId, name: &str) -> (Option<AttrValue>, Option<usize>) {
        let n = self.graph().node(node);
        if let Some(v) = n.attrs.get(name) {
            return (Some(v.clone()), None);
        }
        if !n.op.is_onnx() {
            return (None, None);
        }
        if let Some(slot) = ops::attr_input(&n.op.name, name)
            && let Some(v) = n.input(slot)
        {
            return (self.constant(v).and_then(|t| as_attribute(&t)), Some(slot));
        }
        (ops::attr_default(&n.op.name, name, self.model.opset()), None)
    }

    fn ints(&self, v: ValueId) -> Option<Vec<i64>> {
        self.constant(v)?.to_i64s()
    }

    /// Length of the vector a node makes.
    fn length_made(&self, n: &Node) -> Option<usize> {
        let len = |v: Option<ValueId>| self.length(v?);
        match n.op.name.as_str() {
            "Shape" => {
                self.rank(n.input(0)?).filter(|_| n.attrs.get("start").is_none() && n.attrs.get("end").is_none())
            }
            "Concat" => n.inputs.iter().map(|v| len(*v)).sum(),
            "Cast" | "Identity" => len(n.input(0)),
            "Unsqueeze" if self.rank(n.input(0)?)? == 0 => Some(1),
            "Constant" => constant_node(n).filter(|t| t.dims.len() == 1).map(|t| t.len()),
            _ => None,
        }
    }

    fn length(&self, v: ValueId) -> Option<usize> {
        if let Some(n) = self.lengths.get(&v) {
            return Some(*n);
        }
        if let Some(t) = self.constant(v) {
            return (t.dims.len() == 1).then(|| t.len());
        }
        match self.shape(v)?.as_slice() {
            [Dim::Known(n)] => usize::try_from(*n).ok(),
            _ => None,
        }
    }

    /// Rank of what a node makes, from the ranks of what it reads.
    fn rank_made(&self, n: &Node) -> Option<usize> {
        if !n.op.is_onnx() {
            return None;
        }
        let rank = |i: usize| n.input(i).and_then(|v| self.rank(v));
        let axes = || {
            n.attrs.ints("axes").map(<[i64]>::len).or_else(|| n.input(1).and_then(|v| self.ints(v)).map(|a| a.len()))
        };
        match n.op.name.as_str() {
            "Constant" => constant_node(n).map(|t| t.dims.len()),
            "Transpose" => n.attrs.ints("perm").map(<[i64]>::len).or_else(|| rank(0)),
            "Reshape" | "ConstantOfShape" | "Expand" => {
                let shape = n.input(usize::from(!n.op.is("ConstantOfShape")))?;
                let made = self.length(shape)?;
                Some(if n.op.is("Expand") { made.max(rank(0)?) } else { made })
            }
            "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Where" | "And" | "Or" | "Equal" | "Less" | "Greater" | "Min"
            | "Max" => n.inputs.iter().map(|v| v.and_then(|v| self.rank(v))).try_fold(0, |m, r| Some(m.max(r?))),
            "MatMul" => match (rank(0)?, rank(1)?) {
                (a, b) if a >= 2 && b >= 2 => Some(a.max(b)),
                _ => None,
            },
            "Unsqueeze" => Some(rank(0)? + axes()?),
            "Squeeze" => rank(0)?.checked_sub(axes()?),
            "Gather" => (rank(0)? + rank(1)?).checked_sub(1),
            "Gemm" | "Flatten" => Some(2),
            name if name.starts_with("Reduce") => match n.attrs.int("keepdims").unwrap_or(1) {
                0 => rank(0)?.checked_sub(axes()?),
                _ => rank(0),
            },
            "Shape" => Some(1),
            name if KEEPS_RANK.contains(&name) => rank(0),
            _ => None,
        }
    }
}

/// Operators whose outputs have the rank of their first input.
const KEEPS_RANK: &[&str] = &[
    "Abs",
    "AveragePool",
    "Cast",
    "Clip",
    "Concat",
    "Conv",
    "CumSum",
    "DequantizeLinear",
    "Dropout",
    "Elu",
    "Erf",
    "Exp",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsInf",
    "IsNaN",
    "LayerNormalization",
    "LeakyRelu",
    "Log",
    "LogSoftmax",
    "MaxPool",
    "Neg",
    "Not",
    "Pad",
    "QuantizeLinear",
    "Reciprocal",
    "Relu",
    "Round",
    "Sigmoid",
    "Slice",
    "Softmax",
    "Split",
    "Sqrt",
    "Tanh",
    "Tile",
];

/// Operators whose first output has the element type of their first input.
const KEEPS_TYPE: &[&str] = &[
    "Abs",
    "Add",
    "AveragePool",
    "Clip",
    "Concat",
    "Conv",
    "CumSum",
    "Div",
    "Dropout",
    "Elu",
    "Erf",
    "Exp",
    "Expand",
    "Flatten",
    "Gather",
    "Gelu",
    "Gemm",
    "Identity",
    "LayerNormalization",
    "Log",
    "MatMul",
    "Max",
    "Min",
    "Mul",
    "Neg",
    "Pad",
    "Pow",
    "Reciprocal",
    "ReduceMax",
    "ReduceMean",
    "ReduceSum",
    "Relu",
    "Reshape",
    "Sigmoid",
    "Slice",
    "Softmax",
    "Split",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Tanh",
    "Tile",
    "Transpose",
    "Unsqueeze",
];

/// The tensor a Constant node holds, whichever of its attributes says so.
fn constant_node(n: &Node) -> Option<Cow<'_, Tensor>> {
    if let Some(t) = n.attrs.tensor("value") {
        return Some(Cow::Borrowed(t));
    }
    let made = match (n.attrs.0.first()?.name.as_str(), &n.attrs.0.first()?.value) {
        ("value_float", AttrValue::Float(v)) => Tensor::scalar_f32(*v),
        ("value_int", AttrValue::Int(v)) => Tensor::i64(&[], &[*v]),
        ("value_floats", AttrValue::Floats(v)) => Tensor::f32(&[v.len() as i64], v),
        ("value_ints", AttrValue::Ints(v)) => Tensor::i64(&[v.len() as i64], v),
        _ => return None,
    };
    Some(Cow::Owned(made))
}

/// A small constant as the attribute it could have been.
pub(super) fn as_attribute(t: &Tensor) -> Option<AttrValue> {
    match (t.dims.len(), t.dtype.is_float()) {
        (0, true) => Some(AttrValue::Float(t.as_scalar()? as f32)),
        (0, false) => Some(AttrValue::Int(t.to_i64s()?.first().copied()?)),
        (1, true) => Some(AttrValue::Floats(t.to_f32s()?.to_vec().into())),
        (1, false) => Some(AttrValue::Ints(t.to_i64s()?.into())),
        _ => None,
    }
}

/// How far apart two numbers may be and still mean the same constant: exporters write `sqrt(2)` with 5 to 17 digits, and
/// narrow types round it. Relative, so that 0 matches only 0.
pub(super) fn close(stored: f64, meant: f64, dtype: DType) -> bool {
    let rel = match dtype {
        DType::FLOAT16 => 1e-3,
        DType::BFLOAT16 => 8e-3,
        _ => 1e-4,
    };
    within(stored, meant, rel)
}

/// Relative distance at most `rel`; equal infinities are close.
pub(super) fn within(stored: f64, meant: f64, rel: f64) -> bool {
    stored == meant || (stored - meant).abs() <= rel * meant.abs() && meant.is_finite()
}
