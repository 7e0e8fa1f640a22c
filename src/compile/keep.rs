//! Which precision the parts of a model have, as somebody asks for it.

use super::error::CompilerError;
use super::mixed::{Goal, Mixed, Mixer, list};
use super::sensitivity::{Bench, Sensitivity};
use super::stages::{Log, Running};
use super::{Prepared, has_codes};
use crate::calibrate::data::Dataset;
use crate::plan::climb::Step;
use crate::plan::parts::{By, Part, divide, named, possible};
use crate::plan::precision::Precision;
use crate::plan::{Layer, QuantPlan};
use crate::quant::Code;
use crate::verify::metrics::shown_db;
use crate::verify::thresholds::Check;

/// What is asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Keep {
    /// So many of the worst parts.
    Worst(usize, By),
    /// Parts by their names.
    Names(Vec<String>, By),
    /// What a goal takes, and other precisions before that.
    Reach(Goal, By),
}

impl Keep {
    /// True if weights may become 4 bits.
    pub fn wants_four_bits(&self) -> bool {
        matches!(self, Keep::Reach(Goal { size: Some(_), .. }, _))
    }

    /// Looks for names that no part of this model can have, before anything is measured.
    ///
    /// # Errors
    /// The first such name; or that the model's operator set has no type for what the goal needs.
    pub fn check(&self, p: &Prepared, keep_opset: bool) -> Result<(), CompilerError> {
        if self.wants_four_bits() {
            let kept = if keep_opset { ", which it is to keep" } else { ", beyond which it cannot be raised" };
            has_codes(&p.model, [Code::I4], "--target-size", kept)?;
        }
        let Keep::Names(names, _) = self else { return Ok(()) };
        let known = possible(&p.model.graph, &p.sites);
        let Some(name) = names.iter().find(|n| !known.contains(*n)) else { return Ok(()) };
        let values = |n: &&String| p.model.graph.find(n).is_none() && !n.ends_with(" (weights)");
        let known = known.iter().filter(values).map(String::as_str).collect::<Vec<_>>().join(", ");
        Err(CompilerError::NoPart { name: name.clone(), known })
    }
}

/// Measures each part and ranks them, the worst first.
///
/// # Errors
/// As [`Bench::rank`].
pub fn ranked(
    bench: &Bench<'_>,
    parts: &[Part],
    all_but: bool,
    how: Running<'_>,
) -> Result<Vec<Sensitivity>, CompilerError> {
    Ok(bench.rank(parts, all_but, &how.steps("measuring", parts.len()))?)
}

/// Chooses the parts that stay in float, where these are asked for as such. `known` saves a second measurement.
///
/// # Errors
/// If a name is no part's, or as [`Bench::rank`].
fn in_float(
    bench: &Bench<'_>,
    (p, plan): (&Prepared, &QuantPlan),
    known: Option<Vec<Sensitivity>>,
    (names, worst, by): (&[String], usize, By),
    how: Running<'_>,
) -> Result<Mixed, CompilerError> {
    let (g, sites) = (&p.model.graph, &p.sites);
    let parts = || divide(g, sites, plan, by);
    let c = if names.is_empty() {
        let ranked = known.map_or_else(|| ranked(bench, &parts(), false, how), Ok)?;
        bench.keep_worst(&ranked, worst)?
    } else {
        let parts = named(g, sites, plan, names).map_err(|name| {
            let known: Vec<String> = parts().into_iter().map(|p| p.name).collect();
            CompilerError::NoPart { name, known: known.join(", ") }
        })?;
        bench.keep(parts.iter().map(|p| (p, "kept in float: asked for".to_owned())).collect())?
    };
    let changed = c.parts.into_iter().map(|p| Step { part: p.name, to: Precision::Float }).collect();
    Ok(Mixed { plan: c.plan, changed, sqnr_db: c.sqnr_db, bytes: None })
}

