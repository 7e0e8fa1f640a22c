//! Puts a patch that has been checked into its model.

use super::{Committed, Edit, NewNode, Patch, Ref};
use crate::ir::{Attrs, Def, Graph, Model, Node, NodeId, Op, Origin, ValueId, ops};

/// The model with the patch in it. The patch has been checked.
pub(super) fn apply(patch: &Patch, m: &mut Model) -> Committed {
    let anchor = anchor(patch, &m.graph);
    let mut work = Insertion::begin(patch, m);
    // Readings are redirected before new nodes come in: readers inside the patch keep the old value.
    patch.edits.iter().for_each(|e| work.rewire(e));
    let nodes = patch.nodes.iter().map(|n| work.add(n, anchor)).collect();
    patch.edits.iter().for_each(|e| work.finish(e));
    work.take_free_names();
    Committed { values: work.ids, nodes }
}

/// The node before which the new ones stand: beside what made the old value, or else before its first reader.
fn anchor(patch: &Patch, g: &Graph) -> Option<NodeId> {
    patch.before.or_else(|| {
        let mut users: Vec<NodeId> = Vec::new();
        for e in &patch.edits {
            match e {
                Edit::Replace { old, .. } => users.extend(g.value(*old).uses.iter().map(|u| u.0)),
                Edit::Input { node, .. } => users.push(*node),
                _ => {}
            }
        }
        users.into_iter().min_by_key(|n| (g.node(*n).rank, n.0))
    })
}

/// A patch on its way into a model.
struct Insertion<'a> {
    patch: &'a Patch,
    m: &'a mut Model,
    /// What each new value of the patch is in the graph, and the name it was given.
    ids: Vec<ValueId>,
    given: Vec<String>,
    origin: Origin,
}

impl<'a> Insertion<'a> {
    fn begin(patch: &'a Patch, m: &'a mut Model) -> Insertion<'a> {
        let origin = Origin::Made { by: patch.by.clone(), from: patch.from.clone() };
        let (mut ids, mut given) = (Vec::with_capacity(patch.values.len()), Vec::with_capacity(patch.values.len()));
        for v in &patch.values {
            let name = m.graph.fresh_name(&v.hint);
            let def = v.init.clone().map_or(Def::Nothing, Def::Init);
            ids.push(m.graph.add_value(&name, def, v.ty.clone()).expect("fresh name"));
            given.push(name);
            // A type that the operator set has, the file's version must have too.
            if let Some((_, version)) = v.init.as_ref().and_then(|t| ops::newer_type(t.dtype)) {
                m.ir_version = m.ir_version.max(version);
            }
        }
        Insertion { patch, m, ids, given, origin }
    }

    fn resolve(&self, r: Ref) -> ValueId {
        match r {
            Ref::Old(v) => v,
            Ref::New(i) => self.ids[i as usize],
        }
    }

    fn rewire(&mut self, edit: &Edit) {
        match edit {
            Edit::Replace { old, new, named } => self.replace(*old, self.resolve(*new), *named),
            Edit::Input { node, slot, new } => {
                let new = new.map(|r| self.resolve(r));
                self.m.graph.set_operand(*node, *slot, new);
            }
            Edit::SetAttr { node, name, value } => {
                let attrs = &mut self.m.graph.node_mut(*node).attrs;
                match value {
                    Some(v) => attrs.set(name, v.clone()),
                    None => attrs.remove(name),
                }
            }
            Edit::FixDefault { input } => {
                // Until version 3 of the format an initializer had to be an input.
                self.m.ir_version = self.m.ir_version.max(4);
                let g = &mut self.m.graph;
                if let Def::InputWithDefault(t) = g.value(*input).def.clone() {
                    g.value_mut(*input).def = Def::Init(t);
                    g.inputs.retain(|v| v != input);
                }
            }
            Edit::Erase { .. } | Edit::Opset { .. } => {}
        }
    }

    fn replace(&mut self, old: ValueId, new: ValueId, named: bool) {
        let g = &mut self.m.graph;
        for (n, slot) in g.uses(old) {
            if slot != usize::MAX {
                g.set_operand(n, slot, Some(new));
            } else if named {
                g.set_capture(n, old, new);
            }
        }
        if g.is_output(old) {
            self.hand_output_over(old, new);
        } else if named && !g.is_output(new) {
            g.take_name(old, new);
        }
        let g = &mut self.m.graph;
        if g.value(new).ty.is_none() {
            g.value_mut(new).ty = g.value(old).ty.clone();
        }
    }

    /// A value the patch made can take over the output's name; any other keeps its own, and an Identity carries it to the
    /// output.
    fn hand_output_over(&mut self, old: ValueId, new: ValueId) {
        let g = &mut self.m.graph;
        let made = matches!(self.patch.replacement(old), Some(Ref::New(_))) && !g.is_output(new);
        let taker = if made && g.try_init(new).is_none() {
            new
        } else {
            let name = g.fresh_name(g.name_of(old));
            let copy = g.add_value(&name, Def::Nothing, g.value(old).ty.clone()).expect("fresh name");
            let mut id = Node::new(Op::onnx("Identity"), vec![Some(new)], vec![Some(copy)], Attrs::new());
            id.name = name;
            id.origin = self.origin.clone();
            g.add_node(id, None);
            copy
        };
        g.take_name(old, taker);
        // What the file promises of its output, names of sizes included, may be more than the patch knows.
        if let Some(ty) = g.value(old).ty.clone() {
            g.value_mut(taker).ty = Some(ty);
        }
    }

    fn add(&mut self, n: &NewNode, anchor: Option<NodeId>) -> NodeId {
        let outputs = n.outputs.iter().map(|o| o.map(|i| self.ids[i as usize])).collect();
        let inputs = n.inputs.iter().map(|r| r.map(|r| self.resolve(r))).collect();
        let mut node = Node::new(n.op.clone(), inputs, outputs, n.attrs.clone());
        node.captures = n.captures.iter().map(|r| self.resolve(*r)).collect();
        let named_after = n.outputs.iter().flatten().next();
        node.name = named_after.map_or(String::new(), |i| self.m.graph.name_of(self.ids[*i as usize]).to_owned());
        node.origin = self.origin.clone();
        self.m.graph.add_node(node, anchor)
    }

    fn finish(&mut self, edit: &Edit) {
        match edit {
            Edit::Erase { node } => self.m.graph.erase_node(*node),
            Edit::Opset { version, ir_version } => {
                self.m.ir_version = self.m.ir_version.max(*ir_version);
                if let Some(o) = self.m.opsets.iter_mut().find(|o| o.domain.is_empty() || o.domain == "ai.onnx") {
                    o.version = *version;
                }
            }
            _ => {}
        }
    }

    /// A value that was to have the name of what it replaced gets it, if that is gone now.
    fn take_free_names(&mut self) {
        let g = &mut self.m.graph;
        for ((v, id), given) in self.patch.values.iter().zip(&self.ids).zip(&self.given) {
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
    }
}
