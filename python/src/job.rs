//! Long work on a thread of its own, while the thread that called waits for signals and hands progress on.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use fqvit_opt::budget::{self, Stop};
use fqvit_opt::calibrate::data::{DataOptions, Exif, Fit, FixedInput, FixedValue, Interpolation, Preset};
use fqvit_opt::compile::comparison::{Comparison, Read};
use fqvit_opt::compile::compiler::{self, Compiler, Limits, Listener, Verification};
use fqvit_opt::compile::error::CompilerError;
use fqvit_opt::compile::keep::Keep;
use fqvit_opt::compile::mixed::{Goal, Size};
use fqvit_opt::compile::stages::{Event, Samples, all_threads};
use fqvit_opt::file::{Ledger, Pending};
use fqvit_opt::ir::validate::validate;
use fqvit_opt::onnx::{self, SaveOptions};
use fqvit_opt::pattern::RuleSet;
use fqvit_opt::plan::parts::By;
use fqvit_opt::plan::precision::Precision;
use fqvit_opt::plan::{QuantPlan, Target};
use fqvit_opt::recipe::Recipe;
use fqvit_opt::verify::judge::Judge;
use fqvit_opt::verify::report::{ModelFile, Report};
use pyo3::conversion::FromPyObjectOwned;
use pyo3::exceptions::{PyKeyError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};

use crate::errors::{Error, PlanError, raise, raised};
use crate::handle::{Held, out};
use crate::model::{Model, absolute};
use crate::samples::Arrays;

/// How often signals are looked at.
const TICK: Duration = Duration::from_millis(50);
/// Bytes of the stack of each thread.
const STACK: usize = 16 << 20;
/// How long work that was asked to stop is waited for. It ends by itself at the next sample, and holds nothing that anybody
/// else needs.
const LEAVE: Duration = Duration::from_secs(2);

enum Message<T> {
    Step(&'static str, usize, usize),
    Note(String),
    Done(Result<T, CompilerError>),
    Fault(String),
}

/// Does `work` on threads of its own, without the interpreter's lock. The pool that all calls of a process could share would hang
/// in a child that is forked later: a fork copies no threads, and the child would wait for those of its parent. `progress` is called here, with the stage and the numbers of what
/// is done and what there is, or with a note.
pub fn run<T: Send + 'static>(
    py: Python<'_>,
    threads: usize,
    progress: Option<&Bound<'_, PyAny>>,
    work: impl FnOnce(Listener, Stop) -> Result<T, CompilerError> + Send + 'static,
) -> PyResult<T> {
    let (to, from) = channel();
    let stop = Stop::default();
    let told = progress.is_some();
    let (listener, its) = (listener(to.clone(), told), stop.clone());
    let body = move || {
        let done = catch_unwind(AssertUnwindSafe(|| work(listener, its)));
        // Whoever has left needs no answer.
        let _ = to.send(match done {
            Ok(r) => Message::Done(r),
            Err(panic) => Message::Fault(budget::panic_message(&*panic)),
        });
    };
    let none = |e: String| Error::new_err(format!("no thread can be started: {e}"));
    let pool = pool(threads).map_err(none)?;
    std::thread::Builder::new()
        .name("fqvit-opt".into())
        .spawn(move || pool.install(body))
        .map_err(|e| none(e.to_string()))?;
    let from = std::sync::Mutex::new(from);
    let next = |wait: Duration| py.detach(|| from.lock().expect("one thread alone").recv_timeout(wait));
    let leave = |e: PyErr| {
        stop.ask();
        let begin = Instant::now();
        while begin.elapsed() < LEAVE && !matches!(next(TICK), Ok(Message::Done(_) | Message::Fault(_))) {}
        Err(e)
    };
    loop {
        let said = match next(TICK) {
            Ok(Message::Done(r)) => return r.map_err(|e| raised(&e)),
            Ok(Message::Fault(text)) => {
                return Err(Error::new_err(format!(
                    "the program has a fault: {text}. Please report it with the model"
                )));
            }
            Ok(Message::Step(what, done, of)) => progress.map_or(Ok(()), |p| p.call1((what, done, of)).map(drop)),
            Ok(Message::Note(text)) => progress.map_or(Ok(()), |p| p.call1((text, 0, 0)).map(drop)),
            Err(RecvTimeoutError::Timeout) => Ok(()),
            Err(RecvTimeoutError::Disconnected) => return Err(Error::new_err("the work ended without an answer")),
        };
        if let Err(e) = said.and_then(|()| py.check_signals()) {
            return leave(e);
        }
    }
}

