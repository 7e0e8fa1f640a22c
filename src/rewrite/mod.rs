//! A rewrite as a value: built beside the graph, checked, then committed whole or not at all.
//!
//! A [`Patch`] is a little graph with taps into the old one. It can add nodes and constants, redirect readers of old
//! values to new ones, and erase nodes; nothing of it shows in the model until [`Patch::commit`] has checked all of it.

mod cut;
mod open_sizes;
mod widen;

pub use cut::{Tail, cut};
pub use open_sizes::open_sizes;
pub(crate) use widen::widen_graph;
pub use widen::{Bodies, Ends, WidenError, narrow_floats};

use crate::ir::{
    AttrValue, Attrs, DType, Def, Dim, Graph, Model, Node, NodeId, Op, Origin, Tensor, TensorType, ValueId, ops,
};

/// A value as a patch sees it: one of the old graph, or one the patch will make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ref {
    Old(ValueId),
    New(u32),
}

impl From<ValueId> for Ref {
    fn from(v: ValueId) -> Ref {
        Ref::Old(v)
    }
}

#[derive(Clone, Debug)]
struct NewValue {
    hint: String,
    ty: Option<TensorType>,
    init: Option<Tensor>,
}

#[derive(Clone, Debug)]
struct NewNode {
    op: Op,
    inputs: Vec<Option<Ref>>,
    /// What its nested graphs read.
    captures: Vec<Ref>,
    outputs: Vec<Option<u32>>,
    attrs: Attrs,
}

impl NewNode {
    fn reads(&self) -> impl Iterator<Item = Ref> {
        self.inputs.iter().flatten().chain(&self.captures).copied()
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Every reader of `old`, graph outputs included, reads `new`; `named`: under the old name, by which nested graphs
    /// read it.
    Replace {
        old: ValueId,
        new: Ref,
        named: bool,
    },
    /// One input of one old node reads `new`.
    Input {
        node: NodeId,
        slot: usize,
        new: Option<Ref>,
    },
    SetAttr {
        node: NodeId,
        name: String,
        value: Option<AttrValue>,
    },
    Erase {
        node: NodeId,
    },
    Opset {
        version: i64,
        /// The oldest version of the file format that has it.
        ir_version: i64,
    },
    /// An input with a default becomes the constant.
    FixDefault {
        input: ValueId,
    },
}

/// Nodes looked at for what a patch reads, before all are.
const NEAR: usize = 100;

/// A rewrite that has not happened yet.
#[derive(Clone, Debug)]
pub struct Patch {
    by: String,
    from: Vec<String>,
    values: Vec<NewValue>,
    nodes: Vec<NewNode>,
    steps: Vec<Step>,
    before: Option<NodeId>,
}

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
    #[error("{by}: graph input `{name}` can not be replaced for the graph's caller")]
    Input { by: String, name: String },
    #[error("{by}: node `{node}` has no input {slot}")]
    NoSlot { by: String, node: String, slot: usize },
    #[error("{by}: the patched graph is malformed: {what}")]
    Malformed { by: String, what: String },
}

/// What a committed patch made.
#[derive(Clone, Debug, Default)]
pub struct Committed {
    /// New values in the order the patch made them.
    pub values: Vec<ValueId>,
    pub nodes: Vec<NodeId>,
}

impl Committed {
    /// The value a reference became.
    pub fn value(&self, r: Ref) -> ValueId {
        match r {
            Ref::Old(v) => v,
            Ref::New(i) => self.values[i as usize],
        }
    }
}

impl Patch {
    /// An empty patch in the name of a rule or pass.
    pub fn new(by: &str) -> Patch {
        Patch {
            by: by.to_owned(),
            from: Vec::new(),
            values: Vec::new(),
            nodes: Vec::new(),
            steps: Vec::new(),
            before: None,
        }
    }

    /// Names what the new nodes come from; kept in their [`Origin`].
    pub fn made_from(mut self, from: impl IntoIterator<Item = String>) -> Patch {
        self.from.extend(from);
        self
    }

    /// New nodes stand in the written order right before this one. Without it they stand before the first reader of
    /// what they replace.
    pub fn before(mut self, node: NodeId) -> Patch {
        self.before = Some(node);
        self
    }

    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    fn new_value(&mut self, hint: &str, ty: Option<TensorType>, init: Option<Tensor>) -> u32 {
        self.values.push(NewValue { hint: hint.to_owned(), ty, init });
        (self.values.len() - 1) as u32
    }

