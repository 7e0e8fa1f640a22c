//! Nested graphs, opened for a rewrite and closed again.

use std::collections::BTreeSet;

use bytes::Bytes;
use prost::Message;

use super::attr::body;
use super::{back, front, proto, scope};
use crate::ir::{AttrValue, Attrs, Graph, Invalid, Model, Node, TensorType, ValueId, validate};

/// What the bodies of a node become when each is handed to `change` as a model of its own: the attributes that hold them,
/// by name. The node itself is not touched.
///
/// In such a model the outer values that the body reads are inputs, of the types that `known` tells. The operator sets
/// are the outer model's before `change`.
///
/// # Errors
/// What `change` says, or that a body would no longer read the same outer values in the same order: a node finds them by
/// their place.
pub fn map_bodies(
    m: &Model,
    node: &Node,
    known: &dyn Fn(ValueId) -> Option<TensorType>,
    change: &mut dyn FnMut(&mut Model) -> Result<(), String>,
) -> Result<Vec<(String, AttrValue)>, String> {
    let outer = free(&node.attrs);
    let mut one = |encoded: &Bytes, attr: &str| -> Result<Bytes, String> {
        let (mut graph, names) = open(encoded, attr)?;
        for name in &names {
            let from = outer.iter().zip(&node.captures).find(|(n, _)| *n == name).and_then(|(_, v)| known(*v));
            if let (Some(ty), Some(v)) = (from, graph.find(name)) {
                graph.value_mut(v).ty = Some(ty);
            }
        }
        let mut inner = Model { graph, opsets: m.opsets.clone(), ir_version: m.ir_version, ..Model::default() };
        change(&mut inner).map_err(|e| format!("{e} (in {attr})"))?;
        Ok(close(&inner.graph, &names))
    };
    let mut new = Attrs::new();
    for a in &node.attrs.0 {
        let value = match &a.value {
            AttrValue::Graph(b) => AttrValue::Graph(one(b, &a.name)?),
            AttrValue::Graphs(all) => AttrValue::Graphs(all.iter().map(|b| one(b, &a.name)).collect::<Result<_, _>>()?),
            _ => continue,
        };
        new.set(&a.name, value);
    }
    if free(&new) != outer {
        return Err("its nested graphs would read other values of the graph around them".to_owned());
    }
    Ok(new.0.into_iter().map(|a| (a.name, a.value)).collect())
}

/// One body of a node as a graph of its own. What it reads from outside is among its inputs; the list pairs each such
/// input with the outer value.
///
/// # Errors
/// If the node has no such body, or it is malformed.
pub fn open_body(node: &Node, attr: &str) -> Result<(Graph, Vec<(ValueId, ValueId)>), String> {
    let Some(AttrValue::Graph(b)) = node.attrs.get(attr) else { return Err(format!("it has no {attr}")) };
    let (graph, names) = open(b, attr)?;
    let outer = free(&node.attrs);
    let pair = |name: &String| {
        let at = outer.iter().position(|o| o == name)?;
        Some((graph.find(name)?, *node.captures.get(at)?))
    };
    let pairs: Option<Vec<_>> = names.iter().map(pair).collect();
    let pairs = pairs.ok_or_else(|| format!("what {attr} reads from outside is not known"))?;
    Ok((graph, pairs))
}

/// The nested graphs of an attribute.
fn encoded(value: &AttrValue) -> &[Bytes] {
    match value {
        AttrValue::Graph(b) => std::slice::from_ref(b),
        AttrValue::Graphs(all) => all,
        _ => &[],
    }
}

/// Names that nested graphs define, at any depth.
pub fn names_in_bodies(m: &Model) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let attrs = m.graph.nodes().flat_map(|(_, n)| &n.attrs.0);
    attrs.flat_map(|a| encoded(&a.value)).for_each(|b| scope::all_defined(&body(b), &mut names));
    names
}

