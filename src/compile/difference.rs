//! What two models differ in: operator sets, inputs and outputs, nodes, initializers, types.
//!
//! Values have names, and a name stands for the same value in both. A node is known by the first value it makes, so that
//! neither the order of nodes nor their own names matter.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::ir::show::{node_line, type_text};
use crate::ir::{AttrValue, Graph, Model, Node, NodeId, Tensor, ValueId};

/// Version of the JSON form.
const VERSION: u32 = 1;

/// What two models differ in; everything is empty if they are the same.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Difference {
    pub version: u32,
    /// Operator sets by domain.
    pub opsets: Vec<Change>,
    pub inputs: Vec<Change>,
    pub outputs: Vec<Change>,
    /// Operators of which there are more in one than in the other, with their number.
    pub operators: Vec<Change>,
    /// By the first value that a node makes.
    pub nodes: Vec<Change>,
    pub initializers: Vec<Change>,
    /// Types of values between input and output that both have.
    pub types: Vec<Change>,
    /// How many things there are in both to compare.
    pub compared: Extent,
}

/// How much there was to compare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Extent {
    pub nodes: [usize; 2],
    pub initializers: [usize; 2],
}

/// One thing that differs; `None` is not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    pub name: String,
    pub a: Option<String>,
    pub b: Option<String>,
}

impl Difference {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.sections().iter().all(|(_, c)| c.is_empty())
    }

    /// The kinds of differences with their names.
    pub fn sections(&self) -> [(&'static str, &[Change]); 7] {
        [
            ("operator sets", &self.opsets),
            ("inputs", &self.inputs),
            ("outputs", &self.outputs),
            ("operators", &self.operators),
            ("nodes", &self.nodes),
            ("initializers", &self.initializers),
            ("types", &self.types),
        ]
    }
}

/// Compares two models.
pub fn difference(a: &Model, b: &Model) -> Difference {
    let (g, h) = (&a.graph, &b.graph);
    let opsets = |m: &Model| m.opsets.iter().map(|o| (named_domain(&o.domain), o.version.to_string())).collect();
    let counts = |g: &Graph| {
        let mut all: BTreeMap<String, usize> = BTreeMap::new();
        g.nodes().for_each(|(_, n)| *all.entry(n.op.to_string()).or_default() += 1);
        all.into_iter().map(|(k, n)| (k, n.to_string())).collect()
    };
    let ports = |g: &Graph, of: &[ValueId]| of.iter().map(|v| (g.name_of(*v).to_owned(), type_of(g, *v))).collect();
    Difference {
        version: VERSION,
        opsets: changes(opsets(a), opsets(b)),
        inputs: changes(ports(g, g.inputs()), ports(h, h.inputs())),
        outputs: changes(ports(g, g.outputs()), ports(h, h.outputs())),
        operators: changes(counts(g), counts(h)),
        nodes: nodes(g, h),
        initializers: initializers(g, h),
        types: types(g, h),
        compared: Extent {
            nodes: [g.node_count(), h.node_count()],
            initializers: [g.initializers().len(), h.initializers().len()],
        },
    }
}

fn named_domain(d: &str) -> String {
    if d.is_empty() { "ai.onnx".to_owned() } else { d.to_owned() }
}

fn type_of(g: &Graph, v: ValueId) -> String {
    g.value(v).ty.as_ref().map_or_else(|| "no type".to_owned(), type_text)
}

