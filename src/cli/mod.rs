//! The command line: wiring between arguments, library and terminal. The only module that prints.

#![allow(clippy::print_stdout, clippy::print_stderr)]

/// Prints a line to standard output.
macro_rules! say {
    ($($text:tt)*) => { $crate::cli::put(format_args!("{}\n", format_args!($($text)*))) };
}

/// Prints to standard output, without an end of line.
macro_rules! say_raw {
    ($($text:tt)*) => { $crate::cli::put(format_args!($($text)*)) };
}

mod accept;
mod args;
mod bench;
mod compare;
mod compile;
mod diff;
mod eval;
mod files;
mod keep_args;
mod limits;
mod log;
mod outline;
mod sensitivity;
mod shell;
mod tools;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicI32, Ordering};

use clap::{CommandFactory, Parser};

use crate::budget;
use crate::calibrate::data::DataOptions;
use crate::compile::compiler::Verification;
use crate::compile::stages::all_threads;
use crate::file::{self, stop};
use crate::ir::{Model, nearest};
use crate::onnx;
use crate::verify::report::Report;
use args::{Cli, Command, ReportArgs};
use files::Files;
use log::Progress;

/// Any error, with its causes in its text.
type Failure = Box<dyn std::error::Error>;

/// Exit status when a threshold was missed.
const MISSED: u8 = 2;

/// Exit status of an error, of this call.
static FAILED: AtomicI32 = AtomicI32::new(1);

/// Runs the program.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    budget::keep_freed();
    ExitCode::from(status(args))
}

/// Runs the program, for whoever ends the process in another way. Returns the exit status.
pub fn status(args: impl Iterator<Item = OsString>) -> u8 {
    let args: Vec<OsString> = args.collect();
    let is_diff = args.get(1).is_some_and(|a| a == "diff");
    // As the program of that name has it: a difference is no error, and an error no difference.
    let (missed, failed) = if is_diff { (1, 2) } else { (MISSED, 1) };
    FAILED.store(failed.into(), Ordering::Relaxed);
    let cli = match Cli::try_parse_from(&args) {
        Ok(c) => c,
        Err(e) => {
            // Help and version are what such a call is for.
            if !e.use_stderr() && !file::has_output() {
                put_bytes(b"", true);
            }
            let _ = e.print();
            if let Some(meant) = args.get(1).filter(|_| e.use_stderr()).and_then(command_meant) {
                eprintln!("\n  tip: there is a command `{meant}`");
            }
            return if e.use_stderr() { failed } else { 0 };
        }
    };
    log::set(cli.log_format);
    if let Err(e) = stop::watch(|s| log::error(&s.to_string())) {
        log::warning(&format!("signals will leave temporary files behind: {e}"));
    }
    limits::begin(&cli.limits);
    let done = limits::whole(|| match cli.command {
        None => compile::compile(&cli.compile),
        Some(Command::Compile(a)) => compile::compile(&a),
        Some(Command::Inspect(a)) => tools::inspect(&a),
        Some(Command::Calibrate(a)) => compile::calibrate(&a),
        Some(Command::Plan(a)) => compile::plan(&a),
        Some(Command::Sensitivity(a)) => sensitivity::sensitivity(&a),
        Some(Command::Verify(a)) => compile::verify(&a),
        Some(Command::Bench(a)) => bench::bench(&a),
        Some(Command::Eval(a)) => eval::eval(&a),
        Some(Command::Diff(a)) => diff::diff(&a),
        Some(Command::Compare(a)) => compare::compare(&a),
        Some(Command::Explain(a)) => tools::explain(&a),
        Some(Command::Recipes) => tools::recipes(),
        Some(Command::Passes(a)) => tools::passes(&a),
        Some(Command::Completions(a)) => shell::completions(&a),
        Some(Command::Man(a)) => shell::man(&a),
    });
    match done {
        Ok(true) => 0,
        Ok(false) => missed,
        Err(e) => {
            log::error(&readable(&e.to_string()));
            failed
        }
    }
}

/// The command that a first word nearly is, if it is no file's name.
fn command_meant(word: &OsString) -> Option<String> {
    let word = word.to_str().filter(|w| !w.starts_with('-') && !Path::new(w).exists())?;
    let cli = Cli::command();
    let all = || cli.get_subcommands().map(clap::Command::get_name);
    if all().any(|name| name == word) {
        return None;
    }
    nearest(word, all()).map(str::to_owned)
}

/// Prints. A reader that has gone, as in `| head`, is no fault: everything else is written by then.
fn put(text: std::fmt::Arguments<'_>) {
    put_bytes(log::printable(&text.to_string()).as_bytes(), false);
}

