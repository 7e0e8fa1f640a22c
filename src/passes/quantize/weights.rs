//! `quantize-weights`: constant weights become integers, biases int32.
//!
//! *What it does.* The weight of each planned layer becomes int8 codes with one scale per output channel after a
//! DequantizeLinear; the bias becomes int32 codes at scale `s_x s_w`.
//!
//! *When it fires.* For each `layers` entry of the plan.
//!
//! *Why it is correct.* The symmetric codes are those of [`kernel::quantize`]. A bias at
//! the product scale is what an integer accumulator adds; where a channel's bias would not fit int32, that channel's
//! weight scale is raised until it does.
//!
//! *Numerics.* Quantizes.
//!
//! *Before / after.* `y = Add(MatMul(x, W), b)` becomes
//! `y = Add(MatMul(x, DequantizeLinear(W8, s)), DequantizeLinear(b32, s_x s))`.
//!
//! *Source.* ONNX operator documentation; the int32 bias is the convention of every integer runtime.

use std::borrow::Cow;

use crate::ir::{Graph, Tensor, ValueId};
use crate::passes::layers::bias_given;
use crate::passes::{Context, Numerics, Outcome, Pass, PassError};
use crate::plan::sites::{Linear, trace_back};
use crate::plan::{Layer, QuantPlan};
use crate::quant::kernel;
use crate::quant::pairs::WeightRows;
use crate::quant::qparams::{SCALE_FLOOR, code_tensor};
use crate::quant::{Code, QParams};
use crate::rewrite::{Patch, Ref};

/// The pass, for one plan.
pub struct QuantizeWeights;

/// Largest bias code: a margin of a quarter leaves room for the products it is added to.
const BIAS_LIMIT: f64 = (1u32 << 31) as f64 * 0.75;

/// Smallest scale of a weight channel whose bias still fits int32 at the product scale with an input of scale `sx`.
pub(crate) fn least_scale(bias: f32, sx: f32) -> f32 {
    (bias.abs() as f64 / sx as f64 / BIAS_LIMIT) as f32
}

impl Pass for QuantizeWeights {
    fn id(&self) -> &'static str {
        "quantize-weights"
    }

    fn summary(&self) -> &'static str {
        "Stores weights as int8 with per-channel scales, and biases as int32."
    }

    fn numerics(&self) -> Numerics {
        Numerics::Quantizes
    }

    fn run(&self, m: &mut Context) -> Result<Outcome, PassError> {
        let mut out = Outcome::default();
        let (plan, sites) = m.carried(self.id())?;
        // Folding may have replaced weights and biases.
        let sites = sites.reread(&m.graph);
        for layer in &plan.layers {
            let l = sites.linears.iter().find(|l| m.graph.try_value(l.out).is_some_and(|v| v.name == layer.output));
            let l = l.ok_or_else(|| PassError::Failed {
                pass: self.id().into(),
                message: format!("the plan's layer `{}` is not in the model; make a new plan", layer.output),
            })?;
            let p = LayerCodes { cx: m, plan, g: &m.graph, l, layer }.patch()?;
            m.commit(p)?;
            out.changes += 1;
        }
        Ok(out)
    }
}

/// A layer whose weight and bias become codes.
struct LayerCodes<'a> {
    cx: &'a Context<'a>,
    plan: &'a QuantPlan,
    g: &'a Graph,
    l: &'a Linear,
    layer: &'a Layer,
}

/// The weight of a layer as it is now: folding may have replaced the one the sites were found with.
struct Weight<'a> {
    value: ValueId,
    dims: &'a [i64],
    data: Cow<'a, [f32]>,
    outs: usize,
}

impl<'a> LayerCodes<'a> {
    fn failed(&self, message: impl Into<String>) -> PassError {
        let message = format!("layer `{}`: {}", self.layer.output, message.into());
        PassError::Failed { pass: QuantizeWeights.id().into(), message }
    }

