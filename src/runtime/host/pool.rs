//! LpPool: the p-norm of each window.

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::{Input, Kernel, Window};

#[derive(Clone, Debug)]
pub struct LpPool {
    p: i32,
    window: Window,
}

impl LpPool {
    pub fn read(_: &ParsingContext, node: &NodeProto) -> TractResult<LpPool> {
        let kernel: Vec<i64> = node.get_attr_vec("kernel_shape")?;
        ensure!(kernel.len() == 2, "only images of two axes are known here");
        let p: i64 = node.get_attr_opt("p")?.unwrap_or(2);
        let p = i32::try_from(p).ok().filter(|p| *p >= 1).with_context(|| format!("p is {p}"))?;
        Ok(LpPool { p, window: Window::read(node, kernel)? })
    }
}

impl Kernel for LpPool {
    fn name(&self) -> &'static str {
        "LpPool"
    }

    fn shape(&self, inputs: &[TVec<TDim>]) -> TractResult<TVec<TDim>> {
        ensure!(inputs.len() == 1 && inputs[0].len() == 4, "only images of two axes are known here");
        let places = self.window.count(&inputs[0][2..])?;
        Ok(inputs[0][..2].iter().cloned().chain(places).collect())
    }

    fn eval(&self, inputs: &[Input<'_>]) -> TractResult<Vec<f32>> {
        let x = &inputs[0];
        let [items, channels, height, width] = x.dims[..] else { bail!("only images of two axes are known here") };
        ensure!(height > 0 && width > 0, "LpPool reads an image of no pixels");
        let w = &self.window;
        let places = w.count(&[height.to_dim(), width.to_dim()])?;
        let (oh, ow) = (places[0].to_usize()?, places[1].to_usize()?);
        let mut out = Vec::with_capacity(items * channels * oh * ow);
        for plane in x.values.chunks(height * width).take(items * channels) {
            for (oy, ox) in (0..oh).flat_map(|y| (0..ow).map(move |x| (y, x))) {
                let mut sum = 0f32;
                for (ky, kx) in (0..w.kernel[0]).flat_map(|y| (0..w.kernel[1]).map(move |x| (y, x))) {
                    let at = |o: usize, k: usize, axis: usize, n: usize| {
                        (o * w.strides[axis] + k * w.dilations[axis]).checked_sub(w.pads[axis]).filter(|p| *p < n)
                    };
                    if let (Some(y), Some(x)) = (at(oy, ky, 0, height), at(ox, kx, 1, width)) {
                        sum += plane[y * width + x].abs().powi(self.p);
                    }
                }
                out.push(sum.powf(1.0 / self.p as f32));
            }
        }
        Ok(out)
    }
}
