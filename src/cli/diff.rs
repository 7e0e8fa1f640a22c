//! `diff`: what two models differ in.

use serde::Serialize;

use super::args::DiffArgs;
use super::files::Files;
use super::{Failure, Progress, load, threads};
use crate::compile::comparison::{Comparison, Read};
use crate::compile::difference::{Change, Difference, difference};
use crate::verify::metrics::shown_db;
use crate::verify::report::ModelFile;

/// How many of the things that differ are told of each kind.
const SHOWN: usize = 20;

/// What is told to programs.
#[derive(Serialize)]
struct DiffReport<'a> {
    tool: String,
    a: String,
    b: String,
    same: bool,
    #[serde(flatten)]
    difference: &'a Difference,
    /// Signal to noise of each output in dB, the first model being right; with data.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sqnr: Vec<(String, f64)>,
}

pub fn diff(a: &DiffArgs) -> Result<bool, Failure> {
    let mut files = Files::default();
    files.reads("A", &a.a)?;
    files.reads("B", &a.b)?;
    let options = files.samples("--data", &a.data, &a.a)?;
    a.json.iter().try_for_each(|p| files.writes_or_prints("--json", p))?;
    files.check()?;
    let mut notes = Vec::new();
    let (x, x_bytes) = load("A", &a.a, &mut files, &mut notes)?;
    let (y, y_bytes) = load("B", &a.b, &mut files, &mut notes)?;
    let found = difference(&x, &y);
    let mut sqnr = Vec::new();
    if options.calibrate.is_some() {
        let read = |model, name: &std::path::Path, bytes| Read {
            model,
            file: ModelFile { name: name.display().to_string(), bytes },
        };
        let progress = Progress::new(a.quiet);
        let done = Comparison::new(read(x, &a.a, x_bytes), read(y, &a.b, y_bytes))
            .on(options)
            .bench(false)
            .threads(threads(a.threads))
            .tell(progress.listener())
            .run()?;
        sqnr = done.report.outputs.iter().map(|m| (m.tensor.clone(), m.sqnr_db)).collect();
        notes.extend(done.report.notes);
    }
    if let Some(f) = &a.json {
        let told = DiffReport {
            tool: format!("fqvit-opt {}", env!("CARGO_PKG_VERSION")),
            a: a.a.display().to_string(),
            b: a.b.display().to_string(),
            same: found.is_empty(),
            difference: &found,
            sqnr: sqnr.clone(),
        };
        files.write(f, format!("{}\n", serde_json::to_string_pretty(&told)?).as_bytes())?;
    }
    let taken = files.stdout_is_taken();
    files.commit()?;
    if !taken && !a.quiet {
        say_raw!("{}", readable(&found, a.all));
        for (output, db) in &sqnr {
            say!("{output}: {}", shown_db(*db));
        }
        notes.iter().for_each(|n| super::log::note(n));
    }
    Ok(found.is_empty())
}

fn readable(d: &Difference, all: bool) -> String {
    if d.is_empty() {
        return format!("the same: {} nodes, {} initializers\n", d.compared.nodes[0], d.compared.initializers[0]);
    }
    let mut out = String::new();
    for (what, changes) in d.sections().into_iter().filter(|(_, c)| !c.is_empty()) {
        let of = match what {
            "nodes" => format!(" (of {} and {})", d.compared.nodes[0], d.compared.nodes[1]),
            "initializers" => format!(" (of {} and {})", d.compared.initializers[0], d.compared.initializers[1]),
            _ => String::new(),
        };
        out += &format!("{what}: {} differ{of}\n", changes.len());
        let shown = if all { changes.len() } else { SHOWN.min(changes.len()) };
        changes[..shown].iter().for_each(|c| out += &lines(what, c));
        if shown < changes.len() {
            out += &format!("  ... and {} more; --all shows them\n", changes.len() - shown);
        }
    }
    out
}

/// `- a` and `+ b`, as diff writes them; short ones on one line.
fn lines(what: &str, c: &Change) -> String {
    match (&c.a, &c.b) {
        // A node's line begins with what it makes.
        (a, b) if what == "nodes" => {
            let line = |sign: &str, t: &Option<String>| t.as_ref().map_or(String::new(), |t| format!("  {sign} {t}\n"));
            line("-", a) + &line("+", b)
        }
        (Some(a), Some(b)) => format!("  {}: {a} -> {b}\n", c.name),
        (Some(a), None) => format!("  - {}: {a}\n", c.name),
        (None, b) => format!("  + {}: {}\n", c.name, b.as_deref().unwrap_or_default()),
    }
}
