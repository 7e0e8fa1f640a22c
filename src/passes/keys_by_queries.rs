//! Attention whose scores lie in another order.

use super::common::{MOST_STEPS, last_two_swapped, leads, patch_rounds, perm_of, sole_reader, sole_use};
use super::reshape_static::static_target;
use super::{Context, Numerics, Outcome, Pass, PassError};
use crate::infer::{self, ShapeMap};
use crate::ir::{Attrs, Graph, NodeId, ValueId};
use crate::rewrite::{Patch, Ref};

/// # What it does
/// Computes attention weights in the order in which they meet the values: `Q K^T` where the model computes `K Q^T`, takes a
/// Softmax over the last axis but one, and then swaps the last two axes; heads before the batch, or heads last; and weights
/// on the left of the values where the model has them, turned, on the right.
///
/// # When it fires
/// - On a Softmax that only a Transpose reads, which makes its axis the last, and whose scores come from a MatMul or another
///   Transpose through sums, products and selections, and changes of shape that keep the last two axes, each read once.
/// - On a Transpose of the last two axes of a MatMul of two computed values, of which the first is no Softmax.
/// - On a MatMul of which the right operand alone, which nothing else reads, is made by a Softmax over the last axis but
///   one, or by a Transpose of the last two axes of one over the last.
///
/// # Why it is correct
/// `(A B)^T = B^T A^T`, and what works element by element does not mind where an element lies.
///
/// # Numerics
/// Close: a runtime may add up a transposed product in another order.
///
/// # Before / after
/// ```text
/// s = MatMul (k, q_t)              # q_t: float[2, 3, 16, 17]
/// w = Softmax <axis = 2> (s)
/// y = Transpose <perm = [0, 1, 3, 2]> (w)
///
/// q = Transpose <perm = [0, 1, 3, 2]> (q_t)
/// k_t = Transpose <perm = [0, 1, 3, 2]> (k)
/// y = Softmax <axis = 3> (MatMul (q, k_t))
/// ```
///
/// # Source
/// Keras writes attention as `einsum("aecd,abcd->acbe", K, Q)`, which tf2onnx turns into this. SuperGlue, non-local blocks.
pub struct KeysByQueries;

impl Pass for KeysByQueries {
    fn id(&self) -> &'static str {
        "keys-by-queries"
    }

    fn summary(&self) -> &'static str {
        "Transposes attention so that its weights have one row per query."
    }

    fn numerics(&self) -> Numerics {
        Numerics::Close { rel: 1e-5 }
    }

    fn run(&self, model: &mut Context) -> Result<Outcome, PassError> {
        let opset = model.opset();
        patch_rounds(model, |g, id, map| patch(g, id, map, opset))
    }
}

fn patch(g: &Graph, id: NodeId, map: &ShapeMap, opset: i64) -> Option<Patch> {
    match g.node(id).op.name.as_str() {
        _ if !g.node(id).op.is_onnx() => None,
        "Transpose" => product(g, id, map),
        "MatMul" => weights_first(g, id, map, opset),
        "Softmax" => ordered(g, id, map, opset),
        _ => None,
    }
}

/// The axis of a Softmax, and the rank of what it works on.
fn axis_of(g: &Graph, id: NodeId, map: &ShapeMap, opset: i64) -> Option<(usize, usize)> {
    let rank = map.rank(g.node(id).input(0)?).filter(|r| *r >= 2)?;
    Some((g.node(id).axis_at(rank, opset), rank))
}

fn swaps_last_two(g: &Graph, turn: NodeId, rank: usize) -> bool {
    g.node(turn).attrs.ints("perm") == Some(&last_two_swapped(rank)[..])
}

