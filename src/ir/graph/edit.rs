//! What changes a graph: for front ends and `rewrite` only.

use petgraph::Direction;
use petgraph::visit::EdgeRef;

use super::super::Rider;
use super::super::history::Change;
use super::super::parts::{Def, Node, NodeId, TensorType, Value, ValueId};
use super::{Graph, Wire};

impl Graph {
    /// Adds a value with a definition that is no node. The name must be free: returns the holder if it is not.
    pub(crate) fn add_value(&mut self, name: &str, def: Def, ty: Option<TensorType>) -> Result<ValueId, ValueId> {
        if let Some(v) = self.names.get(name) {
            return Err(*v);
        }
        let id = ValueId(self.values.len() as u32);
        if matches!(def, Def::Init(_) | Def::InputWithDefault(_)) {
            self.inits.push(id);
        }
        self.values.push(Some(Value {
            name: name.to_owned(),
            def,
            ty,
            rider: Rider::default(),
            uses: Vec::new(),
            outs: 0,
            listed: false,
        }));
        self.names.insert(name.to_owned(), id);
        self.note(Change::Value(id));
        Ok(id)
    }

    /// Lists the value as the next output of the graph.
    pub(crate) fn add_output(&mut self, v: ValueId) {
        self.outputs.push(v);
        self.entry(v).outs += 1;
    }

    /// Replaces the list of outputs.
    pub(crate) fn set_outputs(&mut self, outputs: Vec<ValueId>) {
        for v in std::mem::take(&mut self.outputs) {
            self.entry(v).outs -= 1;
        }
        outputs.into_iter().for_each(|v| self.add_output(v));
    }

    /// Lists the value as one with a `value_info` entry.
    pub(crate) fn add_declared(&mut self, v: ValueId) {
        self.declared.push(v);
        self.entry(v).listed = true;
    }

    /// True if the value has a `value_info` entry.
    pub fn is_declared(&self, v: ValueId) -> bool {
        self.try_value(v).is_some_and(|value| value.listed)
    }

    /// For another definition or type.
    pub(crate) fn value_mut(&mut self, id: ValueId) -> &mut Value {
        self.note(Change::Value(id));
        self.values[id.0 as usize].as_mut().expect("live value")
    }

    /// For what inference does not look at: readers, name, place in the lists, and the type that inference found.
    fn entry(&mut self, id: ValueId) -> &mut Value {
        self.note(Change::Around(id));
        self.values[id.0 as usize].as_mut().expect("live value")
    }

    /// Writes down a type that was inferred from the graph as it is.
    pub(crate) fn set_inferred(&mut self, v: ValueId, ty: TensorType) {
        self.entry(v).ty = Some(ty);
    }

    fn note(&mut self, change: Change) {
        let parts = self.nodes.len() + self.values.len();
        self.history.note(change, parts);
    }

    /// Adds a node at the end of the written order, or right before `before` where that is a node of the file: what was
    /// added before one node stands in the order in which it was added.
    pub(crate) fn add_node(&mut self, mut node: Node, before: Option<NodeId>) -> NodeId {
        let id = NodeId(self.nodes.len() as u32);
        node.rank = match before {
            Some(b) => {
                self.next_minor += 1;
                (self.node(b).rank.0, self.next_minor)
            }
            // After all that will be added before it, which get its number and smaller minor ones.
            None => (id.0 + 1, u32::MAX),
        };
        let (inputs, outputs, captures) = (node.inputs.clone(), node.outputs.clone(), node.captures.clone());
        self.order.take();
        let ix = self.net.add_node((id, node));
        self.nodes.push(Some(ix));
        self.note(Change::Node(id));
        for (slot, v) in outputs.iter().enumerate() {
            if let Some(v) = v {
                self.value_mut(*v).def = Def::Node { node: id, slot };
                // Readers may have come first (files need not be sorted).
                for (user, s) in self.value(*v).uses.clone() {
                    self.wire(*v, user, s);
                }
            }
        }
        for (slot, v) in inputs.iter().enumerate() {
            if let Some(v) = v {
                self.entry(*v).uses.push((id, slot));
                self.wire(*v, id, slot);
            }
        }
        for v in captures {
            self.entry(v).uses.push((id, usize::MAX));
            self.wire(v, id, usize::MAX);
        }
        id
    }

