//! How unequal channels of values, queries and keys are shared out between the two layers that make or read them.
//!
//! Codes of these values have one scale per tensor, which its widest channel sets. A factor `f[c]` between two layers costs
//! no operator (`passes::quantize::equalise`), so every way to choose factors is judged by the squared error to expect
//! where the values are consumed, and the least one taken, none at all among them:
//!
//! * values and projection, for each token at the projection's output, `W` its weights, `s` the steps of codes, `e(s)`
//!   the mean squared error of rounding and clipping at that step,
//!
//!   `sum_c |W[c]|^2 (d e(f[c] s_v) + e(f[c] s_a)) + sum_o r[o]^2 / 12 sum_c var(a[c]) / f[c]^2`
//!
//!   with `d` the mean of the sum of squared attention weights, by which rounding errors of single tokens average out,
//!   `a` the attention's output and `r[o]` the step of the projection's weights for output `o`, which hold `f[c] W[c]`;
//! * queries and keys, for each score: `sum_c e(f[c] s_q) var(k[c]) + e(s_k / f[c]) E[q[c]^2]`. What an error of the query
//!   adds to all keys alike, Softmax does not see: hence the variance.
//!
//! Weights that are divided by output channel have a step for each and lose nothing. As with folds, ranges
//! come from one half of the samples and errors are counted on the other, both ways round, where tokens were counted.
//!
//! Source: cross-layer equalization (Nagel et al., arXiv 1906.04721); the measure is the project's own.

use std::borrow::Cow;

use indexmap::IndexMap;
use rayon::prelude::*;

use super::scores::softmax;
use super::{Matrix, PlanningError, db, params, shares};
use crate::ir::{Graph, ValueId};
use crate::plan::channel_map::{Pair, pairs};
use crate::plan::recipe::{Candidate, QuantRecipe, Strengths};
use crate::plan::scores::score_site;
use crate::plan::sites::{Sites, trace_back};
use crate::plan::{Between, Equalisation, Role};
use crate::quant::Code;
use crate::quant::hist::{Hist, Moments};
use crate::quant::observe::{Channel, Stats};
use crate::quant::range::Range;

/// One way to choose factors: by the ranges of which side's channels, and how far.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    None,
    /// Of what the first layer makes.
    First(f64),
    /// Of what meets it: the attention's output, or keys.
    Second(f64),
    /// Of both by halves.
    Both(f64),
}

impl Way {
    fn name(self, between: Between) -> String {
        let (first, second) = match between {
            Between::ValuesProjection => ("values", "attention outputs"),
            Between::QueriesKeys => ("queries", "keys"),
        };
        match self {
            Way::None => "no equalisation".into(),
            Way::First(a) => format!("strength {a} by the ranges of {first}"),
            Way::Second(a) => format!("strength {a} by the ranges of {second}"),
            Way::Both(a) => format!("strength {a} by the ranges of {first} and {second}"),
        }
    }

    /// Factors from the ranges of both sides, those of the second by the channel of the first that they meet.
    fn factors(self, sides: [&[(f32, f32)]; 2], between: Between, rule: &Strengths) -> Vec<f32> {
        let [first, second] = sides.map(|r| shares(r).into_iter().map(|w| w.max(rule.floor)).collect::<Vec<f64>>());
        // What is multiplied narrows where its factor is small.
        let turned = if between == Between::QueriesKeys { -1.0 } else { 1.0 };
        let one = |(a, b): (&f64, &f64)| match self {
            Way::None => 1.0,
            Way::First(s) => a.powf(s),
            Way::Second(s) => b.powf(turned * s),
            Way::Both(s) => (a * b.powf(turned)).powf(s / 2.0),
        };
        first.iter().zip(&second).map(|p| one(p) as f32).collect()
    }
}

/// One of the two values of a pair: what ranges come from, what errors are counted on, and how codes may be made.
struct Side {
    /// For each trial.
    ranges: Vec<Vec<(f32, f32)>>,
    judged: Vec<Vec<Moments>>,
    /// All samples.
    stats: Stats,
    /// Channel by channel, what was counted and how often.
    counted: Vec<(Vec<f32>, Vec<u32>)>,
    /// None: it stays in float.
    codes: Vec<(Code, Range)>,
}

