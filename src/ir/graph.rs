//! The graph: nodes in a petgraph `StableDiGraph`, values in a table beside it.

use std::any::Any;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashSet, VecDeque};
use std::fmt;
use std::sync::{Arc, OnceLock};

use indexmap::IndexMap;
use petgraph::Direction;
use petgraph::stable_graph::{NodeIndex, StableDiGraph};
use petgraph::visit::EdgeRef;

use super::history::{Change, Changed, History, Memory, Moment};
use super::{AttrValue, Attrs, DType, Rider, Tensor};

/// A node's identity. Numbers are never reused, so an id kept across a rewrite names its node or nothing at all
/// (petgraph's own indices are recycled).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub(crate) u32);

/// A value's identity; never reused either.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ValueId(pub(crate) u32);

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

impl fmt::Debug for ValueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0)
    }
}

/// One size of a shape.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Dim {
    Known(i64),
    /// A named size such as `batch`.
    Symbol(String),
    Unknown,
}

/// Element type and, if declared, shape of a tensor value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorType {
    pub dtype: DType,
    pub shape: Option<Vec<Dim>>,
}

impl TensorType {
    pub fn new(dtype: DType, shape: impl IntoIterator<Item = Dim>) -> TensorType {
        TensorType { dtype, shape: Some(shape.into_iter().collect()) }
    }

    /// The sizes, if every one is a number.
    pub fn known_dims(&self) -> Option<Vec<i64>> {
        self.shape.as_ref()?.iter().map(|d| if let Dim::Known(n) = d { Some(*n) } else { None }).collect()
    }
}

/// What makes a value.
#[derive(Clone, Debug, PartialEq)]
pub enum Def {
    /// Output `slot` of a node.
    Node { node: NodeId, slot: usize },
    /// A graph input.
    Input,
    /// A constant of the graph.
    Init(Tensor),
    /// A graph input with a default (an initializer under an input's name): a caller may override it, so it is no
    /// constant.
    InputWithDefault(Tensor),
    /// A sparse initializer: a constant the IR does not read. It rides along in the graph's rider.
    Sparse,
    /// Nothing in this graph. Validation refuses a use of it.
    Nothing,
}

/// A value: what flows along edges.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    pub name: String,
    pub def: Def,
    /// The type the file declares (or a pass knows).
    pub ty: Option<TensorType>,
    /// What a declaration said that the IR does not model (doc string, denotations, non-tensor types).
    pub rider: Rider,
    /// Readers, in no meaningful order: `(node, input slot)`.
    pub(crate) uses: Vec<(NodeId, usize)>,
    /// How often the graph lists it as an output.
    outs: u32,
    /// Whether it has a `value_info` entry.
    listed: bool,
}

/// Where a node comes from: told in reports and error messages.
#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    Imported,
    /// Made by a rule or pass out of the named nodes or values.
    Made {
        by: String,
        from: Vec<String>,
    },
}

/// Operator name and domain. The empty domain is ONNX's own.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Op {
    pub domain: String,
    pub name: String,
}

impl Op {
    /// An operator of the standard domain.
    pub fn onnx(name: &str) -> Op {
        Op { domain: String::new(), name: name.to_owned() }
    }

    /// True if this is the standard operator `name`.
    pub fn is(&self, name: &str) -> bool {
        self.name == name && self.is_onnx()
    }

    /// True for ONNX's own domain (written as `""` or `ai.onnx`).
    pub fn is_onnx(&self) -> bool {
        self.domain.is_empty() || self.domain == "ai.onnx"
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.domain.is_empty() { f.write_str(&self.name) } else { write!(f, "{}.{}", self.domain, self.name) }
    }
}

