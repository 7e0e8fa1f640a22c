//! The main job and its parts: calibrate, plan, verify.

use std::path::Path;

use indexmap::IndexMap;
use ndarray_npy::NpzWriter;

use super::args::{CalibrateArgs, CompileArgs, PlanArgs, PrepareArgs, ReportArgs, VerifyArgs};
use super::files::{Files, is_std};
use super::sensitivity::kept;
use super::{Failure, bar, deliver, load, rules, threads, timed};
use crate::calibrate::data::{DataOptions, Dataset, InputSpec, split_holdout};
use crate::calibrate::run::{CalibrateError, Observed, observe};
use crate::calibrate::sizes::settled;
use crate::calibrate::stats::{Origin, StatsFile};
use crate::compile::each::{Moved, blame, verify_each};
use crate::compile::reach::cut_where_it_fails;
use crate::compile::refine::{FitData, refine};
use crate::compile::{
    CompileError, Journal, Prepared, apply_in_front, follow, inputs, make_plan, prepare, runnable, suits, unpacked,
    whole,
};
use crate::file::{Batch, Pending};
use crate::ir::{Def, Dim, Model, validate};
use crate::onnx::{self, SaveOptions};
use crate::passes::widen_floats::WidenFloats;
use crate::passes::{Context, Numerics, Pass, pipelines};
use crate::plan::sites::Sites;
use crate::plan::{Island, QuantPlan, Rounding, planner, sites};
use crate::recipe::Recipe;
use crate::runtime::Array;
use crate::verify::coverage;
use crate::verify::report::{DataReport, ModelFile, PassReport, Report, Timing, VERSION};
use crate::verify::run::{Compared, compare};
use crate::verify::speed::{Effort, Speed, measure};

/// What one command gathers on its way to a report.
#[derive(Default)]
pub(super) struct Log {
    pub notes: Vec<String>,
    timings: Vec<Timing>,
    journal: Journal,
}

impl Log {
    /// Moves what the passes noted to the other notes.
    fn gather(&mut self) {
        self.notes.append(&mut self.journal.notes);
    }
}

/// How models are run.
#[derive(Clone, Copy)]
pub(super) struct Running {
    pub threads: usize,
    pub quiet: bool,
}

/// Opens a data set and refuses data that does not fit the model.
pub(super) fn open(options: &DataOptions, m: &Model, log: &mut Log) -> Result<Dataset, Failure> {
    let specs = inputs(&m.graph)?;
    let found = settled(options, validate::validate(m)?, &specs)?;
    if found.shape != options.shape {
        let sizes = found.shape.join(" ");
        log.notes.push(format!("the model leaves sizes open, and runs with {sizes}; --shape gives others"));
    }
    let d = Dataset::open(&found, &specs)?;
    log.notes.extend(d.notes().iter().cloned());
    Ok(d)
}

/// The only part of data that are not divided.
pub(super) const WHOLE: (u32, u32) = (1, 1);

/// A model as it was read, with the bytes of its files.
pub(super) type Float = (Model, u64);

pub(super) fn prepared(
    model: &Path,
    a: &PrepareArgs,
    files: &mut Files,
    log: &mut Log,
) -> Result<(Float, Recipe, Option<Prepared>), Failure> {
    let (m, bytes) = load("MODEL", model, files, &mut log.notes)?;
    let mut recipe = Recipe::find(&a.recipe, a.passes_dir.as_deref())?;
    if let (Some(target), Some(q)) = (a.target, &mut recipe.quantize) {
        q.target = target.into();
    }
    if let Some(q) = recipe.quantize.as_mut().filter(|_| a.assume_vnni) {
        q.weights.assume_vnni = true;
    }
    let Some(how) = recipe.prepare.clone() else { return Ok(((m, bytes), recipe, None)) };
    let rules = rules(a.passes_dir.as_deref())?;
    let journal = &mut log.journal;
    let named = |e: CompileError| format!("{}: {e}", model.display());
    let p =
        timed(&mut log.timings, "prepare", || Ok(prepare(&m, &how, &rules, a.keep_opset, journal).map_err(named)?))?;
    log.gather();
    suits(&p, &recipe, a.keep_opset).map_err(named)?;
    if recipe.quantize.as_ref().is_some_and(|q| !q.linear_only) {
        let Sites { attentions, linears, softmaxes, .. } = &p.sites;
        if attentions.is_empty() && linears.is_empty() {
            return Err(named(nothing_found(&p, &recipe)).into());
        }
        let how_close = "(`fqvit-opt explain` tells how close the rules came)";
        if attentions.is_empty() {
            log.notes.push(format!("no attention was found; the rest is quantized {how_close}"));
        } else if let Some(n) = softmaxes.first() {
            log.notes.push(format!(
                "{} Softmax of no recognised attention, which stay in float; the first is `{}` {how_close}",
                softmaxes.len(),
                p.model.graph.label(p.model.graph.node(*n))
            ));
        }
    }
    Ok(((m, bytes), recipe, Some(p)))
}

