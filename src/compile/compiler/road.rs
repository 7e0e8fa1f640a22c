//! What [`Compiler::run`] does: prepares, decides, rewrites, compares, reports.

use std::path::Path;

use super::super::closer::{illustrate, look_closer};
use super::super::each::blame;
use super::super::error::CompilerError;
use super::super::faithful::unfaithful;
use super::super::keep::kept;
use super::super::reach::cut_where_it_fails;
use super::super::reporting::{block_values, each_pass, moved_too_far, report, slow_weights, tell_plan};
use super::super::stages::{
    Log, Samplings, WHOLE, fitted, made_up, planned_twice, prepared, read_statistics, second_opinion, side_by_side,
    statistics, timed, timing,
};
use super::super::{Journal, Prepared, apply_in_front, equalised, whole};
use super::{Compiled, Compiler, Verification};
use crate::calibrate::data::Dataset;
use crate::calibrate::stats::StatsFile;
use crate::file::{Pending, Sources, WriteError};
use crate::infer;
use crate::ir::Model;
use crate::passes::registry;
use crate::pattern::RuleSet;
use crate::plan::{Layer, QuantPlan, Rounding};
use crate::recipe::Recipe;
use crate::verify::closer::CloserLook;
use crate::verify::report::{DataReport, ModelFile, PassReport};
use crate::verify::run::SideBySide;
use crate::verify::thresholds::Check;

impl Compiler {
    pub(super) fn done(mut self) -> Result<Compiled, CompilerError> {
        if let Some(pass) = &self.stop_after {
            known(pass)?;
        }
        let keeps = self.each || self.blame || self.stop_after.is_some();
        let journal = if keeps { Journal::keeping_models() } else { Journal::default() };
        let mut log = Log { notes: std::mem::take(&mut self.notes), journal, ..Log::default() };
        infer::declare(&mut self.model, &self.data.options.said_shapes()?);
        let recipe = self.settled_recipe()?;
        let rules = match self.rules.take() {
            Some(r) => r,
            None => RuleSet::embedded()?,
        };
        let weights = self.model.graph.initializers().iter().filter_map(|v| self.model.graph.try_init(*v)?.raw_bytes());
        let sources = Sources::of(weights);
        let p = prepared(&self.model, &self.name, &recipe, &rules, self.keep_opset, &mut log);
        if let Some(m) = self.stopped(&log) {
            return Ok(self.unfinished(m, &recipe, log));
        }
        let p = p?;
        let (Some(p), Some(_)) = (p, &recipe.quantize) else {
            self.has_stopped(&log)?;
            return Ok(self.unchanged(&recipe, log));
        };
        let samplings = self.samplings(&p, &recipe, &mut log)?;
        let mut decided = self.decided(p, &recipe, &rules, (&samplings.data, &samplings.calib), &mut log)?;
        let missed = self.divide(&mut decided, (&samplings.data, &samplings.held), &mut log)?;
        let front = self.rewritten(&decided, &mut log);
        if let Some(m) = self.stopped(&log) {
            return Ok(self.unfinished(m, &recipe, log));
        }
        let front = front?;
        self.has_stopped(&log)?;
        let done = self.judged(decided, front, samplings, missed, &recipe, log)?;
        sources.intact().map_err(|path| CompilerError::Changed { path })?;
        Ok(done)
    }

    /// The model up to the cut, as the plan wants it.
    fn rewritten(&self, d: &Decided, log: &mut Log) -> Result<Model, CompilerError> {
        let given = self.plan.as_ref().map(|(_, name)| name);
        let journal = &mut log.journal;
        let front = timed(&mut log.timings, "rewrite", || {
            // The plan may have come from a file.
            apply_in_front(&d.p, &d.plan, journal).map_err(|e| match given {
                Some(name) => CompilerError::from(e).within(name),
                None => e.into(),
            })
        });
        log.gather();
        front
    }

    /// What each pass changed, where that is asked for.
    fn passes(&self, data: &Dataset, log: &mut Log) -> Result<Vec<PassReport>, CompilerError> {
        let passes = if self.each { each_pass(data, log)? } else { Vec::new() };
        if self.blame {
            match blame(&log.journal.steps, &data.sample(0)?.inputs, data.batch())? {
                Some(m) => return Err(moved_too_far(&m)),
                None => log.notes.push("on one sample, no pass moves an output further than it declares".into()),
            }
        }
        Ok(passes)
    }

