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

use crate::ir::{Attrs, Graph, Tensor};
use crate::passes::{Context, Numerics, Outcome, Pass, PassError};
use crate::plan::sites::{Linear, trace_back};
use crate::plan::{Layer, QuantPlan};
use crate::quant::kernel;
use crate::quant::pairs::Rows;
use crate::quant::qparams::{SCALE_FLOOR, code_tensor};
use crate::quant::{Code, QParams};
use crate::rewrite::Patch;

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
        "Stores weights as int8, one scale an output channel, and biases as int32."
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
            let p = patch(self, plan, &m.graph, l, layer)?;
            m.commit(p)?;
            out.changes += 1;
        }
        Ok(out)
    }
}

fn patch(pass: &QuantizeWeights, plan: &QuantPlan, g: &Graph, l: &Linear, layer: &Layer) -> Result<Patch, PassError> {
    let failed = |message: String| PassError::Failed {
        pass: pass.id().into(),
        message: format!("layer `{}`: {message}", layer.output),
    };
    // The weight as it is now: folding may have replaced the one the sites were found with.
    let w_now = g.node(l.node).input(1).ok_or_else(|| failed("it lost its weight".into()))?;
    let w = g.constant(w_now).ok_or_else(|| failed("its weight is no constant".into()))?;
    let data = w.to_f32s().ok_or_else(|| failed("its weight can not be read".into()))?;
    let outs = w.dims[l.out_axis] as usize;
    let dims: Vec<usize> = w.dims.iter().map(|d| *d as usize).collect();
    let lay = kernel::Layout::of(&dims, l.out_axis as i64).expect("the axis was found");
    let (_, hi) = layer.weight.range();
    let mut reach = vec![0f32; outs];
    for (i, run) in data.chunks(lay.inner.max(1)).enumerate() {
        let r = &mut reach[i % outs];
        *r = run.iter().fold(*r, |a, x| a.max(x.abs()));
    }
    let mut scales: Vec<f32> = match &layer.stored {
        Some(w) if w.scales.len() == outs && w.codes.len() == data.len() => w.scales.clone(),
        Some(w) => {
            return Err(failed(format!(
                "the plan stores {} scales and {} codes for {outs} output channels and {} weights",
                w.scales.len(),
                w.codes.len(),
                data.len()
            )));
        }
        None => reach.iter().map(|r| ((*r as f64 / hi as f64) as f32 * layer.clip).max(SCALE_FLOOR)).collect(),
    };
    // The input's scale, as this layer will read it.
    let x = trace_back(g, l.x);
    let x_name = g.name_of(x).strip_suffix("_folded").unwrap_or(g.name_of(x));
    let x_params = plan.activation(x_name, true).map(|a| &a.params);
    let x_scale = match x_params {
        Some(p) if p.axis().is_some() => {
            return Err(failed(format!(
                "its input `{x_name}` has one scale a channel, which a contraction can not read"
            )));
        }
        Some(p) => Some(p.scale(0)),
        None => None,
    };
    let bias: Option<Vec<f32>> = match &l.bias {
        Some(b) => Some(
            g.constant(b.value)
                .and_then(|t| t.to_f32s())
                .ok_or_else(|| failed("its bias can not be read".into()))?
                .into_owned(),
        ),
        None => None,
    };
    let out_per_axis = plan.activation(&layer.output, false).is_some_and(|a| a.params.axis().is_some());
    let bias = match bias {
        Some(b) => Some(b),
        None if !layer.correction.is_empty() || (out_per_axis && !l.is_conv) => Some(vec![0.0; outs]),
        None => None,
    };
    let bias = bias.map(|mut b| {
        b.iter_mut().zip(&layer.correction).for_each(|(b, c)| *b += c);
        b
    });
    if let (Some(b), Some(sx)) = (&bias, x_scale) {
        for (s, b) in scales.iter_mut().zip(b) {
            let least = least_scale(*b, sx);
            if *s < least && layer.stored.is_some() {
                return Err(failed(format!("a stored scale of {s} is too small for its bias, which needs {least}")));
            }
            *s = s.max(least);
        }
    }
    let params_of = |scales: &[f32]| {
        QParams::per_axis(layer.weight, l.out_axis as i64, scales.to_vec(), vec![0; outs])
            .map_err(|e| failed(e.to_string()))
    };
    let codes = match &layer.stored {
        Some(w) => {
            let (lo, hi) = layer.weight.range();
            let codes: Vec<i32> = w.codes.iter().map(|q| *q as i32).collect();
            if let Some(q) = codes.iter().find(|q| !(lo..=hi).contains(*q)) {
                return Err(failed(format!("the plan stores code {q}, outside {lo}..={hi}")));
            }
            codes
        }
        None => {
            let nearest = params_of(&scales)?;
            let codes = kernel::quantize_tensor(&data, &dims, &nearest).map_err(|e| failed(e.to_string()))?;
            let rows = Rows::of(&dims, l.out_axis, l.is_conv).filter(|_| !plan.assume_vnni);
            match rows.and_then(|r| r.settled(&data, layer.weight.range(), &scales, &codes)) {
                Some((wider, safe)) => {
                    scales = wider;
                    safe
                }
                None => codes,
            }
        }
    };
    let w_params = params_of(&scales)?;
    let mut p = Patch::new(pass.id()).made_from([layer.output.clone()]).before(l.node);
    let name = g.name_of(w_now).to_owned();
    let c = p.constant(&format!("{name}_codes"), code_tensor(layer.weight, &w.dims, &codes));
    let dq = super::dequantize_linear(&mut p, c, &w_params, &name);
    p.set_input(l.node, 1, Some(dq));
    if let Some(b) = bias {
        let hint = match &l.bias {
            Some(b) => g.name_of(b.value).to_owned(),
            None => format!("{}_bias", layer.output),
        };
        let b = match x_scale {
            Some(sx) => {
                let s: Vec<f32> = scales.iter().map(|s| (s * sx).max(f32::MIN_POSITIVE)).collect();
                let q = QParams::per_axis(Code::I32, 0, s, vec![0; outs]).map_err(|e| failed(e.to_string()))?;
                // In f64: a code may have more bits than f32 holds.
                let codes: Vec<i32> = b
                    .iter()
                    .enumerate()
                    .map(|(o, b)| (*b as f64 / q.scale(o) as f64).round_ties_even() as i32)
                    .collect();
                let c = p.constant(&format!("{hint}_codes"), Tensor::i32(&[outs as i64], &codes));
                super::dequantize_linear(&mut p, c, &q, &hint)
            }
            None => p.constant(&format!("{hint}_corrected"), Tensor::f32(&[outs as i64], &b)),
        };
        match l.bias_now(g) {
            Some((node, slot, _)) => p.set_input(node, slot, Some(b)),
            None if l.is_conv || g.node(l.node).op.is("Gemm") => p.set_input(l.node, 2, Some(b)),
            None => {
                let y = p.node("Add", &format!("{}_biased", layer.output), &[l.out.into(), b], Attrs::new());
                p.succeed(l.out, y);
            }
        }
    }
    Ok(p)
}