    fn wire(&mut self, v: ValueId, user: NodeId, slot: usize) {
        if let Some(p) = self.producer(v)
            && let (Some(a), Some(b)) = (self.nodes[p.0 as usize], self.nodes[user.0 as usize])
        {
            self.order.take();
            self.net.add_edge(a, b, Wire { value: v, slot: (slot != usize::MAX).then_some(slot) });
        }
    }

    /// Takes away the edge of a reading. It is looked for among those of either end in turn: one of them may have very many.
    fn unwire(&mut self, v: ValueId, user: NodeId, slot: usize) {
        let wire = Wire { value: v, slot: (slot != usize::MAX).then_some(slot) };
        let Some(b) = self.nodes[user.0 as usize] else { return };
        let maker = self.producer(v).and_then(|p| self.nodes[p.0 as usize]);
        let mut into = self.net.edges_directed(b, Direction::Incoming);
        let mut out = maker.into_iter().flat_map(|a| self.net.edges_directed(a, Direction::Outgoing));
        let found = std::iter::from_fn(|| {
            let pair = [out.next(), into.next()];
            pair.iter().any(Option::is_some).then_some(pair)
        });
        let e = found.flatten().flatten().find(|e| *e.weight() == wire && e.target() == b).map(|e| e.id());
        if let Some(e) = e {
            self.order.take();
            self.net.remove_edge(e);
        }
    }

    /// Takes one reading off a value's list. It is looked for from both ends: readers of a value with very many of them go in
    /// the order they came, or in reverse.
    fn forget_use(&mut self, v: ValueId, reading: (NodeId, usize)) {
        let uses = &mut self.entry(v).uses;
        let n = uses.len();
        let at = (0..n.div_ceil(2)).flat_map(|i| [i, n - 1 - i]).find(|i| uses[*i] == reading);
        if let Some(at) = at {
            uses.swap_remove(at);
        }
    }

    /// Makes input `slot` of `user` read `new`.
    pub(crate) fn set_operand(&mut self, user: NodeId, slot: usize, new: Option<ValueId>) {
        let old = self.node(user).inputs.get(slot).copied().flatten();
        if let Some(o) = old {
            self.unwire(o, user, slot);
            self.forget_use(o, (user, slot));
        }
        let ix = self.nodes[user.0 as usize].expect("live node");
        let ins = &mut self.net[ix].1.inputs;
        if ins.len() <= slot {
            ins.resize(slot + 1, None);
        }
        ins[slot] = new;
        self.note(Change::Node(user));
        if let Some(v) = new {
            self.entry(v).uses.push((user, slot));
            self.wire(v, user, slot);
        }
    }

    /// Makes the nested graphs of `user` read `new` where they read `old`, once for each time they are said to.
    pub(crate) fn set_capture(&mut self, user: NodeId, old: ValueId, new: ValueId) {
        let Some(at) = self.node(user).captures.iter().position(|v| *v == old) else { return };
        self.unwire(old, user, usize::MAX);
        self.forget_use(old, (user, usize::MAX));
        self.node_mut(user).captures[at] = new;
        self.entry(new).uses.push((user, usize::MAX));
        self.wire(new, user, usize::MAX);
    }

