//! Rows of what a layer reads, through the codes that the plan gives it, and of what the float model makes of them.

use std::borrow::Cow;

use crate::ir::{Graph, Node};
use crate::plan::sites::{Linear, trace_back};
use crate::plan::{Fold, QuantPlan};
use crate::quant::QParams;
use crate::quant::count::{Pick, picked_rows};
use crate::quant::kernel::{dequantize, quantize};
use crate::quant::observe::first_unfit;
use crate::quant::row_sums::LayerRows;
use crate::quant::tokens::Read;
use crate::quant::wide::wide;

/// A value of one sample and its sizes.
pub(super) type Value<'v> = (Cow<'v, [f32]>, &'v [usize]);

/// How the rows of a layer come out of the values before and after it.
pub(super) struct RowsOf<'p> {
    codes: InputCodes<'p>,
    unfold: Option<&'p Unfold>,
    conv: bool,
    ins: usize,
    outs: usize,
}

impl<'p> RowsOf<'p> {
    pub fn new(
        g: &Graph,
        plan: &'p QuantPlan,
        linear: &Linear,
        unfold: Option<&'p Unfold>,
        (ins, outs): (usize, usize),
    ) -> RowsOf<'p> {
        RowsOf { codes: InputCodes::of(g, plan, linear), unfold, conv: linear.is_conv, ins, outs }
    }

    /// Some of the rows of one sample; `None` if what the layer reads and what it makes do not go row by row. Rows that are
    /// not finite are left out; `finite` says that there are none.
    pub fn of(
        &self,
        (x, x_dims): Value<'_>,
        (y, y_dims): Value<'_>,
        read: &Read,
        pick: Pick,
        finite: bool,
    ) -> Option<LayerRows> {
        let (ins, outs) = (self.ins, self.outs);
        let mut y = if self.conv && self.unfold.is_some() { channels_last(&y, y_dims).into() } else { y };
        // Padding is zero in front of the codes as after them: they hold zero exactly.
        let mut x = match self.unfold {
            Some(u) => u.columns(&self.codes.folded(x.into_owned(), x_dims, self.conv), x_dims).into(),
            None => x,
        };
        let count = y.len().checked_div(outs)?;
        if x.len().checked_div(ins)? != count {
            return None;
        }
        // Rows in front tell the places of tokens only where all are there.
        let mut tokens = if self.conv { 0 } else { y_dims.iter().rev().nth(1).copied().unwrap_or(0) };
        if !finite {
            let finite = |row: &[f32]| first_unfit(row, false).is_none();
            let whole = |r: &usize| finite(&x[r * ins..][..ins]) && finite(&y[r * outs..][..outs]);
            let whole: Vec<usize> = (0..count).filter(whole).collect();
            (x, y, tokens) = (gathered(&x, ins, &whole).into(), gathered(&y, outs, &whole).into(), 0);
        }
        let (chosen, weights) = picked_rows(&y, outs, tokens, read, pick);
        let mut lost = gathered(&x, ins, &chosen);
        if self.unfold.is_none() {
            lost = self.codes.folded(lost, &[chosen.len(), ins], self.conv);
        }
        let x = self.codes.through(lost.clone());
        lost.iter_mut().zip(&x).for_each(|(l, x)| *l -= x);
        Some(LayerRows { x, lost, y: gathered(&y, outs, &chosen), weights })
    }
}

fn gathered(v: &[f32], width: usize, rows: &[usize]) -> Vec<f32> {
    let mut out = Vec::with_capacity(rows.len() * width);
    rows.iter().for_each(|r| out.extend_from_slice(&v[r * width..][..width]));
    out
}

/// What stands between a float value and the layer that reads it: the fold's factors, and the codes.
struct InputCodes<'p> {
    fold: Option<&'p Fold>,
    params: Option<&'p QParams>,
}

