//! What the program says while it works, on standard error: lines for people, or one JSON object a line for programs.

use std::borrow::Cow;
use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use super::args::LogFormat;
use crate::compile::stages::{Event, Listener};

/// Whether `--log-format json` was given: the whole process has one standard error.
static JSON: AtomicBool = AtomicBool::new(false);

/// How often a stage says how far it is where no bar can: in a log, and to a program.
const BETWEEN_LINES: Duration = Duration::from_secs(30);
const BETWEEN_OBJECTS: Duration = Duration::from_secs(1);

pub(super) fn set(format: LogFormat) {
    JSON.store(format == LogFormat::Json, Ordering::Relaxed);
}

fn is_json() -> bool {
    JSON.load(Ordering::Relaxed)
}

pub(super) fn error(message: &str) {
    said("error", message, &format!("error: {message}"));
}

pub(super) fn warning(message: &str) {
    said("warning", message, &format!("warning: {message}"));
}

pub(super) fn note(message: &str) {
    said("note", message, &format!("note: {message}"));
}

/// Says something as it is; `event` is what a program is told that it is.
pub(super) fn plain(event: &str, message: &str) {
    said(event, message, message);
}

/// A line on standard error. Where that cannot be written to, the work goes on without it.
fn line(text: impl Display) {
    drop(writeln!(std::io::stderr().lock(), "{text}"));
}

fn said(event: &str, message: &str, text: &str) {
    if is_json() {
        line(json!({"event": event, "message": message}));
    } else {
        line(printable(text));
    }
}

/// A text for a terminal: control characters, which names in a file may hold and a terminal obeys, are written as escapes.
/// Ends of lines, tabs and colours are left.
pub(super) fn printable(text: &str) -> Cow<'_, str> {
    let plain = |c: char| !c.is_control() || c == '\n' || c == '\t';
    if text.chars().all(plain) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for (at, c) in text.char_indices() {
        if plain(c) || c == '\u{1b}' && is_colour(&text[at + 1..]) {
            out.push(c);
        } else {
            out.extend(c.escape_unicode());
        }
    }
    Cow::Owned(out)
}

/// What follows the escape of a colour: `[`, numbers, `m`.
fn is_colour(after: &str) -> bool {
    let numbers = after.strip_prefix('[').map(|n| n.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';'));
    numbers.is_some_and(|rest| rest.starts_with('m'))
}

/// Tells how far the stages of a run are.
#[derive(Clone)]
pub(super) struct Progress {
    quiet: bool,
    stage: Arc<Mutex<Option<Stage>>>,
}

struct Stage {
    what: &'static str,
    begun: Instant,
    /// When it was last told how far it is.
    told: Instant,
    shown: Shown,
}

enum Shown {
    Bar(ProgressBar),
    Lines,
    Objects,
}

impl Progress {
    pub(super) fn new(quiet: bool) -> Progress {
        Progress { quiet, stage: Arc::default() }
    }

    pub(super) fn listener(&self) -> Listener {
        let p = self.clone();
        Arc::new(move |e| match e {
            _ if p.quiet => {}
            Event::Note(message) => note(message),
            Event::Step { what, done, of } => p.step(what, done, of),
        })
    }

    fn step(&self, what: &'static str, done: usize, of: usize) {
        let Ok(mut stage) = self.stage.lock() else { return };
        let now = match stage.take() {
            Some(s) if s.what == what => stage.insert(s),
            _ => stage.insert(Stage::begin(what, of)),
        };
        now.tell(done, of);
        if done >= of {
            now.end(of);
            *stage = None;
        }
    }
}

impl Stage {
    fn begin(what: &'static str, of: usize) -> Stage {
        let now = Instant::now();
        let shown = match () {
            () if is_json() => Shown::Objects,
            () if std::io::stderr().is_terminal() => Shown::Bar(bar(what, of)),
            () => Shown::Lines,
        };
        if let Shown::Objects = shown {
            line(json!({"event": "stage", "stage": what, "done": 0, "of": of}));
        }
        Stage { what, begun: now, told: now, shown }
    }

    fn tell(&mut self, done: usize, of: usize) {
        let between = match &self.shown {
            Shown::Bar(b) => return b.set_position(done as u64),
            Shown::Lines => BETWEEN_LINES,
            Shown::Objects => BETWEEN_OBJECTS,
        };
        if done == 0 || done >= of || self.told.elapsed() < between {
            return;
        }
        self.told = Instant::now();
        let seconds = self.begun.elapsed().as_secs_f64();
        let left = seconds / done as f64 * (of - done) as f64;
        match self.shown {
            Shown::Objects => line(
                json!({"event": "stage", "stage": self.what, "done": done, "of": of, "seconds": rounded(seconds), "left": rounded(left)}),
            ),
            _ => line(format_args!("{}: {done} of {of}, {left:.0} s left", self.what)),
        }
    }

    fn end(&self, of: usize) {
        let seconds = self.begun.elapsed().as_secs_f64();
        match &self.shown {
            Shown::Bar(b) => b.finish_and_clear(),
            Shown::Lines => line(format_args!("{}: {of} in {seconds:.1} s", self.what)),
            Shown::Objects => {
                line(json!({"event": "stage", "stage": self.what, "done": of, "of": of, "seconds": rounded(seconds)}))
            }
        }
    }
}

fn rounded(seconds: f64) -> f64 {
    (seconds * 10.0).round() / 10.0
}

fn bar(what: &'static str, n: usize) -> ProgressBar {
    let b = ProgressBar::new(n as u64).with_message(what);
    b.set_draw_target(ProgressDrawTarget::stderr());
    let style =
        ProgressStyle::with_template("{msg:>12} {bar:32} {pos}/{len} {per_sec} {eta}").expect("a fixed template");
    b.set_style(style);
    b
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_gets_nothing_to_obey_but_colours() {
        assert_eq!(printable("y: 3\tdB\n"), "y: 3\tdB\n");
        assert_eq!(printable("\u{1b}[1;31mred\u{1b}[0m"), "\u{1b}[1;31mred\u{1b}[0m");
        assert_eq!(printable("a\u{1b}]0;title\u{7}b\u{1b}[2Jc\r"), "a\\u{1b}]0;title\\u{7}b\\u{1b}[2Jc\\u{d}");
    }
}