    /// A new initializer.
    pub fn constant(&mut self, hint: &str, t: Tensor) -> Ref {
        let ty = TensorType::new(t.dtype, t.dims.iter().map(|d| Dim::Known(*d)));
        Ref::New(self.new_value(hint, Some(ty), Some(t)))
    }

    /// A new node of the standard domain with one output, named after `hint`.
    pub fn node(&mut self, op: &str, hint: &str, inputs: &[Ref], attrs: Attrs) -> Ref {
        self.node_with(Op::onnx(op), &inputs.iter().map(|r| Some(*r)).collect::<Vec<_>>(), &[hint], attrs)[0]
    }

    /// A new node with any operator, omitted inputs and one output a hint.
    pub fn node_with(&mut self, op: Op, inputs: &[Option<Ref>], hints: &[&str], attrs: Attrs) -> Vec<Ref> {
        self.node_around(op, inputs, &[], hints, attrs)
    }

    /// As [`Patch::node_with`], for an operator whose nested graphs read `captures`, in the order of
    /// [`Node::captures`].
    pub fn node_around(
        &mut self,
        op: Op,
        inputs: &[Option<Ref>],
        captures: &[Ref],
        hints: &[&str],
        attrs: Attrs,
    ) -> Vec<Ref> {
        let outputs: Vec<u32> = hints.iter().map(|h| self.new_value(h, None, None)).collect();
        self.nodes.push(NewNode {
            op,
            inputs: inputs.to_vec(),
            captures: captures.to_vec(),
            outputs: outputs.iter().map(|o| Some(*o)).collect(),
            attrs,
        });
        outputs.into_iter().map(Ref::New).collect()
    }

    /// Declares the type of a new value.
    pub fn typed(&mut self, r: Ref, dtype: DType, shape: Option<Vec<Dim>>) -> Ref {
        if let Ref::New(i) = r {
            self.values[i as usize].ty = Some(TensorType { dtype, shape });
        }
        r
    }

    /// Every reader of `old`, graph outputs included, will read `new`. Readers inside the patch keep reading `old`, and so
    /// do nested graphs.
    pub fn replace(&mut self, old: ValueId, new: Ref) {
        self.steps.push(Step::Replace { old, new, named: false });
    }

    /// As [`Patch::replace`], and the new value (one this patch makes) takes over the old one's name: what stands for
    /// the same quantity keeps being found under it, by nested graphs too.
    pub fn succeed(&mut self, old: ValueId, new: Ref) {
        debug_assert!(matches!(new, Ref::New(_)));
        self.steps.push(Step::Replace { old, new, named: true });
    }

    /// Input `slot` of an old node will read `new` (`None`: omitted).
    pub fn set_input(&mut self, node: NodeId, slot: usize, new: Option<Ref>) {
        self.steps.push(Step::Input { node, slot, new });
    }

    /// Sets (`Some`) or removes (`None`) an attribute of an old node.
    pub fn set_attr(&mut self, node: NodeId, name: &str, value: Option<AttrValue>) {
        self.steps.push(Step::SetAttr { node, name: name.to_owned(), value });
    }

    /// Removes a node. Its outputs must be unread once the patch is in.
    pub fn erase(&mut self, node: NodeId) {
        self.steps.push(Step::Erase { node });
    }

    /// Raises the model's standard operator set. The caller has rewritten every node whose meaning changes between.
    /// `ir_version`: the oldest version of the file format that has it.
    pub fn set_opset(&mut self, version: i64, ir_version: i64) {
        self.steps.push(Step::Opset { version, ir_version });
    }

    /// A graph input with a default becomes a constant and is an input no more.
    pub fn fix_default(&mut self, input: ValueId) {
        self.steps.push(Step::FixDefault { input });
    }

    fn name_of(g: &Graph, n: NodeId) -> String {
        match g.try_node(n) {
            Some(x) if !x.name.is_empty() => x.name.clone(),
            Some(x) => x.out().map_or_else(|| x.op.to_string(), |v| g.name_of(v).to_owned()),
            None => format!("{n:?}"),
        }
    }

