//! Reading a model from text.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::ir::{
    AttrValue, Attrs, DType, Def, Dim, Graph, Model, Node, Op, Opset, Payload, Rider, Tensor, TensorType, ValueId,
};

use crate::ir::show::{ATTR_KINDS, type_of};

use super::elem::{Packer, unhex};
use super::lex::{Cursor, ParseError, Span, Tok, is_float_text};

/// Reads a model: a header `<ir_version: ..., opset_import: [...]>` and a graph.
///
/// Names may be read that nothing defines, shapes may disagree with their data, nodes may form a cycle: whether the
/// model is a legal one is [`validate`](crate::ir::validate::validate)'s question.
///
/// # Errors
/// Text outside the syntax, a value defined twice, an element that does not fit its type; the error shows the spot.
pub fn parse_model(src: &str) -> Result<Model, ParseError> {
    let mut c = Cursor::new(src)?;
    let mut m = Model::default();
    header(&mut c, &mut m)?;
    m.graph = graph(&mut c)?;
    end(&c)?;
    Ok(m)
}

/// Reads a graph without a header.
///
/// # Errors
/// Those of [`parse_model`].
pub fn parse_graph(src: &str) -> Result<Graph, ParseError> {
    let mut c = Cursor::new(src)?;
    let g = graph(&mut c)?;
    end(&c)?;
    Ok(g)
}

fn end(c: &Cursor) -> Result<(), ParseError> {
    if *c.peek() == Tok::End { Ok(()) } else { Err(c.expected("nothing more after the graph")) }
}

fn header(c: &mut Cursor, m: &mut Model) -> Result<(), ParseError> {
    let start = c.expect("<", "to open the header, as in `<ir_version: 8, opset_import: [\"\" : 17]>`")?;
    let mut seen = BTreeSet::new();
    c.list(">", |c| {
        let (key, at) = c.ident("a header key such as `ir_version`")?;
        if !seen.insert(key) {
            return Err(c.error_at(at, format!("`{key}` is given twice")));
        }
        c.expect(":", "after the key")?;
        match key {
            "ir_version" => m.ir_version = c.int("a number")?,
            "opset_import" => {
                c.expect("[", "to open the list of operator sets")?;
                m.opsets = c.list("]", |c| {
                    let (domain, _) = c.name("a domain between quotes")?;
                    c.expect(":", "after the domain")?;
                    Ok(Opset { domain, version: c.int("a version")? })
                })?;
            }
            "functions" => {
                c.expect("[", "to open the list of functions")?;
                m.functions = c.list("]", |c| {
                    let (domain, _) = c.name("a domain between quotes")?;
                    c.expect(":", "after the domain")?;
                    Ok((domain, c.name("the function's name")?.0))
                })?;
            }
            // What the IR keeps as riders has no place in the text.
            "producer_name" | "producer_version" | "domain" | "doc_string" => {
                c.name("a string")?;
            }
            "model_version" => {
                c.int("a number")?;
            }
            "metadata_props" => {
                c.expect("[", "to open the list of properties")?;
                c.list("]", |c| {
                    c.name("a key between quotes")?;
                    c.expect(":", "after the key")?;
                    c.name("a value between quotes")
                })?;
            }
            _ => return Err(c.error_at(at, format!("unknown header key `{key}`"))),
        }
        Ok(())
    })?;
    for key in ["ir_version", "opset_import"] {
        if !seen.contains(key) {
            return Err(c.error_at(start, format!("the header lacks `{key}`")));
        }
    }
    Ok(())
}

/// A graph under construction.
#[derive(Default)]
struct Builder {
    g: Graph,
    /// Values that something defines.
    defined: BTreeSet<ValueId>,
    /// Values whose type the text states.
    typed: BTreeSet<ValueId>,
}

impl Builder {
    /// The value of this name, made if it was not yet mentioned.
    fn value(&mut self, name: &str) -> ValueId {
        self.g.add_value(name, Def::Nothing, None).unwrap_or_else(|v| v)
    }

