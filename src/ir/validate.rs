//! Validation: the one way to a [`Validated`] model, which export, lowering and execution require.
//!
//! # The invariants
//! Of the model:
//! - Every domain is imported at most once, in a positive version (`ai.onnx` and the empty domain are one).
//!
//! Of the graph:
//! - The value table, the nodes and the edges between them tell the same story: who makes a value and who reads it.
//! - Values have names, no two the same.
//! - The lists of inputs, outputs, initializers and declarations name live values, each once; inputs are defined as
//!   inputs, initializers as constants, outputs by anything but nothing.
//! - No node reads, directly or not, what it makes itself.
//!
//! Of a node:
//! - It has an operator of an imported domain, or of a model-local function.
//! - An operator of the standard domain exists at the model's operator set and takes that many inputs and outputs.
//!   Operators withdrawn by the standard are let through; an operator set newer than the
//!   [table](super::ops::newest_opset) is trusted about names the table does not know.
//! - It has no attribute that its operator lacks there, nor one that became an input: runtimes refuse it, or overlook it.
//! - The element types it reads and makes, as far as they are known, are ones that the operator takes there, the same
//!   wherever the standard wants one type.
//! - What it reads is defined, also by its nested graphs.
//! - Its attributes have names, no two the same.
//!
//! Of a constant (initializer or attribute):
//! - Its sizes are not negative and can be multiplied, its element type is given, and files of the model's version have it.
//! - Its elements are stored in a form its type allows, exactly as many as the sizes say. External data that was not
//!   loaded, and types outside the standard, are not counted.
//! - A declared type of the same value agrees: same element type, same rank, no size known to differ.

mod constants;
mod types;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use self::constants::{agrees, tensor_problems};
use super::show::{node_line, type_of, type_text, typed};
use super::{AttrValue, Changed, DType, Def, Graph, Model, Moment, Node, NodeId, Tensor, ValueId, ops};

/// A model that was found to obey the invariants of this module. Only [`validate`] makes one.
#[derive(Clone, Copy, Debug)]
pub struct Validated<'m>(&'m Model);

#[cfg(test)]
impl<'m> Validated<'m> {
    /// For tests of the codec alone: files that validation would refuse must still come back as they were.
    pub(crate) fn unchecked(m: &'m Model) -> Validated<'m> {
        Validated(m)
    }
}

impl<'m> Validated<'m> {
    /// The model that was found valid.
    pub fn model(&self) -> &'m Model {
        self.0
    }
}

/// One broken invariant.
#[derive(Clone, Debug, PartialEq)]
pub struct Violation {
    /// The node it concerns, if any.
    pub node: Option<NodeId>,
    /// The value it concerns, if any.
    pub value: Option<ValueId>,
    /// What is wrong; names values and slots, but not the node that [`Violation::line`] shows.
    pub message: String,
    /// The node, or else the value, as it stands in the text form; empty if it concerns neither.
    pub line: String,
    /// The pass or rule that made the node; `None` if the file has it.
    pub by: Option<String>,
}

/// Every invariant a model breaks: those of the model and of values first, then node by node in execution order.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub struct Invalid(pub Vec<Violation>);

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => f.write_str("the model breaks a rule; ")?,
            n => write!(f, "the model breaks {n} rules; ")?,
        }
        // In front of what may be a long list.
        match self.0.iter().find_map(|v| v.by.as_ref()) {
            None => f.write_str("correct it, or export it again:")?,
            Some(by) => {
                write!(f, "`{by}` made such a node: correct the plan or rule that it follows, or report a fault:")?
            }
        }
        let mut above = None;
        for v in &self.0 {
            if v.line.is_empty() {
                write!(f, "\n  {}", v.message)?;
                continue;
            }
            // All that is wrong with one line stands below it.
            let here = (v.node, &v.line);
            if above != Some(here) {
                write!(f, "\n  {}", v.line)?;
                above = Some(here);
            }
            write!(f, "\n    {}", v.message)?;
        }
        Ok(())
    }
}

