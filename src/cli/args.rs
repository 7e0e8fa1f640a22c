//! What can be said on the command line.

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::keep_args::{KeepArgs, number};
use crate::budget;
use crate::calibrate::data::DataOptions;
use crate::compile::compiler::Compiler;
use crate::compile::keep::Keep;
use crate::compile::mixed::{Goal, Size};
use crate::compile::reporting::Limits;
use crate::plan::Target;
use crate::verify::judge::{Judge, JudgeError};

#[derive(Debug, Parser)]
#[command(
    name = "fqvit-opt",
    version,
    about = "Compiles a float vision transformer in ONNX into a fully quantized one, and measures the difference.",
    after_help = "Examples:\n  fqvit-opt vit.onnx -o vit.q.onnx --calibrate photos/ --preset inception\n  fqvit-opt vit.onnx -o vit.q.onnx --calibrate data.npz --verify test.npz --json report.json\n  fqvit-opt inspect vit.onnx\n  fqvit-opt verify vit.onnx vit.q.onnx --data test.npz --outputs out.npz\n  fqvit-opt eval vit.q.onnx --images photos/\n\nExit status: 0 done and every threshold met, 1 an error (no output written), 2 written but a threshold was missed.",
    arg_required_else_help = true,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub compile: CompileArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
    /// What progress, notes and errors on standard error are written as: lines for people, or one JSON object a line
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub log_format: LogFormat,
}

/// What is said on standard error is written as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// What a run may take. Defaults grow with the model's file, so that a small file that asks for the machine is an error.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Most memory the run may take, such as 800M or 4G [default: depends on the size of the model's file; at most nine tenths
    /// of the machine's]
    #[arg(long, global = true, value_name = "SIZE", value_parser = budget::parse)]
    pub memory: Option<usize>,
    /// Most seconds between one finished step or sample and the next; 0 for no limit [default: depends on the size of the
    /// model's file]
    #[arg(long, global = true, value_name = "SECONDS")]
    pub patience: Option<u64>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Compile a model: the same as without a command
    #[command(hide = true, alias = "quantize")]
    Compile(Box<CompileArgs>),
    /// Show what a model holds and what the rules recognise in it
    Inspect(InspectArgs),
    /// Run the float model over data and save the statistics
    Calibrate(CalibrateArgs),
    /// Decide how to quantize, and save the decisions as a readable file
    Plan(PlanArgs),
    /// Rank the parts of a model by how much accuracy quantizing each one costs
    Sensitivity(SensitivityArgs),
    /// Compare a quantized model with its float original
    Verify(VerifyArgs),
    /// Time a quantized model and its float original side by side in tract, on one thread
    Bench(BenchArgs),
    /// Run one model over data, and report top-1 and top-5 where classes are known
    Eval(EvalArgs),
    /// Show how two models differ. Exit status: 0 the same, 1 they differ, 2 an error
    Diff(DiffArgs),
    /// Compile with several recipes, and compare accuracy, size and time
    Compare(CompareArgs),
    /// Show how close each rule came to matching, and where it stopped
    Explain(ExplainArgs),
    /// List the shipped recipes
    Recipes,
    /// List the passes of each pipeline, or describe one of them
    Passes(PassesArgs),
    /// Print the completion script for a shell
    Completions(CompletionsArgs),
    /// Print a manual page
    Man(ManArgs),
}

/// A share of a whole.
fn share(s: &str) -> Result<f64, String> {
    let x = match s.trim().strip_suffix('%') {
        Some(percent) => number(percent.trim()).map(|x| x / 100.0),
        None => number(s),
    };
    x.ok()
        .filter(|x| (0.0..=1.0).contains(x))
        .ok_or_else(|| "give a number from 0 to 1, such as 0.95, or 95%".to_owned())
}

/// The second of four parts is `2/4`.
fn shard(s: &str) -> Result<(u32, u32), String> {
    s.split_once('/')
        .and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)))
        .filter(|(i, n)| *i >= 1 && i <= n)
        .ok_or_else(|| "write it as 2/4, the second of four parts".to_owned())
}

/// Threads that a call may ask for.
fn threads(s: &str) -> Result<usize, String> {
    s.parse().ok().filter(|n| (1..=1024).contains(n)).ok_or_else(|| "give a number from 1 to 1024".to_owned())
}

