//! File tests: a small program, what is done to it, and what must come out, in one text file.
//!
//! ```text
//! # pass: fold-constants      (one line for each pass, or widen-floats, run in this order; or `# parse`, `# validate`)
//! # Anything else on a line with `#` is a remark.
//! <ir_version: 8, opset_import: ["" : 17]>
//! g (float[2] x) => (float[2] y) { y = Relu (x) }
//! ---
//! ...the printed result, or the error
//! ```
//!
//! `# full` among the header lines prints large constants too. `FQVIT_BLESS=1 cargo test --test golden` writes what
//! came out into the files; read the diff before committing it.
//!
//! Whatever is blessed, a file fails when a pass gets or leaves an invalid model, or when the result does not survive
//! printing and parsing.

use std::fs;
use std::path::{Path, PathBuf};

use fqvit_opt::ir::Model;
use fqvit_opt::ir::validate::validate;
use fqvit_opt::passes::registry;
use fqvit_opt::passes::widen_floats::widen_floats;
use fqvit_opt::text::{Elide, parse_model, print_model};

const RULE: &str = "---\n";

/// What the header asks for.
enum Task {
    Parse,
    Validate,
    Passes(Vec<String>),
}

fn task(input: &str) -> Result<(Task, Elide), String> {
    let (mut task, mut elide) = (None, Elide::default());
    for line in input.lines().map_while(|l| l.strip_prefix('#')).map(str::trim) {
        let next = match line {
            "parse" => Task::Parse,
            "validate" => Task::Validate,
            "full" => {
                elide = Elide::Full;
                continue;
            }
            _ => match (line.strip_prefix("pass:"), &mut task) {
                (Some(id), Some(Task::Passes(ids))) => {
                    ids.push(id.trim().to_owned());
                    continue;
                }
                (Some(id), _) => Task::Passes(vec![id.trim().to_owned()]),
                (None, _) => continue,
            },
        };
        if task.replace(next).is_some() {
            return Err("the header asks for more than one kind of thing".to_owned());
        }
    }
    task.map(|t| (t, elide))
        .ok_or_else(|| "the header asks for nothing: `# pass: ID`, `# parse` or `# validate`".into())
}

/// The printed model, which must also read back as what it is.
fn print(m: &Model, elide: Elide) -> Result<String, String> {
    let full = print_model(m, Elide::Full);
    let again = parse_model(&full).map_err(|e| format!("the printed result does not parse: {e}\n{full}"))?;
    if print_model(&again, Elide::Full) != full {
        return Err(format!("the printed result reads back as another model:\n{full}"));
    }
    Ok(print_model(m, elide))
}

/// What comes out; `Err` is a failure that no blessing covers.
fn outcome(input: &str) -> Result<String, String> {
    let (task, elide) = task(input)?;
    let parsed = parse_model(input);
    if let (Task::Parse, Err(e)) = (&task, &parsed) {
        return Ok(format!("{e}\n"));
    }
    let mut m = parsed.map_err(|e| format!("the program does not parse: {e}"))?;
    match task {
        Task::Parse => print(&m, elide),
        Task::Validate => Ok(match validate(&m) {
            Ok(_) => "valid\n".to_owned(),
            Err(e) => format!("{e}\n"),
        }),
        Task::Passes(ids) => {
            validate(&m).map_err(|e| format!("the program is invalid: {e}"))?;
            let mut notes = String::new();
            for id in ids {
                // A step of preparation that is no pass, because it changes what the model computes with.
                if id == "widen-floats" {
                    notes.push_str(&match widen_floats(&mut m) {
                        Ok(n) => format!("# {id}: {n} weights\n"),
                        Err(e) => format!("# {id} failed: {e}\n"),
                    });
                    validate(&m).map_err(|e| format!("`{id}` left an invalid model: {e}"))?;
                    continue;
                }
                let pass = registry::pass(&id).ok_or_else(|| {
                    let known: Vec<&str> = registry::all().iter().map(|p| p.id()).collect();
                    format!("there is no pass `{id}`; there are: {}", known.join(", "))
                })?;
                match pass.run(&mut m) {
                    Ok(out) => notes.extend(out.notes.iter().map(|n| format!("# {id}: {n}\n"))),
                    Err(e) => notes.push_str(&format!("# {id} failed: {e}\n")),
                }
                validate(&m).map_err(|e| format!("pass `{id}` left an invalid model: {e}"))?;
            }
            Ok(print(&m, elide)? + &notes)
        }
    }
}

/// Checks one file, or rewrites its expectation.
fn check(path: &Path, bless: bool) -> Result<(), String> {
    let text = fs::read_to_string(path).map_err(|e| e.to_string())?;
    let (input, expected) = match text.split_once(&format!("\n{RULE}")) {
        Some((input, expected)) => (format!("{input}\n"), expected),
        None if bless => (format!("{}\n", text.trim_end()), ""),
        None => return Err(format!("there is no line `{}` with the expected result below it", RULE.trim_end())),
    };
    let got = outcome(&input)?;
    if got == expected {
        return Ok(());
    }
    if bless {
        return fs::write(path, format!("{input}{RULE}{got}")).map_err(|e| e.to_string());
    }
    let diff = similar::TextDiff::from_lines(expected, got.as_str());
    Err(diff.unified_diff().context_radius(3).header("expected", "got").to_string())
}

/// All `.txt` files below a folder, sorted.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() {
            out.extend(files(&path));
        } else if path.extension().is_some_and(|e| e == "txt") {
            out.push(path);
        }
    }
    out.sort();
    out
}

#[test]
fn every_file_gives_what_it_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let bless = std::env::var_os("FQVIT_BLESS").is_some_and(|v| v == "1");
    let files = files(&root);
    assert!(!files.is_empty(), "no file below {}", root.display());
    let failures: Vec<String> = files
        .iter()
        .filter_map(|f| {
            Some(format!("== {}\n{}", f.strip_prefix(&root).unwrap_or(f).display(), check(f, bless).err()?))
        })
        .collect();
    assert!(
        failures.is_empty(),
        "{} of {} files differ; FQVIT_BLESS=1 accepts what came out\n\n{}",
        failures.len(),
        files.len(),
        failures.join("\n")
    );
}

#[test]
fn a_wrong_expectation_is_seen() {
    let dir = tempfile::tempdir().expect("a scratch folder");
    let path = dir.path().join("a.txt");
    let program = "# parse\n<ir_version: 8, opset_import: [\"\" : 17]>\ng (x) => (x) {}\n";
    fs::write(&path, program).expect("a writable folder");
    assert!(check(&path, false).is_err_and(|e| e.contains("expected result")));
    check(&path, true).expect("blessed");
    check(&path, false).expect("as blessed");
    let blessed = fs::read_to_string(&path).expect("still there");
    fs::write(&path, blessed.replace("ir_version: 8,\n", "ir_version: 9,\n")).expect("a writable folder");
    assert!(check(&path, false).is_err_and(|e| e.contains("-   ir_version: 9,\n+   ir_version: 8,")));
}