    /// Compares, times and reports what was made.
    fn judged(
        self,
        decided: Decided,
        front: Model,
        Samplings { data, calib, held, other }: Samplings,
        missed: Option<Check>,
        recipe: &Recipe,
        mut log: Log,
    ) -> Result<Compiled, CompilerError> {
        let Decided { p, plan, calibration, samples, statistics, .. } = decided;
        let passes = self.passes(&data, &mut log)?;
        let on = self.verified_on((&data, held), other);
        let beside = on.as_ref().map(|(data, some)| self.beside((&p, &plan, &front), (data, some), &mut log));
        let (compared, closer) = beside.transpose()?.unzip();
        let closer = closer.flatten();
        let first = on.as_ref().filter(|_| !self.fast).and_then(|(data, some)| Some((data, *some.first()?)));
        let unfaithful = first.and_then(|on| unfaithful(&self.model, &p, on, self.how(), &mut log));
        let timed = self.bench && !matches!(self.verification, Verification::None);
        let speed = if timed { timing((&p.model, &front), &data, &mut log) } else { None };
        let model = whole(&p, front)?;
        let judged = match (&self.judge, &on) {
            (Some(j), Some((d, some))) => {
                let (models, calibration) = ((&self.model, &model), Some((&data, &calib[..])));
                Some(second_opinion(j, models, (d, &some[..]), calibration, self.how(), &mut log)?)
            }
            _ => None,
        };
        let calibrated = self.plan.is_none() || self.calibrated_on.is_some();
        let synthetic = data.is_synthetic() && calibrated && self.statistics.is_none();
        let (verification, verification_samples) = match &on {
            Some((d, some)) => (d.description().to_owned(), some.len() as u64 * d.batch() as u64),
            None => ("none".to_owned(), 0),
        };
        let data =
            DataReport { calibration, calibration_samples: samples, verification, verification_samples, synthetic };
        let float = ModelFile { name: self.name.clone(), bytes: self.bytes };
        let mut report = report(float, data, compared, &model, self.limits, Some(recipe), log);
        (report.passes, report.speed, report.closer) = (passes, speed, closer);
        if let (Some((data, _)), Some(d)) = (&on, report.disagreements.as_mut()) {
            illustrate(d, data, self.closer);
        }
        if let Some(j) = judged {
            report.checks.extend(j.check(&self.limits.of(Some(recipe))));
            report.judged = Some(j);
        }
        let empty = plan.quantizes_nothing().then(Check::of_nothing);
        report.checks.extend(missed.into_iter().chain(unfaithful).chain(empty));
        tell_plan(&mut report, &p, &plan);
        report.notes.extend(slow_weights(&model, &plan));
        Ok(Compiled { model, plan: Some(plan), prepared: Some(p), report, statistics, finished: true })
    }

    /// The plan that was given, or one from statistics; with the model as far as it can be run.
    fn decided(
        &self,
        mut p: Prepared,
        recipe: &Recipe,
        rules: &RuleSet,
        (data, calib): (&Dataset, &[usize]),
        log: &mut Log,
    ) -> Result<Decided, CompilerError> {
        if let Some((plan, name)) = &self.plan {
            let mut plan = plan.clone();
            plan.target = self.target.unwrap_or(plan.target);
            plan.assume_vnni |= self.assume_vnni;
            let known = self.calibrated_on.clone();
            let (calibration, samples) = known.unwrap_or_else(|| (format!("as plan {name} says"), 0));
            if self.statistics.is_some() || self.statistics_to.is_some() {
                log.notes.push(format!("plan {name} decides everything: statistics are neither read nor written"));
            }
            return Ok(Decided { p, plan, narrow: Vec::new(), calibration, samples, statistics: None });
        }
        let how = self.how();
        let found = |p: &Prepared, log: &mut Log| match &self.statistics {
            Some(f) => {
                let s = read_statistics(f, p, log)?;
                log.notes.extend(self.seen_before(&s, recipe, (data, calib)));
                Ok(s)
            }
            None => statistics(p, recipe, (data, calib), WHOLE, how, log),
        };
        let s = match found(&p, log) {
            // Sizes that were made up may be at fault, and not the operator.
            Err(e) if !self.stop.asked() && made_up(data).is_empty() => {
                let Some(front) = cut_where_it_fails(&p, data, rules, &mut log.journal)? else { return Err(e) };
                p = front;
                log.gather();
                found(&p, log)?
            }
            s => s?,
        };
        let to = self.statistics_to.as_deref();
        let statistics = to.map(|f| ready(f, &s.encode())).transpose()?;
        let (calibration, samples) = (s.data.clone(), s.samples);
        let four = if self.wants_four_bits() { Some(recipe.in_four_bits()?) } else { None };
        let (plan, narrow) = planned_twice(&p, (recipe, four.as_ref()), s, how, log)?;
        let mut fit = |recipe: &Recipe, plan| fitted(&p, recipe, plan, (data, calib, &calibration), how, log);
        let narrow = match &four {
            Some(four) => fit(four, QuantPlan { layers: narrow, ..plan.clone() })?.layers,
            None => Vec::new(),
        };
        let plan = fit(recipe, plan)?;
        Ok(Decided { p, plan, narrow, calibration, samples, statistics })
    }

