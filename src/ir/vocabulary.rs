//! What the standard operators are, for all who ask: their class, and what an attribute that is absent stands for.
//!
//! Source: the operator schemas of the ONNX standard.

use super::{AttrValue, Node};

/// What an operator does with its elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The same elements in the same order, under another shape.
    Relabel,
    /// Elements moved, repeated or left out; none is computed.
    Move,
    /// One operand, element by element.
    Unary,
    /// Operands broadcast against each other, element by element, with the type of the first.
    Broadcast,
    /// A truth value for each element, of one operand or of two that are broadcast.
    Compare,
    /// Sums of products of two operands, the second of which may be a weight.
    Product,
    /// Sums of products inside a larger operator, at places that are computed, or with axes by letter.
    Compound,
    /// Products of codes, in integers.
    IntegerProduct,
    /// Means and variances taken out.
    Norm,
    /// Shares of a whole, along an axis.
    Softmax,
    /// One result for all elements along some axes.
    Reduction,
}

/// Sorted by name.
#[rustfmt::skip]
const CLASSES: &[(&str, Class)] = {
    use Class::*;
    &[
        ("Abs", Unary), ("Acos", Unary), ("Acosh", Unary), ("Add", Broadcast), ("And", Broadcast), ("Asin", Unary),
        ("Asinh", Unary), ("Atan", Unary), ("Atanh", Unary), ("Attention", Compound), ("BatchNormalization", Norm),
        ("BitShift", Broadcast), ("BitwiseAnd", Broadcast), ("BitwiseNot", Unary), ("BitwiseOr", Broadcast),
        ("BitwiseXor", Broadcast), ("Ceil", Unary), ("Celu", Unary), ("Concat", Move), ("Conv", Product),
        ("ConvInteger", IntegerProduct), ("ConvTranspose", Product), ("Cos", Unary), ("Cosh", Unary),
        ("DeformConv", Compound), ("DepthToSpace", Move), ("Div", Broadcast), ("Einsum", Compound), ("Elu", Unary),
        ("Equal", Compare), ("Erf", Unary), ("Exp", Unary), ("Expand", Move), ("Flatten", Relabel), ("Floor", Unary),
        ("GRU", Compound), ("Gather", Move), ("Gelu", Unary), ("Gemm", Product), ("Greater", Compare),
        ("GreaterOrEqual", Compare), ("GroupNormalization", Norm), ("HardSigmoid", Unary), ("HardSwish", Unary),
        ("Hardmax", Softmax), ("Identity", Move), ("InstanceNormalization", Norm), ("IsInf", Compare),
        ("IsNaN", Compare), ("LSTM", Compound), ("LayerNormalization", Norm), ("LeakyRelu", Unary), ("Less", Compare),
        ("LessOrEqual", Compare), ("Log", Unary), ("LogSoftmax", Softmax), ("LpNormalization", Norm),
        ("MatMul", Product), ("MatMulInteger", IntegerProduct), ("Max", Broadcast), ("Mean", Broadcast),
        ("MeanVarianceNormalization", Norm), ("Min", Broadcast), ("Mish", Unary), ("Mod", Broadcast),
        ("Mul", Broadcast), ("Neg", Unary), ("Not", Unary), ("Or", Broadcast), ("Pad", Move), ("Pow", Broadcast),
        ("QLinearConv", IntegerProduct), ("QLinearMatMul", IntegerProduct), ("RMSNormalization", Norm),
        ("RNN", Compound), ("Reciprocal", Unary), ("ReduceL1", Reduction), ("ReduceL2", Reduction),
        ("ReduceLogSum", Reduction), ("ReduceLogSumExp", Reduction), ("ReduceMax", Reduction),
        ("ReduceMean", Reduction), ("ReduceMin", Reduction), ("ReduceProd", Reduction), ("ReduceSum", Reduction),
        ("ReduceSumSquare", Reduction), ("Relu", Unary), ("Reshape", Relabel), ("Round", Unary), ("Selu", Unary),
        ("Shrink", Unary), ("Sigmoid", Unary), ("Sign", Unary), ("Sin", Unary), ("Sinh", Unary), ("Slice", Move),
        ("Softmax", Softmax), ("Softplus", Unary), ("Softsign", Unary), ("SpaceToDepth", Move), ("Split", Move),
        ("Sqrt", Unary), ("Squeeze", Relabel), ("Sub", Broadcast), ("Sum", Broadcast), ("Swish", Unary), ("Tan", Unary),
        ("Tanh", Unary), ("ThresholdedRelu", Unary), ("Tile", Move), ("Transpose", Move), ("Unsqueeze", Relabel),
        ("Xor", Broadcast),
    ]
};

