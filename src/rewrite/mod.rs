//! A rewrite as a value: built beside the graph, checked, then committed whole or not at all.
//!
//! A [`Patch`] is a little graph with taps into the old one. It can add nodes and constants, redirect readers of old
//! values to new ones, and erase nodes; nothing of it shows in the model until [`Patch::commit`] has checked all of it.

mod apply;
mod check;
mod cut;
mod names;
mod open_sizes;
mod under;
mod widen;

pub use check::PatchError;
pub use cut::{Tail, cut};
pub use names::shorten_names;
#[cfg(test)]
pub(crate) use names::stem;
pub use open_sizes::open_sizes;
pub use under::Under;
pub(crate) use widen::widen_graph;
pub use widen::{Bodies, Ends, WidenError, narrow_floats};

use crate::ir::{AttrValue, Attrs, DType, Dim, Model, NodeId, Op, Tensor, TensorType, ValueId};

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
enum Edit {
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

/// A rewrite that has not happened yet.
#[derive(Clone, Debug)]
pub struct Patch {
    by: String,
    from: Vec<String>,
    values: Vec<NewValue>,
    nodes: Vec<NewNode>,
    edits: Vec<Edit>,
    before: Option<NodeId>,
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
            edits: Vec::new(),
            before: None,
        }
    }

    /// Names what the new nodes come from; kept in their [`Origin`](crate::ir::Origin).
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

    /// True if it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.edits.is_empty()
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
    /// [`Node::captures`](crate::ir::Node::captures).
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
        self.edits.push(Edit::Replace { old, new, named: false });
    }

    /// As [`Patch::replace`], and the new value (one this patch makes) takes over the old one's name: what stands for
    /// the same quantity keeps being found under it, by nested graphs too.
    pub fn succeed(&mut self, old: ValueId, new: Ref) {
        debug_assert!(matches!(new, Ref::New(_)));
        self.edits.push(Edit::Replace { old, new, named: true });
    }

    /// Input `slot` of an old node will read `new` (`None`: omitted).
    pub fn set_input(&mut self, node: NodeId, slot: usize, new: Option<Ref>) {
        self.edits.push(Edit::Input { node, slot, new });
    }

    /// Sets (`Some`) or removes (`None`) an attribute of an old node.
    pub fn set_attr(&mut self, node: NodeId, name: &str, value: Option<AttrValue>) {
        self.edits.push(Edit::SetAttr { node, name: name.to_owned(), value });
    }

    /// Removes a node. Its outputs must be unread once the patch is in.
    pub fn erase(&mut self, node: NodeId) {
        self.edits.push(Edit::Erase { node });
    }

    /// Raises the model's standard operator set. The caller has rewritten every node whose meaning changes between.
    /// `ir_version`: the oldest version of the file format that has it.
    pub fn set_opset(&mut self, version: i64, ir_version: i64) {
        self.edits.push(Edit::Opset { version, ir_version });
    }

    /// A graph input with a default becomes a constant and is an input no more.
    pub fn fix_default(&mut self, input: ValueId) {
        self.edits.push(Edit::FixDefault { input });
    }

    /// Old values, and what their readers will read, in the order in which they were redirected.
    pub fn replaced(&self) -> impl Iterator<Item = (ValueId, Ref)> {
        self.edits.iter().filter_map(|e| match e {
            Edit::Replace { old, new, .. } => Some((*old, *new)),
            _ => None,
        })
    }

    /// What every reader of the value will read.
    fn replacement(&self, value: ValueId) -> Option<Ref> {
        self.edits.iter().rev().find_map(|e| match e {
            Edit::Replace { old, new, .. } if *old == value => Some(*new),
            _ => None,
        })
    }

    /// Puts the patch in, or refuses it and leaves the model as it was.
    ///
    /// # Errors
    /// If types or shapes contradict each other, something still read would disappear, a cycle would come about, an operator does
    /// not exist in the model's operator set, or what the patch refers to is gone.
    pub fn commit(self, m: &mut Model) -> Result<Committed, PatchError> {
        self.check(m)?;
        self.check_effect(m)?;
        Ok(apply::apply(&self, m))
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

    /// x -> y -> z, of which z is a Neg of y: what is redirected to a value goes on with its readers.
    #[test]
    fn redirections_that_follow_each_other_are_seen_as_they_end() {
        let text = r#"<ir_version: 8, opset_import: ["" : 17]>
            g (float[2] x) => (float[2] z) { a = Relu (x)  y = Abs (a)  z = Neg (y) }"#;
        let at = |m: &Model, name: &str| m.graph.find(name).expect(name);
        // `y` reads what `a` becomes, which is made of `y`.
        let mut m = parse_model(text).unwrap();
        let before = print_model(&m, Elide::Full);
        let (x, a, y) = (at(&m, "x"), at(&m, "a"), at(&m, "y"));
        let mut p = Patch::new("test");
        p.replace(a, x.into());
        let new = p.node("Sqrt", "new", &[y.into()], Attrs::new());
        p.replace(x, new);
        assert!(matches!(p.commit(&mut m), Err(PatchError::Cycle { .. })));
        assert_eq!(print_model(&m, Elide::Full), before);
        // Readers of `y` read `a`, whose maker goes.
        let maker = m.graph.producer(a).expect("a node");
        let mut p = Patch::new("test");
        p.replace(y, a.into());
        p.erase(m.graph.producer(y).expect("a node"));
        p.erase(maker);
        assert!(matches!(p.commit(&mut m), Err(PatchError::StillUsed { .. })));
        assert_eq!(print_model(&m, Elide::Full), before);
    }
}
