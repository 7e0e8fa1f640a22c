//! Attention whose scores lie with a row for each key.

use super::common::{last_two_swapped, patch_nodes, sole_reader};
use super::reshape_static::static_target;
use super::{Numerics, Outcome, Pass, PassError};
use crate::infer::{self, ShapeMap};
use crate::ir::{Attrs, Graph, Model, NodeId, Tensor, ValueId};
use crate::rewrite::{Patch, Ref};

/// # What it does
/// Computes `Q K^T` where the model computes `K Q^T`, takes a Softmax over the last axis but one, and then swaps the last
/// two axes of the weights.
///
/// # When it fires
/// On a Softmax over the last axis but one that only a Transpose of the last two axes reads, whose scores come from a
/// MatMul through sums, products and selections, and changes of shape that keep the last two axes, each read once; and on a
/// Transpose of the last two axes of a MatMul of two computed values.
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
/// Keras writes attention as `einsum("aecd,abcd->acbe", K, Q)`, which tf2onnx turns into this.
pub struct KeysByQueries;

impl Pass for KeysByQueries {
    fn id(&self) -> &'static str {
        "keys-by-queries"
    }

    fn summary(&self) -> &'static str {
        "attention scores with a row for each key get a row for each query"
    }

    fn numerics(&self) -> Numerics {
        Numerics::Close { rel: 1e-5 }
    }

    fn run(&self, model: &mut Model) -> Result<Outcome, PassError> {
        let map = infer::shapes(model);
        patch_nodes(model, |g, id| patch(g, id, &map))
    }
}

fn patch(g: &Graph, id: NodeId, map: &ShapeMap) -> Option<Patch> {
    let softmax = g.node(id);
    if softmax.op.is("Transpose") {
        return product(g, id, map);
    }
    if !softmax.op.is("Softmax") {
        return None;
    }
    let (s, w) = (softmax.input(0)?, softmax.out()?);
    let rank = map.rank(s)?;
    let axis = softmax.attrs.int("axis")?.rem_euclid(rank.max(1) as i64);
    let turn = sole_reader(g, w).filter(|n| g.node(*n).op.is("Transpose"))?;
    let y = g.node(turn).out()?;
    if rank < 2 || axis != rank as i64 - 2 || g.node(turn).attrs.ints("perm") != Some(&last_two_swapped(rank)[..]) {
        return None;
    }
    let mut job =
        Job { g, map, patch: Patch::new("keys-by-queries").before(turn).made_from([g.name_of(y).to_owned()]) };
    let scores = job.turned(s)?;
    let new = job.patch.node("Softmax", g.name_of(y), &[scores], Attrs::new().with_int("axis", rank as i64 - 1));
    job.patch.succeed(y, new);
    Some(job.patch)
}

/// A product of two computed values that is turned right away.
fn product(g: &Graph, turn: NodeId, map: &ShapeMap) -> Option<Patch> {
    let (x, y) = (g.node(turn).input(0)?, g.node(turn).out()?);
    let rank = map.rank(x).filter(|r| *r >= 2)?;
    let made = g.node(g.producer_is(x, "MatMul")?);
    let computed = made.inputs.iter().flatten().all(|v| g.constant(*v).is_none());
    if !computed || g.node(turn).attrs.ints("perm") != Some(&last_two_swapped(rank)[..]) {
        return None;
    }
    let mut job =
        Job { g, map, patch: Patch::new("keys-by-queries").before(turn).made_from([g.name_of(y).to_owned()]) };
    let new = job.turned(x)?;
    job.patch.succeed(y, new);
    Some(job.patch)
}

struct Job<'a> {
    g: &'a Graph,
    map: &'a ShapeMap,
    patch: Patch,
}

impl Job<'_> {
    /// `v` with its last two axes swapped, all the way up to the product; `None` if there is none.
    fn turned(&mut self, v: ValueId) -> Option<Ref> {
        let g = self.g;
        let n = g.node(g.producer(v)?);
        if !n.op.is_onnx() || g.use_count(v) != 1 || g.is_output(v) {
            return None;
        }
        let hint = format!("{}_turned", g.name_of(v));
        match n.op.name.as_str() {
            "MatMul" => {
                let (a, b) = (self.moved(n.input(0)?)?, self.moved(n.input(1)?)?);
                Some(self.patch.node("MatMul", &hint, &[b, a], Attrs::new()))
            }
            "Add" | "Sub" | "Mul" | "Div" | "Where" => {
                let rank = self.map.rank(v)?;
                // The scores among the operands: the product is behind one of them.
                let main =
                    n.inputs.iter().flatten().position(|x| self.map.rank(*x) == Some(rank) && self.leads_up(*x))?;
                let mut inputs = Vec::new();
                for (i, x) in n.inputs.iter().flatten().enumerate() {
                    inputs.push(if i == main { self.turned(*x)? } else { self.moved(*x)? });
                }
                Some(self.patch.node(&n.op.name, &hint, &inputs, n.attrs.clone()))
            }
            "Reshape" => {
                let x = n.input(0)?;
                let (from, to) = (self.map.dims(x)?.to_vec(), self.map.dims(v)?.to_vec());
                let keeps = from.len() >= 2 && to.len() >= 2 && from[from.len() - 2..] == to[to.len() - 2..];
                let turned = |mut d: Vec<infer::Size>| {
                    let last = d.len() - 1;
                    d.swap(last - 1, last);
                    d
                };
                let target = keeps.then(|| static_target(&turned(from), &turned(to), true)).flatten()?;
                let x = self.turned(x)?;
                let shape = self.patch.constant(&format!("{hint}_shape"), Tensor::i64(&[target.len() as i64], &target));
                Some(self.patch.node("Reshape", &hint, &[x, shape], Attrs::new()))
            }
            _ => None,
        }
    }

    /// True if a product makes `v`, through what `turned` goes through.
    fn leads_up(&self, v: ValueId) -> bool {
        let Some(n) = self.g.producer(v).map(|n| self.g.node(n)) else { return false };
        match n.op.name.as_str() {
            "MatMul" => n.op.is_onnx(),
            "Add" | "Sub" | "Mul" | "Div" | "Where" => n.inputs.iter().flatten().any(|x| self.leads_up(*x)),
            "Reshape" => n.input(0).is_some_and(|x| self.leads_up(x)),
            _ => false,
        }
    }

    /// An operand with its last two axes swapped by a node of its own, or as it is if it is a single number.
    fn moved(&mut self, v: ValueId) -> Option<Ref> {
        if self.g.constant(v).is_some_and(|t| t.len() == 1) {
            return Some(v.into());
        }
        let rank = self.map.rank(v).filter(|r| *r >= 2)?;
        let hint = format!("{}_turned", self.g.name_of(v));
        Some(self.patch.node("Transpose", &hint, &[v.into()], Attrs::new().with_ints("perm", &last_two_swapped(rank))))
    }
}