/// How a model is read and brought into canonical form.
#[derive(Debug, Args)]
#[command(next_help_heading = "Method")]
pub struct PrepareArgs {
    /// The recipe: a shipped one (see `fqvit-opt recipes`) or a YAML file [default: that of the plan which is carried out, else
    /// fq-vit]
    #[arg(long, value_name = "NAME|FILE")]
    pub recipe: Option<String>,
    /// How the quantized arithmetic is written [default: what the recipe or the plan says]
    #[arg(long, value_enum, value_name = "NAME")]
    pub target: Option<TargetArg>,
    /// Use the whole range of int8 for weights: every processor that will run the file has VNNI. On others, sums saturate
    #[arg(long)]
    pub assume_vnni: bool,
    /// A folder with `rules/*.yaml` and `recipes/*.yaml` of your own, which are added to the shipped ones or override them
    #[arg(long, value_name = "DIR")]
    pub passes_dir: Option<PathBuf>,
    /// Do not raise the model's operator set, even if LayerNorm or GELU then stay decomposed
    #[arg(long)]
    pub keep_opset: bool,
    /// Threads for running models [default: all processors]
    #[arg(long, value_name = "N", value_parser = threads)]
    pub threads: Option<usize>,
}

impl PrepareArgs {
    /// The recipe that is asked for, or the default.
    pub fn recipe(&self) -> &str {
        self.recipe.as_deref().unwrap_or(Compiler::RECIPE)
    }
}

/// [`Target`] as a flag's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TargetArg {
    /// QuantizeLinear and DequantizeLinear around float operators: what runtimes on CPUs fuse and accelerators read
    Qdq,
    /// Integer products and element-wise arithmetic: the same bits in onnxruntime and tract
    Integer,
}

impl From<TargetArg> for Target {
    fn from(t: TargetArg) -> Target {
        match t {
            TargetArg::Qdq => Target::Qdq,
            TargetArg::Integer => Target::Integer,
        }
    }
}

#[derive(Debug, Args)]
pub struct CompileArgs {
    /// The float model
    #[arg(required = true)]
    pub model: Option<PathBuf>,
    /// Where the quantized model goes
    #[arg(short, long, required = true, value_name = "FILE")]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    pub prepare: PrepareArgs,
    #[command(flatten)]
    pub data: DataOptions,
    /// Data to verify on (a folder of images, .npy or .npz); without it every eighth calibration sample is held back
    #[arg(long, value_name = "DIR|FILE", conflicts_with = "no_verify")]
    pub verify: Option<PathBuf>,
    /// Statistics: read if the file exists, otherwise made and written there
    #[arg(long, value_name = "FILE")]
    pub stats: Option<PathBuf>,
    /// The plan: carried out if the file exists, otherwise made and written there
    #[arg(long, value_name = "FILE")]
    pub plan: Option<PathBuf>,
    #[command(flatten)]
    pub keep: KeepArgs,
    /// Make the file no larger than this (4.5MB, 800kB, bytes, or 20% of the float file): weights of as many parts as it takes
    /// become 4 bits (INT4, opset 21), those first that lose least for the bytes saved
    #[arg(long, value_name = "SIZE", conflicts_with = "keep_float", help_heading = "Parts in float")]
    pub target_size: Option<Size>,
    #[command(flatten)]
    pub accept: AcceptArgs,
    /// A first look: at most 32 samples to calibrate on and 16 to verify on, weights rounded instead of fitted, which makes the
    /// file slower in onnxruntime
    #[arg(long)]
    pub fast: bool,
    /// Check everything that can be checked in advance, say what would be done and roughly how long it would take, and write
    /// nothing but what --json asks for
    #[arg(long, conflicts_with_all = ["accept_command", "verify_each", "blame", "stop_after", "html"])]
    pub dry_run: bool,
    /// Run the model before and after every pass on one sample, and stop if a pass moves an output further than it declares
    #[arg(long)]
    pub verify_each: bool,
    /// Find the first pass that moves an output further than it declares, by running the model on one sample after as few
    /// passes as possible
    #[arg(long, conflicts_with = "verify_each")]
    pub blame: bool,
    /// Write the model as this pass leaves it, and stop; `PASS:2` is its second run. `fqvit-opt passes` lists them
    #[arg(long, value_name = "PASS[:N]", conflicts_with_all = ["json", "html", "judge", "verify", "min_sqnr", "min_agreement"])]
    pub stop_after: Option<String>,
    #[command(flatten)]
    pub report: ReportArgs,
}

