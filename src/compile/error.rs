//! Why a whole compilation failed, sorted by what is at fault.

use std::path::PathBuf;

use super::CompileError;
use super::each::EachError;
use super::refine::RefineError;
use super::sensitivity::SensitivityError;
use crate::calibrate::data::DataError;
use crate::calibrate::run::CalibrateError;
use crate::calibrate::stats::StatsError;
use crate::file::{Conflict, WriteError};
use crate::ir::Invalid;
use crate::onnx::{LoadError, SaveError};
use crate::passes::PassError;
use crate::pattern::RuleError;
use crate::plan::PlanError;
use crate::recipe::RecipeError;
use crate::runtime::RuntimeError;
use crate::verify::judge::JudgeError;
use crate::verify::metrics::MetricError;
use crate::verify::run::VerifyError;

/// Why a model could not be compiled or compared.
#[derive(Debug, thiserror::Error)]
pub enum CompilerError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    #[error(transparent)]
    Rules(#[from] RuleError),
    #[error(transparent)]
    Compile(#[from] CompileError),
    #[error(transparent)]
    Pass(#[from] PassError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Stats(#[from] StatsError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Invalid(#[from] Invalid),
    #[error(transparent)]
    Calibrate(#[from] CalibrateError),
    #[error("the float model does not run: {source}{hint}")]
    Float { source: RuntimeError, hint: String },
    #[error(transparent)]
    Refine(#[from] RefineError),
    #[error(transparent)]
    Sensitivity(#[from] SensitivityError),
    #[error(transparent)]
    Each(#[from] EachError),
    #[error(
        "pass {pass} declares `{declares}`, but on one sample it moved output `{output}` by {distance:e} of its largest \
         value; nothing was written. This is a fault in the pass: please report it"
    )]
    Moved { pass: String, declares: String, output: String, distance: f32 },
    #[error(transparent)]
    Verify(#[from] VerifyError),
    #[error(transparent)]
    Judge(#[from] JudgeError),
    #[error(transparent)]
    Save(#[from] SaveError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// The file that the error is about, where the error does not say it.
    #[error("{file}: {source}")]
    In { file: String, source: Box<CompilerError> },
    #[error("recipe `{recipe}` quantizes nothing{what}")]
    Nothing { recipe: String, what: &'static str },
    #[error(
        "--keep-float: nothing in this model is called `{name}`; there are {known} (and with --by others), and the names of \
         values in the plan"
    )]
    NoPart { name: String, known: String },
    #[error(
        "--target-sqnr {target}: {who}; nothing was written. Ask for less (`fqvit-opt sensitivity` tells what each part leaves), or \
         take a recipe with more bits"
    )]
    OutOfReach { target: f64, who: &'static str },
    #[error(
        "--target-size: {asked} bytes are out of reach; with all weights in 4 bits the file has {smallest} bytes. Nothing was \
         written"
    )]
    TooSmall { asked: u64, smallest: u64 },
    #[error(
        "--target-size: plan {plan} says what every part is; leave one of the two out, or give statistics instead of the plan"
    )]
    SizeOfPlan { plan: String },
    #[error(
        "--recipe {asked}: plan {plan} was made by recipe `{made_by}`, and would be carried out without this one; leave --recipe \
         away, or name another plan file to have one made"
    )]
    OtherRecipe { plan: String, made_by: String, asked: String },
    #[error(
        "the two models are not cut at the same values by operators that cannot be run here: {float} and {quantized}"
    )]
    Cuts { float: String, quantized: String },
    #[error(
        "recipe `{recipe}` quantizes nothing, so there is nothing to choose, to carry out or to compare ({given}); take another \
         recipe, or leave that out"
    )]
    NothingQuantized { recipe: String, given: String },
    #[error(
        "the classes of {data} are not known, so no share of right ones can be told; give a labels.txt or a folder for each class, \
         or an array `labels` beside arrays"
    )]
    NoClasses { data: String },
    #[error(
        "a plan is carried out without data, so there is nothing to compare the models on, and no threshold or judge to ask; give \
         --verify, or --calibrate to hold samples back"
    )]
    NothingToCompareOn,
    #[error("--stop-after {pass}: no such pass ran; in order, these did: {ran}")]
    NoPass { pass: String, ran: String },
    #[error("--stop-after {pass}: `{run}` is no number of a run; the second is `PASS:2`")]
    NoRun { pass: String, run: String },
    #[error("--stop-after {pass}: there is no pass of this name; `fqvit-opt passes` lists them")]
    UnknownPass { pass: String },
    #[error("--stop-after {pass}: {now}")]
    Renamed { pass: String, now: String },
    #[error("{path} was changed since it was read; nothing was written: wait until it is complete, and start again")]
    Changed { path: PathBuf },
    #[error("stopped as asked")]
    Stopped,
}

/// What is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Model,
    Data,
    /// The recipe, or rules.
    Recipe,
    /// The plan, or the statistics.
    Plan,
    /// A file that cannot be written.
    Output,
    /// Nothing: somebody asked for it.
    Stopped,
}

