//! Where the scores of an attention become codes, and in which shape its masks fit.

use crate::ir::{DType, Dim, Graph, NodeId, ValueId};
use crate::pattern::{Attention, Mask};

/// Where the scores of an attention become codes.
#[derive(Clone, Debug)]
pub struct ScoreSite<'a> {
    /// The value that is quantized: the product, or the product with what is added to it.
    pub value: ValueId,
    /// What it is still multiplied with on the way to the Softmax.
    pub factor: f32,
    /// What hides entries. Where it was added before the codes are made, these only lose what is hidden.
    pub masks: Vec<&'a Mask>,
    /// How many of the masks, from the first, act before the codes are made.
    pub early: usize,
    /// Nodes from the value to the Softmax.
    pub chain: &'a [NodeId],
    /// The shape weights are computed in, if it is not the shape of the product.
    pub view: Option<ScoreView>,
}

/// A view of scores and values with their first axis in two: masks of shifted windows differ from window to window, and
/// masks of samples from sample to sample where batch and heads are one axis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScoreView {
    /// Sizes of the scores; `None` if their codes are made in this shape.
    pub scores: Option<Vec<i64>>,
    pub values: Vec<i64>,
    /// Sizes of the result, which has the shape it always had.
    pub result: Vec<i64>,
    /// Number of axes within the view.
    pub rank: usize,
}

/// The value whose codes the scores are, whether or not the rest can be computed from them.
pub fn score_value(g: &Graph, a: &Attention) -> ValueId {
    a.chain.after(g, a.chain.settled(g), a.scores_product)
}

/// The codes of the scores lie as early as nothing but one factor and masks follow.
///
/// # Errors
/// A sentence that says why this attention cannot be computed from codes: its masks lie in shapes that are not known or
/// do not agree.
pub fn score_site<'a>(g: &Graph, a: &'a Attention) -> Result<ScoreSite<'a>, String> {
    let from = a.chain.settled(g);
    let chain = &a.chain.nodes[from..];
    let value = score_value(g, a);
    let other = |v: &ValueId| g.value(*v).ty.as_ref().map(|t| t.dtype).filter(|t| *t != DType::FLOAT);
    if let Some(ty) = [value, a.scores].iter().find_map(other) {
        return Err(format!("its scores are {ty}, and codes stand for float32"));
    }
    let factor = a.chain.scale.filter(|s| chain.contains(&s.node)).map_or(1.0, |s| s.factor);
    let masks: Vec<&Mask> = a.chain.masks.iter().filter(|m| m.hides()).collect();
    let early = masks.iter().filter(|m| m.place < from).count();
    let mut site = ScoreSite { value, factor, masks, early, chain, view: None };
    let (open, close) = match a.chain.views(g)[..] {
        [] => return Ok(site),
        [open, close] => (open, close),
        _ => return Err("its scores change shape in a way that is not understood".into()),
    };
    let within = |i: usize| open <= i && i < close;
    let value_within = from > 0 && within(from - 1);
    let inside = site.masks.iter().filter(|m| within(m.place)).count();
    if inside == 0 && !value_within {
        return Ok(site);
    }
    if inside < site.masks.len() {
        return Err("its masks lie in different shapes".into());
    }
    let shape = |v: ValueId| g.shape(v).map(<[_]>::to_vec);
    let inner = g.node(a.chain.nodes[open]).out().and_then(shape).ok_or("the shape of its scores is not known")?;
    let outer = shape(a.scores).ok_or("the shape of its scores is not known")?;
    let values = a.v.and_then(shape).ok_or("the shape of its values is not known")?;
    let unsplit = || "its scores are seen in a shape that does more than split their first axis".to_owned();
    if outer.len() < 3 || inner.len() != outer.len() + 1 || values.len() != outer.len() || inner[2..] != outer[1..] {
        return Err(unsplit());
    }
    if values[0] == Dim::Known(1) && outer[0] != Dim::Known(1) {
        return Err("one set of values serves all its windows".into());
    }
    let known = |d: &[Dim]| -> Result<Vec<i64>, String> {
        d.iter()
            .map(|d| if let Dim::Known(n) = d { Ok(*n) } else { Err("a size of its scores is not known".to_owned()) })
            .collect()
    };
    let (inner, outer, values) = (known(&inner[1..])?, known(&outer[1..])?, known(&values[1..])?);
    let headed = |first: &[i64], rest: &[i64]| [first, rest].concat();
    let last = values.last().copied().unwrap_or(1);
    site.view = Some(ScoreView {
        scores: (!value_within).then(|| headed(&[-1], &inner)),
        values: headed(&[-1, inner[0]], &values),
        result: [&[-1], &outer[..outer.len() - 1], &[last]].concat(),
        rank: inner.len() + 1,
    });
    Ok(site)
}
