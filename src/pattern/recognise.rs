//! What a model is made of, for the passes that compute: attention, LayerNorm, GELU, wherever and however written.

use std::collections::BTreeSet;

use indexmap::IndexMap;

use crate::ir::{Graph, Model, NodeId, ValueId};

use super::driver::find;
use super::facts::Facts;
use super::matcher::{Bound, Match};
use super::rule::{Refusal, RuleSet};
use super::scores::{Chain, MOST_STEPS, MaskKind, added};
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
    /// What is done to the scores between the product and the Softmax.
    pub chain: Chain,
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
        ends.into_iter().flatten().chain(self.chain.nodes.iter().copied()).chain(self.guard.iter().copied())
    }
}

/// The attention cores of a model, in graph order.
pub fn attentions(model: &Model, rules: &RuleSet) -> Vec<Attention> {
    let facts = Facts::new(model);
    recognise(model, rules, "attention").iter().filter_map(|r| attention(&facts, r)).collect()
}

/// Roles of what changes scores entry by entry in front of the Softmax.
const CHANGES: [&str; 4] = ["factors", "bias", "mask", "mask2"];

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
    let chain = Chain::of(f, path(f, r, scores, scores_product)?, scores_product)?;
    // What was bound after the Softmax alone says nothing of what is in front.
    if CHANGES.iter().filter(|role| value(role).is_some()).count() != chain.masks.len() {
        return None;
    }
    let guard = path(f, r, probs, weights)?;
    let rule = r.rule.clone();
    let mut a = Attention { rule, product, softmax, weighted, chain, guard, v, scores_product, scores, probs, out };
    if product.is_none() {
        mask_first(f, &mut a);
        shorten(g, &mut a);
        // Codes of their own are made of scores; a value that others read too has codes already.
        let readers = g.uses(a.scores_product);
        let alone = readers.iter().all(|(n, _)| *n == a.softmax || a.chain.nodes.contains(n));
        (alone && !g.is_output(a.scores_product)).then_some(())?;
    }
    Some(a)
}

/// A sum has no order: where what was taken for the scores is a mask, what was taken for the mask are the scores.
fn mask_first(f: &Facts<'_>, a: &mut Attention) {
    let Some(first) = a.chain.masks.first_mut().filter(|m| m.place == 0) else { return };
    let added_to =
        matches!(first.kind, MaskKind::Bias | MaskKind::Mixed) && f.graph().node(a.chain.nodes[0]).op.is("Add");
    if added_to && added(f, a.scores_product, MOST_STEPS) == MaskKind::Additive {
        std::mem::swap(&mut first.value, &mut a.scores_product);
        first.kind = MaskKind::Additive;
    }
}

/// Leaves out what lies in front of the last bias if nothing is hidden there, and in front of a value that only the core
/// reads: no product needs it, and it is computed like anything else.
fn shorten(g: &Graph, a: &mut Attention) {
    let masks = &a.chain.masks;
    let ahead = masks.iter().find(|m| m.hides()).map_or(a.chain.nodes.len(), |m| m.place);
    let bias = masks.iter().map(|m| m.place).filter(|p| *p < ahead).max();
    let shared = (g.uses(a.scores_product).len() > 1 && ahead > 0).then_some(0);
    let Some(last) = bias.max(shared) else { return };
    a.scores_product = a.chain.after(g, last + 1, a.scores_product);
    a.chain.skip(last + 1);
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
pub struct Composite {
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

fn sites(model: &Model, rules: &RuleSet, what: &str) -> Vec<Composite> {
    let site = |r: Recognition| {
        Some(Composite {
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
pub fn layer_norms(model: &Model, rules: &RuleSet) -> Vec<Composite> {
    sites(model, rules, "layer_norm")
}

/// The GELUs, exact and by tanh, in graph order. `x * sigmoid(1.702 x)` is none.
pub fn gelus(model: &Model, rules: &RuleSet) -> Vec<Composite> {
    sites(model, rules, "gelu")
}