/// Checks the operators, attributes and element types in all nested graphs, at any depth. Validation does not open them.
///
/// # Errors
/// The node whose body breaks rules, and these.
pub(super) fn check_bodies(m: &Model) -> Result<(), (String, Invalid)> {
    for (_, n) in m.graph.nodes().filter(|(_, n)| n.has_subgraph()) {
        let outer = free(&n.attrs);
        let known = |name: &String| {
            let v = *n.captures.get(outer.iter().position(|o| o == name)?)?;
            let told = m.graph.value(v).ty.clone();
            told.or_else(|| m.graph.constant(v).map(|t| TensorType { dtype: t.dtype, shape: None }))
        };
        for a in &n.attrs.0 {
            for b in encoded(&a.value) {
                // What cannot be opened says nothing of its nodes.
                let Ok((mut graph, names)) = open(b, &a.name) else { continue };
                for name in &names {
                    if let (Some(ty), Some(v)) = (known(name), graph.find(name)) {
                        graph.value_mut(v).ty = Some(ty);
                    }
                }
                let (opsets, functions) = (m.opsets.clone(), m.functions.clone());
                let inner = Model { graph, opsets, functions, ir_version: m.ir_version, ..Model::default() };
                let name = || if n.name.is_empty() { n.op.to_string() } else { n.name.clone() };
                validate::operators(&inner).map_err(|e| (name(), e))?;
                check_bodies(&inner)?;
            }
        }
    }
    Ok(())
}

/// A body, and the names it reads from outside, which are put among its inputs.
fn open(encoded: &Bytes, attr: &str) -> Result<(Graph, Vec<String>), String> {
    let mut p = body(encoded);
    let mut names = Vec::new();
    scope::free_names(&p, &mut names);
    p.input.extend(names.iter().map(|n| proto::ValueInfoProto { name: Some(n.clone()), ..Default::default() }));
    Ok((front::body(p, attr).map_err(|e| e.to_string())?, names))
}

/// Names that the bodies among the attributes read from outside, in the order of a node's captures.
fn free(attrs: &Attrs) -> Vec<String> {
    let mut names = Vec::new();
    let all = attrs.0.iter().flat_map(|a| encoded(&a.value));
    all.for_each(|b| scope::free_names(&body(b), &mut names));
    names
}

fn close(g: &Graph, outer: &[String]) -> Bytes {
    let mut p = back::graph(g);
    p.input.retain(|i| i.name.as_ref().is_none_or(|n| !outer.contains(n)));
    p.encode_to_vec().into()
}

