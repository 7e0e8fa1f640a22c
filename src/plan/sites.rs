//! Where a model can be quantized.
//!
//! A *site* is a value that moves between two compute operators, at the one point where its codes are made. Between
//! operators there may be moves (Reshape, Transpose, ...): a site lies at the earliest point that still holds exactly
//! the elements its reader sees, so codes are moved rather than floats, but each branch of a Split has its own scale.

use std::collections::{BTreeMap, BTreeSet};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::apart::apart;
use super::channels::channel_axis;
use super::hidden::hidden;
pub use super::hidden::mask_inputs;
use super::scores::score_site;
use crate::ir::{Class, DType, Def, Graph, Model, Node, NodeId, ValueId};
use crate::pattern::Attention;

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

/// Operators with a quantized form in the QDQ convention: codes in, codes out, float between.
const ELEMENTWISE: &[&str] = &[
    "Add",
    "Sub",
    "Mul",
    "Div",
    "LayerNormalization",
    "Gelu",
    "Relu",
    "LeakyRelu",
    "Sigmoid",
    "Tanh",
    "HardSwish",
    "HardSigmoid",
    "Clip",
    "Softmax",
    "BatchNormalization",
    "InstanceNormalization",
    "GroupNormalization",
    "RMSNormalization",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "ReduceMean",
    "Resize",
    "Max",
    "Min",
    "Neg",
    "Abs",
    "Sqrt",
    "Exp",
    "Erf",
    "Pow",
    "Elu",
    "Selu",
    "Celu",
    "Swish",
    "Mish",
    "Softplus",
    "PRelu",
    "Where",
];

/// Elements from which on a table is worth codes.
const TABLE: usize = 1024;

/// True for a Gather of rows of a constant table of floats: an embedding.
fn picks_rows(g: &Graph, n: &Node) -> bool {
    let table = n.input(0).and_then(|t| g.constant(t));
    let rows = table.is_some_and(|t| t.dims.len() == 2 && t.dtype == DType::FLOAT && t.len() >= TABLE);
    rows && n.attrs.int("axis").unwrap_or(0) == 0 && n.input(1).is_some_and(|i| !is_const(g, i))
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
    if is_const(g, x) || !w.dtype.is_float() {
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
        let fits = g.try_init(b).is_some_and(|t| t.len() == channels);
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
        // A vector over the output channels, possibly with leading ones.
        let fits = g.try_init(other).is_some_and(|t| {
            t.len() == channels && t.dims.last() == Some(&(channels as i64)) && t.dtype == DType::FLOAT
        });
        if fits {
            l.bias = Some(Bias { value: other, add: Some(add) });
            l.out = g.node(add).out()?;
        }
    }
    Some(l)
}

