//! The main job and its parts: calibrate, plan, verify.

use std::path::Path;

use indexmap::IndexMap;
use ndarray_npy::NpzWriter;

use super::args::{CalibrateArgs, CompileArgs, PlanArgs, PrepareArgs, ReportArgs, VerifyArgs};
use super::sensitivity::kept;
use super::{Failure, bar, deliver, distinct, file_bytes, load, rules, threads, timed, writable};
use crate::calibrate::data::{DataOptions, Dataset, split_holdout};
use crate::calibrate::run::{CalibrateError, observe};
use crate::calibrate::stats::StatsFile;
use crate::compile::each::{Moved, verify_each};
use crate::compile::refine::{FitData, refine};
use crate::compile::{BEFORE_A_RUN, CompileError, Journal, Prepared, apply, inputs, make_plan, prepare, unpacked};
use crate::file::{self, Pending};
use crate::ir::{Def, Model, validate};
use crate::onnx::{self, SaveOptions};
use crate::passes::Numerics;
use crate::passes::widen_floats::widen_floats;
use crate::plan::sites::Sites;
use crate::plan::{QuantPlan, Rounding, planner, sites};
use crate::recipe::Recipe;
use crate::rewrite::narrow_floats;
use crate::runtime::Array;
use crate::verify::coverage;
use crate::verify::report::{DataReport, ModelFile, PassReport, Report, Timing, VERSION};
use crate::verify::run::{Compared, compare};

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
    let d = Dataset::open(options, &inputs(&m.graph)?)?;
    log.notes.extend(d.notes().iter().cloned());
    Ok(d)
}

pub(super) fn prepared(
    model: &Path,
    a: &PrepareArgs,
    log: &mut Log,
) -> Result<(Model, Recipe, Option<Prepared>), Failure> {
    let m = load(model, &mut log.notes)?;
    let mut recipe = Recipe::find(&a.recipe, a.passes_dir.as_deref())?;
    if let (Some(target), Some(q)) = (a.target, &mut recipe.quantize) {
        q.target = target.into();
    }
    if let Some(q) = recipe.quantize.as_mut().filter(|_| a.assume_vnni) {
        q.weights.assume_vnni = true;
    }
    let Some(how) = recipe.prepare.clone() else { return Ok((m, recipe, None)) };
    let rules = rules(a.passes_dir.as_deref())?;
    let journal = &mut log.journal;
    let named = |e: CompileError| format!("{}: {e}", model.display());
    let p =
        timed(&mut log.timings, "prepare", || Ok(prepare(&m, &how, &rules, a.keep_opset, journal).map_err(named)?))?;
    log.gather();
    if recipe.quantize.as_ref().is_some_and(|q| !q.linear_only) {
        let Sites { attentions, linears, softmaxes, .. } = &p.sites;
        if attentions.is_empty() && linears.is_empty() {
            return Err(named(CompileError::NoAttention { recipe: recipe.name.clone() }).into());
        }
        let how_close = "(`fqvit-opt explain` tells how close the rules came)";
        if attentions.is_empty() {
            log.notes.push(format!("no attention was found; the rest is quantized {how_close}"));
        } else if let Some(n) = softmaxes.first() {
            log.notes.push(format!(
                "{} Softmax of no recognised attention, in float between codes; the first is `{}` {how_close}",
                softmaxes.len(),
                p.model.graph.node(*n).name
            ));
        }
    }
    Ok((m, recipe, Some(p)))
}