/// Weights that a Transpose brings into order: their scores in this order.
fn ordered(g: &Graph, id: NodeId, map: &ShapeMap, opset: i64) -> Option<Patch> {
    let (s, w) = (g.node(id).input(0)?, g.node(id).out()?);
    let (axis, rank) = axis_of(g, id, map, opset)?;
    let turn = sole_reader(g, w).filter(|n| g.node(*n).op.is("Transpose"))?;
    let y = g.node(turn).out()?;
    let perm = perm_of(g, turn, rank)?;
    if perm.last() != Some(&axis) {
        return None;
    }
    let mut job =
        Turning { g, map, patch: Patch::new("keys-by-queries").before(turn).made_from([g.name_of(y).to_owned()]) };
    let scores = job.turned(s, &perm)?;
    let new = job.patch.node("Softmax", g.name_of(y), &[scores], Attrs::new().with_int("axis", rank as i64 - 1));
    job.patch.succeed(y, new);
    Some(job.patch)
}

/// What a Softmax makes, turned or not.
fn are_weights(g: &Graph, v: ValueId) -> bool {
    let from = g.producer_is(v, "Transpose").and_then(|n| g.node(n).input(0)).unwrap_or(v);
    g.producer_is(from, "Softmax").is_some()
}

/// `V W` with weights on the right, which are those of attention turned, as `(W' V')'`.
fn weights_first(g: &Graph, id: NodeId, map: &ShapeMap, opset: i64) -> Option<Patch> {
    let (v, w, y) = (g.node(id).input(0)?, g.node(id).input(1)?, g.node(id).out()?);
    let rank = map.rank(w).filter(|r| *r >= 2 && map.rank(v) == Some(*r))?;
    // Of two attentions' weights either would be brought in front of the other, without end.
    if g.constant(v).is_some() || sole_use(g, w) != Some(id) || are_weights(g, v) {
        return None;
    }
    let made = g.producer(w)?;
    let swap = last_two_swapped(rank);
    let mut p = Patch::new("keys-by-queries").before(id).made_from([g.name_of(y).to_owned()]);
    let first: Ref = if g.node(made).op.is("Softmax") {
        let (axis, _) = axis_of(g, made, map, opset)?;
        if axis != rank - 2 {
            return None;
        }
        p.under(g.name_of(w)).turned("turned", w.into(), &swap)
    } else {
        let inner = g.node(made).input(0)?;
        let softmax = g.producer_is(inner, "Softmax")?;
        let turns = g.node(made).op.is("Transpose") && swaps_last_two(g, made, rank);
        if !turns || axis_of(g, softmax, map, opset)?.0 != rank - 1 {
            return None;
        }
        inner.into()
    };
    let values = p.under(g.name_of(v)).turned("turned", v.into(), &swap);
    let mut e = p.under(g.name_of(y));
    let product = e.op("MatMul", "turned", &[first, values]);
    let new = e.turned("", product, &swap);
    p.succeed(y, new);
    Some(p)
}

/// A product of two computed values that is turned right away. Weights stay in front of their values.
fn product(g: &Graph, turn: NodeId, map: &ShapeMap) -> Option<Patch> {
    let (x, y) = (g.node(turn).input(0)?, g.node(turn).out()?);
    let rank = map.rank(x).filter(|r| *r >= 2)?;
    let made = g.node(g.producer_is(x, "MatMul")?);
    let computed = made.inputs.iter().flatten().all(|v| g.constant(*v).is_none());
    let weights = made.input(0).is_some_and(|w| are_weights(g, w));
    if !computed || weights || !swaps_last_two(g, turn, rank) {
        return None;
    }
    let mut job =
        Turning { g, map, patch: Patch::new("keys-by-queries").before(turn).made_from([g.name_of(y).to_owned()]) };
    let new = job.turned(x, &perm_of(g, turn, rank)?)?;
    job.patch.succeed(y, new);
    Some(job.patch)
}

struct Turning<'a> {
    g: &'a Graph,
    map: &'a ShapeMap,
    patch: Patch,
}