impl CompilerError {
    /// The error with the name of the file in front.
    pub fn within(self, file: &str) -> CompilerError {
        CompilerError::In { file: file.to_owned(), source: Box::new(self) }
    }

    /// What is at fault.
    pub fn fault(&self) -> Fault {
        match self {
            CompilerError::In { source, .. } => source.fault(),
            CompilerError::Stopped => Fault::Stopped,
            CompilerError::Recipe(_)
            | CompilerError::Rules(_)
            | CompilerError::Nothing { .. }
            | CompilerError::NoPass { .. }
            | CompilerError::UnknownPass { .. }
            | CompilerError::NoRun { .. }
            | CompilerError::Renamed { .. } => Fault::Recipe,
            CompilerError::Compile(e) => of_compile(e),
            CompilerError::Plan(_)
            | CompilerError::Stats(_)
            | CompilerError::NoPart { .. }
            | CompilerError::OutOfReach { .. }
            | CompilerError::TooSmall { .. }
            | CompilerError::OtherRecipe { .. }
            | CompilerError::SizeOfPlan { .. }
            | CompilerError::NothingQuantized { .. } => Fault::Plan,
            CompilerError::NoClasses { .. } | CompilerError::NothingToCompareOn => Fault::Data,
            CompilerError::Data(e) => of_data(e),
            CompilerError::Calibrate(e) => match e {
                CalibrateError::Data(e) => of_data(e),
                CalibrateError::Empty => Fault::Data,
                CalibrateError::Observe { .. } | CalibrateError::Runtime(_) => Fault::Model,
            },
            CompilerError::Refine(e) => match e {
                RefineError::Data(e) => of_data(e),
                RefineError::Compile(e) => of_compile(e),
                RefineError::Runtime(_) | RefineError::NotFinite { .. } => Fault::Model,
            },
            CompilerError::Sensitivity(e) => match e {
                SensitivityError::Data(e) => of_data(e),
                SensitivityError::Empty => Fault::Data,
                SensitivityError::Compile(e) => of_compile(e),
                SensitivityError::Metric(_) | SensitivityError::Invalid(_) | SensitivityError::Runtime { .. } => {
                    Fault::Model
                }
            },
            CompilerError::Verify(e) => match e {
                VerifyError::Data(e) => of_data(e),
                VerifyError::Empty | VerifyError::Metric(MetricError::Label { .. }) => Fault::Data,
                VerifyError::Metric(_) | VerifyError::Runtime { .. } => Fault::Model,
            },
            CompilerError::Judge(e) => match e {
                JudgeError::Data(e) => of_data(e),
                JudgeError::Save(_) | JudgeError::Files { .. } => Fault::Output,
                JudgeError::Missing { .. } => Fault::Recipe,
                JudgeError::Failed { .. } | JudgeError::Metric(_) | JudgeError::Invalid(_) => Fault::Model,
            },
            CompilerError::Write(_) | CompilerError::Conflict(_) | CompilerError::Save(_) | CompilerError::State(_) => {
                Fault::Output
            }
            CompilerError::Load(_)
            | CompilerError::Invalid(_)
            | CompilerError::Pass(_)
            | CompilerError::Float { .. }
            | CompilerError::Each(_)
            | CompilerError::Moved { .. }
            | CompilerError::Changed { .. }
            | CompilerError::Cuts { .. } => Fault::Model,
        }
    }
}

fn of_data(e: &DataError) -> Fault {
    match e {
        DataError::Stopped => Fault::Stopped,
        // The model's inputs are such that no data would do.
        DataError::NoInputs => Fault::Model,
        _ => Fault::Data,
    }
}

fn of_compile(e: &CompileError) -> Fault {
    match e {
        CompileError::Plan(_) | CompileError::Planning(_) => Fault::Plan,
        CompileError::Codes { .. } | CompileError::Old { .. } => Fault::Recipe,
        _ => Fault::Model,
    }
}

/// Why a state cannot be gone on with.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("{path}: {message}; give another name, or remove it to begin anew")]
    Read { path: String, message: String },
    #[error("{path} is of a search over another model, other samples or other options; give another name for this one")]
    Other { path: String },
    #[error(transparent)]
    Write(#[from] WriteError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fault_is_seen_through_every_wrapping() {
        let stopped = || DataError::Stopped;
        for e in [
            CompilerError::from(stopped()),
            CalibrateError::from(stopped()).into(),
            RefineError::from(stopped()).into(),
            SensitivityError::from(stopped()).into(),
            VerifyError::from(stopped()).into(),
            CompilerError::from(stopped()).within("m.onnx"),
        ] {
            assert_eq!(e.fault(), Fault::Stopped, "{e:?}");
        }
        let missing = DataError::Missing { path: "d".into() };
        assert_eq!(CompilerError::from(VerifyError::from(missing)).fault(), Fault::Data);
        let e = CompilerError::Nothing { recipe: "none".into(), what: ": there is nothing to plan" }.within("m.onnx");
        assert_eq!(
            (e.fault(), e.to_string()),
            (Fault::Recipe, "m.onnx: recipe `none` quantizes nothing: there is nothing to plan".into())
        );
    }
}
