//! The operators of ONNX's own domain: since when they exist, how many inputs and outputs they take, of which element types,
//! and which attributes they have.
//!
//! The facts are data (`ops_table.rs`, made from ONNX's schema registry by `tools/gen_ops_table.py`).

#[path = "ops_table.rs"]
mod ops_table;

use super::DType;
use ops_table::{FILE_VERSIONS, NEWER_TYPES, NEWEST, OPS, SETS};

/// One version of an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpSchema {
    /// The operator set that introduced this version.
    pub since: i64,
    min_inputs: u8,
    max_inputs: u8,
    min_outputs: u8,
    max_outputs: u8,
    /// The standard withdrew the operator with this version; runtimes may still run it.
    pub deprecated: bool,
    /// Of each input and output: a set of element types by its place in the table, and a type variable.
    inputs: Words,
    outputs: Words,
    /// Names of its attributes, sorted.
    pub attrs: &'static [&'static str],
}

type Words = &'static [(u8, u8)];

/// What may stand in one input or output of an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Param {
    types: u32,
    variable: u8,
}

impl Param {
    fn of(all: Words, slot: usize, variadic: bool) -> Option<Param> {
        let (set, variable) = all.get(slot).or_else(|| all.last().filter(|_| variadic))?;
        Some(Param { types: SETS[usize::from(*set)], variable: *variable })
    }

    /// True if tensors of this element type may stand there. Types that the table does not know may stand anywhere, and of
    /// what is no tensor but a sequence, say, the elements' type tells nothing.
    pub fn allows(self, t: DType) -> bool {
        const TENSORS: u32 = !(1 << 31);
        self.types & TENSORS == 0
            || u32::try_from(t.0).ok().filter(|n| *n < 31).is_none_or(|n| self.types >> n & 1 == 1)
    }

    /// The one element type that may stand there.
    pub fn only(self) -> Option<DType> {
        (self.types.count_ones() == 1 && self.types.trailing_zeros() < 31)
            .then(|| DType(self.types.trailing_zeros() as i32))
    }

    /// A number for all inputs and outputs of the node that have the same type as this one; 0: none.
    pub fn variable(self) -> usize {
        self.variable.into()
    }
}

/// "Any number" in the table.
const VARIADIC: u8 = u8::MAX;

/// A table entry, as short as a table wants it: since, inputs (least, most), outputs (least, most), their types, attributes.
#[rustfmt::skip]
#[allow(clippy::too_many_arguments, reason = "a row of a table")]
const fn s(
    since: i64, min_inputs: u8, max_inputs: u8, min_outputs: u8, max_outputs: u8, inputs: Words, outputs: Words,
    attrs: &'static [&'static str],
) -> OpSchema {
    OpSchema { since, min_inputs, max_inputs, min_outputs, max_outputs, deprecated: false, inputs, outputs, attrs }
}

/// The entry of a withdrawn operator.
#[rustfmt::skip]
#[allow(clippy::too_many_arguments, reason = "a row of a table")]
const fn d(
    since: i64, min_inputs: u8, max_inputs: u8, min_outputs: u8, max_outputs: u8, inputs: Words, outputs: Words,
    attrs: &'static [&'static str],
) -> OpSchema {
    OpSchema { deprecated: true, ..s(since, min_inputs, max_inputs, min_outputs, max_outputs, inputs, outputs, attrs) }
}

/// How many inputs or outputs are legal: at least `min`, at most `max` (`None`: no limit). Trailing optional ones may
/// be left out, inner ones stand as omitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arity {
    pub min: usize,
    pub max: Option<usize>,
}

impl Arity {
    fn new(min: u8, max: u8) -> Arity {
        Arity { min: min.into(), max: (max != VARIADIC).then_some(max.into()) }
    }

    /// True if an operator may have so many.
    pub fn allows(self, n: usize) -> bool {
        n >= self.min && self.max.is_none_or(|m| n <= m)
    }
}

impl std::fmt::Display for Arity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.max {
            Some(m) if m == self.min => write!(f, "{m}"),
            Some(m) => write!(f, "{} to {m}", self.min),
            None => write!(f, "{} or more", self.min),
        }
    }
}

impl OpSchema {
    /// How many inputs it takes.
    pub fn inputs(&self) -> Arity {
        Arity::new(self.min_inputs, self.max_inputs)
    }

    /// How many outputs it gives.
    pub fn outputs(&self) -> Arity {
        Arity::new(self.min_outputs, self.max_outputs)
    }

    /// What may stand in an input; `None` beyond the last.
    pub fn input(&self, slot: usize) -> Option<Param> {
        Param::of(self.inputs, slot, self.max_inputs == VARIADIC)
    }

    /// What may stand in an output; `None` beyond the last.
    pub fn output(&self, slot: usize) -> Option<Param> {
        Param::of(self.outputs, slot, self.max_outputs == VARIADIC)
    }

    /// True if the operator has an attribute of this name.
    pub fn has_attr(&self, name: &str) -> bool {
        self.attrs.binary_search(&name).is_ok()
    }
}

/// All versions of a standard operator, oldest first; `None` if the standard has no operator of this name.
pub fn versions(op: &str) -> Option<&'static [OpSchema]> {
    OPS.binary_search_by_key(&op, |o| o.0).ok().map(|i| OPS[i].1)
}

/// The names of all standard operators, sorted.
pub fn names() -> impl Iterator<Item = &'static str> {
    OPS.iter().map(|o| o.0)
}

/// The version of a standard operator that holds at an operator set; `None` if it does not exist there.
///
/// Operator sets newer than the table ([`newest_opset`]) are read as the newest it knows.
pub fn schema(op: &str, opset: i64) -> Option<&'static OpSchema> {
    versions(op)?.iter().rev().find(|s| s.since <= opset)
}

