//! Where a model can be quantized.
//!
//! A *site* is a value that moves between two compute operators, at the one point where its codes are made. Between
//! operators there may be moves (Reshape, Transpose, ...): a site lies at the earliest point that still holds exactly
//! the elements its reader sees, so codes are moved rather than floats, but each branch of a Split has its own scale.

use std::collections::BTreeSet;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

pub use super::hidden::mask_inputs;
use super::hidden::masks;
use crate::ir::{DType, Graph, Node, NodeId, Tensor, ValueId};
use crate::pattern::Attention;

mod find;
#[cfg(test)]
mod tests;

pub use find::find;

/// What a value is for, which decides how a recipe treats it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// A graph input.
    Input,
    /// What a LayerNorm reads, or a sum of branches.
    Residual,
    /// What a linear layer adds to the residual stream (attention projection, fc2), or patch embeddings before the
    /// position is added.
    Branch,
    NormOutput,
    Query,
    Key,
    Value,
    /// The product of queries and keys, before scale and mask.
    Scores,
    /// Attention weights where they stay uniform codes.
    Probs,
    AttentionOutput,
    GeluInput,
    GeluOutput,
    /// A graph output.
    Output,
    /// Anything else between two quantized operators.
    Other,
}

impl Role {
    /// What recipes and plans call it.
    pub fn name(self) -> &'static str {
        match self {
            Role::Input => "input",
            Role::Residual => "residual",
            Role::Branch => "branch",
            Role::NormOutput => "norm-output",
            Role::Query => "query",
            Role::Key => "key",
            Role::Value => "value",
            Role::Scores => "scores",
            Role::Probs => "probs",
            Role::AttentionOutput => "attention-output",
            Role::GeluInput => "gelu-input",
            Role::GeluOutput => "gelu-output",
            Role::Output => "output",
            Role::Other => "other",
        }
    }
}

/// A MatMul, Gemm or Conv with a constant weight.
#[derive(Clone, Debug)]
pub struct Linear {
    pub node: NodeId,
    /// Activation operand.
    pub x: ValueId,
    pub weight: ValueId,
    /// Axes of output and input channels in the weight.
    pub out_axis: usize,
    pub in_axis: usize,
    pub bias: Option<Bias>,
    /// The layer's result, bias included.
    pub out: ValueId,
    pub is_conv: bool,
}

impl Linear {
    /// The node and slot that hold the layer's bias, and the bias as it is now: a pass may have replaced the one that the
    /// layer was found with.
    pub fn bias_now(&self, g: &Graph) -> Option<(NodeId, usize, ValueId)> {
        let (node, slot) = match self.bias.as_ref()?.add {
            Some(add) => (add, g.node(add).inputs.iter().position(|v| v.is_some_and(|v| g.constant(v).is_some()))?),
            None => (self.node, 2),
        };
        Some((node, slot, g.node(node).input(slot)?))
    }
}

/// Where a Slice by one step along one axis begins and ends, and the axis, as the node writes them: all constant.
pub fn sliced(g: &Graph, n: &Node) -> Option<(i64, i64, i64)> {
    let (from, to, axes) = (g.ints(n, 1, "starts")?, g.ints(n, 2, "ends")?, g.ints(n, 3, "axes")?);
    let steps = if n.input(4).is_some() { g.ints(n, 4, "steps")? } else { vec![1] };
    let ([from], [to], [axis], [1]) = (&from[..], &to[..], &axes[..], &steps[..]) else { return None };
    Some((*from, *to, *axis))
}

/// True for a Conv that reads places outside of its image, or may.
pub fn pads(n: &Node) -> bool {
    n.attrs.ints("pads").is_some_and(|p| p.iter().any(|p| *p != 0))
        || n.attrs.str("auto_pad").is_some_and(|a| !matches!(a, "NOTSET" | "VALID"))
}

/// A constant added to a linear layer's output channels.
#[derive(Clone, Debug)]
pub struct Bias {
    pub value: ValueId,
    /// The Add node, or `None` when it is the layer's own third input.
    pub add: Option<NodeId>,
}

