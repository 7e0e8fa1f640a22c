//! Finds the sites of a model.

use std::collections::{BTreeMap, BTreeSet};

use indexmap::map::Entry;

use super::super::apart::{CONSTANT, apart};
use super::super::channels::channel_axis;
use super::super::hidden::hidden;
use super::super::scores::score_site;
use super::{
    Role, Site, Sites, WIDE, fixed, float_value, is_const, is_wide, linear, moved_from, reading_nodes, trace_back,
};
use crate::ir::{Class, DType, Def, Dim, Graph, Model, Node, NodeId, ValueId};
use crate::pattern::Attention;
use crate::quant::lis::MOST_KEYS;

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

/// Elementwise operators of which only the first operand is a value; the others set them up.
const ONE_VALUE: &[&str] = &[
    "LayerNormalization",
    "BatchNormalization",
    "InstanceNormalization",
    "GroupNormalization",
    "RMSNormalization",
    "Clip",
    "Resize",
    "ReduceMean",
    "PRelu",
    "Pow",
];

fn is_layer_norm(n: &Node) -> bool {
    n.op.is("LayerNormalization") || n.op.is("RMSNormalization")
}

/// A norm over places of an image, or over these and groups of channels.
fn is_map_norm(n: &Node) -> bool {
    n.op.is("InstanceNormalization") || n.op.is("GroupNormalization")
}

/// Nodes from a norm of images to what is made of it by constant factors and terms, the longest form there is: Reshape,
/// InstanceNormalization, Reshape, Mul, Add are one GroupNormalization.
const MOST_STEPS: usize = 8;

/// True for a factor or a term that belongs to a norm of images, or of groups of channels: nothing but moves, and others like
/// it, lies between, and nobody else reads what does.
fn finishes_norm(g: &Graph, n: &Node) -> bool {
    let data = |n: &Node| {
        let affine = n.op.is("Mul") || n.op.is("Add");
        let (a, b) = (n.input(0)?, n.input(1)?);
        match (is_const(g, a), is_const(g, b)) {
            (false, true) if affine => Some(a),
            (true, false) if affine => Some(b),
            _ => None,
        }
    };
    let Some(mut v) = data(n) else { return false };
    let mut grouped = false;
    for _ in 0..MOST_STEPS {
        let measured = |u: NodeId| g.node(u).op.is("Shape");
        let alone = g.uses(v).into_iter().filter(|(u, slot)| *slot == usize::MAX || !measured(*u)).count() == 1;
        let Some(p) = g.producer(v).filter(|_| alone).map(|p| g.node(p)) else { return false };
        // Groups as rows, each normalised along its last axis.
        if is_map_norm(p) || grouped && p.op.is("LayerNormalization") {
            return true;
        }
        grouped |= p.op.is("Reshape");
        match if p.is_whole_move() { p.input(0) } else { data(p) } {
            Some(x) => v = x,
            None => return false,
        }
    }
    false
}

/// Finds every site of a canonical model (LayerNorm, GELU and attention recognised, constants folded).
pub fn find(m: &Model, attentions: Vec<Attention>) -> Sites {
    let mut f = Finder::new(&m.graph);
    f.attentions(attentions);
    f.linears();
    for id in f.g.schedule() {
        f.node(id);
    }
    f.outputs();
    f.leave_to_softmaxes();
    f.roles();
    f.in_order()
}

/// What has been found so far.
struct Finder<'g> {
    g: &'g Graph,
    /// Nodes that compute nothing of the network proper, with the reason.
    apart: BTreeMap<NodeId, &'static str>,
    /// Values that hold a mask.
    masked: BTreeSet<ValueId>,
    /// Nodes inside an attention core or between a linear layer and its bias: they make no sites of their own.
    inner: BTreeSet<NodeId>,
    /// Place in `found.attentions` of the core that a node is in.
    core_of: BTreeMap<NodeId, usize>,
    /// Place in `found.linears` of the layer that a node computes.
    linear_of: BTreeMap<NodeId, usize>,
    found: Sites,
}

