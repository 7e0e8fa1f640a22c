//! Weights fitted to the quantized model: the step between [`make_plan`](super::make_plan) and [`apply`](super::apply)
//! that looks at data again.
//!
//! The float model and the quantized one run over the calibration samples side by side. For each linear layer that gives
//! the least-squares problem of [`gptq`]: reproduce the float output from the quantized input. What comes out, codes and
//! a bias, is written into the plan, so that carrying a plan out needs no data.

use std::collections::BTreeMap;

use super::{CompileError, Prepared, in_qdq_form};
use crate::calibrate::data::{DataError, Dataset};
use crate::ir::{Graph, Model, Node, ValueId, validate};
use crate::onnx;
use crate::passes::Pass;
use crate::passes::quantize::fold::FoldFactors;
use crate::passes::quantize::weights::least_scale;
use crate::plan::recipe::{RefitRecipe, WeightRecipe};
use crate::plan::sites::{Linear, trace_back};
use crate::plan::{QuantPlan, Rounding, StoredWeight};
use crate::quant::gptq::{self, Normal, Search};
use crate::quant::qparams::SCALE_FLOOR;
use crate::runtime::{Array, RuntimeError, Session, SessionOptions, fold_samples};

use rayon::prelude::*;

/// Why weights could not be fitted.
#[derive(Debug, thiserror::Error)]
pub enum RefineError {
    #[error(transparent)]
    Data(#[from] DataError),
    #[error("{model} model: {source}")]
    Runtime { model: &'static str, source: RuntimeError },
    #[error("sample {sample}: the {model} model's value `{value}` is not finite")]
    NotFinite { sample: String, model: &'static str, value: String },
    #[error(transparent)]
    Compile(#[from] Box<CompileError>),
}

/// The data to fit on.
#[derive(Clone, Copy, Debug)]
pub struct FitData<'d> {
    pub data: &'d Dataset,
    pub indices: &'d [usize],
    pub threads: usize,
}

/// A linear layer whose weight is fitted.
struct Job<'p> {
    /// Place in the plan's list of layers.
    at: usize,
    linear: &'p Linear,
    /// The folded weight, `outs x ins` with the kernel positions of a Conv among the inputs.
    w: Vec<f64>,
    outs: usize,
    ins: usize,
    bias: Vec<f32>,
    unfold: Option<Unfold>,
}

/// Replaces the planned weights by fitted ones, as `recipe` says.
///
/// Deterministic: the sums are taken in the order of `indices`, whatever the number of threads.
pub fn refine(
    p: &Prepared,
    plan: &QuantPlan,
    recipe: &WeightRecipe,
    fit: FitData<'_>,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<QuantPlan, RefineError> {
    let mut plan = plan.clone();
    if recipe.rounding != Rounding::Gptq || fit.indices.is_empty() {
        return Ok(plan);
    }
    let jobs = jobs(p, &plan)?;
    let env = |k: &str, d: f64| std::env::var(k).ok().and_then(|v| v.parse().ok()).unwrap_or(d);
    let rounds = env("WG_ROUNDS", recipe.refit.as_ref().map_or(1, |r| r.rounds.max(1)) as f64) as usize;
    let groups = env("WG_GROUPS", 1.0) as usize;
    let few: Vec<usize> = fit.indices.iter().copied().step_by((fit.indices.len() as f64 / env("WG_N", 1e9)).ceil() as usize).collect();
    let fit = FitData { indices: &few, ..fit };
    let mut done = 0;
    for _ in 0..rounds {
        for part in jobs.chunks(jobs.len().div_ceil(groups).max(1)) {
            let sums = sums(p, &plan, part, fit, &mut done, progress)?;
            let found: Vec<_> =
                part.par_iter().zip(&sums).map(|(j, s)| fitted(j, s, &p.model.graph, &plan, recipe)).collect();
            for (j, f) in part.iter().zip(found) {
                if let Some((stored, correction, reason)) = f {
                    let l = &mut plan.layers[j.at];
                    l.rounding = Rounding::Gptq;
                    l.stored = Some(stored);
                    l.correction = correction;
                    l.reason = reason;
                }
            }
        }
    }
    Ok(plan)
}

fn jobs<'p>(p: &'p Prepared, plan: &QuantPlan) -> Result<Vec<Job<'p>>, RefineError> {
    let mut folded = p.model.clone();
    FoldFactors { plan, sites: &p.sites }.run(&mut folded).map_err(|e| Box::new(CompileError::from(e)))?;
    let g = &p.model.graph;
    let mut out = Vec::new();
    for (at, layer) in plan.layers.iter().enumerate() {
        let Some(linear) = p.sites.linears.iter().find(|l| g.name_of(l.out) == layer.output) else { continue };
        let node = folded.graph.node(linear.node);
        let Some(t) = node.input(1).and_then(|w| folded.graph.constant(w)) else { continue };
        let Some(data) = t.to_f32s() else { continue };
        let unfold = match linear.is_conv {
            false => None,
            true => match Unfold::of(node, &t.dims) {
                Some(u) => Some(u),
                None => continue,
            },
        };
        let outs = t.dims[linear.out_axis] as usize;
        let ins = data.len() / outs.max(1);
        let w = (0..outs * ins).map(|i| data[place(linear, i / ins, i % ins, outs, ins)] as f64).collect();
        let bias = linear.bias.as_ref().and_then(|b| g.constant(b.value)?.to_f32s());
        let bias = bias.map_or(vec![0.0; outs], |b| b.into_owned());
        out.push(Job { at, linear, w, outs, ins, bias, unfold });
    }
    Ok(out)
}