    fn define(&mut self, c: &Cursor, at: Span, v: ValueId) -> Result<(), ParseError> {
        if self.defined.insert(v) {
            return Ok(());
        }
        Err(c.error_at(at, format!("`{}` is defined a second time", self.g.name_of(v))))
    }

    fn declare(&mut self, c: &Cursor, at: Span, v: ValueId, ty: Option<TensorType>) -> Result<(), ParseError> {
        let Some(ty) = ty else { return Ok(()) };
        let value = self.g.value_mut(v);
        if self.typed.insert(v) {
            value.ty = Some(ty);
        } else if value.ty.as_ref() != Some(&ty) {
            return Err(c.error_at(at, format!("`{}` has another type above", value.name)));
        }
        Ok(())
    }
}

fn graph(c: &mut Cursor) -> Result<Graph, ParseError> {
    let mut b = Builder::default();
    b.g.name = c.name("the graph's name")?.0;
    c.expect("(", "to open the graph's inputs")?;
    c.list(")", |c| {
        let (v, at) = typed_value(c, &mut b)?;
        b.define(c, at, v)?;
        b.g.value_mut(v).def = Def::Input;
        b.g.inputs.push(v);
        if c.eat("=") {
            let ty = b.g.value(v).ty.clone();
            set_init(c, &mut b, v, ty, at)?;
        }
        Ok(())
    })?;
    c.expect("=>", "between the graph's inputs and outputs")?;
    c.expect("(", "to open the graph's outputs")?;
    c.list(")", |c| {
        let (v, _) = typed_value(c, &mut b)?;
        b.g.add_output(v);
        Ok(())
    })?;
    if c.eat("<") {
        c.list(">", |c| value_info(c, &mut b))?;
    }
    c.expect("{", "to open the list of nodes")?;
    while !c.eat("}") {
        node(c, &mut b)?;
    }
    Ok(b.g)
}

/// `float[3] x`, or `x` alone.
fn typed_value(c: &mut Cursor, b: &mut Builder) -> Result<(ValueId, Span), ParseError> {
    let ty = optional_type(c)?;
    let (name, at) = value_name(c)?;
    let v = b.value(&name);
    b.declare(c, at, v, ty)?;
    Ok((v, at))
}

fn value_name(c: &mut Cursor) -> Result<(String, Span), ParseError> {
    let (name, at) = c.name("a value's name")?;
    if name.is_empty() {
        return Err(c.error_at(at, "a value must have a name"));
    }
    Ok((name, at))
}

/// A declaration or an initializer between `<` and `>`.
fn value_info(c: &mut Cursor, b: &mut Builder) -> Result<(), ParseError> {
    let ty = optional_type(c)?;
    let (name, at) = value_name(c)?;
    let v = b.value(&name);
    if c.eat("=") {
        return set_init(c, b, v, ty, at);
    }
    b.declare(c, at, v, ty)?;
    if !b.g.is_declared(v) {
        b.g.add_declared(v);
    }
    Ok(())
}

/// The `{...}` or `[...]` of an initializer.
fn set_init(c: &mut Cursor, b: &mut Builder, v: ValueId, ty: Option<TensorType>, at: Span) -> Result<(), ParseError> {
    let ty = ty.ok_or_else(|| c.error_at(at, "a constant needs a type, as in `float[2] w = {1, 2}`"))?;
    let t = tensor_contents(c, &ty, at)?;
    let def = match b.g.value(v).def {
        Def::Input => Def::InputWithDefault(t),
        _ => {
            b.define(c, at, v)?;
            let value = b.g.value_mut(v);
            if value.ty.is_none() {
                value.ty = Some(type_of(&t));
            }
            Def::Init(t)
        }
    };
    b.g.value_mut(v).def = def;
    if b.g.inits.contains(&v) {
        return Err(c.error_at(at, format!("`{}` has two defaults", b.g.name_of(v))));
    }
    b.g.inits.push(v);
    Ok(())
}

fn dtype(name: &str) -> Option<DType> {
    DType::from_name(name).or_else(|| name.strip_prefix("type")?.parse().ok().map(DType))
}

