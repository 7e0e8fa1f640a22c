//! Element types: what each operator takes and makes at the model's operator set.
//!
//! Types are followed through the graph as far as declarations, constants and schemas tell them; what is not known is not
//! judged.

use std::fmt;

use super::Checker;
use crate::ir::ops::{self, OpSchema, Param};
use crate::ir::{AttrValue, DType, Node, NodeId, Tensor, ValueId};

/// Where an operator has an element type.
#[derive(Clone, Copy)]
enum Place {
    Input(usize),
    Output(usize),
}

impl Place {
    fn of(self, schema: &'static OpSchema) -> Option<Param> {
        match self {
            Place::Input(slot) => schema.input(slot),
            Place::Output(slot) => schema.output(slot),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Input(slot) => write!(f, "input {slot}"),
            Place::Output(slot) => write!(f, "output {slot}"),
        }
    }
}

/// The type that each type variable of a node stands for, and where it was seen first.
type Bound = [Option<(DType, Place)>; 32];

impl Checker<'_> {
    /// The element type of a value, as far as it is known.
    fn dtype(&self, v: ValueId) -> Option<DType> {
        let value = self.g.try_value(v)?;
        let told = value.ty.as_ref().map(|t| t.dtype).or_else(|| self.g.constant(v).map(|t| t.dtype));
        told.or(self.made[v.0 as usize]).filter(|t| *t != DType::UNDEFINED && t.name().is_some())
    }

    /// Element types of inputs and outputs.
    pub(super) fn type_rules(&mut self, id: NodeId, n: &Node, schema: &'static OpSchema) {
        let mut bound: Bound = [None; 32];
        for (slot, v) in n.inputs.iter().enumerate() {
            let (Some(v), Some(p)) = (v, schema.input(slot)) else { continue };
            if let Some(t) = self.dtype(*v) {
                self.typed(id, n, p, t, Place::Input(slot), &mut bound);
            }
        }
        for (slot, v) in n.outputs.iter().enumerate() {
            let (Some(v), Some(p)) = (v, schema.output(slot)) else { continue };
            let told = self.dtype(*v);
            let by_variable = bound.get(p.variable()).and_then(|b| b.map(|(t, _)| t));
            let made = by_variable.or_else(|| made_by(n, slot)).or_else(|| p.only());
            if let Some(t) = told.or(made) {
                self.typed(id, n, p, t, Place::Output(slot), &mut bound);
            }
            if let (Some(told), Some(made), None) = (told, made, by_variable)
                && told != made
            {
                let name = self.g.name_of(*v).to_owned();
                self.node(id, Some(*v), format!("output {slot} is {made}, and `{name}` is declared {told}"));
            }
            if let Some(t) = told.or(made) {
                self.made[v.0 as usize] = Some(t);
            }
        }
    }

    fn typed(&mut self, id: NodeId, n: &Node, p: Param, t: DType, place: Place, bound: &mut Bound) {
        let opset = self.m.opset();
        let narrow = matches!(t, DType::FLOAT16 | DType::BFLOAT16) && !self.strict;
        // A model on its way has codes of 16 bits between operators that `wide-codes` writes as numbers.
        let codes = matches!(n.op.name.as_str(), "QuantizeLinear" | "DequantizeLinear");
        let wide = codes && matches!(t, DType::UINT16 | DType::INT16) && !self.strict;
        let taken = p.allows(t) || narrow && p.allows(DType::FLOAT) || wide;
        if !taken {
            let later = ops::versions(&n.op.name).into_iter().flatten();
            let later = later.filter(|s| s.since > opset).find(|s| place.of(s).is_some_and(|p| p.allows(t)));
            let hint = later.map_or(String::new(), |s| format!(" (from opset {} on)", s.since));
            return self.node(
                id,
                None,
                format!("{place} is {t}, which {} does not take at opset {opset}{hint}", n.op.name),
            );
        }
        let Some(slot) = bound.get_mut(p.variable()).filter(|_| p.variable() > 0) else { return };
        match slot {
            None => *slot = Some((t, place)),
            Some((first, _)) if *first == t => {}
            Some((first, where_)) => {
                let message = format!("{place} is {t}, {where_} is {first}: {} takes one type for both", n.op.name);
                self.node(id, None, message);
            }
        }
    }

    /// Element types that the file's version does not have.
    pub(super) fn age(&self, t: &Tensor) -> Option<String> {
        let (opset, version) = ops::newer_type(t.dtype)?;
        let has = self.m.ir_version;
        (has > 0 && has < version).then(|| {
            format!(
                "is {}, which begins with file version (IR) {version} and opset {opset}; the model has IR {has}",
                t.dtype
            )
        })
    }

    /// Attributes that the operator does not have at the model's operator set.
    pub(super) fn attribute_rules(&mut self, id: NodeId, n: &Node, schema: &'static OpSchema) {
        let opset = self.m.opset();
        let ins = schema.inputs();
        for a in n.attrs.0.iter().filter(|a| !a.name.is_empty() && !schema.has_attr(&a.name)) {
            let op = &n.op.name;
            let message = if ops::attr_input(op, &a.name).is_some_and(|slot| ins.allows(slot + 1)) {
                format!("`{}` is an input of {op} at opset {opset}, no attribute", a.name)
            } else {
                let all = ops::versions(op).unwrap_or_default();
                let with: Vec<i64> = all.iter().filter(|s| s.has_attr(&a.name)).map(|s| s.since).collect();
                match (with.iter().find(|s| **s > opset), with.last()) {
                    (Some(s), _) => {
                        format!("attribute `{}` of {op} begins with opset {s}, the model has {opset}", a.name)
                    }
                    (None, Some(_)) => format!("attribute `{}` of {op} is gone at opset {opset}", a.name),
                    (None, None) => format!("{op} has no attribute `{}`", a.name),
                }
            };
            self.node(id, None, message);
        }
    }
}

