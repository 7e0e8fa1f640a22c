//! What the rule language knows about the standard operators: since when they exist, how many inputs they take, which
//! of their attributes later became constant inputs, and which values an absent attribute stands for.
//!
//! Source: the operator schemas of the ONNX standard (default domain, all versions up to 1.23), read once and reduced to
//! the widest arity any version allows.

use crate::ir::AttrValue;

/// Arity and age of a standard operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpInfo {
    /// First opset that has the operator.
    pub since: i64,
    /// Fewest inputs any version takes.
    pub min_inputs: usize,
    /// Most inputs any version takes; 255 for a variadic operator.
    pub max_inputs: usize,
    /// Most outputs; 255 for a variadic operator.
    pub max_outputs: usize,
}

/// Looks a standard operator up; `None` if the standard has none of this name.
pub fn info(op: &str) -> Option<OpInfo> {
    let i = OPS.binary_search_by(|row| row.0.cmp(op)).ok()?;
    let (_, since, min, max, outs) = OPS[i];
    Some(OpInfo { since, min_inputs: min as usize, max_inputs: max as usize, max_outputs: outs as usize })
}

/// The known operator whose name is closest to an unknown one: what an error message suggests.
pub fn nearest(op: &str) -> Option<&'static str> {
    let want = op.to_ascii_lowercase();
    OPS.iter()
        .map(|r| (distance(&want, &r.0.to_ascii_lowercase()), r.0))
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