    /// Checks the patch against the model without changing it.
    ///
    /// # Errors
    /// What [`Patch::commit`] would refuse it for, as far as that shows without looking at the whole graph.
    pub fn check(&self, m: &Model) -> Result<(), PatchError> {
        let g = &m.graph;
        let by = || self.by.clone();
        let stale = |what: String| PatchError::Stale { by: by(), what };
        let live = |r: &Ref| match r {
            Ref::Old(v) if g.try_value(*v).is_none() => Err(stale(format!("{v:?}"))),
            _ => Ok(()),
        };
        let opset =
            self.steps.iter().find_map(|s| if let Step::Opset { version, .. } = s { Some(*version) } else { None });
        let opset = opset.unwrap_or_else(|| m.opset());
        for n in &self.nodes {
            n.reads().try_for_each(|r| live(&r))?;
            if n.op.is_onnx()
                && let Some(versions) = ops::versions(&n.op.name)
            {
                // An operator may exist and yet not take these inputs before a later version (Clip with bounds).
                let fits = |s: &ops::OpSchema| s.inputs().allows(n.inputs.len()) && s.outputs().allows(n.outputs.len());
                if !ops::schema(&n.op.name, opset).is_some_and(fits) {
                    let later = versions.iter().find(|s| s.since > opset && fits(s));
                    return Err(match later {
                        Some(s) => PatchError::Opset { by: by(), op: n.op.to_string(), needs: s.since, has: opset },
                        None => {
                            let (ins, outs) = (n.inputs.len(), n.outputs.len());
                            let what = format!("{} takes no {ins} inputs for {outs} outputs", n.op);
                            PatchError::Malformed { by: by(), what }
                        }
                    });
                }
            }
        }
        if let Some(b) = self.before
            && g.try_node(b).is_none()
        {
            return Err(stale(format!("{b:?}")));
        }
        for s in &self.steps {
            match s {
                Step::Replace { old, new, .. } => {
                    live(&Ref::Old(*old))?;
                    live(new)?;
                    if let (Some(was), Some(is)) = (g.value(*old).ty.as_ref(), self.type_of(g, *new))
                        && !compatible(was, &is)
                    {
                        return Err(PatchError::Incompatible {
                            by: by(),
                            old: g.name_of(*old).to_owned(),
                            was: describe(was),
                            is: describe(&is),
                        });
                    }
                    // An output that is at the same time an input cannot be given another maker under its own name.
                    if g.is_output(*old) && matches!(g.value(*old).def, Def::Input | Def::InputWithDefault(_)) {
                        return Err(PatchError::Input { by: by(), name: g.name_of(*old).to_owned() });
                    }
                }
                Step::Input { node, slot, new } => {
                    let n = g.try_node(*node).ok_or_else(|| stale(format!("{node:?}")))?;
                    if *slot > n.inputs.len() {
                        return Err(PatchError::NoSlot { by: by(), node: Self::name_of(g, *node), slot: *slot });
                    }
                    new.iter().try_for_each(live)?;
                }
                Step::SetAttr { node, .. } | Step::Erase { node } => {
                    g.try_node(*node).ok_or_else(|| stale(format!("{node:?}")))?;
                }
                Step::FixDefault { input } => {
                    live(&Ref::Old(*input))?;
                    if !matches!(g.value(*input).def, Def::InputWithDefault(_)) || g.is_output(*input) {
                        let what = format!("`{}` is no input with a default, or an output too", g.name_of(*input));
                        return Err(PatchError::Malformed { by: by(), what });
                    }
                }
                Step::Opset { .. } => {}
            }
        }
        Ok(())
    }

    fn steps_new(&self, value: ValueId) -> Option<Ref> {
        self.steps.iter().rev().find_map(|s| match s {
            Step::Replace { old, new, .. } if *old == value => Some(*new),
            _ => None,
        })
    }

    /// What takes over the value's name.
    fn successor(&self, value: ValueId) -> Option<Ref> {
        self.steps.iter().rev().find_map(|s| match s {
            Step::Replace { old, new, named: true } if *old == value => Some(*new),
            _ => None,
        })
    }

    fn type_of(&self, g: &Graph, r: Ref) -> Option<TensorType> {
        match r {
            Ref::Old(v) => g.value(v).ty.clone(),
            Ref::New(i) => self.values[i as usize].ty.clone(),
        }
    }

    /// Puts the patch in, or refuses it and leaves the model as it was.
    ///
    /// # Errors
    /// If types or shapes contradict each other, something still read would disappear, a cycle would come about, an operator does
    /// not exist in the model's operator set, or what the patch refers to is gone.
    pub fn commit(self, m: &mut Model) -> Result<Committed, PatchError> {
        self.check(m)?;
        self.check_effect(m)?;
        Ok(self.apply(m))
    }