/// Threads for one call: no more than there are processors, however many samples are to run at once.
pub fn pool(threads: usize) -> Result<rayon::ThreadPool, String> {
    let n = threads.min(all_threads());
    rayon::ThreadPoolBuilder::new().num_threads(n).stack_size(STACK).build().map_err(|e| e.to_string())
}

fn listener<T: Send + 'static>(to: Sender<Message<T>>, told: bool) -> Listener {
    Arc::new(move |e| {
        let message = match e {
            _ if !told => return,
            Event::Step { what, done, of } => Message::Step(what, done, of),
            Event::Note(text) => Message::Note(text.to_owned()),
        };
        let _ = to.send(message);
    })
}

/// One entry of a dict that has them all.
fn item<'py, T: FromPyObjectOwned<'py>>(d: &Bound<'py, PyDict>, key: &str) -> PyResult<T> {
    let x = d.get_item(key)?.ok_or_else(|| PyKeyError::new_err(key.to_owned()))?;
    x.extract::<T>().map_err(|e| {
        let e: PyErr = e.into();
        PyTypeError::new_err(format!("{key}: {}", e.value(d.py())))
    })
}

/// One entry of a dict that has those of which something was said.
fn given<'py, T: FromPyObjectOwned<'py>>(d: &Bound<'py, PyDict>, key: &str) -> PyResult<Option<T>> {
    if d.contains(key)? { item(d, key) } else { Ok(None) }
}

/// A number that can be compared with.
fn finite(d: &Bound<'_, PyDict>, key: &str) -> PyResult<Option<f64>> {
    let x: Option<f64> = item(d, key)?;
    match x.filter(|x| !x.is_finite()) {
        Some(x) => Err(PyValueError::new_err(format!("{key}={x}: give a finite number"))),
        None => Ok(x),
    }
}

/// A share of a whole.
fn share(d: &Bound<'_, PyDict>, key: &str) -> PyResult<Option<f64>> {
    let x = finite(d, key)?;
    match x.filter(|x| !(0.0..=1.0).contains(x)) {
        Some(x) => Err(PyValueError::new_err(format!("{key}={x}: give a share from 0 to 1, such as 0.95"))),
        None => Ok(x),
    }
}

/// An input that is the same in every sample: its name, and a number, a path or arrays.
type Same<'py> = (String, Option<f64>, Option<PathBuf>, Bound<'py, PyAny>);

fn fixed((name, number, path, arrays): Same<'_>) -> PyResult<FixedInput> {
    let value = match (number, path) {
        (Some(x), _) => FixedValue::Number(x),
        (_, Some(path)) => FixedValue::File(path),
        _ => FixedValue::Array(Arrays::of(&arrays)?.0.clone()),
    };
    Ok(FixedInput { name, value })
}

