//! Where the scores of an attention become codes, and in which shape its masks fit.

use crate::ir::{Dim, Graph, NodeId, ValueId};
use crate::pattern::{Attention, Mask, MaskKind};

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
    pub view: Option<View>,
}

/// A view of scores and values with their first axis in two: masks of shifted windows differ from window to window, and
/// masks of samples from sample to sample where batch and heads are one axis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Sizes of the scores; `None` if their codes are made in this shape.
    pub scores: Option<Vec<i64>>,
    pub values: Vec<i64>,
    /// Sizes of the result, which has the shape it always had.
    pub result: Vec<i64>,
    /// Number of axes within the view.
    pub rank: usize,
}

/// Where the codes of the scores begin in the chain: after the last thing that is added, and after a change of shape
/// that follows it if nothing is hidden.
fn start(g: &Graph, a: &Attention) -> usize {
    let added = |m: &&Mask| matches!(m.kind, MaskKind::Bias | MaskKind::Mixed);
    let last = a.masks.iter().rev().find(added);
    let from = last.and_then(|m| a.chain.iter().position(|n| *n == m.node)).map_or(0, |i| i + 1);
    let hides = a.masks.iter().any(|m| m.kind != MaskKind::Bias);
    let moves = a.chain[from..].iter().take_while(|n| !hides && g.node(**n).op.is("Reshape")).count();
    from + moves
}

/// The value whose codes the scores are, whether or not the rest can be computed from them.
pub fn score_value(g: &Graph, a: &Attention) -> ValueId {
    match start(g, a) {
        0 => a.scores_product,
        i => g.node(a.chain[i - 1]).out().unwrap_or(a.scores_product),
    }
}

/// The codes of the scores lie as early as nothing but one factor and masks follow.
///
/// # Errors
/// A sentence that says why this attention cannot be computed from codes: its masks lie in shapes that are not known or
/// do not agree.
pub fn score_site<'a>(g: &Graph, a: &'a Attention) -> Result<ScoreSite<'a>, String> {
    let place = |m: &Mask| a.chain.iter().position(|n| *n == m.node);
    let from = start(g, a);
    let chain = &a.chain[from..];
    let value = score_value(g, a);
    let factor = a.scale.filter(|(n, _)| chain.contains(n)).map_or(1.0, |(_, f)| f);
    let masks: Vec<&Mask> = a.masks.iter().filter(|m| m.kind != MaskKind::Bias).collect();
    let early = masks.iter().filter(|m| place(m).is_some_and(|i| i < from)).count();
    let reshapes: Vec<usize> = (0..a.chain.len()).filter(|i| g.node(a.chain[*i]).op.is("Reshape")).collect();
    let mut site = ScoreSite { value, factor, masks, early, chain, view: None };
    let (open, close) = match reshapes[..] {
        [] => return Ok(site),
        [open, close] => (open, close),
        _ => return Err("its scores change shape in a way that is not understood".into()),
    };
    let within = |i: usize| open <= i && i < close;
    let value_within = from > 0 && within(from - 1);
    let inside = site.masks.iter().filter(|m| place(m).is_some_and(within)).count();
    if inside == 0 && !value_within {
        return Ok(site);
    }
    if inside < site.masks.len() {
        return Err("its masks lie in different shapes".into());
    }
    let shape = |v: ValueId| g.shape(v).map(<[_]>::to_vec);
    let inner = g.node(a.chain[open]).out().and_then(shape).ok_or("the shape of its scores is not known")?;
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
    site.view = Some(View {
        scores: (!value_within).then(|| headed(&[-1], &inner)),
        values: headed(&[-1, inner[0]], &values),
        result: [&[-1], &outer[..outer.len() - 1], &[last]].concat(),
        rank: inner.len() + 1,
    });
    Ok(site)
}