/// A value to quantize.
#[derive(Clone, Debug)]
pub struct Site {
    pub value: ValueId,
    pub role: Role,
    /// Axis of the channels, from the end where the layout is channels-last.
    pub axis: i64,
    /// Readers that contract the channel axis (MatMul, Conv, attention products) need one scale per tensor.
    pub contracted: bool,
    /// Readers that work element by element or normalise can take one scale per channel.
    pub elementwise: bool,
}

/// Everything quantizable in a model.
#[derive(Clone, Debug, Default)]
pub struct Sites {
    pub linears: Vec<Linear>,
    pub attentions: Vec<Attention>,
    pub norms: Vec<NodeId>,
    pub gelus: Vec<NodeId>,
    /// Softmax nodes around which no attention was recognised. They compute in float, from floats: of one between codes
    /// onnxruntime makes a QLinearSoftmax, which rounds in another way than the three operators do.
    pub softmaxes: Vec<NodeId>,
    pub sites: IndexMap<ValueId, Site>,
    /// Compute nodes left in float with the reason.
    pub islands: Vec<(NodeId, String)>,
    /// Constant float operands of elementwise nodes and of products that are no linear layers, stored as codes: `(node,
    /// slot)`.
    pub constants: Vec<(NodeId, usize)>,
}

/// Walks back from an operand through moves that keep every element.
pub fn trace_back(g: &Graph, mut v: ValueId) -> ValueId {
    while let Some(p) = g.producer(v) {
        let n = g.node(p);
        match n.input(0) {
            // A graph output on the way is where codes must end; the reader then starts from it.
            Some(x) if n.is_whole_move() && !g.is_output(v) => v = x,
            _ => break,
        }
    }
    v
}

/// As [`trace_back`], through outputs of the graph too.
pub fn moved_from(g: &Graph, mut v: ValueId) -> ValueId {
    while let Some(x) = g.producer(v).map(|p| g.node(p)).filter(|n| n.is_whole_move()).and_then(|n| n.input(0)) {
        v = x;
    }
    v
}

/// Where the constant is read that an operand of a node is, or repeats, in its own or another shape: a node and a slot.
pub fn fixed(g: &Graph, node: NodeId, slot: usize) -> Option<(NodeId, usize)> {
    let mut at = (node, slot);
    loop {
        let v = g.node(at.0).input(at.1)?;
        if g.try_init(v).is_some() {
            return Some(at);
        }
        let p = g.producer(v).filter(|p| !g.is_output(v) && repeats(g.node(*p)))?;
        at = (p, 0);
    }
}

/// True for a move that keeps every element, some of them more than once.
pub fn repeats(n: &Node) -> bool {
    n.is_whole_move() || n.op.is("Expand") || n.op.is("Tile")
}

/// Why what computes in float64 has no codes.
pub const WIDE: &str = "it computes in float64, and codes stand for float32";

fn is_wide(g: &Graph, v: ValueId) -> bool {
    g.value(v).ty.as_ref().is_some_and(|t| t.dtype == DType::DOUBLE)
}

fn float_value(g: &Graph, v: ValueId) -> bool {
    g.value(v).ty.as_ref().is_none_or(|t| t.dtype == DType::FLOAT)
}

fn is_const(g: &Graph, v: ValueId) -> bool {
    g.constant(v).is_some()
}

