//! Whether a patch can be put in: what it names is there, types agree, nothing that is still read goes, and there is no cycle.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{Edit, NewNode, Patch, Ref};
use crate::ir::{Def, Dim, Graph, Model, NodeId, TensorType, ValueId, ops};

/// Why a patch was refused. Nothing was changed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PatchError {
    #[error("{by}: {what} was erased before the patch was committed")]
    Stale { by: String, what: String },
    #[error("{by}: `{old}` is {was} but its replacement is {is}")]
    Incompatible { by: String, old: String, was: String, is: String },
    #[error("{by}: erasing node `{node}` would leave `{value}` undefined while it is still read")]
    StillUsed { by: String, node: String, value: String },
    #[error("{by}: the rewrite would make a cycle through `{node}`")]
    Cycle { by: String, node: String },
    #[error("{by}: operator {op} needs opset {needs}, the model has {has}")]
    Opset { by: String, op: String, needs: i64, has: i64 },
    #[error("{by}: graph input `{name}` cannot be replaced for the graph's caller")]
    Input { by: String, name: String },
    #[error("{by}: node `{node}` has no input {slot}")]
    NoSlot { by: String, node: String, slot: usize },
    #[error("{by}: the patched graph is malformed: {what}")]
    Malformed { by: String, what: String },
}

/// Nodes looked at for what a patch reads, before all are.
const NEAR: usize = 100;

fn name_of(g: &Graph, n: NodeId) -> String {
    match g.try_node(n) {
        Some(x) if !x.name.is_empty() => x.name.clone(),
        Some(x) => x.out().map_or_else(|| x.op.to_string(), |v| g.name_of(v).to_owned()),
        None => format!("{n:?}"),
    }
}

impl Patch {
    /// Checks the patch against the model without changing it.
    ///
    /// # Errors
    /// What [`Patch::commit`] would refuse it for, as far as that shows without looking at the whole graph.
    pub fn check(&self, m: &Model) -> Result<(), PatchError> {
        let raised =
            self.edits.iter().find_map(|e| if let Edit::Opset { version, .. } = e { Some(*version) } else { None });
        let opset = raised.unwrap_or_else(|| m.opset());
        for n in &self.nodes {
            n.reads().try_for_each(|r| self.live(&m.graph, r))?;
            self.check_operator(n, opset)?;
        }
        if let Some(b) = self.before {
            self.live_node(&m.graph, b)?;
        }
        self.edits.iter().try_for_each(|e| self.check_edit(&m.graph, e))
    }

    fn stale(&self, what: String) -> PatchError {
        PatchError::Stale { by: self.by.clone(), what }
    }

    fn live(&self, g: &Graph, r: Ref) -> Result<(), PatchError> {
        match r {
            Ref::Old(v) if g.try_value(v).is_none() => Err(self.stale(format!("{v:?}"))),
            _ => Ok(()),
        }
    }

    fn live_node(&self, g: &Graph, n: NodeId) -> Result<(), PatchError> {
        g.try_node(n).map(|_| ()).ok_or_else(|| self.stale(format!("{n:?}")))
    }

    /// An operator may exist and yet not take these inputs before a later version (Clip with bounds).
    fn check_operator(&self, n: &NewNode, opset: i64) -> Result<(), PatchError> {
        let versions = if n.op.is_onnx() { ops::versions(&n.op.name) } else { None };
        let Some(versions) = versions else { return Ok(()) };
        let fits = |s: &ops::OpSchema| s.inputs().allows(n.inputs.len()) && s.outputs().allows(n.outputs.len());
        if ops::schema(&n.op.name, opset).is_some_and(fits) {
            return Ok(());
        }
        let by = self.by.clone();
        Err(match versions.iter().find(|s| s.since > opset && fits(s)) {
            Some(s) => PatchError::Opset { by, op: n.op.to_string(), needs: s.since, has: opset },
            None => {
                let (ins, outs) = (n.inputs.len(), n.outputs.len());
                PatchError::Malformed { by, what: format!("{} takes no {ins} inputs for {outs} outputs", n.op) }
            }
        })
    }