/// An operator call.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub op: Op,
    /// The node's own name; may be empty or repeated, the standard allows both.
    pub name: String,
    /// `None` is an omitted optional input.
    pub inputs: Vec<Option<ValueId>>,
    pub outputs: Vec<Option<ValueId>>,
    pub attrs: Attrs,
    /// Outer values that nested graphs read.
    pub captures: Vec<ValueId>,
    pub origin: Origin,
    pub rider: Rider,
    /// Place in the written order; see [`Graph::schedule`].
    pub(crate) rank: (u32, u32),
}

impl Node {
    /// A node as a front end makes it; the graph fills in its place.
    pub fn new(op: Op, inputs: Vec<Option<ValueId>>, outputs: Vec<Option<ValueId>>, attrs: Attrs) -> Node {
        Node {
            op,
            name: String::new(),
            inputs,
            outputs,
            attrs,
            captures: Vec::new(),
            origin: Origin::Imported,
            rider: Rider::default(),
            rank: (0, 0),
        }
    }

    /// Input `i`, if present.
    pub fn input(&self, i: usize) -> Option<ValueId> {
        self.inputs.get(i).copied().flatten()
    }

    /// Output `i`, if present.
    pub fn output(&self, i: usize) -> Option<ValueId> {
        self.outputs.get(i).copied().flatten()
    }

    /// Output 0; every standard operator has one.
    pub fn out(&self) -> Option<ValueId> {
        self.output(0)
    }

    /// True if this pass or rule made the node.
    pub fn origin_is(&self, maker: &str) -> bool {
        matches!(&self.origin, Origin::Made { by, .. } if by == maker)
    }

    /// True if the node holds a nested graph.
    pub fn has_subgraph(&self) -> bool {
        self.attrs.0.iter().any(|a| matches!(a.value, AttrValue::Graph(_) | AttrValue::Graphs(_)))
    }
}

/// Which value an edge carries, and into which input slot (`None`: into a nested graph).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wire {
    pub value: ValueId,
    pub slot: Option<usize>,
}

/// A dataflow graph in which every value has one definition.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    pub name: String,
    net: StableDiGraph<(NodeId, Node), Wire>,
    /// The schedule, until an edge or a node comes or goes.
    order: OnceLock<Vec<NodeId>>,
    history: History,
    /// What inference found out, for [`Graph::remembered`].
    memory: Memory,
    /// By node number; `None` once erased.
    nodes: Vec<Option<NodeIndex>>,
    values: Vec<Option<Value>>,
    names: IndexMap<String, ValueId>,
    pub(crate) inputs: Vec<ValueId>,
    outputs: Vec<ValueId>,
    /// Initializers in file order.
    pub(crate) inits: Vec<ValueId>,
    /// Values with a `value_info` entry, in file order.
    declared: Vec<ValueId>,
    /// Graph fields the IR does not model.
    pub rider: Rider,
    next_minor: u32,
}

impl Graph {
    // ---- reading ----------------------------------------------------------------------------------------------

    /// The node, or `None` if it was erased.
    pub fn try_node(&self, id: NodeId) -> Option<&Node> {
        let ix = (*self.nodes.get(id.0 as usize)?)?;
        self.net.node_weight(ix).map(|(_, n)| n)
    }

    /// The node.
    ///
    /// # Panics
    /// If it was erased: a caller that keeps ids across rewrites asks [`Graph::try_node`].
    pub fn node(&self, id: NodeId) -> &Node {
        self.try_node(id).unwrap_or_else(|| panic!("{id:?} was erased"))
    }

    pub fn try_value(&self, id: ValueId) -> Option<&Value> {
        self.values.get(id.0 as usize)?.as_ref()
    }

    /// The value.
    ///
    /// # Panics
    /// If it was erased.
    pub fn value(&self, id: ValueId) -> &Value {
        self.try_value(id).unwrap_or_else(|| panic!("{id:?} was erased"))
    }

    /// The value of this name.
    pub fn find(&self, name: &str) -> Option<ValueId> {
        self.names.get(name).copied()
    }