/// A type if one is next. A value may be called like a type: `float float` declares one, `float` alone names one.
fn optional_type(c: &mut Cursor) -> Result<Option<TensorType>, ParseError> {
    let Tok::Ident(name) = *c.peek() else { return Ok(None) };
    match (c.peek_at(1), name) {
        (Tok::Mark("("), "seq" | "map" | "optional" | "sparse_tensor") => {
            Err(c.error("only tensor types can be written"))
        }
        (Tok::Ident(_) | Tok::Str(_) | Tok::Mark("["), _) => tensor_type(c).map(Some),
        _ => Ok(None),
    }
}

fn tensor_type(c: &mut Cursor) -> Result<TensorType, ParseError> {
    let Tok::Ident(name) = *c.peek() else { return Err(c.expected("an element type such as `float`")) };
    let dtype = dtype(name).ok_or_else(|| c.error(format!("unknown element type `{name}`")))?;
    c.advance();
    if !c.eat("[") {
        return Ok(TensorType { dtype, shape: Some(Vec::new()) });
    }
    let dims = c.list("]", |c| match c.peek() {
        Tok::Int(_) => Ok(Dim::Known(c.int("a size")?)),
        Tok::Ident(_) | Tok::Str(_) => Ok(Dim::Symbol(c.name("a size")?.0)),
        Tok::Mark("?") => {
            c.advance();
            Ok(Dim::Unknown)
        }
        _ => Err(c.expected("a size: a number, a name or `?`")),
    })?;
    Ok(TensorType { dtype, shape: (!dims.is_empty()).then_some(dims) })
}

/// `{1, 2}` or `["location": "file", ...]` of the given type.
fn tensor_contents(c: &mut Cursor, ty: &TensorType, at: Span) -> Result<Tensor, ParseError> {
    let dims = ty.known_dims().ok_or_else(|| c.error_at(at, "a constant's sizes must all be numbers"))?;
    let tensor = |data| Tensor { dtype: ty.dtype, dims, data, rider: Rider::default() };
    if c.eat("[") {
        let entries = c.list("]", |c| {
            let (k, _) = c.name("a key between quotes")?;
            c.expect(":", "after the key")?;
            Ok((k, c.name("a value between quotes")?.0))
        })?;
        return Ok(tensor(Payload::External(entries.into())));
    }
    c.expect("{", "to open the elements")?;
    if c.is("~") {
        return Err(c.error("these elements were left out when the text was made; print the model in full"));
    }
    if ty.dtype == DType::STRING {
        let v = c.list("}", |c| bytes(c, "a string"))?;
        return Ok(tensor(Payload::Str(v.into())));
    }
    if matches!(c.peek(), Tok::Str(_)) {
        let raw = hex_bytes(c)?;
        c.expect("}", "after the bytes")?;
        return Ok(tensor(Payload::Raw(raw)));
    }
    let mut packer = Packer::new(ty.dtype)
        .ok_or_else(|| c.error(format!("elements of {} are written as one hexadecimal string", ty.dtype)))?;
    c.list("}", |c| {
        let (text, at) = c.number("a number")?;
        packer.push(text).map_err(|e| c.error_at(at, e))
    })?;
    Ok(tensor(Payload::Raw(packer.finish().into())))
}

fn bytes(c: &mut Cursor, what: &str) -> Result<Bytes, ParseError> {
    match c.peek().clone() {
        Tok::Str(s) => {
            c.advance();
            Ok(s.into())
        }
        _ => Err(c.expected(what)),
    }
}

fn hex_bytes(c: &mut Cursor) -> Result<Bytes, ParseError> {
    let at = c.span();
    if c.is("{") && matches!(c.peek_at(1), Tok::Mark("~")) {
        return Err(c.error("this was left out when the text was made; print the model in full"));
    }
    let text = bytes(c, "a string of hexadecimal digits")?;
    unhex(&text).map(Bytes::from).ok_or_else(|| c.error_at(at, "these are no pairs of hexadecimal digits"))
}