    fn check_edit(&self, g: &Graph, edit: &Edit) -> Result<(), PatchError> {
        let by = || self.by.clone();
        match edit {
            Edit::Replace { old, new, .. } => {
                self.live(g, Ref::Old(*old))?;
                self.live(g, *new)?;
                if let (Some(was), Some(is)) = (g.value(*old).ty.as_ref(), self.type_of(g, *new))
                    && !compatible(was, &is)
                {
                    let old = g.name_of(*old).to_owned();
                    return Err(PatchError::Incompatible { by: by(), old, was: describe(was), is: describe(&is) });
                }
                // An output that is at the same time an input cannot be given another maker under its own name.
                if g.is_output(*old) && matches!(g.value(*old).def, Def::Input | Def::InputWithDefault(_)) {
                    return Err(PatchError::Input { by: by(), name: g.name_of(*old).to_owned() });
                }
            }
            Edit::Input { node, slot, new } => {
                self.live_node(g, *node)?;
                // Those between the node's own and this one are set by the patch as well.
                let own = g.node(*node).inputs.len();
                let added = |e: &&Edit| matches!(e, Edit::Input { node: n, slot, .. } if n == node && *slot >= own);
                if *slot >= own + self.edits.iter().filter(added).count() {
                    return Err(PatchError::NoSlot { by: by(), node: name_of(g, *node), slot: *slot });
                }
                new.iter().try_for_each(|r| self.live(g, *r))?;
            }
            Edit::SetAttr { node, .. } | Edit::Erase { node } => self.live_node(g, *node)?,
            Edit::FixDefault { input } => {
                self.live(g, Ref::Old(*input))?;
                if !matches!(g.value(*input).def, Def::InputWithDefault(_)) || g.is_output(*input) {
                    let what = format!("`{}` is no input with a default, or an output too", g.name_of(*input));
                    return Err(PatchError::Malformed { by: by(), what });
                }
            }
            Edit::Opset { .. } => {}
        }
        Ok(())
    }

    fn type_of(&self, g: &Graph, r: Ref) -> Option<TensorType> {
        match r {
            Ref::Old(v) => g.value(v).ty.clone(),
            Ref::New(i) => self.values[i as usize].ty.clone(),
        }
    }

    /// The checks that need the state after the edits: no undefined reading, no cycle. They are made on the wiring
    /// alone, so a refused patch costs no copy of the graph.
    pub(super) fn check_effect(&self, m: &Model) -> Result<(), PatchError> {
        let wiring = Wiring::of(self, &m.graph);
        if let Some((node, value)) = wiring.undefined() {
            let (node, value) = (name_of(&m.graph, node), m.graph.name_of(value).to_owned());
            return Err(PatchError::StillUsed { by: self.by.clone(), node, value });
        }
        if wiring.goes_forwards() {
            return Ok(());
        }
        match wiring.cycle() {
            Some(node) => Err(PatchError::Cycle { by: self.by.clone(), node: name_of(&m.graph, node) }),
            None => Ok(()),
        }
    }
}

/// What reads what, once a patch is in.
struct Wiring<'a> {
    patch: &'a Patch,
    g: &'a Graph,
    erased: Vec<NodeId>,
}

