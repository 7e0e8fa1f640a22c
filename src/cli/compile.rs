//! The main job and its parts: calibrate, plan, verify.

use std::path::Path;

use indexmap::IndexMap;
use ndarray_npy::NpzWriter;

use super::accept;
use super::args::{CalibrateArgs, CompileArgs, PlanArgs, PrepareArgs, VerifyArgs};
use super::files::{Files, is_std};
use super::{Failure, Progress, deliver, load, on, outline, threads};
use crate::budget::Stop;
use crate::calibrate::data::DataOptions;
use crate::calibrate::stats::StatsFile;
use crate::compile::Prepared;
use crate::compile::checked::checked;
use crate::compile::comparison::{Comparison, Read};
use crate::compile::compiler::{Compiler, Verification};
use crate::compile::outline::Outline;
use crate::compile::stages::{
    Log, Running, WHOLE, fitted, open, planned, prepared, read_plan, read_statistics, statistics,
};
use crate::file::{Batch, Pending};
use crate::infer;
use crate::ir::{Model, validate};
use crate::onnx::{self, SaveOptions};
use crate::passes::is_quantized;
use crate::pattern::RuleSet;
use crate::plan::QuantPlan;
use crate::recipe::Recipe;
use crate::runtime::Array;
use crate::verify::report::{ModelFile, Report};

/// Recipe and rules, with what the flags say otherwise.
fn setup(a: &PrepareArgs) -> Result<(Recipe, RuleSet), Failure> {
    let recipe = Recipe::find(a.recipe(), a.passes_dir.as_deref())?;
    let recipe = recipe.written_for(a.target.map(Into::into), a.assume_vnni);
    Ok((recipe, RuleSet::with_folder(a.passes_dir.as_deref())?))
}

/// The recipe for a plan: the one that is named, or else the one that made it, as far as that is known here.
fn of_plan(a: &PrepareArgs, plan: &QuantPlan) -> Result<Option<Recipe>, Failure> {
    let dir = a.passes_dir.as_deref();
    Ok(match &a.recipe {
        Some(name) => Some(Recipe::find(name, dir)?),
        None => Recipe::of_plan(&plan.recipe, dir),
    })
}

/// A model in canonical form, for the commands that do a part of the job; `what` ends the message that there is none.
pub(super) fn begun(
    model: &Path,
    (a, data): (&PrepareArgs, &DataOptions),
    what: &'static str,
    files: &mut Files,
    log: &mut Log,
) -> Result<(Recipe, Prepared), Failure> {
    let (mut m, _) = load("MODEL", model, files, &mut log.notes)?;
    infer::declare(&mut m, &data.said_shapes()?);
    let (recipe, rules) = setup(a)?;
    let p = prepared(&m, &model.display().to_string(), &recipe, &rules, a.keep_opset, log)?;
    let p = p.ok_or_else(|| format!("recipe `{}` quantizes nothing: there is nothing to {what}", recipe.name))?;
    Ok((recipe, p))
}

/// A file of `--stats` or `--plan`, by whether it was there when the call began.
pub(super) fn split(path: Option<&Path>, is_there: bool) -> (Option<&Path>, Option<&Path>) {
    if is_there { (path, None) } else { (None, path) }
}

