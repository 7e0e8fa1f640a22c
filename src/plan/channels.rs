//! Along which axis the channels of a value lie.
//!
//! Scales, factors and statistics per channel are worth having only along the axis whose channels differ: the second in
//! images as convolutions have them (`[N, C, H, W]`), the last in sequences of tokens.

use crate::ir::{Class, Graph, Node, ValueId};

/// Operators whose result has its channels second, whatever they read.
const CHANNELS_SECOND: &[&str] = &[
    "Conv",
    "ConvTranspose",
    "BatchNormalization",
    "InstanceNormalization",
    "GroupNormalization",
    "MaxPool",
    "AveragePool",
    "LpPool",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "GlobalLpPool",
    "LRN",
    "PRelu",
    "DepthToSpace",
    "SpaceToDepth",
];

/// Operators besides those of one element at a time whose result has its channels where their operands of the same rank have
/// them.
const KEEPING: &[&str] =
    &["Clip", "Identity", "Cast", "Dropout", "Resize", "Upsample", "Pad", "Slice", "Split", "Concat", "Expand", "Tile"];

/// What makes a value is followed back this far.
const FAR: usize = 64;

/// The axis of a value's channels: -1 for the last, otherwise counted from the front.
pub(crate) fn channel_axis(g: &Graph, v: ValueId) -> i64 {
    match (place(g, v, &mut Vec::new()), g.rank(v)) {
        (Some(a), Some(r)) if a + 1 < r => a as i64,
        // Of unknown rank, only what has them second by definition is known not to have them last.
        (Some(a), None) => a as i64,
        _ => -1,
    }
}

/// The axis from the front, if what makes the value says so.
fn place(g: &Graph, v: ValueId, seen: &mut Vec<ValueId>) -> Option<usize> {
    if seen.contains(&v) || seen.len() >= FAR {
        return None;
    }
    seen.push(v);
    let Some(p) = g.producer(v) else { return (g.rank(v) == Some(4) && g.constant(v).is_none()).then_some(1) };
    let n: &Node = g.node(p);
    if !n.op.is_onnx() {
        return None;
    }
    let op = n.op.name.as_str();
    if CHANNELS_SECOND.contains(&op) {
        return Some(1);
    }
    let x = n.input(0)?;
    match op {
        "Transpose" => {
            let from = place(g, x, seen)?;
            match n.attrs.ints("perm") {
                Some(perm) => perm.iter().position(|a| *a == from as i64),
                None => g.rank(x)?.checked_sub(1 + from),
            }
        }
        _ if op.starts_with("Reduce") && n.int("keepdims") != 0 => place(g, x, seen),
        _ if matches!(n.class(), Some(Class::Unary | Class::Broadcast)) || KEEPING.contains(&op) => {
            let here = g.rank(v)?;
            let alike = n.inputs.iter().flatten().filter(|x| g.rank(**x) == Some(here) && g.constant(**x).is_none());
            alike.copied().find_map(|x| place(g, x, seen))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::parse_model;

    fn axis_of(value: &str) -> i64 {
        let mut m = parse_model(
            "<ir_version: 8, opset_import: [\"\" : 17]>
             g (float[1,3,8,8] x, float[1,7,6] t) => (float[1,6,1,1] pooled, float[1,8,8,6] last, float[1,7,6] s)
             <float[6,3,1,1] w, float[1,6,1,1] gamma>
             {
                 c = Conv (x, w)
                 y = Mul (gamma, c)
                 r = Relu (y)
                 sum = Add (r, c)
                 pooled = GlobalAveragePool (sum)
                 m = ReduceMean <axes = [2, 3], keepdims = 1> (sum)
                 scaled = Add (sum, m)
                 last = Transpose <perm = [0, 2, 3, 1]> (scaled)
                 s = Add (t, t)
             }",
        )
        .expect("parses");
        crate::infer::annotate(&mut m);
        channel_axis(&m.graph, m.graph.find(value).expect("is there"))
    }

    #[test]
    fn channels_of_images_stay_second_through_arithmetic() {
        for v in ["x", "c", "y", "r", "sum", "pooled", "m", "scaled"] {
            assert_eq!(axis_of(v), 1, "{v}");
        }
    }

    #[test]
    fn channels_are_last_behind_a_transpose_and_in_tokens() {
        assert_eq!(axis_of("last"), -1);
        assert_eq!(axis_of("s"), -1);
        assert_eq!(axis_of("t"), -1);
    }
}