/// Where the weight from input `i` to output `o` lies in the tensor.
fn place(l: &Linear, o: usize, i: usize, outs: usize, ins: usize) -> usize {
    if l.out_axis == 0 { o * ins + i } else { i * outs + o }
}

fn fitted(
    job: &Job<'_>,
    sums: &[Normal; 2],
    g: &Graph,
    plan: &QuantPlan,
    recipe: &WeightRecipe,
) -> Option<(StoredWeight, Vec<f32>, String)> {
    let env = |k: &str, d: f64| std::env::var(k).ok().and_then(|v| v.parse().ok()).unwrap_or(d);
    let layer = &plan.layers[job.at];
    let (v, share) = match &recipe.refit {
        Some(RefitRecipe { ridge, .. }) if (env("WG_REFIT", 15.0) as usize) >> (job.at.wrapping_sub(1) % 4) & 1 > 0 => gptq::refit(sums, &job.w, env("WG_RIDGE", *ridge)),
        _ => (job.w.clone(), 0.0),
    };
    let c = sums[0].plus(&sums[1]).centred();
    let n = job.ins;
    let full = env("WG_MEAN", 0.0);
    let bias = |w: &dyn Fn(usize) -> f64, o: usize| {
        let wx = |w: &dyn Fn(usize) -> f64| (0..n).map(|i| w(o * n + i) * c.mean_x[i]).sum::<f64>();
        let own = job.bias[o] as f64 + wx(&|i| job.w[i]);
        own + full * (c.mean_y[o] - own) - wx(w)
    };
    let x_name = g.name_of(trace_back(g, job.linear.x));
    let sx = plan.activation(x_name, true).map(|a| a.params.scale(0));
    let least: Vec<f32> = (0..job.outs)
        .map(|o| sx.map_or(0.0, |sx| least_scale((bias(&|i| v[i], o) * 1.1) as f32, sx)).max(SCALE_FLOOR))
        .collect();
    let how = Search { top: layer.weight.range().1, clips: &recipe.clip, least: &least, damp: env("WG_DAMP", 0.001) };
    let r = gptq::round(&c, &v, &how)?;
    let correction = (0..job.outs)
        .map(|o| (bias(&|i| r.codes[i] as f64 * r.scales[o] as f64, o) - job.bias[o] as f64) as f32)
        .collect();
    let mut codes = vec![0i8; r.codes.len()];
    for (i, q) in r.codes.iter().enumerate() {
        codes[place(job.linear, i / n, i % n, job.outs, n)] = *q;
    }
    let back: Vec<f64> = (0..n * job.outs).map(|i| r.codes[i] as f64 * r.scales[i / n] as f64).collect();
    let power: f64 = c.yy.iter().sum();
    let db = |e: f64| 10.0 * (power / e.max(1e-300)).log10();
    if std::env::var("WG_LOG").is_ok() {
        let hold = |h: usize| {
            let (a, b) = (sums[h].centred(), sums[1 - h].centred());
            let _ = &a;
            let two = [sums[h].clone(), Normal::new(n, job.outs)];
            let _ = two;
            b.error(&job.w)
        };
        std::fs::write(
            format!("{}/{:02}", std::env::var("WG_LOG").unwrap(), job.at),
            format!("{} {}x{} upstream {:.2} refit {:.2} share {:.2} rounded {:.2} own {:.2} {}\n", layer.output, n, job.outs, db(c.error(&job.w)), db(c.error(&v)), share, db(c.error(&back)), db(r.error), hold(0)),
        )
        .unwrap();
    }
    let mut reason = format!("{:?}, rounded on {} rows of its input", layer.weight, c_rows(sums)).to_lowercase();
    if recipe.refit.is_some() {
        reason += &format!(", {:.0} % of the refit", share * 100.0);
    }
    Some((StoredWeight { scales: r.scales, codes }, correction, reason))
}

fn c_rows(sums: &[Normal; 2]) -> u64 {
    (sums[0].rows() + sums[1].rows()).round() as u64
}