/// As [`put`]; where the bytes are what the call is for, a reader that has gone is an error.
fn put_bytes(bytes: &[u8], product: bool) {
    use std::io::{ErrorKind, Write};
    let mut out = std::io::stdout().lock();
    let all = |out: &mut std::io::StdoutLock| match file::has_output() {
        true => out.write_all(bytes).and_then(|()| out.flush()),
        false => Err(std::io::Error::new(ErrorKind::NotConnected, "it is closed; open it, or send it to a file")),
    };
    match all(&mut out) {
        Ok(()) => {}
        // The exit status is what the call found, whoever reads on.
        Err(e) if e.kind() == ErrorKind::BrokenPipe && !product => {}
        // Where the files are what the call was for, a report that nobody can read is no fault.
        Err(e) if e.kind() == ErrorKind::NotConnected && !product && !file::written().is_empty() => {}
        Err(e) => {
            let done: Vec<_> = file::written().iter().map(|p| p.display().to_string()).collect();
            let done = if done.is_empty() {
                String::new()
            } else {
                format!("; these files were written: {}", done.join(", "))
            };
            log::error(&format!("standard output cannot be written: {e}{done}"));
            std::process::exit(FAILED.load(Ordering::Relaxed));
        }
    }
}

/// A message of hundreds of faults hides the first one, and so does a name of megabytes.
fn readable(message: &str) -> String {
    const LINES: usize = 20;
    const LETTERS: usize = 2000;
    let short = |line: &str| match line.char_indices().nth(LETTERS) {
        Some((at, _)) => format!("{} ... ({} letters more)", &line[..at], line[at..].chars().count()),
        None => line.to_owned(),
    };
    let message = message.lines().map(short).collect::<Vec<_>>().join("\n");
    let n = message.lines().count();
    if n <= LINES + 2 {
        return message;
    }
    let first: Vec<&str> = message.lines().take(LINES).collect();
    format!("{}\n... and {} lines more", first.join("\n"), n - LINES)
}

/// Reads a model and tells what the reader did not understand. Returns the bytes of its files as well.
fn load(what: &str, path: &Path, files: &mut Files, notes: &mut Vec<String>) -> Result<(Model, u64), Failure> {
    limits::reading(path);
    let loaded = onnx::load(path)?;
    limits::read(loaded.files.iter().map(|(_, n)| n).sum());
    files.loaded(what, &loaded)?;
    notes.extend(loaded.unknown.iter().map(|u| format!("{}: unknown field dropped: {u}", path.display())));
    Ok((loaded.model, loaded.files.iter().map(|(_, n)| n).sum()))
}

/// What to compare both models on: other data, or what calibration holds back.
fn on(other: Option<&Path>, options: &DataOptions) -> Verification {
    let data = |p: &Path| DataOptions { calibrate: Some(p.to_owned()), samples: None, ..options.clone() };
    other.map_or(Verification::HeldBack, |p| Verification::On(data(p).into()))
}

fn threads(asked: Option<usize>) -> usize {
    // More than any machine has; each takes a stack and a sample.
    const MOST: usize = 1024;
    asked.unwrap_or_else(all_threads).clamp(1, MOST)
}

/// Width of the terminal, as far as it says so.
fn columns() -> u16 {
    std::env::var("COLUMNS").ok().and_then(|c| c.parse().ok()).unwrap_or(100)
}

/// Holds the report ready where it was asked for, puts all files of the call in their places, and prints. `false` if a
/// threshold was missed.
fn deliver(report: &Report, how: &ReportArgs, mut files: Files) -> Result<bool, Failure> {
    if let Some(p) = &how.json {
        let json = report.to_json()? + if files::is_std(p) { "\n" } else { "" };
        files.write(p, json.as_bytes())?;
    }
    if let Some(p) = &how.html {
        files.write(p, report.to_html().as_bytes())?;
    }
    let taken = files.stdout_is_taken();
    files.commit()?;
    match (taken, how.reports_on_stdout()) {
        (false, _) => say!("{}", report.to_terminal(columns(), how.verbose)),
        // The model has standard output: people read the other one.
        (true, false) => log::plain("report", &report.to_terminal(columns(), how.verbose)),
        (true, true) => {}
    }
    Ok(report.passes())
}

impl ReportArgs {
    /// True if the report is to be a page, which shows single values: that takes both models over a few samples once more.
    fn is_read_closely(&self) -> bool {
        self.html.is_some()
    }

    /// True if a report for programs goes to standard output, in place of the readable one.
    fn reports_on_stdout(&self) -> bool {
        self.json.iter().chain(&self.html).any(|p| files::is_std(p))
    }
}
