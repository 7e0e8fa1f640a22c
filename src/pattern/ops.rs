//! What the rule language knows about the standard operators beyond [`crate::ir::ops`]: the widest arity of any version.
//!
//! Source: the operator schemas of the ONNX standard.

use crate::ir;
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
    ir::nearest(op, names())
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
}
