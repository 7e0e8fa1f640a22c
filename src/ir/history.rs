//! What changed in a graph, and what was found out about it before: so that whoever follows it looks again at what changed
//! alone.

use std::any::Any;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex};

use super::{NodeId, ValueId};

/// Something to look at again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// A node is new, or reads something else, or has other attributes.
    Node(NodeId),
    /// A value is new, or has another definition or declared type.
    Value(ValueId),
    /// A value has other readers, another name, another place in the lists, or a type that was inferred.
    Around(ValueId),
}

/// What changed, each once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Changed {
    pub nodes: BTreeSet<NodeId>,
    pub values: BTreeSet<ValueId>,
    pub around: BTreeSet<ValueId>,
}

/// A moment in the life of one graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Moment(usize);

/// The changes of a graph, as far back as is worth knowing: with more changes than the graph has parts, looking at all of it is
/// no more work.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    changes: Vec<Change>,
    /// How many came before the first that is kept.
    forgotten: usize,
}

impl History {
    /// `parts`: nodes and values of the graph.
    pub fn note(&mut self, change: Change, parts: usize) {
        if self.changes.len() > parts + 64 {
            self.forgotten += self.changes.len();
            self.changes.clear();
        }
        self.changes.push(change);
    }

    pub fn now(&self) -> Moment {
        Moment(self.forgotten + self.changes.len())
    }

    /// What changed since a moment; `None` if that is not known any more.
    pub fn since(&self, then: Moment) -> Option<Changed> {
        let mut all = Changed::default();
        for change in self.changes.get(then.0.checked_sub(self.forgotten)?..)? {
            match *change {
                Change::Node(n) => all.nodes.insert(n),
                Change::Value(v) => all.values.insert(v),
                Change::Around(v) => all.around.insert(v),
            };
        }
        Some(all)
    }
}

/// What somebody found out about a graph at a moment. Copies of the graph share it.
#[derive(Default)]
pub(super) struct Memory(Mutex<Option<Remembered>>);

#[derive(Clone)]
struct Remembered {
    when: Moment,
    what: Arc<dyn Any + Send + Sync>,
}

impl Memory {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Remembered>> {
        // What is kept is replaced as a whole, so a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub fn get<T: Any + Send + Sync>(&self) -> Option<(Moment, Arc<T>)> {
        let held = self.lock();
        let Remembered { when, what } = held.as_ref()?;
        Some((*when, what.clone().downcast().ok()?))
    }

    /// As [`Memory::get`], and forgets it: whoever brings it up to date need not copy it.
    pub fn take<T: Any + Send + Sync>(&self) -> Option<(Moment, Arc<T>)> {
        let Remembered { when, what } = self.lock().take()?;
        Some((when, what.downcast().ok()?))
    }

    pub fn put<T: Any + Send + Sync>(&self, when: Moment, what: Arc<T>) {
        *self.lock() = Some(Remembered { when, what });
    }
}

impl Clone for Memory {
    fn clone(&self) -> Memory {
        Memory(Mutex::new(self.lock().clone()))
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Memory")
    }
}
