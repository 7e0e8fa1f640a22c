//! The stages of a compilation, each with its time, its notes and its progress. [`Compiler`](crate::Compiler) goes through
//! them; programs that stop in between call them one by one.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::error::CompilerError;
use super::refine::{FitData, refine};
use super::{CompileError, Journal, Prepared, inputs_given, make_plans, prepare, suits};
use crate::budget::{self, Stop};
use crate::calibrate::data::{Arrays, DataOptions, Dataset, InputSpec};
use crate::calibrate::run::{CalibrateError, Observed, observe};
use crate::calibrate::sizes::settled;
use crate::calibrate::stats::{Origin, StatsFile};
use crate::file::{self, ReadError};
use crate::ir::{Dim, Model, validate};
use crate::pattern::RuleSet;
use crate::plan::files::numbers_path;
use crate::plan::sites::{Sites, WIDE};
use crate::plan::{Layer, PlanError, QuantPlan, Rounding, planner};
use crate::recipe::Recipe;
use crate::runtime::Array;
use crate::verify::coverage;
use crate::verify::judge::{Chosen, Judge, Judged};
use crate::verify::report::Timing;
use crate::verify::run::{SideBySide, compare};
use crate::verify::speed::{Effort, Speed, measure};

/// What a long stage tells while it works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// So many of so many samples or parts are done; at the beginning 0.
    Step { what: &'static str, done: usize, of: usize },
    /// Something that people want to know before the end.
    Note(&'a str),
}

/// Called with what happens, from any thread.
pub type Listener = Arc<dyn Fn(Event<'_>) + Send + Sync>;

/// How models are run.
#[derive(Clone, Copy)]
pub struct Running<'a> {
    pub threads: usize,
    /// Told what happens, from any thread.
    pub tell: &'a (dyn Fn(Event<'_>) + Sync),
    /// Looked at between samples.
    pub stop: &'a Stop,
}

impl Running<'_> {
    /// Tells the beginning of a stage; what it returns is called with the number done.
    pub fn steps(&self, what: &'static str, of: usize) -> impl Fn(usize) + Sync {
        let tell = self.tell;
        tell(Event::Step { what, done: 0, of });
        move |done| tell(Event::Step { what, done, of })
    }
}

/// One for each processor: what runs a model where nobody says otherwise.
pub fn all_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// What is gathered on the way to a report.
#[derive(Debug, Default)]
pub struct Log {
    pub notes: Vec<String>,
    pub timings: Vec<Timing>,
    pub journal: Journal,
}

impl Log {
    /// Moves what the passes noted to the other notes.
    pub fn gather(&mut self) {
        self.notes.append(&mut self.journal.notes);
    }
}

/// Runs a stage and keeps its time.
///
/// # Errors
/// That of the stage.
pub fn timed<T, E>(timings: &mut Vec<Timing>, stage: &str, f: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    let t = Instant::now();
    let r = f()?;
    timings.push(Timing { stage: stage.to_owned(), seconds: t.elapsed().as_secs_f64() });
    Ok(r)
}

/// The samples of a run.
pub(super) struct Samplings {
    pub data: Dataset,
    /// Of these, the numbers of those to calibrate on, and of those held back.
    pub calib: Vec<usize>,
    pub held: Vec<usize>,
    /// Other ones to verify on, and which of them.
    pub other: Option<(Dataset, Vec<usize>)>,
}

/// Samples for a model.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    /// How they are made, and where they lie.
    pub options: DataOptions,
    /// Arrays in place of [`DataOptions::calibrate`].
    pub arrays: Option<Arrays>,
}

impl From<DataOptions> for Samples {
    fn from(options: DataOptions) -> Samples {
        Samples { options, arrays: None }
    }
}