/// The linear layer at a node, if it is one.
pub fn linear(g: &Graph, id: NodeId, constant_out: &dyn Fn(ValueId) -> bool) -> Option<Linear> {
    let n = g.node(id);
    if !n.op.is_onnx() {
        return None;
    }
    let (x, weight) = (n.input(0)?, n.input(1)?);
    let w = g.try_init(weight)?;
    if is_const(g, x) || w.dtype != DType::FLOAT {
        return None;
    }
    let (out_axis, in_axis, is_conv) = match n.op.name.as_str() {
        "MatMul" if w.dims.len() == 2 => (1, 0, false),
        "Gemm" if n.int("transA") == 0 && n.float("alpha") == 1.0 => {
            if n.int("transB") != 0 {
                (0, 1, false)
            } else {
                (1, 0, false)
            }
        }
        "Conv" => (0, 1, true),
        _ => return None,
    };
    // A weight of fewer axes, or none to count along, is no layer's.
    let channels = usize::try_from(*w.dims.get(out_axis.max(in_axis)).and(w.dims.get(out_axis))?).ok()?;
    if w.is_empty() || (!is_conv && w.dims.len() != 2) {
        return None;
    }
    let y = n.out()?;
    if let Some(b) = n.input(2) {
        let ok = constant_out(b) && (is_conv || n.float("beta") == 1.0);
        // A number for each row is no bias, however many rows there are.
        let alone = |t: &Tensor| channels == 1 && t.len() == 1;
        let fits = g.try_init(b).is_some_and(|t| (t.is_row_of(channels) || alone(t)) && !masks(g, t, y));
        return (ok && fits).then_some(Linear {
            node: id,
            x,
            weight,
            out_axis,
            in_axis,
            bias: Some(Bias { value: b, add: None }),
            out: y,
            is_conv,
        });
    }
    let mut l = Linear { node: id, x, weight, out_axis, in_axis, bias: None, out: y, is_conv };
    if !is_conv
        && let [(add, slot)] = g.uses(y)[..]
        && slot <= 1
        && g.node(add).op.is("Add")
        && !g.is_output(y)
    {
        let other = g.node(add).input(1 - slot)?;
        // A vector over the output channels, possibly with leading ones. A mask is no bias: its numbers would leave no steps
        // for the weights, which the codes of a bias share.
        let fits =
            g.try_init(other).is_some_and(|t| t.is_row_of(channels) && t.dtype == DType::FLOAT && !masks(g, t, y));
        if fits {
            l.bias = Some(Bias { value: other, add: Some(add) });
            l.out = g.node(add).out()?;
        }
    }
    Some(l)
}

impl Sites {
    /// The constants that are operands of attentions: learned queries, tables of keys and of values.
    pub fn attended(&self, g: &Graph) -> BTreeSet<ValueId> {
        let ends = self.attentions.iter().flat_map(Self::operands);
        ends.filter_map(|(n, slot)| fixed(g, n, slot)).filter_map(|(n, slot)| g.node(n).input(slot)).collect()
    }

    /// Where an attention reads queries, keys and values.
    fn operands(a: &Attention) -> impl Iterator<Item = (NodeId, usize)> + use<> {
        let scores = a.product.into_iter().flat_map(|p| [(p.node, 0), (p.node, 1)]);
        scores.chain(a.v.map(|_| (a.weighted, 1)))
    }

    /// True if other layers have the same weight, as an unrolled loop's steps and ALBERT's blocks do. What one of them made of
    /// it, none of the others could read.
    pub fn is_shared(&self, l: &Linear) -> bool {
        self.linears.iter().filter(|o| o.weight == l.weight).nth(1).is_some()
    }

    /// True if an attention's scores are this value.
    pub fn holds_scores(&self, v: ValueId) -> bool {
        self.attentions.iter().any(|a| a.scores_product == v || a.scores == v)
    }

    /// Scores that were the value `old` are now `new`, which a pass put in its place: a layer that makes scores got a bias, say.
    pub fn scores_are(&mut self, old: ValueId, new: ValueId) {
        for v in self.attentions.iter_mut().flat_map(|a| [&mut a.scores_product, &mut a.scores]) {
            if *v == old {
                *v = new;
            }
        }
    }

    /// The same sites, with the weights and biases that the layers of `g` have now: for a model of the same nodes and
    /// values in which a pass replaced constants.
    pub fn reread(&self, g: &Graph) -> Sites {
        let mut s = self.clone();
        for l in &mut s.linears {
            if let Some(now) = linear(g, l.node, &|v| is_const(g, v)) {
                *l = now;
            }
        }
        s
    }
}

/// The compute nodes that read a value, seen through moves. A node whose nested graph reads it is one of them.
pub fn reading_nodes(g: &Graph, v: ValueId) -> Vec<NodeId> {
    let (mut out, mut todo, mut seen) = (Vec::new(), vec![v], BTreeSet::new());
    while let Some(v) = todo.pop() {
        for (n, slot) in g.uses(v) {
            if !seen.insert((n, v)) {
                continue;
            }
            if slot == usize::MAX {
                out.push(n);
                continue;
            }
            let node = g.node(n);
            if node.moves(slot) {
                todo.extend(node.outputs.iter().flatten());
            } else if !node.op.is("Shape") {
                out.push(n);
            }
        }
    }
    out.sort();
    out.dedup();
    out
}
