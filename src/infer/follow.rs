//! Inference after a change: what changed is inferred anew, then what reads it, as long as something else comes out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::{Atom, Fact, MAX_WALK_BYTES, MAX_WALK_ELEMENTS, ShapeMap, Size, given, infer_node};
use crate::ir::{Changed, Def, Model, Moment, NodeId, Tensor, ValueId};

/// Tensors up to this many bytes are compared; larger ones are the same where they lie at one place.
const COMPARED: usize = 1 << 10;

/// What is proved of a model, from what was proved of it at a moment. `None` if a whole walk is no more work, or could tell
/// more: of sizes that no memory holds, or once much of what one walk may compute was spent on values that are no more.
pub(super) fn follow(model: &Model, map: Arc<ShapeMap>, then: Moment) -> Option<Arc<ShapeMap>> {
    let g = &model.graph;
    let Changed { mut nodes, values, .. } = g.changes_since(then)?;
    let a = &map.allowance;
    if map.vast.is_some()
        || a.bytes.load(Relaxed) < MAX_WALK_BYTES / 2
        || a.elements.load(Relaxed) < MAX_WALK_ELEMENTS / 2
    {
        return None;
    }
    let mut map = Arc::unwrap_or_clone(map);
    map.facts.resize(g.value_bound(), Fact::default());
    // By place in the written order, which nearly always is one of execution; where it is not, a node is looked at again.
    let mut todo: BTreeSet<((u32, u32), NodeId)> = BTreeSet::new();
    let readers = |v: ValueId| g.value(v).uses.iter().map(|(n, _)| (g.node(*n).rank, *n));
    let mut names = named(&map);
    for v in values {
        match g.try_value(v) {
            None => map.keep(v, Fact::default()),
            Some(value) => match (&value.def, given(value, &mut map.atoms, &mut names)) {
                (Def::Node { node, .. }, _) => {
                    nodes.insert(*node);
                }
                (_, Some(fact)) => {
                    let was = map.facts[v.0 as usize].clone();
                    map.keep(v, fact);
                    if !same(&was, &map.facts[v.0 as usize]) {
                        todo.extend(readers(v));
                    }
                }
                _ => {}
            },
        }
    }
    todo.extend(nodes.into_iter().filter_map(|n| Some((g.try_node(n)?.rank, n))));
    // A graph with a cycle runs out of steps, and one that is written against its order may.
    let mut left = g.node_count() + 64;
    while let Some((_, id)) = todo.pop_first() {
        left = left.checked_sub(1)?;
        let outputs = || g.node(id).outputs.iter().flatten();
        let before: Vec<Fact> = outputs().map(|v| map.facts[v.0 as usize].clone()).collect();
        infer_node(g, id, model.opset(), &mut map);
        for (v, was) in outputs().zip(before) {
            if !same(&was, &map.facts[v.0 as usize]) {
                todo.extend(readers(*v));
            }
        }
    }
    map.vast.is_none().then(|| Arc::new(map))
}

/// The sizes that inputs name.
fn named(map: &ShapeMap) -> BTreeMap<String, Size> {
    let names = map.atoms.iter().enumerate().filter_map(|(i, n)| Some((n.clone()?, Size::atom(Atom(i as u32)))));
    names.collect()
}

fn same(a: &Fact, b: &Fact) -> bool {
    let tensor = |a: &Tensor, b: &Tensor| {
        let place = |t: &Tensor| t.raw_bytes().map(|b| (b.as_ptr(), b.len()));
        let here = place(a).is_some() && place(a) == place(b) || a.byte_len() <= COMPARED && a.data == b.data;
        a.dtype == b.dtype && a.dims == b.dims && here
    };
    let constant = match (&a.constant, &b.constant) {
        (Some(a), Some(b)) => tensor(a, b),
        (a, b) => a.is_none() && b.is_none(),
    };
    constant && a.dtype == b.dtype && a.dims == b.dims && a.elements == b.elements
}
