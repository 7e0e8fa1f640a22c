//! Weights fitted to the codes they will read: the step between [`make_plan`](super::make_plan) and
//! [`apply`](super::apply) that looks at data again.
//!
//! The float model runs over the calibration samples. Each linear layer's input is taken through the codes that the plan
//! gives it, and the least-squares problem of [`gptq`] is to reproduce the layer's float output from them. Rows count as
//! tokens do in calibration: by the inverse of their variance, and those that the outputs read as much as all others. A few
//! tokens with massive channels would otherwise decide every code. What comes out, codes and a bias, is written into the
//! plan, so that carrying a plan out needs no data.
//!
//! Errors from further up are left out on purpose: a layer that corrects what another will have corrected as well
//! overshoots, and measured so by dB.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::{CompileError, Journal, Prepared, equalised};
use crate::calibrate::data::{DataError, Dataset};
use crate::calibrate::finite::OutputsOf;
use crate::calibrate::run::open_shapes;
use crate::ir::{Graph, Node, ValueId, validate};
use crate::passes::quantize::fold::FoldFactors;
use crate::passes::quantize::weights::least_scale;
use crate::passes::{Context, Pass};
use crate::plan::head_rows::read_tokens;
use crate::plan::recipe::WeightRecipe;
use crate::plan::sites::{Linear, trace_back};
use crate::plan::{Fold, QuantPlan, Rounding, StoredWeight};
use crate::quant::QParams;
use crate::quant::gptq::{self, Normal, Search};
use crate::quant::kernel::{dequantize, quantize};
use crate::quant::observe::first_unfit;
use crate::quant::pairs::{self, Mates, Rows};
use crate::quant::qparams::SCALE_FLOOR;
use crate::quant::tokens::{Read, row_weights};
use crate::runtime::{RuntimeError, Session, SessionOptions, fold_samples};

use rayon::prelude::*;

/// Why weights could not be fitted.
#[derive(Debug, thiserror::Error)]
pub enum RefineError {
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error("sample {sample}: value `{value}` is not finite; the float model itself does not stay finite on this data")]
    NotFinite { sample: String, value: String },
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

/// What sums may take of memory at once, and what those of one layer may take: they grow with the square of its inputs.
const SUMS_AT_ONCE: usize = 1 << 30;
const SUMS_OF_ONE: usize = 2 << 30;
/// Share of the mean variance of a layer's inputs that is added to every variance before rounding.
const DAMP: f64 = 0.001;
/// Scales tried besides the recipe's where neighbours must not saturate: codes that are smaller meet that more often.
const WIDER: [f32; 2] = [1.6, 1.25];

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
    /// Which weights of an output may meet in one sum of 16 bits.
    mates: Mates,
}

/// Replaces the planned weights by fitted ones, as `recipe` says.
///
/// Deterministic: the sums are taken in the order of `indices`, whatever the number of threads.
///
/// # Errors
/// If a sample cannot be read, the model does not run, a value is not finite, or the plan's folds do not fit the model.
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
    let p = &*equalised(p, &plan.equalisations, &mut Journal::default()).map_err(Box::new)?;
    // A refit is judged on samples that it does not come from.
    let parts = if recipe.refit.is_some() { 2 } else { 1 };
    let (runs, left) = runs(p, &plan, parts, SUMS_AT_ONCE, SUMS_OF_ONE);
    for (at, why) in left {
        let reason = &mut plan.layers[at].reason;
        *reason = format!("{reason}, {why}");
    }
    for (i, layers) in runs.iter().enumerate() {
        let jobs = jobs(p, &plan, layers)?;
        let done = |n: usize| progress((i * fit.indices.len() + n) / runs.len());
        let sums = sums(p, &plan, &jobs, parts, fit, &done)?;
        let g = &p.model.graph;
        let found: Vec<_> = jobs.par_iter().zip(&sums).map(|(j, s)| fitted(j, s, g, &plan, recipe)).collect();
        for (at, f) in jobs.iter().map(|j| j.at).zip(found) {
            if let Some((stored, correction, reason)) = f {
                let l = &mut plan.layers[at];
                l.rounding = Rounding::Gptq;
                l.stored = Some(stored);
                l.correction = correction;
                l.reason = reason;
            }
        }
    }
    Ok(plan)
}

/// A layer of the model, and its place in the plan.
type Planned<'p> = (usize, &'p Linear);
type Runs<'p> = (Vec<Vec<Planned<'p>>>, Vec<(usize, String)>);

