//! What can be known of a model's values without running it: constants, ranks, and which attribute a node really has.

use std::sync::Arc;

use crate::infer::{ShapeMap, shapes};
use crate::ir::vocabulary;
use crate::ir::{AttrValue, DType, Dim, Graph, Model, NodeId, Tensor, ValueId};

use super::ops;

/// Facts about one state of a model. A rewrite makes them stale: build new ones after a commit.
#[derive(Clone, Debug)]
pub struct Facts<'m> {
    pub model: &'m Model,
    /// What shape inference proves. A rule may also rely on what the file declares.
    shapes: Arc<ShapeMap>,
}

/// Longest chain of Identity and Cast nodes that is followed; a file with a cycle ends there too.
const FAR: usize = 64;

impl<'m> Facts<'m> {
    /// What can be told of a model; shapes are inferred when first asked for.
    pub fn new(model: &'m Model) -> Facts<'m> {
        Facts::with(model, shapes(model))
    }

    /// Facts from what was inferred of this model before.
    pub fn with(model: &'m Model, shapes: Arc<ShapeMap>) -> Facts<'m> {
        Facts { model, shapes }
    }

    /// The graph that is asked about.
    pub fn graph(&self) -> &'m Graph {
        &self.model.graph
    }

    /// The value after Identity nodes.
    pub fn source(&self, mut v: ValueId) -> ValueId {
        for _ in 0..FAR {
            match self.graph().producer_is(v, "Identity").and_then(|n| self.graph().node(n).input(0)) {
                Some(x) => v = x,
                None => break,
            }
        }
        v
    }

    /// The constant behind a value: stored, made by a Constant node, or computed from constants alone. A Cast that is not
    /// computed is seen through: the numbers count here, not their type.
    pub fn constant(&self, v: ValueId) -> Option<&Tensor> {
        let mut v = v;
        for _ in 0..FAR {
            if let Some(t) = self.shapes.constant(v) {
                return Some(t);
            }
            let node = self.graph().producer_is(v, "Identity").or_else(|| self.graph().producer_is(v, "Cast"))?;
            v = self.graph().node(node).input(0)?;
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

    /// Element type, proved or else declared.
    pub fn dtype(&self, v: ValueId) -> Option<DType> {
        self.shapes.dtype(v).or_else(|| Some(self.graph().try_value(v)?.ty.as_ref()?.dtype))
    }

    /// Number of dimensions, proved or else declared.
    pub fn rank(&self, v: ValueId) -> Option<usize> {
        self.shapes.rank(v).or_else(|| Some(self.graph().try_value(v)?.ty.as_ref()?.shape.as_ref()?.len()))
    }

    /// True if both shapes are proved equal, whatever the run-time sizes.
    pub fn same_shape(&self, a: ValueId, b: ValueId) -> bool {
        self.shapes.same_shape(a, b)
    }

    /// The size of the last dimension, where it is a known number.
    pub fn last_size(&self, v: ValueId) -> Option<i64> {
        match self.shapes.dims(v) {
            Some(d) => d.last()?.known(),
            None => match self.graph().try_value(v)?.ty.as_ref()?.shape.as_ref()?.last()? {
                Dim::Known(n) => Some(*n),
                _ => None,
            },
        }
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
            return (self.constant(v).and_then(as_attribute), Some(slot));
        }
        (vocabulary::default(&n.op.name, name, self.model.opset()), None)
    }
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