fn node(c: &mut Cursor, b: &mut Builder) -> Result<(), ParseError> {
    let mut name = String::new();
    if c.eat("[") {
        name = c.name("the node's name")?.0;
        c.expect("]", "after the node's name")?;
    }
    let mut outputs = Vec::new();
    if !c.is("=") {
        loop {
            outputs.push(optional_value(c, b)?.map(|(v, at)| b.define(c, at, v).map(|()| v)).transpose()?);
            if !c.eat(",") {
                break;
            }
        }
    }
    if c.is(".") {
        return Err(c.error("a name with a point is written between double quotes"));
    }
    c.expect("=", "after the outputs")?;
    let op = operator(c)?;
    let mut attrs = Attrs::new();
    attributes(c, &mut attrs)?;
    c.expect("(", "to open the inputs")?;
    let inputs = c.list(")", |c| Ok(optional_value(c, b)?.map(|(v, _)| v)))?;
    attributes(c, &mut attrs)?;
    let mut captures = Vec::new();
    if c.eat("@") {
        c.expect("(", "to open the outer values that nested graphs read")?;
        captures = c.list(")", |c| Ok(b.value(&value_name(c)?.0)))?;
    }
    let mut n = Node::new(op, inputs, outputs, attrs);
    n.name = name;
    n.captures = captures;
    b.g.add_node(n, None);
    Ok(())
}

/// A value's name; `""` or nothing before a comma or closing mark is an omitted one.
fn optional_value(c: &mut Cursor, b: &mut Builder) -> Result<Option<(ValueId, Span)>, ParseError> {
    if c.is(",") || c.is(")") || c.is("=") {
        return Ok(None);
    }
    let (name, at) = c.name("a value's name")?;
    Ok(if name.is_empty() { None } else { Some((b.value(&name), at)) })
}

/// `Relu`, `com.microsoft.Gelu`, `"any domain".Name`.
fn operator(c: &mut Cursor) -> Result<Op, ParseError> {
    let mut parts = vec![c.name("an operator")?.0];
    while c.eat(".") {
        parts.push(c.name("the rest of the operator's name")?.0);
    }
    let name = parts.pop().unwrap_or_default();
    Ok(Op { domain: parts.join("."), name })
}

fn attributes(c: &mut Cursor, attrs: &mut Attrs) -> Result<(), ParseError> {
    if !c.eat("<") {
        return Ok(());
    }
    c.list(">", |c| {
        let (name, at) = c.name("an attribute's name")?;
        if attrs.get(&name).is_some() {
            return Err(c.error_at(at, format!("attribute `{name}` is given twice")));
        }
        let kind = if c.eat(":") { Some(c.ident("the attribute's type")?) } else { None };
        c.expect("=", "after the attribute's name")?;
        let value = attribute(c, kind)?;
        attrs.set(&name, value);
        Ok(())
    })?;
    Ok(())
}

/// What stands after the `=` of an attribute. `kind` is the type the text gives it.
fn attribute(c: &mut Cursor, kind: Option<(&str, Span)>) -> Result<AttrValue, ParseError> {
    let start = c.span();
    let name = kind.map(|k| k.0);
    match name {
        _ if c.eat("@") => {
            let (attr, _) = c.name("the name of an attribute of the enclosing function")?;
            let number = match kind {
                None => 0,
                Some((k, at)) => ATTR_KINDS
                    .iter()
                    .find(|x| x.0 == k)
                    .map(|x| x.1)
                    .or_else(|| k.strip_prefix("kind")?.parse().ok())
                    .ok_or_else(|| c.error_at(at, format!("unknown attribute type `{k}`")))?,
            };
            return Ok(AttrValue::Ref { attr, kind: number });
        }
        Some("graph") => return hex_bytes(c).map(AttrValue::Graph),
        Some("encoded") => return hex_bytes(c).map(AttrValue::Other),
        Some("graphs") => {
            c.expect("[", "to open the list")?;
            return Ok(AttrValue::Graphs(c.list("]", hex_bytes)?.into()));
        }
        _ => {}
    }
    let value = if c.eat("[") {
        let items = c.list("]", scalar)?;
        list_value(items, name).map_err(|e| c.error_at(start, e))?
    } else {
        match scalar(c)? {
            Item::Number(s) if is_float_text(s) || name == Some("float") => {
                AttrValue::Float(float(s).map_err(|e| c.error_at(start, e))?)
            }
            Item::Number(s) => AttrValue::Int(int(s).map_err(|e| c.error_at(start, e))?),
            Item::Str(s) => AttrValue::Str(s),
            Item::Tensor(t) => AttrValue::Tensor(t),
        }
    };
    let is = match &value {
        AttrValue::Float(_) => "float",
        AttrValue::Int(_) => "int",
        AttrValue::Str(_) => "string",
        AttrValue::Tensor(_) => "tensor",
        AttrValue::Floats(_) => "floats",
        AttrValue::Ints(_) => "ints",
        AttrValue::Strs(_) => "strings",
        _ => "tensors",
    };
    match name {
        Some(k) if k != is => Err(c.error_at(start, format!("this is of type {is}, not {k}"))),
        _ => Ok(value),
    }
}