    fn weight(&self) -> Result<Weight<'a>, PassError> {
        let value = self.g.node(self.l.node).input(1).ok_or_else(|| self.failed("it lost its weight"))?;
        let w = self.g.constant(value).ok_or_else(|| self.failed("its weight is no constant"))?;
        let data = w.to_f32s().ok_or_else(|| self.failed("its weight cannot be read"))?;
        Ok(Weight { value, dims: &w.dims, data, outs: w.dims[self.l.out_axis] as usize })
    }

    /// The input's scale, as this layer will read it; `None` where the input stays float.
    fn input_scale(&self) -> Result<Option<f32>, PassError> {
        let x = trace_back(self.g, self.l.x);
        let name = self.cx.planned_name(x).unwrap_or_else(|| self.g.name_of(x));
        match self.plan.activation(name, true).map(|a| &a.params) {
            Some(p) if p.axis().is_some() => {
                Err(self.failed(format!("its input `{name}` has per-channel scales, which a contraction cannot read")))
            }
            p => Ok(p.map(|p| p.scale(0))),
        }
    }

    /// The bias with what calibration corrects it by; zeros where the layer has none and needs one.
    fn bias(&self, outs: usize) -> Result<Option<Vec<f32>>, PassError> {
        let (g, layer) = (self.g, self.layer);
        let per_axis = || self.plan.activation(&layer.output, false).is_some_and(|a| a.params.axis().is_some());
        let mut bias = match &self.l.bias {
            Some(b) => {
                let values = g.constant(b.value).and_then(|t| t.to_f32s());
                values.ok_or_else(|| self.failed("its bias cannot be read"))?.into_owned()
            }
            None if !layer.correction.is_empty() || (per_axis() && !self.l.is_conv) => vec![0.0; outs],
            None => return Ok(None),
        };
        bias.iter_mut().zip(&layer.correction).for_each(|(b, c)| *b += c);
        Ok(Some(bias))
    }

    /// Scales as the plan stores them, or as the largest weight of each channel needs them.
    fn scales(&self, w: &Weight<'_>) -> Result<Vec<f32>, PassError> {
        let outs = w.outs;
        match &self.layer.stored {
            Some(s) if s.scales.len() == outs && s.codes.len() == w.data.len() => Ok(s.scales.clone()),
            Some(s) => Err(self.failed(format!(
                "the plan stores {} scales and {} codes for {outs} output channels and {} weights",
                s.scales.len(),
                s.codes.len(),
                w.data.len()
            ))),
            None => {
                let lay = kernel::Layout::of(&w.sizes(), self.l.out_axis as i64).expect("the axis was found");
                let mut reach = vec![0f32; outs];
                for (i, run) in w.data.chunks(lay.inner.max(1)).enumerate() {
                    let r = &mut reach[i % outs];
                    *r = run.iter().fold(*r, |a, x| a.max(x.abs()));
                }
                let (_, hi) = self.layer.weight.range();
                let one = |r: &f32| ((*r as f64 / hi as f64) as f32 * self.layer.clip).max(SCALE_FLOOR);
                Ok(reach.iter().map(one).collect())
            }
        }
    }

    /// Raises scales until the bias fits int32.
    fn make_room(&self, scales: &mut [f32], bias: &[f32], sx: f32) -> Result<(), PassError> {
        for (s, b) in scales.iter_mut().zip(bias) {
            let least = least_scale(*b, sx);
            if *s < least && self.layer.stored.is_some() {
                let message = format!("a stored scale of {s} is too small for its bias, which needs {least}");
                return Err(self.failed(message));
            }
            *s = s.max(least);
        }
        Ok(())
    }

    fn params(&self, code: Code, axis: usize, scales: Vec<f32>) -> Result<QParams, PassError> {
        let zeros = vec![0; scales.len()];
        QParams::per_axis(code, axis as i64, scales, zeros).map_err(|e| self.failed(e.to_string()))
    }

    /// Codes as the plan stores them, or the nearest ones; of these, scales are raised until no pair saturates.
    fn codes(&self, w: &Weight<'_>, scales: &mut Vec<f32>) -> Result<Vec<i32>, PassError> {
        let (l, layer) = (self.l, self.layer);
        if let Some(stored) = &layer.stored {
            let (lo, hi) = layer.weight.range();
            let codes: Vec<i32> = stored.codes.iter().map(|q| *q as i32).collect();
            return match codes.iter().find(|q| !(lo..=hi).contains(*q)) {
                Some(q) => Err(self.failed(format!("the plan stores code {q}, outside {lo}..={hi}"))),
                None => Ok(codes),
            };
        }
        let nearest = self.params(layer.weight, l.out_axis, scales.clone())?;
        let sizes = w.sizes();
        let codes = kernel::quantize_tensor(&w.data, &sizes, &nearest).map_err(|e| self.failed(e.to_string()))?;
        let rows = WeightRows::of(&sizes, l.out_axis, l.is_conv).filter(|_| !self.plan.assume_vnni);
        Ok(match rows.and_then(|r| r.settled(&w.data, layer.weight.range(), scales, &codes)) {
            Some((wider, safe)) => {
                *scales = wider;
                safe
            }
            None => codes,
        })
    }

    fn patch(&self) -> Result<Patch, PassError> {
        let (g, l, layer) = (self.g, self.l, self.layer);
        let w = self.weight()?;
        let mut scales = self.scales(&w)?;
        let x_scale = self.input_scale()?;
        let bias = self.bias(w.outs)?;
        if let (Some(b), Some(sx)) = (&bias, x_scale) {
            self.make_room(&mut scales, b, sx)?;
        }
        let codes = self.codes(&w, &mut scales)?;
        let params = self.params(layer.weight, l.out_axis, scales.clone())?;
        let mut p = Patch::new(QuantizeWeights.id()).made_from([layer.output.clone()]).before(l.node);
        let mut e = p.under(g.name_of(w.value));
        let c = e.constant("codes", code_tensor(layer.weight, w.dims, &codes));
        let dq = e.dequantized(c, &params);
        p.set_input(l.node, 1, Some(dq));
        if let Some(b) = bias {
            let b = self.coded_bias(&mut p, &b, &scales, x_scale)?;
            match l.bias_now(g) {
                Some((node, slot, _)) => p.set_input(node, slot, Some(b)),
                None if l.is_conv || g.node(l.node).op.is("Gemm") => bias_given(g, &mut p, l, b),
                None => {
                    let y = p.under(&layer.output).op("Add", "biased", &[l.out.into(), b]);
                    p.succeed(l.out, y);
                }
            }
        }
        Ok(p)
    }

    /// The bias in int32 at the scale of the products; in float32 where the input stays float.
    fn coded_bias(&self, p: &mut Patch, b: &[f32], scales: &[f32], sx: Option<f32>) -> Result<Ref, PassError> {
        let hint = match &self.l.bias {
            Some(b) => self.g.name_of(b.value).to_owned(),
            None => format!("{}_bias", self.layer.output),
        };
        let mut e = p.under(&hint);
        let Some(sx) = sx else { return Ok(e.floats("corrected", b)) };
        let q = self.params(Code::I32, 0, scales.iter().map(|s| (s * sx).max(f32::MIN_POSITIVE)).collect())?;
        // In f64: a code may have more bits than f32 holds.
        let code = |(o, b): (usize, &f32)| (*b as f64 / q.scale(o) as f64).round_ties_even() as i32;
        let codes: Vec<i32> = b.iter().enumerate().map(code).collect();
        let c = e.constant("codes", Tensor::i32(&[b.len() as i64], &codes));
        Ok(e.dequantized(c, &q))
    }
}