impl<'p> InputCodes<'p> {
    fn of(g: &Graph, plan: &'p QuantPlan, l: &Linear) -> InputCodes<'p> {
        let name = g.name_of(trace_back(g, l.x));
        InputCodes {
            fold: plan.folds.iter().find(|f| f.value == name),
            params: plan.activation(name, true).map(|a| &a.params).filter(|p| p.axis().is_none()),
        }
    }

    /// The float value `v` of shape `dims` with the fold's factors and offsets taken out; `conv`: channels are the second
    /// axis, not the last.
    fn folded(&self, mut v: Vec<f32>, dims: &[usize], conv: bool) -> Vec<f32> {
        if let Some(f) = self.fold {
            let inner: usize = if conv { dims.iter().skip(2).product() } else { 1 };
            for (r, run) in v.chunks_mut(inner.max(1)).enumerate() {
                let c = r % f.factors.len().max(1);
                run.iter_mut().for_each(|v| *v = (*v - f.offset(c)) / f.factors[c]);
            }
        }
        v
    }

    /// What the layer reads for a folded value.
    fn through(&self, mut v: Vec<f32>) -> Vec<f32> {
        if let Some(p) = self.params {
            through_codes(&mut v, p.scale(0), p.zero(0), p.code().range());
        }
        v
    }
}

wide! {
    fn through_codes(x: &mut [f32], scale: f32, zero: i32, range: (i32, i32)) {
        let (lo, hi) = range;
        x.iter_mut().for_each(|v| *v = dequantize(quantize(*v, scale, zero, lo, hi), scale, zero));
    }
}

/// `[b, c, ..]` as rows of `c`.
fn channels_last(y: &[f32], dims: &[usize]) -> Vec<f32> {
    let &[b, c, ..] = dims else { return y.to_vec() };
    let inner = y.len() / (b * c).max(1);
    let mut out = Vec::with_capacity(y.len());
    for s in 0..b {
        for k in 0..inner {
            out.extend((0..c).map(|ch| y[(s * c + ch) * inner + k]));
        }
    }
    out
}

/// A two-dimensional Conv of one group, seen as a product with a matrix: what each output position reads.
pub(super) struct Unfold {
    kernel: [usize; 2],
    strides: [usize; 2],
    /// In front of and after each axis.
    pads: [usize; 4],
    dilations: [usize; 2],
}

impl Unfold {
    pub fn of(n: &Node, weight: &[i64]) -> Option<Unfold> {
        let pair = |name: &str| -> Option<[usize; 2]> {
            match n.attrs.ints(name) {
                None => Some([1, 1]),
                Some([a, b]) => Some([usize::try_from(*a).ok()?, usize::try_from(*b).ok()?]),
                Some(_) => None,
            }
        };
        let explicit = n.attrs.str("auto_pad").is_none_or(|s| s == "NOTSET" || s == "VALID");
        let [_, _, h, w] = weight else { return None };
        if !explicit || n.int("group") != 1 {
            return None;
        }
        let pads = match n.attrs.ints("pads") {
            None => [0; 4],
            Some(p) => {
                let v: Vec<usize> = p.iter().map(|x| usize::try_from(*x).ok()).collect::<Option<_>>()?;
                v.try_into().ok()?
            }
        };
        Some(Unfold {
            kernel: [*h as usize, *w as usize],
            strides: pair("strides")?,
            pads,
            dilations: pair("dilations")?,
        })
    }

    /// One row an output position: channel, then kernel row and column, as the weight has them.
    fn columns(&self, x: &[f32], dims: &[usize]) -> Vec<f32> {
        let &[b, c, h, w] = dims else { return Vec::new() };
        let size = |i: usize, n: usize, before: usize, after: usize| {
            let span = self.dilations[i] * (self.kernel[i] - 1) + 1;
            (n + before + after).checked_sub(span).map_or(0, |r| r / self.strides[i].max(1) + 1)
        };
        let [top, left, bottom, right] = self.pads;
        let (oh, ow) = (size(0, h, top, bottom), size(1, w, left, right));
        let mut out = Vec::with_capacity(b * oh * ow * c * self.kernel[0] * self.kernel[1]);
        for s in 0..b {
            for oy in 0..oh {
                for ox in 0..ow {
                    for ch in 0..c {
                        for ky in 0..self.kernel[0] {
                            for kx in 0..self.kernel[1] {
                                let y = (oy * self.strides[0] + ky * self.dilations[0]).checked_sub(top);
                                let z = (ox * self.strides[1] + kx * self.dilations[1]).checked_sub(left);
                                out.push(match (y, z) {
                                    (Some(y), Some(z)) if y < h && z < w => x[((s * c + ch) * h + y) * w + z],
                                    _ => 0.0,
                                });
                            }
                        }
                    }
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Attrs, Op};

    fn conv(attrs: Attrs, kernel: &[i64; 2]) -> Option<Unfold> {
        let n = Node::new(Op::onnx("Conv"), vec![], vec![], attrs);
        Unfold::of(&n, &[1, 2, kernel[0], kernel[1]])
    }

    #[test]
    fn columns_are_what_a_conv_reads() {
        // Two channels of 2 x 3; kernel 2 x 2, padded on the left and at the bottom.
        let x: Vec<f32> = (1..=12).map(|v| v as f32).collect();
        let u = conv(Attrs::new().with_ints("pads", &[0, 1, 1, 0]).with_ints("strides", &[1, 2]), &[2, 2]).unwrap();
        let rows: Vec<Vec<f32>> = u.columns(&x, &[1, 2, 2, 3]).chunks(8).map(<[f32]>::to_vec).collect();
        assert_eq!(
            rows,
            [
                [0.0, 1.0, 0.0, 4.0, 0.0, 7.0, 0.0, 10.0],
                [2.0, 3.0, 5.0, 6.0, 8.0, 9.0, 11.0, 12.0],
                [0.0, 4.0, 0.0, 0.0, 0.0, 10.0, 0.0, 0.0],
                [5.0, 6.0, 0.0, 0.0, 11.0, 12.0, 0.0, 0.0],
            ]
        );
        assert_eq!(channels_last(&x, &[1, 2, 2, 3])[..4], [1.0, 7.0, 2.0, 8.0]);
    }

    #[test]
    fn a_conv_of_another_kind_is_left_to_nearest_rounding() {
        assert!(conv(Attrs::new().with_int("group", 2), &[2, 2]).is_none());
        assert!(conv(Attrs::new().with_str("auto_pad", "SAME_UPPER"), &[2, 2]).is_none());
        assert!(conv(Attrs::new().with_ints("strides", &[2]), &[2, 2]).is_none());
    }
}