impl<'g> Finder<'g> {
    fn new(g: &'g Graph) -> Finder<'g> {
        Finder {
            g,
            apart: apart(g),
            masked: hidden(g),
            inner: BTreeSet::new(),
            core_of: BTreeMap::new(),
            linear_of: BTreeMap::new(),
            found: Sites::default(),
        }
    }

    fn constant(&self, v: ValueId) -> bool {
        is_const(self.g, v)
    }

    fn float_out(&self, n: &Node) -> bool {
        n.out().is_some_and(|v| float_value(self.g, v))
    }

    fn island(&mut self, node: NodeId, why: impl Into<String>) {
        self.found.islands.push((node, why.into()));
    }

    /// Keeps the attentions that can be computed from codes.
    fn attentions(&mut self, attentions: Vec<Attention>) {
        for a in attentions {
            match self.left_in_float(&a) {
                Some(why) => self.island(a.softmax, why),
                None => self.found.attentions.push(a),
            }
        }
        for (i, a) in self.found.attentions.iter().enumerate() {
            for n in a.nodes() {
                self.inner.insert(n);
                self.core_of.insert(n, i);
            }
        }
    }

    /// Why an attention stays in float, if it does.
    fn left_in_float(&self, a: &Attention) -> Option<String> {
        let g = self.g;
        let made = g.producer(a.scores_product).and_then(|n| self.apart.get(&n));
        if let Some(why) = made.filter(|_| self.apart.contains_key(&a.softmax)) {
            return Some((*why).to_owned());
        }
        if is_wide(g, a.out) {
            return Some(WIDE.to_owned());
        }
        if let Some(Dim::Known(keys)) = g.shape(a.scores).and_then(<[Dim]>::last)
            && *keys > MOST_KEYS as i64
        {
            return Some(format!("it has {keys} keys; weights of more than {MOST_KEYS} are too small for codes"));
        }
        let product = g.producer(a.scores_product).map(|n| g.node(n));
        let operands = product.into_iter().flat_map(|n| n.inputs.iter().flatten());
        let read = operands.chain(g.node(a.weighted).inputs.get(1).into_iter().flatten());
        if read.copied().any(|v| self.masked.contains(&trace_back(g, v))) {
            return Some("its queries, keys or values hold numbers that masks are made of".to_owned());
        }
        if let Some(s) = a.chain.scale.filter(|s| !(s.factor > 0.0 && s.factor.is_finite())) {
            return Some(format!("its scores are multiplied with {}, which is not above 0", s.factor));
        }
        score_site(g, a).err().map(|why| format!("its weights stay as they are: {why}"))
    }

    fn linears(&mut self) {
        let g = self.g;
        for id in g.schedule() {
            if self.inner.contains(&id) || self.apart.contains_key(&id) {
                continue;
            }
            // What weights make of a mask is a mask: codes have no steps for it, and runtimes that round the input have none left.
            let masked = |l: &super::Linear| self.masked.contains(&trace_back(g, l.x));
            if let Some(l) = linear(g, id, &|v| is_const(g, v)).filter(|l| !masked(l)) {
                self.inner.extend(l.bias.iter().filter_map(|b| b.add));
                self.inner.insert(id);
                self.linear_of.insert(id, self.found.linears.len());
                self.found.linears.push(l);
            }
        }
    }

    /// The site at a value, made where there is none yet.
    fn site(&mut self, at: ValueId, role: Role) -> &mut Site {
        match self.found.sites.entry(at) {
            Entry::Occupied(e) => e.into_mut(),
            Entry::Vacant(e) => e.insert(Site {
                value: at,
                role,
                axis: channel_axis(self.g, at),
                contracted: false,
                elementwise: false,
            }),
        }
    }

    /// Notes that a reader wants codes of a value; `contracted`: that it sums over the channels.
    fn want(&mut self, v: ValueId, role: Option<Role>, contracted: bool) {
        let g = self.g;
        let at = trace_back(g, v);
        if self.constant(at) || !float_value(g, at) || self.masked.contains(&at) {
            return;
        }
        // Read element by element, it stays the number it is; a product cannot do without codes.
        if !contracted && g.producer(at).is_some_and(|p| self.apart.contains_key(&p)) {
            return;
        }
        let site = self.site(at, Role::Other);
        site.contracted |= contracted;
        site.elementwise |= !contracted;
        if let Some(r) = role
            && (site.role == Role::Other || r < site.role)
        {
            site.role = r;
        }
    }

    /// Notes which codes a node wants, or why it computes in float.
    fn node(&mut self, id: NodeId) {
        let n = self.g.node(id);
        let elementwise = n.op.is_onnx() && ELEMENTWISE.contains(&n.op.name.as_str());
        if let Some(i) = self.linear_of.get(&id) {
            self.want(self.found.linears[*i].x, None, true);
        } else if let Some(i) = self.core_of.get(&id) {
            self.core(id, *i);
        } else if self.inner.contains(&id) || n.is_move() || n.has_subgraph() {
            if n.op.is("Gather") && !self.apart.contains_key(&id) && picks_rows(self.g, n) {
                self.found.constants.push((id, 0));
            }
        } else if let Some(why) = self.apart.get(&id) {
            if (elementwise || n.op.is_onnx() && n.is_a(Class::Product)) && self.float_out(n) {
                self.island(id, *why);
            }
        } else if n.is_a(Class::Product) && n.out().is_some_and(|v| is_wide(self.g, v)) {
            self.island(id, WIDE);
        } else if n.is_a(Class::Product) {
            self.product(id, n);
        } else if elementwise {
            self.elementwise(id, n);
        } else {
            self.foreign(id, n);
        }
    }

    /// A node inside of an attention core.
    fn core(&mut self, id: NodeId, place: usize) {
        let a = &self.found.attentions[place];
        let value = a.v.filter(|_| a.softmax == id).map(|v| (a.weighted, v));
        if let Some(p) = a.product.filter(|p| p.node == id) {
            self.operand(id, 0, p.q, Role::Query);
            self.operand(id, 1, p.k, Role::Key);
        } else if let Some((weighted, v)) = value {
            self.operand(weighted, 1, v, Role::Value);
        }
    }

    /// What an attention reads: codes that are made as the model runs, or codes of a constant.
    fn operand(&mut self, node: NodeId, slot: usize, v: ValueId, role: Role) {
        match fixed(self.g, node, slot) {
            Some(at) => self.found.constants.push(at),
            None => self.want(v, Some(role), true),
        }
    }

    /// A product of two activations, or a weight the linear form does not cover: per tensor on both sides.
    fn product(&mut self, id: NodeId, n: &Node) {
        let slots: Vec<ValueId> = n.inputs.iter().take(2).flatten().copied().collect();
        match slots.iter().position(|v| self.constant(*v)) {
            None => slots.into_iter().for_each(|v| self.want(v, None, true)),
            Some(i) if n.op.is("MatMul") || n.op.is("ConvTranspose") && i == 1 => {
                self.want(slots[1 - i], None, true);
                self.found.constants.push((id, i));
            }
            Some(_) => self.island(id, "its weight has a form without a quantized counterpart"),
        }
    }

    fn elementwise(&mut self, id: NodeId, n: &Node) {
        if !self.float_out(n) {
            return;
        }
        if n.inputs.iter().chain(&n.outputs).flatten().any(|v| self.masked.contains(v)) {
            self.island(id, "it carries a mask");
            return;
        }
        let operands = if ONE_VALUE.contains(&n.op.name.as_str()) { 1 } else { n.inputs.len() };
        let floats: Vec<(usize, ValueId)> =
            (0..operands).filter_map(|i| Some((i, n.input(i)?))).filter(|(_, v)| float_value(self.g, *v)).collect();
        // An operator all of whose operands are constants or integers has nothing to quantize.
        if floats.iter().all(|(_, v)| self.constant(*v)) {
            return;
        }
        let role = match n.op.name.as_str() {
            _ if is_layer_norm(n) => {
                self.found.norms.push(id);
                Some(Role::Residual)
            }
            // Channels of an image differ in range, and the norm divides each, or each group, by its own.
            _ if is_map_norm(n) => Some(Role::Residual),
            // One norm has one rounding.
            _ if finishes_norm(self.g, n) => return,
            "Gelu" => {
                self.found.gelus.push(id);
                Some(Role::GeluInput)
            }
            "Softmax" => {
                self.found.softmaxes.push(id);
                return;
            }
            _ => None,
        };
        for (i, v) in floats {
            match self.g.constant(v) {
                Some(t) if t.len() > 1 && t.dtype == DType::FLOAT => self.found.constants.push((id, i)),
                Some(_) => {}
                None => self.want(v, role, false),
            }
        }
    }

    /// An operator without a quantized form: an island, if floats go in and out.
    fn foreign(&mut self, id: NodeId, n: &Node) {
        let typed = |v: ValueId| float_value(self.g, v) && self.g.value(v).ty.is_some();
        let fed = n.inputs.iter().flatten().any(|v| !self.constant(*v) && typed(*v));
        let asks = matches!(n.op.name.as_str(), "Constant" | "Shape" | "Size" | "Cast");
        if n.out().is_some_and(typed) && fed && !asks {
            self.island(id, format!("operator {} has no quantized form here", n.op));
        }
    }

    fn outputs(&mut self) {
        let g = self.g;
        for o in g.outputs() {
            let from = trace_back(g, *o);
            let made = matches!(g.value(from).def, Def::Node { .. });
            // At the output itself, so that it keeps its name and what is in front of it its codes.
            let coded = *o != from && self.found.sites.contains_key(&from);
            let same = g.producer(from).is_some_and(|p| self.apart.get(&p) == Some(&CONSTANT));
            if made && float_value(g, *o) && !self.masked.contains(o) && !coded && !same {
                self.site(*o, Role::Output);
            }
        }
    }

    /// What has codes for another reader leaves none for what a Softmax makes of it.
    fn leave_to_softmaxes(&mut self) {
        let g = self.g;
        for n in &self.found.softmaxes {
            let n = g.node(*n);
            if n.input(0).is_some_and(|x| self.found.sites.contains_key(&trace_back(g, x)))
                && let Some(y) = n.out()
            {
                self.found.sites.retain(|v, _| moved_from(g, *v) != y);
            }
        }
    }

    /// Roles that follow from the maker.
    fn roles(&mut self) {
        let linear_out: BTreeSet<ValueId> = self.found.linears.iter().map(|l| l.out).collect();
        let core_out: BTreeSet<ValueId> = self.found.attentions.iter().map(|a| a.out).collect();
        for (v, site) in &mut self.found.sites {
            let maker = self.g.producer(*v).map(|p| self.g.node(p));
            let adds = |r: &NodeId| self.g.node(*r).op.is("Add") && !self.inner.contains(r);
            let added = reading_nodes(self.g, *v).iter().any(adds);
            let by_maker = match (&self.g.value(*v).def, maker) {
                (Def::Input | Def::InputWithDefault(_), _) => Some(Role::Input),
                _ if core_out.contains(v) => Some(Role::AttentionOutput),
                // Post-norm: the stream itself leaves the norm.
                (_, Some(n)) if is_layer_norm(n) => (!added).then_some(Role::NormOutput),
                (_, Some(n)) if n.op.is("Gelu") => Some(Role::GeluOutput),
                _ => None,
            };
            let keeps = matches!(site.role, Role::Query | Role::Key | Role::Value | Role::GeluInput);
            if let Some(r) = by_maker {
                if !keeps || r == Role::Input {
                    site.role = r;
                }
            } else if site.role == Role::Other && added {
                let sum = maker.is_some_and(|n| n.op.is("Add")) && !linear_out.contains(v);
                site.role = if sum { Role::Residual } else { Role::Branch };
            }
        }
    }

    /// In the order the model computes, so that a plan reads from input to output.
    fn in_order(mut self) -> Sites {
        let place: BTreeMap<NodeId, usize> =
            self.g.schedule().into_iter().enumerate().map(|(i, n)| (n, i + 1)).collect();
        self.found.sites.sort_by_key(|v, _| (self.g.producer(*v).map_or(0, |p| place[&p]), *v));
        self.found
    }
}
