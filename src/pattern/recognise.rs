//! What a model is made of, for the passes that compute: attention, LayerNorm, GELU, wherever and however written.

use std::collections::BTreeSet;

use indexmap::IndexMap;

use crate::ir::{Graph, Model, NodeId, Tensor, ValueId};

use super::driver::find;
use super::facts::Facts;
use super::matcher::{Bound, Match};
use super::rule::{Refusal, RuleSet};
use super::weighing::weighing;

/// A shape that a rule gave a name to. The graph is as it was.
#[derive(Clone, Debug, PartialEq)]
pub struct Recognition {
    pub rule: String,
    /// `attention`, `layer_norm`, `gelu`, ...
    pub what: String,
    /// Role -> what plays it; roles the match left unbound are absent.
    pub roles: IndexMap<String, Bound>,
    /// Every node of the shape.
    pub nodes: Vec<NodeId>,
    /// The last of them.
    pub root: NodeId,
}

impl Recognition {
    /// The value that plays a role.
    pub fn value(&self, role: &str) -> Option<ValueId> {
        match self.roles.get(role)? {
            Bound::Value(v) => Some(*v),
            Bound::Attr(_) => None,
        }
    }
}

/// Every place that some rule takes for `what`, in the order of the graph; no two share a node.
pub fn recognise(model: &Model, rules: &RuleSet, what: &str) -> Vec<Recognition> {
    recognise_with(model, rules, what).0
}

/// Like [`recognise`], with the matches that a precondition forbids: `(rule, match, reason)`.
pub fn recognise_with(model: &Model, rules: &RuleSet, what: &str) -> (Vec<Recognition>, Vec<(String, Match, Refusal)>) {
    let facts = Facts::new(model);
    let mut claimed = BTreeSet::new();
    let (mut found, mut refused) = (Vec::new(), Vec::new());
    for rule in rules.iter() {
        let Some(s) = rule.stands_for.as_ref().filter(|s| s.what == what) else { continue };
        let hits = find(&facts, rule, &mut claimed);
        for m in hits.matches {
            let roles =
                s.roles.iter().filter_map(|(role, name)| Some((role.clone(), m.bindings.get(name)?.clone()))).collect();
            found.push(Recognition {
                rule: rule.id.clone(),
                what: what.to_owned(),
                roles,
                nodes: m.nodes,
                root: m.root,
            });
        }
        refused.extend(hits.refused.into_iter().map(|(m, why)| (rule.id.clone(), m, why)));
    }
    let order: IndexMap<NodeId, usize> = model.graph.schedule().into_iter().enumerate().map(|(i, n)| (n, i)).collect();
    found.sort_by_key(|r| order.get(&r.root).copied());
    // A place that one rule refuses and another takes is no loss.
    refused.retain(|(_, m, _)| !claimed.contains(&m.root));
    (found, refused)
}

/// What a mask is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaskKind {
    /// An added constant of ordinary size, a relative-position bias; or a factor per head. It hides nothing.
    Bias,
    /// Added; a constant of zeros and very negative numbers.
    Additive,
    /// Added; not constant, or a constant with entries of ordinary size as well as very negative ones. A bias whose very
    /// negative entries hide.
    Mixed,
    /// A condition; entries with this truth value are kept, the others get no weight.
    Boolean { keep: bool },
}

/// Something between the product and the Softmax that changes scores entry by entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mask {
    /// The Add or Where.
    pub node: NodeId,
    /// The added value or the condition.
    pub value: ValueId,
    pub kind: MaskKind,
}

/// The MatMul that makes the scores of an attention, where nothing but scale and masks lies after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueryKey {
    pub node: NodeId,
    pub q: ValueId,
    /// Already transposed.
    pub k: ValueId,
}

/// One attention core: `out = Softmax(mask(scale * q k)) v`. What comes before `q`, `k` and `v` (projections, splits, a
/// scale on `q`) is not part of it. Either end may be missing: scores that are more than one product (heads mixed, capped),
/// and weights that are changed on their way to the values.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    pub rule: String,
    pub product: Option<QueryKey>,
    pub softmax: NodeId,
    /// The node that takes the attention weights to the values: a MatMul, or the sum after a Mul. Not part of the core if
    /// there is no `v`.
    pub weighted: NodeId,
    /// The Mul or Div after the product, and the factor it multiplies with (the reciprocal for a Div).
    pub scale: Option<(NodeId, f32)>,
    /// From the product to the Softmax.
    pub masks: Vec<Mask>,
    /// Every node strictly between the scores and the Softmax, in order: scale, masks, and Reshapes between.
    pub chain: Vec<NodeId>,
    /// Nodes strictly between the Softmax and the weighted sum: a NaN guard (IsNaN and Where), casts, an idle Dropout.
    pub guard: Vec<NodeId>,
    /// `None` where something else than the weighted sum reads the weights first.
    pub v: Option<ValueId>,
    /// What the product makes, or whatever else makes scores.
    pub scores_product: ValueId,
    /// What enters the Softmax.
    pub scores: ValueId,
    /// What enters the weighted sum; without `v`, `out`.
    pub probs: ValueId,
    /// The weighted sum; without `v`, the weights.
    pub out: ValueId,
}