/// Opens a data set and refuses data that does not fit the model.
///
/// # Errors
/// If it cannot be read, or is not what the model's inputs take.
pub fn open(samples: &Samples, m: &Model, log: &mut Log) -> Result<Dataset, CompilerError> {
    let specs = inputs_given(&m.graph, &samples.options).map_err(CompilerError::from);
    let specs = match &samples.options.model {
        Some(file) => specs.map_err(|e| e.within(&file.display().to_string()))?,
        None => specs?,
    };
    let d = match &samples.arrays {
        Some(a) => Dataset::of_arrays(a, &samples.options, &specs)?,
        None => {
            let found = settled(&samples.options, validate::validate(m)?, &specs)?;
            if found.shape != samples.options.shape {
                let sizes = found.shape.join(" ");
                log.notes.push(format!("the model leaves sizes open, and runs with {sizes}; --shape gives others"));
            }
            Dataset::open(&found, &specs)?
        }
    };
    let d = classes_known(d, m);
    log.notes.extend(d.notes().iter().cloned());
    Ok(d)
}

/// Folders of pictures in the order of their names are the model's classes only if there is one for each.
fn classes_known(d: Dataset, m: &Model) -> Dataset {
    let g = &m.graph;
    let classes = |v| match &g.value(v).ty.as_ref()?.shape.as_ref()?[..] {
        [_, Dim::Known(n)] => usize::try_from(*n).ok(),
        _ => None,
    };
    let of_model: Vec<usize> = g.outputs().iter().filter_map(|v| classes(*v)).collect();
    match (d.class_folders(), of_model.first()) {
        (Some(k), Some(n)) if !of_model.contains(&k) => d.unlabelled(format!(
            "{k} folders of pictures, but the model tells {n} classes: which is which is not known, so there is no top-1; name \
             folders by the number of their class, or write a labels.txt"
        )),
        _ => d,
    }
}

