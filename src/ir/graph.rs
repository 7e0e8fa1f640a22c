//! The graph: nodes in a petgraph `StableDiGraph`, values in a table beside it. Here it is read; `edit` changes it, `order`
//! puts its nodes in line, `wiring` holds its tables against each other.

mod edit;
mod order;
mod wiring;

use std::any::Any;
use std::sync::{Arc, OnceLock};

use indexmap::IndexMap;
use petgraph::stable_graph::{NodeIndex, StableDiGraph};

use super::history::{Changed, History, Memory, Moment};
use super::parts::{Def, Dim, Node, NodeId, Value, ValueId};
use super::{Rider, Tensor};

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

/// Identity nodes between a constant and its reader that are seen through.
const MOST_IDENTITIES: usize = 64;

impl Graph {
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

    /// The value, if it is still in the graph.
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

    /// The graph's inputs, in the order of the file.
    pub fn inputs(&self) -> &[ValueId] {
        &self.inputs
    }

    /// The graph's outputs, in the order of the file.
    pub fn outputs(&self) -> &[ValueId] {
        &self.outputs
    }

    /// The stored constants, in the order of the file.
    pub fn initializers(&self) -> &[ValueId] {
        &self.inits
    }

    /// Inner values whose types the file declares.
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

    /// How many nodes there are, nested graphs not counted.
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

    /// True if the value is an output of the graph.
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

    /// The constant tensor behind a value, seen through Constant nodes and a few Identity nodes: long chains of these are
    /// removed, and until then not followed from every place in them.
    pub fn constant(&self, v: ValueId) -> Option<&Tensor> {
        let mut v = v;
        for _ in 0..MOST_IDENTITIES {
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
        None
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
}