/// The class of a standard operator; `None` for one whose class nothing asks for.
pub fn class(op: &str) -> Option<Class> {
    CLASSES.binary_search_by_key(&op, |(name, _)| name).ok().map(|i| CLASSES[i].1)
}

/// What an absent attribute means at this operator set.
pub fn default(op: &str, attr: &str, opset: i64) -> Option<AttrValue> {
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
        ("LpNormalization", "p") => int(2),
        ("LayerNormalization" | "RMSNormalization" | "GroupNormalization", "stash_type") => int(1),
        (
            "LayerNormalization"
            | "RMSNormalization"
            | "GroupNormalization"
            | "InstanceNormalization"
            | "BatchNormalization",
            "epsilon",
        ) => float(1e-5),
        ("Gather" | "GatherElements" | "ScatterElements" | "Split" | "SplitToSequence", "axis") => int(0),
        ("SplitToSequence", "keepdims") => int(1),
        ("Flatten" | "QuantizeLinear" | "DequantizeLinear", "axis") => int(1),
        ("Concat", "axis") if opset < 4 => int(1),
        ("Gemm", "alpha" | "beta") => float(1.0),
        ("Gemm", "transA" | "transB") => int(0),
        ("Gelu", "approximate") => text("none"),
        ("Swish", "alpha") => float(1.0),
        ("Reshape", "allowzero") => int(0),
        ("Conv" | "ConvInteger" | "QLinearConv" | "ConvTranspose" | "DeformConv", "group") => int(1),
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
        ("AveragePool" | "MaxPool", "ceil_mode") => int(0),
        ("AveragePool" | "MaxPool" | "Conv" | "ConvTranspose", "auto_pad") => text("NOTSET"),
        ("BatchNormalization", "training_mode") => int(0),
        ("QuantizeLinear" | "DequantizeLinear", "block_size") => int(0),
        ("EyeLike", "k") => int(0),
        ("Mod", "fmod") => int(0),
        ("GatherND", "batch_dims") => int(0),
        ("ScatterND" | "ScatterElements", "reduction") => text("none"),
        ("Resize", "keep_aspect_ratio_policy") => text("stretch"),
        _ => None,
    }
}

/// An axis of a value with so many, counted from the front: negative ones are counted from the end. `None` if it has no such
/// axis.
pub fn axis(a: i64, rank: usize) -> Option<usize> {
    let r = i64::try_from(rank).ok()?;
    usize::try_from(if a < 0 { a.checked_add(r)? } else { a }).ok().filter(|x| *x < rank)
}

const ARITHMETIC: &[&str] = &[
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Pow",
    "Sqrt",
    "Exp",
    "Log",
    "Abs",
    "Neg",
    "Sign",
    "Min",
    "Max",
    "Clip",
    "Where",
    "Floor",
    "Ceil",
    "Round",
    "Reciprocal",
    "Cast",
];

/// Operators that look at elements to decide how many come out.
const COUNTING: &[&str] = &["Compress", "NonMaxSuppression", "NonZero", "Unique"];

/// Operators that find their own numbers.
const RANDOM: &[&str] =
    &["Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"];

impl Node {
    /// The class of a node's operator, if it is a standard one.
    pub fn class(&self) -> Option<Class> {
        self.op.is_onnx().then(|| class(&self.op.name))?
    }

    /// True for a standard operator of this class.
    pub fn is_a(&self, class: Class) -> bool {
        self.class() == Some(class)
    }

    /// True for a move, which computes no element.
    pub fn is_move(&self) -> bool {
        matches!(self.class(), Some(Class::Relabel | Class::Move))
    }

    /// True for arithmetic element by element: what its result is read for is what it is for. Activation functions are none.
    pub fn is_arithmetic(&self) -> bool {
        self.op.is_onnx() && ARITHMETIC.contains(&self.op.name.as_str())
    }

    /// True for one of the four operations of elementary arithmetic.
    pub fn is_elementary(&self) -> bool {
        self.op.is_onnx() && matches!(self.op.name.as_str(), "Add" | "Sub" | "Mul" | "Div")
    }

    /// True for a product that has an integer kernel everywhere, if its second operand is a weight.
    pub fn is_layer(&self) -> bool {
        self.op.is_onnx() && matches!(self.op.name.as_str(), "MatMul" | "Gemm" | "Conv")
    }

