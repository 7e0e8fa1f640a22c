//! Sum and Mean of very many inputs. tract makes an addition of each and joins these one by one, which takes the square of their
//! number: 14 s for 2000 inputs.

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::{Input, Kernel};

/// Up to so many inputs tract's own additions are faster: they are fused with what surrounds them.
pub const FEW: usize = 16;

#[derive(Clone, Debug)]
pub struct Sum {
    name: &'static str,
    mean: bool,
}

impl Sum {
    pub fn added(_: &ParsingContext, _: &NodeProto) -> TractResult<Sum> {
        Ok(Sum { name: "Sum", mean: false })
    }

    pub fn averaged(_: &ParsingContext, _: &NodeProto) -> TractResult<Sum> {
        Ok(Sum { name: "Mean", mean: true })
    }
}

impl Kernel for Sum {
    fn name(&self) -> &'static str {
        self.name
    }

    fn shape(&self, inputs: &[TVec<TDim>]) -> TractResult<TVec<TDim>> {
        let mut all: TVec<TDim> = tvec!();
        for dims in inputs {
            if dims[..] != all[..] {
                all = tract_onnx::tract_hir::tract_core::broadcast::multi_broadcast(&[&all, dims])?;
            }
        }
        Ok(all)
    }

    fn eval(&self, inputs: &[Input<'_>]) -> TractResult<Vec<f32>> {
        let shapes: Vec<TVec<TDim>> = inputs.iter().map(|x| x.dims.iter().map(|d| d.to_dim()).collect()).collect();
        let dims: TVec<usize> = self.shape(&shapes)?.iter().map(|d| Ok(d.to_usize()?)).collect::<TractResult<_>>()?;
        let mut sum = vec![0f32; dims.iter().product()];
        for x in inputs {
            if x.dims == &dims[..] {
                sum.iter_mut().zip(x.values.iter()).for_each(|(s, v)| *s += v);
                continue;
            }
            let own = tract_ndarray::ArrayViewD::from_shape(x.dims, &x.values)?;
            let wide = own.broadcast(&dims[..]).context("sizes that do not go together")?;
            sum.iter_mut().zip(wide.iter()).for_each(|(s, v)| *s += v);
        }
        if self.mean {
            let n = inputs.len() as f32;
            sum.iter_mut().for_each(|s| *s /= n);
        }
        Ok(sum)
    }
}