impl Side {
    /// Channel `c` of the side is channel `order[c]` of the statistics.
    fn of(st: &Stats, order: &[usize], role: Role, recipe: &QuantRecipe) -> Side {
        let ordered =
            |s: &Stats| Stats { channels: order.iter().map(|c| s.channels[*c].clone()).collect(), ..s.clone() };
        let st = ordered(st);
        let trials = st.trials();
        let ranges = |s: &Stats| (0..order.len()).map(|c| s.channel_range(c)).collect();
        let judged = |s: &Stats| s.channels.iter().map(|c| c.moments()).collect();
        let affine = |c: &Candidate| match *c {
            Candidate::Affine { code, range } => Some((code, range)),
            _ => None,
        };
        let attention = matches!(role, Role::Value | Role::Query | Role::Key);
        let float = recipe.keep_float.contains(&role)
            || (recipe.linear_only && attention && (recipe.costs.is_none() || role == Role::Value));
        let mut codes: Vec<_> = recipe.candidates(role).iter().filter_map(affine).collect();
        if codes.is_empty() {
            codes.push((Code::U8, Range::Mse));
        }
        codes.retain(|_| !float);
        let counted = |c: &Channel| c.hist.bins().map(|(x, n)| ((x as f32).clamp(c.min, c.max), n)).unzip();
        let seen = |c: &&Channel| c.min <= c.max;
        Side {
            counted: st.channels.iter().map(|c| Some(c).filter(seen).map(counted).unwrap_or_default()).collect(),
            ranges: trials.iter().map(|(fit, _)| ranges(fit)).collect(),
            judged: trials.iter().map(|(_, judge)| judged(judge)).collect(),
            stats: st,
            codes,
        }
    }

    /// Ranges from all samples.
    fn all(&self) -> Vec<(f32, f32)> {
        (0..self.stats.channels.len()).map(|c| self.stats.channel_range(c)).collect()
    }

    /// What a range of least error is searched on: all channels divided by their factors, in bins, because there are many
    /// ways to try and `Stats::pooled` sorts.
    fn pooled(&self, factors: &[f32]) -> Moments {
        let all = || self.stats.channels.iter().zip(factors).filter(|(c, _)| c.min <= c.max);
        let (lo, hi) = all().fold((0f32, 0f32), |(a, b), (c, f)| (a.min(c.min / f), b.max(c.max / f)));
        let mut h = Hist::default();
        h.prepare(lo, hi);
        let mut divided = Vec::new();
        for ((values, counts), f) in self.counted.iter().zip(factors) {
            divided.clear();
            divided.extend(values.iter().map(|x| x / f));
            h.count_weighted(&divided, counts);
        }
        Moments::new(&h)
    }

    /// The least mean error over all trials of any code, in units of the undivided value, channel `c` of trial `t`
    /// counted `weight(t, c)` times.
    fn error(&self, factors: &[Vec<f32>], weight: impl Fn(usize, usize) -> f64) -> f64 {
        let each = |&(code, range): &(Code, Range)| -> f64 {
            let trial = |(t, f): (usize, &Vec<f32>)| -> f64 {
                let ends = self.ranges[t].iter().zip(f).map(|((l, h), f)| (l / f, h / f));
                let p = params(code, range, ends, || self.pooled(f));
                let ((lo, hi), step) = (p.reach(0), f64::from(p.scale(0)));
                let one = |(c, m): (usize, &Moments)| {
                    let k = f64::from(f[c]);
                    let e = m.error(f64::from(lo) * k, f64::from(hi) * k, step * k);
                    weight(t, c) * e / m.total().max(f64::MIN_POSITIVE)
                };
                self.judged[t].iter().enumerate().map(one).sum()
            };
            factors.iter().enumerate().map(trial).sum()
        };
        self.codes.iter().map(each).min_by(f64::total_cmp).unwrap_or(0.0)
    }
}