    /// A note where statistics from a file are not of the samples that are calibrated on here: those held back may not be new to
    /// them, and weights may be fitted to other data.
    fn seen_before(&self, s: &StatsFile, recipe: &Recipe, (data, calib): (&Dataset, &[usize])) -> Option<String> {
        let (here, all) = (calib.len() * data.batch(), data.len() * data.batch());
        let same = s.have_seen(&data.fingerprint());
        // Of the same files, but not as many of them.
        let knows = same || s.data == data.description();
        if knows && self.holds_back() && here < all && (!same || s.samples > here as u64) {
            return Some(format!(
                "the statistics are of {} samples, and {here} of {all} are not held back here: what the models are compared on \
                 may have been calibrated on; compare them on other data (--verify)",
                s.samples
            ));
        }
        let fits = recipe.quantize.as_ref().is_some_and(|q| q.weights.rounding != Rounding::Nearest);
        (!knows && fits && !data.is_synthetic())
            .then(|| format!("weights are fitted to {}, and the statistics are of {}", data.description(), s.data))
    }

    /// Gives the parts of the plan the precisions that they shall have; with the check that it then misses, if it does.
    fn divide(&self, d: &mut Decided, on: (&Dataset, &[usize]), log: &mut Log) -> Result<Option<Check>, CompilerError> {
        let Some(keep) = &self.keep else { return Ok(None) };
        let (plan, missed) = kept((&d.p, &d.plan, &d.narrow), on, (keep, self.float_bytes()?), self.how(), log)?;
        d.plan = plan;
        Ok(missed)
    }

    /// Runs the models side by side, and looks at single values where that is asked for.
    fn beside(
        &self,
        (p, plan, front): (&Prepared, &QuantPlan, &Model),
        (data, some): (&Dataset, &[usize]),
        log: &mut Log,
    ) -> Result<(SideBySide, Option<CloserLook>), CompilerError> {
        // Channels that the plan evens out are other numbers than the float model's, of the same function.
        let float = equalised(p, &plan.equalisations, &mut Journal::default())?;
        let how = self.how();
        let compared = side_by_side((&float.model, front), data, some, &block_values(p), how, log)?;
        if !self.closer {
            return Ok((compared, None));
        }
        Ok((compared, look_closer((&float, front), plan, (data, some), how, log)?))
    }

    /// The model as the pass left it after which to stop, if that has run.
    fn stopped(&self, log: &Log) -> Option<Model> {
        self.stop_after.as_deref().and_then(|pass| log.journal.after(pass)).cloned()
    }

    /// Fails where all passes have run and none of them was the one after which to stop.
    fn has_stopped(&self, log: &Log) -> Result<(), CompilerError> {
        let Some(pass) = &self.stop_after else { return Ok(()) };
        let mut ran: Vec<&str> = log.journal.steps.iter().map(|s| s.pass.as_str()).collect();
        ran.dedup();
        Err(CompilerError::NoPass { pass: pass.clone(), ran: ran.join(", ") })
    }

    fn unfinished(mut self, m: Model, recipe: &Recipe, log: Log) -> Compiled {
        self.model = m;
        Compiled { finished: false, ..self.unchanged(recipe, log) }
    }

    /// The model as it is.
    fn unchanged(self, recipe: &Recipe, log: Log) -> Compiled {
        let none = || "none".to_owned();
        let data = DataReport {
            calibration: none(),
            calibration_samples: 0,
            verification: none(),
            verification_samples: 0,
            synthetic: false,
        };
        let float = ModelFile { name: self.name, bytes: self.bytes };
        let report = report(float, data, None, &self.model, self.limits, Some(recipe), log);
        Compiled { model: self.model, plan: None, prepared: None, report, statistics: None, finished: true }
    }
}

/// Refuses a pass to stop after that there is not, before anything is done.
fn known(pass: &str) -> Result<(), CompilerError> {
    let (id, run) = pass.rsplit_once(':').unwrap_or((pass, "1"));
    if !run.parse().is_ok_and(|n: usize| n > 0) {
        return Err(CompilerError::NoRun { pass: pass.to_owned(), run: run.to_owned() });
    }
    if let Some(now) = registry::renamed(id) {
        return Err(CompilerError::Renamed { pass: pass.to_owned(), now });
    }
    registry::pass(id).map(drop).ok_or_else(|| CompilerError::UnknownPass { pass: pass.to_owned() })
}

/// What is to be done, and where it comes from.
struct Decided {
    p: Prepared,
    plan: QuantPlan,
    /// The plan's layers with weights in 4 bits, where those are wanted.
    narrow: Vec<Layer>,
    calibration: String,
    samples: u64,
    statistics: Option<Pending>,
}

/// A file of these bytes, without its name yet.
fn ready(path: &Path, bytes: &[u8]) -> Result<Pending, WriteError> {
    use std::io::Write;
    let p = Pending::create(path)?;
    p.file().write_all(bytes).map_err(|source| WriteError::Io { path: path.to_owned(), source })?;
    Ok(p)
}
