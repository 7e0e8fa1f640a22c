//! How much of a value's unequal channels goes into the weights after it.
//!
//! A channel divided down to the range of the others has its own step, and its own end: what a sample never seen has
//! beyond it is clipped. So every way to fold is judged on samples its ranges do not come from: ranges from one
//! half of the calibration samples, the error on the other, both ways round. (Channels of a classifier's last layers fire
//! for a few classes only; a hundred photographs do not show how far.) The factors are then made from all samples.

use super::{Matrix, params, shares};
use crate::ir::Graph;
use crate::plan::Fold;
use crate::plan::recipe::{Candidate, FoldRecipe, QuantRecipe};
use crate::plan::sites::{Linear, Site, pads, reading_nodes};
use crate::quant::hist::Moments;
use crate::quant::levels::Grid;
use crate::quant::observe::{Channel, Stats};
use crate::quant::range::Range;
use crate::quant::{Code, QParams};

/// One way to choose factors.
#[derive(Clone, Copy, Debug)]
enum Way {
    None,
    /// `(range / median)^strength`.
    Strength(f64),
    /// What a range is beyond so many times the median.
    Beyond(f64),
}

impl Way {
    fn name(self) -> String {
        match self {
            Way::None => "no folding".into(),
            Way::Strength(a) => format!("folding at strength {a}"),
            Way::Beyond(b) => format!("folding beyond {b}x the median range"),
        }
    }

    /// Factors for channels of these ranges.
    fn factors(self, ranges: &[(f32, f32)], rule: &FoldRecipe) -> Vec<f32> {
        let snap = |f: f64| if rule.power_of_two { f64::powi(2.0, f.log2().round() as i32) } else { f };
        let one = |share: f64| match self {
            Way::None => 1.0,
            Way::Strength(a) => snap(share.max(rule.floor).powf(a)),
            Way::Beyond(b) => snap((share / b).max(1.0)),
        };
        shares(ranges).into_iter().map(|w| one(w) as f32).collect()
    }
}

/// Factors and offsets per channel: `x` becomes `(x - offset) / factor`.
struct Chosen {
    factors: Vec<f32>,
    offsets: Vec<f32>,
}

impl Chosen {
    /// What `way` makes of channels that reach these ends; `lowest`: with their lowest values as offsets.
    fn of(way: Way, lowest: bool, reached: &[(f32, f32)], rule: &FoldRecipe) -> Chosen {
        let offsets = reached.iter().map(|r| if lowest { r.0 } else { 0.0 }).collect();
        Chosen { factors: way.factors(reached, rule), offsets }
    }

    /// Parameters for the folded value, whose channels reached these ends.
    fn params(&self, st: &Stats, reached: &[(f32, f32)], code: Code, range: Range) -> QParams {
        let by = self.factors.iter().zip(&self.offsets);
        let ends = reached.iter().zip(by).map(|((l, h), (f, o))| ((l - o) / f, (h - o) / f));
        params(code, range, ends, || st.pooled(|c| 1.0 / f64::from(self.factors[c])))
    }
}

/// What each channel reaches: with 0, which codes without offsets must hold, or what was seen alone.
fn reached(st: &Stats, lowest: bool) -> Vec<(f32, f32)> {
    let seen = |c: &Channel| if c.min <= c.max { (c.min, c.max) } else { (0.0, 0.0) };
    match lowest {
        true => st.channels.iter().map(seen).collect(),
        false => (0..st.channels.len()).map(|c| st.channel_range(c)).collect(),
    }
}

/// True if offsets can go into the biases of all these layers.
fn take_offsets(g: &Graph, linears: &[&Linear]) -> bool {
    linears.iter().all(|l| l.bias.is_some() && !(l.is_conv && pads(g.node(l.node))))
}

/// The grid that a channel's values lie on, channel by channel, where all of them lie on one; the values then are their own
/// codes.
fn grids(st: &Stats) -> Option<Vec<Grid>> {
    st.channels.iter().map(|c| Some(c.levels.grid()?.filled())).collect()
}

/// A fold whose codes are the places of the values on their grids.
fn on_grids(g: &Graph, s: &Site, grids: &[Grid], code: Code) -> Option<(Option<Fold>, QParams, String)> {
    let (lo, _) = code.range();
    let reason = "its values lie on a grid of 256: exact".to_owned();
    let fold = Fold {
        value: g.name_of(s.value).to_owned(),
        role: s.role,
        factors: grids.iter().map(|g| g.step as f32).collect(),
        offsets: grids.iter().map(|g| g.lowest as f32).collect(),
        reason: reason.clone(),
    };
    Some((Some(fold), QParams::affine(code, 1.0, lo).ok()?, reason))
}