/// `(name, since, fewest inputs, most inputs, most outputs)`, sorted by name.
#[rustfmt::skip]
const OPS: &[(&str, i64, u8, u8, u8)] = &[
    ("Abs", 1, 1, 1, 1), ("Acos", 7, 1, 1, 1), ("Acosh", 9, 1, 1, 1), ("Add", 1, 2, 2, 1),
    ("AffineGrid", 20, 2, 2, 1), ("And", 1, 2, 2, 1), ("ArgMax", 1, 1, 1, 1), ("ArgMin", 1, 1, 1, 1),
    ("Asin", 7, 1, 1, 1), ("Asinh", 9, 1, 1, 1), ("Atan", 7, 1, 1, 1), ("Atanh", 9, 1, 1, 1),
    ("Attention", 23, 3, 7, 4), ("AveragePool", 1, 1, 1, 1), ("BatchNormalization", 1, 5, 5, 5),
    ("Bernoulli", 15, 1, 1, 1), ("BitCast", 26, 1, 1, 1), ("BitShift", 11, 2, 2, 1), ("BitwiseAnd", 18, 2, 2, 1),
    ("BitwiseNot", 18, 1, 1, 1), ("BitwiseOr", 18, 2, 2, 1), ("BitwiseXor", 18, 2, 2, 1),
    ("BlackmanWindow", 17, 1, 1, 1), ("Cast", 1, 1, 1, 1), ("CastLike", 15, 2, 2, 1),
    ("CausalConvWithState", 27, 2, 4, 2), ("Ceil", 1, 1, 1, 1), ("Celu", 12, 1, 1, 1), ("CenterCropPad", 18, 2, 2, 1),
    ("Clip", 1, 1, 3, 1), ("Col2Im", 18, 3, 3, 1), ("Compress", 9, 2, 2, 1), ("Concat", 1, 1, 255, 1),
    ("ConcatFromSequence", 11, 1, 1, 1), ("Constant", 1, 0, 0, 1), ("ConstantOfShape", 9, 1, 1, 1),
    ("Conv", 1, 2, 3, 1), ("ConvInteger", 10, 2, 4, 1), ("ConvTranspose", 1, 2, 3, 1), ("Cos", 7, 1, 1, 1),
    ("Cosh", 9, 1, 1, 1), ("CumProd", 26, 2, 2, 1), ("CumSum", 11, 2, 2, 1), ("DFT", 17, 1, 3, 1),
    ("DeformConv", 19, 3, 5, 1), ("DepthToSpace", 1, 1, 1, 1), ("DequantizeLinear", 10, 2, 3, 1),
    ("Det", 11, 1, 1, 1), ("Div", 1, 2, 2, 1), ("Dropout", 1, 1, 3, 2), ("DynamicQuantizeLinear", 11, 1, 1, 3),
    ("Einsum", 12, 1, 255, 1), ("Elu", 1, 1, 1, 1), ("Equal", 1, 2, 2, 1), ("Erf", 9, 1, 1, 1), ("Exp", 1, 1, 1, 1),
    ("Expand", 8, 2, 2, 1), ("EyeLike", 9, 1, 1, 1), ("Flatten", 1, 1, 1, 1), ("Floor", 1, 1, 1, 1),
    ("GRU", 1, 3, 6, 2), ("Gather", 1, 2, 2, 1), ("GatherElements", 11, 2, 2, 1), ("GatherND", 11, 2, 2, 1),
    ("Gelu", 20, 1, 1, 1), ("Gemm", 1, 2, 3, 1), ("GlobalAveragePool", 1, 1, 1, 1), ("GlobalLpPool", 1, 1, 1, 1),
    ("GlobalMaxPool", 1, 1, 1, 1), ("Greater", 1, 2, 2, 1), ("GreaterOrEqual", 12, 2, 2, 1),
    ("GridSample", 16, 2, 2, 1), ("GroupNormalization", 21, 3, 3, 1), ("HammingWindow", 17, 1, 1, 1),
    ("HannWindow", 17, 1, 1, 1), ("HardSigmoid", 1, 1, 1, 1), ("HardSwish", 14, 1, 1, 1), ("Hardmax", 1, 1, 1, 1),
    ("Identity", 1, 1, 1, 1), ("If", 1, 1, 1, 255), ("ImageDecoder", 20, 1, 1, 1),
    ("InstanceNormalization", 1, 3, 3, 1), ("IsInf", 10, 1, 1, 1), ("IsNaN", 9, 1, 1, 1), ("LRN", 1, 1, 1, 1),
    ("LSTM", 1, 3, 8, 3), ("LayerNormalization", 17, 2, 3, 3), ("LeakyRelu", 1, 1, 1, 1), ("Less", 1, 2, 2, 1),
    ("LessOrEqual", 12, 2, 2, 1), ("LinearAttention", 27, 3, 6, 2), ("Log", 1, 1, 1, 1), ("LogSoftmax", 1, 1, 1, 1),
    ("Loop", 1, 2, 255, 255), ("LpNormalization", 1, 1, 1, 1), ("LpPool", 1, 1, 1, 1), ("MatMul", 1, 2, 2, 1),
    ("MatMulInteger", 10, 2, 4, 1), ("Max", 1, 1, 255, 1), ("MaxPool", 1, 1, 1, 2), ("MaxRoiPool", 1, 2, 2, 1),
    ("MaxUnpool", 9, 2, 3, 1), ("Mean", 1, 1, 255, 1), ("MeanVarianceNormalization", 9, 1, 1, 1),
    ("MelWeightMatrix", 17, 5, 5, 1), ("Min", 1, 1, 255, 1), ("Mish", 18, 1, 1, 1), ("Mod", 10, 2, 2, 1),
    ("Mul", 1, 2, 2, 1), ("Multinomial", 7, 1, 1, 1), ("Neg", 1, 1, 1, 1), ("NegativeLogLikelihoodLoss", 12, 2, 3, 1),
    ("NonMaxSuppression", 10, 2, 5, 1), ("NonZero", 9, 1, 1, 1), ("Not", 1, 1, 1, 1), ("OneHot", 9, 3, 3, 1),
    ("Optional", 15, 0, 1, 1), ("OptionalGetElement", 15, 1, 1, 1), ("OptionalHasElement", 15, 0, 1, 1),
    ("Or", 1, 2, 2, 1), ("PRelu", 1, 2, 2, 1), ("Pad", 1, 1, 4, 1), ("Pow", 1, 2, 2, 1), ("QLinearConv", 10, 8, 9, 1),
    ("QLinearMatMul", 10, 8, 8, 1), ("QuantizeLinear", 10, 2, 3, 1), ("RMSNormalization", 23, 2, 2, 1),
    ("RNN", 1, 3, 6, 2), ("RandomNormal", 1, 0, 0, 1), ("RandomNormalLike", 1, 1, 1, 1),
    ("RandomUniform", 1, 0, 0, 1), ("RandomUniformLike", 1, 1, 1, 1), ("Range", 11, 3, 3, 1),
    ("Reciprocal", 1, 1, 1, 1), ("ReduceL1", 1, 1, 2, 1), ("ReduceL2", 1, 1, 2, 1), ("ReduceLogSum", 1, 1, 2, 1),
    ("ReduceLogSumExp", 1, 1, 2, 1), ("ReduceMax", 1, 1, 2, 1), ("ReduceMean", 1, 1, 2, 1), ("ReduceMin", 1, 1, 2, 1),
    ("ReduceProd", 1, 1, 2, 1), ("ReduceSum", 1, 1, 2, 1), ("ReduceSumSquare", 1, 1, 2, 1),
    ("RegexFullMatch", 20, 1, 1, 1), ("Relu", 1, 1, 1, 1), ("Reshape", 1, 1, 2, 1), ("Resize", 10, 1, 4, 1),
    ("ReverseSequence", 10, 2, 2, 1), ("RoiAlign", 10, 3, 3, 1), ("RotaryEmbedding", 23, 3, 4, 1),
    ("Round", 11, 1, 1, 1), ("STFT", 17, 2, 4, 1), ("Scan", 8, 1, 255, 255), ("Scatter", 9, 3, 3, 1),
    ("ScatterElements", 11, 3, 3, 1), ("ScatterND", 11, 3, 3, 1), ("Selu", 1, 1, 1, 1), ("SequenceAt", 11, 2, 2, 1),
    ("SequenceConstruct", 11, 1, 255, 1), ("SequenceEmpty", 11, 0, 0, 1), ("SequenceErase", 11, 1, 2, 1),
    ("SequenceInsert", 11, 2, 3, 1), ("SequenceLength", 11, 1, 1, 1), ("SequenceMap", 17, 1, 255, 255),
    ("Shape", 1, 1, 1, 1), ("Shrink", 9, 1, 1, 1), ("Sigmoid", 1, 1, 1, 1), ("Sign", 9, 1, 1, 1), ("Sin", 7, 1, 1, 1),
    ("Sinh", 9, 1, 1, 1), ("Size", 1, 1, 1, 1), ("Slice", 1, 1, 5, 1), ("Softmax", 1, 1, 1, 1),
    ("SoftmaxCrossEntropyLoss", 12, 2, 3, 2), ("Softplus", 1, 1, 1, 1), ("Softsign", 1, 1, 1, 1),
    ("SpaceToDepth", 1, 1, 1, 1), ("Split", 1, 1, 2, 255), ("SplitToSequence", 11, 1, 2, 1), ("Sqrt", 1, 1, 1, 1),
    ("Squeeze", 1, 1, 2, 1), ("StringConcat", 20, 2, 2, 1), ("StringNormalizer", 10, 1, 1, 1),
    ("StringSplit", 20, 1, 1, 2), ("Sub", 1, 2, 2, 1), ("Sum", 1, 1, 255, 1), ("SwiGLU", 28, 2, 2, 1),
    ("Swish", 24, 1, 1, 1), ("Tan", 7, 1, 1, 1), ("Tanh", 1, 1, 1, 1), ("TensorScatter", 24, 2, 3, 1),
    ("TfIdfVectorizer", 9, 1, 1, 1), ("ThresholdedRelu", 10, 1, 1, 1), ("Tile", 1, 2, 3, 1), ("TopK", 1, 1, 2, 2),
    ("Transpose", 1, 1, 1, 1), ("Trilu", 14, 1, 2, 1), ("Unique", 11, 1, 1, 4), ("Unsqueeze", 1, 1, 2, 1),
    ("Upsample", 1, 1, 2, 1), ("Where", 9, 3, 3, 1), ("Xor", 1, 2, 2, 1),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_for_the_search() {
        assert!(OPS.windows(2).all(|w| w[0].0 < w[1].0));
        assert_eq!(info("LayerNormalization").map(|i| (i.since, i.min_inputs, i.max_inputs)), Some((17, 2, 3)));
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