/// The layers of the plan, in parts whose sums take about `at_once` bytes: each part is a run over the data. Apart from
/// them the layers whose sums alone take more than `of_one`, and why these are not fitted.
fn runs<'p>(p: &'p Prepared, plan: &QuantPlan, parts: usize, at_once: usize, of_one: usize) -> Runs<'p> {
    let g = &p.model.graph;
    let (mut out, mut left): (Vec<Vec<Planned<'p>>>, _) = (Vec::new(), Vec::new());
    let mut held = at_once;
    for (at, layer) in plan.layers.iter().enumerate() {
        let Some(l) = p.sites.linears.iter().find(|l| g.name_of(l.out) == layer.output) else { continue };
        let Some(w) = g.constant(l.weight) else { continue };
        let outs = w.dims[l.out_axis] as usize;
        let ins = w.len() / outs.max(1);
        let bytes = parts * Normal::bytes(ins, outs);
        if bytes > of_one {
            left.push((at, format!("rounded to nearest: sums over {ins} inputs take {:.1} GB", bytes as f64 / 1e9)));
            continue;
        }
        if held + bytes > at_once {
            out.push(Vec::new());
            held = 0;
        }
        held += bytes;
        out.last_mut().expect("one was just begun").push((at, l));
    }
    (out, left)
}

fn jobs<'p>(p: &Prepared, plan: &QuantPlan, layers: &[Planned<'p>]) -> Result<Vec<Job<'p>>, RefineError> {
    let mut folded = Context::new(p.model.clone()).with_plan(plan, &p.sites);
    FoldFactors.run(&mut folded).map_err(|e| Box::new(CompileError::from(e)))?;
    let mut out = Vec::new();
    for &(at, linear) in layers {
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
        let bias = linear.bias_now(&folded.graph).and_then(|(_, _, b)| folded.graph.constant(b)?.to_f32s());
        let bias = bias.map_or(vec![0.0; outs], |b| b.into_owned());
        let dims: Vec<usize> = t.dims.iter().map(|d| *d as usize).collect();
        let mates =
            Rows::of(&dims, linear.out_axis, linear.is_conv).map_or_else(|| Mates::of_row(ins), Rows::into_mates);
        out.push(Job { at, linear, w, outs, ins, bias, unfold, mates });
    }
    Ok(out)
}

/// Where the weight from input `i` to output `o` lies in the tensor.
fn place(l: &Linear, o: usize, i: usize, outs: usize, ins: usize) -> usize {
    if l.out_axis == 0 { o * ins + i } else { i * outs + o }
}

fn fitted(
    job: &Job<'_>,
    sums: &[Normal],
    g: &Graph,
    plan: &QuantPlan,
    recipe: &WeightRecipe,
) -> Option<(StoredWeight, Vec<f32>, String)> {
    let layer = &plan.layers[job.at];
    let (v, share, c) = match (recipe.refit, sums) {
        (Some(ridge), [a, b]) => {
            let (v, share) = gptq::refit([a, b], &job.w, ridge);
            (v, share, a.plus(b).centred())
        }
        (_, [a, ..]) => (job.w.clone(), 0.0, a.centred()),
        _ => return None,
    };
    let n = job.ins;
    let bias =
        |w: &dyn Fn(usize) -> f64, o: usize| c.mean_y[o] - (0..n).map(|i| w(o * n + i) * c.mean_x[i]).sum::<f64>();
    let x_name = g.name_of(trace_back(g, job.linear.x));
    let sx = plan.activation(x_name, true).map(|a| a.params.scale(0));
    let least: Vec<f32> = (0..job.outs)
        .map(|o| sx.map_or(0.0, |sx| least_scale((bias(&|i| v[i], o) * 1.1) as f32, sx)).max(SCALE_FLOOR))
        .collect();
    let top = layer.weight.range().1;
    // Codes of fewer bits never saturate.
    let mates = (top > pairs::MOST / 2 && !plan.assume_vnni).then_some(&job.mates);
    let clips: Vec<f32> = match mates {
        Some(_) => WIDER.iter().chain(&recipe.clip).copied().collect(),
        None => recipe.clip.clone(),
    };
    let how = Search { top, clips: &clips, least: &least, damp: DAMP, mates };
    let r = gptq::round(&c, &v, &how)?;
    let correction = (0..job.outs)
        .map(|o| (bias(&|i| r.codes[i] as f64 * r.scales[o] as f64, o) - job.bias[o] as f64) as f32)
        .collect();
    let mut codes = vec![0i8; r.codes.len()];
    for (i, q) in r.codes.iter().enumerate() {
        codes[place(job.linear, i / n, i % n, job.outs, n)] = *q;
    }
    let back: Vec<f64> = r.codes.iter().enumerate().map(|(i, q)| *q as f64 * r.scales[i / n] as f64).collect();
    let power: f64 = c.yy.iter().sum();
    let db = |w: &[f64]| 10.0 * (power / c.error(w).max(1e-300)).log10();
    let mut reason = format!("{:?}: {:.1} dB at its output", layer.weight, db(&back)).to_lowercase();
    if recipe.refit.is_some() {
        let percent = share * 100.0;
        reason += &format!("; before rounding {:.1} dB, {:.1} with {percent:.0} % of a refit", db(&job.w), db(&v));
    }
    Some((StoredWeight { scales: r.scales, codes }, correction, reason))
}