/// What to do where sizes were made up, and may be why a model does not run.
fn made_up(data: &Dataset) -> String {
    let open = |s: &&InputSpec| s.dims.iter().skip(1).any(|d| !matches!(d, Dim::Known(_)));
    let names: Vec<&str> = data.inputs().iter().filter(open).map(|s| s.name.as_str()).collect();
    let Some(sample) = data.sample(0).ok().filter(|_| data.is_synthetic() && !names.is_empty()) else {
        return String::new();
    };
    let shape = |(n, a): &(String, Array)| {
        format!("{n}={}", a.dims().iter().map(usize::to_string).collect::<Vec<_>>().join(","))
    };
    let tried: Vec<String> = sample.inputs.iter().filter(|(n, _)| names.contains(&n.as_str())).map(shape).collect();
    format!(
        "; the model leaves sizes open, and {} was made up: give the sizes that it is for, such as --shape {}=1,3,48,320, or data",
        tried.join(" "),
        names[0]
    )
}

/// Why there is nothing to work on: there is nothing, or it is where the passes do not go.
fn nothing_found(p: &Prepared, recipe: &Recipe) -> CompileError {
    match coverage::in_bodies(&p.model.graph) {
        Some((count, node, op)) => CompileError::InBodies { count, node, op: op.to_string() },
        None => CompileError::NoAttention { recipe: recipe.name.clone() },
    }
}

/// Statistics from a file, or from running the model; with the number of samples behind them.
pub(super) fn statistics(
    p: &Prepared,
    recipe: &Recipe,
    (data, indices): (&Dataset, &[usize]),
    (given, shard): (Option<&Path>, (u32, u32)),
    how: Running,
    log: &mut Log,
) -> Result<StatsFile, Failure> {
    if let Some(f) = given {
        let s = StatsFile::read(f)?;
        s.check(f, &p.fingerprint)?;
        log.notes.push(format!("statistics of {} samples read from {}", s.samples, f.display()));
        return Ok(s);
    }
    if data.is_synthetic() && !how.quiet {
        eprintln!(
            "note: no calibration data was given; {} synthetic samples are made up. Give --calibrate for a trustworthy result.",
            data.len()
        );
    }
    let quant = recipe.quantize.as_ref().ok_or_else(|| format!("recipe `{}` quantizes nothing", recipe.name))?;
    let watches = planner::watches(&p.model, &p.sites, quant);
    let b = bar("calibrating", indices.len(), how.quiet);
    let values = timed(&mut log.timings, "calibrate", || {
        let model = validate::validate(&p.model)?;
        let seen = observe(model, data, indices, &watches, how.threads, &|n| b.set_position(n as u64));
        Ok(seen.map_err(|e| match e {
            CalibrateError::Runtime(e) => format!("the float model does not run: {e}{}", made_up(data)),
            other => other.to_string(),
        })?)
    })?;
    let Observed { stats: values, ignored } = values;
    if let Some(first) = ignored.first() {
        log.notes.push(format!(
            "{} values hold NaN or infinity in places that no output depends on (the first is `{first}`); these are left out",
            ignored.len()
        ));
    }
    b.finish_and_clear();
    let n = indices.len() as u64 * data.batch() as u64;
    let from = Origin {
        data: data.description().to_owned(),
        synthetic: data.is_synthetic(),
        how: data.how().to_owned(),
        source: data.fingerprint(),
        shard,
    };
    Ok(StatsFile::new(p.fingerprint.clone(), from, n, values))
}