impl Turning<'_> {
    /// `v` with its axes in the order `perm`, all the way up to the product or to a Transpose; `None` if there is none.
    fn turned(&mut self, v: ValueId, perm: &[usize]) -> Option<Ref> {
        let g = self.g;
        let n = g.node(g.producer(v)?);
        if !n.op.is_onnx() || g.use_count(v) != 1 || g.is_output(v) {
            return None;
        }
        let (name, rank) = (g.name_of(v), perm.len());
        match n.op.name.as_str() {
            "MatMul" => {
                let matrix = &perm[rank - 2..];
                let (a, b) = (n.input(0)?, n.input(1)?);
                // A layer keeps its weight where it is.
                if g.constant(a).is_some() || g.constant(b).is_some() {
                    return None;
                }
                if matrix == [rank - 1, rank - 2] {
                    let (a, b) = (self.moved(a, perm)?, self.moved(b, perm)?);
                    Some(self.patch.under(name).op("MatMul", "turned", &[b, a]))
                } else if matrix == [rank - 2, rank - 1] {
                    let (a, b) = (self.moved(a, perm)?, self.moved(b, perm)?);
                    Some(self.patch.under(name).op("MatMul", "turned", &[a, b]))
                } else {
                    None
                }
            }
            "Transpose" => {
                let x = n.input(0)?;
                let first = perm_of(g, g.producer(v)?, rank)?;
                let both: Vec<usize> = perm.iter().map(|a| first[*a]).collect();
                if both.is_sorted() {
                    return Some(x.into());
                }
                if let Some(up) = leads(g, x, MOST_STEPS).then(|| self.turned(x, &both)).flatten() {
                    return Some(up);
                }
                let perm: Vec<i64> = both.iter().map(|a| *a as i64).collect();
                Some(self.patch.under(name).turned("turned", x.into(), &perm))
            }
            op if op == "Where" || n.is_elementary() => {
                // The scores among the operands: the product is behind one of them.
                let main = n
                    .inputs
                    .iter()
                    .flatten()
                    .position(|x| self.map.rank(*x) == Some(rank) && leads(g, *x, MOST_STEPS))?;
                let mut inputs = Vec::new();
                for (i, x) in n.inputs.iter().flatten().enumerate() {
                    inputs.push(if i == main { self.turned(*x, perm)? } else { self.moved(*x, perm)? });
                }
                Some(self.patch.under(name).op_with(&n.op.name, "turned", &inputs, n.attrs.clone()))
            }
            "Reshape" => {
                let x = n.input(0)?;
                let (from, to) = (self.map.dims(x)?.to_vec(), self.map.dims(v)?.to_vec());
                let swap = |rank: usize| last_two_swapped(rank).iter().map(|a| *a as usize).collect::<Vec<_>>();
                let keeps = from.len() >= 2 && to.len() >= 2 && from[from.len() - 2..] == to[to.len() - 2..];
                let turned = |mut d: Vec<infer::Size>| {
                    let last = d.len() - 1;
                    d.swap(last - 1, last);
                    d
                };
                let within = swap(from.len().max(2));
                let target =
                    (keeps && perm == swap(rank)).then(|| static_target(&turned(from), &turned(to), true)).flatten()?;
                let x = self.turned(x, &within)?;
                Some(self.patch.under(name).reshaped("turned", x, &target))
            }
            _ => None,
        }
    }

    /// An operand with its axes in the order `perm` by a node of its own, or as it is if it is a single number. One of fewer
    /// axes is moved if the axes it lacks stay where they are.
    fn moved(&mut self, v: ValueId, perm: &[usize]) -> Option<Ref> {
        if self.g.constant(v).is_some_and(|t| t.len() == 1) {
            return Some(v.into());
        }
        let rank = self.map.rank(v).filter(|r| *r >= 2 && *r <= perm.len())?;
        let lacks = perm.len() - rank;
        if !perm[..lacks].is_sorted() || perm[lacks..].iter().any(|a| *a < lacks) {
            return None;
        }
        let perm: Vec<i64> = perm[lacks..].iter().map(|a| (*a - lacks) as i64).collect();
        if perm.is_sorted() {
            return Some(v.into());
        }
        Some(self.patch.under(self.g.name_of(v)).turned("turned", v.into(), &perm))
    }
}