/// The element type of an output that an attribute decides.
fn made_by(n: &Node, slot: usize) -> Option<DType> {
    if slot > 0 {
        return None;
    }
    let tensor = |name: &str| match n.attrs.get(name) {
        Some(AttrValue::Tensor(t)) => Some(t.dtype),
        _ => None,
    };
    match n.op.name.as_str() {
        "Constant" => tensor("value").or_else(|| {
            let has = |names: [&str; 2]| names.iter().any(|a| n.attrs.get(a).is_some());
            let kinds = [
                (["value_float", "value_floats"], DType::FLOAT),
                (["value_int", "value_ints"], DType::INT64),
                (["value_string", "value_strings"], DType::STRING),
            ];
            kinds.into_iter().find(|(names, _)| has(*names)).map(|(_, t)| t)
        }),
        "ConstantOfShape" => Some(tensor("value").unwrap_or(DType::FLOAT)),
        op => {
            let said = ["to", "output_dtype", "dtype", "output_datatype"].iter().find_map(|a| n.attrs.int(a));
            let said = said.and_then(|t| i32::try_from(t).ok()).map(DType).filter(|t| *t != DType::UNDEFINED);
            // Without a zero point and without a word the codes are uint8.
            said.or_else(|| (op == "QuantizeLinear" && n.input(2).is_none()).then_some(DType::UINT8))
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::ir::validate::{operators, validate};
    use crate::text::parse_model;

    fn told(header: &str, text: &str) -> String {
        let m = parse_model(&format!("<{header}> g {text}")).unwrap_or_else(|e| panic!("{text}: {e}"));
        validate(&m).map_or_else(|e| e.to_string(), |_| "valid".to_owned())
    }

    /// As a runtime sees it.
    fn written(opset: i64, text: &str) -> String {
        let m = parse_model(&format!("<ir_version: 13, opset_import: [\"\" : {opset}]> g {text}"));
        operators(&m.unwrap_or_else(|e| panic!("{e}"))).map_or_else(|e| e.to_string(), |()| "valid".to_owned())
    }

    fn at(opset: i64, text: &str) -> String {
        told(&format!("ir_version: 13, opset_import: [\"\" : {opset}]"), text)
    }

    #[test]
    fn narrow_types_begin_with_their_operator_set() {
        for (first, before, w) in [
            (21, "13", "int4[2] w = {1, 2}"),
            (21, "13", "uint4[2] w = {1, 2}"),
            (21, "13", "int16[2] w = {1, 2}"),
            (21, "13", "uint16[2] w = {1, 2}"),
        ] {
            let text = format!("(float s) => (float[2] y) <{w}> {{ y = DequantizeLinear (w, s) }}");
            assert_eq!(written(first, &text), "valid", "{w}");
            let e = written(first - 1, &text);
            assert!(e.contains(&format!("does not take at opset {}", first - 1)), "{before} {w}: {e}");
            assert!(e.contains("input 0") && e.contains("(from opset 21 on)"), "{w}: {e}");
        }
        let cast = |to: i32| format!("(float[2] x) => (y) {{ y = Cast <to = {to}> (x) }}");
        for (to, first) in [(17, 19), (20, 19), (22, 21), (23, 23)] {
            assert_eq!(at(first, &cast(to)), "valid");
            assert!(at(first - 1, &cast(to)).contains("output 0"), "{to}");
        }
        assert_eq!(at(12, &cast(16)), "valid", "half precision is widened before anything runs");
        assert!(written(12, &cast(16)).contains("output 0"));
    }

    #[test]
    fn types_are_followed_through_undeclared_values() {
        let text = "(float[2] x, float s) => (y) <int16 z = {0}> { q = QuantizeLinear (x, s, z) y = Relu (q) }";
        assert_eq!(at(20, text), "valid", "on its way to be written as numbers");
        let e = written(20, text);
        assert!(
            e.contains("input 2 is int16, which QuantizeLinear does not take at opset 20 (from opset 21 on)"),
            "{e}"
        );
        // Relu takes int16 from opset 14 on.
        assert_eq!(at(21, text), "valid");
        let e = at(17, "(float[2] x) => (y) { h = Cast <to = 7> (x) y = Add (h, x) }");
        assert!(e.contains("input 1 is float, input 0 is int64: Add takes one type for both"), "{e}");
        let e = at(17, "(float[2] x) => (y) { s = Shape (x) y = Relu (s) z = LayerNormalization (s, s) }");
        assert!(e.contains("input 0 is int64, which LayerNormalization does not take"), "{e}");
        assert_eq!(at(17, "(float[2] x) => (y) { s = Shape (x) y = Relu (s) }"), "valid");
        let e = at(17, "(float[2] x) => (int64[2] y) { y = Relu (x) }");
        assert!(e.contains("output 0 is int64, input 0 is float"), "{e}");
        let e = at(17, "(float[2] x) => (float[1] y) { y = Shape (x) }");
        assert!(e.contains("output 0 is float, which Shape does not take"), "{e}");
    }

    #[test]
    fn half_precision_is_read_where_it_is_not_written() {
        // As PyTorch exports bfloat16: runtimes refuse it before opset 22.
        let text = "(bfloat16[1,3,8,8] x, bfloat16[4,3,8,8] w) => (y) { y = Conv (x, w) }";
        assert_eq!(at(20, text), "valid");
        let m = parse_model(&format!("<ir_version: 9, opset_import: [\"\" : 20]> g {text}")).expect("a model");
        let e = operators(&m).expect_err("too old").to_string();
        assert!(e.contains("input 1 is bfloat16, which Conv does not take at opset 20 (from opset 22 on)"), "{e}");
    }

    #[test]
    fn attributes_belong_to_an_operator_set() {
        let q = |opset| at(opset, "(float[2] x, float s) => (y) { y = QuantizeLinear <saturate = 1> (x, s) }");
        assert_eq!(q(19), "valid");
        assert!(q(17).contains("attribute `saturate` of QuantizeLinear begins with opset 19, the model has 17"));
        let e = at(17, "(float[2,3] x) => (y) { y = ReduceSum <axes = [1]> (x) }");
        assert!(e.contains("`axes` is an input of ReduceSum at opset 17, no attribute"), "{e}");
        assert!(at(17, "(float[2] x) => (y) { y = Relu <slope = 1.0> (x) }").contains("Relu has no attribute `slope`"));
        let e = at(17, "(float[2] x, float[2] z) => (y) { y = Add <broadcast = 1> (x, z) }");
        assert!(e.contains("attribute `broadcast` of Add is gone at opset 17"), "{e}");
    }

    #[test]
    fn old_files_do_not_hold_new_types() {
        let text = "(float s) => (float[2] y) <int4[2] w = {1, 2}> { y = DequantizeLinear (w, s) }";
        assert_eq!(told("ir_version: 10, opset_import: [\"\" : 21]", text), "valid");
        let e = told("ir_version: 9, opset_import: [\"\" : 21]", text);
        assert!(
            e.contains("`w` is int4, which begins with file version (IR) 10 and opset 21; the model has IR 9"),
            "{e}"
        );
    }
}
