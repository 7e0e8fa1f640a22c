//! Writing a model as text.

use std::collections::BTreeSet;
use std::fmt::Write;

use crate::ir::show::{Contents, Elide, contents, line, name_text, quote, tensor_type_text, type_of, typed};
use crate::ir::{Def, Graph, Model, Value, ValueId};

/// The model in ONNX's textual syntax, nodes in execution order (those on a cycle last).
///
/// With [`Elide::Full`], [`parse_model`](super::parse_model) gives the same graph back, except for riders, origins, the
/// storage form of tensors (they come back raw) and the bits of NaNs.
pub fn print_model(m: &Model, elide: Elide) -> String {
    let pairs = |it: &mut dyn Iterator<Item = (&str, String)>| {
        it.map(|(k, v)| format!("{} : {v}", quote(k.as_bytes()))).collect::<Vec<_>>().join(", ")
    };
    let opsets = pairs(&mut m.opsets.iter().map(|o| (o.domain.as_str(), o.version.to_string())));
    let mut out = format!("<\n   ir_version: {},\n   opset_import: [{opsets}]", m.ir_version);
    if !m.functions.is_empty() {
        let functions = pairs(&mut m.functions.iter().map(|(d, n)| (d.as_str(), quote(n.as_bytes()))));
        let _ = write!(out, ",\n   functions: [{functions}]");
    }
    out.push_str("\n>\n");
    out.push_str(&print_graph(&m.graph, elide));
    out
}

/// The graph alone, as it stands in [`print_model`].
pub fn print_graph(g: &Graph, elide: Elide) -> String {
    let mut out = head(g, elide);
    out.push_str("{\n");
    for id in g.order_with_cycles() {
        let _ = writeln!(out, "   {}", line(g, g.node(id), elide));
    }
    out.push_str("}\n");
    out
}

/// Everything of a graph before its nodes.
fn head(g: &Graph, elide: Elide) -> String {
    let names = |ids: &[ValueId]| {
        ids.iter().map(|v| g.try_value(*v).map_or_else(|| quote(b"(erased)"), typed)).collect::<Vec<_>>().join(", ")
    };
    let mut out = format!("{} ({}) => ({})\n", name_text(&g.name), names(g.inputs()), names(g.outputs()));
    // Text and, after the comma, a comment.
    let mut items: Vec<(String, String)> = Vec::new();
    for v in g.initializers().iter().filter_map(|v| g.try_value(*v)) {
        if let Def::Init(t) | Def::InputWithDefault(t) = &v.def {
            let decl = format!("{} {}", tensor_type_text(t), name_text(&v.name));
            items.push(match contents(t, elide) {
                Contents::Shown(s) => (format!("{decl} = {s}"), String::new()),
                Contents::Hidden(s) => (decl, format!("  # {s}")),
            });
        }
    }
    let declared: BTreeSet<ValueId> = g.declared().iter().copied().collect();
    let own = |v: ValueId, x: &Value| match &x.def {
        Def::Input | Def::InputWithDefault(_) => false,
        Def::Init(t) => x.ty.as_ref().is_some_and(|ty| *ty != type_of(t)),
        Def::Node { .. } | Def::Sparse | Def::Nothing => x.ty.is_some() && !g.is_output(v),
    };
    let others = g.values().filter(|(v, x)| !declared.contains(v) && own(*v, x)).map(|(_, x)| x);
    for v in g.declared().iter().filter_map(|v| g.try_value(*v)).chain(others) {
        items.push((typed(v), String::new()));
    }
    for (i, (text, comment)) in items.iter().enumerate() {
        let (open, close) = (if i == 0 { "<" } else { " " }, if i + 1 == items.len() { "" } else { "," });
        let _ = writeln!(out, "   {open}{text}{close}{comment}");
    }
    if !items.is_empty() {
        out.push_str("   >\n");
    }
    out
}