impl Attention {
    /// Every node of the core.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        let ends = [self.product.map(|p| p.node), Some(self.softmax), self.v.map(|_| self.weighted)];
        ends.into_iter().flatten().chain(self.chain.iter().copied()).chain(self.guard.iter().copied())
    }
}

/// The attention cores of a model, in graph order.
pub fn attentions(model: &Model, rules: &RuleSet) -> Vec<Attention> {
    let facts = Facts::new(model);
    recognise(model, rules, "attention").iter().filter_map(|r| attention(&facts, r)).collect()
}

/// A score this far down gets no weight after Softmax whatever the others are; models write -100, -1e4, -1e9, -inf.
const MASKED: f32 = -50.0;
/// At or below this an added constant does nothing but hide.
const HIDING: f32 = -60.0;
/// What a mask of zeros and ones is multiplied with is this low.
const FACTOR: f32 = -1e3;

/// True for one number that makes what hides of a mask.
fn hides(t: &Tensor) -> bool {
    t.as_scalar().is_some_and(|c| c <= f64::from(FACTOR))
}

fn attention(f: &Facts<'_>, r: &Recognition) -> Option<Attention> {
    let g = f.graph();
    let value = |role: &str| r.value(role);
    let (scores_product, weights, out) = (value("product").or(value("scores"))?, value("weights")?, value("out")?);
    let softmax = g.producer(weights)?;
    let scores = g.node(softmax).input(0)?;
    let product = match value("product") {
        Some(s) => Some(QueryKey { node: g.producer(s)?, q: value("q")?, k: value("k")? }),
        None => None,
    };
    let v = value("v");
    let (weighted, probs) = match v {
        Some(_) => g.producer(out).and_then(|n| Some((n, g.node(n).input(0)?)))?,
        None => (weighing(f, out)?, out),
    };
    let chain = path(f, r, scores, scores_product)?;
    let guard = path(f, r, probs, weights)?;
    let readers = |v: ValueId| chain.iter().copied().filter(move |n| g.node(*n).inputs.contains(&Some(v)));
    let scale = match value("scale") {
        Some(c) => {
            let node = readers(c).next()?;
            let factor = f.constant(c)?.as_scalar()? as f32;
            Some((node, if g.node(node).op.is("Div") { 1.0 / factor } else { factor }))
        }
        None => None,
    };
    let mut masks = Vec::new();
    if let Some(v) = value("factors") {
        masks.push(Mask { node: readers(v).next()?, value: v, kind: MaskKind::Bias });
    }
    for (role, fill) in [("bias", "fill"), ("mask", "fill2"), ("mask2", "fill3")] {
        let Some(v) = value(role) else { continue };
        // One value may be added twice (Swin of version 2 in transformers), each time by a node of its own. Where there is
        // but one, the second was bound after the Softmax, and says nothing of what is in front.
        let node = readers(v).find(|n| masks.iter().all(|m: &Mask| m.node != *n))?;
        let n = g.node(node);
        let kind = if n.op.is("Where") {
            // Where(condition, kept, fill): the fill is the constant of the two.
            MaskKind::Boolean { keep: value(fill).is_some_and(|fill| n.input(2) == Some(fill)) }
        } else {
            added(f, v, MOST_STEPS)
        };
        masks.push(Mask { node, value: v, kind });
    }
    masks.sort_by_key(|m| chain.iter().position(|n| *n == m.node));
    let rule = r.rule.clone();
    let mut a = Attention {
        rule,
        product,
        softmax,
        weighted,
        scale,
        masks,
        chain,
        guard,
        v,
        scores_product,
        scores,
        probs,
        out,
    };
    if product.is_none() {
        mask_first(f, &mut a);
        shorten(g, &mut a);
        // Codes of their own are made of scores; a value that others read too has codes already.
        let readers = g.uses(a.scores_product);
        let alone = readers.iter().all(|(n, _)| *n == a.softmax || a.chain.contains(n));
        (alone && !g.is_output(a.scores_product)).then_some(())?;
    }
    Some(a)
}

/// A sum has no order: where what was taken for the scores is a mask, what was taken for the mask are the scores.
fn mask_first(f: &Facts<'_>, a: &mut Attention) {
    let g = f.graph();
    let Some(first) = a.masks.first().copied() else { return };
    let sum = g.node(first.node);
    let both = sum.op.is("Add") && sum.inputs.contains(&Some(a.scores_product)) && a.chain.first() == Some(&first.node);
    if both && first.kind != MaskKind::Additive && added(f, a.scores_product, MOST_STEPS) == MaskKind::Additive {
        let mask = std::mem::replace(&mut a.scores_product, first.value);
        a.masks[0] = Mask { value: mask, kind: MaskKind::Additive, ..first };
    }
}

