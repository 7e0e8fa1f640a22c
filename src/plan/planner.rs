//! Turns statistics into decisions.
//!
//! For each site the recipe names candidates; each is scored by the squared error it is expected to make at the
//! *consumer's output*, from the histograms of calibration and the consumer's weights, and the least one is taken. The
//! expected error of rounding is `step^2 / 12` an element; errors of different elements are taken as independent.

use std::collections::{BTreeMap, BTreeSet};

use indexmap::IndexMap;
use rayon::prelude::*;

use self::equalise::Known;
use super::channels::channel_axis;
use super::costs::Worth;
use super::head_rows::{read_tokens, values_before};
use super::recipe::{Candidate, QuantRecipe};
use super::scores::score_site;
use super::sites::{Linear, Site, Sites, moved_from, reading_nodes, trace_back};
use super::{Activation, AttentionPlan, Constant, Island, Layer, QuantPlan, Readers, Role, Source, VERSION};
use crate::ir::{Dim, Graph, Model, NodeId, ValueId};
use crate::pattern::Attention;
use crate::quant::hist::Moments;
use crate::quant::observe::Watch;
use crate::quant::qparams::SCALE_FLOOR;
use crate::quant::range::{self, Range};
use crate::quant::tokens::Read;
use crate::quant::{Code, QParams};

mod contest;
pub mod equalise;
mod folds;
mod scores;
mod ties;
mod weights;