/// One item of an attribute; numbers as their text.
enum Item<'s> {
    Number(&'s str),
    Str(Bytes),
    Tensor(Tensor),
}

fn scalar<'s>(c: &mut Cursor<'s>) -> Result<Item<'s>, ParseError> {
    if c.at_number() {
        return Ok(Item::Number(c.number("a number")?.0));
    }
    match *c.peek() {
        Tok::Str(_) => Ok(Item::Str(bytes(c, "a string")?)),
        Tok::Ident(name) if dtype(name).is_some() => {
            let at = c.span();
            let ty = tensor_type(c)?;
            if matches!(c.peek(), Tok::Ident(_) | Tok::Str(_)) {
                // ONNX lets an attribute's tensor carry a name of its own; nothing reads it.
                c.name("the tensor's name")?;
            }
            c.eat("=");
            Ok(Item::Tensor(tensor_contents(c, &ty, at)?))
        }
        Tok::Ident(_) if matches!(c.peek_at(1), Tok::Mark("(")) => {
            Err(c.error("nested graphs can only be written encoded, as `body: graph = \"0a1b\"`"))
        }
        _ => Err(c.expected("a number, a string, a tensor or a list")),
    }
}

fn list_value(items: Vec<Item>, kind: Option<&str>) -> Result<AttrValue, String> {
    let mixed = || "the items of a list must be of one type".to_owned();
    let wanted = match items.first() {
        None => kind.ok_or("an empty list needs a type, as in `axes: ints = []`")?,
        Some(Item::Str(_)) => "strings",
        Some(Item::Tensor(_)) => "tensors",
        Some(Item::Number(_)) => {
            let float = |i: &Item| matches!(i, Item::Number(s) if is_float_text(s));
            if kind == Some("floats") || items.iter().any(float) { "floats" } else { "ints" }
        }
    };
    Ok(match wanted {
        "floats" => AttrValue::Floats(
            items
                .iter()
                .map(|i| if let Item::Number(s) = i { float(s) } else { Err(mixed()) })
                .collect::<Result<_, _>>()?,
        ),
        "ints" => AttrValue::Ints(
            items
                .iter()
                .map(|i| if let Item::Number(s) = i { int(s) } else { Err(mixed()) })
                .collect::<Result<_, _>>()?,
        ),
        "strings" => AttrValue::Strs(
            items
                .into_iter()
                .map(|i| if let Item::Str(s) = i { Ok(s) } else { Err(mixed()) })
                .collect::<Result<_, _>>()?,
        ),
        "tensors" => AttrValue::Tensors(
            items
                .into_iter()
                .map(|i| if let Item::Tensor(t) = i { Ok(t) } else { Err(mixed()) })
                .collect::<Result<_, _>>()?,
        ),
        k => return Err(format!("`{k}` is no list type")),
    })
}

fn float(s: &str) -> Result<f32, String> {
    let v: f32 = s.parse().map_err(|_| format!("`{s}` is no number"))?;
    if v.is_infinite() && !s.contains('i') { Err(format!("`{s}` does not fit a 32-bit float")) } else { Ok(v) }
}

fn int(s: &str) -> Result<i64, String> {
    s.parse().map_err(|_| format!("`{s}` does not fit a 64-bit integer"))
}