/// The best folding of a value into the linear layers that read it; `None` where a reader forbids folding.
pub fn folded(
    g: &Graph,
    s: &Site,
    st: &Stats,
    rule: &FoldRecipe,
    candidates: &[Candidate],
    linears: &[&Linear],
    recipe: &QuantRecipe,
) -> Option<(Option<Fold>, QParams, String)> {
    let consumers = Consumers::of(g, s, linears, st.channels.len())?;
    let lowest = rule.offsets && take_offsets(g, linears);
    let byte = candidates.iter().find_map(|c| match c {
        Candidate::Affine { code, .. } if code.steps() == 255.0 => Some(*code),
        _ => None,
    });
    if lowest
        && rule.grid
        && let (Some(grids), Some(code)) = (grids(st), byte)
    {
        return on_grids(g, s, &grids, code);
    }
    let trials = Trials::of(st, consumers, rule, recipe);
    let ways = [Way::None].into_iter();
    let ways = ways.chain(rule.strengths.iter().filter(|a| **a != 0.0).map(|a| Way::Strength(*a)));
    let ways = ways.chain(rule.beyond.iter().map(|b| Way::Beyond(*b)));
    let ways = ways.flat_map(|w| [(w, false), (w, true)]).filter(|(_, o)| lowest || !o);
    let tries = ways.flat_map(|(way, lowest)| trials.errors(way, lowest, candidates));
    let Try { error, way, lowest, code, range } = tries.reduce(|a, b| if b.error < a.error { b } else { a })?;
    let ends = reached(st, lowest);
    let by = Chosen::of(way, lowest, &ends, rule);
    let p = by.params(st, &ends, code, range);
    let unseen = if trials.split.len() > 1 { " on samples that ranges do not come from" } else { "" };
    let offsets = if lowest { ", offset by the lowest value" } else { "" };
    let error = super::db(trials.signal(), error);
    let reason = format!("{}{offsets}: {error} at the consumers' output{unseen}", way.name());
    let fold = (lowest || by.factors.iter().any(|f| *f != 1.0)).then(|| Fold {
        value: g.name_of(s.value).to_owned(),
        role: s.role,
        factors: by.factors,
        offsets: if lowest { by.offsets } else { Vec::new() },
        reason: reason.clone(),
    });
    Some((fold, p, reason))
}

/// The linear layers that read a value.
struct Consumers<'g> {
    matrices: Vec<Matrix<'g>>,
    /// What they make of an error in each channel, as a factor of its square.
    power: Vec<f64>,
}

impl<'g> Consumers<'g> {
    /// `None` unless every reader is a linear layer that reads the value itself and contracts the axis of its channels.
    fn of(g: &'g Graph, s: &Site, linears: &[&Linear], channels: usize) -> Option<Consumers<'g>> {
        let axis = if linears.iter().all(|l| l.is_conv) { 1 } else { -1 };
        let direct = linears.iter().all(|l| l.x == s.value && l.is_conv == (axis == 1));
        let all = reading_nodes(g, s.value).len() == linears.len();
        if linears.is_empty() || !direct || !all || g.is_output(s.value) || s.axis != axis {
            return None;
        }
        let matrices: Vec<Matrix> = linears.iter().map(|l| Matrix::of(g, l)).collect::<Option<_>>()?;
        if matrices.iter().any(|m| m.ins != channels) {
            return None;
        }
        let power = matrices.iter().map(Matrix::in_power).fold(vec![0.0; channels], |mut a, p| {
            a.iter_mut().zip(p).for_each(|(a, p)| *a += p);
            a
        });
        Some(Consumers { matrices, power })
    }
}

/// One way to fold with one kind of codes, and the error to expect at the consumers' output.
struct Try {
    error: f64,
    way: Way,
    lowest: bool,
    code: Code,
    range: Range,
}

/// What ways to fold are tried on.
struct Trials<'a> {
    st: &'a Stats,
    consumers: Consumers<'a>,
    rule: &'a FoldRecipe,
    recipe: &'a QuantRecipe,
    /// Samples that ranges come from, and the distributions that errors are counted on.
    split: Vec<(Stats, Vec<Moments>)>,
}

