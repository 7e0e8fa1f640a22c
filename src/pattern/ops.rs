//! What the rule language knows about the standard operators beyond [`crate::ir::ops`]: the widest arity of any version, and
//! which values an absent attribute stands for.
//!
//! Source: the operator schemas of the ONNX standard.

use crate::ir::AttrValue;
pub use crate::ir::ops::attr_input;
use crate::ir::ops::{names, versions};

/// Age and arity of a standard operator, over all its versions: a rule is checked before it meets a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpInfo {
    /// First opset that has the operator.
    pub since: i64,
    /// Fewest inputs any version takes.
    pub min_inputs: usize,
    /// Most inputs any version takes; `None` for a variadic operator.
    pub max_inputs: Option<usize>,
    /// Most outputs; `None` for a variadic operator.
    pub max_outputs: Option<usize>,
}

/// Looks a standard operator up; `None` if the standard has none of this name.
pub fn info(op: &str) -> Option<OpInfo> {
    let all = versions(op)?;
    let widest = |of: &dyn Fn(&crate::ir::ops::OpSchema) -> Option<usize>| {
        all.iter().map(of).try_fold(0, |most, n| Some(most.max(n?)))
    };
    Some(OpInfo {
        since: all.first()?.since,
        min_inputs: all.iter().map(|v| v.inputs().min).min()?,
        max_inputs: widest(&|v| v.inputs().max),
        max_outputs: widest(&|v| v.outputs().max),
    })
}

/// The known operator whose name is closest to an unknown one: what an error message suggests.
pub fn nearest(op: &str) -> Option<&'static str> {
    let want = op.to_ascii_lowercase();
    names()
        .map(|n| (distance(&want, &n.to_ascii_lowercase()), n))
        .min()
        .filter(|(d, name)| *d <= 1 + name.len() / 4)
        .map(|(_, name)| name)
}

/// Edit distance (insertions, deletions and substitutions of bytes).
pub(super) fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// What an absent attribute means at this opset.
pub fn attr_default(op: &str, attr: &str, opset: i64) -> Option<AttrValue> {
    let int = |v| Some(AttrValue::Int(v));
    let float = |v| Some(AttrValue::Float(v));
    let text = |v: &'static str| Some(AttrValue::Str(bytes::Bytes::from_static(v.as_bytes())));
    match (op, attr) {
        (_, "keepdims") if op.starts_with("Reduce") => int(1),
        (_, "noop_with_empty_axes") if op.starts_with("Reduce") => int(0),
        ("ArgMax" | "ArgMin", "keepdims") => int(1),
        ("ArgMax" | "ArgMin", "axis") => int(0),
        ("Softmax" | "LogSoftmax" | "Hardmax", "axis") => int(if opset >= 13 { -1 } else { 1 }),
        ("LayerNormalization" | "RMSNormalization" | "LpNormalization" | "TopK" | "OneHot", "axis") => int(-1),
        ("LayerNormalization" | "RMSNormalization" | "GroupNormalization", "stash_type") => int(1),
        (
            "LayerNormalization"
            | "RMSNormalization"
            | "GroupNormalization"
            | "InstanceNormalization"
            | "BatchNormalization",
            "epsilon",
        ) => float(1e-5),
        ("Gather" | "GatherElements" | "ScatterElements" | "Split", "axis") => int(0),
        ("Flatten" | "QuantizeLinear" | "DequantizeLinear", "axis") => int(1),
        ("Concat", "axis") if opset < 4 => int(1),
        ("Gemm", "alpha" | "beta") => float(1.0),
        ("Gemm", "transA" | "transB") => int(0),
        ("Gelu", "approximate") => text("none"),
        ("Swish", "alpha") => float(1.0),
        ("Reshape", "allowzero") => int(0),
        ("Conv" | "ConvTranspose", "group") => int(1),
        ("Shape", "start") => int(0),
        ("CumSum", "exclusive" | "reverse") => int(0),
        ("Attention", "is_causal" | "qk_matmul_output_mode") => int(0),
        ("Attention", "softcap") => float(0.0),
        ("LeakyRelu", "alpha") => float(0.01),
        ("Elu", "alpha") => float(1.0),
        ("HardSigmoid", "alpha") => float(0.2),
        ("HardSigmoid", "beta") => float(0.5),
        ("Pad", "mode") => text("constant"),
        ("Trilu", "upper") => int(1),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arities_are_the_widest_of_all_versions() {
        let mean = info("ReduceMean").unwrap();
        assert_eq!((mean.min_inputs, mean.max_inputs, mean.max_outputs), (1, Some(2), Some(1)));
        assert_eq!(info("Concat").unwrap().max_inputs, None);
        assert_eq!(info("LayerNormalization").map(|i| (i.since, i.min_inputs, i.max_inputs)), Some((17, 2, Some(3))));
        assert_eq!(info("NoSuchOperator"), None);
    }

    #[test]
    fn a_misspelt_operator_is_guessed() {
        assert_eq!(nearest("SoftMax"), Some("Softmax"));
        assert_eq!(nearest("LayerNorm"), None);
        assert_eq!(nearest("ReduceMeen"), Some("ReduceMean"));
    }

    #[test]
    fn softmax_changed_its_default_axis() {
        assert_eq!(attr_default("Softmax", "axis", 12), Some(AttrValue::Int(1)));
        assert_eq!(attr_default("Softmax", "axis", 13), Some(AttrValue::Int(-1)));
    }
}