/// Where samples come from, and how they become inputs.
fn samples(x: &Bound<'_, PyAny>) -> PyResult<Samples> {
    let d = x.cast::<PyDict>()?;
    let refused = |what: &str, name: &str| PyValueError::new_err(format!("{what}={name:?}: there is no such value"));
    let preset: Option<String> = given(d, "preset")?;
    let preset = preset.map(|p| p.parse::<Preset>().map_err(PyValueError::new_err)).transpose()?;
    let named = |key: &str| given::<String>(d, key);
    let fit = named("fit")?.map(|n| Fit::named(&n).ok_or_else(|| refused("fit", &n))).transpose()?;
    let filter = named("interpolation")?;
    let interpolation =
        filter.map(|n| Interpolation::named(&n).ok_or_else(|| refused("interpolation", &n))).transpose()?;
    let exif = named("exif")?.map(|n| Exif::named(&n).ok_or_else(|| refused("exif", &n))).transpose()?;
    let options = DataOptions {
        calibrate: item(d, "path")?,
        preset,
        mean: item(d, "mean")?,
        std: item(d, "std")?,
        resize: given(d, "resize")?,
        crop: given(d, "crop")?,
        crop_pct: given(d, "crop_pct")?,
        fit,
        interpolation,
        exif,
        preprocessor: given(d, "preprocessor")?,
        labels: given(d, "labels")?,
        class_names: given(d, "class_names")?,
        shape: item(d, "shape")?,
        fixed: item::<Vec<Same<'_>>>(d, "fixed")?.into_iter().map(fixed).collect::<PyResult<_>>()?,
        samples: item(d, "samples")?,
        seed: given(d, "seed")?.unwrap_or_default(),
        ..DataOptions::default()
    };
    let arrays: Option<Bound<'_, PyAny>> = item(d, "arrays")?;
    let arrays = arrays.map(|a| Arrays::of(&a)).transpose()?;
    Ok(Samples { options, arrays: arrays.map(|a| a.0.clone()) })
}

/// Samples for a model: what lies beside its file may say how pictures become numbers.
pub fn samples_for(m: &Model, x: &Bound<'_, PyAny>) -> PyResult<Samples> {
    let s = samples(x)?;
    Ok(match m.files.first() {
        Some(f) => Samples { options: s.options.beside(f), ..s },
        None => s,
    })
}

/// What is to be done, beside the model and the samples.
pub struct Options {
    /// None: that of the plan, or the default.
    recipe: Option<String>,
    pub passes_dir: Option<PathBuf>,
    target: Option<String>,
    plan: Option<String>,
    keep_float: Option<KeepFloat>,
    target_sqnr: Option<f64>,
    target_size: Option<String>,
    up_to: Option<String>,
    by: String,
    /// What the plan was calibrated on, where a search made it.
    calibrated_on: Option<(String, u64)>,
    min_sqnr: Option<f64>,
    min_agreement: Option<f64>,
    pub keep_opset: bool,
    pub assume_vnni: bool,
    fast: bool,
    bench: bool,
    /// A Python that has onnxruntime.
    judge: Option<String>,
    /// Whether it shows what that makes of the float model as well.
    baseline: bool,
    pub threads: usize,
}

enum KeepFloat {
    Worst(usize),
    Names(Vec<String>),
}

fn by(name: &str) -> PyResult<By> {
    By::ALL.into_iter().find(|b| b.name() == name).ok_or_else(|| {
        let known = By::ALL.map(By::name).join(", ");
        PyValueError::new_err(format!("by={name:?}: there are {known}"))
    })
}

/// The most that a search may make a part.
fn up_to(name: &str) -> PyResult<Precision> {
    let allowed = Precision::named(name).filter(|p| *p >= Precision::Recipe);
    allowed.ok_or_else(|| PyValueError::new_err(format!("up_to={name:?}: there are recipe, 16-bit, float")))
}

impl Options {
    pub fn of(x: &Bound<'_, PyAny>) -> PyResult<Options> {
        let d = x.cast::<PyDict>()?;
        let keep: Option<Bound<'_, PyAny>> = item(d, "keep_float")?;
        let keep = keep.map(|k| match (k.extract::<usize>(), k.extract::<Vec<String>>()) {
            (Ok(n), _) => Ok(KeepFloat::Worst(n)),
            (_, Ok(names)) => Ok(KeepFloat::Names(names)),
            _ => Err(PyValueError::new_err(format!("keep_float={k}: give a number of parts, or their names"))),
        });
        let threads: Option<usize> = item(d, "threads")?;
        Ok(Options {
            recipe: item(d, "recipe")?,
            passes_dir: item(d, "passes_dir")?,
            target: item(d, "target")?,
            plan: item(d, "plan")?,
            keep_float: keep.transpose()?,
            target_sqnr: finite(d, "target_sqnr")?,
            calibrated_on: item(d, "calibrated_on")?,
            target_size: item(d, "target_size")?,
            up_to: item(d, "up_to")?,
            by: item(d, "by")?,
            min_sqnr: finite(d, "min_sqnr")?,
            min_agreement: share(d, "min_agreement")?,
            keep_opset: item(d, "keep_opset")?,
            assume_vnni: item(d, "assume_vnni")?,
            fast: item(d, "fast")?,
            bench: item(d, "bench")?,
            judge: item(d, "judge")?,
            baseline: item(d, "baseline")?,
            threads: threads.map_or_else(all_threads, |n| n.clamp(1, 1024)),
        })
    }