impl Sites {
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

/// Finds every site of a canonical model (LayerNorm, GELU and attention recognised, constants folded).
pub fn find(m: &Model, attentions: Vec<Attention>) -> Sites {
    let g = &m.graph;
    let order = g.schedule();
    let mut s = Sites::default();
    let apart = apart(g);
    for a in attentions {
        // Seen through moves: a constant that is repeated for each sample.
        if a.v.is_some_and(|v| is_const(g, trace_back(g, v))) {
            s.islands.push((a.softmax, "its values are constants".to_owned()));
            continue;
        }
        let made = g.producer(a.scores_product);
        if let Some(why) = made.and_then(|n| apart.get(&n)).filter(|_| apart.contains_key(&a.softmax)) {
            s.islands.push((a.softmax, (*why).to_owned()));
            continue;
        }
        if let Some((_, f)) = a.scale.filter(|(_, f)| !(*f > 0.0 && f.is_finite())) {
            s.islands.push((a.softmax, format!("its scores are multiplied with {f}, which is not above 0")));
            continue;
        }
        match score_site(g, &a) {
            Ok(_) => s.attentions.push(a),
            Err(why) => s.islands.push((a.softmax, format!("its weights stay as they are: {why}"))),
        }
    }
    let constant = |v: ValueId| is_const(g, v);
    let masked = hidden(g);
    // Nodes inside an attention core or between a linear layer and its bias make no sites of their own.
    let mut inner: BTreeSet<NodeId> = BTreeSet::new();
    let mut core_of: BTreeMap<NodeId, usize> = BTreeMap::new();
    for (i, a) in s.attentions.iter().enumerate() {
        for n in a.nodes() {
            inner.insert(n);
            core_of.insert(n, i);
        }
    }
    for id in &order {
        if inner.contains(id) || apart.contains_key(id) {
            continue;
        }
        if let Some(l) = linear(g, *id, &constant) {
            inner.extend(l.bias.iter().filter_map(|b| b.add));
            inner.insert(*id);
            s.linears.push(l);
        }
    }
    let linear_out: BTreeMap<ValueId, usize> = s.linears.iter().enumerate().map(|(i, l)| (l.out, i)).collect();
    let core_out: BTreeMap<ValueId, usize> = s.attentions.iter().enumerate().map(|(i, a)| (a.out, i)).collect();

    let mut sites: IndexMap<ValueId, Site> = IndexMap::new();
    let want = |v: ValueId, role: Option<Role>, contracted: bool, sites: &mut IndexMap<ValueId, Site>| {
        let at = trace_back(g, v);
        if constant(at) || !float_value(g, at) || masked.contains(&at) {
            return;
        }
        // Read element by element, it stays the number it is; a product cannot do without codes.
        if !contracted && g.producer(at).is_some_and(|p| apart.contains_key(&p)) {
            return;
        }
        let e = sites.entry(at).or_insert_with(|| Site {
            value: at,
            role: Role::Other,
            axis: channel_axis(g, at),
            contracted: false,
            elementwise: false,
        });
        e.contracted |= contracted;
        e.elementwise |= !contracted;
        if let Some(r) = role
            && (e.role == Role::Other || r < e.role)
        {
            e.role = r;
        }
    };
    for id in &order {
        let n = g.node(*id);
        if let Some(l) = s.linears.iter().find(|l| l.node == *id) {
            want(l.x, None, true, &mut sites);
        } else if let Some(i) = core_of.get(id) {
            let a = &s.attentions[*i];
            if let Some(p) = a.product.filter(|p| p.node == *id) {
                want(p.q, Some(Role::Query), true, &mut sites);
                want(p.k, Some(Role::Key), true, &mut sites);
                s.constants.extend((0..2).filter(|i| n.input(*i).is_some_and(constant)).map(|i| (*id, i)));
            } else if let Some(v) = a.v.filter(|_| a.softmax == *id) {
                want(v, Some(Role::Value), true, &mut sites);
            }
        } else if inner.contains(id) || n.is_move() || n.has_subgraph() {
            if n.op.is("Gather") && !apart.contains_key(id) && picks_rows(g, n) {
                s.constants.push((*id, 0));
            }
        } else if let Some(why) = apart.get(id) {
            let computes = n.op.is_onnx() && (ELEMENTWISE.contains(&n.op.name.as_str()) || n.is_a(Class::Product));
            if computes && n.out().is_some_and(|v| float_value(g, v)) {
                s.islands.push((*id, (*why).to_owned()));
            }
        } else if n.is_a(Class::Product) {
            // A product of two activations, or a weight the linear form does not cover: per tensor on both sides.
            let slots: Vec<ValueId> = n.inputs.iter().take(2).flatten().copied().collect();
            let fixed = slots.iter().position(|v| constant(*v));
            if let (Some(i), true) = (fixed, n.op.is("MatMul")) {
                want(slots[1 - i], None, true, &mut sites);
                s.constants.push((*id, i));
            } else if n.op.is("ConvTranspose") && fixed == Some(1) {
                want(slots[0], None, true, &mut sites);
                s.constants.push((*id, 1));
            } else if fixed.is_some() {
                s.islands.push((*id, "its weight has a form without a quantized counterpart".into()));
            } else {
                slots.into_iter().for_each(|v| want(v, None, true, &mut sites));
            }
        } else if n.op.is_onnx() && ELEMENTWISE.contains(&n.op.name.as_str()) {
            let float_out = n.out().is_some_and(|v| float_value(g, v));
            if !float_out {
                continue;
            }
            if n.inputs.iter().chain(&n.outputs).flatten().any(|v| masked.contains(v)) {
                s.islands.push((*id, "it carries a mask".into()));
                continue;
            }
            let operands = match n.op.name.as_str() {
                "LayerNormalization"
                | "BatchNormalization"
                | "InstanceNormalization"
                | "GroupNormalization"
                | "RMSNormalization"
                | "Clip"
                | "Resize"
                | "ReduceMean"
                | "PRelu"
                | "Pow" => 1,
                _ => n.inputs.len(),
            };
            let role = match n.op.name.as_str() {
                "LayerNormalization" | "RMSNormalization" => Some(Role::Residual),
                "Gelu" => Some(Role::GeluInput),
                _ => None,
            };
            // An operator all of whose operands are constants or integers has nothing to quantize.
            let floats: Vec<(usize, ValueId)> =
                (0..operands).filter_map(|i| Some((i, n.input(i)?))).filter(|(_, v)| float_value(g, *v)).collect();
            if floats.iter().all(|(_, v)| constant(*v)) {
                continue;
            }
            for (i, v) in floats.into_iter().filter(|_| !n.op.is("Softmax")) {
                if constant(v) {
                    if g.constant(v).is_some_and(|t| t.len() > 1 && t.dtype == DType::FLOAT) {
                        s.constants.push((*id, i));
                    }
                } else {
                    want(v, role, false, &mut sites);
                }
            }
            match n.op.name.as_str() {
                "LayerNormalization" | "RMSNormalization" => s.norms.push(*id),
                "Gelu" => s.gelus.push(*id),
                "Softmax" => s.softmaxes.push(*id),
                _ => {}
            }
        } else if n.out().is_some_and(|v| float_value(g, v) && g.value(v).ty.is_some()) && !n.op.is("Constant") {
            let fed =
                n.inputs.iter().flatten().any(|v| !constant(*v) && float_value(g, *v) && g.value(*v).ty.is_some());
            if fed && !matches!(n.op.name.as_str(), "Shape" | "Size" | "Cast") {
                s.islands.push((*id, format!("operator {} has no quantized form here", n.op)));
            }
        }
    }
    for o in g.outputs() {
        let from_node = matches!(g.value(trace_back(g, *o)).def, Def::Node { .. });
        if from_node && float_value(g, *o) && !masked.contains(o) {
            // At the output itself, so that it keeps its name and what is in front of it its codes.
            let at = if sites.contains_key(&trace_back(g, *o)) { trace_back(g, *o) } else { *o };
            if at == *o {
                sites.entry(at).or_insert(Site {
                    value: at,
                    role: Role::Output,
                    axis: channel_axis(g, at),
                    contracted: false,
                    elementwise: false,
                });
            }
        }
    }
    // What has codes for another reader leaves none for what a Softmax makes of it.
    for n in &s.softmaxes {
        let n = g.node(*n);
        if n.input(0).is_some_and(|x| sites.contains_key(&trace_back(g, x)))
            && let Some(y) = n.out()
        {
            sites.retain(|v, _| moved_from(g, *v) != y);
        }
    }
    // Roles that follow from the maker.
    let readers: BTreeMap<ValueId, Vec<NodeId>> = sites.keys().map(|v| (*v, reading_nodes(g, *v))).collect();
    for (v, site) in &mut sites {
        let maker = g.producer(*v).map(|p| g.node(p));
        let by_maker = match (&g.value(*v).def, maker) {
            (Def::Input | Def::InputWithDefault(_), _) => Some(Role::Input),
            _ if core_out.contains_key(v) => Some(Role::AttentionOutput),
            (_, Some(n)) if n.op.is("LayerNormalization") || n.op.is("RMSNormalization") => {
                // Post-norm: the stream itself leaves the norm.
                (!readers[v].iter().any(|r| g.node(*r).op.is("Add") && !inner.contains(r))).then_some(Role::NormOutput)
            }
            (_, Some(n)) if n.op.is("Gelu") => Some(Role::GeluOutput),
            _ => None,
        };
        let added = readers[v].iter().any(|r| g.node(*r).op.is("Add") && !inner.contains(r));
        let keeps = matches!(site.role, Role::Query | Role::Key | Role::Value | Role::GeluInput);
        if let Some(r) = by_maker {
            if !(keeps && r != Role::Input) {
                site.role = r;
            }
        } else if site.role == Role::Other && added {
            let sum = maker.is_some_and(|n| n.op.is("Add")) && !linear_out.contains_key(v);
            site.role = if sum { Role::Residual } else { Role::Branch };
        }
    }
    // In the order the model computes, so that a plan reads from input to output.
    let place: BTreeMap<NodeId, usize> = order.iter().enumerate().map(|(i, n)| (*n, i + 1)).collect();
    sites.sort_by_key(|v, _| (g.producer(*v).map_or(0, |p| place[&p]), *v));
    s.sites = sites;
    s
}

/// The compute nodes that read a value, seen through moves.
pub fn reading_nodes(g: &Graph, v: ValueId) -> Vec<NodeId> {
    let (mut out, mut todo, mut seen) = (Vec::new(), vec![v], BTreeSet::new());
    while let Some(v) = todo.pop() {
        for (n, slot) in g.uses(v) {
            if slot == usize::MAX || !seen.insert((n, v)) {
                continue;
            }
            let node = g.node(n);
            // Only the data operand of a move is moved; shape operands are read.
            let data = slot == 0 || node.op.is("Concat");
            if node.is_move() && data {
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