/// Canonical form; `None` if the recipe leaves the model as it is.
///
/// # Errors
/// If a pass fails, the recipe does not fit the model, or nothing is found that it could quantize; `name` is the model's in
/// these.
pub fn prepared(
    m: &Model,
    name: &str,
    recipe: &Recipe,
    rules: &RuleSet,
    keep_opset: bool,
    log: &mut Log,
) -> Result<Option<Prepared>, CompilerError> {
    let Some(how) = &recipe.prepare else { return Ok(None) };
    let named = |e: CompileError| CompilerError::from(e).within(name);
    let Log { timings, journal, .. } = log;
    let p = timed(timings, "prepare", || prepare(m, how, rules, keep_opset, journal).map_err(named))?;
    log.gather();
    let wide: Vec<_> = p.sites.islands.iter().filter(|(_, why)| why == WIDE).map(|(n, _)| *n).collect();
    if let Some(n) = wide.first().map(|n| p.model.graph.node(*n)).filter(|_| recipe.quantize.is_some()) {
        let (count, node, op) = (wide.len(), p.model.graph.label(n), n.op.to_string());
        if p.sites.linears.is_empty() && p.sites.attentions.is_empty() {
            return Err(named(CompileError::Wide { count, node, op }));
        }
        log.notes
            .push(format!("{count} operators compute in float64 and stay as they are; the first is `{node}` ({op})"));
    }
    suits(&p, recipe, keep_opset).map_err(named)?;
    if recipe.quantize.as_ref().is_some_and(|q| !q.linear_only) {
        let Sites { attentions, linears, softmaxes, .. } = &p.sites;
        if attentions.is_empty() && linears.is_empty() {
            return Err(named(nothing_found(&p, recipe)));
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
    Ok(Some(p))
}

/// Why there is nothing to work on: there is nothing, or it is where the passes do not go.
fn nothing_found(p: &Prepared, recipe: &Recipe) -> CompileError {
    match coverage::in_bodies(&p.model.graph) {
        Some((count, node, op)) => CompileError::InBodies { count, node, op: op.to_string() },
        None => CompileError::NoAttention { recipe: recipe.name.clone() },
    }
}

/// What to do where sizes were made up, and may be why a model does not run.
pub(super) fn made_up(data: &Dataset) -> String {
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
        "; the model leaves sizes open, and {} was made up, which may not fit together: give the sizes that it is for, a --shape \
         {}=... for each input, or data",
        tried.join(" "),
        names[0]
    )
}

/// Statistics from a file, if they are of this model.
///
/// # Errors
/// If the file is none, is damaged, or holds those of another model or of a part of the data.
pub fn read_statistics(file: &Path, p: &Prepared, log: &mut Log) -> Result<StatsFile, CompilerError> {
    let s = StatsFile::read(file)?;
    s.check(file, &p.fingerprint)?;
    log.notes.push(format!("statistics of {} samples read from {}", s.samples, file.display()));
    Ok(s)
}

/// A plan from a file, with the numbers that lie beside it.
///
/// # Errors
/// If one of the files cannot be read, or they are no plan.
pub fn read_plan(file: &Path) -> Result<QuantPlan, CompilerError> {
    let name = file.display().to_string();
    let wrong =
        |path: &Path, e: ReadError| PlanError::Read { path: path.display().to_string(), message: e.to_string() };
    // With its numbers in it, a plan is as large as its model.
    let text = file::read(file).map_err(|e| wrong(file, e))?;
    let text = file::as_text(&text).map_err(|e| wrong(file, e))?;
    let beside = numbers_path(file);
    let numbers = match file::read(&beside) {
        Ok(bytes) => Some(bytes),
        Err(ReadError::Io(e)) if e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => return Err(wrong(&beside, e).into()),
    };
    Ok(QuantPlan::from_files(text, &name, numbers.as_deref())?)
}

/// The only part of data that are not divided.
pub const WHOLE: (u32, u32) = (1, 1);

/// Statistics from running the model over samples, which are part `shard` of the data.
///
/// # Errors
/// If the recipe quantizes nothing, a sample cannot be made, or the model does not run or stay finite on it.
pub fn statistics(
    p: &Prepared,
    recipe: &Recipe,
    (data, indices): (&Dataset, &[usize]),
    shard: (u32, u32),
    how: Running<'_>,
    log: &mut Log,
) -> Result<StatsFile, CompilerError> {
    if data.is_synthetic() {
        (how.tell)(Event::Note(&format!(
            "no calibration data was given; {} synthetic samples are made up. Give --calibrate for a trustworthy result.",
            data.len()
        )));
    }
    let nothing = || CompilerError::Nothing { recipe: recipe.name.clone(), what: "" };
    let quant = recipe.quantize.as_ref().ok_or_else(nothing)?;
    let watches = planner::watches(&p.model, &p.sites, quant);
    let done = how.steps("calibrating", indices.len());
    let Observed { stats, ignored } = timed(&mut log.timings, "calibrate", || {
        let model = validate::validate(&p.model)?;
        observe(model, data, indices, &watches, how.threads, &done).map_err(|e| match e {
            CalibrateError::Runtime(source) => CompilerError::Float { source, hint: made_up(data) },
            other => other.into(),
        })
    })?;
    if let Some(first) = ignored.first() {
        log.notes.push(format!(
            "{} values hold NaN or infinity in places that no output depends on (the first is `{first}`); these are left out",
            ignored.len()
        ));
    }
    let n = indices.len() as u64 * data.batch() as u64;
    let from = Origin {
        data: data.description().to_owned(),
        synthetic: data.is_synthetic(),
        how: data.how().to_owned(),
        source: data.fingerprint(),
        shard,
    };
    Ok(StatsFile::new(p.fingerprint.clone(), from, n, stats))
}

/// Decides, from statistics.
///
/// # Errors
/// As [`make_plan`](super::make_plan).
pub fn planned(
    p: &Prepared,
    recipe: &Recipe,
    stats: StatsFile,
    how: Running<'_>,
    log: &mut Log,
) -> Result<QuantPlan, CompilerError> {
    Ok(planned_twice(p, (recipe, None), stats, how, log)?.0)
}

/// As [`planned`]; with it, its layers as the weights of `other` would have them.
///
/// # Errors
/// As [`make_plan`](super::make_plan).
pub fn planned_twice(
    p: &Prepared,
    (recipe, other): (&Recipe, Option<&Recipe>),
    stats: StatsFile,
    how: Running<'_>,
    log: &mut Log,
) -> Result<(QuantPlan, Vec<Layer>), CompilerError> {
    let done = how.steps("planning", 1);
    let alone = stats.synthetic.then(|| recipe.without_data());
    let recipe = alone.as_ref().unwrap_or(recipe);
    let plan = timed(&mut log.timings, "plan", || Ok(make_plans(p, &stats.into_map(), recipe, other)?));
    budget::give_back();
    done(1);
    plan
}

/// The plan with weights fitted to the codes they read, where the recipe wants that and there is data for it: with
/// statistics from a file and no data beside them, weights keep nearest rounding. `what` says what the statistics are of.
///
/// # Errors
/// As [`refine`].
pub fn fitted(
    p: &Prepared,
    recipe: &Recipe,
    plan: QuantPlan,
    (data, indices, what): (&Dataset, &[usize], &str),
    how: Running<'_>,
    log: &mut Log,
) -> Result<QuantPlan, CompilerError> {
    let Some(weights) = recipe.quantize.as_ref().map(|q| &q.weights).filter(|w| w.rounding == Rounding::Gptq) else {
        return Ok(plan);
    };
    if data.is_synthetic() && what != data.description() {
        let data = "give the data the statistics were made from (--calibrate) to have them fitted";
        log.notes.push(format!("weights are rounded to the nearest code; {data}"));
        return Ok(plan);
    }
    let done = how.steps("fitting weights", indices.len());
    let fit = FitData { data, indices, threads: how.threads };
    timed(&mut log.timings, "fit weights", || Ok(refine(p, &plan, weights, fit, &done)?))
}

/// Runs both models over samples.
///
/// # Errors
/// If one is invalid, or as [`compare`].
pub fn side_by_side(
    (float, quantized): (&Model, &Model),
    data: &Dataset,
    indices: &[usize],
    taps: &[String],
    how: Running<'_>,
    log: &mut Log,
) -> Result<SideBySide, CompilerError> {
    let done = how.steps("verifying", indices.len());
    let compared = timed(&mut log.timings, "verify", || {
        let (f, q) = (validate::validate(float)?, validate::validate(quantized)?);
        Ok::<_, CompilerError>(compare(f, q, data, indices, taps, how.threads, &done)?)
    })?;
    let nothing = |output| format!("output `{output}` has no elements in any sample, so nothing of it was compared");
    log.notes.extend(compared.empty.iter().map(nothing));
    Ok(compared)
}

/// Runs both models in another runtime, over some of the same samples; `calibration` is for what that runtime's own quantization
/// makes of the float model.
///
/// # Errors
/// As [`Judge::judge`].
pub fn second_opinion(
    judge: &Judge,
    models: (&Model, &Model),
    on: Chosen<'_>,
    calibration: Option<Chosen<'_>>,
    how: Running<'_>,
    log: &mut Log,
) -> Result<Judged, CompilerError> {
    let done = how.steps("running both in onnxruntime", 1);
    let (judged, why) =
        timed(&mut log.timings, "judge", || Ok::<_, CompilerError>(judge.judge(models, on, calibration)?))?;
    done(1);
    log.notes
        .extend(why.map(|w| format!("onnxruntime's own quantization of this model fails, so it is not shown: {w}")));
    Ok(judged)
}

/// Times both models; a note says why there are no times.
pub fn timing((float, quantized): (&Model, &Model), data: &Dataset, log: &mut Log) -> Option<Speed> {
    let times = timed(&mut log.timings, "bench", || {
        let said = |e: &dyn std::fmt::Display| e.to_string();
        let f = validate::validate(float).map_err(|e| said(&e))?;
        let q = validate::validate(quantized).map_err(|e| said(&e))?;
        let sample = data.sample(0).map_err(|e| said(&e))?;
        measure(f, q, &sample.inputs, data.batch(), Effort::default()).map_err(|(what, e)| format!("{what} model: {e}"))
    });
    times.map_err(|e: String| log.notes.push(format!("the models were not timed: {e}"))).ok()
}
