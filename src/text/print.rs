//! Writing a model as text.

use std::collections::BTreeSet;
use std::fmt::Write;

use crate::ir::{
    Attr, AttrValue, DType, Def, Dim, Graph, Model, Node, NodeId, Payload, Tensor, TensorType, Value, ValueId,
};

use super::elem::{elements_text, float_text, hex};
use super::lex::{is_ident, quote};

/// What of a model's constants the text shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elide {
    /// Everything: the text reads back as the same graph.
    Full,
    /// Tensors of more elements than this, and nested graphs, only show what they are and a short hash. Names of nodes
    /// that repeat the name of their first output are left out.
    Above(usize),
}

impl Default for Elide {
    /// For people: up to 16 elements are shown.
    fn default() -> Elide {
        Elide::Above(16)
    }
}

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
    for id in order(g) {
        let _ = writeln!(out, "   {}", line(g, g.node(id), elide));
    }
    out.push_str("}\n");
    out
}

/// All nodes in the order the text shows them: the schedule, then those that are in none because of a cycle.
pub(crate) fn order(g: &Graph) -> Vec<NodeId> {
    let mut order = g.schedule();
    if order.len() < g.node_count() {
        let seen: BTreeSet<NodeId> = order.iter().copied().collect();
        order.extend(g.nodes().map(|(id, _)| id).filter(|id| !seen.contains(id)));
    }
    order
}

/// One node on one line, for messages: `y = Conv <strides = [2, 2]> (x, w)`.
///
/// Says so instead of panicking if the node was erased.
pub fn node_line(g: &Graph, id: NodeId) -> String {
    g.try_node(id).map_or_else(|| format!("{id:?} (erased)"), |n| line(g, n, Elide::default()))
}

/// A type as it stands before a name: `float[batch,3]`; `float[]` has no known rank, `float` is a scalar.
pub fn type_text(t: &TensorType) -> String {
    let dim = |d: &Dim| match d {
        Dim::Known(n) => n.to_string(),
        Dim::Symbol(s) => name_text(s),
        Dim::Unknown => "?".to_owned(),
    };
    let name = dtype_text(t.dtype);
    match &t.shape {
        None => format!("{name}[]"),
        Some(s) if s.is_empty() => name,
        Some(s) => format!("{name}[{}]", s.iter().map(dim).collect::<Vec<_>>().join(",")),
    }
}

/// Numbers outside the standard are written `type99`.
fn dtype_text(t: DType) -> String {
    t.name().map_or_else(|| format!("type{}", t.0), str::to_owned)
}

/// A name, between quotes where it is no identifier.
pub(super) fn name_text(s: &str) -> String {
    if is_ident(s) { s.to_owned() } else { quote(s.as_bytes()) }
}

