//! Model-local functions, written out where they are called.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;

use super::{LoadError, back, front, proto, scope};
use crate::budget;
use crate::ir::{Model, ops};

/// How deep functions may call functions.
const DEEPEST: usize = 64;
/// Nodes and calls that writing functions out may make: a function that calls another twice, which calls another twice, has
/// 2^n nodes. Large models that are made of functions have some ten thousand.
const MOST_NODES: usize = 200_000;
/// Bytes of their names, constants and other attributes.
const MOST_BYTES: usize = 200 << 20;

/// Why functions could not be written out.
#[derive(Debug, thiserror::Error)]
pub enum InlineError {
    #[error(
        "function `{function}` calls itself, directly or through others, or is called through more than {DEEPEST} others; \
         export the model without functions"
    )]
    Recursive { function: String },
    #[error(
        "written out, the model's functions are more than {MOST_NODES} nodes or {} (at a call of `{function}`); export the \
         model without functions",
        budget::readable(MOST_BYTES as u64)
    )]
    TooMany { function: String },
    #[error(
        "function `{function}` is written in opset {has} and its {op} means something else in the model's opset {model}; \
         export the model with one opset"
    )]
    Opset { function: String, op: String, has: i64, model: i64 },
    #[error(
        "function `{function}` hands attribute `{attribute}` on to a nested graph, which is not done here; inline it first"
    )]
    Nested { function: String, attribute: String },
    #[error(
        "function `{function}` has the name of a standard operator, and runtimes do not agree on which of the two a node \
         calls; rename the function, or export the model without functions"
    )]
    Standard { function: String },
    #[error("function `{function}` is defined twice; keep one of the two, or export the model without functions")]
    Twice { function: String },
    #[error(
        "node `{node}` calls function `{function}` with {given} {what}, which has {has}; correct the call, or export the model \
         again"
    )]
    TooManyGiven { node: String, function: String, what: &'static str, given: usize, has: usize },
    #[error("with its functions written out the model is malformed: {0}")]
    Malformed(#[from] LoadError),
}

type Key = (String, String, String);

fn text(s: &Option<String>) -> String {
    s.clone().unwrap_or_default()
}

/// The domain as a key: the standard one has two names.
fn domain(s: &Option<String>) -> String {
    let d = text(s);
    if d == "ai.onnx" { String::new() } else { d }
}

fn called(n: &proto::NodeProto) -> Key {
    (domain(&n.domain), text(&n.op_type), text(&n.overload))
}

fn standard(list: &[proto::OperatorSetIdProto]) -> Option<i64> {
    list.iter().find(|o| domain(&o.domain).is_empty()).and_then(|o| o.version)
}

/// A model without functions: each call is replaced by the function's nodes. Weights are not copied. A model that has
/// none comes back as it is; functions that only nested graphs call stay.
///
/// # Errors
/// If a function is recursive, is written for an operator set in which an operator it uses means something else, or
/// hands an attribute on to a nested graph.
pub fn inline_functions(m: &Model) -> Result<Model, InlineError> {
    if m.functions.is_empty() {
        return Ok(m.clone());
    }
    let mut p = back::model(m);
    let mut functions: BTreeMap<Key, proto::FunctionProto> = BTreeMap::new();
    for f in std::mem::take(&mut p.functions) {
        let (key, function) = ((domain(&f.domain), text(&f.name), text(&f.overload)), text(&f.name));
        if functions.insert(key, f).is_some() {
            return Err(InlineError::Twice { function });
        }
    }
    let opset = standard(&p.opset_import);
    for f in functions.values() {
        check(f, opset)?;
    }
    let mut graph = p.graph.take().unwrap_or_default();
    let both = |k: &Key| k.0.is_empty() && opset.is_some_and(|o| ops::schema(&k.1, o).is_some());
    let calls = graph.node.iter().chain(functions.values().flat_map(|f| &f.node)).map(called);
    if let Some((_, function, _)) = calls.into_iter().find(|k| both(k) && functions.contains_key(k)) {
        return Err(InlineError::Standard { function });
    }
    let mut names = Names::of(&graph);
    let mut nodes = Vec::with_capacity(graph.node.len());
    for n in std::mem::take(&mut graph.node) {
        Inliner { functions: &functions, names: &mut names, out: &mut nodes }.expand(n, 0)?;
    }
    graph.node = nodes;
    let mut nested = BTreeSet::new();
    graph.node.iter().for_each(|n| calls_below(n, &mut nested));
    // What a nested graph calls stays, with all it calls in turn.
    loop {
        let before = nested.len();
        let more: Vec<&proto::FunctionProto> =
            functions.iter().filter(|(k, _)| nested.contains(*k)).map(|(_, f)| f).collect();
        for n in more.iter().flat_map(|f| &f.node) {
            nested.insert(called(n));
            calls_below(n, &mut nested);
        }
        if nested.len() == before {
            break;
        }
    }
    let gone: BTreeSet<String> = functions.keys().map(|k| k.0.clone()).filter(|d| !d.is_empty()).collect();
    p.functions = functions.into_iter().filter(|(k, _)| nested.contains(k)).map(|(_, f)| f).collect();
    let used: BTreeSet<String> =
        graph.node.iter().map(|n| domain(&n.domain)).chain(nested.into_iter().map(|k| k.0)).collect();
    p.opset_import.retain(|o| !gone.contains(&domain(&o.domain)) || used.contains(&domain(&o.domain)));
    p.graph = Some(graph);
    Ok(front::model(p, "the model")?)
}

/// Names of values and nodes that are taken, and how much may still be made.
struct Names {
    taken: BTreeSet<String>,
    /// The last number given to a hint.
    last: BTreeMap<String, usize>,
    nodes: usize,
    bytes: usize,
}

impl Names {
    fn of(g: &proto::GraphProto) -> Names {
        let mut taken = BTreeSet::new();
        collect(g, &mut taken);
        Names { taken, last: BTreeMap::new(), nodes: MOST_NODES, bytes: MOST_BYTES }
    }

    fn fresh(&mut self, hint: &str) -> String {
        self.bytes = self.bytes.saturating_sub(2 * hint.len());
        if !hint.is_empty() && self.taken.insert(hint.to_owned()) {
            return hint.to_owned();
        }
        let last = self.last.entry(hint.to_owned()).or_insert(1);
        loop {
            *last += 1;
            let name = format!("{hint}_{last}");
            if self.taken.insert(name.clone()) {
                return name;
            }
        }
    }

    /// Takes one node or call, and its bytes, off what may still be made; false if nothing is left.
    fn allow(&mut self, bytes: usize) -> bool {
        self.nodes = self.nodes.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
        self.nodes > 0 && self.bytes > 0
    }
}

fn collect(g: &proto::GraphProto, taken: &mut BTreeSet<String>) {
    taken.extend(g.input.iter().chain(&g.output).filter_map(|v| v.name.clone()));
    taken.extend(g.initializer.iter().filter_map(|t| t.name.clone()));
    taken.extend(g.sparse_initializer.iter().filter_map(|t| t.values.as_ref()?.name.clone()));
    for n in &g.node {
        taken.extend(n.output.iter().chain(&n.name).cloned());
        n.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs)).for_each(|b| collect(b, taken));
    }
}