impl<'a> Wiring<'a> {
    fn of(patch: &'a Patch, g: &'a Graph) -> Wiring<'a> {
        let erased = patch.edits.iter().filter_map(|e| if let Edit::Erase { node } = e { Some(*node) } else { None });
        Wiring { patch, g, erased: erased.collect() }
    }

    /// What an input of an old node, which read `v`, reads. Edits follow each other: what is redirected to a value goes with
    /// that value's readers from there on. A nested graph reads by name.
    fn reads(&self, n: NodeId, slot: usize, v: Option<ValueId>) -> Option<Ref> {
        self.patch.edits.iter().fold(v.map(Ref::Old), |now, e| match e {
            Edit::Replace { old, new, named } if now == Some(Ref::Old(*old)) && (*named || slot != usize::MAX) => {
                Some(*new)
            }
            Edit::Input { node, slot: s, new } if *node == n && *s == slot => *new,
            _ => now,
        })
    }

    /// The readings of old nodes that some edit may redirect, and what each reads then.
    fn touched(&self) -> Vec<(NodeId, Option<Ref>)> {
        let mut places: BTreeSet<(NodeId, usize, Option<ValueId>)> = BTreeSet::new();
        for e in &self.patch.edits {
            match e {
                Edit::Replace { old, .. } => {
                    places.extend(self.g.value(*old).uses.iter().map(|(n, slot)| (*n, *slot, Some(*old))));
                }
                Edit::Input { node, slot, .. } => _ = places.insert((*node, *slot, self.g.node(*node).input(*slot))),
                _ => {}
            }
        }
        let kept = places.into_iter().filter(|(n, ..)| !self.erased.contains(n));
        kept.map(|(n, slot, v)| (n, self.reads(n, slot, v))).collect()
    }

    fn still_read(&self, v: ValueId, touched: &[(NodeId, Option<Ref>)]) -> bool {
        let old = Some(Ref::Old(v));
        let by_old =
            |(user, slot): &(NodeId, usize)| !self.erased.contains(user) && self.reads(*user, *slot, Some(v)) == old;
        let handed_over =
            |e: &Edit| matches!(e, Edit::Replace { old: o, new, .. } if self.g.is_output(*o) && Some(*new) == old);
        (self.g.is_output(v) && self.patch.replacement(v).is_none())
            || self.g.value(v).uses.iter().any(by_old)
            || touched.iter().any(|(_, r)| *r == old)
            || self.patch.edits.iter().any(handed_over)
            || self.patch.nodes.iter().any(|n| n.reads().any(|r| Some(r) == old))
    }

    /// An erased node and a value of it that something still reads.
    fn undefined(&self) -> Option<(NodeId, ValueId)> {
        let values = |n: &NodeId| self.g.node(*n).outputs.iter().flatten().copied();
        let touched = if self.erased.is_empty() { Vec::new() } else { self.touched() };
        self.erased.iter().find_map(|n| values(n).find(|v| self.still_read(*v, &touched)).map(|v| (*n, v)))
    }

    /// The old values that a value depends on, through new nodes.
    fn old_roots(&self, r: Ref) -> Vec<ValueId> {
        let made_by = |i: u32| self.patch.nodes.iter().find(|n| n.outputs.contains(&Some(i)));
        let (mut roots, mut todo, mut seen) = (Vec::new(), vec![r], BTreeSet::new());
        while let Some(r) = todo.pop() {
            match r {
                Ref::Old(v) => roots.push(v),
                Ref::New(i) if seen.insert(i) => todo.extend(made_by(i).into_iter().flat_map(NewNode::reads)),
                Ref::New(_) => {}
            }
        }
        roots
    }

    /// True if every new reading goes forwards in the order of the old graph, as that of most rewrites does, which read what
    /// stood a few nodes before what they replace. Then there is no cycle, and nobody needs to walk all that the new values
    /// depend on.
    fn goes_forwards(&self) -> bool {
        self.patch.edits.iter().all(|e| match e {
            Edit::Replace { old, new, .. } => self.stands_before(self.g.producer(*old), *new, Some(*old)),
            Edit::Input { node, new: Some(new), .. } => self.stands_before(Some(*node), *new, None),
            _ => true,
        })
    }

    /// True if all that `r` is made of, `but` left out, is found a few nodes before `node`.
    fn stands_before(&self, node: Option<NodeId>, r: Ref, but: Option<ValueId>) -> bool {
        let roots = self.old_roots(r).into_iter().filter(|v| self.g.producer(*v).is_some() && Some(*v) != but);
        let mut missing: BTreeSet<ValueId> = roots.collect();
        let (mut todo, mut seen) = (VecDeque::from_iter(node), BTreeSet::new());
        while !missing.is_empty() && seen.len() < NEAR {
            let Some(n) = todo.pop_front() else { return false };
            for v in self.g.node(n).inputs.iter().flatten().chain(&self.g.node(n).captures) {
                missing.remove(v);
                todo.extend(self.g.producer(*v).filter(|p| seen.insert(*p)));
            }
        }
        missing.is_empty()
    }

    /// Who reads each value that some reading is redirected to.
    fn redirected(&self) -> BTreeMap<Ref, BTreeSet<NodeId>> {
        let mut by_new: BTreeMap<Ref, BTreeSet<NodeId>> = BTreeMap::new();
        for (node, r) in self.touched() {
            r.into_iter().for_each(|r| _ = by_new.entry(r).or_default().insert(node));
        }
        by_new
    }

    /// All that an old node reads.
    fn reads_of(&self, id: NodeId) -> Vec<Ref> {
        let n = self.g.node(id);
        let added = self.patch.edits.iter().filter_map(|e| match e {
            Edit::Input { node, slot, .. } if *node == id && n.input(*slot).is_none() => Some((*slot, None)),
            _ => None,
        });
        let inputs = n.inputs.iter().enumerate().filter(|(_, v)| v.is_some()).map(|(slot, v)| (slot, *v));
        let captures = n.captures.iter().map(|v| (usize::MAX, Some(*v)));
        inputs.chain(captures).chain(added).filter_map(|(slot, v)| self.reads(id, slot, v)).collect()
    }

    /// A node on a cycle. That can only run through a redirected reading: follow what the new value depends on to old nodes; a
    /// redirected reader among them closes a cycle, unless the path goes through a reading that the patch redirects as well,
    /// which the walk takes as it will be.
    fn cycle(&self) -> Option<NodeId> {
        self.redirected().into_iter().find_map(|(r, users)| {
            let mut todo: Vec<ValueId> = self.old_roots(r);
            let mut seen = BTreeSet::new();
            while let Some(v) = todo.pop() {
                let Some(p) = self.g.producer(v).filter(|p| seen.insert(*p)) else { continue };
                if users.contains(&p) {
                    return Some(p);
                }
                todo.extend(self.reads_of(p).into_iter().flat_map(|r| self.old_roots(r)));
            }
            None
        })
    }
}

/// Same type for every reader: equal element type, and no size known to differ.
fn compatible(a: &TensorType, b: &TensorType) -> bool {
    a.dtype == b.dtype
        && match (&a.shape, &b.shape) {
            (Some(x), Some(y)) => {
                x.len() == y.len() && x.iter().zip(y).all(|p| !matches!(p, (Dim::Known(m), Dim::Known(n)) if m != n))
            }
            _ => true,
        }
}

fn describe(t: &TensorType) -> String {
    let dims = match &t.shape {
        None => "?".to_owned(),
        Some(s) => s
            .iter()
            .map(|d| match d {
                Dim::Known(n) => n.to_string(),
                Dim::Symbol(s) => s.clone(),
                Dim::Unknown => "?".to_owned(),
            })
            .collect::<Vec<_>>()
            .join(","),
    };
    format!("{}[{dims}]", t.dtype)
}