/// A file of `--stats` or `--plan`, by whether it was there when the call began.
pub(super) fn split(path: Option<&Path>, is_there: bool) -> (Option<&Path>, Option<&Path>) {
    if is_there { (path, None) } else { (None, path) }
}

pub(super) fn planned(p: &Prepared, recipe: &Recipe, stats: StatsFile, log: &mut Log) -> Result<QuantPlan, Failure> {
    let alone = stats.synthetic.then(|| recipe.without_data());
    timed(&mut log.timings, "plan", || Ok(make_plan(p, &stats.into_map(), alone.as_ref().unwrap_or(recipe))?))
}

/// The plan with weights fitted to the codes they read, where the recipe wants that and there is data for it: with
/// statistics from a file and no data beside them, weights keep nearest rounding. `what` says what the statistics are of.
fn fitted(
    p: &Prepared,
    recipe: &Recipe,
    plan: QuantPlan,
    (data, indices, what): (&Dataset, &[usize], &str),
    how: Running,
    log: &mut Log,
) -> Result<QuantPlan, Failure> {
    let Some(weights) = recipe.quantize.as_ref().map(|q| &q.weights).filter(|w| w.rounding == Rounding::Gptq) else {
        return Ok(plan);
    };
    if data.is_synthetic() && what != data.description() {
        let data = "give the data the statistics were made from (--calibrate) to have them fitted";
        log.notes.push(format!("weights are rounded to the nearest code; {data}"));
        return Ok(plan);
    }
    let b = bar("fitting weights", indices.len(), how.quiet);
    let fit = FitData { data, indices, threads: how.threads };
    let plan =
        timed(&mut log.timings, "fit weights", || Ok(refine(p, &plan, weights, fit, &|n| b.set_position(n as u64))?))?;
    b.finish_and_clear();
    Ok(plan)
}

