//! What is done to the scores of attention on their way to the Softmax.
//!
//! [`Act::of`] reads one node, [`Chain`] all of an attention: one factor, what is added or chosen entry by entry, and changes
//! of shape. Whoever asks for scale or masks (the pass that brings them into order, the plan, the passes that quantize) asks
//! here.

use super::facts::Facts;
use crate::ir::masks::{HIDES, HIDES_SCALED};
use crate::ir::{Graph, Node, NodeId, Tensor, ValueId};

/// What one node does to the scores it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Multiplies them with a value, or divides them by it.
    Times { by: ValueId, div: bool },
    /// Adds a value, or takes it off.
    Plus { term: ValueId, minus: bool },
    /// Keeps them where the condition is `keep`; everywhere else there is `fill`.
    Choose { condition: ValueId, keep: bool, fill: ValueId },
    /// Bounds them.
    Bound,
    /// Leaves them as they are, in another shape or under another name.
    Move,
}

impl Act {
    /// What a node does to what it reads in `slot`; `None` for what is none of these.
    pub fn of(n: &Node, slot: usize) -> Option<Act> {
        if !n.op.is_onnx() {
            return None;
        }
        let other = || n.input(1 - slot);
        Some(match (n.op.name.as_str(), slot) {
            ("Mul", 0 | 1) => Act::Times { by: other()?, div: false },
            ("Div", 0) => Act::Times { by: other()?, div: true },
            ("Add", 0 | 1) => Act::Plus { term: other()?, minus: false },
            ("Sub", 0) => Act::Plus { term: other()?, minus: true },
            ("Where", 1 | 2) => Act::Choose { condition: n.input(0)?, keep: slot == 1, fill: n.input(3 - slot)? },
            ("Clip", 0) => Act::Bound,
            ("Reshape" | "Identity", 0) => Act::Move,
            _ => return None,
        })
    }
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
    /// A condition; entries with the truth value `keep` are kept, the others are `fill` and get no weight.
    Boolean { keep: bool, fill: ValueId },
}

/// Something between the product and the Softmax that changes scores entry by entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mask {
    /// Its node's place in [`Chain::nodes`].
    pub place: usize,
    /// The added value or the condition.
    pub value: ValueId,
    pub kind: MaskKind,
}

impl Mask {
    /// True if it is added to the scores and may have entries of ordinary size, which are part of them.
    pub fn counts(&self) -> bool {
        matches!(self.kind, MaskKind::Bias | MaskKind::Mixed)
    }

    /// True if it may take entries their weight.
    pub fn hides(&self) -> bool {
        self.kind != MaskKind::Bias
    }
}

/// The factor of scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// The Mul or Div.
    pub node: NodeId,
    /// What it multiplies with: the reciprocal for a Div.
    pub factor: f32,
}

/// All that is done to the scores of one attention, from where they are made to the Softmax.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chain {
    /// In order, each reading what the one before makes.
    pub nodes: Vec<NodeId>,
    pub scale: Option<Scale>,
    /// In order.
    pub masks: Vec<Mask>,
}

impl Chain {
    /// What these nodes do, the first of which reads `scores`; `None` if one of them is no [`Act`] of scores, or scales them a
    /// second time.
    pub(super) fn of(f: &Facts<'_>, nodes: Vec<NodeId>, scores: ValueId) -> Option<Chain> {
        let g = f.graph();
        let (mut scale, mut masks, mut v) = (None, Vec::new(), scores);
        for (place, node) in nodes.iter().enumerate() {
            let n = g.node(*node);
            let slot = n.inputs.iter().position(|x| *x == Some(v))?;
            let mut mask = |value, kind| masks.push(Mask { place, value, kind });
            match Act::of(n, slot)? {
                Act::Times { by, div } => match f.constant(by)?.as_scalar() {
                    Some(c) if scale.is_none() => {
                        let factor = if div { 1.0 / c as f32 } else { c as f32 };
                        scale = Some(Scale { node: *node, factor });
                    }
                    None if !div => mask(by, MaskKind::Bias),
                    _ => return None,
                },
                Act::Plus { minus: true, .. } | Act::Bound => return None,
                Act::Plus { term, .. } => mask(term, added(f, term, MOST_STEPS)),
                Act::Choose { condition, keep, fill } => mask(condition, MaskKind::Boolean { keep, fill }),
                Act::Move => {}
            }
            v = n.out()?;
        }
        Some(Chain { nodes, scale, masks })
    }

    /// Drops the first `n` nodes and what they do.
    pub(super) fn skip(&mut self, n: usize) {
        self.scale = self.scale.filter(|s| !self.nodes[..n].contains(&s.node));
        self.nodes.drain(..n);
        self.masks.retain(|m| m.place >= n);
        self.masks.iter_mut().for_each(|m| m.place -= n);
    }

    /// What the first `n` nodes make of `scores`.
    pub fn after(&self, g: &Graph, n: usize, scores: ValueId) -> ValueId {
        n.checked_sub(1).and_then(|i| g.node(self.nodes[i]).out()).unwrap_or(scores)
    }

    /// The places of the nodes that change the shape.
    pub fn views(&self, g: &Graph) -> Vec<usize> {
        (0..self.nodes.len()).filter(|i| g.node(self.nodes[*i]).op.is("Reshape")).collect()
    }

    /// How many nodes come before the point from which the scores change only by one factor and by masking: those up to the
    /// last sum, and a change of shape after it if nothing is masked.
    pub fn settled(&self, g: &Graph) -> usize {
        let from = self.masks.iter().rev().find(|m| m.counts()).map_or(0, |m| m.place + 1);
        let hides = self.masks.iter().any(Mask::hides);
        from + self.nodes[from..].iter().take_while(|n| !hides && g.node(**n).op.is("Reshape")).count()
    }
}

/// True for one number that makes what hides of a mask.
fn hides(t: &Tensor) -> bool {
    t.as_scalar().is_some_and(|c| c <= f64::from(HIDES_SCALED))
}

/// How far [`added`] looks back: operands may be shared, so that a chain of n sums has 2^n ways.
pub(super) const MOST_STEPS: u32 = 12;

/// What an added value does to the scores, as far as `steps` nodes in front of it tell.
pub(super) fn added(f: &Facts<'_>, v: ValueId, steps: u32) -> MaskKind {
    if let Some(t) = f.constant(v) {
        return match t.to_f32s() {
            Some(x) if x.iter().all(|x| *x > HIDES) => MaskKind::Bias,
            Some(x) if x.iter().all(|x| *x == 0.0 || *x <= HIDES) => MaskKind::Additive,
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