pub fn compile(a: &CompileArgs) -> Result<bool, Failure> {
    let model_path = a.model.as_deref().ok_or("give the model to compile")?;
    let output = a.output.as_deref().ok_or("give the output with -o")?;
    let mut files = Files::default();
    files.reads("MODEL", model_path)?;
    let options = files.samples("--calibrate", &a.data, model_path)?;
    files.data("--verify", a.verify.as_deref())?;
    files.preparation(&a.prepare);
    files.model(output)?;
    let (plan_given, plan_made) = split(a.plan.as_deref(), files.either_plan(a.plan.as_deref())?);
    let (stats_given, stats_made) = split(a.stats.as_deref(), files.either("--stats", a.stats.as_deref())?);
    if let Some(f) = &a.accept.accept_state {
        files.writes("--accept-state", f)?;
    }
    a.accept.wanted().map_or(Ok(()), |(command, _)| accept::check(command))?;
    a.check([plan_made, stats_made])?;
    a.report.check()?;
    files.report(&a.report)?;
    files.check()?;
    let second = a.report.second()?;
    let mut notes = Vec::new();
    let (float, before) = load("MODEL", model_path, &mut files, &mut notes)?;
    let name = model_path.display().to_string();
    let plan = plan_given.map(|f| Ok::<_, Failure>((read_plan(f)?, f.display().to_string()))).transpose()?;
    let (default, rules) = setup(&a.prepare)?;
    let verification = match &a.verify {
        _ if a.report.no_verify => Verification::None,
        v => on(v.as_deref(), &options),
    };
    let progress = Progress::new(a.report.quiet);
    let accepted =
        a.accept.wanted().map(|w| accept::search(a, w, (&float, &rules), &options, &progress)).transpose()?;
    notes.extend(accepted.iter().flat_map(|found| found.notes.iter().cloned()));
    let recipe = match (&accepted, &plan) {
        (Some(found), _) => Some(found.recipe.clone()),
        (None, Some((plan, _))) => of_plan(&a.prepare, plan)?,
        (None, None) => Some(default),
    };
    let mut job = Compiler::new(float)
        .named(&name, before)
        .noted(notes)
        .rules(rules)
        .keep_opset(a.prepare.keep_opset)
        .assume_vnni(a.prepare.assume_vnni)
        .calibrate(options.clone())
        .verify(verification)
        .limits(a.report.limits())
        .fast(a.fast)
        .verify_each(a.verify_each)
        .blame(a.blame)
        .bench(!a.report.no_bench)
        .look_closer(a.report.is_read_closely())
        .threads(threads(a.prepare.threads))
        .tell(progress.listener());
    if let Some(target) = a.prepare.target {
        job = job.target(target.into());
    }
    job = recipe.into_iter().fold(job, Compiler::recipe);
    let measured = accepted.as_ref().map(|found| found.check.clone());
    if let Some(found) = accepted {
        let (data, samples) = found.calibration;
        job = job.plan(found.plan, "of the search").calibrated_on(data, samples);
    }
    if let Some((plan, name)) = plan {
        job = job.plan(plan, name);
    }
    job = stats_given.into_iter().fold(job, Compiler::statistics);
    job = stats_made.into_iter().fold(job, Compiler::statistics_to);
    job = a.kept().into_iter().fold(job, Compiler::keep);
    job = a.stop_after.iter().fold(job, Compiler::stop_after);
    job = second.into_iter().fold(job, Compiler::judge);
    if a.dry_run {
        return outlined(&job.outline()?, a, files);
    }
    let done = job.run()?;
    if !done.finished {
        written(&done.model, output, &mut files)?;
        files.commit()?;
        if !a.report.quiet {
            super::log::plain("note", &format!("stopped as asked; {} is no finished model", output.display()));
        }
        return Ok(true);
    }
    done.statistics.into_iter().try_for_each(|s| files.batch().map(|b| b.add(s)))?;
    let after = written(&done.model, output, &mut files);
    let after = if done.plan.is_some() { after } else { after.map_err(|e| format!("{name}: {e}").into()) }?;
    if let (Some(f), Some(plan)) = (plan_made, &done.plan) {
        files.write_plan(f, plan)?;
    }
    let quantized = ModelFile { name: output.display().to_string(), bytes: after };
    let mut report = Report { quantized, ..done.report };
    report.checks.extend(measured);
    deliver(&report, &a.report, files)
}

/// Tells what would be done, and writes that as JSON where it is asked for.
fn outlined(o: &Outline, a: &CompileArgs, mut files: Files) -> Result<bool, Failure> {
    if let Some(f) = &a.report.json {
        let mut json = serde_json::to_string_pretty(o)?;
        json.push('\n');
        files.write(f, json.as_bytes())?;
    }
    let taken = files.stdout_is_taken();
    files.commit()?;
    if !taken {
        say_raw!("{}", outline::text(o, a.output.as_deref()));
    }
    Ok(true)
}

/// Holds the model ready; returns the bytes of its files.
fn written(m: &Model, output: &Path, files: &mut Files) -> Result<u64, Failure> {
    let valid = validate::validate(m)?;
    Ok(match files.printed(output) {
        Some(to) => onnx::write_to(valid, to)?,
        None => onnx::stage(valid, output, &SaveOptions::default(), files.batch()?)?,
    })
}