pub fn compile(a: &CompileArgs) -> Result<bool, Failure> {
    let model_path = a.model.as_deref().ok_or("give the model to compile")?;
    let output = a.output.as_deref().ok_or("give the output with -o")?;
    let mut files = Files::default();
    files.reads("MODEL", model_path)?;
    files.data("--calibrate", a.data.calibrate.as_deref())?;
    files.data("--verify", a.verify.as_deref())?;
    files.preparation(&a.prepare);
    files.model(output)?;
    let (plan_given, plan_made) = split(a.plan.as_deref(), files.either("--plan", a.plan.as_deref())?);
    let (stats_given, stats_made) = split(a.stats.as_deref(), files.either("--stats", a.stats.as_deref())?);
    files.report(&a.report)?;
    files.check()?;
    let keeps = a.verify_each || a.blame || a.stop_after.is_some();
    let mut log = Log { journal: if keeps { Journal::keeping_models() } else { Journal::default() }, ..Log::default() };
    let made = prepared(model_path, &a.prepare, &mut files, &mut log);
    if let Some(m) = stopped(a, &log.journal) {
        return unfinished(a, m, output, files);
    }
    let ((float, before), recipe, p) = made?;
    let recipe = if a.fast { recipe.without_fitting() } else { recipe };
    let (Some(mut p), Some(_)) = (p, &recipe.quantize) else {
        return unchanged(a, (model_path, before), output, &float, &recipe, (files, log));
    };
    let how = Running { threads: threads(a.prepare.threads), quiet: a.report.quiet };
    let data = open(&a.data, &p.model, &mut log)?;
    let all: Vec<usize> = (0..data.len()).collect();
    let measured = (a.verify.is_none() && !a.report.no_verify) || a.keep.asked();
    let (mut calib, mut held) = if measured { split_holdout(data.len()) } else { (all, Vec::new()) };
    if a.fast {
        (calib, held) = (thinned(calib, FAST_CALIBRATION), thinned(held, FAST_VERIFICATION));
    }
    let (plan, calibration, samples) = match plan_given {
        Some(f) => {
            let text = std::fs::read_to_string(f).map_err(|e| format!("{}: {e}", f.display()))?;
            let mut plan = QuantPlan::from_yaml(&text, &f.display().to_string())?;
            if let Some(target) = a.prepare.target {
                plan.target = target.into();
            }
            plan.assume_vnni |= a.prepare.assume_vnni;
            (plan, format!("plan {}", f.display()), 0)
        }
        None => {
            let from = (stats_given, WHOLE);
            let s = match statistics(&p, &recipe, (&data, &calib), from, how, &mut log) {
                // Sizes that were made up may be at fault, and not the operator.
                Err(e) if made_up(&data).is_empty() => {
                    let rules = rules(a.prepare.passes_dir.as_deref())?;
                    let Some(front) = cut_where_it_fails(&p, &data, &rules, &mut log.journal)? else { return Err(e) };
                    p = front;
                    log.gather();
                    statistics(&p, &recipe, (&data, &calib), from, how, &mut log)?
                }
                s => s?,
            };
            if let Some(f) = stats_made {
                files.write(f, &s.encode())?;
            }
            let (what, samples) = (s.data.clone(), s.samples);
            let plan = planned(&p, &recipe, s, &mut log)?;
            (fitted(&p, &recipe, plan, (&data, &calib, &what), how, &mut log)?, what, samples)
        }
    };
    let plan = if a.keep.asked() { kept(&p, plan, (&data, &held), &a.keep, how, &mut log)? } else { plan };
    let journal = &mut log.journal;
    let quantized = timed(&mut log.timings, "rewrite", || {
        // The plan may have come from a file.
        Ok(apply_in_front(&p, &plan, journal).map_err(|e| match plan_given {
            Some(f) => format!("{}: {e}", f.display()),
            None => e.to_string(),
        })?)
    });
    log.gather();
    if let Some(m) = stopped(a, &log.journal) {
        return unfinished(a, m, output, files);
    }
    let quantized = quantized?;
    if let Some(pass) = &a.stop_after {
        let mut ran: Vec<&str> = log.journal.steps.iter().map(|s| s.pass.as_str()).collect();
        ran.dedup();
        return Err(format!("--stop-after {pass}: no such pass ran; in order, these did: {}", ran.join(", ")).into());
    }
    let passes = if a.verify_each { each_pass(&data, &mut log)? } else { Vec::new() };
    if a.blame {
        match blame(&log.journal.steps, &data.sample(0)?.inputs, data.batch())? {
            Some(m) => return Err(moved_too_far(&m).into()),
            None => log.notes.push("on one sample, no pass moves an output further than it declares".into()),
        }
    }
    let compared = if a.report.no_verify {
        None
    } else {
        let other =
            a.verify.as_ref().map(|v| DataOptions { calibrate: Some(v.clone()), samples: None, ..a.data.clone() });
        let (vdata, indices) = match &other {
            Some(o) => {
                let d = open(o, &p.model, &mut log)?;
                let all = (0..d.len()).collect();
                let all = if a.fast { thinned(all, FAST_VERIFICATION) } else { all };
                (d, all)
            }
            None => (data.clone(), held),
        };
        let taps: Vec<String> = block_values(&p);
        let c = side_by_side((&p.model, &quantized), &vdata, &indices, &taps, how, &mut log)?;
        Some((c, vdata.description().to_owned(), indices.len() as u64 * vdata.batch() as u64))
    };
    let speed =
        if a.report.no_bench || a.report.no_verify { None } else { timing((&p.model, &quantized), &data, &mut log) };
    let quantized = whole(&p, quantized)?;
    let after = written(&quantized, output, &mut files)?;
    if let Some(f) = plan_made {
        files.write(f, plan.to_yaml().as_bytes())?;
    }
    let (c, verification, vsamples) = match compared {
        Some((c, d, n)) => (Some(c), d, n),
        None => (None, "none".to_owned(), 0),
    };
    let data_report = DataReport {
        calibration,
        calibration_samples: samples,
        verification,
        verification_samples: vsamples,
        synthetic: data.is_synthetic() && plan_given.is_none() && stats_given.is_none(),
    };
    let pair = (
        ModelFile { name: model_path.display().to_string(), bytes: before },
        ModelFile { name: output.display().to_string(), bytes: after },
    );
    let mut report = report(pair, data_report, c, &quantized, &a.report, Some(&recipe), log);
    report.passes = passes;
    report.speed = speed;
    let told = |i: &&Island| !report.islands.iter().any(|o| o.node == i.node && o.op == i.op);
    let more: Vec<Island> = plan.islands.iter().filter(told).cloned().collect();
    report.islands.extend(more);
    for x in &plan.activations {
        *report.decisions.entry(format!("{} {}", x.role.name(), x.params.kind())).or_default() += 1;
    }
    if !plan.sums.is_empty() {
        report.decisions.insert("branch sums".into(), plan.sums.len() as u64);
    }
    for f in &plan.folds {
        *report.decisions.entry(format!("{} folded", f.role.name())).or_default() += 1;
    }
    for e in plan.equalisations.iter().filter(|e| !e.factors.is_empty()) {
        *report.decisions.entry(format!("{} equalised", e.between.name())).or_default() += 1;
    }
    deliver(&report, &a.report, files)
}