/// For each job, sums over the even and the odd samples.
fn sums(
    p: &Prepared,
    plan: &QuantPlan,
    jobs: &[Job<'_>],
    fit: FitData<'_>,
    done: &mut usize,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<Vec<[Normal; 2]>, RefineError> {
    let boxed = |e: CompileError| RefineError::Compile(Box::new(e));
    let quantized = in_qdq_form(p, plan).map_err(boxed)?;
    let name = |m: &Model, v: ValueId| m.graph.name_of(v).to_owned();
    let mut reads: Vec<String> = Vec::new();
    let mut gives: Vec<String> = Vec::new();
    for j in jobs {
        let x = quantized.graph.node(j.linear.node).input(0).unwrap_or(j.linear.x);
        reads.push(name(&quantized, x));
        gives.push(name(&p.model, j.linear.out));
    }
    let open = |m: &Model, taps: &[String], model: &'static str| -> Result<(Session, Vec<String>), RefineError> {
        let g = &m.graph;
        let mut unique: Vec<String> = Vec::new();
        for t in taps {
            let computed = g.find(t).is_some_and(|v| g.producer(v).is_some());
            if computed && !unique.contains(t) {
                unique.push(t.clone());
            }
        }
        let options = SessionOptions { batch: fit.data.batch(), taps: unique.clone(), ..SessionOptions::default() };
        let valid = validate::validate(m).map_err(|e| boxed(e.into()))?;
        let s = Session::new(&onnx::encode(valid), None, &options)
            .map_err(|source| RefineError::Runtime { model, source })?;
        Ok((s, unique))
    };
    let (q, q_taps) = open(&quantized, &reads, "quantized")?;
    let (f, f_taps) = open(&p.model, &gives, "float")?;
    let mut all: Vec<[Normal; 2]> =
        jobs.iter().map(|j| [Normal::new(j.ins, j.outs), Normal::new(j.ins, j.outs)]).collect();
    fold_samples(
        fit.indices.len(),
        fit.threads,
        |i| {
            let s = fit.data.sample(fit.indices[i])?;
            let given: Vec<(&str, Array)> = s.inputs.iter().map(|(n, a)| (n.as_str(), a.clone())).collect();
            let run = |session: &Session, taps: &[String], model: &'static str| {
                let out = session.run(&given).map_err(|source| RefineError::Runtime { model, source })?;
                let mut by_name: BTreeMap<String, Array> = s.inputs.iter().cloned().collect();
                by_name.extend(taps.iter().cloned().zip(out.taps));
                for (value, a) in &by_name {
                    if a.f32s().iter().any(|v| !v.is_finite()) {
                        let (sample, value) = (s.name.clone(), value.clone());
                        return Err(RefineError::NotFinite { sample, model, value });
                    }
                }
                Ok::<_, RefineError>(by_name)
            };
            Ok::<_, RefineError>((run(&q, &q_taps, "quantized")?, run(&f, &f_taps, "float")?))
        },
        |i, (qv, fv)| {
            all.par_iter_mut().zip(jobs).zip(reads.par_iter().zip(&gives)).for_each(|((sums, j), (x, y))| {
                let (Some(x), Some(y)) = (qv.get(x), fv.get(y)) else { return };
                let (xs, ys) = match &j.unfold {
                    Some(u) => (u.columns(&x.f32s(), x.dims()), channels_last(&y.f32s(), y.dims())),
                    None => (x.f32s().into_owned(), y.f32s().into_owned()),
                };
                if xs.len() / j.ins == ys.len() / j.outs {
                    sums[i % 2].add(&xs, &ys, 1.0);
                }
            });
            *done += 1;
            progress(*done);
            Ok(())
        },
    )?;
    Ok(all)
}

/// `[b, c, ..]` as rows of `c`.
fn channels_last(y: &[f32], dims: &[usize]) -> Vec<f32> {
    let (b, c) = (dims[0], dims[1]);
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
struct Unfold {
    kernel: [usize; 2],
    strides: [usize; 2],
    /// In front of and behind each axis.
    pads: [usize; 4],
    dilations: [usize; 2],
}

impl Unfold {
    fn of(n: &Node, weight: &[i64]) -> Option<Unfold> {
        let pair = |name: &str| -> Option<[usize; 2]> {
            match n.attrs.ints(name) {
                None => Some([1, 1]),
                Some([a, b]) => Some([usize::try_from(*a).ok()?, usize::try_from(*b).ok()?]),
                Some(_) => None,
            }
        };
        let explicit = n.attrs.str("auto_pad").is_none_or(|s| s == "NOTSET" || s == "VALID");
        let [_, _, h, w] = weight else { return None };
        if !explicit || n.attrs.int("group").unwrap_or(1) != 1 {
            return None;
        }
        let pads = match n.attrs.ints("pads") {
            None => [0; 4],
            Some(p) => {
                let v: Vec<usize> = p.iter().map(|x| usize::try_from(*x).ok()).collect::<Option<_>>()?;
                v.try_into().ok()?
            }
        };
        Some(Unfold { kernel: [*h as usize, *w as usize], strides: pair("strides")?, pads, dilations: pair("dilations")? })
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