pub fn calibrate(a: &CalibrateArgs) -> Result<bool, Failure> {
    let mut log = Log::default();
    let mut files = Files::default();
    files.reads("MODEL", &a.model)?;
    let options = files.samples("--calibrate", &a.data, &a.model)?;
    files.preparation(&a.prepare);
    a.join.iter().try_for_each(|f| files.reads("--join", f))?;
    files.writes("--stats", &a.stats)?;
    files.check()?;
    if !a.join.is_empty() {
        return join(a, files);
    }
    let (recipe, p) = begun(&a.model, (&a.prepare, &a.data), "calibrate", &mut files, &mut log)?;
    let data = open(&options.into(), &p.model, &mut log)?;
    let (i, n) = a.shard.unwrap_or(WHOLE);
    let indices: Vec<usize> = (0..data.len()).filter(|k| k % n as usize == i as usize - 1).collect();
    if indices.is_empty() {
        return Err(format!("--shard {i}/{n}: there are {} samples; divide them into fewer parts", data.len()).into());
    }
    let (progress, stop) = (Progress::new(a.quiet), Stop::default());
    let how = Running { threads: threads(a.prepare.threads), tell: &*progress.listener(), stop: &stop };
    checked((&data, &indices), &p.model, how, &mut log)?;
    let s = statistics(&p, &recipe, (&data, &indices), (i, n), how, &mut log)?;
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
    let mut log = Log::default();
    let [first, others @ ..] = &a.join[..] else { return Err("give the files to join".into()) };
    if others.is_empty() {
        return Err(format!("--join {}: one file is joined with nothing; give all parts", first.display()).into());
    }
    let mut all = StatsFile::read(first)?;
    let (_, p) = begun(&a.model, (&a.prepare, &a.data), "join statistics for", &mut files, &mut log)?;
    all.of_model(first, &p.fingerprint)?;
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
    let options = files.samples("--calibrate", &a.data, &a.model)?;
    files.preparation(&a.prepare);
    files.writes_plan(&a.plan)?;
    let (stats_given, stats_made) = split(a.stats.as_deref(), files.either("--stats", a.stats.as_deref())?);
    files.check()?;
    let (recipe, p) = begun(&a.model, (&a.prepare, &a.data), "plan", &mut files, &mut log)?;
    let data = open(&options.into(), &p.model, &mut log)?;
    let indices: Vec<usize> = (0..data.len()).collect();
    let (progress, stop) = (Progress::new(a.quiet), Stop::default());
    let how = Running { threads: threads(a.prepare.threads), tell: &*progress.listener(), stop: &stop };
    checked((&data, &indices), &p.model, how, &mut log)?;
    let s = match stats_given {
        Some(f) => read_statistics(f, &p, &mut log)?,
        None => statistics(&p, &recipe, (&data, &indices), WHOLE, how, &mut log)?,
    };
    if let Some(f) = stats_made {
        files.write(f, &s.encode())?;
    }
    let what = s.data.clone();
    let plan = planned(&p, &recipe, s, how, &mut log)?;
    let plan = fitted(&p, &recipe, plan, (&data, &indices, &what), how, &mut log)?;
    if !is_std(&a.plan) && a.plan.exists() {
        log.notes.push(format!("{} was there, and is written anew", a.plan.display()));
    }
    files.write_plan(&a.plan, &plan)?;
    files.commit()?;
    if is_std(&a.plan) {
        log.notes.iter().for_each(|n| super::log::note(n));
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
    let mut notes = Vec::new();
    let mut files = Files::default();
    files.reads("the float model", &a.float)?;
    files.reads("the quantized model", &a.quantized)?;
    let options = files.samples("--data", &a.data, &a.float)?;
    a.outputs.iter().try_for_each(|p| files.writes("--outputs", p))?;
    if a.report.no_verify {
        return Err("--no-verify: comparing is all that `verify` does; `bench` times the models alone".into());
    }
    if a.report.baseline {
        return Err("--baseline: `verify` has no calibration data; compile with --judge onnxruntime --baseline".into());
    }
    files.report(&a.report)?;
    files.check()?;
    let second = a.report.second()?;
    let (float, before) = load("the float model", &a.float, &mut files, &mut notes)?;
    let (quantized, after) = load("the quantized model", &a.quantized, &mut files, &mut notes)?;
    if is_quantized(&float) && !is_quantized(&quantized) {
        let (q, f) = (a.float.display(), a.quantized.display());
        return Err(format!("{q} is quantized and {f} is not: give the float model first").into());
    }
    let read = |model: Model, path: &Path, bytes: u64| {
        let file = ModelFile { name: path.display().to_string(), bytes };
        Read { model, file }
    };
    let progress = Progress::new(a.report.quiet);
    let job = Comparison::new(read(float, &a.float, before), read(quantized, &a.quantized, after))
        .noted(notes)
        .on(options)
        .limits(a.report.limits())
        .bench(!a.report.no_bench)
        .look_closer(a.report.is_read_closely())
        .threads(threads(a.threads))
        .tell(progress.listener());
    let done = second.into_iter().fold(job, Comparison::judge).run()?;
    if let Some(p) = &a.outputs {
        stage_outputs(p, &done.outputs, files.batch()?)?;
    }
    deliver(&done.report, &a.report, files)
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