/// Holds the model ready; returns the bytes of its files.
fn written(m: &Model, output: &Path, files: &mut Files) -> Result<u64, Failure> {
    let valid = validate::validate(m)?;
    Ok(match files.printed(output) {
        Some(to) => onnx::write_to(valid, to)?,
        None => onnx::stage(valid, output, &SaveOptions::default(), files.batch())?,
    })
}

/// What `--fast` calibrates and verifies on at most.
const FAST_CALIBRATION: usize = 32;
const FAST_VERIFICATION: usize = 16;

/// At most so many of these, spread evenly.
fn thinned(all: Vec<usize>, most: usize) -> Vec<usize> {
    let take = all.len().min(most);
    (0..take).map(|i| all[i * all.len() / take]).collect()
}

/// The model as the pass of `--stop-after` left it, if that has run.
fn stopped<'j>(a: &CompileArgs, journal: &'j Journal) -> Option<&'j Model> {
    a.stop_after.as_deref().and_then(|pass| journal.after(pass))
}

/// Writes a model that was stopped on its way.
fn unfinished(a: &CompileArgs, m: &Model, output: &Path, mut files: Files) -> Result<bool, Failure> {
    written(m, output, &mut files)?;
    files.commit()?;
    if !a.report.quiet {
        eprintln!("stopped as asked; {} is no finished model", output.display());
    }
    Ok(true)
}

fn declares(n: Numerics) -> String {
    match n {
        Numerics::BitExact => "bit-exact".to_owned(),
        Numerics::Close { rel } => format!("within {rel:e}"),
        Numerics::Quantizes => "quantizes".to_owned(),
        Numerics::Widens => "widens".to_owned(),
    }
}

fn moved_too_far(m: &Moved) -> String {
    format!(
        "pass {} declares `{}`, but on one sample it moved output `{}` by {:e} of its largest value; nothing was \
         written. This is a fault in the pass: please report it",
        m.pass,
        declares(m.numerics),
        m.output,
        m.distance
    )
}

/// Import and export, nothing else.
fn unchanged(
    a: &CompileArgs,
    (path, before): (&Path, u64),
    output: &Path,
    model: &Model,
    recipe: &Recipe,
    (mut files, log): (Files, Log),
) -> Result<bool, Failure> {
    let after = written(model, output, &mut files).map_err(|e| format!("{}: {e}", path.display()))?;
    let pair = (
        ModelFile { name: path.display().to_string(), bytes: before },
        ModelFile { name: output.display().to_string(), bytes: after },
    );
    let none = || "none".to_owned();
    let data = DataReport {
        calibration: none(),
        calibration_samples: 0,
        verification: none(),
        verification_samples: 0,
        synthetic: false,
    };
    deliver(&report(pair, data, None, model, &a.report, Some(recipe), log), &a.report, files)
}

/// Holds every pass to what it declares, on the first sample.
fn each_pass(data: &Dataset, log: &mut Log) -> Result<Vec<PassReport>, Failure> {
    let Log { timings, journal, .. } = log;
    let moved =
        timed(timings, "verify-each", || Ok(verify_each(&journal.steps, &data.sample(0)?.inputs, data.batch())?))?;
    if let Some(m) = moved.iter().find(|m| !m.kept) {
        return Err(moved_too_far(m).into());
    }
    let row = |m: &Moved| PassReport {
        pass: m.pass.clone(),
        changes: m.changes as u64,
        declares: declares(m.numerics),
        output: m.output.clone(),
        distance: m.distance.into(),
        sqnr_db: m.sqnr_db,
        total_db: m.total_db,
    };
    Ok(moved.iter().map(row).collect())
}

