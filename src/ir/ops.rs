//! The operators of ONNX's own domain: since when they exist, and how many inputs and outputs they take.
//!
//! The facts are data (`ops_table.rs`, made from ONNX's schema registry by `tools/gen_ops_table.py`).

#[path = "ops_table.rs"]
mod ops_table;

use ops_table::{NEWEST, OPS};

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
}

/// "Any number" in the table.
const VARIADIC: u8 = u8::MAX;

/// A table entry, as short as a table wants it: since, inputs (least, most), outputs (least, most).
const fn s(since: i64, min_inputs: u8, max_inputs: u8, min_outputs: u8, max_outputs: u8) -> OpSchema {
    OpSchema { since, min_inputs, max_inputs, min_outputs, max_outputs, deprecated: false }
}

/// The entry of a withdrawn operator.
const fn d(since: i64, min_inputs: u8, max_inputs: u8, min_outputs: u8, max_outputs: u8) -> OpSchema {
    OpSchema { deprecated: true, ..s(since, min_inputs, max_inputs, min_outputs, max_outputs) }
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
    pub fn inputs(&self) -> Arity {
        Arity::new(self.min_inputs, self.max_inputs)
    }

    pub fn outputs(&self) -> Arity {
        Arity::new(self.min_outputs, self.max_outputs)
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
    fn a_change_counts_between_two_sets_in_either_direction() {
        assert!(changed_between("ReduceMean", 17, 18) && changed_between("ReduceMean", 18, 17));
        assert!(!changed_between("ReduceMean", 18, 26));
        assert!(changed_between("Gelu", 17, 20));
        assert!(!changed_between("Relu", 14, 20));
    }
}