    /// A value's name.
    pub fn name_of(&self, id: ValueId) -> &str {
        &self.value(id).name
    }

    pub fn inputs(&self) -> &[ValueId] {
        &self.inputs
    }

    pub fn outputs(&self) -> &[ValueId] {
        &self.outputs
    }

    pub fn initializers(&self) -> &[ValueId] {
        &self.inits
    }

    pub fn declared(&self) -> &[ValueId] {
        &self.declared
    }

    /// All live values, oldest first.
    pub fn values(&self) -> impl Iterator<Item = (ValueId, &Value)> {
        self.values.iter().enumerate().filter_map(|(i, v)| Some((ValueId(i as u32), v.as_ref()?)))
    }

    /// Every value's number is below this.
    pub(crate) fn value_bound(&self) -> usize {
        self.values.len()
    }

    /// All live nodes, oldest first (not in execution order: see [`Graph::schedule`]).
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes.iter().enumerate().filter_map(|(i, ix)| Some((NodeId(i as u32), &self.net.node_weight((*ix)?)?.1)))
    }

    pub fn node_count(&self) -> usize {
        self.net.node_count()
    }

    /// Readers of a value in graph order: `(node, input slot)`; a nested graph's reading has slot `usize::MAX`.
    pub fn uses(&self, v: ValueId) -> Vec<(NodeId, usize)> {
        let mut u = self.value(v).uses.clone();
        if u.len() < 2 {
            return u;
        }
        u.sort_by_key(|(n, s)| (self.node(*n).rank, n.0, *s));
        u
    }

    /// How often the value is read, a graph output counting as one reading.
    pub fn use_count(&self, v: ValueId) -> usize {
        let value = self.value(v);
        value.uses.len() + value.outs as usize
    }

    /// What a user finds a node by: its name, or else that of what it makes.
    pub fn label(&self, n: &Node) -> String {
        if n.name.is_empty() {
            n.outputs.iter().flatten().next().map_or("", |v| self.name_of(*v)).to_owned()
        } else {
            n.name.clone()
        }
    }

    pub fn is_output(&self, v: ValueId) -> bool {
        self.try_value(v).is_some_and(|value| value.outs > 0)
    }

    /// The node that makes the value.
    pub fn producer(&self, v: ValueId) -> Option<NodeId> {
        match self.value(v).def {
            Def::Node { node, .. } => Some(node),
            _ => None,
        }
    }

    /// The node that makes the value, if it is the standard operator `op`.
    pub fn producer_is(&self, v: ValueId, op: &str) -> Option<NodeId> {
        self.producer(v).filter(|n| self.node(*n).op.is(op))
    }

    /// The constant tensor behind a value, seen through Identity and Constant nodes.
    pub fn constant(&self, v: ValueId) -> Option<&Tensor> {
        let mut v = v;
        loop {
            match &self.value(v).def {
                Def::Init(t) => return Some(t),
                Def::Node { node, .. } => {
                    let n = self.node(*node);
                    if n.op.is("Constant") {
                        return n.attrs.tensor("value");
                    }
                    if !n.op.is("Identity") {
                        return None;
                    }
                    v = n.input(0)?;
                }
                _ => return None,
            }
        }
    }

    /// Nodes in an order in which every node follows what it reads, as close to the file's order as that allows (and
    /// exactly the file's where the file is sorted). Nodes on a cycle are left out: validation reports them.
    pub fn schedule(&self) -> Vec<NodeId> {
        self.order.get_or_init(|| self.ordered()).clone()
    }

    fn ordered(&self) -> Vec<NodeId> {
        use petgraph::visit::NodeIndexable;
        // Nearly always the written order is one, and then it is the result.
        let mut written: Vec<(&Node, NodeId, NodeIndex)> =
            self.net.node_indices().map(|ix| (&self.net[ix].1, self.net[ix].0, ix)).collect();
        written.sort_by_key(|(n, id, _)| (n.rank, *id));
        let mut place = vec![0u32; self.net.node_bound()];
        for (at, (_, _, ix)) in written.iter().enumerate() {
            place[ix.index()] = at as u32;
        }
        if self
            .net
            .edge_indices()
            .all(|e| self.net.edge_endpoints(e).is_some_and(|(a, b)| place[a.index()] < place[b.index()]))
        {
            return written.into_iter().map(|(_, id, _)| id).collect();
        }
        let mut waiting = vec![0usize; self.net.node_bound()];
        let mut ready = BinaryHeap::new();
        for ix in self.net.node_indices() {
            let n = self.net.edges_directed(ix, Direction::Incoming).count();
            waiting[ix.index()] = n;
            if n == 0 {
                let (id, node) = &self.net[ix];
                ready.push(Reverse((node.rank, *id)));
            }
        }
        let mut order = Vec::with_capacity(self.net.node_count());
        while let Some(Reverse((_, id))) = ready.pop() {
            order.push(id);
            let Some(ix) = self.nodes[id.0 as usize] else { continue };
            for e in self.net.edges_directed(ix, Direction::Outgoing) {
                let left = &mut waiting[e.target().index()];
                *left -= 1;
                if *left == 0 {
                    let (id, node) = &self.net[e.target()];
                    ready.push(Reverse((node.rank, *id)));
                }
            }
        }
        order
    }

    /// True if `to` reads, directly or not, what `from` makes.
    pub fn reaches(&self, from: NodeId, to: NodeId) -> bool {
        match (self.nodes[from.0 as usize], self.nodes[to.0 as usize]) {
            (Some(a), Some(b)) => petgraph::algo::has_path_connecting(&self.net, a, b, None),
            _ => false,
        }
    }

    /// The tensor of an initializer (not seen through nodes: see [`Graph::constant`]).
    pub fn try_init(&self, v: ValueId) -> Option<&Tensor> {
        match &self.value(v).def {
            Def::Init(t) => Some(t),
            _ => None,
        }
    }

    /// The sizes of a value, where its rank is known.
    pub fn shape(&self, v: ValueId) -> Option<&[Dim]> {
        self.try_value(v)?.ty.as_ref()?.shape.as_deref()
    }

    /// The number of axes of a value, where it is known.
    pub fn rank(&self, v: ValueId) -> Option<usize> {
        Some(self.shape(v)?.len())
    }

    /// Integers that a node takes as a constant input, or as an attribute in older operator sets.
    pub fn ints(&self, n: &Node, slot: usize, attr: &str) -> Option<Vec<i64>> {
        match n.input(slot) {
            Some(v) => self.constant(v)?.to_i64s(),
            None => n.attrs.ints(attr).map(<[i64]>::to_vec),
        }
    }

    /// A name not yet taken: `hint`, or `hint_2`, `hint_3`, ... (the lowest free number, unless numbers were given back).
    pub fn fresh_name(&self, hint: &str) -> String {
        if !hint.is_empty() && !self.names.contains_key(hint) {
            return hint.to_owned();
        }
        let taken = |i: u64| self.names.contains_key(&format!("{hint}_{i}"));
        // Doubling and halving instead of counting: a rule that fires ten thousand times asks for one hint each time.
        let (mut low, mut high) = (1, 2);
        while taken(high) {
            (low, high) = (high, high * 2);
        }
        while high - low > 1 {
            let mid = low + (high - low) / 2;
            if taken(mid) { low = mid } else { high = mid }
        }
        format!("{hint}_{high}")
    }

    /// All nodes in the order the text form shows them: the schedule, then those that are in none because they are on
    /// or after a cycle.
    pub(crate) fn order_with_cycles(&self) -> Vec<NodeId> {
        let mut order = self.schedule();
        if order.len() < self.node_count() {
            let seen: BTreeSet<NodeId> = order.iter().copied().collect();
            order.extend(self.nodes().map(|(id, _)| id).filter(|id| !seen.contains(id)));
        }
        order
    }

    /// A shortest cycle through the oldest node of every group of nodes that depend on each other.
    pub(crate) fn cycles(&self) -> Vec<Vec<NodeId>> {
        if self.node_order_is_acyclic() {
            return Vec::new();
        }
        // Kosaraju's algorithm, not Tarjan's: petgraph's form of that is recursive.
        let mut found: Vec<Vec<NodeId>> = petgraph::algo::kosaraju_scc(&self.net)
            .into_iter()
            .filter(|group| group.len() > 1 || self.net.contains_edge(group[0], group[0]))
            .filter_map(|group| self.cycle_through(*group.iter().min_by_key(|ix| self.net[**ix].0)?))
            .collect();
        found.sort();
        found
    }

    /// Breadth first from a node back to itself.
    fn cycle_through(&self, start: NodeIndex) -> Option<Vec<NodeId>> {
        let mut from: BTreeMap<NodeIndex, NodeIndex> = BTreeMap::new();
        let mut todo = VecDeque::from([start]);
        while let Some(ix) = todo.pop_front() {
            // The newest edge comes first in petgraph; sorted, the path does not depend on the order of edits.
            let mut next: Vec<NodeIndex> = self.net.neighbors_directed(ix, Direction::Outgoing).collect();
            next.sort_by_key(|n| self.net[*n].0);
            for n in next {
                if n == start {
                    let mut path = vec![self.net[start].0];
                    let mut at = ix;
                    while at != start {
                        path.insert(1, self.net[at].0);
                        at = from[&at];
                    }
                    return Some(path);
                }
                if let std::collections::btree_map::Entry::Vacant(e) = from.entry(n) {
                    e.insert(ix);
                    todo.push_back(n);
                }
            }
        }
        None
    }

    pub(crate) fn node_order_is_acyclic(&self) -> bool {
        // Not petgraph's own test, which is recursive: a long chain would exhaust the stack.
        self.order.get_or_init(|| self.ordered()).len() == self.net.node_count()
    }

    /// The graph as it is now, for [`Graph::changes_since`].
    pub(crate) fn moment(&self) -> Moment {
        self.history.now()
    }

    /// What changed since; `None` if that is not known any more, or is more than looking at everything.
    pub(crate) fn changes_since(&self, then: Moment) -> Option<Changed> {
        self.history.since(then)
    }

    /// What was [remembered](Graph::remember) of this graph, and when.
    pub(crate) fn remembered<T: Any + Send + Sync>(&self) -> Option<(Moment, Arc<T>)> {
        self.memory.get()
    }

    /// As [`Graph::remembered`], and forgets it: whoever brings it up to date need not copy it.
    pub(crate) fn take_remembered<T: Any + Send + Sync>(&self) -> Option<(Moment, Arc<T>)> {
        self.memory.take()
    }

    /// Keeps what was found out of the graph as it is now; copies of the graph share it.
    pub(crate) fn remember<T: Any + Send + Sync>(&self, what: Arc<T>) {
        self.memory.put(self.moment(), what);
    }

    // ---- changing: for front ends and `rewrite` only ------------------------------------------------------------

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

    /// Adds a node at the end of the written order, or right before `before`.
    pub(crate) fn add_node(&mut self, mut node: Node, before: Option<NodeId>) -> NodeId {
        let id = NodeId(self.nodes.len() as u32);
        node.rank = match before {
            Some(b) => {
                self.next_minor += 1;
                (self.node(b).rank.0, self.next_minor)
            }
            // Later than any rank given so far with this major; u32::MAX / 2 leaves the first pass of minors below.
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

    fn unwire(&mut self, v: ValueId, user: NodeId, slot: usize) {
        let slot = (slot != usize::MAX).then_some(slot);
        if let Some(b) = self.nodes[user.0 as usize] {
            let e = self
                .net
                .edges_directed(b, Direction::Incoming)
                .find(|e| e.weight().value == v && e.weight().slot == slot)
                .map(|e| e.id());
            if let Some(e) = e {
                self.order.take();
                self.net.remove_edge(e);
            }
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

    /// True if every reading that the value knows is one, and no two are the same.
    fn all_read(&self, v: ValueId, value: &Value) -> bool {
        let reads = |(node, slot): &(NodeId, usize)| {
            self.try_node(*node).is_some_and(|n| *slot == usize::MAX || n.input(*slot) == Some(v))
        };
        let mut known: Vec<(NodeId, usize)> = value.uses.iter().filter(|u| u.1 != usize::MAX).copied().collect();
        known.sort_unstable();
        known.windows(2).all(|w| w[0] != w[1]) && value.uses.iter().all(reads)
    }

    /// True if the tables of values and the edges know what the node reads and makes.
    pub(crate) fn is_wired(&self, id: NodeId) -> bool {
        let n = self.node(id);
        let mut made = 0;
        let mut reads = n.inputs.iter().flatten().chain(&n.captures);
        let known = reads.all(|v| {
            made += usize::from(self.try_value(*v).is_some_and(|value| matches!(value.def, Def::Node { .. })));
            self.try_value(*v).is_some()
        });
        let mut outputs = n.outputs.iter().enumerate().filter_map(|(slot, v)| Some((slot, (*v)?)));
        known
            && outputs.all(|(slot, v)| self.try_value(v).is_some_and(|x| x.def == Def::Node { node: id, slot }))
            && self.nodes[id.0 as usize]
                .is_some_and(|ix| self.net.edges_directed(ix, Direction::Incoming).count() == made)
    }

    /// Checks that the value table and the petgraph edges tell the same story; the texts name what does not.
    pub(crate) fn check_wiring(&self) -> Vec<String> {
        let mut bad = Vec::new();
        let mut expected = 0usize;
        // What values know is looked up for those alone whose count does not tell that it is all right.
        let mut readings = vec![0u32; self.values.len()];
        for (_, n) in self.nodes() {
            for v in n.inputs.iter().flatten().chain(&n.captures).filter(|v| self.try_value(**v).is_some()) {
                readings[v.0 as usize] += 1;
            }
        }
        let odd = |v: ValueId, val: &Value| readings[v.0 as usize] as usize != val.uses.len() || !self.all_read(v, val);
        let odd: BTreeSet<ValueId> = self.values().filter(|(v, val)| odd(*v, val)).map(|(v, _)| v).collect();
        let told: HashSet<(ValueId, NodeId, usize)> =
            odd.iter().flat_map(|v| self.value(*v).uses.iter().map(move |(n, s)| (*v, *n, *s))).collect();
        for (id, n) in self.nodes() {
            let reads = n.inputs.iter().enumerate().filter_map(|(s, v)| Some((s, (*v)?)));
            for (slot, v) in reads.chain(n.captures.iter().map(|v| (usize::MAX, *v))) {
                match self.try_value(v) {
                    None => bad.push(format!("{id:?} reads {v:?}, which was erased")),
                    Some(val) => {
                        if odd.contains(&v) && !told.contains(&(v, id, slot)) {
                            bad.push(format!("{id:?} reads `{}` at {slot}, which the value does not know", val.name));
                        }
                        expected += matches!(val.def, Def::Node { .. }) as usize;
                    }
                }
            }
            for (slot, v) in n.outputs.iter().enumerate() {
                if let Some(v) = v
                    && self.try_value(*v).map(|x| &x.def) != Some(&Def::Node { node: id, slot })
                {
                    bad.push(format!("output {slot} of {id:?} is not known as its own"));
                }
            }
        }
        if expected != self.net.edge_count() {
            bad.push(format!("{} edges for {expected} readings", self.net.edge_count()));
        }
        bad
    }
}