impl CompileArgs {
    /// Refuses flags that would be given for nothing. `made`: files that are to be written because they are not there.
    pub fn check(&self, made: [Option<&Path>; 2]) -> Result<(), String> {
        let searched = self.accept.accept_command.is_some();
        self.keep.check(self.target_size.is_some(), searched || self.keep.keep_float.is_some())?;
        match (&self.stop_after, made.into_iter().flatten().next()) {
            (Some(_), Some(f)) => {
                Err(format!("--stop-after writes the model alone: {} is not there, and would not be made", f.display()))
            }
            _ => Ok(()),
        }
    }

    /// What is asked of the parts, if anything is.
    pub fn kept(&self) -> Option<Keep> {
        match self.target_size {
            None => self.keep.wanted(),
            size => Some(Keep::Reach(Goal { size, ..self.keep.goal() }, self.keep.by())),
        }
    }
}

/// A number of the user's own that the file must reach.
#[derive(Debug, Args)]
pub struct AcceptArgs {
    /// Find the fastest file that a command of yours accepts, such as `python eval.py {model}`: {model} is replaced by the
    /// file's name, and the last word that the command prints is a number, higher being better. Recipes are tried first, then
    /// parts get 16 bits or stay in float
    #[arg(long, value_name = "COMMAND", requires = "accept", conflicts_with_all = ["recipe", "keep_float", "target_sqnr", "target_size", "up_to", "plan", "stats", "fast"])]
    pub accept_command: Option<String>,
    /// The lowest number that is accepted
    #[arg(long, value_name = "X", value_parser = number, allow_negative_numbers = true, requires = "accept_command")]
    pub accept: Option<f64>,
    /// Recipes to try, from the fastest to the most precise [default: fq-vit,fq-vit-r16,linear-w8a8]
    #[arg(long, value_name = "NAMES", value_delimiter = ',', requires = "accept_command")]
    pub accept_recipes: Vec<String>,
    /// A file that keeps what was measured, so that an interrupted search can continue
    #[arg(long, value_name = "FILE", requires = "accept_command")]
    pub accept_state: Option<PathBuf>,
}

impl AcceptArgs {
    /// The command and the number, if they are given.
    pub fn wanted(&self) -> Option<(&str, f64)> {
        self.accept_command.as_deref().zip(self.accept)
    }
}

#[derive(Debug, Args)]
pub struct SensitivityArgs {
    /// The float model
    pub model: PathBuf,
    /// Statistics: read if the file exists, otherwise made and written there
    #[arg(long, value_name = "FILE")]
    pub stats: Option<PathBuf>,
    #[command(flatten)]
    pub keep: KeepArgs,
    /// Only quantize each part alone, and skip quantizing everything but it: half the time
    #[arg(long)]
    pub alone_only: bool,
    #[command(flatten)]
    pub prepare: PrepareArgs,
    #[command(flatten)]
    pub data: DataOptions,
    /// Write the findings as JSON (`-`: to standard output, instead of the table)
    #[arg(long, value_name = "FILE|-")]
    pub json: Option<PathBuf>,
    /// Write the findings as one HTML file
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// No progress on standard error
    #[arg(short, long)]
    pub quiet: bool,
}

/// Runtimes that can be asked for a second opinion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum JudgeArg {
    Onnxruntime,
}