/// Functions called in the nested graphs of a node.
fn calls_below(n: &proto::NodeProto, out: &mut BTreeSet<Key>) {
    for inner in n.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs)).flat_map(|g| &g.node) {
        out.insert(called(inner));
        calls_below(inner, out);
    }
}

fn check(f: &proto::FunctionProto, model: Option<i64>) -> Result<(), InlineError> {
    let (Some(has), Some(model)) = (standard(&f.opset_import), model) else { return Ok(()) };
    for n in f.node.iter().filter(|n| has != model && domain(&n.domain).is_empty()) {
        let op = text(&n.op_type);
        if ops::changed_between(&op, has, model) {
            return Err(InlineError::Opset { function: text(&f.name), op, has, model });
        }
    }
    Ok(())
}

/// Writes calls out.
struct Inliner<'a> {
    functions: &'a BTreeMap<Key, proto::FunctionProto>,
    names: &'a mut Names,
    out: &'a mut Vec<proto::NodeProto>,
}

/// A function and what its names and attributes stand for in one call.
struct Called<'a> {
    f: &'a proto::FunctionProto,
    /// Put before the names of its nodes and values.
    prefix: String,
    names: BTreeMap<String, String>,
    attributes: BTreeMap<&'a str, &'a proto::AttributeProto>,
}

