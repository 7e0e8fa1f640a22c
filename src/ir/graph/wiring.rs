//! Whether the table of values, the nodes and the edges tell the same story.

use std::collections::{BTreeSet, HashSet};

use petgraph::Direction;

use super::super::parts::{Def, NodeId, Value, ValueId};
use super::Graph;

impl Graph {
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
