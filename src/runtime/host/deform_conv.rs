//! DeformConv: a convolution whose every sample is taken beside its place, by an offset that is an input (Dai et al. 2017,
//! arXiv 1703.06211), and weighed by a mask (version 2, arXiv 1811.11168).

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::{Input, Kernel, Window, between};

#[derive(Clone, Debug)]
pub struct DeformConv {
    /// Its kernel sizes are the weight's.
    strides: Vec<i64>,
    dilations: Vec<i64>,
    pads: Vec<i64>,
    group: usize,
    offset_group: usize,
    has_bias: bool,
    has_mask: bool,
}

impl DeformConv {
    pub fn read(_: &ParsingContext, node: &NodeProto) -> TractResult<DeformConv> {
        let list = |name: &str, default: &[i64]| -> TractResult<Vec<i64>> {
            let given: Option<Vec<i64>> = node.get_attr_opt_vec(name)?;
            let given = given.filter(|v| !v.is_empty()).unwrap_or_else(|| default.to_vec());
            ensure!(given.len() == default.len(), "only images of two axes are known here");
            Ok(given)
        };
        let count = |name: &str| -> TractResult<usize> {
            let n = usize::try_from(node.get_attr_opt::<i64>(name)?.unwrap_or(1)).ok().filter(|n| *n > 0);
            n.with_context(|| format!("{name} is below 1"))
        };
        Ok(DeformConv {
            strides: list("strides", &[1, 1])?,
            dilations: list("dilations", &[1, 1])?,
            pads: list("pads", &[0, 0, 0, 0])?,
            group: count("group")?,
            offset_group: count("offset_group")?,
            has_bias: node.input.get(3).is_some_and(|n| !n.is_empty()),
            has_mask: node.input.get(4).is_some_and(|n| !n.is_empty()),
        })
    }

    fn window(&self, kernel: &[usize]) -> TractResult<Window> {
        let whole = |v: &[i64]| -> TractResult<Vec<usize>> {
            v.iter().map(|x| usize::try_from(*x).context("a size is negative")).collect()
        };
        let window = Window {
            kernel: kernel.to_vec(),
            strides: whole(&self.strides)?,
            dilations: whole(&self.dilations)?,
            pads: whole(&self.pads)?,
            ceil: false,
        };
        ensure!(window.strides.iter().chain(kernel).all(|s| *s > 0), "a stride or a kernel size is 0");
        Ok(window)
    }
}

impl Kernel for DeformConv {
    fn name(&self) -> &'static str {
        "DeformConv"
    }

    fn shape(&self, inputs: &[TVec<TDim>]) -> TractResult<TVec<TDim>> {
        ensure!(
            inputs.len() >= 3 && inputs[0].len() == 4 && inputs[1].len() == 4,
            "only images of two axes are known here"
        );
        let kernel = [inputs[1][2].to_usize()?, inputs[1][3].to_usize()?];
        let places = self.window(&kernel)?.count(&inputs[0][2..])?;
        Ok(tvec!(inputs[0][0].clone(), inputs[1][0].clone(), places[0].clone(), places[1].clone()))
    }

    fn eval(&self, inputs: &[Input<'_>]) -> TractResult<Vec<f32>> {
        let [x, w, offset, ..] = inputs else { bail!("DeformConv has at least three inputs") };
        let bias = inputs.get(3).filter(|_| self.has_bias);
        let mask = inputs.get(3 + usize::from(self.has_bias)).filter(|_| self.has_mask);
        let [items, channels, height, width] = x.dims[..] else { bail!("only images of two axes are known here") };
        let [outs, ins, kh, kw] = w.dims[..] else { bail!("only images of two axes are known here") };
        ensure!(ins * self.group == channels && outs % self.group == 0, "the weight does not fit the image");
        ensure!(channels % self.offset_group == 0, "offset_group does not divide the channels");
        let win = self.window(&[kh, kw])?;
        let places = win.count(&[height.to_dim(), width.to_dim()])?;
        let (oh, ow) = (places[0].to_usize()?, places[1].to_usize()?);
        ensure!(offset.dims == [items, self.offset_group * kh * kw * 2, oh, ow], "the offsets do not fit");
        let per_offset = channels / self.offset_group;
        let mut out = Vec::with_capacity(items * outs * oh * ow);
        for (n, o, y, x_at) in (0..items)
            .flat_map(|n| (0..outs).flat_map(move |o| (0..oh).flat_map(move |y| (0..ow).map(move |x| (n, o, y, x)))))
        {
            let mut sum = bias.map_or(0.0, |b| b.values[o]);
            for i in 0..ins {
                let c = o / (outs / self.group) * ins + i;
                let plane = &x.values[(n * channels + c) * height * width..][..height * width];
                for k in 0..kh * kw {
                    let at = c / per_offset * kh * kw + k;
                    let (dy, dx) = (offset.at(&[n, 2 * at, y, x_at]), offset.at(&[n, 2 * at + 1, y, x_at]));
                    let place = |o: usize, i: usize, axis: usize| {
                        (o * win.strides[axis] + i * win.dilations[axis]) as f32 - win.pads[axis] as f32
                    };
                    let (py, px) = (place(y, k / kw, 0) + dy, place(x_at, k % kw, 1) + dx);
                    let m = mask.map_or(1.0, |m| m.at(&[n, at, y, x_at]));
                    sum += w.at(&[o, i, k / kw, k % kw]) * m * between(plane, (height, width), py, px);
                }
            }
            out.push(sum);
        }
        Ok(out)
    }
}