impl Inliner<'_> {
    /// Appends a node, or what it calls.
    fn expand(&mut self, n: proto::NodeProto, depth: usize) -> Result<(), InlineError> {
        let Some(f) = self.functions.get(&called(&n)) else {
            self.out.push(n);
            return Ok(());
        };
        if depth > DEEPEST {
            return Err(InlineError::Recursive { function: text(&f.name) });
        }
        if !self.names.allow(0) {
            return Err(InlineError::TooMany { function: text(&f.name) });
        }
        for (what, given, has) in [("inputs", &n.input, &f.input), ("outputs", &n.output, &f.output)] {
            if given.len() > has.len() {
                let (node, function, given, has) = (named(&n), text(&f.name), given.len(), has.len());
                return Err(InlineError::TooManyGiven { node, function, what, given, has });
            }
        }
        let mut call = self.call(f, &n);
        self.hand_on(&mut call, &n);
        for inner in &f.node {
            if !self.names.allow(inner.encoded_len()) {
                return Err(InlineError::TooMany { function: text(&f.name) });
            }
            let inner = self.body_node(&call, inner.clone())?;
            self.expand(inner, depth + 1)?;
        }
        Ok(())
    }

    /// What the function's names become.
    fn call<'a>(&mut self, f: &'a proto::FunctionProto, n: &'a proto::NodeProto) -> Called<'a> {
        let mut names: BTreeMap<String, String> = BTreeMap::new();
        for (formal, given) in [(&f.input, &n.input), (&f.output, &n.output)] {
            for (i, name) in formal.iter().enumerate() {
                names.insert(name.clone(), given.get(i).cloned().unwrap_or_default());
            }
        }
        let prefix = named(n);
        // An output the caller leaves out may still be read inside.
        for name in f.node.iter().flat_map(|n| &n.output).chain(&f.output).filter(|s| !s.is_empty()) {
            if names.get(name).is_none_or(|s| s.is_empty()) {
                names.insert(name.clone(), self.names.fresh(&format!("{prefix}/{name}")));
            }
        }
        let given = f.attribute_proto.iter().chain(&n.attribute);
        let attributes = given.filter_map(|a| Some((a.name.as_deref()?, a))).collect();
        Called { f, prefix, names, attributes }
    }

    /// An input that the function hands on as its output has no node to make it.
    fn hand_on(&mut self, call: &mut Called<'_>, n: &proto::NodeProto) {
        for (formal, given) in call.f.output.iter().zip(&n.output) {
            if let Some(i) = call.f.input.iter().position(|x| x == formal).filter(|_| !given.is_empty()) {
                let from = n.input.get(i).cloned().unwrap_or_default();
                call.names.insert(formal.clone(), from.clone());
                self.out.push(proto::NodeProto {
                    name: Some(self.names.fresh(&format!("{}/{formal}", call.prefix))),
                    op_type: Some("Identity".into()),
                    input: vec![from],
                    output: vec![given.clone()],
                    ..Default::default()
                });
            }
        }
    }

    /// A node of the function's body under the names of the call.
    fn body_node(&mut self, call: &Called<'_>, mut n: proto::NodeProto) -> Result<proto::NodeProto, InlineError> {
        let rename = |s: &mut String| {
            if let Some(new) = call.names.get(s) {
                s.clone_from(new);
            }
        };
        n.input.iter_mut().for_each(rename);
        n.output.iter_mut().for_each(rename);
        n.name = Some(self.names.fresh(&format!("{}/{}", call.prefix, named(&n))));
        let mut attributes = Vec::with_capacity(n.attribute.len());
        for mut a in std::mem::take(&mut n.attribute) {
            if let Some(from) = a.ref_attr_name.clone().filter(|s| !s.is_empty()) {
                // Without a value the operator's own default holds.
                if let Some(v) = call.attributes.get(from.as_str()) {
                    attributes.push(proto::AttributeProto { name: a.name.clone(), ..(*v).clone() });
                }
                continue;
            }
            for body in a.g.iter_mut().chain(&mut a.graphs) {
                if let Some(attribute) = refers(body) {
                    return Err(InlineError::Nested { function: text(&call.f.name), attribute });
                }
                scope::rename_free(body, &call.names);
            }
            attributes.push(a);
        }
        n.attribute = attributes;
        Ok(n)
    }
}