/// Leaves out what lies in front of the last bias if nothing is hidden there, and in front of a value that only the core
/// reads: no product needs it, and it is computed like anything else.
fn shorten(g: &Graph, a: &mut Attention) {
    let hides = a.chain.iter().position(|n| a.masks.iter().any(|m| m.node == *n && m.kind != MaskKind::Bias));
    let ahead = &a.chain[..hides.unwrap_or(a.chain.len())];
    let bias = ahead.iter().rposition(|n| a.masks.iter().any(|m| m.node == *n));
    let shared = (g.uses(a.scores_product).len() > 1 && !ahead.is_empty()).then_some(0);
    let Some(last) = bias.max(shared) else { return };
    let Some(v) = g.node(a.chain[last]).out() else { return };
    a.scores_product = v;
    a.chain.drain(..=last);
    a.masks.retain(|m| a.chain.contains(&m.node));
    a.scale = a.scale.filter(|(n, _)| a.chain.contains(n));
}

/// How far [`added`] looks back: operands may be shared, so that a chain of n sums has 2^n ways.
const MOST_STEPS: u32 = 12;

/// What an added value does to the scores, as far as `steps` nodes in front of it tell.
fn added(f: &Facts<'_>, v: ValueId, steps: u32) -> MaskKind {
    if let Some(t) = f.constant(v) {
        return match t.to_f32s() {
            Some(x) if x.iter().all(|x| *x > MASKED) => MaskKind::Bias,
            Some(x) if x.iter().all(|x| *x == 0.0 || *x <= HIDING) => MaskKind::Additive,
            _ => MaskKind::Mixed,
        };
    }
    let g = f.graph();
    let Some(n) = g.producer(v).map(|n| g.node(n)).filter(|n| n.op.is_onnx()) else { return MaskKind::Mixed };
    let Some(steps) = steps.checked_sub(1) else { return MaskKind::Mixed };
    let of = |slot: usize| n.input(slot).map_or(MaskKind::Mixed, |x| added(f, x, steps));
    let bias_if = |holds: bool| if holds { MaskKind::Bias } else { MaskKind::Mixed };
    match n.op.name.as_str() {
        // A product of what queries or keys are with learned positions: it says where to look, and hides nothing.
        "MatMul" | "Gemm" | "Einsum" => MaskKind::Bias,
        "Add" | "Sub" => bias_if((0..2).all(|i| of(i) == MaskKind::Bias)),
        // A mask of zeros and ones, times what hides: what it leaves of a score, it leaves whole.
        "Mul" if (0..2).any(|i| n.input(i).and_then(|c| f.constant(c)).is_some_and(hides)) => MaskKind::Additive,
        "Mul" | "Div" => {
            let scaled = |by: ValueId| f.constant(by).and_then(|t| t.as_scalar()).is_some_and(|c| c != 0.0);
            bias_if(n.input(1).is_some_and(scaled) && of(0) == MaskKind::Bias)
        }
        "Reshape" | "Transpose" | "Unsqueeze" | "Squeeze" | "Expand" | "Tile" | "Slice" | "Gather"
        | "GatherElements" => of(0),
        _ => MaskKind::Mixed,
    }
}

/// The nodes of a recognition that lead from the value `from` to the value `to`, in order.
fn path(f: &Facts<'_>, r: &Recognition, to: ValueId, from: ValueId) -> Option<Vec<NodeId>> {
    let g = f.graph();
    let mut back = Vec::new();
    let mut v = to;
    while v != from {
        let n = g.producer(v).filter(|n| r.nodes.contains(n) && back.len() <= r.nodes.len())?;
        back.push(n);
        let inner = |p: NodeId| r.nodes.contains(&p) && g.producer(from).is_none_or(|first| g.reaches(first, p));
        let leads = |x: &ValueId| *x == from || g.producer(*x).is_some_and(inner);
        v = g.node(n).inputs.iter().flatten().copied().find(leads)?;
    }
    back.reverse();
    Some(back)
}

/// A LayerNorm or GELU, as one node or as the several it was written as.
#[derive(Clone, Debug, PartialEq)]
pub struct Site {
    pub rule: String,
    pub input: ValueId,
    pub out: ValueId,
    /// One node when it is not decomposed.
    pub nodes: Vec<NodeId>,
    /// The last of them.
    pub root: NodeId,
    /// Everything else the rule gave a role: `gamma`, `beta`, `epsilon`.
    pub roles: IndexMap<String, Bound>,
}

fn sites(model: &Model, rules: &RuleSet, what: &str) -> Vec<Site> {
    let site = |r: Recognition| {
        Some(Site {
            input: r.value("x")?,
            out: r.value("y")?,
            rule: r.rule,
            nodes: r.nodes,
            root: r.root,
            roles: r.roles,
        })
    };
    recognise(model, rules, what).into_iter().filter_map(site).collect()
}

/// The LayerNorms over the last axis, in graph order.
pub fn layer_norms(model: &Model, rules: &RuleSet) -> Vec<Site> {
    sites(model, rules, "layer_norm")
}

/// The GELUs, exact and by tanh, in graph order. `x * sigmoid(1.702 x)` is none.
pub fn gelus(model: &Model, rules: &RuleSet) -> Vec<Site> {
    sites(model, rules, "gelu")
}
