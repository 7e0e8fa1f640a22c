//! The whole path of a model, from file to file, as one builder.

mod road;
mod samplings;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Prepared;
use super::error::CompilerError;
use super::keep::Keep;
use super::outline::Outline;
pub use super::reporting::Limits;
pub use super::stages::Listener;
use super::stages::{Log, Running, Samples, all_threads, prepared, read_statistics};
use crate::budget::Stop;
use crate::file::Pending;
use crate::infer;
use crate::ir::{Model, validate};
use crate::onnx::{self, SaveError, SaveOptions};
use crate::pattern::RuleSet;
use crate::plan::{QuantPlan, Target};
use crate::recipe::Recipe;
use crate::runtime::keep_sessions;
use crate::verify::judge::Judge;
use crate::verify::report::Report;

/// What the quantized model is compared with the float one on.
#[derive(Clone, Debug, Default)]
#[allow(clippy::large_enum_variant, reason = "there is one in a run")]
pub enum Verification {
    /// Every eighth calibration sample, which calibration then does not see.
    #[default]
    HeldBack,
    /// Other samples.
    On(Samples),
    /// They are not compared, nor timed.
    None,
}

/// Compiles a float model: what to do is said step by step, and done by [`run`](Compiler::run).
///
/// The parts (canonical form, calibration, plan, rewriting) are functions of [`compile`](crate::compile), and the stages with
/// their notes and times those of [`stages`](super::stages), for programs that want to stop half-way or change a plan.
#[derive(Clone)]
pub struct Compiler {
    model: Model,
    name: String,
    bytes: u64,
    /// The model's file: what lies beside it may say how pictures become numbers.
    file: Option<PathBuf>,
    notes: Vec<String>,
    recipe: Option<Recipe>,
    rules: Option<RuleSet>,
    data: Samples,
    verification: Verification,
    plan: Option<(QuantPlan, String)>,
    calibrated_on: Option<(String, u64)>,
    statistics: Option<PathBuf>,
    statistics_to: Option<PathBuf>,
    keep: Option<Keep>,
    limits: Limits,
    target: Option<Target>,
    assume_vnni: bool,
    keep_opset: bool,
    fast: bool,
    each: bool,
    blame: bool,
    stop_after: Option<String>,
    bench: bool,
    closer: bool,
    judge: Option<Judge>,
    threads: usize,
    stop: Stop,
    tell: Listener,
}

impl Compiler {
    /// The recipe that is followed if no other is given.
    pub const RECIPE: &'static str = "fq-vit";

    /// For a model in memory.
    pub fn new(model: Model) -> Compiler {
        Compiler {
            model,
            name: "the model".to_owned(),
            bytes: 0,
            file: None,
            notes: Vec::new(),
            recipe: None,
            rules: None,
            data: Samples::default(),
            verification: Verification::default(),
            plan: None,
            calibrated_on: None,
            statistics: None,
            statistics_to: None,
            keep: None,
            limits: Limits::default(),
            target: None,
            assume_vnni: false,
            keep_opset: false,
            fast: false,
            each: false,
            blame: false,
            stop_after: None,
            bench: true,
            closer: false,
            judge: None,
            threads: all_threads(),
            stop: Stop::default(),
            tell: Arc::new(|_| ()),
        }
    }

    /// For an ONNX file. Its weights stay where they lie until they are needed.
    ///
    /// # Errors
    /// If the file cannot be read or is no ONNX model.
    pub fn load(path: impl AsRef<Path>) -> Result<Compiler, CompilerError> {
        let path = path.as_ref();
        let loaded = onnx::load(path)?;
        let name = path.display().to_string();
        let bytes = loaded.files.iter().map(|(_, n)| n).sum();
        let notes = loaded.unknown.iter().map(|u| format!("{name}: unknown field dropped: {u}")).collect();
        let c = Compiler::new(loaded.model).named(name, bytes).noted(notes);
        Ok(Compiler { file: Some(path.to_owned()), ..c })
    }

