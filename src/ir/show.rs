//! How the parts of the IR show themselves: names, types, constants and single nodes in ONNX's textual syntax.
//!
//! Messages show nodes with [`node_line`]; the [`text`](crate::text) module puts whole models together from these
//! parts and reads them back.

use std::fmt::Write;

use super::{Attr, AttrValue, DType, Dim, Graph, Node, NodeId, Payload, Tensor, TensorType, Value, ValueId};

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

/// True if the name can be written without quotes.
pub fn is_ident(s: &str) -> bool {
    let mut b = s.bytes();
    b.next().is_some_and(ident_start) && b.all(ident_part)
}

pub(crate) fn ident_start(b: u8) -> bool {
    b.is_ascii_alphabetic() || b == b'_'
}

pub(crate) fn ident_part(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'_'
}

/// A string between double quotes. `"` and `\` are escaped, control characters and bytes that are not UTF-8 become
/// `\xNN` (`\n` and `\t` have their short forms).
pub fn quote(bytes: &[u8]) -> String {
    let mut out = String::from("\"");
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\t' => out.push_str("\\t"),
                c if c.is_ascii_control() => out.push_str(&format!("\\x{:02x}", c as u32)),
                c => out.push(c),
            }
        }
        for b in chunk.invalid() {
            out.push_str(&format!("\\x{b:02x}"));
        }
    }
    out.push('"');
    out
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
pub(crate) fn name_text(s: &str) -> String {
    if is_ident(s) { s.to_owned() } else { quote(s.as_bytes()) }
}

/// A value with its type, as a declaration has it: `float[batch,3] x`.
pub fn typed(v: &Value) -> String {
    match &v.ty {
        Some(t) => format!("{} {}", type_text(t), name_text(&v.name)),
        None => name_text(&v.name),
    }
}

/// The type a tensor has.
pub(crate) fn type_of(t: &Tensor) -> TensorType {
    TensorType::new(t.dtype, t.dims.iter().map(|d| Dim::Known(*d)))
}

pub(crate) fn tensor_type_text(t: &Tensor) -> String {
    type_text(&type_of(t))
}

pub(crate) enum Contents {
    /// `{...}` or `["location": ...]`.
    Shown(String),
    /// What stands for them.
    Hidden(String),
}

pub(crate) fn contents(t: &Tensor, elide: Elide) -> Contents {
    if let Payload::External(entries) = &t.data {
        let pairs: Vec<String> =
            entries.iter().map(|(k, v)| format!("{}: {}", quote(k.as_bytes()), quote(v.as_bytes()))).collect();
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
        Elide::Above(_) => format!("{{~ {} B, {}}}", b.len(), hex(&blake3::hash(b).as_bytes()[..4])),
    };
    let all = parts.iter().map(one).collect::<Vec<_>>().join(", ");
    if list { format!(": {kind} = [{all}]") } else { format!(": {kind} = {all}") }
}

/// `kind` numbers of a reference attribute, as ONNX names them.
pub(crate) const ATTR_KINDS: [(&str, i32); 15] = [
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
pub(crate) fn op_text(n: &Node) -> String {
    if n.op.domain.is_empty() {
        return name_text(&n.op.name);
    }
    let plain = n.op.domain.split('.').all(is_ident);
    let domain = if plain { n.op.domain.clone() } else { quote(n.op.domain.as_bytes()) };
    format!("{domain}.{}", name_text(&n.op.name))
}

pub(crate) fn line(g: &Graph, n: &Node, elide: Elide) -> String {
    let name =
        |v: ValueId| g.try_value(v).map_or_else(|| quote(format!("{v:?} (erased)").as_bytes()), |x| name_text(&x.name));
    let names = |vs: &[Option<ValueId>]| {
        vs.iter().map(|v| v.map_or_else(|| "\"\"".to_owned(), name)).collect::<Vec<_>>().join(", ")
    };
    let mut out = String::new();
    let same = n.out().and_then(|v| g.try_value(v)).is_some_and(|v| v.name == n.name);
    if !n.name.is_empty() && (!same || elide == Elide::Full) {
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

/// The type of what is written one by one: complex numbers are two floats.
pub(crate) fn component(t: DType) -> DType {
    match t {
        DType::COMPLEX64 => DType::FLOAT,
        DType::COMPLEX128 => DType::DOUBLE,
        t => t,
    }
}

/// A float so that reading gives the same number back.
pub(crate) fn float_text(v: f64, narrow: bool) -> String {
    match (v.is_nan(), narrow) {
        (true, _) => "nan".to_owned(),
        (false, true) => format!("{:?}", v as f32),
        (false, false) => format!("{v:?}"),
    }
}

/// The elements as text, as many as the payload holds (validation says when that is not what the shape wants). `None`
/// when the payload is missing or cannot be cut into elements.
pub(crate) fn elements_text(t: &Tensor) -> Option<String> {
    let mut out = String::new();
    let mut put = |s: &str| {
        if !out.is_empty() {
            out.push_str(", ");
        }
        out.push_str(s);
    };
    if let Payload::Str(v) = &t.data {
        v.iter().for_each(|s| put(&quote(s)));
        return Some(out);
    }
    let bytes = t.to_le_bytes()?;
    let kind = component(t.dtype);
    let bits = kind.bits()?;
    if bits < 8 {
        let per = 8 / bits;
        let count = if bytes.len() == t.byte_len() { t.len() } else { bytes.len() * per };
        for i in 0..count {
            let raw = (bytes[i / per] >> (bits * (i % per))) & ((1 << bits) - 1);
            put(&integer(kind, bits, raw.into()));
        }
        return Some(out);
    }
    if bytes.len() % (bits / 8) != 0 {
        return None;
    }
    for c in bytes.chunks_exact(bits / 8) {
        let mut word = [0u8; 8];
        word[..c.len()].copy_from_slice(c);
        let raw = u64::from_le_bytes(word);
        match kind {
            DType::FLOAT => put(&float_text(f32::from_bits(raw as u32).into(), true)),
            DType::DOUBLE => put(&float_text(f64::from_bits(raw), false)),
            _ => put(&integer(kind, bits, raw)),
        }
    }
    Some(out)
}

fn integer(t: DType, bits: usize, raw: u64) -> String {
    let signed = matches!(t, DType::INT2 | DType::INT4 | DType::INT8 | DType::INT16 | DType::INT32 | DType::INT64);
    if signed { (((raw << (64 - bits)) as i64) >> (64 - bits)).to_string() } else { raw.to_string() }
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut s, b| {
        // Writing to a String cannot fail.
        let _ = write!(s, "{b:02x}");
        s
    })
}