/// Entries that are not the same in both.
fn changes(a: BTreeMap<String, String>, b: BTreeMap<String, String>) -> Vec<Change> {
    let mut names: Vec<&String> = a.keys().chain(b.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let differ = |n: &&String| a.get(*n) != b.get(*n);
    let row = |n: &String| Change { name: n.clone(), a: a.get(n).cloned(), b: b.get(n).cloned() };
    names.into_iter().filter(differ).map(row).collect()
}

fn by_value(g: &Graph) -> BTreeMap<&str, NodeId> {
    g.nodes().filter_map(|(id, n)| Some((g.name_of(n.outputs.iter().flatten().next().copied()?), id))).collect()
}

fn nodes(g: &Graph, h: &Graph) -> Vec<Change> {
    let (a, b) = (by_value(g), by_value(h));
    let mut out = Vec::new();
    // In the order of the first model, then what only the second has.
    for id in g.schedule() {
        let Some(name) = g.node(id).outputs.iter().flatten().next().map(|v| g.name_of(*v)) else { continue };
        let line = || Some(node_line(g, id));
        match b.get(name) {
            None => out.push(Change { name: name.to_owned(), a: line(), b: None }),
            Some(other) if !same_node((g, id), (h, *other)) => {
                out.push(Change { name: name.to_owned(), a: line(), b: Some(node_line(h, *other)) });
            }
            Some(_) => {}
        }
    }
    for id in h.schedule() {
        let Some(name) = h.node(id).outputs.iter().flatten().next().map(|v| h.name_of(*v)) else { continue };
        if !a.contains_key(name) {
            out.push(Change { name: name.to_owned(), a: None, b: Some(node_line(h, id)) });
        }
    }
    out
}

fn same_node((g, a): (&Graph, NodeId), (h, b): (&Graph, NodeId)) -> bool {
    let (a, b) = (g.node(a), h.node(b));
    let names =
        |g: &Graph, v: &[Option<ValueId>]| v.iter().map(|v| v.map(|v| g.name_of(v).to_owned())).collect::<Vec<_>>();
    fn attrs(n: &Node) -> BTreeMap<&str, &AttrValue> {
        n.attrs.0.iter().map(|a| (a.name.as_str(), &a.value)).collect()
    }
    a.op == b.op
        && names(g, &a.inputs) == names(h, &b.inputs)
        && names(g, &a.outputs) == names(h, &b.outputs)
        && attrs(a) == attrs(b)
}

fn initializers(g: &Graph, h: &Graph) -> Vec<Change> {
    let all = |g: &Graph| g.initializers().iter().map(|v| (g.name_of(*v).to_owned(), *v)).collect::<BTreeMap<_, _>>();
    let (a, b) = (all(g), all(h));
    let mut names: Vec<&String> = a.keys().chain(b.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let row = |n: &String| {
        let (x, y) = (a.get(n).and_then(|v| g.try_init(*v)), b.get(n).and_then(|v| h.try_init(*v)));
        match (x, y) {
            (Some(x), Some(y)) if x.dtype == y.dtype && x.dims == y.dims => {
                let moved = apart(x, y)?;
                Some(Change { name: n.clone(), a: Some(described(x)), b: Some(format!("{}, {moved}", described(y))) })
            }
            _ => Some(Change { name: n.clone(), a: x.map(described), b: y.map(described) }),
        }
    };
    names.into_iter().filter_map(row).collect()
}

fn described(t: &Tensor) -> String {
    format!("{}[{}]", t.dtype, t.dims.iter().map(i64::to_string).collect::<Vec<_>>().join(","))
}

/// How far the elements of two tensors of one type and shape are apart; `None` if they are the same.
fn apart(x: &Tensor, y: &Tensor) -> Option<String> {
    if x.to_le_bytes() == y.to_le_bytes() {
        return None;
    }
    let numbers = |t: &Tensor| -> Option<Vec<f64>> {
        let floats = t.to_f32s().map(|v| v.iter().map(|x| f64::from(*x)).collect());
        floats.or_else(|| t.to_i64s().map(|v| v.into_iter().map(|x| x as f64).collect()))
    };
    let (Some(x), Some(y)) = (numbers(x), numbers(y)) else { return Some("other elements".to_owned()) };
    let n = x.iter().zip(&y).filter(|(a, b)| a != b && !(a.is_nan() && b.is_nan())).count();
    let most = x.iter().zip(&y).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    Some(format!("{n} of {} elements differ, by {most:.3e} at most", x.len()))
}

fn types(g: &Graph, h: &Graph) -> Vec<Change> {
    let inner = |g: &Graph| -> BTreeMap<String, String> {
        let outer = |v: ValueId| g.inputs().contains(&v) || g.outputs().contains(&v) || g.try_init(v).is_some();
        g.values()
            .filter(|(id, v)| v.ty.is_some() && !outer(*id))
            .map(|(id, v)| (v.name.clone(), type_of(g, id)))
            .collect()
    };
    let (a, b) = (inner(g), inner(h));
    changes(a, b).into_iter().filter(|c| c.a.is_some() && c.b.is_some()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::parse_model;

    fn model(body: &str) -> Model {
        let head = "<ir_version: 8, opset_import: [\"\" : 17]>";
        parse_model(&format!(
            "{head}\ng (float[n,2] x) => (float[n,2] y) <float[2,2] w = {{1.0, 2.0, 3.0, 4.0}}> {{ {body} }}"
        ))
        .unwrap()
    }

    #[test]
    fn the_same_models_do_not_differ() {
        let a = model("h = MatMul (x, w) y = Relu (h)");
        assert!(difference(&a, &a.clone()).is_empty());
    }

    #[test]
    fn each_kind_is_told() {
        let a = model("h = MatMul (x, w) y = Relu (h)");
        let b = model("h = MatMul (x, w) k = Sigmoid (h) y = LeakyRelu <alpha = 0.5> (k)");
        let d = difference(&a, &b);
        let names = |c: &[Change]| c.iter().map(|c| c.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&d.operators), ["LeakyRelu", "Relu", "Sigmoid"]);
        assert_eq!(names(&d.nodes), ["y", "k"]);
        assert!(d.nodes[0].a.as_ref().is_some_and(|t| t.contains("Relu")) && d.nodes[1].a.is_none());
        assert!(d.initializers.is_empty() && d.inputs.is_empty() && d.opsets.is_empty());
        let c = model("h = LeakyRelu <alpha = 0.5> (x) y = MatMul (h, w)");
        let e = model("h = LeakyRelu <alpha = 0.25> (x) y = MatMul (h, w)");
        assert_eq!(names(&difference(&c, &e).nodes), ["h"], "an attribute");
        let w = parse_model(
            "<ir_version: 8, opset_import: [\"\" : 18]>\ng (float[m,2] x) => (float[n,2] y) <float[2,2] w = {1.0, 2.0, 3.5, 4.0}> { h = MatMul (x, w) y = Relu (h) }",
        )
        .unwrap();
        let d = difference(&a, &w);
        assert_eq!(
            (names(&d.opsets), names(&d.inputs), names(&d.initializers)),
            (vec!["ai.onnx".into()], vec!["x".into()], vec!["w".into()])
        );
        assert!(
            d.initializers[0].b.as_ref().is_some_and(|t| t.contains("1 of 4 elements differ, by 5.000e-1")),
            "{d:?}"
        );
    }
}