    /// What errors and the report call the model, and the bytes of its files.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>, bytes: u64) -> Compiler {
        (self.name, self.bytes) = (name.into(), bytes);
        self
    }

    /// What the report shall tell besides.
    #[must_use]
    pub fn noted(mut self, notes: Vec<String>) -> Compiler {
        self.notes = notes;
        self
    }

    /// What may be quantized how: see [`Recipe::find`] and [`Recipe::parse`]. Default: the one that made the
    /// [`plan`](Compiler::plan), if there is one, or else [`Compiler::RECIPE`]. One that did not make the plan is refused.
    #[must_use]
    pub fn recipe(mut self, recipe: Recipe) -> Compiler {
        self.recipe = Some(recipe);
        self
    }

    /// The rules that say what attention, LayerNorm and GELU look like. Default: the shipped ones.
    #[must_use]
    pub fn rules(mut self, rules: RuleSet) -> Compiler {
        self.rules = Some(rules);
        self
    }

    /// The calibration set. Without one, samples are made up, which costs accuracy.
    #[must_use]
    pub fn calibrate(mut self, data: impl Into<Samples>) -> Compiler {
        self.data = data.into();
        self
    }

    /// What to verify on. Default: calibration samples held back.
    #[must_use]
    pub fn verify(mut self, on: Verification) -> Compiler {
        self.verification = on;
        self
    }

    /// A plan to carry out, in place of making one from data; `name` is what messages call it.
    #[must_use]
    pub fn plan(mut self, plan: QuantPlan, name: impl Into<String>) -> Compiler {
        self.plan = Some((plan, name.into()));
        self
    }

    /// What the plan that is carried out was calibrated on, for the report: what data, and how many samples of it.
    #[must_use]
    pub fn calibrated_on(mut self, data: impl Into<String>, samples: u64) -> Compiler {
        self.calibrated_on = Some((data.into(), samples));
        self
    }

    /// A statistics file to plan from, in place of running the float model.
    #[must_use]
    pub fn statistics(mut self, file: impl Into<PathBuf>) -> Compiler {
        self.statistics = Some(file.into());
        self
    }

    /// Holds the statistics ready for a file of this name: [`Compiled::statistics`].
    #[must_use]
    pub fn statistics_to(mut self, file: impl Into<PathBuf>) -> Compiler {
        self.statistics_to = Some(file.into());
        self
    }

    /// What shall stay in float. It is measured on calibration samples that are held back.
    #[must_use]
    pub fn keep(mut self, keep: Keep) -> Compiler {
        self.keep = Some(keep);
        self
    }

    /// What the result must reach for [`Report::passes`].
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Compiler {
        self.limits = limits;
        self
    }

    /// How the arithmetic between codes is written, in place of what recipe or plan say.
    #[must_use]
    pub fn target(mut self, target: Target) -> Compiler {
        self.target = Some(target);
        self
    }

    /// Lets weights take all of int8, which saturates on x86 processors without VNNI.
    #[must_use]
    pub fn assume_vnni(mut self, yes: bool) -> Compiler {
        self.assume_vnni = yes;
        self
    }

    /// Leaves the model's operator set as it is, even if LayerNorm and GELU then stay decomposed.
    #[must_use]
    pub fn keep_opset(mut self, yes: bool) -> Compiler {
        self.keep_opset = yes;
        self
    }

    /// A first look: few samples, weights rounded instead of fitted.
    #[must_use]
    pub fn fast(mut self, yes: bool) -> Compiler {
        self.fast = yes;
        self
    }

    /// Runs the model before and after every pass, and fails if one moves an output further than it declares.
    #[must_use]
    pub fn verify_each(mut self, yes: bool) -> Compiler {
        self.each = yes;
        self
    }

    /// Looks on one sample for the first pass that moves an output further than it declares, and fails if there is one.
    #[must_use]
    pub fn blame(mut self, yes: bool) -> Compiler {
        self.blame = yes;
        self
    }

    /// Stops after this pass, or its second run as `pass:2`: what comes out is the model as it left it.
    #[must_use]
    pub fn stop_after(mut self, pass: impl Into<String>) -> Compiler {
        self.stop_after = Some(pass.into());
        self
    }

    /// Whether to time both models for the report. Default: yes, about a second.
    #[must_use]
    pub fn bench(mut self, yes: bool) -> Compiler {
        self.bench = yes;
        self
    }

    /// Whether to look at single values, at the codes of attention and at samples on which the models disagree, for the
    /// report's page. Default: no; it takes a second or so.
    #[must_use]
    pub fn look_closer(mut self, yes: bool) -> Compiler {
        self.closer = yes;
        self
    }

    /// Who runs both models in another runtime, too, on the samples that they are verified on. Default: nobody.
    #[must_use]
    pub fn judge(mut self, judge: Judge) -> Compiler {
        self.judge = Some(judge);
        self
    }

    /// How many threads run the model. The result does not depend on it. Default: one for each processor.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Compiler {
        self.threads = threads.max(1);
        self
    }

    /// What is looked at between samples: the run ends with [`Stopped`](super::error::Fault::Stopped) when it asks for that.
    #[must_use]
    pub fn until(mut self, stop: &Stop) -> Compiler {
        self.stop = stop.clone();
        self
    }

    /// Who is told what happens.
    #[must_use]
    pub fn tell(mut self, listener: Listener) -> Compiler {
        self.tell = listener;
        self
    }

    /// The recipe with what the call says otherwise; with a plan, that of the plan.
    fn settled_recipe(&self) -> Result<Recipe, CompilerError> {
        let recipe = match (&self.recipe, &self.plan) {
            (Some(r), Some((plan, name))) if r.name != plan.recipe => {
                let (made_by, asked) = (plan.recipe.clone(), r.name.clone());
                return Err(CompilerError::OtherRecipe { plan: name.clone(), made_by, asked });
            }
            (Some(r), _) => Some(r.clone()),
            (None, plan) => plan.as_ref().and_then(|(plan, _)| Recipe::of_plan(&plan.recipe, None)),
        };
        let recipe = recipe.map_or_else(|| Recipe::find(Compiler::RECIPE, None), Ok)?;
        let mut recipe = recipe.written_for(self.target, self.assume_vnni);
        // Names in a plan are those of the model at its operator set.
        if let (Some(prepare), Some((plan, _))) = (&mut recipe.prepare, &self.plan) {
            prepare.opset = prepare.opset.max(plan.opset.unwrap_or(0));
        }
        if recipe.quantize.is_none() {
            let given = [
                ("--keep-float, --target-size, --target-sqnr", self.keep.is_some()),
                ("--plan", self.plan.is_some()),
                ("--stats", self.statistics.is_some() || self.statistics_to.is_some()),
                ("--verify", matches!(self.verification, Verification::On(_))),
                ("--judge", self.judge.is_some()),
            ];
            let given: Vec<&str> = given.into_iter().filter(|(_, is)| *is).map(|(flag, _)| flag).collect();
            if !given.is_empty() {
                return Err(CompilerError::NothingQuantized { recipe: recipe.name, given: given.join(", ") });
            }
        }
        let recipe = if self.fast { recipe.without_fitting() } else { recipe };
        Ok(if self.wants_four_bits() { recipe.with_four_bits()? } else { recipe })
    }

    fn wants_four_bits(&self) -> bool {
        self.keep.as_ref().is_some_and(Keep::wants_four_bits)
    }

    /// Bytes of the float model's files.
    fn float_bytes(&self) -> Result<u64, CompilerError> {
        Ok(if self.bytes > 0 { self.bytes } else { onnx::size(validate::validate(&self.model)?)? })
    }

    /// Does all of it.
    ///
    /// # Errors
    /// If the model cannot be prepared, the data do not fit it, it does not run, the plan is another model's, or somebody
    /// asked to stop.
    pub fn run(self) -> Result<Compiled, CompilerError> {
        let _kept = keep_sessions();
        self.done()
    }

    /// Does what [`run`](Compiler::run) does before the first forward pass, times one of those, and tells what would come.
    ///
    /// # Errors
    /// Those of [`run`](Compiler::run) that can be known by then.
    pub fn outline(mut self) -> Result<Outline, CompilerError> {
        let mut log = Log { notes: std::mem::take(&mut self.notes), ..Log::default() };
        infer::declare(&mut self.model, &self.data.options.said_shapes()?);
        let recipe = self.settled_recipe()?;
        let rules = match self.rules.take() {
            Some(r) => r,
            None => RuleSet::embedded()?,
        };
        let p = prepared(&self.model, &self.name, &recipe, &rules, self.keep_opset, &mut log)?;
        let (Some(p), Some(_)) = (p, &recipe.quantize) else {
            return Ok(Outline::of_nothing(&self.name, &recipe, log));
        };
        let samplings = self.samplings(&p, &recipe, &mut log)?;
        if let Some(f) = &self.statistics {
            read_statistics(f, &p, &mut log)?;
        }
        let given = self.plan.as_ref().map(|(_, name)| format!("plan {name}"));
        let given = given.or(self.statistics.as_ref().map(|f| format!("statistics {}", f.display())));
        let verified = !matches!(self.verification, Verification::None);
        Outline::of(
            &self.name,
            self.bytes,
            (&p, &recipe),
            samplings,
            (given, verified),
            (self.limits, self.threads),
            log,
        )
    }

    fn how(&self) -> Running<'_> {
        Running { threads: self.threads, tell: &*self.tell, stop: &self.stop }
    }
}

/// What [`Compiler::run`] made.
#[derive(Debug)]
pub struct Compiled {
    /// The quantized model.
    pub model: Model,
    /// Every decision, with its reason; [`QuantPlan::to_yaml`] is its readable form. `None` if the recipe quantizes nothing.
    pub plan: Option<QuantPlan>,
    /// The float model in canonical form, and what was recognised in it.
    pub prepared: Option<Prepared>,
    /// How far the result is from the original. Name and size of the quantized model are those of a file once it has one.
    pub report: Report,
    /// False if [`Compiler::stop_after`] stopped it: then the model is one on its way, and was not compared.
    pub finished: bool,
    /// The statistics, ready to take their place, if [`Compiler::statistics_to`] asked for them.
    pub statistics: Option<Pending>,
}

impl Compiled {
    /// Writes the quantized model: whole, or not at all.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), SaveError> {
        let valid = validate::validate(&self.model).expect("every pass leaves a valid model");
        onnx::save(valid, path.as_ref(), &SaveOptions::default())
    }
}
