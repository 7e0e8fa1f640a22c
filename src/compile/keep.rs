//! Which parts of a model stay in float, as somebody asks for it.

use super::Prepared;
use super::error::CompilerError;
use super::sensitivity::{Bench, Choice, Sensitivity};
use super::stages::{Log, Running};
use crate::calibrate::data::Dataset;
use crate::plan::QuantPlan;
use crate::plan::parts::{By, Part, divide, named, possible};

/// What is asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Keep {
    /// So many of the worst parts.
    Worst(usize, By),
    /// Parts by their names.
    Names(Vec<String>, By),
    /// As few of the worst as reach this SQNR in dB.
    Reach(f64, By),
}

impl Keep {
    /// Looks for names that no part of this model can have, before anything is measured.
    ///
    /// # Errors
    /// The first such name.
    pub fn check(&self, p: &Prepared) -> Result<(), CompilerError> {
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

/// Chooses the parts. `known` saves a second measurement.
///
/// # Errors
/// If a name is no part's, or as [`Bench::rank`].
pub fn chosen(
    bench: &Bench<'_>,
    p: &Prepared,
    plan: &QuantPlan,
    known: Option<Vec<Sensitivity>>,
    keep: &Keep,
    how: Running<'_>,
    log: &mut Log,
) -> Result<Choice, CompilerError> {
    let (g, sites) = (&p.model.graph, &p.sites);
    let (Keep::Worst(_, by) | Keep::Names(_, by) | Keep::Reach(_, by)) = keep;
    let parts = || divide(g, sites, plan, *by);
    let ranked = || known.map_or_else(|| ranked(bench, &parts(), false, how), Ok);
    match keep {
        Keep::Names(names, _) => {
            let parts = named(g, sites, plan, names).map_err(|name| {
                let known: Vec<String> = parts().into_iter().map(|p| p.name).collect();
                CompilerError::NoPart { name, known: known.join(", ") }
            })?;
            Ok(bench.keep(parts.iter().map(|p| (p, "kept in float: asked for".to_owned())).collect())?)
        }
        Keep::Worst(n, _) => Ok(bench.keep_worst(&ranked()?, *n)?),
        Keep::Reach(target, _) => {
            let c = bench.reach(&ranked()?, *target)?;
            if c.plan.quantizes_nothing() {
                log.notes.push(format!("{target} dB are out of reach: every part would have to stay in float"));
            }
            Ok(c)
        }
    }
}

/// Measures on samples held back, and returns the plan that shall be carried out.
///
/// # Errors
/// As [`chosen`], and if only the float model reaches what is asked for.
pub fn kept(
    p: &Prepared,
    plan: &QuantPlan,
    (data, held): (&Dataset, &[usize]),
    keep: &Keep,
    how: Running<'_>,
    log: &mut Log,
) -> Result<QuantPlan, CompilerError> {
    let bench = Bench::new(p, plan, data, held, how.threads)?.until(how.stop);
    let c = chosen(&bench, p, plan, None, keep, how, log)?;
    if let (Keep::Reach(target, _), true) = (keep, c.plan.quantizes_nothing()) {
        return Err(CompilerError::OutOfReach { target: *target });
    }
    let names: Vec<&str> = c.parts.iter().map(|p| p.name.as_str()).collect();
    log.notes.push(match names.len() {
        0 => format!("nothing had to stay in float: {:.2} dB on {} samples held back", c.sqnr_db, held.len()),
        _ => format!("kept in float: {}; {:.2} dB on {} samples held back", names.join(", "), c.sqnr_db, held.len()),
    });
    Ok(c.plan)
}