impl<'a> Trials<'a> {
    fn of(st: &'a Stats, consumers: Consumers<'a>, rule: &'a FoldRecipe, recipe: &'a QuantRecipe) -> Trials<'a> {
        let distributions = |st: &Stats| st.channels.iter().map(Channel::moments).collect::<Vec<_>>();
        let split = st.trials().into_iter().map(|(fit, judge)| (fit, distributions(&judge))).collect();
        Trials { st, consumers, rule, recipe, split }
    }

    fn signal(&self) -> f64 {
        self.split.iter().flat_map(|(_, m)| m.iter().zip(&self.consumers.power)).map(|(m, p)| m.power() * p).sum()
    }

    /// One way with each of the candidates that it can go with.
    fn errors(&self, way: Way, lowest: bool, candidates: &[Candidate]) -> Vec<Try> {
        let mut tries: Vec<Try> = Vec::new();
        for cand in candidates {
            // Distributions are kept about zero; of a shifted value only the ends are known.
            if let Candidate::Affine { code, range } = *cand
                && (!lowest || matches!(range, Range::MinMax | Range::Headroom(_)))
            {
                tries.push(Try { error: 0.0, way, lowest, code, range });
            }
        }
        let power = &self.consumers.power;
        for (fit, judged) in &self.split {
            let ends = reached(fit, lowest);
            let by = Chosen::of(way, lowest, &ends, self.rule);
            let weights = self.of_weights(&by, judged);
            for t in &mut tries {
                let p = by.params(self.st, &ends, t.code, t.range);
                let ((lo, hi), step) = (p.reach(0), f64::from(p.scale(0)));
                let one = |c: usize| {
                    let (k, o) = (f64::from(by.factors[c]), f64::from(by.offsets[c]));
                    power[c] * judged[c].error(f64::from(lo) * k + o, f64::from(hi) * k + o, step * k)
                };
                t.error += weights + (0..power.len()).map(one).sum::<f64>();
            }
        }
        tries
    }

    /// The error that rounding the folded weights makes. It meets what their input varies by, or all of their input where no
    /// bias makes up for the mean.
    fn of_weights(&self, by: &Chosen, judged: &[Moments]) -> f64 {
        let f = &by.factors;
        let spread = |c: usize| {
            let m = &judged[c];
            if self.recipe.bias_correction { m.variance() } else { m.power_about(by.offsets[c].into()) }
        };
        let input: f64 = f.iter().enumerate().map(|(c, f)| spread(c) / f64::from(*f).powi(2)).sum();
        let rounding = |m: &Matrix| m.rounding(self.recipe.weights.code, |i| f64::from(f[i]));
        self.consumers.matrices.iter().map(rounding).sum::<f64>() * input
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Role;
    use crate::plan::planner::watches;
    use crate::plan::sites;
    use crate::quant::range::Range;
    use crate::recipe::Recipe;
    use crate::text::parse_model;

    /// What is decided for the value after a GELU with 8 channels: the last but one reaches to 20, the last to
    /// `wide(sample)`, the others to 1.
    fn decision(wide: impl Fn(usize) -> f32) -> String {
        let weights: Vec<String> = (0..8 * 4).map(|i| format!("{}", (i * 5 % 11) as f32 / 11.0 - 0.4)).collect();
        let mut m = parse_model(&format!(
            "<ir_version: 8, opset_import: [\"\" : 20]>
             g (float[1,40,8] x) => (y) <float[8,4] w = {{{}}}> {{ h = Gelu (x) m = MatMul (h, w) y = Relu (m) }}",
            weights.join(", ")
        ))
        .unwrap();
        crate::infer::annotate(&mut m);
        let sites = sites::find(&m, vec![]);
        let recipe = Recipe::find("fq-vit", None).unwrap().quantize.unwrap();
        let site = sites.sites.values().find(|s| m.graph.name_of(s.value) == "h").unwrap();
        let watch = watches(&m, &sites, &recipe).swap_remove("h").unwrap();
        let mut st = Stats::new(watch);
        for sample in 0..8 {
            let one = |i: usize| {
                let x = ((i * 131 + sample * 57) % 97) as f32 / 97.0;
                x * match i % 8 {
                    7 => wide(sample),
                    6 => 20.0,
                    _ => 1.0,
                }
            };
            let x: Vec<f32> = (0..320).map(one).collect();
            st.observe(&x, &[1, 40, 8], sample as u64).unwrap();
        }
        let linears: Vec<&Linear> = sites.linears.iter().collect();
        let how = &recipe.folds[&site.role];
        let affine = [Candidate::Affine { code: Code::U8, range: Range::MinMax }];
        folded(&m.graph, site, &st, how, &affine, &linears, &recipe).unwrap().2
    }

    #[test]
    fn a_channel_that_is_always_wide_is_folded() {
        let reason = decision(|_| 20.0);
        assert!(reason.contains("folding beyond"), "{reason}");
        assert!(reason.contains("do not come from"), "{reason}");
    }

    #[test]
    fn a_channel_that_few_samples_show_is_left_room() {
        // Folded to what the other half of the samples has, it would be clipped at a tenth of its values.
        let reason = decision(|sample| if sample % 4 == 2 { 20.0 } else { 2.0 });
        assert!(reason.contains("no folding"), "{reason}");
    }

    /// What is decided for the value of a role after samples that `sample(number)` makes.
    fn in_front_of(
        role: Role,
        text: &str,
        dims: &[usize],
        sample: impl Fn(usize) -> Vec<f32>,
    ) -> Option<(Fold, QParams)> {
        let mut m = parse_model(&format!("<ir_version: 8, opset_import: [\"\" : 20]> {text}")).unwrap();
        crate::infer::annotate(&mut m);
        let sites = sites::find(&m, vec![]);
        let recipe = Recipe::find("fq-vit", None).unwrap().quantize.unwrap();
        let (v, site) = sites.sites.iter().find(|(_, s)| s.role == role).unwrap();
        let watch = watches(&m, &sites, &recipe).swap_remove(m.graph.name_of(*v)).unwrap();
        let mut st = Stats::new(watch);
        for i in 0..8 {
            st.observe(&sample(i), dims, i as u64).unwrap();
        }
        let linears: Vec<&Linear> = sites.linears.iter().collect();
        let candidates = recipe.candidates(site.role);
        let (fold, params, _) =
            folded(&m.graph, site, &st, &recipe.folds[&site.role], candidates, &linears, &recipe).unwrap();
        fold.map(|f| (f, params))
    }

    fn image() -> String {
        let w = ["0.5"; 192].join(", ");
        format!(
            "g (float[1,3,8,8] x) => (y) <float[4,3,4,4] w = {{{w}}}, float[4] b = {{0, 0, 0, 0}}>
             {{ y = Conv <strides = [4, 4]> (x, w, b) }}"
        )
    }

    #[test]
    fn an_image_of_bytes_is_its_own_codes() {
        let (mean, std) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
        let pixel = |i: usize, s: usize| ((i * 7919 + s * 104_729) % 251) as f32;
        let at = |c: usize, p: f32| ((p / 255.0) - mean[c]) / std[c];
        let sample = |s: usize| (0..192).map(|i| at(i / 64, pixel(i, s))).collect::<Vec<f32>>();
        let (fold, params) = in_front_of(Role::Input, &image(), &[1, 3, 8, 8], sample).unwrap();
        assert_eq!((params.scale(0), params.zero(0)), (1.0, 0));
        for c in 0..3 {
            let code = |p: f32| (at(c, p) - fold.offset(c)) / fold.factors[c];
            // Of the five codes that 251 levels leave over, some are below.
            let below = code(0.0).round();
            assert!((1.0..=4.0).contains(&below), "{below}");
            for p in [0.0, 1.0, 100.0, 250.0] {
                assert!((code(p) - (p + below)).abs() < 1e-3, "{c} {p}: {}", code(p));
            }
        }
    }

    #[test]
    fn offsets_need_a_bias_and_no_padding() {
        let sample = |s: usize| (0..192).map(|i| ((i * 31 + s * 17) % 256) as f32).collect::<Vec<f32>>();
        let of = |text: &str| {
            in_front_of(Role::Input, text, &[1, 3, 8, 8], sample).is_some_and(|(f, _)| !f.offsets.is_empty())
        };
        assert!(of(&image()));
        assert!(!of(&image().replace("strides = [4, 4]", "pads = [1, 1, 1, 1]")));
        assert!(!of(&image().replace("w, b)", "w)")));
    }

    #[test]
    fn channels_of_a_norm_that_lie_apart_are_brought_together() {
        let text = "g (float[1,40,8] x) => (y) <float[8] k, float[8] l, float[8,4] w, float[4] b = {0, 0, 0, 0}>
            { n = LayerNormalization (x, k, l) m = MatMul (n, w) y = Add (m, b) }";
        let text = text.replace("float[8,4] w", &format!("float[8,4] w = {{{}}}", ["0.5"; 32].join(", ")));
        let sample = |s: usize| -> Vec<f32> {
            (0..320).map(|i| (i % 8) as f32 * 10.0 + ((i * 131 + s * 57) % 97) as f32 / 97.0).collect()
        };
        let (fold, params) = in_front_of(Role::NormOutput, &text, &[1, 40, 8], sample).unwrap();
        (0..8).for_each(|c| assert!((fold.offset(c) - c as f32 * 10.0).abs() < 0.05, "{:?}", fold.offsets));
        assert!(params.scale(0) < 1.2 / 255.0, "{params:?}");
    }
}