/// Values that stand for the model's progress: sums of the residual stream and attention outputs.
fn block_values(p: &Prepared) -> Vec<String> {
    let g = &p.model.graph;
    p.sites
        .sites
        .values()
        .filter(|s| {
            matches!(s.role, sites::Role::Residual | sites::Role::AttentionOutput)
                && matches!(g.value(s.value).def, Def::Node { .. })
        })
        .map(|s| g.name_of(s.value).to_owned())
        .collect()
}

fn side_by_side(
    (float, quantized): (&Model, &Model),
    data: &Dataset,
    indices: &[usize],
    taps: &[String],
    how: Running,
    log: &mut Log,
) -> Result<Compared, Failure> {
    let b = bar("verifying", indices.len(), how.quiet);
    let c = timed(&mut log.timings, "verify", || {
        let (f, q) = (validate::validate(float)?, validate::validate(quantized)?);
        Ok(compare(f, q, data, indices, taps, how.threads, &|n| b.set_position(n as u64))?)
    })?;
    b.finish_and_clear();
    Ok(c)
}

/// Times both models; a note says why there are no times.
fn timing((float, quantized): (&Model, &Model), data: &Dataset, log: &mut Log) -> Option<Speed> {
    let times = timed(&mut log.timings, "bench", || {
        let (f, q) = (validate::validate(float)?, validate::validate(quantized)?);
        let sample = data.sample(0)?;
        Ok(measure(f, q, &sample.inputs, data.batch(), Effort::default())
            .map_err(|(what, e)| format!("{what} model: {e}"))?)
    });
    times.map_err(|e| log.notes.push(format!("the models were not timed: {e}"))).ok()
}

fn report(
    files: (ModelFile, ModelFile),
    data: DataReport,
    compared: Option<Compared>,
    quantized: &Model,
    how: &ReportArgs,
    recipe: Option<&Recipe>,
    log: Log,
) -> Report {
    let (coverage, islands) = coverage::measure(quantized);
    let mut limits = recipe.map(|r| r.thresholds.clone()).unwrap_or_default();
    limits.sqnr_db = how.min_sqnr.or(limits.sqnr_db);
    limits.agreement = how.min_agreement.or(limits.agreement);
    limits.agreement_asked = how.min_agreement.is_some();
    let (outputs, blocks, checks) = match compared {
        Some(c) => {
            let checks = limits.check(&c.outputs);
            (c.outputs, c.blocks, checks)
        }
        None => Default::default(),
    };
    Report {
        version: VERSION,
        tool: format!("fqvit-opt {}", env!("CARGO_PKG_VERSION")),
        float: files.0,
        quantized: files.1,
        recipe: recipe.map_or(String::new(), |r| r.name.clone()),
        data,
        outputs,
        blocks,
        speed: None,
        coverage,
        islands,
        decisions: IndexMap::new(),
        passes: Vec::new(),
        timings: log.timings,
        checks,
        notes: log.notes,
    }
}

pub fn calibrate(a: &CalibrateArgs) -> Result<bool, Failure> {
    let mut log = Log::default();
    let mut files = Files::default();
    files.reads("MODEL", &a.model)?;
    files.data("--calibrate", a.data.calibrate.as_deref())?;
    files.preparation(&a.prepare);
    a.join.iter().try_for_each(|f| files.reads("--join", f))?;
    files.writes("--stats", &a.stats)?;
    files.check()?;
    if !a.join.is_empty() {
        return join(a, files);
    }
    let (_, recipe, p) = prepared(&a.model, &a.prepare, &mut files, &mut log)?;
    let p = p.ok_or_else(|| format!("recipe `{}` quantizes nothing: there is nothing to calibrate", recipe.name))?;
    let data = open(&a.data, &p.model, &mut log)?;
    let (i, n) = a.shard.unwrap_or(WHOLE);
    let indices: Vec<usize> = (0..data.len()).filter(|k| k % n as usize == i as usize - 1).collect();
    if indices.is_empty() {
        return Err(format!("--shard {i}/{n}: there are {} samples; divide them into fewer parts", data.len()).into());
    }
    let how = Running { threads: threads(a.prepare.threads), quiet: a.quiet };
    let s = statistics(&p, &recipe, (&data, &indices), (None, (i, n)), how, &mut log)?;
    files.write(&a.stats, &s.encode())?;
    files.commit()?;
    for n in &log.notes {
        say!("note: {n}");
    }
    say!("{} values over {} samples written to {}", s.values.len(), s.samples, a.stats.display());
    Ok(true)
}