/// Why no plan could be made.
#[derive(Debug, thiserror::Error)]
pub enum PlanningError {
    #[error("the statistics do not hold `{value}` ({role}); make new ones with `fqvit-opt calibrate`")]
    Missing { value: String, role: &'static str },
    #[error("the recipe names no candidate for {role} values such as `{value}`; add one, or a `default`")]
    NoCandidate { role: &'static str, value: String },
    #[error("attention at `{output}`: {message}")]
    Attention { output: String, message: String },
}

/// What calibration must watch so that a plan can be made, by value name.
pub fn watches(m: &Model, sites: &Sites, recipe: &QuantRecipe) -> IndexMap<String, Watch> {
    let g = &m.graph;
    let mut w: IndexMap<String, Watch> = IndexMap::new();
    let mixing = sites.attentions.iter().map(|a| a.weighted).collect();
    let tokens = read_tokens(g, sites);
    let mixed = values_before(g, &mixing);
    for s in sites.sites.values() {
        let folded = recipe.folds.contains_key(&s.role);
        let by_token = recipe.candidates(s.role).iter().any(|c| match c {
            Candidate::Ptf { rule, .. } => rule.normalised,
            // Contracted values alone cannot have it.
            Candidate::Wide { .. } => s.elementwise,
            _ => false,
        });
        let watch = match by_token || folded || equalise::wants(recipe, s.role) {
            // Where single tokens choose steps channel by channel, they are too few for that alone.
            true => Watch::Tokens {
                axis: s.axis,
                read: Read { tokens: tokens.clone(), alone: folded && !mixed.contains(&s.value) },
            },
            false => Watch::Channels { axis: s.axis },
        };
        w.insert(g.name_of(s.value).to_owned(), watch);
    }
    for (v, name) in equalise::watched(g, sites, recipe) {
        let read = Read { tokens: tokens.clone(), alone: !mixed.contains(&v) };
        w.insert(name.to_owned(), Watch::Tokens { axis: channel_axis(g, v), read });
    }
    for a in &sites.attentions {
        if let Ok(s) = score_site(g, a) {
            w.insert(g.name_of(s.value).to_owned(), Watch::Scores { by_head: heads_apart(g, s.value) });
        }
    }
    w
}

/// True if the third last axis of the scores has a size that is known: heads, and not heads times batch.
fn heads_apart(g: &Graph, scores: ValueId) -> bool {
    g.shape(scores).is_some_and(|s| s.len() >= 3 && matches!(s[s.len() - 3], Dim::Known(_)))
}

/// A constant weight read as a matrix: what the scores need of it.
struct Matrix<'g> {
    data: std::borrow::Cow<'g, [f32]>,
    outs: usize,
    ins: usize,
    /// Elements a channel pair shares (kernel positions of a Conv).
    inner: usize,
    out_first: bool,
}

impl<'g> Matrix<'g> {
    fn of(g: &'g Graph, l: &Linear) -> Option<Matrix<'g>> {
        let t = g.constant(l.weight)?;
        let data = t.to_f32s()?;
        let (outs, ins) = (t.dims[l.out_axis] as usize, t.dims[l.in_axis] as usize);
        let inner = data.len() / (outs * ins).max(1);
        Some(Matrix { data, outs, ins, inner, out_first: l.out_axis < l.in_axis })
    }

    /// Calls `f` with output, input and weight, for all weights in the order they lie in.
    fn each(&self, mut f: impl FnMut(usize, usize, f32)) {
        let columns = if self.out_first { self.ins } else { self.outs };
        for (a, row) in self.data.chunks_exact((columns * self.inner).max(1)).enumerate() {
            for (b, shared) in row.chunks_exact(self.inner.max(1)).enumerate() {
                let (o, i) = if self.out_first { (a, b) } else { (b, a) };
                shared.iter().for_each(|w| f(o, i, *w));
            }
        }
    }

    /// For each input channel: sum over outputs of squared weights.
    fn in_power(&self) -> Vec<f64> {
        let mut p = vec![0.0; self.ins];
        self.each(|_, i, w| p[i] += f64::from(w).powi(2));
        p
    }

    /// Sum over outputs of the variance of a rounded weight of input channel `i`, which holds the factor `f(i)`.
    fn rounding(&self, code: Code, f: impl Fn(usize) -> f64) -> f64 {
        let (_, top) = code.range();
        let reach = self.out_reach(f);
        reach.iter().map(|r| (r / f64::from(top)).powi(2) / 12.0 * self.inner as f64).sum()
    }

    /// For each output channel: the largest weight after input channel `i` is multiplied by `f(i)`.
    fn out_reach(&self, f: impl Fn(usize) -> f64) -> Vec<f64> {
        let mut r = vec![0f64; self.outs];
        let f: Vec<f64> = (0..self.ins).map(f).collect();
        let more = |r: &mut f64, w: f64| *r = if w > *r { w } else { *r };
        if self.out_first || self.inner != 1 {
            self.each(|o, i, w| more(&mut r[o], (f64::from(w) * f[i]).abs()));
        } else {
            for (row, f) in self.data.chunks_exact(self.outs.max(1)).zip(&f) {
                r.iter_mut().zip(row).for_each(|(r, w)| more(r, (f64::from(*w) * f).abs()));
            }
        }
        r
    }
}

/// What one site comes to.
enum Decided {
    Float,
    /// The sums of the layer that makes it; see [`Candidate::Sums`].
    Sums(String),
    Codes(contest::Coded),
}

/// True if a value can stay the sums of the linear layers that make it, and the recipe wants that: it is read by Adds
/// alone, and made by layers, with moves and constants joined to them between.
fn summed(g: &Graph, s: &Site, sites: &Sites, recipe: &QuantRecipe) -> bool {
    if !recipe.candidates(s.role).contains(&Candidate::Sums) {
        return false;
    }
    let made = |v: ValueId| sites.linears.iter().any(|l| l.out == trace_back(g, v));
    let from_layers = made(s.value)
        || g.producer_is(s.value, "Concat").is_some_and(|n| {
            let parts: Vec<ValueId> = g.node(n).inputs.iter().flatten().copied().collect();
            parts.iter().any(|v| made(*v)) && parts.iter().all(|v| made(*v) || repeats_constant(g, *v))
        });
    let added = reading_nodes(g, s.value).iter().all(|n| g.node(*n).op.is("Add"));
    from_layers && added && s.elementwise && !s.contracted && !g.is_output(s.value)
}

/// A constant, repeated or not: a class token for each image of a batch.
fn repeats_constant(g: &Graph, v: ValueId) -> bool {
    let v = trace_back(g, v);
    let source = g.producer_is(v, "Expand").and_then(|n| g.node(n).input(0)).unwrap_or(v);
    g.constant(trace_back(g, source)).is_some()
}

/// Makes the plan.
///
/// # Errors
/// If statistics of a value are missing, or no candidate of the recipe can stand for it.
pub fn plan(
    m: &Model,
    sites: &Sites,
    stats: &Known<'_>,
    recipe: &QuantRecipe,
    recipe_name: &str,
    fingerprint: &str,
) -> Result<QuantPlan, PlanningError> {
    let g = &m.graph;
    let mut plan = QuantPlan {
        version: VERSION,
        recipe: recipe_name.to_owned(),
        model: fingerprint.to_owned(),
        opset: None,
        folds: Vec::new(),
        equalisations: Vec::new(),
        activations: Vec::new(),
        sums: Vec::new(),
        constants: constants(g, sites, recipe),
        layers: Vec::new(),
        attentions: Vec::new(),
        target: recipe.target,
        assume_vnni: recipe.weights.assume_vnni,
        islands: Vec::new(),
        parts: Vec::new(),
        source: Source::default(),
    };
    let worth = Worth::of(g, sites, recipe.costs.as_ref());
    let linears: Vec<(usize, &Linear)> = sites.linears.iter().enumerate().filter(|(i, _)| worth.layers[*i]).collect();
    let by_x: BTreeMap<ValueId, Vec<&Linear>> = linears.iter().fold(BTreeMap::new(), |mut m, (_, l)| {
        m.entry(trace_back(g, l.x)).or_insert_with(Vec::new).push(*l);
        m
    });
    let decide = |s: &&Site| {
        let layers = by_x.get(&s.value);
        let needed = layers.is_some() || worth.operands.contains(&s.value);
        if recipe.keep_float.contains(&s.role) || (recipe.linear_only && !needed) {
            return Ok(Decided::Float);
        }
        decided(g, s, stats, recipe, sites, layers.map_or(&[], |l| l))
    };
    let values: Vec<Result<Decided, PlanningError>> =
        sites.sites.values().collect::<Vec<_>>().par_iter().map(decide).collect();
    for (value, s) in values.into_iter().zip(sites.sites.values()) {
        match value? {
            Decided::Float => {}
            Decided::Sums(value) => plan.sums.push(value),
            Decided::Codes(contest::Coded { fold, codes, float }) => {
                plan.folds.extend(fold);
                plan.activations.extend(codes);
                plan.islands.extend(float.map(|reason| Island {
                    node: g.name_of(s.value).to_owned(),
                    op: "value".into(),
                    reason,
                }));
            }
        }
    }
    ties::separate(g, sites, &mut plan);
    let code = |i: usize| recipe.weights.code_of(i, sites.linears.len());
    let layer = |(i, l): &(usize, &Linear)| weights::layer(g, l, stats, recipe, &plan.folds, code(*i));
    plan.layers = linears.par_iter().map(layer).collect();
    if !recipe.linear_only {
        let decided: Vec<_> = sites.attentions.par_iter().map(|a| attention(g, a, stats, recipe)).collect();
        for d in decided {
            let (scores, attention) = d?;
            // Scores that are an output as well stay what they are for the caller.
            plan.activations.retain(|a| a.value != scores.value);
            plan.activations.push(scores);
            plan.attentions.push(attention);
        }
    }
    separate_containers(g, &mut plan);
    for (n, reason) in &sites.islands {
        let n = g.node(*n);
        plan.islands.push(Island { node: g.label(n), op: n.op.to_string(), reason: reason.clone() });
    }
    Ok(plan)
}

/// What becomes of a value that is not left in float; `layers` read it.
fn decided(
    g: &Graph,
    s: &Site,
    stats: &Known<'_>,
    recipe: &QuantRecipe,
    sites: &Sites,
    layers: &[&Linear],
) -> Result<Decided, PlanningError> {
    let name = g.name_of(s.value);
    if summed(g, s, sites, recipe) {
        return Ok(Decided::Sums(name.to_owned()));
    }
    let missing = || PlanningError::Missing { value: name.to_owned(), role: s.role.name() };
    let seen = stats.get(name).ok_or_else(missing)?;
    // Without a channel there is nothing to code.
    if seen.channels.is_empty() {
        return Ok(Decided::Float);
    }
    Ok(Decided::Codes(contest::decide(g, s, seen, recipe, sites, layers)?))
}

/// The layers of a plan with the weights of another recipe: its folds and values stay.
pub fn layers(g: &Graph, sites: &Sites, stats: &Known<'_>, recipe: &QuantRecipe, plan: &QuantPlan) -> Vec<Layer> {
    let planned: BTreeSet<&str> = plan.layers.iter().map(|l| l.output.as_str()).collect();
    let linears: Vec<(usize, &Linear)> =
        sites.linears.iter().enumerate().filter(|(_, l)| planned.contains(g.name_of(l.out))).collect();
    let code = |i: usize| recipe.weights.code_of(i, sites.linears.len());
    linears.par_iter().map(|(i, l)| weights::layer(g, l, stats, recipe, &plan.folds, code(*i))).collect()
}

/// Codes of an attention's scores, and its form.
fn attention(
    g: &Graph,
    a: &Attention,
    stats: &Known<'_>,
    recipe: &QuantRecipe,
) -> Result<(Activation, AttentionPlan), PlanningError> {
    let output = g.name_of(a.out).to_owned();
    let failed = |message| PlanningError::Attention { output: output.clone(), message };
    let site = score_site(g, a).map_err(failed)?;
    let name = g.name_of(site.value);
    let st =
        stats.get(name).ok_or_else(|| PlanningError::Missing { value: name.to_owned(), role: Role::Scores.name() })?;
    let (params, form, reason) = scores::decide(st, site.factor, a.v.is_none(), &recipe.attention).map_err(failed)?;
    let scores = Activation {
        value: name.to_owned(),
        role: Role::Scores,
        readers: Readers::All,
        params,
        floor: None,
        reason: reason.clone(),
    };
    Ok((scores, AttentionPlan { output: output.clone(), form, reason }))
}

/// Constant operands of elementwise operators (position embeddings): int8 with one scale for each index of the last
/// axis, or with one scale where a product reads them. What attentions read of constants (learned queries, tables of keys
/// and values) is uint8.
fn constants(g: &Graph, sites: &Sites, recipe: &QuantRecipe) -> Vec<Constant> {
    let mut out: Vec<Constant> = Vec::new();
    if recipe.linear_only {
        return out;
    }
    let attended = sites.attended(g);
    for (n, slot) in &sites.constants {
        let Some(v) = g.node(*n).input(*slot) else { continue };
        let name = g.name_of(v);
        let Some(t) = g.try_init(v) else { continue };
        let (Some(data), Some(last)) = (t.to_f32s(), t.dims.last()) else { continue };
        if out.iter().any(|c| c.value == name) || *last <= 0 || data.iter().any(|x| !x.is_finite()) {
            continue;
        }
        // Of a ConvTranspose, the output channels of one group are the second axis.
        let turned = g.node(*n).op.is("ConvTranspose") && t.dims.len() > 2;
        let axis = if turned { 1 } else { t.dims.len() - 1 };
        let (channels, inner) = (t.dims[axis] as usize, t.dims[axis + 1..].iter().product::<i64>() as usize);
        let mut reach = vec![0f32; channels];
        for (i, x) in data.iter().enumerate() {
            let r = &mut reach[i / inner.max(1) % channels];
            *r = r.max(x.abs());
        }
        if attended.contains(&v) {
            // As all that two products read: uint8, so that no pair of products saturates.
            let (low, high) = data.iter().fold((0f32, 0f32), |(a, b), x| (a.min(*x), b.max(*x)));
            let params = QParams::covering(Code::U8, low, high);
            out.push(Constant { value: name.to_owned(), params });
            continue;
        }
        let product = |x: &(NodeId, usize)| g.node(x.0).input(x.1) == Some(v) && g.node(x.0).op.is("MatMul");
        if sites.constants.iter().any(product) {
            reach = vec![reach.iter().copied().fold(0.0, f32::max)];
        }
        let scales: Vec<f32> = reach.iter().map(|r| (r / 127.0).max(SCALE_FLOOR)).collect();
        let zeros = vec![0; scales.len()];
        let params = match scales[..] {
            [scale] => QParams::affine(Code::I8, scale, 0),
            _ => QParams::per_axis(Code::I8, axis as i64, scales, zeros),
        };
        if let Ok(params) = params {
            out.push(Constant { value: name.to_owned(), params });
        }
    }
    out
}

/// Where both operands and the result of an Add or Mul are codes of one 8-bit type and one of them has a scale per channel,
/// the result takes the other container (the same values, codes shifted by 128): onnxruntime would fuse the three into
/// an operator that has no scale per channel, and fail.
fn separate_containers(g: &Graph, plan: &mut QuantPlan) {
    for id in g.schedule() {
        let n = g.node(id);
        if n.op.is("Conv") {
            // Its integer form has no scale per channel at the output either, and one type for input and output.
            for a in &mut plan.activations {
                if a.params.axis().is_some()
                    && a.params.code() == Code::U8
                    && g.find(&a.value).is_some_and(|v| n.out() == Some(trace_back(g, v)))
                {
                    a.params = a.params.clone().recoded();
                }
            }
            continue;
        }
        if !(n.op.is("Add") || n.op.is("Mul")) {
            continue;
        }
        let find = |plan: &QuantPlan, v: Option<ValueId>| {
            let name = g.name_of(trace_back(g, v?));
            plan.activations.iter().position(|a| a.value == name && a.readers != Readers::Contracting)
        };
        let operands: Vec<Option<usize>> = (0..2).map(|i| find(plan, n.input(i))).collect();
        let (Some(a), Some(b)) = (operands[0], operands[1]) else { continue };
        let Some(out) = n.out() else { continue };
        // The result's codes may be made after moves.
        let made: Vec<usize> = plan
            .activations
            .iter()
            .enumerate()
            .filter(|(_, x)| g.find(&x.value).is_some_and(|v| moved_from(g, v) == out || v == out))
            .map(|(i, _)| i)
            .collect();
        let code = |i: usize| plan.activations[i].params.code();
        let wide = |i: usize| plan.activations[i].params.axis().is_some();
        let clash = code(a) == code(b) && made.iter().any(|o| code(*o) == code(a));
        if !clash || !(wide(a) || wide(b) || made.iter().any(|o| wide(*o))) {
            continue;
        }
        // A result of one scale would be brought back: onnxruntime turns int8 pairs without channels into uint8 ones. Then
        // an operand changes, one that does not come out of another sum if there is such a one.
        let from_sum = |i: usize| {
            let p = g.find(&plan.activations[i].value).and_then(|v| g.producer(v)).map(|p| g.node(p));
            p.is_some_and(|n| n.op.is("Add") || n.op.is("Mul"))
        };
        let operands = [b, a].into_iter().filter(|i| wide(*i));
        let change = match made.iter().all(|o| wide(*o)) {
            true => made,
            false => operands.min_by_key(|i| from_sum(*i)).map_or(made, |i| vec![i]),
        };
        for o in change {
            let p = plan.activations[o].params.clone();
            plan.activations[o].params = p.recoded();
        }
    }
}

/// Widths of ranges as shares of their median.
fn shares(ranges: &[(f32, f32)]) -> Vec<f64> {
    let wide: Vec<f64> = ranges.iter().map(|(a, b)| f64::from(b - a)).collect();
    let mut sorted = wide.clone();
    sorted.sort_by(f64::total_cmp);
    let median = sorted.get(sorted.len() / 2).copied().unwrap_or(1.0).max(SCALE_FLOOR.into());
    wide.iter().map(|w| w / median).collect()
}

/// Parameters for a value whose channels reach these ends, each in the units of codes; `pooled` is their distribution, for
/// the kinds of range that are searched on one.
fn params(
    code: Code,
    range: Range,
    ends: impl Iterator<Item = (f32, f32)>,
    pooled: impl FnOnce() -> Moments,
) -> QParams {
    let seen = ends.fold((0f32, 0f32), |(a, b), (l, h)| (a.min(l), b.max(h)));
    let pooled = match range {
        Range::MinMax | Range::Headroom(_) => Moments::default(),
        Range::Percentile(_) | Range::Mse => pooled(),
    };
    range::affine_of(code, &pooled, seen, range)
}

/// dB of signal over error, for reasons.
fn db(signal: f64, error: f64) -> String {
    if error <= 0.0 { "exact".into() } else { format!("{:.1} dB", 10.0 * (signal / error).log10()) }
}
