//! Sizes that are none.

use crate::ir::{Dim, Model, ValueId};

/// Makes unknown what stands for a size but is none: numbers below 0 (-1 of Paddle and TensorFlow), and the names `?`, `-1`
/// and `None`, which say nothing and are not the same size wherever they stand. onnxruntime takes them so, too.
pub fn open_sizes(m: &mut Model) {
    let ids: Vec<ValueId> = m.graph.values().map(|(v, _)| v).collect();
    for v in ids {
        let Some(dims) = m.graph.value_mut(v).ty.as_mut().and_then(|t| t.shape.as_mut()) else { continue };
        for d in dims {
            let open = match d {
                Dim::Known(n) => *n < 0,
                Dim::Symbol(s) => matches!(s.as_str(), "?" | "-1" | "None" | ""),
                Dim::Unknown => false,
            };
            if open {
                *d = Dim::Unknown;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{DType, TensorType};
    use crate::text::parse_model;

    #[test]
    fn what_is_no_size_is_open() {
        let mut m = parse_model(
            "<ir_version: 8, opset_import: [\"\" : 17]> g (float[n,3,4] x) => (float[n,3,4] y) { y = Relu (x) }",
        )
        .unwrap();
        let odd = [Dim::Known(-1), Dim::Known(3), Dim::Symbol("?".into()), Dim::Symbol("n".into())];
        let x = m.graph.inputs()[0];
        m.graph.value_mut(x).ty = Some(TensorType::new(DType::FLOAT, odd));
        open_sizes(&mut m);
        let want = [Dim::Unknown, Dim::Known(3), Dim::Unknown, Dim::Symbol("n".into())];
        assert_eq!(m.graph.shape(x), Some(&want[..]));
    }
}