/// Checks every invariant and collects all that fail.
///
/// # Errors
/// [`Invalid`] with every violation; its text shows each line of the model that is wrong with all that is wrong with it.
pub fn validate(model: &Model) -> Result<Validated<'_>, Invalid> {
    let mut c = Checker::of(model, false);
    c.opsets();
    for message in c.g.check_wiring() {
        c.model(message);
    }
    c.lists();
    let ids: Vec<ValueId> = c.g.values().map(|(id, _)| id).collect();
    ids.into_iter().for_each(|v| c.value_rules(v));
    let imported: BTreeSet<&str> = model.opsets.iter().map(|o| canonical(&o.domain)).collect();
    let mut on_cycle: BTreeMap<NodeId, String> = c.g.cycles().into_iter().map(|p| (p[0], path_text(c.g, &p))).collect();
    for id in c.g.order_with_cycles() {
        c.node_rules(id, &imported);
        if let Some(path) = on_cycle.remove(&id) {
            c.node(id, None, format!("is on a cycle: {path}"));
        }
    }
    if c.bad.is_empty() { Ok(Validated(model)) } else { Err(Invalid(c.bad)) }
}

/// Checks the operator sets alone, which everything else is read by.
///
/// # Errors
/// As [`validate`].
pub(crate) fn validate_opsets(model: &Model) -> Result<(), Invalid> {
    let mut c = Checker::of(model, false);
    c.opsets();
    if c.bad.is_empty() { Ok(()) } else { Err(Invalid(c.bad)) }
}

/// As [`validate`], of a model that was valid at a moment of its graph, and whose operator sets have stayed: what changed
/// since is looked at. What is wrong with the lists of values as a whole, and with element types that untouched nodes alone
/// tell, shows in [`validate`] only.
///
/// # Errors
/// As [`validate`].
pub(crate) fn validate_since(model: &Model, then: Moment) -> Result<(), Invalid> {
    let g = &model.graph;
    let Some(Changed { mut nodes, mut values, around }) = g.changes_since(then) else {
        return validate(model).map(|_| ());
    };
    let readers = |v: &ValueId| g.try_value(*v).into_iter().flat_map(|value| &value.uses).map(|(n, _)| *n);
    nodes.extend(values.iter().flat_map(readers));
    values.extend(around);
    let mut c = Checker::of(model, false);
    values.retain(|v| g.try_value(*v).is_some());
    values.iter().for_each(|v| c.value_rules(*v));
    let imported: BTreeSet<&str> = model.opsets.iter().map(|o| canonical(&o.domain)).collect();
    nodes.retain(|n| g.try_node(*n).is_some());
    nodes.iter().for_each(|n| c.node_rules(*n, &imported));
    // Whatever is wrong, the whole tells it best.
    let sound = c.bad.is_empty() && g.node_order_is_acyclic() && nodes.iter().all(|n| g.is_wired(*n));
    if sound { Ok(()) } else { validate(model).map(|_| ()) }
}

/// Checks operators, attributes and element types alone, as a runtime does: of a model that is written, or of a nested
/// graph that is handed over as one. What [`validate`] lets through is refused here: half precision where the operator
/// set has float32 only (exporters write it, and it is widened before anything runs), and codes of 16 bits before opset
/// 21 (a model on its way to be written holds them).
///
/// # Errors
/// As [`validate`].
pub fn operators(model: &Model) -> Result<(), Invalid> {
    let mut c = Checker::of(model, true);
    let imported: BTreeSet<&str> = model.opsets.iter().map(|o| canonical(&o.domain)).collect();
    for id in c.g.order_with_cycles() {
        c.operator_rules(id, c.g.node(id), &imported);
    }
    if c.bad.is_empty() { Ok(()) } else { Err(Invalid(c.bad)) }
}

/// The one name of a domain that has two.
fn canonical(domain: &str) -> &str {
    if domain == "ai.onnx" { "" } else { domain }
}

/// The values along a cycle, each read by the node that makes the next: `a -> b -> a`.
fn path_text(g: &Graph, path: &[NodeId]) -> String {
    let name = |id: &NodeId| {
        let n = g.node(*id);
        let out = n.outputs.iter().flatten().find_map(|v| g.try_value(*v));
        out.map_or_else(|| format!("{id:?}"), |v| format!("`{}`", v.name))
    };
    let mut names: Vec<String> = path.iter().chain(path.first()).map(name).collect();
    if names.len() > 8 {
        names.splice(4..names.len() - 3, ["...".to_owned()]);
    }
    names.join(" -> ")
}

/// More captures than this are not searched one by one.
const MANY: usize = 1000;