    /// True if the elements decide how many come out.
    pub fn counts_elements(&self) -> bool {
        self.op.is_onnx() && COUNTING.contains(&self.op.name.as_str())
    }

    /// True if the elements decide which come out, and in which order.
    pub fn chooses_elements(&self) -> bool {
        self.counts_elements() || self.op.is("TopK")
    }

    /// True if the numbers that come out are drawn at random.
    pub fn is_random(&self) -> bool {
        self.op.is_onnx() && RANDOM.contains(&self.op.name.as_str())
    }

    /// True for a move of what it reads at this place: not for the sizes and places that others of its inputs are.
    pub fn moves(&self, slot: usize) -> bool {
        self.is_move() && (slot == 0 || self.op.is("Concat"))
    }

    /// True for a move that keeps every element.
    pub fn is_whole_move(&self) -> bool {
        self.is_a(Class::Relabel) || self.op.is("Transpose") || self.op.is("Identity")
    }

    /// An integer attribute: as written, or what its absence stands for, which must be the same in all operator sets (only
    /// the axis of Softmax is not; see [`Node::axis_at`]). 0 for an attribute that the operator does not have.
    pub fn int(&self, attr: &str) -> i64 {
        debug_assert!(!(attr == "axis" && class(&self.op.name) == Some(Class::Softmax)));
        self.attrs
            .int(attr)
            .or_else(|| match self.absent(attr)? {
                AttrValue::Int(v) => Some(v),
                _ => None,
            })
            .unwrap_or(0)
    }

    /// A float attribute, as [`Node::int`].
    pub fn float(&self, attr: &str) -> f32 {
        self.attrs
            .float(attr)
            .or_else(|| match self.absent(attr)? {
                AttrValue::Float(v) => Some(v),
                _ => None,
            })
            .unwrap_or(0.0)
    }

    /// True if a text attribute is this, or absent and stands for it.
    pub fn says(&self, attr: &str, text: &str) -> bool {
        match self.attrs.get(attr) {
            Some(_) => self.attrs.str(attr) == Some(text),
            None => matches!(self.absent(attr), Some(AttrValue::Str(s)) if s == text.as_bytes()),
        }
    }

    /// The attribute `axis` at an operator set, counted from the front of a value with `rank` axes.
    pub fn axis_at(&self, rank: usize, opset: i64) -> usize {
        let absent = || match default(&self.op.name, "axis", opset) {
            Some(AttrValue::Int(v)) => v,
            _ => 0,
        };
        self.attrs.int("axis").unwrap_or_else(absent).rem_euclid(rank.max(1) as i64) as usize
    }

    fn absent(&self, attr: &str) -> Option<AttrValue> {
        self.op.is_onnx().then(|| default(&self.op.name, attr, super::ops::newest_opset()))?
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::{Attrs, Op, ops};
    use super::*;

    #[test]
    fn classes_are_sorted_and_of_the_standard() {
        assert!(CLASSES.windows(2).all(|w| w[0].0 < w[1].0));
        for (name, _) in CLASSES {
            assert!(ops::versions(name).is_some(), "{name}");
        }
    }

    #[test]
    fn absent_attributes_have_their_defaults() {
        let node = |op: &str| Node::new(Op::onnx(op), vec![], vec![], Attrs::new());
        assert_eq!((node("Gather").int("axis"), node("Flatten").int("axis"), node("TopK").int("axis")), (0, 1, -1));
        assert_eq!((node("Gemm").float("alpha"), node("LayerNormalization").float("epsilon")), (1.0, 1e-5));
        assert!(node("Pad").says("mode", "constant") && !node("Pad").says("mode", "edge"));
        assert_eq!((node("Softmax").axis_at(3, 11), node("Softmax").axis_at(3, 13)), (1, 2));
        let written = Node { attrs: Attrs::new().with_int("axis", 2), ..node("Gather") };
        assert_eq!(written.int("axis"), 2);
    }

    /// [`Node::int`] and its like rely on it.
    #[test]
    fn only_the_axis_of_softmax_depends_on_the_operator_set() {
        for op in ops::names() {
            let names: BTreeSet<&str> =
                ops::versions(op).into_iter().flatten().flat_map(|v| v.attrs).copied().collect();
            for attr in names {
                if class(op) == Some(Class::Softmax) && attr == "axis" {
                    continue;
                }
                let at: Vec<_> = (7..=ops::newest_opset()).map(|o| default(op, attr, o)).collect();
                assert!(at.windows(2).all(|w| w[0] == w[1]), "{op} {attr}");
            }
        }
    }
}