/// A node's name, or its operator's where it has none.
fn named(n: &proto::NodeProto) -> String {
    match text(&n.name) {
        name if name.is_empty() => text(&n.op_type),
        name => name,
    }
}

/// An attribute of the function that a nested graph refers to.
fn refers(g: &proto::GraphProto) -> Option<String> {
    g.node.iter().flat_map(|n| &n.attribute).find_map(|a| {
        let own = a.ref_attr_name.clone().filter(|s| !s.is_empty());
        own.or_else(|| a.g.iter().chain(&a.graphs).find_map(refers))
    })
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::super::tests::{info, node, s};
    use super::*;
    use crate::ir::validate::validate;
    use crate::onnx::parse;
    use crate::text::{Elide, print_model};

    fn opset(domain: &str, version: i64) -> proto::OperatorSetIdProto {
        proto::OperatorSetIdProto { domain: s(domain).filter(|d| !d.is_empty()), version: Some(version) }
    }

    fn function(name: &str, input: &[&str], output: &[&str], nodes: Vec<proto::NodeProto>) -> proto::FunctionProto {
        let names = |v: &[&str]| v.iter().map(|x| (*x).to_owned()).collect();
        proto::FunctionProto {
            name: s(name),
            domain: s("own"),
            input: names(input),
            output: names(output),
            node: nodes,
            opset_import: vec![opset("", 17), opset("own", 1)],
            ..Default::default()
        }
    }

    fn call(name: &str, label: &str, input: &[&str], output: &[&str]) -> proto::NodeProto {
        proto::NodeProto { domain: s("own"), ..node(name, label, input, output) }
    }

    fn model(functions: Vec<proto::FunctionProto>, nodes: Vec<proto::NodeProto>) -> Model {
        let p = proto::ModelProto {
            ir_version: Some(8),
            opset_import: vec![opset("", 17), opset("own", 1)],
            functions,
            graph: Some(proto::GraphProto {
                name: s("g"),
                node: nodes,
                input: vec![info("x", &[2])],
                output: vec![proto::ValueInfoProto { name: s("y"), ..Default::default() }],
                ..Default::default()
            }),
            ..Default::default()
        };
        parse(p.encode_to_vec().into(), None, "test").expect("a model").model
    }

    /// The nodes of the model without its functions, as text.
    fn inlined(m: &Model) -> String {
        let m = inline_functions(m).expect("functions that can be written out");
        assert!(m.functions.is_empty() && m.opsets.iter().all(|o| o.domain != "own"));
        validate(&m).expect("a valid model");
        let text = print_model(&m, Elide::Full);
        text[text.find('{').expect("a body")..].trim().to_owned()
    }

    fn attribute(name: &str, f: Option<f32>, refers: Option<&str>) -> proto::AttributeProto {
        proto::AttributeProto {
            name: s(name),
            r#type: Some(proto::attribute_proto::AttributeType::Float as i32),
            f,
            ref_attr_name: refers.map(str::to_owned),
            ..Default::default()
        }
    }

    #[test]
    fn every_call_gets_values_of_its_own() {
        let twice = function(
            "Twice",
            &["v"],
            &["w"],
            vec![node("Neg", "", &["v"], &["h"]), node("Add", "sum", &["h", "v"], &["w"])],
        );
        let m = model(vec![twice], vec![call("Twice", "a", &["x"], &["h"]), call("Twice", "", &["h"], &["y"])]);
        let want = "{
   [\"a/Neg\"] \"a/h\" = Neg (x)
   [\"a/sum\"] h = Add (\"a/h\", x)
   [\"Twice/Neg\"] \"Twice/h\" = Neg (h)
   [\"Twice/sum\"] y = Add (\"Twice/h\", h)
}";
        assert_eq!(inlined(&m), want);
    }

    #[test]
    fn functions_call_functions_and_hand_attributes_on() {
        let inner = function(
            "Inner",
            &["v"],
            &["w"],
            vec![proto::NodeProto {
                attribute: vec![attribute("alpha", None, Some("slope"))],
                ..node("LeakyRelu", "leaky", &["v"], &["w"])
            }],
        );
        let outer = function(
            "Outer",
            &["v"],
            &["w"],
            vec![proto::NodeProto {
                attribute: vec![attribute("slope", None, Some("s"))],
                ..call("Inner", "in", &["v"], &["w"])
            }],
        );
        let given = |f| proto::NodeProto { attribute: f, ..call("Outer", "o", &["x"], &["y"]) };
        let with = model(vec![inner.clone(), outer.clone()], vec![given(vec![attribute("s", Some(0.5), None)])]);
        assert_eq!(inlined(&with), "{\n   [\"o/in/leaky\"] y = LeakyRelu <alpha = 0.5> (x)\n}");
        // Nobody gives one: the operator's own default holds.
        let without = model(vec![inner, outer], vec![given(vec![])]);
        assert_eq!(inlined(&without), "{\n   [\"o/in/leaky\"] y = LeakyRelu (x)\n}");
    }

    #[test]
    fn inputs_may_be_left_out_or_handed_on() {
        let clip =
            function("Bound", &["v", "low", "high"], &["w"], vec![node("Clip", "c", &["v", "low", "high"], &["w"])]);
        let m = model(vec![clip], vec![call("Bound", "b", &["x", "", "x"], &["y"])]);
        assert_eq!(inlined(&m), "{\n   [\"b/c\"] y = Clip (x, \"\", x)\n}");
        let same = function("Same", &["v"], &["v"], vec![]);
        let m = model(vec![same], vec![call("Same", "i", &["x"], &["y"])]);
        assert_eq!(inlined(&m), "{\n   [\"i/v\"] y = Identity (x)\n}");
    }

    #[test]
    fn functions_that_double_are_refused_before_they_fill_the_memory() {
        // The last one holds a node, or nothing at all: calls count too.
        for leaf in [vec![node("Neg", "", &["v"], &["w"])], vec![]] {
            let mut functions = vec![function("F0", &["v"], &["w"], leaf)];
            for i in 1..40 {
                let inner = format!("F{}", i - 1);
                let calls = vec![call(&inner, "", &["v"], &["h"]), call(&inner, "", &["h"], &["w"])];
                functions.push(function(&format!("F{i}"), &["v"], &["w"], calls));
            }
            let m = model(functions, vec![call("F39", "f", &["x"], &["y"])]);
            let e = inline_functions(&m).expect_err("too many").to_string();
            assert!(e.contains("200000 nodes"), "{e}");
        }
    }

    #[test]
    fn calls_that_runtimes_read_differently_are_refused() {
        let refused =
            |functions, calls| inline_functions(&model(functions, calls)).expect_err("no one reading").to_string();
        let one = || function("F", &["v"], &["w"], vec![node("Neg", "", &["v"], &["w"])]);
        let mut relu = function("Relu", &["v"], &["w"], vec![node("Neg", "", &["v"], &["w"])]);
        relu.domain = s("");
        let e = refused(vec![relu], vec![node("Relu", "", &["x"], &["y"])]);
        assert!(e.contains("`Relu`") && e.contains("standard operator"), "{e}");
        let e = refused(vec![one(), one()], vec![call("F", "", &["x"], &["y"])]);
        assert!(e.contains("`F` is defined twice"), "{e}");
        let e = refused(vec![one()], vec![call("F", "f", &["x", "x"], &["y"])]);
        assert!(e.contains("node `f`") && e.contains("2 inputs, which has 1"), "{e}");
    }

    #[test]
    fn what_can_not_be_written_out_is_refused() {
        let refused =
            |f| inline_functions(&model(vec![f], vec![call("F", "f", &["x"], &["y"])])).expect_err("no").to_string();
        let again = function("F", &["v"], &["w"], vec![call("F", "", &["v"], &["w"])]);
        assert!(refused(again).contains("function `F` calls itself"));
        let mut old = function("F", &["v"], &["w"], vec![node("Softmax", "", &["v"], &["w"])]);
        old.opset_import[0].version = Some(12);
        assert!(refused(old.clone()).contains("function `F` is written in opset 12 and its Softmax"));
        // An operator that has not changed since is the same in both.
        old.node[0].op_type = s("Sign");
        old.opset_import[0].version = Some(13);
        assert!(inline_functions(&model(vec![old], vec![call("F", "f", &["x"], &["y"])])).is_ok());
    }
}
