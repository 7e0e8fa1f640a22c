//! A model in two parts: what one works on, and what follows as it was.

use std::collections::{BTreeMap, BTreeSet};

use crate::ir::{Def, Graph, Model, Node, NodeId, ValueId};

use super::sweep;

/// What was cut off: everything that depends on the first nodes that could not stay.
#[derive(Clone, Debug)]
pub struct Tail {
    /// The model as it was.
    whole: Model,
    /// The nodes cut off, in order.
    nodes: Vec<NodeId>,
    /// The values that the front makes and the tail reads, by name.
    pub cut: Vec<String>,
}

/// Everything computed from these nodes, with them.
fn behind(g: &Graph, first: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    let mut found = first.clone();
    for id in g.schedule() {
        let n = g.node(id);
        let reads = |v: &ValueId| g.producer(*v).is_some_and(|p| found.contains(&p));
        if n.inputs.iter().flatten().chain(&n.captures).any(reads) {
            found.insert(id);
        }
    }
    found
}

/// Adds what needs no input and is read by these nodes alone: a constant is no place to measure at.
fn with_constants(g: &Graph, off: &mut BTreeSet<NodeId>) {
    let order = g.schedule();
    let mut fed: BTreeSet<ValueId> = g.inputs().iter().copied().collect();
    for id in &order {
        let n = g.node(*id);
        if n.has_subgraph() || n.inputs.iter().flatten().any(|v| fed.contains(v)) {
            fed.extend(n.outputs.iter().flatten());
        }
    }
    for id in order.iter().rev() {
        let mut outputs = g.node(*id).outputs.iter().flatten();
        let only = |v: &ValueId| {
            !fed.contains(v)
                && !g.is_output(*v)
                && !g.uses(*v).is_empty()
                && g.uses(*v).iter().all(|(user, _)| off.contains(user))
        };
        if outputs.all(only) {
            off.insert(*id);
        }
    }
}

/// The model in front of `first`, with what is cut as outputs beside its own that are left, and what was cut off. `None` if
/// the front has no output.
pub fn cut(m: &Model, first: &BTreeSet<NodeId>) -> Option<(Model, Tail)> {
    let g = &m.graph;
    let mut off = behind(g, first);
    with_constants(g, &mut off);
    let made = |v: ValueId| g.producer(v).is_some_and(|p| !off.contains(&p));
    let mut cut: Vec<ValueId> = Vec::new();
    let nodes: Vec<NodeId> = g.schedule().into_iter().filter(|id| off.contains(id)).collect();
    for id in &nodes {
        let n = g.node(*id);
        for v in n.inputs.iter().flatten().chain(&n.captures).filter(|v| made(**v)) {
            if !cut.contains(v) && !g.is_output(*v) {
                cut.push(*v);
            }
        }
    }
    cut.sort_by(|a, b| g.name_of(*a).cmp(g.name_of(*b)));
    let gone = |v: &ValueId| g.producer(*v).is_some_and(|p| off.contains(&p));
    let outputs: Vec<ValueId> = g.outputs().iter().copied().filter(|v| !gone(v)).chain(cut.iter().copied()).collect();
    if outputs.is_empty() {
        return None;
    }
    let mut front = m.clone();
    front.graph.set_outputs(outputs);
    for id in nodes.iter().rev() {
        front.graph.erase_node(*id);
    }
    sweep(&mut front);
    let names = cut.iter().map(|v| g.name_of(*v).to_owned()).collect();
    Some((front, Tail { whole: m.clone(), nodes, cut: names }))
}