struct Checker<'m> {
    m: &'m Model,
    g: &'m Graph,
    functions: BTreeSet<(&'m str, &'m str)>,
    /// Of every value, whether the graph lists it as an input, and as a constant.
    listed: Vec<(bool, bool)>,
    bad: Vec<Violation>,
    /// Element types of what nodes make.
    made: Vec<Option<DType>>,
    /// Half precision is not taken for float32.
    strict: bool,
}

impl<'m> Checker<'m> {
    fn of(m: &'m Model, strict: bool) -> Checker<'m> {
        let g = &m.graph;
        let functions = m.functions.iter().map(|(d, f)| (canonical(d), f.as_str())).collect();
        let count = g.value_bound();
        let mut listed = vec![(false, false); count];
        g.inputs.iter().for_each(|v| listed[v.0 as usize].0 = true);
        g.inits.iter().for_each(|v| listed[v.0 as usize].1 = true);
        Checker { m, g, functions, listed, bad: Vec::new(), made: vec![None; count], strict }
    }

    fn model(&mut self, message: String) {
        self.bad.push(Violation { node: None, value: None, message, line: String::new(), by: None });
    }

    fn value(&mut self, v: ValueId, message: String) {
        let line = self.g.try_value(v).map_or_else(|| format!("{v:?} (erased)"), typed);
        self.bad.push(Violation { node: None, value: Some(v), message, line, by: None });
    }

    fn node(&mut self, id: NodeId, value: Option<ValueId>, message: String) {
        // A node is known to its owner by its name, where the line does not show it anyway.
        let n = self.g.node(id);
        let shown = n.name.is_empty() || n.out().and_then(|v| self.g.try_value(v)).is_none_or(|v| v.name != n.name);
        let message = if shown { message } else { format!("node `{}`: {message}", n.name) };
        let by = n.maker().map(str::to_owned);
        self.bad.push(Violation { node: Some(id), value, message, line: node_line(self.g, id), by });
    }

    fn opsets(&mut self) {
        let mut seen = BTreeSet::new();
        for o in &self.m.opsets {
            if o.version < 1 {
                self.model(format!("domain \"{}\" is imported in version {}", o.domain, o.version));
            }
            if !seen.insert(canonical(&o.domain)) {
                self.model(format!("domain \"{}\" is imported twice", o.domain));
            }
        }
    }

    /// The four lists of values.
    fn lists(&mut self) {
        let g = self.g;
        let lists: [(&str, &[ValueId]); 4] = [
            ("graph inputs", &g.inputs),
            ("graph outputs", g.outputs()),
            ("initializers", &g.inits),
            ("declarations", g.declared()),
        ];
        for (what, list) in lists {
            let mut seen = BTreeSet::new();
            for v in list {
                let Some(value) = g.try_value(*v) else {
                    self.model(format!("{v:?} is listed among the {what} but was erased"));
                    continue;
                };
                if !seen.insert(*v) {
                    self.value(*v, format!("`{}` is listed twice among the {what}", value.name));
                }
                let fits = match what {
                    "graph inputs" => matches!(value.def, Def::Input | Def::InputWithDefault(_)),
                    "graph outputs" => value.def != Def::Nothing,
                    "initializers" => matches!(value.def, Def::Init(_) | Def::InputWithDefault(_)),
                    _ => true,
                };
                if !fits {
                    let is = match value.def {
                        Def::Node { .. } => "is made by a node",
                        Def::Input | Def::InputWithDefault(_) => "is a graph input",
                        Def::Init(_) | Def::Sparse => "is a constant",
                        Def::Nothing => "is not defined",
                    };
                    self.value(*v, format!("`{}` is listed among the {what} but {is}", value.name));
                }
            }
        }
    }

    fn value_rules(&mut self, v: ValueId) {
        let value = self.g.value(v);
        if value.name.is_empty() {
            self.value(v, "a value has no name".to_owned());
        } else if self.g.find(&value.name) != Some(v) {
            self.value(v, format!("the name `{}` leads to another value", value.name));
        }
        for (node, slot) in &value.uses {
            // That a nested graph's reading is known from both sides is counted in the graph's own check.
            let reads = self.g.try_node(*node).is_some_and(|n| match slot {
                &usize::MAX => n.captures.len() > MANY || n.captures.contains(&v),
                s => n.input(*s) == Some(v),
            });
            if !reads {
                self.value(v, format!("`{}` is said to be read by {node:?}, which does not", value.name));
            }
        }
        let (input, init) = self.listed[v.0 as usize];
        match &value.def {
            Def::Node { node, slot } => {
                if self.g.try_node(*node).and_then(|n| n.output(*slot)) != Some(v) {
                    self.value(v, format!("`{}` is said to be output {slot} of {node:?}, which it is not", value.name));
                }
            }
            Def::Input => {
                if !input {
                    self.value(v, format!("`{}` is an input that the graph does not list", value.name));
                }
            }
            Def::Init(t) | Def::InputWithDefault(t) => {
                if !init {
                    self.value(v, format!("`{}` is a constant that the graph does not list", value.name));
                }
                if matches!(value.def, Def::InputWithDefault(_)) && !input {
                    self.value(v, format!("`{}` is an input that the graph does not list", value.name));
                }
                for problem in tensor_problems(t).into_iter().chain(self.age(t)) {
                    self.value(v, format!("`{}` {problem}", value.name));
                }
                if let Some(ty) = &value.ty
                    && !agrees(ty, t)
                {
                    let (is, said) = (type_text(&type_of(t)), type_text(ty));
                    self.value(v, format!("`{}` is declared {said}, its constant is {is}", value.name));
                }
            }
            Def::Sparse | Def::Nothing => {}
        }
    }

    fn node_rules(&mut self, id: NodeId, imported: &BTreeSet<&str>) {
        let n = self.g.node(id);
        self.operator_rules(id, n, imported);
        for (slot, v) in n.inputs.iter().enumerate() {
            if let Some(v) = v {
                self.reading(id, *v, &format!("input {slot}"));
            }
        }
        for v in &n.captures {
            self.reading(id, *v, "a nested graph");
        }
        let mut seen = BTreeSet::new();
        for a in &n.attrs.0 {
            if a.name.is_empty() {
                self.node(id, None, "an attribute has no name".to_owned());
            } else if !seen.insert(&a.name) {
                self.node(id, None, format!("attribute `{}` is given twice", a.name));
            }
            let tensors: &[Tensor] = match &a.value {
                AttrValue::Tensor(t) => std::slice::from_ref(t),
                AttrValue::Tensors(v) => v,
                _ => &[],
            };
            for t in tensors {
                for problem in tensor_problems(t).into_iter().chain(self.age(t)) {
                    self.node(id, None, format!("attribute `{}` {problem}", a.name));
                }
            }
        }
    }

    fn reading(&mut self, id: NodeId, v: ValueId, place: &str) {
        if let Some(value) = self.g.try_value(v)
            && value.def == Def::Nothing
        {
            self.node(id, Some(v), format!("{place} reads `{}`, which nothing defines", value.name));
        }
    }

    fn operator_rules(&mut self, id: NodeId, n: &Node, imported: &BTreeSet<&str>) {
        let op = &n.op;
        if op.name.is_empty() {
            return self.node(id, None, "the node has no operator".to_owned());
        }
        if self.functions.contains(&(canonical(&op.domain), op.name.as_str())) {
            return;
        }
        if !imported.contains(canonical(&op.domain)) {
            let what =
                if op.is_onnx() { "the standard domain".to_owned() } else { format!("domain \"{}\"", op.domain) };
            return self.node(id, None, format!("{what} is not imported; add it to `opset_import`"));
        }
        if !op.is_onnx() {
            return;
        }
        let opset = self.m.opset();
        let Some(versions) = ops::versions(&op.name) else {
            if opset <= ops::newest_opset() {
                self.node(id, None, format!("the standard has no operator {}", op.name));
            }
            return;
        };
        let Some(schema) = ops::schema(&op.name, opset) else {
            let first = versions.first().map_or(0, |s| s.since);
            let message = format!("{} begins with opset {first}, the model has {opset}", op.name);
            return self.node(id, None, message);
        };
        // Omitted inputs at the end count towards the most that is allowed, not towards the least.
        let given = n.inputs.iter().rposition(Option::is_some).map_or(0, |i| i + 1);
        let (ins, outs) = (schema.inputs(), schema.outputs());
        if !ins.allows(n.inputs.len()) || !ins.allows(given) {
            let found = if ins.allows(n.inputs.len()) { given } else { n.inputs.len() };
            let wants = counted(ins, "input");
            self.node(id, None, format!("{} takes {wants} at opset {opset}, not {found}", op.name));
        }
        // The count of Loop, and where Resize looks, may be left out before what may not.
        let needed = |slot: usize| slot < ins.min || ins.max.is_none();
        let left_out = n.inputs.iter().enumerate().find(|(slot, x)| x.is_none() && needed(*slot) && *slot < given);
        if let Some((slot, _)) = left_out.filter(|_| !["Loop", "Scan", "Resize"].contains(&op.name.as_str())) {
            self.node(id, None, format!("{} needs input {slot}, which is left out", op.name));
        }
        if !outs.allows(n.outputs.len()) {
            let (wants, found) = (counted(outs, "output"), n.outputs.len());
            self.node(id, None, format!("{} has {wants} at opset {opset}, not {found}", op.name));
        }
        if !schema.deprecated {
            self.attribute_rules(id, n, schema);
            self.type_rules(id, n, schema);
        }
    }
}

/// `1 input`, `2 to 3 inputs`.
fn counted(a: ops::Arity, what: &str) -> String {
    let one = a == ops::Arity { min: 1, max: Some(1) };
    format!("{a} {what}{}", if one { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Attr, Payload, Rider};
    use crate::text::parse_model;

    fn model() -> Model {
        let text = "<ir_version: 8, opset_import: [\"\" : 17]>
            g (float[2] x) => (y) <float[2] w = {1.0, 2.0}> { h = Add (x, w) y = Relu (h) }";
        parse_model(text).expect("the text is right")
    }

    /// What `break_it` breaks, as text; the same model unbroken is valid.
    fn broken(break_it: impl FnOnce(&mut Model)) -> String {
        let mut m = model();
        assert!(validate(&m).is_ok());
        break_it(&mut m);
        validate(&m).map(|_| ()).expect_err("the model was broken").to_string()
    }

    fn id(g: &Graph, name: &str) -> ValueId {
        g.find(name).expect("a value of this name")
    }

    #[test]
    fn an_input_that_is_needed_is_not_left_out() {
        let of = |node: &str| {
            let text = format!(
                "<ir_version: 8, opset_import: [\"\" : 17]> g (float[2] x) => (y) <float one = {{1.0}}> {{ y = {node} }}"
            );
            validate(&parse_model(&text).expect("the text is right")).map(|_| ()).map_err(|e| e.to_string())
        };
        for (node, slot) in [("Add (\"\", x)", 0), ("Clip (\"\", one)", 0), ("Concat <axis = 0> (x, \"\", x)", 1)] {
            let e = of(node).expect_err(node);
            assert!(e.contains(&format!("needs input {slot}, which is left out")), "{node}: {e}");
        }
        for node in ["Clip (x, \"\", one)", "Clip (x)"] {
            of(node).expect(node);
        }
    }

    #[test]
    fn a_forgotten_reader_is_found() {
        let e = broken(|m| {
            let h = id(&m.graph, "h");
            m.graph.value_mut(h).uses.clear();
        });
        assert!(e.contains("reads `h` at 0, which the value does not know"), "{e}");
    }

    #[test]
    fn an_invented_reader_is_found() {
        let e = broken(|m| {
            let (x, y) = (id(&m.graph, "x"), id(&m.graph, "y"));
            let relu = m.graph.producer(y).expect("made by Relu");
            m.graph.value_mut(x).uses.push((relu, 0));
        });
        assert!(e.contains("`x` is said to be read by n1, which does not"), "{e}");
    }

    #[test]
    fn a_back_pointer_to_the_wrong_slot_is_found() {
        let e = broken(|m| {
            let h = id(&m.graph, "h");
            let node = m.graph.producer(h).expect("made by Add");
            m.graph.value_mut(h).def = Def::Node { node, slot: 1 };
        });
        assert!(e.contains("`h` is said to be output 1 of n0, which it is not"), "{e}");
    }

    #[test]
    fn names_must_lead_back_to_their_value() {
        let e = broken(|m| {
            let h = id(&m.graph, "h");
            m.graph.value_mut(h).name = "x".to_owned();
        });
        assert!(e.contains("the name `x` leads to another value"), "{e}");
        let e = broken(|m| {
            let h = id(&m.graph, "h");
            m.graph.value_mut(h).name.clear();
        });
        assert!(e.contains("a value has no name"), "{e}");
    }

    #[test]
    fn the_lists_must_fit_the_definitions() {
        let e = broken(|m| {
            let (x, w, h) = (id(&m.graph, "x"), id(&m.graph, "w"), id(&m.graph, "h"));
            m.graph.inputs = vec![w];
            m.graph.inits = vec![x, h];
        });
        for part in [
            "`w` is listed among the graph inputs but is a constant",
            "`x` is listed among the initializers but is a graph input",
            "`h` is listed among the initializers but is made by a node",
            "`x` is an input that the graph does not list",
            "`w` is a constant that the graph does not list",
        ] {
            assert!(e.contains(part), "{part} is not in\n{e}");
        }
    }

    #[test]
    fn attributes_need_names_of_their_own() {
        let e = broken(|m| {
            let relu = m.graph.producer(id(&m.graph, "y")).expect("made by Relu");
            let attr = |name: &str| Attr { name: name.to_owned(), value: AttrValue::Int(1), rider: Rider::default() };
            m.graph.node_mut(relu).attrs.0 = vec![attr("a"), attr("a"), attr("")];
        });
        assert!(e.contains("attribute `a` is given twice") && e.contains("an attribute has no name"), "{e}");
    }

    #[test]
    fn elements_must_stand_in_a_field_of_their_type() {
        let swap = |data: Payload| {
            broken(|m| {
                let w = id(&m.graph, "w");
                let old = m.graph.try_init(w).expect("a constant").clone();
                m.graph.value_mut(w).def = Def::Init(Tensor { data, ..old });
            })
        };
        assert!(
            swap(Payload::I64(vec![1, 2].into())).contains("`w` keeps its elements in a field that is not for float")
        );
        assert!(swap(Payload::F32(vec![1.0].into())).contains("`w` holds 1 element, but float[2] needs 2"));
    }

    #[test]
    fn packed_and_paired_elements_are_counted_as_stored() {
        let ok = |dtype, dims: &[i64], data| {
            tensor_problems(&Tensor { dtype, dims: dims.to_vec(), data, rider: Rider::default() }).is_empty()
        };
        assert!(ok(DType::INT4, &[3], Payload::I32(vec![0x21, 0x03].into())));
        assert!(ok(DType::COMPLEX64, &[2], Payload::F32(vec![0.0; 4].into())));
        assert!(!ok(DType::COMPLEX64, &[2], Payload::F32(vec![0.0; 2].into())));
        assert!(!ok(DType::FLOAT, &[i64::MAX, 4], Payload::Raw(vec![].into())));
    }

    /// A model of one node of this operator, with as many inputs and outputs as the version of `at` takes at least.
    fn single(op: &str, at: i64, opset: i64) -> Model {
        let schema = ops::schema(op, at).expect("a version");
        let least = |takes: crate::ir::ops::Arity| (0..9).find(|n| takes.allows(*n)).expect("not very many");
        let list = |word: &str, n: usize| (0..n).map(|i| format!("{word}{i}")).collect::<Vec<_>>().join(", ");
        let (ins, outs) = (list("a", least(schema.inputs())), list("b", least(schema.outputs()).max(1)));
        let text =
            format!("<ir_version: 8, opset_import: [\"\" : {opset}]> g ({ins}) => (b0) {{ {outs} = {op} ({ins}) }}");
        parse_model(&text).unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    /// Of every operator in the table: written into the operator set before its first, it is refused, and into its first,
    /// it is not for being unknown.
    #[test]
    fn no_operator_is_written_before_its_operator_set() {
        let mut tried = 0;
        for op in ops::names() {
            let first = ops::first_version(op).expect("it is in the table");
            // What was withdrawn at once, and what takes nothing or holds graphs, is no call that the text form has.
            let Some(_) = ops::schema(op, first).filter(|s| !s.deprecated && !s.inputs().allows(0)) else {
                continue;
            };
            let said = |opset: i64| operators(&single(op, first, opset)).err().map_or(String::new(), |e| e.to_string());
            assert!(!said(first).contains("begins with"), "{op}: {}", said(first));
            if first > 1 {
                assert!(
                    said(first - 1).contains(&format!("begins with opset {first}")),
                    "{op} at {}: {}",
                    first - 1,
                    said(first - 1)
                );
                tried += 1;
            }
        }
        assert!(tried > 100, "only {tried} operators were tried");
    }

    #[test]
    fn every_violation_is_collected_under_its_line() {
        let text = "<ir_version: 8, opset_import: [\"\" : 17]> g (x) => (y) { y = Gelu (a, b) }";
        let m = parse_model(text).expect("the text is right");
        let e = validate(&m).map(|_| ()).expect_err("three things are wrong");
        assert_eq!(e.0.len(), 3);
        assert_eq!(e.to_string().matches("y = Gelu (a, b)").count(), 1);
    }
}