/// Where the report goes, and what it must say.
#[derive(Debug, Args)]
#[command(next_help_heading = "Report")]
pub struct ReportArgs {
    /// Write the report as JSON (`-`: to standard output, instead of the readable one)
    #[arg(long, value_name = "FILE|-")]
    pub json: Option<PathBuf>,
    /// Write the report as one HTML file
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Lowest acceptable SQNR of any output in dB [default: the recipe's threshold; for `verify` 10]
    #[arg(long, value_name = "DB", value_parser = number, allow_negative_numbers = true)]
    pub min_sqnr: Option<f64>,
    /// Lowest acceptable top-1 agreement with the float model, from 0 to 1 [default: the recipe's threshold; for `verify`
    /// 0.9]
    #[arg(long, value_name = "SHARE", value_parser = share, allow_negative_numbers = true)]
    pub min_agreement: Option<f64>,
    /// Also run and time both models in this runtime, and apply the thresholds there
    #[arg(long, value_enum, value_name = "RUNTIME", conflicts_with = "no_verify")]
    pub judge: Option<JudgeArg>,
    /// The Python interpreter in which the runtime of --judge is installed
    #[arg(long, value_name = "FILE", default_value = "python3", requires = "judge")]
    pub python: PathBuf,
    /// With --judge: show beside it what that runtime's own static quantization makes of the float model, with its defaults
    #[arg(long, requires = "judge")]
    pub baseline: bool,
    /// Neither compare nor time the models
    #[arg(long)]
    pub no_verify: bool,
    /// Do not time the models in tract
    #[arg(long)]
    pub no_bench: bool,
    /// Print the figures of every block, what stays in float and why, and what was decided
    #[arg(short, long)]
    pub verbose: bool,
    /// No progress on standard error
    #[arg(short, long)]
    pub quiet: bool,
}

impl ReportArgs {
    /// Who is asked for a second opinion, if anybody is.
    ///
    /// # Errors
    /// If the runtime is not there.
    pub fn second(&self) -> Result<Option<Judge>, JudgeError> {
        let judge = self.judge.map(|JudgeArg::Onnxruntime| Judge::new(&self.python)).transpose()?;
        judge.map(|j| if self.baseline { j.with_baseline() } else { Ok(j) }).transpose()
    }

    /// Refuses a threshold that is asked for where nothing is compared.
    pub fn check(&self) -> Result<(), String> {
        if self.no_verify && self.limits().can_be_missed() {
            return Err(
                "--min-sqnr and --min-agreement cannot be used with --no-verify, which compares nothing".to_owned()
            );
        }
        Ok(())
    }

    /// What the result must reach.
    pub fn limits(&self) -> Limits {
        Limits { sqnr_db: self.min_sqnr, agreement: self.min_agreement }
    }
}

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// The model
    pub model: PathBuf,
    #[command(flatten)]
    pub prepare: PrepareArgs,
    /// Print the graph in ONNX's textual syntax, as the exporter wrote it
    #[arg(long)]
    pub text: bool,
    /// Print the graph in canonical form, which plans name the values of
    #[arg(long, conflicts_with = "text")]
    pub canonical: bool,
}