    /// The recipe that is asked for, or the default.
    pub fn recipe(&self) -> &str {
        self.recipe.as_deref().unwrap_or(Compiler::RECIPE)
    }

    fn keep(&self) -> PyResult<Option<Keep>> {
        let by = self.by()?;
        let size = self.target_size.as_deref().map(str::parse::<Size>).transpose();
        let size = size.map_err(|e| PyValueError::new_err(format!("target_size: {e}")))?;
        let most = self.up_to.as_deref().map(up_to).transpose()?;
        let goal = Goal { sqnr_db: self.target_sqnr, size, up_to: most };
        let aims = goal.sqnr_db.is_some() || goal.size.is_some();
        if most.is_some() && !aims {
            return Err(PyValueError::new_err(
                "up_to says how far target_sqnr or target_size may go; give one of these",
            ));
        }
        Ok(match &self.keep_float {
            Some(_) if aims => {
                return Err(PyValueError::new_err("give keep_float, or target_sqnr and target_size, not both"));
            }
            Some(KeepFloat::Worst(n)) => Some(Keep::Worst(*n, by)),
            Some(KeepFloat::Names(names)) => Some(Keep::Names(names.clone(), by)),
            None => aims.then_some(Keep::Reach(goal, by)),
        })
    }

    pub fn target(&self) -> PyResult<Option<Target>> {
        match self.target.as_deref() {
            None => Ok(None),
            Some("qdq") => Ok(Some(Target::Qdq)),
            Some("integer") => Ok(Some(Target::Integer)),
            Some(other) => {
                Err(PyValueError::new_err(format!("there is no target {other:?}; there are qdq and integer")))
            }
        }
    }

    /// Who is asked for a second opinion.
    fn second(&self) -> PyResult<Option<Judge>> {
        let judge = self.judge.as_ref().map(Judge::new).transpose();
        let judge = judge.and_then(|j| j.map(|j| if self.baseline { j.with_baseline() } else { Ok(j) }).transpose());
        judge.map_err(|e| raised(&e.into()))
    }

    /// The plan that is given, if one is.
    fn plan(&self) -> PyResult<Option<QuantPlan>> {
        let plan = self.plan.as_deref().map(|text| QuantPlan::from_yaml(text, "plan"));
        plan.transpose().map_err(|e| PlanError::new_err(e.to_string()))
    }

    fn limits(&self) -> Limits {
        Limits { sqnr_db: self.min_sqnr, agreement: self.min_agreement }
    }

    pub fn by(&self) -> PyResult<By> {
        by(&self.by)
    }

    fn compiler(self, m: &Model) -> PyResult<Compiler> {
        let target = self.target()?;
        let keep = self.keep()?;
        let dir = self.passes_dir.as_deref();
        let mut c = Compiler::new(m.inner.clone())
            .named(&m.name, m.bytes)
            .noted(m.notes.clone())
            .rules(RuleSet::with_folder(dir).map_err(raise)?)
            .limits(self.limits())
            .keep_opset(self.keep_opset)
            .assume_vnni(self.assume_vnni)
            .fast(self.fast)
            .bench(self.bench)
            .look_closer(true)
            .threads(self.threads);
        let plan = self.plan()?;
        let recipe = match (&self.recipe, &plan) {
            (None, Some(p)) => Recipe::of_plan(&p.recipe, dir),
            _ => Some(Recipe::find(self.recipe(), dir).map_err(raise)?),
        };
        c = recipe.into_iter().fold(c, Compiler::recipe);
        c = target.into_iter().fold(c, Compiler::target);
        c = keep.into_iter().fold(c, Compiler::keep);
        c = self.second()?.into_iter().fold(c, Compiler::judge);
        c = self.calibrated_on.into_iter().fold(c, |c, (data, n)| c.calibrated_on(data, n));
        Ok(plan.into_iter().fold(c, |c, p| c.plan(p, "given")))
    }
}