    pub(crate) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.note(Change::Node(id));
        let ix = self.nodes[id.0 as usize].expect("live node");
        &mut self.net[ix].1
    }

    /// Gives the value another name. The name must be free.
    pub(crate) fn rename(&mut self, v: ValueId, name: &str) -> Result<(), ValueId> {
        if let Some(o) = self.names.get(name) {
            return if *o == v { Ok(()) } else { Err(*o) };
        }
        let old = std::mem::replace(&mut self.entry(v).name, name.to_owned());
        // Plain removal would reorder the map in a way later lookups by position could see; nothing looks by position.
        self.names.swap_remove(&old);
        self.names.insert(name.to_owned(), v);
        Ok(())
    }

    /// Gives values other names at once, so that one may get what another had. None may be a name of a value that keeps its own,
    /// and no two may be the same.
    pub(crate) fn rename_all(&mut self, renamed: &[(ValueId, String)]) {
        for (v, _) in renamed {
            let old = std::mem::take(&mut self.entry(*v).name);
            self.names.swap_remove(&old);
        }
        for (v, name) in renamed {
            self.entry(*v).name.clone_from(name);
            let had = self.names.insert(name.clone(), *v);
            assert!(had.is_none(), "`{name}` is given to one value");
        }
    }

    /// Gives `new` the name of `old` (which is renamed), and makes it the graph output that `old` was, if it was one.
    pub(crate) fn take_name(&mut self, old: ValueId, new: ValueId) {
        let name = self.name_of(old).to_owned();
        let aside = self.fresh_name(&format!("{name}_before"));
        self.rename(old, &aside).expect("fresh name");
        self.rename(new, &name).expect("name was set free");
        let outs = std::mem::take(&mut self.entry(old).outs);
        if outs > 0 {
            self.outputs.iter_mut().filter(|o| **o == old).for_each(|o| *o = new);
            self.entry(new).outs += outs;
        }
        self.entry(new).rider = self.value(old).rider.clone();
    }

    /// Removes a node; its outputs that nothing reads go with it, the others stay after undefined.
    pub(crate) fn erase_node(&mut self, id: NodeId) {
        let Some(ix) = self.nodes[id.0 as usize] else { return };
        let node = self.net[ix].1.clone();
        for (slot, v) in node.inputs.iter().enumerate() {
            if let Some(v) = v {
                self.forget_use(*v, (id, slot));
            }
        }
        for v in &node.captures {
            self.forget_use(*v, (id, usize::MAX));
        }
        self.order.take();
        self.net.remove_node(ix);
        self.nodes[id.0 as usize] = None;
        for v in node.outputs.iter().flatten() {
            self.value_mut(*v).def = Def::Nothing;
            if self.use_count(*v) == 0 {
                self.erase_value(*v);
            }
        }
    }

    /// Removes a value that nothing reads.
    pub(crate) fn erase_value(&mut self, v: ValueId) {
        debug_assert_eq!(self.use_count(v), 0);
        let Some(val) = self.values[v.0 as usize].take() else { return };
        self.names.swap_remove(&val.name);
        // Only the lists that can hold it are searched: graphs of very many values are emptied one by one.
        let drop_from = |list: &mut Vec<ValueId>| list.retain(|x| *x != v);
        if matches!(val.def, Def::Init(_) | Def::InputWithDefault(_)) {
            drop_from(&mut self.inits);
        }
        if matches!(val.def, Def::Input | Def::InputWithDefault(_)) {
            drop_from(&mut self.inputs);
        }
        if val.listed {
            drop_from(&mut self.declared);
        }
    }

    /// Removes constants and undefined values that nothing reads, all at once.
    pub(crate) fn erase_unread(&mut self) {
        let mut any = false;
        for slot in &mut self.values {
            let unread = |v: &Value| matches!(v.def, Def::Init(_) | Def::Nothing) && v.uses.is_empty() && v.outs == 0;
            if let Some(val) = slot.take_if(|v| unread(v)) {
                self.names.swap_remove(&val.name);
                any = true;
            }
        }
        if any {
            let values = &self.values;
            let live = |v: &ValueId| values[v.0 as usize].is_some();
            self.inits.retain(live);
            self.declared.retain(live);
        }
    }

    /// Takes the `value_info` entries of these values off the list.
    pub(crate) fn undeclare(&mut self, gone: impl Fn(ValueId) -> bool) {
        let values = &mut self.values;
        self.declared.retain(|v| {
            let goes = gone(*v);
            if let Some(value) = values[v.0 as usize].as_mut().filter(|_| goes) {
                value.listed = false;
            }
            !goes
        });
    }
}