/// True if the standard operator exists at this operator set.
pub fn exists_at(op: &str, opset: i64) -> bool {
    schema(op, opset).is_some()
}

/// The operator set that first had this standard operator.
pub fn first_version(op: &str) -> Option<i64> {
    versions(op)?.first().map(|s| s.since)
}

/// True if the standard gave the operator a new version after the older and up to the newer of two operator sets, or
/// if one of them lacks it. A new version may only allow more element types: what it changes is the caller's to know.
pub fn changed_between(op: &str, from: i64, to: i64) -> bool {
    let (older, newer) = (from.min(to), from.max(to));
    schema(op, older) != schema(op, newer) || !exists_at(op, older)
}

/// The input slot that carries what this attribute says, in the opsets where it is an input.
pub fn attr_input(op: &str, attr: &str) -> Option<usize> {
    Some(match (op, attr) {
        (_, "axes") if op.starts_with("Reduce") => 1,
        ("Squeeze" | "Unsqueeze", "axes") => 1,
        ("Reshape" | "Expand", "shape") => 1,
        ("Split", "split") => 1,
        ("Tile", "repeats") => 1,
        ("TopK", "k") => 1,
        ("Pad", "pads") => 1,
        ("Pad", "value") => 2,
        ("Clip", "min") => 1,
        ("Clip", "max") => 2,
        ("Slice", "starts") => 1,
        ("Slice", "ends") => 2,
        ("Slice", "axes") => 3,
        ("Slice", "steps") => 4,
        ("CumSum", "axis") => 1,
        ("Dropout", "ratio") => 1,
        _ => return None,
    })
}

/// The operator set and the file version (IR) that an element type begins with, if it is one that older files lack.
pub fn newer_type(t: DType) -> Option<(i64, i64)> {
    NEWER_TYPES.iter().find(|(n, ..)| *n == t.0).map(|(_, opset, version)| (*opset, *version))
}

/// The oldest file version (IR) that may carry an operator set.
pub fn file_version(opset: i64) -> i64 {
    FILE_VERSIONS.iter().find(|(_, newest)| *newest >= opset).or(FILE_VERSIONS.last()).map_or(0, |(v, _)| *v)
}

/// The newest file version (IR) the table knows.
pub fn newest_file_version() -> i64 {
    FILE_VERSIONS.last().map_or(0, |(version, _)| *version)
}

/// The newest operator set the table knows.
pub fn newest_opset() -> i64 {
    NEWEST
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_for_searching() {
        assert!(OPS.windows(2).all(|w| w[0].0 < w[1].0));
        assert!(OPS.iter().all(|o| !o.1.is_empty() && o.1.windows(2).all(|w| w[0].since < w[1].since)));
    }

    #[test]
    fn an_operator_begins_where_the_standard_says() {
        for (op, first) in [("LayerNormalization", 17), ("Gelu", 20), ("Attention", 23), ("QuantizeLinear", 10)] {
            assert_eq!(first_version(op), Some(first));
            assert!(exists_at(op, first) && !exists_at(op, first - 1), "{op}");
        }
        assert!(!exists_at("FusedGelu", 20));
    }

    #[test]
    fn the_version_in_force_decides_the_arity() {
        assert_eq!(schema("ReduceMean", 17).map(|s| s.inputs()), Some(Arity { min: 1, max: Some(1) }));
        assert_eq!(schema("ReduceMean", 18).map(|s| s.inputs()), Some(Arity { min: 1, max: Some(2) }));
        assert_eq!(schema("Concat", 13).map(|s| s.inputs()), Some(Arity { min: 1, max: None }));
        assert_eq!(schema("LayerNormalization", 99).map(|s| s.outputs()), Some(Arity { min: 1, max: Some(3) }));
    }

    #[test]
    fn a_file_version_goes_with_its_operator_sets() {
        let want =
            [(11, 6), (12, 7), (14, 7), (15, 8), (18, 8), (19, 9), (20, 9), (21, 10), (22, 10), (23, 11), (99, 14)];
        assert_eq!(want.map(|(opset, _)| file_version(opset)), want.map(|(_, v)| v));
        assert_eq!(newer_type(DType::INT4), Some((21, 10)));
        assert_eq!(newer_type(DType::FLOAT), None);
    }

    #[test]
    fn types_and_attributes_are_those_of_the_version_in_force() {
        let dq = |opset| schema("DequantizeLinear", opset).and_then(|s| s.input(0)).expect("an input");
        assert!(!dq(20).allows(DType::INT4) && dq(21).allows(DType::INT4) && dq(13).allows(DType::INT32));
        let concat = schema("Concat", 13).expect("it exists");
        assert_eq!(concat.input(7), concat.input(0), "any number of inputs");
        assert_eq!(schema("Add", 14).and_then(|s| s.input(2)), None);
        assert_eq!(schema("Shape", 15).and_then(|s| s.output(0)).and_then(Param::only), Some(DType::INT64));
        let q = |opset, a| schema("QuantizeLinear", opset).is_some_and(|s| s.has_attr(a));
        assert!(q(13, "axis") && !q(10, "axis") && q(21, "output_dtype") && !q(19, "output_dtype"));
    }

    #[test]
    fn a_change_counts_between_two_sets_in_either_direction() {
        assert!(changed_between("ReduceMean", 17, 18) && changed_between("ReduceMean", 18, 17));
        assert!(!changed_between("ReduceMean", 18, 26));
        assert!(changed_between("Gelu", 17, 20));
        assert!(!changed_between("Relu", 14, 20));
    }
}