/// A quantized model, with its report.
struct Compiled {
    inner: compiler::Compiled,
    /// What was read, and must not be written over.
    inputs: Inputs,
}

/// Files and folders that a call reads, with what messages call them.
#[derive(Default)]
pub struct Inputs {
    files: Vec<(String, PathBuf)>,
    folders: Vec<(String, PathBuf)>,
}

impl Inputs {
    /// Of a model and of samples for it, each with what it is called.
    pub fn of(m: &Model, samples: &[(&str, &Samples)]) -> PyResult<Inputs> {
        let mut all = Inputs::default();
        all.files.extend(m.files.iter().map(|f| ("the model that was read".to_owned(), f.clone())));
        for (what, s) in samples {
            let besides = s.options.files_besides().map_err(raise)?;
            let named = |flag: &str| flag.trim_start_matches('-').replace('-', "_");
            all.files.extend(besides.into_iter().map(|(flag, f)| (named(flag), absolute(&f))));
            match &s.options.calibrate {
                Some(p) if p.is_dir() => all.folders.push(((*what).to_owned(), absolute(p))),
                Some(p) => all.files.push(((*what).to_owned(), absolute(p))),
                None => {}
            }
        }
        Ok(all)
    }

    /// Refuses a model's file, or that of its data, that is one of them.
    pub fn allow(&self, path: &Path) -> Result<(), CompilerError> {
        let mut files = Ledger::default();
        self.files.iter().for_each(|(what, f)| files.reads(what.clone(), f));
        if path.exists() {
            self.folders.iter().for_each(|(what, dir)| files.reads_folder(what, dir));
        }
        files.writes("the file to write", path);
        files.writes("its data file", &onnx::data_path(path));
        Ok(files.check()?)
    }
}

/// Refuses options that have no such value, before samples are read: options.
pub fn options_check(args: &Bound<'_, PyTuple>) -> PyResult<Py<PyAny>> {
    let options = Options::of(&args.get_item(0)?)?;
    options.keep()?;
    options.target()?;
    options.by()?;
    options.plan()?;
    if options.recipe.is_some() {
        Recipe::find(options.recipe(), options.passes_dir.as_deref()).map_err(raise)?;
    }
    Ok(args.py().None())
}

/// Refuses a file that cannot be written, or must not be, before the work: model, samples, samples to verify on or none, path.
pub fn output_check(args: &Bound<'_, PyTuple>) -> PyResult<Py<PyAny>> {
    let m = Model::of(&args.get_item(0)?)?;
    let (data, verify) = (samples_for(&m, &args.get_item(1)?)?, args.get_item(2)?);
    let verify = (!verify.is_none()).then(|| samples_for(&m, &verify)).transpose()?;
    let all: Vec<(&str, &Samples)> =
        [("calibration", &data)].into_iter().chain(verify.iter().map(|v| ("verify", v))).collect();
    let (inputs, path) = (Inputs::of(&m, &all)?, args.get_item(3)?.extract::<PathBuf>()?);
    let checked = inputs.allow(&path).and_then(|()| Ok(Pending::create(&path).map(drop)?));
    checked.map_err(|e| raised(&e))?;
    Ok(args.py().None())
}

impl Held for Compiled {
    const NAME: &'static std::ffi::CStr = c"fqvit_opt.Compiled";
}

/// A callback, or none.
pub fn callback<'py>(x: &Bound<'py, PyAny>) -> Option<Bound<'py, PyAny>> {
    (!x.is_none()).then(|| x.clone())
}