/// Joins shards.
fn join(a: &CalibrateArgs, mut files: Files) -> Result<bool, Failure> {
    let [first, others @ ..] = &a.join[..] else { return Err("give the files to join".into()) };
    if others.is_empty() {
        return Err(format!("--join {}: one file is joined with nothing; give all parts", first.display()).into());
    }
    let mut all = StatsFile::read(first)?;
    for f in others {
        all = all.join(StatsFile::read(f)?, f)?;
    }
    files.write(&a.stats, &all.encode())?;
    files.commit()?;
    say!("{} samples joined into {}", all.samples, a.stats.display());
    let missing = all.missing();
    if !missing.is_empty() {
        say!("note: still to be joined before they can be used: {}", missing.join(", "));
    }
    Ok(true)
}

pub fn plan(a: &PlanArgs) -> Result<bool, Failure> {
    let mut log = Log::default();
    let mut files = Files::default();
    files.reads("MODEL", &a.model)?;
    files.data("--calibrate", a.data.calibrate.as_deref())?;
    files.preparation(&a.prepare);
    files.writes_or_prints("--plan", &a.plan)?;
    let (stats_given, stats_made) = split(a.stats.as_deref(), files.either("--stats", a.stats.as_deref())?);
    files.check()?;
    let (_, recipe, p) = prepared(&a.model, &a.prepare, &mut files, &mut log)?;
    let p = p.ok_or_else(|| format!("recipe `{}` quantizes nothing: there is nothing to plan", recipe.name))?;
    let data = open(&a.data, &p.model, &mut log)?;
    let indices: Vec<usize> = (0..data.len()).collect();
    let how = Running { threads: threads(a.prepare.threads), quiet: a.quiet };
    let s = statistics(&p, &recipe, (&data, &indices), (stats_given, WHOLE), how, &mut log)?;
    if let Some(f) = stats_made {
        files.write(f, &s.encode())?;
    }
    let what = s.data.clone();
    let plan = planned(&p, &recipe, s, &mut log)?;
    let plan = fitted(&p, &recipe, plan, (&data, &indices, &what), how, &mut log)?;
    files.write(&a.plan, plan.to_yaml().as_bytes())?;
    files.commit()?;
    if is_std(&a.plan) {
        log.notes.iter().for_each(|n| eprintln!("note: {n}"));
        return Ok(true);
    }
    for n in &log.notes {
        say!("note: {n}");
    }
    say!(
        "{} activations, {} layers, {} attentions, {} folds planned in {}",
        plan.activations.len(),
        plan.layers.len(),
        plan.attentions.len(),
        plan.folds.len(),
        a.plan.display()
    );
    Ok(true)
}

pub fn verify(a: &VerifyArgs) -> Result<bool, Failure> {
    let mut log = Log::default();
    let mut files = Files::default();
    files.reads("the float model", &a.float)?;
    files.reads("the quantized model", &a.quantized)?;
    files.data("--data", a.data.calibrate.as_deref())?;
    a.outputs.iter().try_for_each(|p| files.writes("--outputs", p))?;
    files.report(&a.report)?;
    files.check()?;
    let (float, before) = load("the float model", &a.float, &mut files, &mut log.notes)?;
    let (quantized, after) = load("the quantized model", &a.quantized, &mut files, &mut log.notes)?;
    let float = float_to_run(&float, &mut log.notes)?;
    let (quantized, _) = unpacked(&quantized)?;
    let (float, quantized, whole) = in_front(float, quantized, &mut log)?;
    let data = open(&a.data, &float, &mut log)?;
    let indices: Vec<usize> = (0..data.len()).collect();
    let how = Running { threads: threads(a.threads), quiet: a.report.quiet };
    let taps: Vec<String> = shared_sums(&float, &quantized);
    let c = side_by_side((&float, &quantized), &data, &indices, &taps, how, &mut log)?;
    let speed = if a.report.no_bench { None } else { timing((&float, &quantized), &data, &mut log) };
    if let Some(p) = &a.outputs {
        stage_outputs(p, &c.quantized, files.batch())?;
    }
    let data_report = DataReport {
        calibration: "not part of this run".into(),
        calibration_samples: 0,
        verification: data.description().to_owned(),
        verification_samples: indices.len() as u64 * data.batch() as u64,
        synthetic: data.is_synthetic(),
    };
    let pair = (
        ModelFile { name: a.float.display().to_string(), bytes: before },
        ModelFile { name: a.quantized.display().to_string(), bytes: after },
    );
    let report = Report {
        speed,
        ..report(pair, data_report, Some(c), whole.as_ref().unwrap_or(&quantized), &a.report, None, log)
    };
    deliver(&report, &a.report, files)
}