    /// The checks that need the state after the steps: no undefined reading, no cycle. They are made on the wiring
    /// alone, so a refused patch costs no copy of the graph.
    fn check_effect(&self, m: &Model) -> Result<(), PatchError> {
        let g = &m.graph;
        let erased: Vec<NodeId> =
            self.steps.iter().filter_map(|s| if let Step::Erase { node } = s { Some(*node) } else { None }).collect();
        let replaced = |v: ValueId| self.steps_new(v);
        let rewired = |n: NodeId, slot: usize| {
            self.steps.iter().rev().find_map(|s| match s {
                Step::Input { node, slot: s, new } if *node == n && *s == slot => Some(*new),
                _ => None,
            })
        };
        // What an input of an old node reads once the patch is in.
        let reads = |n: NodeId, slot: usize, v: ValueId| -> Option<Ref> {
            match rewired(n, slot) {
                // A nested graph reads by name.
                _ if slot == usize::MAX => Some(self.successor(v).unwrap_or(Ref::Old(v))),
                Some(r) => r,
                None => Some(replaced(v).unwrap_or(Ref::Old(v))),
            }
        };
        for n in &erased {
            for v in g.node(*n).outputs.iter().flatten() {
                let still = (g.is_output(*v) && replaced(*v).is_none())
                    || g.value(*v)
                        .uses
                        .iter()
                        .any(|(u, s)| !erased.contains(u) && reads(*u, *s, *v) == Some(Ref::Old(*v)))
                    || self.nodes.iter().any(|x| x.reads().any(|r| r == Ref::Old(*v)));
                if still {
                    return Err(PatchError::StillUsed {
                        by: self.by.clone(),
                        node: Self::name_of(g, *n),
                        value: g.name_of(*v).to_owned(),
                    });
                }
            }
        }
        // A cycle can only run through a redirected reading: follow what the new value depends on, through new nodes,
        // to old values, and see whether a redirected reader makes one of them.
        let made_by = |i: u32| self.nodes.iter().find(|n| n.outputs.contains(&Some(i)));
        let old_roots = |r: Ref| {
            let (mut roots, mut todo, mut seen) = (Vec::new(), vec![r], std::collections::BTreeSet::new());
            while let Some(r) = todo.pop() {
                match r {
                    Ref::Old(v) => roots.push(v),
                    Ref::New(i) if seen.insert(i) => todo.extend(made_by(i).into_iter().flat_map(NewNode::reads)),
                    Ref::New(_) => {}
                }
            }
            roots
        };
        // Most rewrites read what stood a few nodes before what they replace. Then every new reading goes forwards in the order
        // of the old graph, and there is no cycle; without this, each patch would walk all that its value depends on.
        let before = |node: Option<NodeId>, r: Ref, but: Option<ValueId>| {
            let roots = old_roots(r).into_iter().filter(|v| g.producer(*v).is_some() && Some(*v) != but);
            let mut missing: std::collections::BTreeSet<ValueId> = roots.collect();
            let (mut todo, mut seen) = (std::collections::VecDeque::from_iter(node), std::collections::BTreeSet::new());
            while !missing.is_empty() && seen.len() < NEAR {
                let Some(n) = todo.pop_front() else { return false };
                for v in g.node(n).inputs.iter().flatten().chain(&g.node(n).captures) {
                    missing.remove(v);
                    todo.extend(g.producer(*v).filter(|p| seen.insert(*p)));
                }
            }
            missing.is_empty()
        };
        let forwards = self.steps.iter().all(|s| match s {
            Step::Replace { old, new, .. } => before(g.producer(*old), *new, Some(*old)),
            Step::Input { node, new: Some(new), .. } => before(Some(*node), *new, None),
            _ => true,
        });
        if forwards {
            return Ok(());
        }
        let mut redirected: Vec<(NodeId, Ref)> = Vec::new();
        for s in &self.steps {
            match s {
                Step::Replace { old, new, .. } => redirected
                    .extend(g.value(*old).uses.iter().filter(|(u, _)| !erased.contains(u)).map(|(u, _)| (*u, *new))),
                Step::Input { node, new: Some(new), .. } => redirected.push((*node, *new)),
                _ => {}
            }
        }
        if redirected.is_empty() {
            return Ok(());
        }
        let mut by_new: std::collections::BTreeMap<Ref, std::collections::BTreeSet<NodeId>> = Default::default();
        for (u, r) in redirected {
            by_new.entry(r).or_default().insert(u);
        }
        for (r, users) in by_new {
            // Old nodes the new value depends on; a redirected user among them closes a cycle unless the path goes
            // through a reading that the patch redirects as well, which the walk takes as it will be.
            let mut todo: Vec<ValueId> = old_roots(r);
            let mut seen = std::collections::BTreeSet::new();
            while let Some(v) = todo.pop() {
                let Some(p) = g.producer(v) else { continue };
                if !seen.insert(p) {
                    continue;
                }
                if users.contains(&p) {
                    return Err(PatchError::Cycle { by: self.by.clone(), node: Self::name_of(g, p) });
                }
                let n = g.node(p);
                for (slot, x) in n.inputs.iter().enumerate() {
                    if let Some(x) = x
                        && let Some(r) = reads(p, slot, *x)
                    {
                        todo.extend(if let Ref::Old(v) = r { vec![v] } else { old_roots(r) });
                    }
                }
                for x in &n.captures {
                    todo.extend(reads(p, usize::MAX, *x).map_or(vec![], old_roots));
                }
            }
        }
        Ok(())
    }