fn mean_square(m: &Moments) -> f64 {
    m.power() / m.total().max(f64::MIN_POSITIVE)
}

fn variance(m: &Moments) -> f64 {
    m.variance() / m.total().max(f64::MIN_POSITIVE)
}

/// What calibration must watch for these decisions beside the sites: by the last layer's input, which holds the
/// attention's output with its channels as the layer reads them.
pub fn watched<'g>(g: &'g Graph, sites: &Sites, recipe: &QuantRecipe) -> Vec<(ValueId, &'g str)> {
    if recipe.equalise.value.is_none() {
        return Vec::new();
    }
    let of_values = |p: &Pair| p.between == Between::ValuesProjection;
    let input = |p: &Pair| sites.linears[p.second].x;
    pairs(g, sites).iter().filter(|p| of_values(p)).map(input).map(|v| (v, g.name_of(v))).collect()
}

/// True if the recipe equalises values of this role, so that their tokens are to be counted.
pub fn wants(recipe: &QuantRecipe, role: Role) -> bool {
    match role {
        Role::Value => recipe.equalise.value.is_some(),
        Role::Query | Role::Key => recipe.equalise.query.is_some(),
        _ => false,
    }
}

/// Decides on every pair of layers the recipe speaks of.
///
/// # Errors
/// If the statistics lack a value.
pub fn decide(
    g: &Graph,
    sites: &Sites,
    stats: &IndexMap<String, Stats>,
    recipe: &QuantRecipe,
) -> Result<Vec<Equalisation>, PlanningError> {
    if recipe.equalise.is_off() {
        return Ok(Vec::new());
    }
    let shared = |p: &Pair| [p.first, p.second].iter().any(|l| sites.is_shared(&sites.linears[*l]));
    let one = |p: &Pair| match recipe.equalise.between(p.between) {
        Some(rule) if !shared(p) => one(g, sites, stats, recipe, p, rule),
        _ => Ok(None),
    };
    let found: Vec<_> = pairs(g, sites).par_iter().map(one).collect();
    Ok(found.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
}

/// The values of a pair whose codes its factors change, as layers write or read them.
fn values(g: &Graph, sites: &Sites, p: &Pair) -> [String; 2] {
    let (first, second) = (&sites.linears[p.first], &sites.linears[p.second]);
    let met = match p.between {
        Between::ValuesProjection => second.x,
        Between::QueriesKeys => second.out,
    };
    [first.out, met].map(|v| g.name_of(v).to_owned())
}

fn one(
    g: &Graph,
    sites: &Sites,
    stats: &IndexMap<String, Stats>,
    recipe: &QuantRecipe,
    pair: &Pair,
    rule: &Strengths,
) -> Result<Option<Equalisation>, PlanningError> {
    let names = values(g, sites, pair);
    let Some([first, second]) = sides(stats, recipe, pair, &names)? else { return Ok(None) };
    let Some(meeting) = Meeting::of(g, sites, stats, recipe, pair, &first, &second) else { return Ok(None) };
    let mut ways = vec![Way::None];
    for s in rule.strengths.iter().filter(|s| **s != 0.0) {
        ways.extend([Way::First(*s), Way::Second(*s), Way::Both(*s)]);
    }
    let error = |way: Way| {
        let factors = |t: usize| way.factors([&first.ranges[t], &second.ranges[t]], pair.between, rule);
        meeting.error(&(0..meeting.trials()).map(factors).collect::<Vec<Vec<f32>>>())
    };
    let errors: Vec<(f64, Way)> = ways.into_iter().map(|way| (error(way), way)).collect();
    let none = errors[0].0;
    let (least, way) = errors.into_iter().reduce(|a, b| if b.0 < a.0 { b } else { a }).expect("no equalisation is one");
    let mut factors = way.factors([&first.all(), &second.all()], pair.between, rule);
    if factors.iter().all(|f| *f == 1.0) {
        factors.clear();
    }
    let place = match pair.between {
        Between::ValuesProjection => "the projection's output",
        Between::QueriesKeys => "the scores",
    };
    let signal = meeting.signal();
    let unseen = if meeting.trials() > 1 { " on samples that ranges do not come from" } else { "" };
    let without = if factors.is_empty() { String::new() } else { format!(", {} without", db(signal, none)) };
    Ok(Some(Equalisation {
        between: pair.between,
        divided: names[0].clone(),
        multiplied: g.name_of(sites.linears[pair.second].out).to_owned(),
        factors,
        reason: format!("{}: {} at {place}{unseen}{without}", way.name(pair.between), db(signal, least)),
    }))
}

/// What was seen of the two values of a pair; `None` where their channels are not those of the layers, or calibration never
/// reached them.
fn sides(
    stats: &IndexMap<String, Stats>,
    recipe: &QuantRecipe,
    pair: &Pair,
    names: &[String; 2],
) -> Result<Option<[Side; 2]>, PlanningError> {
    let roles = match pair.between {
        Between::ValuesProjection => [Role::Value, Role::AttentionOutput],
        Between::QueriesKeys => [Role::Query, Role::Key],
    };
    let n = pair.to.len();
    let straight: Vec<usize> = (0..n).collect();
    let mut found = Vec::new();
    for ((name, role), order) in names.iter().zip(roles).zip([&straight, &pair.to]) {
        let st = stats.get(name).ok_or_else(|| PlanningError::Missing { value: name.clone(), role: role.name() })?;
        if st.channels.len() != n {
            return Ok(None);
        }
        found.push(Side::of(st, order, role, recipe));
    }
    Ok(found.try_into().ok().filter(|[a, b]: &[Side; 2]| a.judged.len() == b.judged.len()))
}

/// Two sides, and where an error of either is counted.
struct Meeting<'a> {
    first: &'a Side,
    second: &'a Side,
    recipe: &'a QuantRecipe,
    /// The layer that reads the values; `None` where queries meet keys.
    projection: Option<Projection<'a>>,
}