/// A float model as `compile` runs it: tract lacks many operators in half precision. What can not be widened is run as it
/// is.
pub(super) fn float_to_run(float: &Model, notes: &mut Vec<String>) -> Result<Model, Failure> {
    let (float, _) = unpacked(float)?;
    let mut cx = Context::new(float);
    cx.settle_types();
    if WidenFloats.run(&mut cx).is_ok_and(|out| out.changes > 0) {
        notes.push("the float model computes in half precision; it is run in float32".into());
    }
    follow(&pipelines::RUNNABLE, &mut cx, &mut Journal::default())?;
    Ok(cx.into_model())
}

/// Both models up to the operators that can not be run here, and the whole of the quantized one where that is less.
fn in_front(float: Model, quantized: Model, log: &mut Log) -> Result<(Model, Model, Option<Model>), Failure> {
    let (f, tail) = runnable(float, &mut log.journal)?;
    log.gather();
    if tail.is_none() {
        return Ok((f, quantized, None));
    }
    let (q, _) = runnable(quantized.clone(), &mut Journal::default())?;
    let outputs = |m: &Model| m.graph.outputs().iter().map(|v| m.graph.name_of(*v).to_owned()).collect::<Vec<_>>();
    if outputs(&f) != outputs(&q) {
        return Err(format!(
            "the two models are not cut at the same values by operators that can not be run here: {} and {}",
            outputs(&f).join(", "),
            outputs(&q).join(", ")
        )
        .into());
    }
    Ok((f, q, Some(quantized)))
}

/// Values of both models under one name that a float Add makes: the residual stream.
fn shared_sums(float: &Model, quantized: &Model) -> Vec<String> {
    let g = &float.graph;
    g.schedule()
        .into_iter()
        .filter(|n| {
            let n = g.node(*n);
            n.op.is("Add") && n.inputs.iter().flatten().all(|v| g.constant(*v).is_none())
        })
        .filter_map(|n| g.node(n).out().map(|v| g.name_of(v).to_owned()))
        .filter(|name| quantized.graph.find(name).is_some_and(|v| quantized.graph.producer(v).is_some()))
        .collect()
}

fn stage_outputs(path: &Path, outputs: &IndexMap<String, Vec<Array>>, batch: &mut Batch) -> Result<(), Failure> {
    let f = Pending::create(path)?;
    let mut w = NpzWriter::new(f.file().try_clone()?);
    let mut add = |name: &str, samples: &[Array]| -> Result<(), Failure> {
        // A scalar has no axis to join samples along.
        let rows = |a: &Array| if a.rank() == 0 { a.clone().reshape(&[1]) } else { Ok(a.clone()) };
        let rows: Vec<Array> = samples.iter().map(rows).collect::<Result<_, _>>()?;
        let a = Array::concat(&rows).map_err(|e| format!("output `{name}` has another shape in each sample: {e}"))?;
        match &a {
            Array::I64(x) => w.add_array(name, x)?,
            Array::I32(x) => w.add_array(name, x)?,
            _ => w.add_array(name, &ndarray::ArrayD::from_shape_vec(a.dims(), a.f32s().into_owned())?)?,
        }
        Ok(())
    };
    let done =
        outputs.iter().try_for_each(|(name, a)| add(name, a)).and_then(|()| w.finish().map(drop).map_err(Into::into));
    done.map_err(|e| format!("cannot write {}: {e}; nothing was changed", path.display()))?;
    batch.add(f);
    Ok(())
}
