//! Front end: a decoded message becomes a model.

use std::collections::BTreeSet;

use super::attr::take_attr;
use super::tensor::{declaration, rider, take_declaration, take_str, take_tensor};
use super::{LoadError, proto, scope};
use crate::ir::{Attr, AttrValue, Attrs, Def, Dim, Graph, Model, Node, NodeId, Op, Opset, Tensor, TensorType, ValueId};

/// Format version from which a model must import its operator sets.
const OPSETS_REQUIRED: i64 = 3;

struct Front<'a> {
    file: &'a str,
    /// Values that the file has declared so far, be it without a word.
    declared: BTreeSet<ValueId>,
}

/// Reads a model out of its message. `file` stands in error messages.
pub(super) fn model(mut p: proto::ModelProto, file: &str) -> Result<Model, LoadError> {
    let Some(graph) = p.graph.take() else { return Err(LoadError::NoGraph { file: file.to_owned() }) };
    let ir_version = if p.ir_version == Some(0) { 0 } else { p.ir_version.take().unwrap_or(0) };
    if ir_version >= OPSETS_REQUIRED && p.opset_import.is_empty() {
        return Err(LoadError::NoOpset { file: file.to_owned(), ir_version });
    }
    let opsets = p
        .opset_import
        .iter()
        .map(|o| Opset { domain: o.domain.clone().unwrap_or_default(), version: o.version.unwrap_or(0) })
        .collect();
    // An explicitly written empty domain (or an unwritten version) cannot be told from the opset: such lists are kept.
    if p.opset_import.iter().all(|o| o.domain.as_deref() != Some("") && o.version.is_some()) {
        p.opset_import = Vec::new();
    }
    let functions = p
        .functions
        .iter()
        .map(|f| (f.domain.clone().unwrap_or_default(), f.name.clone().unwrap_or_default()))
        .collect();
    let graph = Front { file, declared: BTreeSet::new() }.graph(graph)?;
    Ok(Model { ir_version, opsets, graph, functions, rider: rider(&p) })
}

/// Reads a nested graph out of its message. All it reads must be defined in it.
pub(super) fn body(p: proto::GraphProto, attr: &str) -> Result<Graph, LoadError> {
    Front { file: attr, declared: BTreeSet::new() }.graph(p)
}

/// How an error message calls a node.
pub(super) fn call(n: &proto::NodeProto, index: usize) -> String {
    let op = n.op_type.as_deref().unwrap_or("?");
    match n.name.as_deref() {
        Some(s) if !s.is_empty() => format!("`{s}` ({op})"),
        _ => format!("#{index} ({op})"),
    }
}