/// For each job, sums over all samples, or with two parts over the even and the odd ones.
fn sums(
    p: &Prepared,
    plan: &QuantPlan,
    jobs: &[Job<'_>],
    parts: usize,
    fit: FitData<'_>,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<Vec<Vec<Normal>>, RefineError> {
    let g = &p.model.graph;
    let mut taps: Vec<String> = Vec::new();
    for v in jobs.iter().flat_map(|j| [j.linear.x, j.linear.out]).filter(|v| g.producer(*v).is_some()) {
        if !taps.iter().any(|t| t == g.name_of(v)) {
            taps.push(g.name_of(v).to_owned());
        }
    }
    let place: BTreeMap<&str, usize> = taps.iter().enumerate().map(|(t, name)| (name.as_str(), t)).collect();
    let read = Read { tokens: read_tokens(g, &p.sites), alone: false };
    let codes: Vec<InputCodes<'_>> = jobs.iter().map(|j| InputCodes::of(g, plan, j.linear)).collect();
    let shapes = open_shapes(g, &fit.data.sample(fit.indices[0])?.inputs);
    let options = SessionOptions {
        batch: fit.data.batch(),
        taps: taps.clone(),
        shapes,
        outputs: false,
        ..SessionOptions::default()
    };
    let valid = validate::validate(&p.model).map_err(|e| Box::new(CompileError::from(e)))?;
    let outputs = OutputsOf::new(valid, options.batch, options.shapes.clone());
    let session = Session::of(valid, &options)?;
    let mut all: Vec<Vec<Normal>> = jobs.iter().map(|j| vec![Normal::new(j.ins, j.outs); parts]).collect();
    fold_samples(
        fit.indices.len(),
        fit.threads,
        |i| -> Result<_, RefineError> {
            let s = fit.data.sample(fit.indices[i])?;
            let out = session.tapped(&s.inputs)?;
            // Masks may hold infinities; what layers read and make may not.
            let unfit = |name: &str| RefineError::NotFinite { sample: s.name.clone(), value: name.to_owned() };
            let mut broken = None;
            for (t, name) in taps.iter().enumerate() {
                broken = broken.or(first_unfit(&out.value(t)?.0, false).map(|_| name));
            }
            // Rows that no output depends on are left out of the sums.
            if let Some(name) = broken
                && outputs.hold_nan(&s.inputs)?
            {
                return Err(unfit(name));
            }
            for (name, a) in s.inputs.iter().filter(|(name, _)| jobs.iter().any(|j| g.name_of(j.linear.x) == name)) {
                first_unfit(&a.f32s(), false).map_or(Ok(()), |_| Err(unfit(name)))?;
            }
            Ok((s.inputs, out))
        },
        |i, (inputs, out)| {
            let of = |v: ValueId| {
                let name = g.name_of(v);
                match place.get(name) {
                    Some(t) => out.value(*t).ok(),
                    None => inputs.iter().find(|(n, _)| n == name).map(|(_, a)| (a.f32s(), a.dims())),
                }
            };
            all.par_iter_mut().zip(jobs).zip(&codes).for_each(|((sums, j), codes)| {
                let (Some((x, x_dims)), Some((y, y_dims))) = (of(j.linear.x), of(j.linear.out)) else { return };
                let coded = codes.through(&x, x_dims, j.linear.is_conv);
                let (xs, ys) = match &j.unfold {
                    Some(u) => (u.columns(&coded, x_dims), channels_last(&y, y_dims).into()),
                    None => (coded, y),
                };
                let (xs, ys, all) = whole_rows((xs, j.ins), (ys, j.outs));
                if xs.len().checked_div(j.ins) == ys.len().checked_div(j.outs) {
                    // Rows in front tell the places of tokens only where all are there.
                    let rows =
                        if j.linear.is_conv || !all { 0 } else { y_dims.iter().rev().nth(1).copied().unwrap_or(0) };
                    sums[i % parts].add(&xs, &ys, &row_weights(&ys, j.outs, rows, &read));
                }
            });
            progress(i + 1);
            Ok(())
        },
    )?;
    Ok(all)
}

/// The rows that are finite in both, and whether these are all.
fn whole_rows<'v>(
    (xs, ins): (Vec<f32>, usize),
    (ys, outs): (Cow<'v, [f32]>, usize),
) -> (Vec<f32>, Cow<'v, [f32]>, bool) {
    let finite = |row: &[f32]| row.iter().all(|v| v.is_finite());
    if finite(&xs) && finite(&ys) || ins == 0 || outs == 0 || xs.len() / ins != ys.len() / outs {
        return (xs, ys, true);
    }
    let rows = || xs.chunks(ins).zip(ys.chunks(outs)).filter(|(x, y)| finite(x) && finite(y));
    (rows().flat_map(|r| r.0).copied().collect(), rows().flat_map(|r| r.1).copied().collect(), false)
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

    /// What the layer reads for the float value `x` of shape `dims`; `conv`: channels are the second axis, not the last.
    fn through(&self, x: &[f32], dims: &[usize], conv: bool) -> Vec<f32> {
        let mut v = x.to_vec();
        if let Some(f) = self.fold {
            let inner: usize = if conv { dims.iter().skip(2).product() } else { 1 };
            for (r, run) in v.chunks_mut(inner.max(1)).enumerate() {
                let c = r % f.factors.len().max(1);
                run.iter_mut().for_each(|v| *v = (*v - f.offset(c)) / f.factors[c]);
            }
        }
        if let Some(p) = self.params {
            let ((lo, hi), s, z) = (p.code().range(), p.scale(0), p.zero(0));
            v.iter_mut().for_each(|v| *v = dequantize(quantize(*v, s, z, lo, hi), s, z));
        }
        v
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
struct Unfold {
    kernel: [usize; 2],
    strides: [usize; 2],
    /// In front of and after each axis.
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
    use crate::plan::channel_map::tests::{Layout, sites_of};

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
    fn sums_that_take_too_much_are_not_made_and_others_come_in_parts() {
        let model = Layout::heads(2, 3, [true, false]).model();
        let p = Prepared { sites: sites_of(&model), model, fingerprint: String::new(), tails: Vec::new() };
        let layer = |y: &str| format!("- {{output: {y}, weight: i8, rounding: nearest, reason: i8}}\n");
        let layers: String = ["q", "k", "v", "y"].into_iter().map(layer).collect();
        let text = format!("version: 1\nrecipe: test\nmodel: ''\nlayers:\n{layers}");
        let plan: QuantPlan = serde_yaml::from_str(&text).unwrap();
        // Six inputs and six outputs each.
        let one = 2 * 6 * (6 + 6) * 8;
        let count = |at_once, of_one| {
            let (runs, left) = runs(&p, &plan, 2, at_once, of_one);
            (runs.iter().map(Vec::len).collect::<Vec<_>>(), left)
        };
        assert_eq!(count(4 * one, one), (vec![4], vec![]));
        assert_eq!(count(3 * one, one), (vec![3, 1], vec![]));
        let (parts, left) = count(4 * one, one - 1);
        assert_eq!((parts, left.len()), (vec![], 4));
        assert_eq!(left[3], (3, "rounded to nearest: sums over 6 inputs take 0.0 GB".into()));
    }

    #[test]
    fn a_conv_of_another_kind_is_left_to_nearest_rounding() {
        assert!(conv(Attrs::new().with_int("group", 2), &[2, 2]).is_none());
        assert!(conv(Attrs::new().with_str("auto_pad", "SAME_UPPER"), &[2, 2]).is_none());
        assert!(conv(Attrs::new().with_ints("strides", &[2]), &[2, 2]).is_none());
    }
}