    fn apply(self, m: &mut Model) -> Committed {
        let g = &mut m.graph;
        let anchor = self.before.or_else(|| {
            let mut users: Vec<NodeId> = Vec::new();
            for s in &self.steps {
                match s {
                    // Beside what made the value, or else before its first reader.
                    Step::Replace { old, .. } => users.extend(g.value(*old).uses.iter().map(|u| u.0)),
                    Step::Input { node, .. } => users.push(*node),
                    _ => {}
                }
            }
            users.into_iter().min_by_key(|n| (g.node(*n).rank, n.0))
        });
        let mut ids = Vec::with_capacity(self.values.len());
        let mut given = Vec::with_capacity(self.values.len());
        for v in &self.values {
            let name = g.fresh_name(&v.hint);
            given.push(name.clone());
            let def = v.init.clone().map_or(Def::Nothing, Def::Init);
            ids.push(g.add_value(&name, def, v.ty.clone()).expect("fresh name"));
        }
        let resolve = |r: &Ref| match r {
            Ref::Old(v) => *v,
            Ref::New(i) => ids[*i as usize],
        };
        // Readings are redirected before new nodes come in: readers inside the patch keep the old value.
        let origin = Origin::Made { by: self.by.clone(), from: self.from.clone() };
        for s in &self.steps {
            match s {
                Step::Replace { old, new, named } => {
                    let new = resolve(new);
                    for (n, slot) in g.uses(*old) {
                        if slot != usize::MAX {
                            g.set_operand(n, slot, Some(new));
                        } else if *named {
                            g.set_capture(n, *old, new);
                        }
                    }
                    if g.is_output(*old) {
                        // A value the patch made can take over the output's name; any other keeps its own, and an
                        // Identity carries it to the output.
                        let made = matches!(self.steps_new(*old), Some(Ref::New(_))) && !g.is_output(new);
                        let taker = if made && g.try_init(new).is_none() {
                            new
                        } else {
                            let name = g.fresh_name(g.name_of(*old));
                            let copy = g.add_value(&name, Def::Nothing, g.value(*old).ty.clone()).expect("fresh name");
                            let mut id =
                                Node::new(Op::onnx("Identity"), vec![Some(new)], vec![Some(copy)], Attrs::new());
                            id.name = name;
                            id.origin = origin.clone();
                            g.add_node(id, None);
                            copy
                        };
                        g.take_name(*old, taker);
                        // What the file promises of its output, names of sizes included, may be more than the patch knows.
                        if let Some(ty) = g.value(*old).ty.clone() {
                            g.value_mut(taker).ty = Some(ty);
                        }
                    } else if *named && !g.is_output(new) {
                        g.take_name(*old, new);
                    }
                    if g.value(new).ty.is_none() {
                        g.value_mut(new).ty = g.value(*old).ty.clone();
                    }
                }
                Step::Input { node, slot, new } => g.set_operand(*node, *slot, new.as_ref().map(resolve)),
                Step::SetAttr { node, name, value } => match value {
                    Some(v) => g.node_mut(*node).attrs.set(name, v.clone()),
                    None => g.node_mut(*node).attrs.remove(name),
                },
                Step::FixDefault { input } => {
                    // Until version 3 of the format an initializer had to be an input.
                    m.ir_version = m.ir_version.max(4);
                    if let Def::InputWithDefault(t) = g.value(*input).def.clone() {
                        g.value_mut(*input).def = Def::Init(t);
                        g.inputs.retain(|v| v != input);
                    }
                }
                Step::Erase { .. } | Step::Opset { .. } => {}
            }
        }
        let mut nodes = Vec::new();
        for n in &self.nodes {
            let mut node = Node::new(
                n.op.clone(),
                n.inputs.iter().map(|r| r.as_ref().map(resolve)).collect(),
                n.outputs.iter().map(|o| o.map(|i| ids[i as usize])).collect(),
                n.attrs.clone(),
            );
            node.captures = n.captures.iter().map(resolve).collect();
            node.name =
                n.outputs.iter().flatten().next().map_or(String::new(), |i| g.name_of(ids[*i as usize]).to_owned());
            node.origin = origin.clone();
            nodes.push(g.add_node(node, anchor));
        }
        for s in &self.steps {
            match s {
                Step::Erase { node } => g.erase_node(*node),
                Step::Opset { version, ir_version } => {
                    m.ir_version = m.ir_version.max(*ir_version);
                    if let Some(o) = m.opsets.iter_mut().find(|o| o.domain.is_empty() || o.domain == "ai.onnx") {
                        o.version = *version;
                    }
                }
                _ => {}
            }
        }
        // A value that was to have the name of what it replaced gets it, if that is gone now.
        for ((v, id), given) in self.values.iter().zip(&ids).zip(&given) {
            let live = g.try_value(*id).is_some_and(|x| x.name != v.hint && x.name == *given);
            if live && !v.hint.is_empty() && !g.is_output(*id) && g.find(&v.hint).is_none() {
                let was = g.name_of(*id).to_owned();
                if g.rename(*id, &v.hint).is_ok()
                    && let Some(n) = g.producer(*id)
                    && g.node(n).name == was
                {
                    g.node_mut(n).name = v.hint.clone();
                }
            }
        }
        Committed { values: ids, nodes }
    }
}

