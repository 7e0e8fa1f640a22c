//! The command line: wiring between arguments, library and terminal. The only room that prints.

#![allow(clippy::print_stdout, clippy::print_stderr)]

/// Prints a line to standard output.
macro_rules! say {
    ($($text:tt)*) => { $crate::cli::put(format_args!("{}\n", format_args!($($text)*))) };
}

/// Prints to standard output, without an end of line.
macro_rules! say_raw {
    ($($text:tt)*) => { $crate::cli::put(format_args!($($text)*)) };
}

mod args;
mod bench;
mod compile;
mod limits;
mod sensitivity;
mod tools;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::file::{self, Pending};
use crate::ir::Model;
use crate::onnx;
use crate::pattern::RuleSet;
use crate::verify::report::{Report, Timing};
use args::{Cli, Command, ReportArgs};

/// Any error, with its causes in its text.
type Failure = Box<dyn std::error::Error>;

/// Exit status when a threshold was missed.
const MISSED: u8 = 2;

/// Runs the program.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(c) => c,
        Err(e) => {
            let _ = e.print();
            return if e.use_stderr() { ExitCode::from(1) } else { ExitCode::SUCCESS };
        }
    };
    limits::begin(&cli.limits);
    let done = limits::whole(|| match cli.command {
        None => compile::compile(&cli.compile),
        Some(Command::Inspect(a)) => tools::inspect(&a),
        Some(Command::Calibrate(a)) => compile::calibrate(&a),
        Some(Command::Plan(a)) => compile::plan(&a),
        Some(Command::Sensitivity(a)) => sensitivity::sensitivity(&a),
        Some(Command::Verify(a)) => compile::verify(&a),
        Some(Command::Bench(a)) => bench::bench(&a),
        Some(Command::Explain(a)) => tools::explain(&a),
        Some(Command::Recipes) => tools::recipes(),
    });
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(MISSED),
        Err(e) => {
            eprintln!("error: {}", readable(&e.to_string()));
            ExitCode::from(1)
        }
    }
}

/// Prints. A reader that has gone, as in `| head`, ends the program quietly; everything else is written by then.
fn put(text: std::fmt::Arguments<'_>) {
    use std::io::{ErrorKind, Write};
    let mut out = std::io::stdout().lock();
    match out.write_fmt(text).and_then(|()| out.flush()) {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        Err(e) => {
            eprintln!("error: standard output can not be written: {e}");
            std::process::exit(1);
        }
    }
}

/// A message of hundreds of faults hides the first one.
fn readable(message: &str) -> String {
    const LINES: usize = 20;
    let n = message.lines().count();
    if n <= LINES + 2 {
        return message.to_owned();
    }
    let first: Vec<&str> = message.lines().take(LINES).collect();
    format!("{}\n... and {} lines more", first.join("\n"), n - LINES)
}

/// Reads a model and tells what the reader did not understand.
fn load(path: &Path, notes: &mut Vec<String>) -> Result<Model, Failure> {
    limits::reading(path);
    let loaded = onnx::load(path)?;
    limits::read(file_bytes(path, &loaded.model));
    notes.extend(loaded.unknown.iter().map(|u| format!("{}: unknown field dropped: {u}", path.display())));
    Ok(loaded.model)
}

/// Shipped rules and the user's own.
fn rules(dir: Option<&Path>) -> Result<RuleSet, Failure> {
    let mut rules = RuleSet::embedded()?;
    if let Some(d) = dir {
        let own = d.join("rules");
        if !d.is_dir() {
            return Err(format!("--passes-dir {}: no such folder", d.display()).into());
        }
        rules.load_dir(if own.is_dir() { &own } else { d })?;
    }
    Ok(rules)
}

fn threads(asked: Option<usize>) -> usize {
    // More than any machine has; each takes a stack and a sample.
    const MOST: usize = 1024;
    asked.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)).clamp(1, MOST)
}

/// A stage with a bar on standard error.
fn bar(what: &'static str, n: usize, quiet: bool) -> ProgressBar {
    let b = ProgressBar::new(n as u64).with_message(what);
    b.set_draw_target(if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() });
    let style = ProgressStyle::with_template("{msg:>12} {bar:32} {pos}/{len} {eta}").expect("a fixed template");
    b.set_style(style);
    b
}

/// Width of the terminal, as far as it says so.
fn columns() -> u16 {
    std::env::var("COLUMNS").ok().and_then(|c| c.parse().ok()).unwrap_or(100)
}

/// Runs a stage and keeps its time.
fn timed<T>(timings: &mut Vec<Timing>, stage: &str, f: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    let t = Instant::now();
    let r = f()?;
    timings.push(Timing { stage: stage.to_owned(), seconds: t.elapsed().as_secs_f64() });
    Ok(r)
}

/// Fails early, before minutes of work, if a file could not be written later.
fn writable(path: &Path) -> Result<(), Failure> {
    Ok(Pending::create(path).map(drop)?)
}

/// Refuses a command line on which two things have one file: the later would destroy the earlier.
fn distinct(paths: &[(&str, Option<&Path>)]) -> Result<(), Failure> {
    let mut seen: Vec<(&str, PathBuf)> = Vec::new();
    for (what, path) in paths {
        let Some(path) = path.filter(|p| *p != Path::new("-")) else { continue };
        let place = place(path);
        if let Some((other, _)) = seen.iter().find(|(_, p)| *p == place) {
            return Err(format!("{what} and {other} are the same file, {}; give another name", path.display()).into());
        }
        seen.push((what, place));
    }
    Ok(())
}

/// Where a path leads, whether the file exists or not.
fn place(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| {
        let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
        dir.canonicalize().unwrap_or(dir.to_owned()).join(path.file_name().unwrap_or_default())
    })
}

/// Bytes of a model with its external data.
fn file_bytes(path: &Path, m: &Model) -> u64 {
    use crate::ir::{Def, Payload};
    let size = |p: PathBuf| std::fs::metadata(p).map_or(0, |m| m.len());
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut files: Vec<String> = m
        .graph
        .values()
        .filter_map(|(_, v)| match &v.def {
            Def::Init(t) | Def::InputWithDefault(t) => match &t.data {
                Payload::External(e) => e.entries.iter().find(|(k, _)| k == "location").map(|(_, v)| v.clone()),
                _ => None,
            },
            _ => None,
        })
        .collect();
    files.sort();
    files.dedup();
    size(path.to_owned()) + files.into_iter().map(|f| size(dir.join(f))).sum::<u64>()
}

impl ReportArgs {
    /// Files that will be written, checked before the work begins.
    fn writable(&self) -> Result<(), Failure> {
        let json = self.json.as_deref().filter(|p| *p != Path::new("-"));
        json.into_iter().chain(self.html.as_deref()).try_for_each(writable)
    }
}

/// Sends the report where it was asked for; `false` if a threshold was missed.
fn deliver(report: &Report, how: &ReportArgs) -> Result<bool, Failure> {
    let to_stdout = how.json.as_deref() == Some(Path::new("-"));
    match &how.json {
        Some(_) if to_stdout => say!("{}", report.to_json()?),
        Some(p) => file::write(p, report.to_json()?.as_bytes())?,
        None => {}
    }
    if let Some(p) = &how.html {
        file::write(p, report.to_html().as_bytes())?;
    }
    if !to_stdout {
        say!("{}", report.to_terminal(columns()));
    }
    Ok(report.passes())
}