impl<'a> Meeting<'a> {
    /// `None` where the weights of the projection cannot be read.
    fn of(
        g: &'a Graph,
        sites: &Sites,
        stats: &IndexMap<String, Stats>,
        recipe: &'a QuantRecipe,
        pair: &'a Pair,
        first: &'a Side,
        second: &'a Side,
    ) -> Option<Meeting<'a>> {
        let projection = match pair.between {
            Between::ValuesProjection => Some(Projection::of(g, sites, stats, pair)?),
            Between::QueriesKeys => None,
        };
        Some(Meeting { first, second, recipe, projection })
    }

    fn trials(&self) -> usize {
        self.first.judged.len()
    }

    fn signal(&self) -> f64 {
        let (first, second) = (&self.first.judged, &self.second.judged);
        match &self.projection {
            Some(p) => {
                let read = |m: &Vec<Moments>| m.iter().zip(&p.power).map(|(m, w)| mean_square(m) * w).sum::<f64>();
                second.iter().map(read).sum()
            }
            None => {
                let score = |t: usize, c: usize| mean_square(&first[t][c]) * variance(&second[t][c]);
                (0..first.len()).map(|t| (0..first[t].len()).map(|c| score(t, c)).sum::<f64>()).sum()
            }
        }
    }

    /// The error to expect with the factors of each trial.
    fn error(&self, factors: &[Vec<f32>]) -> f64 {
        let (first, second) = (self.first, self.second);
        match &self.projection {
            Some(p) => {
                let weights: f64 =
                    (0..self.trials()).map(|t| p.rounding(&factors[t], &second.judged[t], self.recipe)).sum();
                let values = first.error(factors, |_, c| p.power[c] * p.damp);
                values + second.error(factors, |_, c| p.power[c]) + weights
            }
            None => {
                let inverse: Vec<Vec<f32>> = factors.iter().map(|f| f.iter().map(|f| 1.0 / f).collect()).collect();
                first.error(factors, |t, c| variance(&second.judged[t][c]))
                    + second.error(&inverse, |t, c| mean_square(&first.judged[t][c]))
            }
        }
    }
}