/// Chooses what is asked for. `known` saves a second measurement; `float` is the size of the float file, and `narrow` has the
/// plan's layers with weights in 4 bits.
///
/// # Errors
/// If a name is no part's, a size is out of reach, or as [`Bench::rank`].
pub fn chosen(
    bench: &Bench<'_>,
    (p, plan, narrow): (&Prepared, &QuantPlan, &[Layer]),
    known: Option<Vec<Sensitivity>>,
    (keep, float): (&Keep, u64),
    how: Running<'_>,
    log: &mut Log,
) -> Result<Mixed, CompilerError> {
    let (goal, by) = match keep {
        Keep::Worst(n, by) => return in_float(bench, (p, plan), known, (&[], *n, *by), how),
        Keep::Names(names, by) => return in_float(bench, (p, plan), known, (names, 0, *by), how),
        Keep::Reach(goal, by) => (goal, by),
    };
    // Where bytes count, layers of a part need not be alike: some lose more than others.
    let by = if goal.size.is_some() && *by == By::Part { By::Layer } else { *by };
    let parts = divide(&p.model.graph, &p.sites, plan, by);
    let mixer = Mixer { p, plan, narrow, parts };
    let m = mixer.search(bench, (*goal, float), &known.unwrap_or_default(), how)?;
    if let (Goal { sqnr_db: Some(db), size: None, .. }, true) = (goal, missed(goal, &m).is_some()) {
        log.notes.push(match goal.most() {
            Precision::Float => format!("{db} dB are out of reach: every part would have to stay in float"),
            most => format!("{db} dB are out of reach with parts at {} at most", most.name()),
        });
    }
    Ok(m)
}

fn out_of_reach(goal: &Goal, target: f64) -> CompilerError {
    let who = match goal.most() {
        Precision::Float => "only the float model reaches that, nothing quantized does",
        Precision::Wide => "no file reaches that with parts in 16 bits at most (--up-to)",
        _ => "no file reaches that with parts as the recipe has them (--up-to)",
    };
    CompilerError::OutOfReach { target, who }
}

/// The dB that a goal names and its file does not have, or has because nothing is quantized.
pub fn missed(goal: &Goal, m: &Mixed) -> Option<f64> {
    goal.sqnr_db.filter(|db| m.sqnr_db < *db || m.plan.quantizes_nothing())
}

/// Measures on samples held back, and returns the plan that shall be carried out, with the check that it misses, if it does.
///
/// # Errors
/// As [`chosen`], and if only the float model reaches what is asked for.
pub fn kept(
    (p, plan, narrow): (&Prepared, &QuantPlan, &[Layer]),
    (data, held): (&Dataset, &[usize]),
    (keep, float): (&Keep, u64),
    how: Running<'_>,
    log: &mut Log,
) -> Result<(QuantPlan, Option<Check>), CompilerError> {
    let bench = Bench::new(p, plan, data, held, how.threads)?.until(how.stop);
    let m = chosen(&bench, (p, plan, narrow), None, (keep, float), how, log)?;
    let mut check = None;
    if let Keep::Reach(goal, _) = keep
        && let Some(limit) = missed(goal, &m)
    {
        let Some(size) = goal.size else { return Err(out_of_reach(goal, limit)) };
        let because = format!("no file of {} bytes has more", size.of(float));
        let (name, value) = ("sqnr_db held back".to_owned(), Some(m.sqnr_db));
        check = Some(Check { name, value, limit, at_least: true, pass: false, because: Some(because) });
    }
    let reached = format!("{} on {} samples held back", shown_db(m.sqnr_db), held.len());
    let size = m.bytes.map_or(String::new(), |b| format!(", {b} bytes"));
    log.notes.push(match (m.changed.is_empty(), keep) {
        (true, Keep::Reach(..)) => format!("every part is as the recipe has it: {reached}{size}"),
        (true, _) => format!("nothing had to stay in float: {reached}"),
        (false, Keep::Reach(..)) => {
            format!("parts that are not as the recipe has them: {}; {reached}{size}", list(&m.changed))
        }
        (false, _) => {
            let names: Vec<&str> = m.changed.iter().map(|s| s.part.as_str()).collect();
            format!("kept in float: {}; {reached}", names.join(", "))
        }
    });
    let opset = keep.wants_four_bits().then(|| p.model.opset());
    Ok((QuantPlan { opset, ..m.plan }, check))
}
