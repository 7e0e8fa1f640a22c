//! Weights fitted to the codes they will read: the step between [`make_plan`](super::make_plan) and
//! [`apply`](super::apply) that looks at data again.
//!
//! The float model runs over the calibration samples. Each linear layer's input is taken through the codes that the plan
//! gives it, and [`gptq`] rounds the layer's weights so that its output changes least for such inputs. Rows count as
//! tokens do in calibration: by the inverse of their variance, and those that the outputs read as much as all others. A few
//! tokens with massive channels would otherwise decide every code. What comes out, codes and a bias, is written into the
//! plan, so that carrying a plan out needs no data.
//!
//! Errors from further up are left out on purpose: a layer that corrects what another will have corrected as well
//! overshoots, and measured so by dB.

use super::rows::{RowsOf, Unfold};
use super::{CompileError, Journal, Prepared, equalised};
use crate::budget;
use crate::calibrate::data::{DataError, Dataset};
use crate::calibrate::finite::OutputsOf;
use crate::calibrate::run::open_shapes;
use crate::ir::{Dim, Graph, ValueId, validate};
use crate::passes::quantize::fold::FoldFactors;
use crate::passes::quantize::weights::least_scale;
use crate::passes::{Context, Pass};
use crate::plan::head_rows::read_tokens;
use crate::plan::recipe::WeightRecipe;
use crate::plan::sites::{Linear, trace_back};
use crate::plan::{QuantPlan, Rounding, StoredWeight};
use crate::quant::count::Pick;
use crate::quant::gptq::{self, CodeSearch};
use crate::quant::observe::first_unfit;
use crate::quant::pairs::{self, Mates, WeightRows};
use crate::quant::qparams::SCALE_FLOOR;
use crate::quant::row_sums::{Centred, LayerRows, RowSums};
use crate::quant::tokens::Read;
use crate::runtime::{RuntimeError, Session, SessionOptions, fold_samples};

use indexmap::IndexMap;
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
/// Samples and tokens that weights are fitted to at least.
const SAMPLES: usize = 48;
const TOKENS: usize = 8192;
/// Rows of them for each layer: that many, or as many for each of its inputs.
const ROWS: usize = 4096;
const ROWS_OF_INPUT: usize = 8;
/// By how much covariances of a layer's inputs are trusted less than the samples say, and the share of the mean variance that
/// is added to every variance. Measured, see docs/accuracy.md.
const SHRINK: f64 = 0.2;
const DAMP: f64 = 0.001;
/// Scales tried besides the recipe's where neighbours must not saturate: codes that are smaller meet that more often. At twice the
/// scale no two of them can: weights without outliers, of which many pairs would, are best off there.
const WIDER: [f32; 3] = [2.0, 1.6, 1.25];

/// A linear layer whose weight is fitted.
struct Job<'p> {
    /// Place in the plan's list of layers.
    at: usize,
    linear: &'p Linear,
    /// The folded weight, `outs x ins` with the kernel positions of a Conv among the inputs.
    w: Vec<f32>,
    outs: usize,
    ins: usize,
    bias: Vec<f32>,
    unfold: Option<Unfold>,
    /// Which weights of an output may meet in one sum of 16 bits.
    mates: Mates,
}

impl Job<'_> {
    /// True for layers whose weight was one and is one still, folded.
    fn has_one_weight_with(&self, other: &Job<'_>) -> bool {
        self.linear.weight == other.linear.weight && self.linear.out_axis == other.linear.out_axis && self.w == other.w
    }

    /// How many rows of each of so many samples are summed up.
    fn most_rows(&self, samples: usize) -> usize {
        ROWS.max(self.ins * ROWS_OF_INPUT).div_ceil(samples.max(1))
    }
}

/// Samples that are enough to fit to: as many as hold [`TOKENS`], by the sizes that are known, and [`SAMPLES`] at least.
fn enough(p: &Prepared) -> usize {
    let g = &p.model.graph;
    // The first axis is the batch, the last the channels.
    let places = |l: &Linear| {
        let dims = g.shape(l.x)?;
        dims.get(1..dims.len().checked_sub(1)?)?
            .iter()
            .map(|d| if let Dim::Known(n) = d { Some(*n as usize) } else { None })
            .product::<Option<usize>>()
    };
    let most = p.sites.linears.iter().filter(|l| !l.is_conv).filter_map(places).max().unwrap_or(1);
    TOKENS.div_ceil(most.max(1)).max(SAMPLES)
}

