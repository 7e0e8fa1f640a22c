//! ReverseSequence: turns the first so many steps of each item around.

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::{Input, Kernel};

#[derive(Clone, Debug)]
pub struct ReverseSequence {
    /// Whether the batch is the first axis and time the second, or the other way round.
    batch_first: bool,
}

impl ReverseSequence {
    pub fn read(_: &ParsingContext, node: &NodeProto) -> TractResult<ReverseSequence> {
        let axis = |name: &str, default: i64| -> TractResult<i64> { Ok(node.get_attr_opt(name)?.unwrap_or(default)) };
        match (axis("batch_axis", 1)?, axis("time_axis", 0)?) {
            (0, 1) => Ok(ReverseSequence { batch_first: true }),
            (1, 0) => Ok(ReverseSequence { batch_first: false }),
            (b, t) => bail!("batch_axis {b} and time_axis {t} are not 0 and 1"),
        }
    }
}

impl Kernel for ReverseSequence {
    fn name(&self) -> &'static str {
        "ReverseSequence"
    }

    fn shape(&self, inputs: &[TVec<TDim>]) -> TractResult<TVec<TDim>> {
        ensure!(
            inputs.len() == 2 && inputs[0].len() >= 2,
            "ReverseSequence reads a batch of sequences and their lengths"
        );
        Ok(inputs[0].clone())
    }

    fn eval(&self, inputs: &[Input<'_>]) -> TractResult<Vec<f32>> {
        let [x, lengths] = inputs else { bail!("ReverseSequence has two inputs") };
        let (batch, time) = if self.batch_first { (0, 1) } else { (1, 0) };
        let (a, b) = (x.dims[0], x.dims[1]);
        let inner: usize = x.dims[2..].iter().product();
        ensure!(lengths.values.len() == x.dims[batch], "{} lengths for {} items", lengths.values.len(), x.dims[batch]);
        let mut out = Vec::with_capacity(x.values.len());
        for (i, j) in (0..a).flat_map(|i| (0..b).map(move |j| (i, j))) {
            let (item, step) = if self.batch_first { (i, j) } else { (j, i) };
            let len = lengths.values[item] as usize;
            ensure!(len <= x.dims[time], "a length of {len} for {} steps", x.dims[time]);
            let from = if step < len { len - 1 - step } else { step };
            let at = if self.batch_first { item * b + from } else { from * b + item };
            out.extend_from_slice(&x.values[at * inner..][..inner]);
        }
        Ok(out)
    }
}