/// Removes nodes whose outputs nobody reads, and initializers nobody reads, until none is left. Graph inputs and
/// outputs stay. Returns how many nodes went.
pub(crate) fn sweep(m: &mut Model) -> usize {
    let g = &mut m.graph;
    let mut gone = 0;
    let mut todo: Vec<NodeId> = g.nodes().map(|(id, _)| id).collect();
    while let Some(id) = todo.pop() {
        let Some(n) = g.try_node(id) else { continue };
        if n.outputs.iter().flatten().any(|v| g.use_count(*v) > 0) {
            continue;
        }
        let feeders: Vec<NodeId> =
            n.inputs.iter().flatten().chain(&n.captures).filter_map(|v| g.producer(*v)).collect();
        g.erase_node(id);
        gone += 1;
        todo.extend(feeders);
    }
    g.erase_unread();
    gone
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::{Elide, parse_model, print_model};

    const CHAIN: &str = r#"<ir_version: 8, opset_import: ["" : 17]>
        g (float[2] x) => (float[2] z) { y = Relu (x)  z = Neg (y) }"#;

    #[test]
    fn a_successor_takes_over_the_name() {
        let mut m = parse_model(CHAIN).unwrap();
        let y = m.graph.find("y").unwrap();
        let x = m.graph.find("x").unwrap();
        let mut p = Patch::new("test");
        let n = p.node("Abs", "other", &[x.into()], Attrs::new());
        p.succeed(y, n);
        p.commit(&mut m).unwrap();
        sweep(&mut m);
        let text = print_model(&m, Elide::Full);
        assert!(text.contains("y = Abs (x)") && !text.contains("Relu"), "{text}");
    }

    #[test]
    fn an_output_keeps_the_names_of_its_sizes() {
        let text = r#"<ir_version: 8, opset_import: ["" : 17]>
            g (float[batch,2] x) => (float[batch,2] z) { z = Relu (x) }"#;
        for succeed in [false, true] {
            let mut m = parse_model(text).unwrap();
            let (x, z) = (m.graph.find("x").unwrap(), m.graph.find("z").unwrap());
            let mut p = Patch::new("test");
            let n = p.node("Abs", "other", &[x.into()], Attrs::new());
            p.typed(n, DType::FLOAT, Some(vec![Dim::Unknown, Dim::Known(2)]));
            if succeed {
                p.succeed(z, n)
            } else {
                p.replace(z, n)
            }
            p.commit(&mut m).unwrap();
            sweep(&mut m);
            let text = print_model(&m, Elide::Full);
            assert!(text.contains("=> (float[batch,2] z)") && text.contains("z = Abs (x)"), "{text}");
        }
    }
}