/// Compiles: model, samples, samples to verify on or none, whether to verify, options, callback.
pub fn compile(args: &Bound<'_, PyTuple>) -> PyResult<Py<PyAny>> {
    let (model, data, verify, compared, options, progress): Six<'_> = args.extract()?;
    let m = Model::of(&model)?;
    let verification = match compared.is_truthy()? {
        false => Verification::None,
        true if verify.is_none() => Verification::HeldBack,
        true => Verification::On(samples_for(&m, &verify)?),
    };
    let data = samples_for(&m, &data)?;
    let other = if let Verification::On(s) = &verification { Some(("verify", s)) } else { None };
    let inputs = Inputs::of(&m, &[("calibration", &data)].into_iter().chain(other).collect::<Vec<_>>())?;
    let options = Options::of(&options)?;
    let threads = options.threads;
    let job = options.compiler(&m)?.calibrate(data).verify(verification);
    let inner = run(args.py(), threads, callback(&progress).as_ref(), move |tell, stop| {
        let mut done = job.tell(tell).until(&stop).run()?;
        done.report.quantized = ModelFile { name: "the model".into(), bytes: onnx::size(validate(&done.model)?)? };
        Ok(done)
    })?;
    Compiled { inner, inputs }.held(args.py())
}

type Six<'py> =
    (Bound<'py, PyAny>, Bound<'py, PyAny>, Bound<'py, PyAny>, Bound<'py, PyAny>, Bound<'py, PyAny>, Bound<'py, PyAny>);

fn compiled(args: &Bound<'_, PyTuple>) -> PyResult<Arc<Compiled>> {
    Compiled::of(&args.get_item(0)?)
}

/// The file's bytes.
pub fn model(args: &Bound<'_, PyTuple>) -> PyResult<Py<PyAny>> {
    let (py, c) = (args.py(), compiled(args)?);
    let bytes = py.detach(|| {
        let mut bytes = Vec::new();
        onnx::write_to(validate(&c.inner.model)?, &mut bytes)?;
        Ok(bytes)
    });
    let bytes = bytes.map_err(|e: CompilerError| raised(&e))?;
    Ok(PyBytes::new(py, &bytes).into_any().unbind())
}

/// Writes the file, whole or not at all, and never over a file that was read: compiled, path.
pub fn save(args: &Bound<'_, PyTuple>) -> PyResult<Py<PyAny>> {
    let (c, path) = (compiled(args)?, args.get_item(1)?.extract::<PathBuf>()?);
    args.py().detach(|| saved(&c, &path)).map_err(|e| raised(&e))?;
    Ok(args.py().None())
}

fn saved(c: &Compiled, path: &Path) -> Result<(), CompilerError> {
    c.inputs.allow(path)?;
    Ok(onnx::save(validate(&c.inner.model)?, path, &SaveOptions::default())?)
}

/// The plan as text.
pub fn plan(args: &Bound<'_, PyTuple>) -> PyResult<Py<PyAny>> {
    out(args.py(), compiled(args)?.inner.plan.as_ref().map(QuantPlan::to_yaml))
}

fn both_forms(report: &Report) -> PyResult<(String, String)> {
    let json = report.to_json().map_err(|e| Error::new_err(e.to_string()))?;
    Ok((json, report.to_html()))
}

/// The report, as JSON and as a page.
pub fn report(args: &Bound<'_, PyTuple>) -> PyResult<Py<PyAny>> {
    out(args.py(), both_forms(&compiled(args)?.inner.report)?)
}

/// Compares two models: float, quantized, samples, options, callback. Returns the report in both forms.
pub fn compare(args: &Bound<'_, PyTuple>) -> PyResult<Py<PyAny>> {
    let options = Options::of(&args.get_item(3)?)?;
    let read = |at: usize| -> PyResult<Read> {
        let m = Model::of(&args.get_item(at)?)?;
        Ok(Read { model: m.inner.clone(), file: ModelFile { name: m.name.clone(), bytes: m.bytes } })
    };
    let job = Comparison::new(read(0)?, read(1)?)
        .on(samples_for(&*Model::of(&args.get_item(0)?)?, &args.get_item(2)?)?)
        .limits(options.limits())
        .bench(options.bench)
        .look_closer(true)
        .threads(options.threads);
    let threads = options.threads;
    let job = options.second()?.into_iter().fold(job, Comparison::judge);
    let progress = callback(&args.get_item(4)?);
    let report =
        run(args.py(), threads, progress.as_ref(), move |tell, stop| Ok(job.tell(tell).until(&stop).run()?.report))?;
    out(args.py(), both_forms(&report)?)
}