#[derive(Debug, Args)]
pub struct CalibrateArgs {
    /// The float model
    pub model: PathBuf,
    /// Where the statistics go
    #[arg(long, value_name = "FILE")]
    pub stats: PathBuf,
    /// Use only this part of the samples, such as 2/4; parts can be made on different machines and joined with --join
    #[arg(long, value_name = "I/N", value_parser = shard, conflicts_with = "join")]
    pub shard: Option<(u32, u32)>,
    /// Statistics files to join instead of running the model
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub join: Vec<PathBuf>,
    #[command(flatten)]
    pub prepare: PrepareArgs,
    #[command(flatten)]
    pub data: DataOptions,
    /// No progress on standard error
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct PlanArgs {
    /// The float model
    pub model: PathBuf,
    /// Where the plan goes
    #[arg(long, value_name = "FILE")]
    pub plan: PathBuf,
    /// Statistics: read if the file exists, otherwise made and written there
    #[arg(long, value_name = "FILE")]
    pub stats: Option<PathBuf>,
    #[command(flatten)]
    pub prepare: PrepareArgs,
    #[command(flatten)]
    pub data: DataOptions,
    /// No progress on standard error
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The float model
    pub float: PathBuf,
    /// The quantized model
    pub quantized: PathBuf,
    #[command(flatten)]
    pub data: DataOptions,
    /// Write the quantized model's outputs as arrays named like the graph's outputs
    #[arg(long, value_name = "FILE.npz")]
    pub outputs: Option<PathBuf>,
    /// Threads for running models [default: all processors]
    #[arg(long, value_name = "N", value_parser = threads)]
    pub threads: Option<usize>,
    #[command(flatten)]
    pub report: ReportArgs,
}

#[derive(Debug, Args)]
pub struct BenchArgs {
    /// The float model
    pub float: PathBuf,
    /// The quantized model
    pub quantized: PathBuf,
    /// How often each model runs; the two take turns
    #[arg(long, value_name = "N", default_value_t = 25, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub rounds: u64,
    #[command(flatten)]
    pub data: DataOptions,
    /// Write the times as JSON (`-`: to standard output, instead of the readable line)
    #[arg(long, value_name = "FILE|-")]
    pub json: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct EvalArgs {
    /// The model, float or quantized
    pub model: PathBuf,
    #[command(flatten)]
    pub data: DataOptions,
    /// Lowest acceptable top-1 accuracy, from 0 to 1; below it the exit status is 2
    #[arg(long, value_name = "SHARE", value_parser = share, allow_negative_numbers = true)]
    pub min_top1: Option<f64>,
    /// Write the figures as JSON (`-`: to standard output, instead of the readable ones)
    #[arg(long, value_name = "FILE|-")]
    pub json: Option<PathBuf>,
    /// Threads for running the model [default: all processors]
    #[arg(long, value_name = "N", value_parser = threads)]
    pub threads: Option<usize>,
    /// No progress on standard error
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct DiffArgs {
    /// One model
    pub a: PathBuf,
    /// The other
    pub b: PathBuf,
    /// Show every difference, not only the first of each kind
    #[arg(long)]
    pub all: bool,
    #[command(flatten)]
    pub data: DataOptions,
    /// Write what differs as JSON (`-`: to standard output, instead of the readable form)
    #[arg(long, value_name = "FILE|-")]
    pub json: Option<PathBuf>,
    /// Threads for running the models, if data is given [default: all processors]
    #[arg(long, value_name = "N", value_parser = threads)]
    pub threads: Option<usize>,
    /// Print nothing; the exit status tells
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct CompareArgs {
    /// The float model
    pub model: PathBuf,
    /// The recipes: shipped ones (see `fqvit-opt recipes`) or YAML files
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "fq-vit,cpu,linear-w8a8")]
    pub recipes: Vec<String>,
    #[command(flatten)]
    pub data: DataOptions,
    /// Data to verify on; without it every eighth calibration sample is held back
    #[arg(long, value_name = "DIR|FILE")]
    pub verify: Option<PathBuf>,
    /// How the quantized arithmetic is written [default: what each recipe says]
    #[arg(long, value_enum, value_name = "NAME")]
    pub target: Option<TargetArg>,
    /// Every processor that will run the files has VNNI
    #[arg(long)]
    pub assume_vnni: bool,
    /// A first look: at most 32 samples to calibrate on and 16 to verify on, weights rounded instead of fitted
    #[arg(long)]
    pub fast: bool,
    /// A folder for the compiled models, each named after its recipe; it is made if it is not there
    #[arg(long, value_name = "DIR")]
    pub output_dir: Option<PathBuf>,
    /// A folder with rules and recipes of your own
    #[arg(long, value_name = "DIR")]
    pub passes_dir: Option<PathBuf>,
    /// Write one page with a plot of accuracy against time
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write the figures as JSON (`-`: to standard output, instead of the table)
    #[arg(long, value_name = "FILE|-")]
    pub json: Option<PathBuf>,
    /// Threads for running models [default: all processors]
    #[arg(long, value_name = "N", value_parser = threads)]
    pub threads: Option<usize>,
    /// No progress on standard error
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub struct ManArgs {
    /// The command whose page it is [default: the page of the program]
    pub command: Option<String>,
    /// Write the pages of the program and of all commands into this folder
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    pub dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct PassesArgs {
    /// The pass to describe
    pub pass: Option<String>,
}

#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// The model
    pub model: PathBuf,
    /// Only this rule
    #[arg(long, value_name = "ID")]
    pub rule: Option<String>,
    /// The recipe whose preparation the model goes through first
    #[arg(long, value_name = "NAME|FILE", default_value = "fq-vit")]
    pub recipe: String,
    /// Do not raise the model's operator set
    #[arg(long)]
    pub keep_opset: bool,
    /// A folder with rules of your own
    #[arg(long, value_name = "DIR")]
    pub passes_dir: Option<PathBuf>,
}
