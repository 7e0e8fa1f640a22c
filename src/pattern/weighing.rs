//! Where the weights of a Softmax go: what makes it an attention.

use std::collections::{BTreeSet, VecDeque};

use crate::ir::{Graph, Node, NodeId, ValueId};

use super::facts::Facts;

/// How many operators may lie between attention weights and the product that takes them to the values.
const MOST_READERS: usize = 48;

/// The node that multiplies attention weights with values: a MatMul with something computed, or the sum of a product
/// element by element. What may change the weights before it mixes heads, scales, adds, hides or moves; a layer over the
/// keys makes features of them, which are no weights any more.
pub(super) fn weighing(f: &Facts<'_>, weights: ValueId) -> Option<NodeId> {
    let g = f.graph();
    let maker = g.producer(weights);
    let mut seen = BTreeSet::from([weights]);
    // Values with the place of the keys, counted from the last axis; not known after a change of shape.
    let mut todo = VecDeque::from([(weights, Some(0))]);
    while let Some((v, keys)) = todo.pop_front() {
        let rank = f.rank(v);
        for (id, slot) in g.uses(v) {
            let Some(n) = g.try_node(id).filter(|n| n.op.is_onnx()) else { continue };
            // Values are computed, and not from the weights.
            let computed = |slot: usize| {
                let values = n.input(slot).filter(|x| f.constant(*x).is_none());
                values.is_some_and(|x| !g.producer(x).is_some_and(|p| maker.is_some_and(|m| g.reaches(m, p))))
            };
            let next = match (n.op.name.as_str(), slot) {
                ("MatMul" | "Gemm", 0 | 1) if computed(1 - slot) => return Some(id),
                ("MatMul" | "Gemm", 0 | 1) if keys == Some(slot) => continue,
                ("Conv", 0) if keys.is_some() && rank.and_then(|r| r.checked_sub(2)) == keys => continue,
                ("LayerNormalization", 0) if keys == Some(0) => continue,
                ("MatMul" | "Gemm", 0 | 1) | ("Conv" | "LayerNormalization" | "BatchNormalization", 0) => keys,
                ("Mul", 0 | 1) => {
                    let sum = n.out().filter(|_| computed(1 - slot)).and_then(|y| summed(g, y));
                    if sum.is_some() {
                        return sum;
                    }
                    keys
                }
                ("Add" | "Sub" | "Concat" | "Max" | "Min", _) | ("Where", 1 | 2) | ("Div", 0) => keys,
                ("Cast" | "Dropout" | "Clip" | "Relu" | "Slice" | "Pad" | "Split" | "Expand" | "Identity", 0) => keys,
                ("Transpose", 0) => turned(n, rank, keys),
                ("Unsqueeze" | "Squeeze" | "Reshape" | "Flatten" | "Tile" | "Gather", 0) => None,
                _ => continue,
            };
            todo.extend(n.outputs.iter().flatten().filter(|y| seen.insert(**y)).map(|y| (*y, next)));
        }
        if seen.len() > MOST_READERS {
            return None;
        }
    }
    None
}

/// Where a Transpose takes the axis that is this many in front of the last.
fn turned(n: &Node, rank: Option<usize>, keys: Option<usize>) -> Option<usize> {
    let (rank, keys) = (rank?, keys?);
    let axis = rank.checked_sub(keys + 1)?;
    match n.attrs.ints("perm") {
        Some(perm) => Some(rank - 1 - perm.iter().position(|p| *p == axis as i64)?),
        None => Some(axis),
    }
}

/// The sum that is all that reads a value, seen through moves.
fn summed(g: &Graph, mut v: ValueId) -> Option<NodeId> {
    for _ in 0..4 {
        let [(id, 0)] = g.uses(v)[..] else { return None };
        let n = g.node(id);
        match n.op.name.as_str() {
            "ReduceSum" => return Some(id),
            "Reshape" | "Transpose" => v = n.out()?,
            _ => return None,
        }
    }
    None
}
