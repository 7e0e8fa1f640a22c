//! Back end: a model becomes a message again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::attr::attr_proto;
use super::tensor::{declaration, put_str, rest, tensor_proto};
use super::{proto, scope};
use crate::ir::{Def, Graph, Model, Node, NodeId, Opset, Origin, ValueId};

/// The message of a model. Weights are handles to the model's own bytes.
pub(super) fn model(m: &Model) -> proto::ModelProto {
    let mut p: proto::ModelProto = rest(&m.rider);
    if m.ir_version != 0 {
        p.ir_version = Some(m.ir_version);
    }
    let kept = std::mem::take(&mut p.opset_import);
    p.opset_import = m.opsets.iter().enumerate().map(|(i, o)| opset(o, i, &kept)).collect();
    p.graph = Some(graph(&m.graph));
    p
}

fn opset(o: &Opset, i: usize, kept: &[proto::OperatorSetIdProto]) -> proto::OperatorSetIdProto {
    let same = |k: &&proto::OperatorSetIdProto| k.domain.as_deref().unwrap_or("") == o.domain;
    let was = kept.get(i).filter(same).or_else(|| kept.iter().find(same));
    let mut p = was.cloned().unwrap_or_default();
    put_str(&mut p.domain, &o.domain);
    if o.version != p.version.unwrap_or(0) || was.is_none() {
        p.version = Some(o.version);
    }
    p
}

/// The message of a graph.
pub(super) fn graph(g: &Graph) -> proto::GraphProto {
    let mut p: proto::GraphProto = rest(&g.rider);
    put_str(&mut p.name, &g.name);
    p.node = g.schedule().into_iter().map(|id| node(g, g.node(id))).collect();
    name_apart(g, &mut p.node);
    p.initializer = g.initializers().iter().filter_map(|v| initializer(g, *v)).collect();
    p.input = g.inputs().iter().map(|v| declared(g, *v)).collect();
    p.output = with_kept(g, g.outputs(), std::mem::take(&mut p.output));
    p.value_info = with_kept(g, g.declared(), std::mem::take(&mut p.value_info));
    p
}

/// Nodes of a rewrite are called like what they make, and some exporters call theirs so too. onnxruntime refuses a file in
/// which two nodes have one name: the file's own keep theirs, the others get a number.
fn name_apart(g: &Graph, nodes: &mut [proto::NodeProto]) {
    let order = g.schedule();
    let imported = |id: &NodeId| g.node(*id).origin == Origin::Imported;
    let mut taken: BTreeSet<String> =
        order.iter().filter(|id| imported(id)).map(|id| g.node(*id).name.clone()).collect();
    for (id, p) in order.iter().zip(nodes) {
        let Some(name) = p.name.clone().filter(|s| !s.is_empty() && !imported(id)) else { continue };
        let mut own = name.clone();
        let mut i = 1;
        while !taken.insert(own.clone()) {
            i += 1;
            own = format!("{name}_{i}");
        }
        p.name = Some(own);
    }
}

fn declared(g: &Graph, v: ValueId) -> proto::ValueInfoProto {
    let x = g.value(v);
    declaration(&x.name, x.ty.as_ref(), &x.rider)
}

/// Declarations of values; where the file's words differed from the value's own declaration, they were kept.
fn with_kept(g: &Graph, values: &[ValueId], kept: Vec<proto::ValueInfoProto>) -> Vec<proto::ValueInfoProto> {
    // Kept declarations of each name, in file order; nameless ones follow the one they stood after.
    let mut by_name: BTreeMap<String, VecDeque<Vec<proto::ValueInfoProto>>> = BTreeMap::new();
    let mut out = Vec::with_capacity(values.len());
    let mut last: Option<String> = None;
    for k in kept {
        match k.name.clone().filter(|n| !n.is_empty()) {
            Some(n) => {
                by_name.entry(n.clone()).or_default().push_back(vec![k]);
                last = Some(n);
            }
            None => match last.as_ref().and_then(|n| by_name.get_mut(n)?.back_mut()) {
                Some(group) => group.push(k),
                None => out.push(k),
            },
        }
    }
    for v in values {
        match by_name.get_mut(g.name_of(*v)).and_then(VecDeque::pop_front) {
            Some(group) => out.extend(group),
            None => out.push(declared(g, *v)),
        }
    }
    out
}

fn initializer(g: &Graph, v: ValueId) -> Option<proto::TensorProto> {
    let x = g.value(v);
    let (Def::Init(t) | Def::InputWithDefault(t)) = &x.def else { return None };
    let mut p = tensor_proto(t);
    p.name = Some(x.name.clone());
    Some(p)
}

fn node(g: &Graph, n: &Node) -> proto::NodeProto {
    let mut p: proto::NodeProto = rest(&n.rider);
    let names = |vs: &[Option<ValueId>]| -> Vec<String> {
        vs.iter().map(|v| v.map_or_else(String::new, |v| g.name_of(v).to_owned())).collect()
    };
    p.input = names(&n.inputs);
    p.output = names(&n.outputs);
    put_str(&mut p.name, &n.name);
    put_str(&mut p.op_type, &n.op.name);
    put_str(&mut p.domain, &n.op.domain);
    p.attribute = n.attrs.0.iter().map(attr_proto).collect();
    if !n.captures.is_empty() {
        rename_captures(g, n, &mut p);
    }
    p
}

/// Nested graphs are kept as the file wrote them, with the names their outer values had then; where one was renamed
/// since, its readings follow. The captures stand in the order in which the bodies read them first.
fn rename_captures(g: &Graph, n: &Node, p: &mut proto::NodeProto) {
    let mut was = Vec::new();
    for b in p.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs)) {
        scope::free_names(b, &mut was);
    }
    let renamed: BTreeMap<String, String> = was
        .into_iter()
        .zip(&n.captures)
        .map(|(old, v)| (old, g.name_of(*v).to_owned()))
        .filter(|(old, new)| old != new)
        .collect();
    if renamed.is_empty() {
        return;
    }
    for b in p.attribute.iter_mut().flat_map(|a| a.g.iter_mut().chain(&mut a.graphs)) {
        scope::rename_free(b, &renamed);
    }
}
