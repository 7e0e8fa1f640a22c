//! Nodes in line, and those that cannot be because they depend on each other.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};

use petgraph::Direction;
use petgraph::stable_graph::NodeIndex;
use petgraph::visit::EdgeRef;

use super::super::parts::{Node, NodeId};
use super::Graph;

impl Graph {
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
}