impl Front<'_> {
    fn file(&self) -> String {
        self.file.to_owned()
    }

    fn unnamed(&self, what: String) -> LoadError {
        LoadError::Unnamed { file: self.file(), what }
    }

    fn graph(mut self, mut p: proto::GraphProto) -> Result<Graph, LoadError> {
        let mut g = Graph::default();
        g.name = take_str(&mut p.name);
        let nodes = std::mem::take(&mut p.node);
        self.constants(&mut g, &mut p)?;

        // All results get their value before any node is made, so that unsorted files load as well.
        let mut made: Vec<Vec<Option<ValueId>>> = Vec::with_capacity(nodes.len());
        for (i, n) in nodes.iter().enumerate() {
            let mut outs = Vec::with_capacity(n.output.len());
            for name in &n.output {
                outs.push(if name.is_empty() {
                    None
                } else {
                    Some(
                        g.add_value(name, Def::Nothing, None)
                            .map_err(|v| self.duplicate(&g, v, &nodes, format!("node {}", call(n, i))))?,
                    )
                });
            }
            made.push(outs);
        }
        for (i, (n, outputs)) in nodes.into_iter().zip(made).enumerate() {
            let node = self.node(&g, n, i, outputs)?;
            g.add_node(node, None);
        }
        self.acyclic(&g)?;
        self.outputs(&mut g, &mut p)?;
        self.value_infos(&mut g, &mut p);
        g.rider = rider(&p);
        Ok(g)
    }

    fn duplicate(&self, g: &Graph, v: ValueId, nodes: &[proto::NodeProto], second: String) -> LoadError {
        let value = g.name_of(v).to_owned();
        let first = match &g.value(v).def {
            Def::Input | Def::InputWithDefault(_) => "a graph input".to_owned(),
            Def::Init(_) => "an initializer".to_owned(),
            Def::Sparse => "a sparse initializer".to_owned(),
            Def::Node { .. } | Def::Nothing => nodes
                .iter()
                .enumerate()
                .find(|(_, n)| n.output.contains(&value))
                .map_or_else(|| "an earlier entry".to_owned(), |(i, n)| format!("node {}", call(n, i))),
        };
        LoadError::Duplicate { file: self.file(), value, first, second }
    }

    /// Graph inputs and constants.
    fn constants(&mut self, g: &mut Graph, p: &mut proto::GraphProto) -> Result<(), LoadError> {
        for (i, input) in std::mem::take(&mut p.input).into_iter().enumerate() {
            let name = input.name.as_deref().unwrap_or("");
            if name.is_empty() {
                return Err(self.unnamed(format!("graph input {i}")));
            }
            let (ty, kept) = take_declaration(&input);
            let v =
                g.add_value(name, Def::Input, ty).map_err(|v| self.duplicate(g, v, &[], format!("graph input {i}")))?;
            g.value_mut(v).rider = kept;
            g.inputs.push(v);
            self.declared.insert(v);
        }
        for (i, mut t) in std::mem::take(&mut p.initializer).into_iter().enumerate() {
            let name = t.name.take().unwrap_or_default();
            if name.is_empty() {
                return Err(self.unnamed(format!("initializer {i}")));
            }
            let mut tensor = take_tensor(&mut t);
            tensor.rider = rider(&t);
            self.constant(g, &name, tensor, i)?;
        }
        for (i, s) in p.sparse_initializer.iter().enumerate() {
            let name = s.values.as_ref().and_then(|v| v.name.as_deref()).unwrap_or("");
            if name.is_empty() {
                return Err(self.unnamed(format!("sparse initializer {i}")));
            }
            match g.find(name) {
                // A sparse default of an input stays in the rider; the input is an input.
                Some(v) if matches!(g.value(v).def, Def::Input) => {}
                Some(v) => return Err(self.duplicate(g, v, &[], format!("sparse initializer {i}"))),
                None => {
                    let _ = g.add_value(name, Def::Sparse, None);
                }
            }
        }
        Ok(())
    }

    fn constant(&self, g: &mut Graph, name: &str, tensor: Tensor, i: usize) -> Result<(), LoadError> {
        if let Some(v) = g.find(name) {
            if matches!(g.value(v).def, Def::Input) {
                g.value_mut(v).def = Def::InputWithDefault(tensor);
                g.inits.push(v);
                return Ok(());
            }
            return Err(self.duplicate(g, v, &[], format!("initializer {i}")));
        }
        let ty = TensorType::new(tensor.dtype, tensor.dims.iter().map(|d| Dim::Known(*d)));
        g.add_value(name, Def::Init(tensor), Some(ty))
            .map(|_| ())
            .map_err(|v| self.duplicate(g, v, &[], format!("initializer {i}")))
    }

    fn node(
        &self,
        g: &Graph,
        mut p: proto::NodeProto,
        index: usize,
        outputs: Vec<Option<ValueId>>,
    ) -> Result<Node, LoadError> {
        if p.op_type.as_deref().is_none_or(str::is_empty) {
            return Err(LoadError::NoOperator { file: self.file(), node: call(&p, index) });
        }
        let undefined = |p: &proto::NodeProto, name: &str, file: &str| LoadError::Undefined {
            file: file.to_owned(),
            reader: format!("node {}", call(p, index)),
            value: name.to_owned(),
        };
        let inputs = p
            .input
            .iter()
            .map(|name| match name.as_str() {
                "" => Ok(None),
                name => g.find(name).map(Some).ok_or_else(|| undefined(&p, name, self.file)),
            })
            .collect::<Result<Vec<_>, _>>()?;
        let mut free = Vec::new();
        for body in p.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs)) {
            scope::free_names(body, &mut free);
        }
        let captures = free
            .iter()
            .map(|name| g.find(name).ok_or_else(|| undefined(&p, name, self.file)))
            .collect::<Result<Vec<_>, _>>()?;

        let attrs: Vec<Attr> = std::mem::take(&mut p.attribute).into_iter().map(take_attr).collect();
        debug_assert!(captures.is_empty() || attrs.iter().any(|a| is_nested(&a.value)));
        p.input = Vec::new();
        p.output = Vec::new();
        let op = Op { domain: take_str(&mut p.domain), name: take_str(&mut p.op_type) };
        let mut node = Node::new(op, inputs, outputs, Attrs(attrs));
        node.name = take_str(&mut p.name);
        node.captures = captures;
        node.rider = rider(&p);
        Ok(node)
    }

    /// Names a node on a cycle, if there is one.
    fn acyclic(&self, g: &Graph) -> Result<(), LoadError> {
        if g.node_order_is_acyclic() {
            return Ok(());
        }
        let done: BTreeSet<NodeId> = g.schedule().into_iter().collect();
        let stuck = |v: ValueId| g.producer(v).filter(|n| !done.contains(n)).map(|n| (n, v));
        // Every stuck node waits for a stuck node: walking up from any of them comes round sooner or later.
        let mut at = g.nodes().map(|(id, _)| id).find(|id| !done.contains(id));
        let mut seen = BTreeSet::new();
        while let Some(id) = at {
            let n = g.node(id);
            let up = n.inputs.iter().flatten().chain(&n.captures).find_map(|v| stuck(*v));
            let Some((next, v)) = up else { break };
            if !seen.insert(id) {
                let made = g.node(next);
                let node = if made.name.is_empty() { format!("({})", made.op) } else { format!("`{}`", made.name) };
                return Err(LoadError::Cycle { file: self.file(), node, value: g.name_of(v).to_owned() });
            }
            at = Some(next);
        }
        Err(LoadError::Cycle { file: self.file(), node: "?".into(), value: "?".into() })
    }

    fn outputs(&mut self, g: &mut Graph, p: &mut proto::GraphProto) -> Result<(), LoadError> {
        for (i, o) in std::mem::take(&mut p.output).into_iter().enumerate() {
            let name = o.name.as_deref().unwrap_or("");
            if name.is_empty() {
                return Err(self.unnamed(format!("graph output {i}")));
            }
            let Some(v) = g.find(name) else {
                return Err(LoadError::Undefined {
                    file: self.file(),
                    reader: format!("graph output {i}"),
                    value: name.to_owned(),
                });
            };
            g.add_output(v);
            if !self.declare(g, v, &o) {
                p.output.push(o);
            }
        }
        Ok(())
    }

    fn value_infos(&mut self, g: &mut Graph, p: &mut proto::GraphProto) {
        let infos = std::mem::take(&mut p.value_info);
        // A nameless declaration declares nothing and rides along; the others then do too, to tell where it stood.
        let keep_all = infos.iter().any(|i| i.name.as_deref().unwrap_or("").is_empty());
        let mut told = BTreeSet::new();
        for info in infos {
            let name = info.name.as_deref().unwrap_or("");
            if name.is_empty() {
                p.value_info.push(info);
                continue;
            }
            let v = match g.find(name) {
                Some(v) => v,
                None => match g.add_value(name, Def::Nothing, None) {
                    Ok(v) | Err(v) => v,
                },
            };
            let agrees = self.declare(g, v, &info);
            // The same words once more change nothing, and ride along; others are left for validation to find.
            let again = !told.insert(v) && agrees && !keep_all;
            if !again {
                g.add_declared(v);
            }
            if !agrees || keep_all || again {
                p.value_info.push(info);
            }
        }
    }

    /// Gives a value its declared type. False if it has another declaration already (a value can be declared as input,
    /// output and inside): then the caller keeps the words of this one.
    fn declare(&mut self, g: &mut Graph, v: ValueId, p: &proto::ValueInfoProto) -> bool {
        let value = g.value_mut(v);
        if self.declared.insert(v) && value.ty.is_none() {
            let (ty, kept) = take_declaration(p);
            value.ty = ty;
            value.rider = kept;
            return true;
        }
        declaration(&value.name, value.ty.as_ref(), &value.rider) == *p
    }
}

fn is_nested(v: &AttrValue) -> bool {
    matches!(v, AttrValue::Graph(_) | AttrValue::Graphs(_) | AttrValue::Other(_))
}