/// Statistics from a file, or from running the model; with the number of samples behind them.
pub(super) fn statistics(
    p: &Prepared,
    recipe: &Recipe,
    data: &Dataset,
    indices: &[usize],
    file: Option<&Path>,
    how: Running,
    log: &mut Log,
) -> Result<StatsFile, Failure> {
    if let Some(f) = file.filter(|f| f.exists()) {
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
            CalibrateError::Runtime(e) => format!("the float model does not run: {e}"),
            other => other.to_string(),
        })?)
    })?;
    b.finish_and_clear();
    let n = indices.len() as u64 * data.batch() as u64;
    let s = StatsFile::new(p.fingerprint.clone(), data.description().to_owned(), data.is_synthetic(), n, values);
    if let Some(f) = file {
        s.write(f)?;
    }
    Ok(s)
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
    distinct(&[
        ("MODEL", Some(model_path)),
        ("--calibrate", a.data.calibrate.as_deref()),
        ("-o", Some(output)),
        ("--plan", a.plan.as_deref()),
        ("--stats", a.stats.as_deref()),
        ("--json", a.report.json.as_deref()),
        ("--html", a.report.html.as_deref()),
    ])?;
    writable(output)?;
    a.report.writable()?;
    for f in [&a.plan, &a.stats].into_iter().flatten().filter(|f| !f.exists()) {
        writable(f)?;
    }
    let mut log =
        Log { journal: if a.verify_each { Journal::keeping_models() } else { Journal::default() }, ..Log::default() };
    let (float, recipe, p) = prepared(model_path, &a.prepare, &mut log)?;
    let recipe = if a.fast { recipe.without_fitting() } else { recipe };
    let before = file_bytes(model_path, &float);
    let (Some(p), Some(_)) = (p, &recipe.quantize) else {
        return unchanged(a, (model_path, before), output, &float, &recipe, log);
    };
    let how = Running { threads: threads(a.prepare.threads), quiet: a.report.quiet };
    let data = open(&a.data, &p.model, &mut log)?;
    let all: Vec<usize> = (0..data.len()).collect();
    let measured = (a.verify.is_none() && !a.report.no_verify) || a.keep.asked();
    let (mut calib, mut held) = if measured { split_holdout(data.len()) } else { (all, Vec::new()) };
    if a.fast {
        (calib, held) = (thinned(calib, FAST_CALIBRATION), thinned(held, FAST_VERIFICATION));
    }
    let given = a.plan.as_deref().filter(|f| f.exists());
    let (plan, calibration, samples) = match given {
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
            let s = statistics(&p, &recipe, &data, &calib, a.stats.as_deref(), how, &mut log)?;
            let (what, samples) = (s.data.clone(), s.samples);
            let plan = planned(&p, &recipe, s, &mut log)?;
            (fitted(&p, &recipe, plan, (&data, &calib, &what), how, &mut log)?, what, samples)
        }
    };
    let plan = if a.keep.asked() { kept(&p, plan, (&data, &held), &a.keep, how, &mut log)? } else { plan };
    let journal = &mut log.journal;
    let quantized = timed(&mut log.timings, "rewrite", || {
        // The plan may have come from a file.
        Ok(apply(&p, &plan, journal).map_err(|e| match given {
            Some(f) => format!("{}: {e}", f.display()),
            None => e.to_string(),
        })?)
    })?;
    log.gather();
    let passes = if a.verify_each { each_pass(&data, &mut log)? } else { Vec::new() };
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
    onnx::save(validate::validate(&quantized)?, output, &SaveOptions::default())?;
    if let (Some(f), None) = (a.plan.as_deref(), given) {
        file::write(f, plan.to_yaml().as_bytes())?;
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
        synthetic: data.is_synthetic() && given.is_none() && a.stats.as_deref().is_none_or(|f| !f.exists()),
    };
    let files = (
        ModelFile { name: model_path.display().to_string(), bytes: before },
        ModelFile { name: output.display().to_string(), bytes: file_bytes(output, &quantized) },
    );
    let mut report = report(files, data_report, c, &quantized, &a.report, Some(&recipe), log);
    report.passes = passes;
    report.islands.extend(plan.islands.iter().cloned());
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
    deliver(&report, &a.report)
}

/// What `--fast` calibrates and verifies on at most.
const FAST_CALIBRATION: usize = 32;
const FAST_VERIFICATION: usize = 16;