fn typed(v: &Value) -> String {
    match &v.ty {
        Some(t) => format!("{} {}", type_text(t), name_text(&v.name)),
        None => name_text(&v.name),
    }
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
        Def::Node { .. } | Def::Nothing => x.ty.is_some() && !g.is_output(v),
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

/// The type a tensor has.
pub(super) fn type_of(t: &Tensor) -> TensorType {
    TensorType::new(t.dtype, t.dims.iter().map(|d| Dim::Known(*d)))
}

fn tensor_type_text(t: &Tensor) -> String {
    type_text(&type_of(t))
}

enum Contents {
    /// `{...}` or `["location": ...]`.
    Shown(String),
    /// What stands for them.
    Hidden(String),
}

fn contents(t: &Tensor, elide: Elide) -> Contents {
    if let Payload::External(e) = &t.data
        && e.bytes.is_none()
    {
        let pairs: Vec<String> =
            e.entries.iter().map(|(k, v)| format!("{}: {}", quote(k.as_bytes()), quote(v.as_bytes()))).collect();
        return Contents::Shown(format!("[{}]", pairs.join(", ")));
    }
    if let Elide::Above(most) = elide
        && t.len() > most
    {
        return Contents::Hidden(fingerprint(t));
    }
    match (elements_text(t), elide) {
        (Some(s), _) => Contents::Shown(format!("{{{s}}}")),
        (None, Elide::Full) => Contents::Shown(format!("{{\"{}\"}}", hex(&t.to_le_bytes().unwrap_or_default()))),
        (None, Elide::Above(_)) => Contents::Hidden(fingerprint(t)),
    }
}

/// Eight hexadecimal digits that tell one tensor's contents from another's.
fn fingerprint(t: &Tensor) -> String {
    let mut h = blake3::Hasher::new();
    match &t.data {
        Payload::Str(v) => v.iter().for_each(|s| {
            h.update(&(s.len() as u64).to_le_bytes());
            h.update(s);
        }),
        _ => {
            h.update(&t.to_le_bytes().unwrap_or_default());
        }
    }
    hex(&h.finalize().as_bytes()[..4])
}

fn opaque(kind: &str, parts: &[&[u8]], list: bool, elide: Elide) -> String {
    let one = |b: &&[u8]| match elide {
        Elide::Full => format!("\"{}\"", hex(b)),
        Elide::Above(_) => format!("{{~ {} bytes, {}}}", b.len(), hex(&blake3::hash(b).as_bytes()[..4])),
    };
    let all = parts.iter().map(one).collect::<Vec<_>>().join(", ");
    if list { format!(": {kind} = [{all}]") } else { format!(": {kind} = {all}") }
}

/// `kind` numbers of a reference attribute, as ONNX names them.
pub(super) const ATTR_KINDS: [(&str, i32); 15] = [
    ("undefined", 0),
    ("float", 1),
    ("int", 2),
    ("string", 3),
    ("tensor", 4),
    ("graph", 5),
    ("floats", 6),
    ("ints", 7),
    ("strings", 8),
    ("tensors", 9),
    ("graphs", 10),
    ("sparse_tensor", 11),
    ("sparse_tensors", 12),
    ("type_proto", 13),
    ("type_protos", 14),
];

fn attr_text(a: &Attr, elide: Elide) -> String {
    fn list<T>(kind: &str, v: &[T], one: impl Fn(&T) -> String) -> String {
        if v.is_empty() {
            // An empty list does not say what it is a list of.
            format!(": {kind} = []")
        } else {
            format!(" = [{}]", v.iter().map(one).collect::<Vec<_>>().join(", "))
        }
    }
    let tensor = |t: &Tensor| match contents(t, elide) {
        Contents::Shown(s) if s.starts_with('[') => format!("{} = {s}", tensor_type_text(t)),
        Contents::Shown(s) => format!("{} {s}", tensor_type_text(t)),
        Contents::Hidden(s) => format!("{} {{~ {s}}}", tensor_type_text(t)),
    };
    let value = match &a.value {
        AttrValue::Float(v) => format!(" = {}", float_text(f64::from(*v), true)),
        AttrValue::Int(v) => format!(" = {v}"),
        AttrValue::Str(v) => format!(" = {}", quote(v)),
        AttrValue::Tensor(t) => format!(" = {}", tensor(t)),
        AttrValue::Floats(v) => list("floats", v, |x| float_text(f64::from(*x), true)),
        AttrValue::Ints(v) => list("ints", v, i64::to_string),
        AttrValue::Strs(v) => list("strings", v, |s| quote(s)),
        AttrValue::Tensors(v) => list("tensors", v, tensor),
        AttrValue::Graph(b) => opaque("graph", &[b], false, elide),
        AttrValue::Graphs(v) => opaque("graphs", &v.iter().map(|b| &b[..]).collect::<Vec<_>>(), true, elide),
        AttrValue::Ref { attr, kind } => {
            let known = ATTR_KINDS.iter().find(|k| k.1 == *kind).map(|k| k.0.to_owned());
            format!(": {} = @{}", known.unwrap_or_else(|| format!("kind{kind}")), name_text(attr))
        }
        AttrValue::Other(b) => opaque("encoded", &[b], false, elide),
    };
    format!("{}{value}", name_text(&a.name))
}

/// The operator as text: `Relu`, `com.microsoft.Gelu`; what is no identifier is quoted.
pub(super) fn op_text(n: &Node) -> String {
    if n.op.domain.is_empty() {
        return name_text(&n.op.name);
    }
    let plain = n.op.domain.split('.').all(is_ident);
    let domain = if plain { n.op.domain.clone() } else { quote(n.op.domain.as_bytes()) };
    format!("{domain}.{}", name_text(&n.op.name))
}

fn line(g: &Graph, n: &Node, elide: Elide) -> String {
    let name =
        |v: ValueId| g.try_value(v).map_or_else(|| quote(format!("{v:?} (erased)").as_bytes()), |x| name_text(&x.name));
    let names = |vs: &[Option<ValueId>]| {
        vs.iter().map(|v| v.map_or_else(|| "\"\"".to_owned(), name)).collect::<Vec<_>>().join(", ")
    };
    let mut out = String::new();
    let same = n.out().and_then(|v| g.try_value(v)).is_some_and(|v| v.name == n.name);
    if !n.name.is_empty() && !(same && elide != Elide::Full) {
        let _ = write!(out, "[{}] ", name_text(&n.name));
    }
    let _ = write!(out, "{} = {} ", names(&n.outputs), op_text(n));
    if !n.attrs.0.is_empty() {
        let attrs: Vec<String> = n.attrs.0.iter().map(|a| attr_text(a, elide)).collect();
        let _ = write!(out, "<{}> ", attrs.join(", "));
    }
    let _ = write!(out, "({})", names(&n.inputs));
    if !n.captures.is_empty() {
        let captures: Vec<String> = n.captures.iter().map(|v| name(*v)).collect();
        let _ = write!(out, " @ ({})", captures.join(", "));
    }
    out
}