impl Tail {
    /// The nodes cut off.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().map(|id| self.whole.graph.node(*id))
    }

    /// Puts the tail after what became of the front, which must still make the values that were cut.
    ///
    /// # Errors
    /// With the name of a value that the front does not make any more.
    pub fn join(&self, front: &Model) -> Result<Model, String> {
        let (old, mut m) = (&self.whole.graph, front.clone());
        let g = &mut m.graph;
        let mut new: BTreeMap<ValueId, ValueId> = BTreeMap::new();
        let missing = |v: ValueId| format!("value `{}` is not there to be read after the cut", old.name_of(v));
        for id in &self.nodes {
            let mut n = old.node(*id).clone();
            for v in n.inputs.iter().flatten().chain(&n.captures).copied().collect::<Vec<_>>() {
                if new.contains_key(&v) {
                    continue;
                }
                let name = old.name_of(v);
                let there = g.find(name);
                let at = match &old.value(v).def {
                    Def::Init(t) => {
                        let same = there.filter(|w| g.constant(*w) == Some(t));
                        // A nested graph reads by name.
                        match (same, there) {
                            (Some(w), _) => w,
                            (None, None) => g.add_value(name, Def::Init(t.clone()), None).map_err(|_| missing(v))?,
                            (None, Some(_)) if n.captures.contains(&v) => return Err(missing(v)),
                            (None, Some(_)) => {
                                let fresh = g.fresh_name(name);
                                g.add_value(&fresh, Def::Init(t.clone()), None).map_err(|_| missing(v))?
                            }
                        }
                    }
                    _ => there.ok_or_else(|| missing(v))?,
                };
                new.insert(v, at);
            }
            for v in n.outputs.iter().flatten() {
                let name = old.name_of(*v);
                let name = if g.find(name).is_some() { g.fresh_name(name) } else { name.to_owned() };
                let x = old.value(*v);
                let at = g.add_value(&name, Def::Nothing, x.ty.clone()).map_err(|_| missing(*v))?;
                g.value_mut(at).rider = x.rider.clone();
                if old.declared().contains(v) {
                    g.add_declared(at);
                }
                new.insert(*v, at);
            }
            for v in n.inputs.iter_mut().chain(&mut n.outputs).flatten().chain(&mut n.captures) {
                *v = new[v];
            }
            g.add_node(n, None);
        }
        let end = |v: &ValueId| new.get(v).copied().or_else(|| g.find(old.name_of(*v))).ok_or_else(|| missing(*v));
        let outputs: Vec<ValueId> = old.outputs().iter().map(end).collect::<Result<_, _>>()?;
        g.set_outputs(outputs);
        Ok(m)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::validate::validate;
    use crate::text::{Elide, parse_model, print_model};

    fn model() -> Model {
        parse_model(
            r#"<ir_version: 8, opset_import: ["" : 17]>
            g (float[2,4] x) => (float[2,4] y, float[2,4] z, float[2,4] w)
            <float[4,4] k = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}, float two = {2.0}>
            {
                a = Mul (x, two)
                z = Relu (a)
                b = Det (a)
                t = Constant <value_float = 3.0> ()
                d = Sqrt (t)
                s = Constant <value_float = 5.0> ()
                z2 = Mul (z, s)
                c = Add (b, d)
                f = Add (c, s)
                y = MatMul (f, k)
                w = MatMul (z2, k)
            }"#,
        )
        .unwrap()
    }

    #[test]
    fn the_front_has_what_is_cut_as_outputs_and_joins_to_the_same() {
        let m = model();
        let first: BTreeSet<NodeId> = m.graph.nodes().filter(|(_, n)| n.op.is("Det")).map(|(id, _)| id).collect();
        let (front, tail) = cut(&m, &first).unwrap();
        validate(&front).unwrap();
        let names = |m: &Model| m.graph.outputs().iter().map(|v| m.graph.name_of(*v).to_owned()).collect::<Vec<_>>();
        // `t` and `d`, which need no input, went with what reads them; `s` is needed on both sides.
        assert_eq!(names(&front), ["z", "w", "a", "s"]);
        assert_eq!((tail.cut.clone(), tail.nodes().count()), (vec!["a".to_owned(), "s".to_owned()], 6));
        let whole = tail.join(&front).unwrap();
        validate(&whole).unwrap();
        assert_eq!(names(&whole), names(&m));
        let lines = |m: &Model| {
            let text = print_model(m, Elide::default());
            let mut lines: Vec<String> = text.lines().map(|l| l.trim().to_owned()).collect();
            lines.sort();
            lines
        };
        assert_eq!(lines(&whole), lines(&m));
    }

    #[test]
    fn a_front_without_outputs_is_none() {
        let m = model();
        let first: BTreeSet<NodeId> = m.graph.nodes().filter(|(_, n)| n.op.is("Mul")).map(|(id, _)| id).collect();
        assert!(cut(&m, &first).is_none());
    }
}