/// What the projection makes of errors, by channel of the values.
struct Projection<'g> {
    matrix: Matrix<'g>,
    to: &'g [usize],
    power: Vec<f64>,
    damp: f64,
}

impl<'g> Projection<'g> {
    fn of(g: &'g Graph, sites: &Sites, stats: &IndexMap<String, Stats>, pair: &'g Pair) -> Option<Projection<'g>> {
        let matrix = Matrix::of(g, &sites.linears[pair.second])?;
        let power = matrix.in_power();
        let a = &sites.attentions[pair.attention];
        let damp = score_site(g, a).ok().and_then(|s| squared_weights(stats.get(g.name_of(s.value))?, s.factor));
        Some(Projection {
            power: pair.to.iter().map(|c| power[*c]).collect(),
            matrix,
            to: &pair.to,
            damp: damp.unwrap_or(1.0),
        })
    }

    /// The error of rounding weights that hold the factors. It meets what the input varies by, or all of the input
    /// where no bias makes up for its mean.
    fn rounding(&self, factors: &[f32], read: &[Moments], recipe: &QuantRecipe) -> f64 {
        let spread = |m: &Moments| if recipe.bias_correction { variance(m) } else { mean_square(m) };
        let input: f64 = read.iter().zip(factors).map(|(m, f)| spread(m) / f64::from(*f).powi(2)).sum();
        let mut met = vec![1.0; factors.len()];
        self.to.iter().zip(factors).for_each(|(t, f)| met[*t] = f64::from(*f));
        self.matrix.rounding(recipe.weights.code, |i| met[i]) * input
    }
}

/// Mean over rows of the sum of squared attention weights, from the rows that calibration kept: what is left of
/// independent errors in the values.
fn squared_weights(scores: &Stats, factor: f32) -> Option<f64> {
    let one = |row: &[f32]| softmax(row, factor).iter().map(|p| p * p).sum::<f64>();
    let n = scores.rows.len();
    let total: f64 = scores.rows.iter().map(|r| one(&r.values)).sum();
    (n > 0 && total.is_finite()).then(|| total / n as f64)
}

/// Statistics by the names of their values; those that nothing changes are as calibration left them, and not copied.
pub type Known<'s> = IndexMap<String, Cow<'s, Stats>>;

/// The statistics of the equalised model, from those of the model itself. The codes of an attention's output are made in
/// front of its moves, where channels of different heads share places: there, they are those of the layer's input.
pub fn divided<'s>(
    g: &Graph,
    sites: &Sites,
    stats: &'s IndexMap<String, Stats>,
    equalisations: &[Equalisation],
) -> Known<'s> {
    let mut out: Known<'s> = stats.iter().map(|(name, s)| (name.clone(), Cow::Borrowed(s))).collect();
    if equalisations.iter().all(|e| e.factors.is_empty()) {
        return out;
    }
    for p in pairs(g, sites) {
        let [first, second] = values(g, sites, &p);
        let found = |e: &&Equalisation| e.between == p.between && e.divided == first && !e.factors.is_empty();
        let Some(e) = equalisations.iter().find(found) else { continue };
        let mut met = vec![1.0; e.factors.len()];
        for (t, f) in p.to.iter().zip(&e.factors) {
            met[*t] = if p.between == Between::QueriesKeys { 1.0 / f } else { *f };
        }
        let (Some(a), Some(b)) = (stats.get(&first), stats.get(&second)) else { continue };
        let (a, b): (Cow<'s, Stats>, Cow<'s, Stats>) = (Cow::Owned(a.divided(&e.factors)), Cow::Owned(b.divided(&met)));
        if p.between == Between::ValuesProjection {
            out.insert(g.name_of(trace_back(g, sites.linears[p.second].x)).to_owned(), b.clone());
        }
        out.insert(first, a);
        out.insert(second, b);
    }
    out
}

#[cfg(test)]
#[path = "equalise_tests.rs"]
mod tests;