impl Weight<'_> {
    fn sizes(&self) -> Vec<usize> {
        self.dims.iter().map(|d| *d as usize).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::quantize::fold::FoldFactors;
    use crate::plan::sites;
    use crate::text::parse_model;

    /// The scale of a layer's bias over that of its weight: the one of the input, as the plan has it.
    fn input_scale(body: &str, folds: &str) -> f32 {
        let text = format!(
            "<ir_version: 8, opset_import: [\"\" : 17]> g (float[1,2] x) => (y)
             <float[2,1] w = {{1, 127}}, float[1] b = {{1}}> {{ h = Relu (x) {body} }}"
        );
        let mut m = parse_model(&text).expect("a model");
        crate::infer::annotate(&mut m);
        let sites = sites::find(&m, vec![]);
        let plan = format!(
            "
version: 1
recipe: test
model: test
folds: {folds}
activations:
- {{ value: h, role: other, params: {{ kind: affine, code: u8, scale: 0.5, zero_point: 3 }}, reason: '' }}
- {{ value: h_folded, role: other, params: {{ kind: affine, code: u8, scale: 0.25, zero_point: 3 }}, reason: '' }}
layers:
- {{ output: p, weight: i8, rounding: nearest, reason: '' }}
"
        );
        let plan = QuantPlan::from_yaml(&plan, "test").expect("a plan");
        let mut cx = Context::new(m).with_plan(&plan, &sites);
        FoldFactors.run(&mut cx).expect("the fold fits");
        QuantizeWeights.run(&mut cx).expect("the layer fits");
        let scale = |name: &str| Some(cx.graph.constant(cx.graph.find(name)?)?.to_f32s()?[0]);
        scale("b_scale").expect("a bias") / scale("w_2_scale").or(scale("w_scale")).expect("a weight")
    }

    /// The name alone says nothing: a file may have any.
    #[test]
    fn a_layer_reads_the_scale_of_what_it_reads() {
        assert_eq!(input_scale("h_folded = Neg (h)  p = Gemm (h_folded, w, b)  y = Neg (p)", "[]"), 0.25);
        let fold = "[{ value: h, role: other, factors: '2 2', offsets: '', reason: '' }]";
        assert_eq!(input_scale("p = Gemm (h, w, b)  y = Neg (p)", fold), 0.5);
    }
}