/// To how many of these samples weights are fitted.
pub(super) fn fits_to(p: &Prepared, indices: &[usize]) -> usize {
    indices.len().min(enough(p))
}

/// `most` samples, evenly chosen.
fn some_of(indices: &[usize], most: usize) -> Vec<usize> {
    let n = indices.len().min(most);
    (0..n).map(|i| indices[i * indices.len() / n]).collect()
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
    let some = some_of(fit.indices, enough(p));
    let fit = FitData { indices: &some, ..fit };
    let p = &*equalised(p, &plan.equalisations, &mut Journal::default()).map_err(Box::new)?;
    let (runs, left) = runs(p, &plan, SUMS_AT_ONCE, SUMS_OF_ONE);
    for (at, why) in left {
        let reason = &mut plan.layers[at].reason;
        *reason = format!("{reason}, {why}");
    }
    for (i, layers) in runs.iter().enumerate() {
        let jobs = jobs(p, &plan, layers)?;
        let done = |n: usize| progress((i * fit.indices.len() + n) / runs.len());
        let sums = sums(p, &plan, &jobs, fit, &done)?;
        budget::give_back();
        let g = &p.model.graph;
        let mut left = &sums[..];
        let mut groups: Vec<(&[Job<'_>], &[RowSums])> = Vec::new();
        for jobs in jobs.chunk_by(Job::has_one_weight_with) {
            let (own, rest) = left.split_at(jobs.len());
            groups.push((jobs, own));
            left = rest;
        }
        let found: Vec<_> = groups.par_iter().map(|(jobs, sums)| fitted(jobs, sums, g, &plan, recipe)).collect();
        for ((jobs, _), f) in groups.iter().zip(found) {
            let Some((stored, ends)) = f else { continue };
            for (j, (correction, reason)) in jobs.iter().zip(ends) {
                let l = &mut plan.layers[j.at];
                l.rounding = Rounding::Gptq;
                l.stored = Some(stored.clone());
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

/// The layers of the plan, in parts whose sums take about `at_once` bytes: each part is a run over the data. Layers of one
/// weight stand together. Apart from them those whose sums alone take more than `of_one`, and why these are not fitted.
fn runs<'p>(p: &'p Prepared, plan: &QuantPlan, at_once: usize, of_one: usize) -> Runs<'p> {
    let g = &p.model.graph;
    let (mut out, mut left): (Vec<Vec<Planned<'p>>>, _) = (Vec::new(), Vec::new());
    let mut groups: IndexMap<ValueId, Vec<Planned<'p>>> = IndexMap::new();
    for (at, layer) in plan.layers.iter().enumerate() {
        if let Some(l) = p.sites.linears.iter().find(|l| g.name_of(l.out) == layer.output) {
            groups.entry(l.weight).or_default().push((at, l));
        }
    }
    let mut held = at_once;
    for (weight, layers) in groups {
        let Some(w) = g.constant(weight) else { continue };
        let outs = w.dims[layers[0].1.out_axis] as usize;
        let ins = w.len() / outs.max(1);
        let bytes = RowSums::bytes(ins) * layers.len();
        if bytes > of_one {
            let why = format!("rounded to nearest: sums over {ins} inputs take {:.1} GB", bytes as f64 / 1e9);
            left.extend(layers.iter().map(|(at, _)| (*at, why.clone())));
            continue;
        }
        if held + bytes > at_once {
            out.push(Vec::new());
            held = 0;
        }
        held += bytes;
        out.last_mut().expect("one was just begun").extend(layers);
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
        let w = (0..outs * ins).map(|i| data[place(linear, i / ins, i % ins, outs, ins)]).collect();
        let bias = linear.bias_now(&folded.graph).and_then(|(_, _, b)| folded.graph.constant(b)?.to_f32s());
        let bias = bias.map_or(vec![0.0; outs], |b| b.into_owned());
        let dims: Vec<usize> = t.dims.iter().map(|d| *d as usize).collect();
        let mates = WeightRows::of(&dims, linear.out_axis, linear.is_conv)
            .map_or_else(|| Mates::of_row(ins), WeightRows::into_mates);
        out.push(Job { at, linear, w, outs, ins, bias, unfold, mates });
    }
    Ok(out)
}

/// Where the weight from input `i` to output `o` lies in the tensor.
fn place(l: &Linear, o: usize, i: usize, outs: usize, ins: usize) -> usize {
    if l.out_axis == 0 { o * ins + i } else { i * outs + o }
}

/// Scales that are tried, as shares of the one that reaches the largest weight.
fn clips(of_recipe: &[f32], neighbours_apart: bool) -> Vec<f32> {
    let wider: &[f32] = if neighbours_apart { &WIDER } else { &[] };
    wider.iter().chain(of_recipe).copied().collect()
}

/// What a layer's bias gains, and how good the layer is.
type End = (Vec<f32>, String);

/// Codes for layers of one weight, and what sets each layer apart: its bias, and how good it is.
fn fitted(
    jobs: &[Job<'_>],
    sums: &[RowSums],
    g: &Graph,
    plan: &QuantPlan,
    recipe: &WeightRecipe,
) -> Option<(StoredWeight, Vec<End>)> {
    let (job, layer) = (&jobs[0], &plan.layers[jobs[0].at]);
    let mut own: Vec<Centred> = sums.iter().map(RowSums::centred).collect();
    let mut mean = if own.len() > 1 { Some(Centred::pooled(own.clone())?) } else { None };
    let regularised = mean.as_mut().unwrap_or(&mut own[0]).regularise(SHRINK, DAMP);
    let whole = mean.as_ref().unwrap_or(&own[0]);
    let (n, outs) = (job.ins, job.outs);
    let bias = |c: &Centred, w: &dyn Fn(usize) -> f64, o: usize| {
        c.mean_y[o] - (0..n).map(|i| w(o * n + i) * c.mean_x[i]).sum::<f64>()
    };
    let mut least = vec![SCALE_FLOOR; outs];
    for (j, c) in jobs.iter().zip(&own) {
        let x = g.name_of(trace_back(g, j.linear.x));
        let Some(sx) = plan.activation(x, true).map(|a| a.params.scale(0)) else { continue };
        let needs = |o: usize| least_scale((bias(c, &|i| f64::from(job.w[i]), o) * 1.1) as f32, sx);
        least.iter_mut().enumerate().for_each(|(o, l)| *l = l.max(needs(o)));
    }
    let top = layer.weight.range().1;
    // Codes of fewer bits never saturate.
    let mates = (top > pairs::MOST / 2 && !plan.assume_vnni).then_some(&job.mates);
    let clips = clips(&recipe.clip, mates.is_some());
    let r = gptq::round(whole, &job.w, &CodeSearch { top, clips: &clips, least: &least, mates })?;
    let off = (0..outs * n).map(|i| f64::from(job.w[i]) - f64::from(r.codes[i]) * f64::from(r.scales[i / n]));
    let error = regularised.undone(r.error, whole, off);
    let end = |(j, c): (&Job<'_>, &Centred)| -> End {
        let correction =
            (0..outs).map(|o| (bias(c, &|i| r.codes[i] as f64 * r.scales[o] as f64, o) - j.bias[o] as f64) as f32);
        let power: f64 = c.yy.iter().sum();
        let db = |error: f64| 10.0 * (power / error.max(1e-300)).log10();
        let noise = c.noise(&job.w);
        let (all, before) = (db(noise + error), db(noise));
        let mut reason = format!("{:?}: {all:.1} dB at its output", layer.weight).to_lowercase();
        if noise > 0.0 {
            reason += &format!("; {before:.1} with the weights as they were");
        }
        if jobs.len() > 1 {
            reason += &format!("; one weight for {} layers", jobs.len());
        }
        (correction.collect(), reason)
    };
    let ends = jobs.iter().zip(&own).map(end).collect();
    let mut codes = vec![0i8; r.codes.len()];
    for (i, q) in r.codes.iter().enumerate() {
        codes[place(job.linear, i / n, i % n, outs, n)] = *q;
    }
    Some((StoredWeight { scales: r.scales, codes }, ends))
}

/// The float model, and what its layers read and make as rows.
struct Rows<'a> {
    g: &'a Graph,
    jobs: &'a [Job<'a>],
    fit: FitData<'a>,
    sources: Vec<RowsOf<'a>>,
    read: Read,
    /// Of what layers read and make, what is no input.
    taps: Vec<String>,
    outputs: OutputsOf<'a>,
    session: Session,
}

impl<'a> Rows<'a> {
    fn of(
        p: &'a Prepared,
        plan: &'a QuantPlan,
        jobs: &'a [Job<'a>],
        fit: FitData<'a>,
    ) -> Result<Rows<'a>, RefineError> {
        let g = &p.model.graph;
        let mut taps: Vec<String> = Vec::new();
        for v in jobs.iter().flat_map(|j| [j.linear.x, j.linear.out]).filter(|v| g.producer(*v).is_some()) {
            if !taps.iter().any(|t| t == g.name_of(v)) {
                taps.push(g.name_of(v).to_owned());
            }
        }
        let options = SessionOptions {
            batch: fit.data.batch(),
            taps: taps.clone(),
            shapes: open_shapes(g, &fit.data.sample(fit.indices[0])?.inputs),
            outputs: false,
            ..SessionOptions::default()
        };
        let valid = validate::validate(&p.model).map_err(|e| Box::new(CompileError::from(e)))?;
        let rows = |j: &'a Job<'a>| RowsOf::new(g, plan, j.linear, j.unfold.as_ref(), (j.ins, j.outs));
        let made = Rows {
            g,
            jobs,
            fit,
            sources: jobs.iter().map(rows).collect(),
            read: Read { tokens: read_tokens(g, &p.sites), alone: false },
            outputs: OutputsOf::new(valid, options.batch, options.shapes.clone()),
            session: Session::of(valid, &options)?,
            taps,
        };
        budget::give_back();
        Ok(made)
    }

    /// Those of one sample, for each job.
    fn sample(&self, i: usize) -> Result<Vec<Option<LayerRows>>, RefineError> {
        let (g, fit) = (self.g, self.fit);
        let s = fit.data.sample(fit.indices[i])?;
        let out = self.session.tapped(&s.inputs)?;
        // Masks may hold infinities; what layers read and make may not.
        let unfit = |name: &str| RefineError::NotFinite { sample: s.name.clone(), value: name.to_owned() };
        let mut broken = None;
        for (t, name) in self.taps.iter().enumerate() {
            broken = broken.or(first_unfit(&out.value(t)?.0, false).map(|_| name));
        }
        // Rows that no output depends on are left out of the sums.
        if let Some(name) = broken
            && self.outputs.hold_nan(&s.inputs)?
        {
            return Err(unfit(name));
        }
        let is_read = |name: &str| self.jobs.iter().any(|j| g.name_of(j.linear.x) == name);
        for (name, a) in s.inputs.iter().filter(|(name, _)| is_read(name)) {
            first_unfit(&a.f32s(), false).map_or(Ok(()), |_| Err(unfit(name)))?;
        }
        let of = |v: ValueId| {
            let name = g.name_of(v);
            match self.taps.iter().position(|t| t == name) {
                Some(t) => out.value(t).ok(),
                None => s.inputs.iter().find(|(n, _)| n == name).map(|(_, a)| (a.f32s(), a.dims())),
            }
        };
        let rows = |(j, rows): (&Job<'_>, &RowsOf<'_>)| {
            let pick = Pick { sample: fit.indices[i] as u64, most: j.most_rows(fit.indices.len()) };
            rows.of(of(j.linear.x)?, of(j.linear.out)?, &self.read, pick, broken.is_none())
        };
        Ok(self.jobs.iter().zip(&self.sources).map(rows).collect())
    }
}

/// For each job, sums over all samples.
fn sums(
    p: &Prepared,
    plan: &QuantPlan,
    jobs: &[Job<'_>],
    fit: FitData<'_>,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<Vec<RowSums>, RefineError> {
    let rows = Rows::of(p, plan, jobs, fit)?;
    let mut sums: Vec<RowSums> = jobs.iter().map(|j| RowSums::new(j.ins, j.outs)).collect();
    let add = |i: usize, rows: Vec<Option<LayerRows>>| {
        sums.par_iter_mut().zip(rows).for_each(|(sums, r)| {
            if let Some(r) = r {
                sums.add(&r);
            }
        });
        progress(i + 1);
        Ok(())
    };
    fold_samples(fit.indices.len(), fit.threads, |i| rows.sample(i), add)?;
    sums.iter_mut().for_each(RowSums::end);
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::channel_map::tests::{Layout, sites_of};

    #[test]
    fn short_sequences_take_more_samples() {
        let of = |tokens: usize| {
            let model = crate::text::parse_model(&format!(
                "<ir_version: 8, opset_import: [\"\" : 17]> g (float[n, {tokens}, 2] x) => (float[n, {tokens}, 2] y)
                 <float[2, 2] w = {{1, 2, 3, 4}}> {{ y = MatMul (x, w) }}"
            ))
            .expect("a model");
            let sites = crate::plan::sites::find(&model, Vec::new());
            enough(&Prepared { sites, model, ..Prepared::default() })
        };
        assert_eq!([of(1), of(16), of(197), of(4096)], [TOKENS, 512, SAMPLES, SAMPLES]);
        assert_eq!(some_of(&[3, 5, 7, 9, 11], 2), [3, 7]);
        assert_eq!(some_of(&[3, 5], 9), [3, 5]);
    }

    #[test]
    fn weights_without_outliers_lose_little_where_neighbours_must_not_saturate() {
        use rand::{RngExt, SeedableRng};
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(5);
        let (ins, outs, rows) = (32, 16, 400);
        let mut some = |n: usize| (0..n).map(|_| rng.random_range(-1.0f32..1.0)).collect::<Vec<f32>>();
        let mut sums = RowSums::new(ins, outs);
        let (x, y) = (some(rows * ins), some(rows * outs));
        sums.add(&LayerRows { x, lost: vec![0.0; rows * ins], y, weights: vec![1.0; rows] });
        sums.end();
        let w = some(outs * ins);
        let (least, mates) = (vec![0.0; outs], Mates::of_row(ins));
        let error = |mates: Option<&Mates>| {
            let how = CodeSearch { top: 127, clips: &clips(&[1.0, 0.9], mates.is_some()), least: &least, mates };
            gptq::round(&sums.centred(), &w, &how).expect("inputs vary").error
        };
        // Twice the step is four times the error.
        let (apart, free) = (error(Some(&mates)), error(None));
        assert!(apart < 4.5 * free, "{apart} against {free}");
    }

    #[test]
    fn sums_that_take_too_much_are_not_made_and_others_come_in_parts() {
        let model = Layout::heads(2, 3, [true, false]).model();
        let p = Prepared { sites: sites_of(&model), model, ..Prepared::default() };
        let layer = |y: &str| format!("- {{output: {y}, weight: i8, rounding: nearest, reason: i8}}\n");
        let layers: String = ["q", "k", "v", "y"].into_iter().map(layer).collect();
        let text = format!("version: 1\nrecipe: test\nmodel: ''\nlayers:\n{layers}");
        let plan: QuantPlan = crate::yaml::from_str(&text).unwrap();
        // Six inputs and six outputs each.
        let one = RowSums::bytes(6);
        let count = |at_once, of_one| {
            let (runs, left) = runs(&p, &plan, at_once, of_one);
            (runs.iter().map(Vec::len).collect::<Vec<_>>(), left)
        };
        assert_eq!(count(4 * one, one), (vec![4], vec![]));
        assert_eq!(count(3 * one, one), (vec![3, 1], vec![]));
        let (parts, left) = count(4 * one, one - 1);
        assert_eq!((parts, left.len()), (vec![], 4));
        assert_eq!(left[3], (3, "rounded to nearest: sums over 6 inputs take 0.0 GB".into()));
    }
}