/// At most so many of these, spread evenly.
fn thinned(all: Vec<usize>, most: usize) -> Vec<usize> {
    let take = all.len().min(most);
    (0..take).map(|i| all[i * all.len() / take]).collect()
}

/// Import and export, nothing else.
fn unchanged(
    a: &CompileArgs,
    (path, before): (&Path, u64),
    output: &Path,
    model: &Model,
    recipe: &Recipe,
    log: Log,
) -> Result<bool, Failure> {
    let valid = validate::validate(model).map_err(|e| format!("{}: {e}", path.display()))?;
    onnx::save(valid, output, &SaveOptions::default())?;
    let files = (
        ModelFile { name: path.display().to_string(), bytes: before },
        ModelFile { name: output.display().to_string(), bytes: file_bytes(output, model) },
    );
    let none = || "none".to_owned();
    let data = DataReport {
        calibration: none(),
        calibration_samples: 0,
        verification: none(),
        verification_samples: 0,
        synthetic: false,
    };
    deliver(&report(files, data, None, model, &a.report, Some(recipe), log), &a.report)
}

/// Holds every pass to what it declares, on the first sample.
fn each_pass(data: &Dataset, log: &mut Log) -> Result<Vec<PassReport>, Failure> {
    let Log { timings, journal, .. } = log;
    let moved =
        timed(timings, "verify-each", || Ok(verify_each(&journal.steps, &data.sample(0)?.inputs, data.batch())?))?;
    let declares = |n: Numerics| match n {
        Numerics::BitExact => "bit-exact".to_owned(),
        Numerics::Close { rel } => format!("within {rel:e}"),
        Numerics::Quantizes => "quantizes".to_owned(),
    };
    if let Some(m) = moved.iter().find(|m| !m.kept) {
        return Err(format!(
            "pass {} declares `{}`, but on one sample it moved output `{}` by {:e} of its largest value; nothing was \
             written. This is a fault in the pass: please report it",
            m.pass,
            declares(m.numerics),
            m.output,
            m.distance
        )
        .into());
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
    distinct(&[("MODEL", Some(&a.model)), ("--calibrate", a.data.calibrate.as_deref()), ("--stats", Some(&a.stats))])?;
    writable(&a.stats)?;
    if !a.join.is_empty() {
        let mut files = a.join.iter();
        let first = files.next().ok_or("give the files to join")?;
        let mut all = StatsFile::read(first)?;
        for f in files {
            all = all.join(StatsFile::read(f)?, f)?;
        }
        all.write(&a.stats)?;
        say!("{} samples joined into {}", all.samples, a.stats.display());
        return Ok(true);
    }
    let (_, recipe, p) = prepared(&a.model, &a.prepare, &mut log)?;
    let p = p.ok_or_else(|| format!("recipe `{}` quantizes nothing: there is nothing to calibrate", recipe.name))?;
    let data = open(&a.data, &p.model, &mut log)?;
    let mut indices: Vec<usize> = (0..data.len()).collect();
    if let Some(s) = &a.shard {
        let (i, n) = s
            .split_once('/')
            .and_then(|(i, n)| Some((i.parse::<usize>().ok()?, n.parse::<usize>().ok()?)))
            .filter(|(i, n)| *i >= 1 && i <= n)
            .ok_or_else(|| format!("--shard {s}: write it as 2/4, the second of four parts"))?;
        indices.retain(|k| k % n == i - 1);
    }
    let how = Running { threads: threads(a.prepare.threads), quiet: a.quiet };
    let s = statistics(&p, &recipe, &data, &indices, None, how, &mut log)?;
    s.write(&a.stats)?;
    for n in &log.notes {
        say!("note: {n}");
    }
    say!("{} values over {} samples written to {}", s.values.len(), s.samples, a.stats.display());
    Ok(true)
}

pub fn plan(a: &PlanArgs) -> Result<bool, Failure> {
    let mut log = Log::default();
    distinct(&[
        ("MODEL", Some(&a.model)),
        ("--calibrate", a.data.calibrate.as_deref()),
        ("--plan", Some(&a.plan)),
        ("--stats", a.stats.as_deref()),
    ])?;
    writable(&a.plan)?;
    if let Some(f) = a.stats.as_deref().filter(|f| !f.exists()) {
        writable(f)?;
    }
    let (_, recipe, p) = prepared(&a.model, &a.prepare, &mut log)?;
    let p = p.ok_or_else(|| format!("recipe `{}` quantizes nothing: there is nothing to plan", recipe.name))?;
    let data = open(&a.data, &p.model, &mut log)?;
    let indices: Vec<usize> = (0..data.len()).collect();
    let how = Running { threads: threads(a.prepare.threads), quiet: a.quiet };
    let s = statistics(&p, &recipe, &data, &indices, a.stats.as_deref(), how, &mut log)?;
    let what = s.data.clone();
    let plan = planned(&p, &recipe, s, &mut log)?;
    let plan = fitted(&p, &recipe, plan, (&data, &indices, &what), how, &mut log)?;
    file::write(&a.plan, plan.to_yaml().as_bytes())?;
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
    distinct(&[
        ("the float model", Some(&a.float)),
        ("--data", a.data.calibrate.as_deref()),
        ("--outputs", a.outputs.as_deref()),
        ("--json", a.report.json.as_deref()),
        ("--html", a.report.html.as_deref()),
    ])?;
    if let Some(p) = &a.outputs {
        distinct(&[("the quantized model", Some(&a.quantized)), ("--outputs", Some(p))])?;
        writable(p)?;
    }
    a.report.writable()?;
    let (mut float, _) = unpacked(&load(&a.float, &mut log.notes)?)?;
    // As `compile` runs it: tract lacks many operators in half precision. What can not be widened is run as it is.
    if narrow_floats(&float).is_some() && widen_floats(&mut float).is_ok() {
        log.notes.push("the float model computes in half precision; it is run in float32".into());
    }
    for pass in BEFORE_A_RUN {
        pass.run(&mut float)?;
    }
    let (quantized, _) = unpacked(&load(&a.quantized, &mut log.notes)?)?;
    let data = open(&a.data, &float, &mut log)?;
    let indices: Vec<usize> = (0..data.len()).collect();
    let how = Running { threads: threads(a.threads), quiet: a.report.quiet };
    let taps: Vec<String> = shared_sums(&float, &quantized);
    let c = side_by_side((&float, &quantized), &data, &indices, &taps, how, &mut log)?;
    if let Some(p) = &a.outputs {
        write_outputs(p, &c.quantized)?;
    }
    let data_report = DataReport {
        calibration: "not part of this run".into(),
        calibration_samples: 0,
        verification: data.description().to_owned(),
        verification_samples: indices.len() as u64 * data.batch() as u64,
        synthetic: data.is_synthetic(),
    };
    let files = (
        ModelFile { name: a.float.display().to_string(), bytes: file_bytes(&a.float, &float) },
        ModelFile { name: a.quantized.display().to_string(), bytes: file_bytes(&a.quantized, &quantized) },
    );
    let report = report(files, data_report, Some(c), &quantized, &a.report, None, log);
    deliver(&report, &a.report)
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

fn write_outputs(path: &Path, outputs: &IndexMap<String, Array>) -> Result<(), Failure> {
    let f = Pending::create(path)?;
    let mut w = NpzWriter::new(f.file().try_clone()?);
    for (name, a) in outputs {
        match a {
            Array::I64(x) => w.add_array(name.as_str(), x)?,
            Array::I32(x) => w.add_array(name.as_str(), x)?,
            _ => {
                let x = ndarray::ArrayD::from_shape_vec(a.dims(), a.f32s().into_owned())?;
                w.add_array(name.as_str(), &x)?;
            }
        }
    }
    w.finish()?;
    Ok(f.commit()?)
}