#[cfg(test)]
mod tests {
    use super::super::proto::attribute_proto::AttributeType as Kind;
    use super::super::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, ValueInfoProto};
    use super::super::tests::{info, node, s};
    use super::*;
    use crate::ir::Tensor;
    use crate::ir::validate::validate;
    use crate::onnx::{encode, parse};
    use crate::passes::Pass;
    use crate::passes::constant_branches::ConstantBranches;
    use crate::passes::raise_opset::RaiseOpset;
    use crate::rewrite::Patch;
    use crate::text::{Elide, print_model};

    fn ints(name: &str, v: &[i64]) -> AttributeProto {
        AttributeProto { name: s(name), r#type: Some(Kind::Ints as i32), ints: v.to_vec(), ..Default::default() }
    }

    fn int(name: &str, v: i64) -> AttributeProto {
        AttributeProto { name: s(name), r#type: Some(Kind::Int as i32), i: Some(v), ..Default::default() }
    }

    fn with(n: NodeProto, attribute: Vec<AttributeProto>) -> NodeProto {
        NodeProto { attribute, ..n }
    }

    /// A body without inputs whose output is what its last node makes.
    fn branch(nodes: Vec<NodeProto>) -> GraphProto {
        let name = nodes.last().map(|n| n.output[0].clone());
        GraphProto {
            name: s("b"),
            node: nodes,
            output: name.into_iter().map(|n| ValueInfoProto { name: Some(n), ..Default::default() }).collect(),
            ..Default::default()
        }
    }

    fn choose(out: &str, then: GraphProto, other: GraphProto) -> NodeProto {
        let graph = |name: &str, g| AttributeProto {
            name: s(name),
            r#type: Some(Kind::Graph as i32),
            g: Some(g),
            ..Default::default()
        };
        with(node("If", "choice", &["c"], &[out]), vec![graph("then_branch", then), graph("else_branch", other)])
    }

    fn model(opset: i64, nodes: Vec<NodeProto>) -> Model {
        let last = nodes.iter().find(|n| n.op_type == s("If")).map(|n| n.output[0].clone());
        let mut c = info("c", &[]);
        c.r#type.as_mut().and_then(|t| t.tensor_type.as_mut()).expect("a tensor").elem_type = Some(9);
        let p = ModelProto {
            ir_version: Some(6),
            opset_import: vec![OperatorSetIdProto { domain: None, version: Some(opset) }],
            graph: Some(GraphProto {
                name: s("g"),
                node: nodes,
                input: vec![c, info("x", &[2, 3, 4])],
                output: vec![ValueInfoProto { name: last, ..Default::default() }],
                ..Default::default()
            }),
            ..Default::default()
        };
        parse(p.encode_to_vec().into(), None, "test").expect("a model").model
    }

    /// The bodies of the model's `If`, after a way through a file.
    fn bodies(m: &Model) -> Vec<GraphProto> {
        let bytes = encode(validate(m).expect("a valid model"));
        parse(bytes.clone().into(), None, "test").expect("what was written reads again");
        let p = ModelProto::decode(&bytes[..]).expect("a model");
        let n = p.graph.expect("a graph").node.into_iter().find(|n| n.op_type == s("If")).expect("an If");
        n.attribute.into_iter().filter_map(|a| a.g).collect()
    }

    fn ops(g: &GraphProto) -> Vec<&str> {
        g.node.iter().map(|n| n.op_type.as_deref().unwrap_or("")).collect()
    }

    #[test]
    fn bodies_are_raised_with_their_model() {
        let sum = |x: &str, y: &str| with(node("ReduceSum", "", &[x], &[y]), vec![ints("axes", &[1])]);
        // The second body knows the rank of x from outside, and so that its softmax runs over two axes.
        let soft = with(node("Softmax", "", &["x"], &["s"]), vec![int("axis", 1)]);
        let mut m = model(11, vec![choose("y", branch(vec![sum("x", "t")]), branch(vec![soft, sum("s", "e")]))]);
        RaiseOpset::To(17).run_on(&mut m).expect("everything has a conversion");
        assert_eq!(m.opset(), 17);
        let b = bodies(&m);
        assert_eq!(b[0].node[0].input, ["x", "t_axes"]);
        assert!(b[0].node[0].attribute.is_empty());
        assert_eq!(b[0].initializer.iter().map(|t| t.name.as_deref()).collect::<Vec<_>>(), [Some("t_axes")]);
        assert_eq!(ops(&b[1]), ["Flatten", "Softmax", "Shape", "Reshape", "ReduceSum"]);
        // What they read from outside is theirs no more than before.
        assert!(b.iter().all(|b| b.input.is_empty()));
        let n = m.graph.nodes().next().expect("the If").1;
        assert_eq!(n.captures.iter().map(|v| m.graph.name_of(*v)).collect::<Vec<_>>(), ["x"]);
    }

    #[test]
    fn a_body_in_a_body_is_raised_as_well() {
        let squeeze = with(node("Unsqueeze", "", &["x"], &["i"]), vec![ints("axes", &[0])]);
        let inner = choose("t", branch(vec![squeeze]), branch(vec![node("Identity", "", &["x"], &["j"])]));
        let mut m = model(12, vec![choose("y", branch(vec![inner]), branch(vec![node("Neg", "", &["x"], &["e"])]))]);
        RaiseOpset::To(13).run_on(&mut m).expect("everything has a conversion");
        let deep = bodies(&m)[0].node[0].attribute[0].g.clone().expect("the inner body");
        assert_eq!(deep.node[0].input, ["x", "i_axes"]);
    }

    #[test]
    fn a_body_that_can_not_be_raised_keeps_the_whole_model() {
        let pool =
            with(node("AveragePool", "pool", &["x"], &["t"]), vec![ints("kernel_shape", &[2]), int("ceil_mode", 1)]);
        let sum = with(node("ReduceMean", "", &["x"], &["e"]), vec![ints("axes", &[1])]);
        let mut m = model(17, vec![choose("y", branch(vec![sum]), branch(vec![pool]))]);
        let before = bodies(&m);
        let e = RaiseOpset::To(19).run_on(&mut m).expect_err("AveragePool means another thing").to_string();
        assert!(
            e.contains("If `choice`: AveragePool `pool`: opset 19 counts") && e.contains("(in else_branch)"),
            "{e}"
        );
        assert_eq!((m.opset(), bodies(&m)), (17, before));
    }

    #[test]
    fn what_a_body_reads_is_not_made_in_another_way() {
        let soft = with(node("Softmax", "soft", &["x"], &["s"]), vec![int("axis", 1)]);
        let read = |out: &str| branch(vec![node("Neg", "", &["s"], &[out])]);
        let mut m = model(11, vec![soft, choose("y", read("t"), read("e"))]);
        let e = RaiseOpset::To(17).run_on(&mut m).expect_err("s would be another value");
        assert!(
            matches!(e, crate::passes::PassError::Failed { .. }) && e.to_string().contains("Softmax `soft`"),
            "{e}"
        );
    }

    #[test]
    fn a_change_of_what_a_body_reads_is_refused() {
        let m = model(17, vec![choose("y", branch(vec![node("Add", "", &["x", "c"], &["t"])]), branch(vec![]))]);
        let n = m.graph.nodes().next().expect("the If").1;
        let swap = |to: &'static str| {
            map_bodies(&m, n, &|_| None, &mut |inner| {
                let (Some(v), Some((add, _))) = (inner.graph.find(to), inner.graph.nodes().next()) else {
                    return Ok(());
                };
                let mut p = Patch::new("test");
                p.set_input(add, 0, Some(v.into()));
                p.commit(inner).map(|_| ()).map_err(|e| e.to_string())
            })
        };
        assert!(swap("x").is_ok());
        assert!(swap("c").is_err_and(|e| e.contains("would read other values")));
    }

    /// The model with a condition of its own that is constant.
    fn decided(taken: bool, outs: &[&str], then: GraphProto, other: GraphProto) -> Model {
        let mut n = choose("y", then, other);
        n.input = vec!["k".to_owned()];
        n.output = outs.iter().map(|s| (*s).to_owned()).collect();
        let mut m = model(17, vec![node("Constant", "", &[], &["k"]), n, node("Relu", "", &["x"], &["t"])]);
        let k = m.graph.producer(m.graph.find("k").expect("k")).expect("a Constant");
        m.graph.node_mut(k).attrs.set("value", AttrValue::Tensor(Tensor::bool(&[], &[taken])));
        m
    }

    fn without_branches(mut m: Model) -> (usize, String) {
        let changes = ConstantBranches.run_on(&mut m).expect("no patch fails").changes;
        validate(&m).expect("a valid model");
        (changes, print_model(&m, Elide::Full))
    }

    fn passed_on(name: &str) -> GraphProto {
        GraphProto { output: vec![ValueInfoProto { name: s(name), ..Default::default() }], ..Default::default() }
    }

    #[test]
    fn a_decided_branch_stands_where_its_if_stood() {
        // `t` and `w` are names of the outer graph or of the other branch as well.
        let then = || {
            let mut b = branch(vec![node("Add", "", &["x", "w"], &["t"]), node("Neg", "", &["t"], &["u"])]);
            b.initializer = vec![super::super::tensor::tensor_proto(&Tensor::f32(&[1], &[3.0]))];
            b.initializer[0].name = s("w");
            b
        };
        let other = || branch(vec![node("Abs", "", &["x"], &["w"])]);
        let (changes, text) = without_branches(decided(true, &["y"], then(), other()));
        assert_eq!(changes, 1);
        assert!(!text.contains("If") && text.contains("w = {3.0}"), "{text}");
        assert!(text.contains("t_2 = Add (x, w)") && text.contains("y = Neg (t_2)"), "{text}");
        let (_, text) = without_branches(decided(false, &["y"], then(), other()));
        assert!(text.contains("y = Abs (x)") && !text.contains("Neg"), "{text}");
    }

    #[test]
    fn a_branch_may_hand_an_outer_value_on() {
        let (changes, text) = without_branches(decided(true, &["y"], passed_on("x"), passed_on("x")));
        assert!(changes == 1 && text.contains("y = Identity (x)"), "{text}");
    }

    #[test]
    fn ifs_that_are_not_decided_stay() {
        let neg = |y: &str| branch(vec![node("Neg", "", &["x"], &[y])]);
        let open = model(17, vec![choose("y", neg("t"), neg("e"))]);
        assert_eq!(without_branches(open).0, 0);
        // The other branch is none of its concern.
        let deep = branch(vec![choose("i", neg("t"), neg("e"))]);
        assert_eq!(without_branches(decided(false, &["y"], deep, neg("e"))).0, 1);
    }

    #[test]
    fn an_if_in_a_decided_branch_reads_what_it_read() {
        // `t` is another value of the outer graph, and `t_2` one of the inner branch.
        let inner = |y: &str| branch(vec![node("Abs", "", &["t"], &["t_2"]), node("Add", "", &["t_2", "x"], &[y])]);
        let deep = || {
            let mut n = choose("i", inner("a"), passed_on("t"));
            n.name = s("inner");
            branch(vec![node("Neg", "", &["x"], &["t"]), n])
        };
        let mut m = decided(true, &["y"], deep(), passed_on("x"));
        assert_eq!(ConstantBranches.run_on(&mut m).expect("no patch fails").changes, 1);
        let (_, n) = m.graph.nodes().find(|(_, n)| n.op.is("If")).expect("the inner If");
        let read: Vec<&str> = n.captures.iter().map(|v| m.graph.name_of(*v)).collect();
        assert_eq!(read, ["t_2", "x"]);
        assert_eq!(m.graph.producer(n.captures[0]).map(|n| m.graph.node(n).op.name.as_str()), Some("Neg"));
        let b = bodies(&m);
        assert_eq!(
            (&b[0].node[0].input[..], &b[0].node[0].output[..]),
            (&["t_2".to_owned()][..], &["t_2_inner".to_owned()][..])
        );
        assert_eq!(b[0].node[1].input, ["t_2_inner", "x"]);
        assert_eq!(b[1].output[0].name, s("t_2"));
    }

    #[test]
    fn a_nested_graph_that_reads_what_an_if_made_goes_on_reading_it() {
        let neg = |y: &str| branch(vec![node("Neg", "", &["x"], &[y])]);
        let m = decided(true, &["h"], neg("t"), neg("e"));
        let mut p = back::model(&m);
        let g = p.graph.as_mut().expect("a graph");
        g.node.push(choose("y", branch(vec![node("Abs", "", &["h"], &["a"])]), neg("e")));
        g.output[0].name = s("y");
        let mut m = parse(p.encode_to_vec().into(), None, "test").expect("a model").model;
        assert_eq!(ConstantBranches.run_on(&mut m).expect("no patch fails").changes, 1);
        validate(&m).expect("a valid model");
        let h = m.graph.find("h").expect("the name that the body reads");
        let made = m.graph.node(m.graph.producer(h).expect("an Identity"));
        assert!(made.op.is("Identity"));
        assert_eq!(m.graph.producer(made.input(0).expect("x")).map(|n| m.graph.node(n).op.is("Neg")), Some(true));
        assert_eq!(bodies(&m)[0].node[0].input, ["h"]);
    }
}
