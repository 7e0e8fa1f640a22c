//! File tests: a small program, what is done to it, and what must come out, in one text file.
//!
//! ```text
//! # pass: fold-constants      (one line for each pass, run in this order; or `# parse`, `# validate`)
//! # Anything else on a line with `#` is a remark.
//! <ir_version: 8, opset_import: ["" : 17]>
//! g (float[2] x) => (float[2] y) { y = Relu (x) }
//! ---
//! ...the printed result, or the error
//! ```
//!
//! A pass that carries out a plan finds it in `NAME.plan.yaml` beside `NAME.txt`. All passes of such a file work on one context, as in
//! a compilation, so that later ones know what earlier ones put in a planned value's place.
//!
//! `# full` among the header lines prints large constants too. `FQVIT_BLESS=1 cargo test --test golden` writes what
//! came out into the files; read the diff before committing it.
//!
//! Whatever is blessed, a file fails when a pass gets or leaves an invalid model, when the result does not survive
//! printing and parsing, or when the program computes something else after a pass than before it: both are run in tract
//! on seeded inputs and held to what the pass declares. `# not run: REASON` in the header is for programs that tract can
//! not run; a program that says so and runs all the same, with the same results, fails too. `# sizes: n=3 m=3` gives open sizes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use fqvit_opt::QuantPlan;
use fqvit_opt::compile::PassRun;
use fqvit_opt::compile::each::{EachError, verify_each};
use fqvit_opt::ir::validate::validate;
use fqvit_opt::ir::{DType, Def, Dim, Model};
use fqvit_opt::passes::{Context, registry};
use fqvit_opt::runtime::Array;
use fqvit_opt::text::{Elide, parse_model, print_model};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

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

/// The plan beside a file, if there is one.
fn plan_beside(path: &Path) -> Result<Option<QuantPlan>, String> {
    let path = path.with_extension("plan.yaml");
    match fs::read_to_string(&path) {
        Ok(text) => QuantPlan::from_yaml(&text, &path.display().to_string()).map(Some).map_err(|e| e.to_string()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(format!("{}: {e}", path.display())),
    }
}

/// What comes out, and the passes that ran without an error; `Err` is a failure that no blessing covers.
fn outcome(input: &str, plan: Option<&QuantPlan>) -> Result<(String, Vec<PassRun>), String> {
    let (task, elide) = task(input)?;
    let parsed = parse_model(input);
    if let (Task::Parse, Err(e)) = (&task, &parsed) {
        return Ok((format!("{e}\n"), Vec::new()));
    }
    let m = parsed.map_err(|e| format!("the program does not parse: {e}"))?;
    let mut steps = Vec::new();
    let text = match task {
        Task::Parse => print(&m, elide)?,
        Task::Validate => match validate(&m) {
            Ok(_) => "valid\n".to_owned(),
            Err(e) => format!("{e}\n"),
        },
        Task::Passes(ids) => {
            validate(&m).map_err(|e| format!("the program is invalid: {e}"))?;
            let mut cx = Context::new(m);
            if let Some(plan) = plan {
                cx.settle_types();
                let sites = cx.found_sites();
                cx = cx.with_plan(plan, &sites);
            }
            let mut notes = String::new();
            for id in ids {
                let pass = registry::pass(&id).ok_or_else(|| {
                    let known: Vec<&str> = registry::ALL.iter().map(|p| p.id()).collect();
                    format!("there is no pass `{id}`; there are: {}", known.join(", "))
                })?;
                if plan.is_none() {
                    // Nothing is known from the pass before.
                    cx = Context::new(cx.into_model());
                }
                let before = cx.model().clone();
                match pass.run(&mut cx) {
                    Ok(out) => {
                        notes.extend(out.notes.iter().map(|n| format!("# {id}: {n}\n")));
                        let (changes, numerics) = (out.changes, pass.numerics());
                        let models = Some([before, cx.model().clone()]);
                        steps.push(PassRun { pass: id.clone(), changes, numerics, models });
                    }
                    Err(e) => notes.push_str(&format!("# {id} failed: {e}\n")),
                }
                validate(cx.model()).map_err(|e| format!("pass `{id}` left an invalid model: {e}"))?;
            }
            print(cx.model(), elide)? + &notes
        }
    };
    Ok((text, steps))
}

/// Seeded numbers for every input of a program: what is open of a shape becomes 2 if it is in front somewhere, and 3, 4, ..
/// by name elsewhere, unless `sizes` says otherwise. Integers wide enough to be indices or sizes are 0 or 1.
fn feed(m: &Model, sizes: &[(&str, usize)]) -> Result<Vec<(String, Array)>, String> {
    let g = &m.graph;
    let mut rng = ChaCha8Rng::seed_from_u64(17);
    let mut open: BTreeMap<&str, usize> = sizes.iter().copied().collect();
    for v in g.inputs() {
        if let Some(Dim::Symbol(s)) = g.shape(*v).and_then(|s| s.first()) {
            open.entry(s).or_insert(2);
        }
    }
    let mut out = Vec::new();
    for v in g.inputs().iter().filter(|v| !matches!(g.value(**v).def, Def::InputWithDefault(_))) {
        let name = g.name_of(*v);
        let ty = g.value(*v).ty.as_ref().ok_or_else(|| format!("input {name} has no type"))?;
        let mut dims = Vec::new();
        for (i, d) in ty.shape.iter().flatten().enumerate() {
            let next = 3 + open.len();
            dims.push(match d {
                Dim::Known(n) => *n as usize,
                Dim::Symbol(s) => *open.entry(s).or_insert(next),
                Dim::Unknown if i == 0 => 2,
                Dim::Unknown => 3,
            });
        }
        let n: usize = dims.iter().product();
        let mut float = || (0..4).map(|_| rng.random::<f32>() - 0.5).sum::<f32>() * 1.75;
        let a = match ty.dtype {
            DType::FLOAT => Array::new(&dims, (0..n).map(|_| float()).collect()),
            DType::DOUBLE => Array::new(&dims, (0..n).map(|_| f64::from(float())).collect()),
            DType::FLOAT16 => Array::new(&dims, (0..n).map(|_| half::f16::from_f32(float())).collect()),
            DType::INT64 => Array::new(&dims, (0..n).map(|_| rng.random_range(0..2i64)).collect()),
            DType::INT32 => Array::new(&dims, (0..n).map(|_| rng.random_range(0..2i32)).collect()),
            DType::UINT8 => Array::new(&dims, (0..n).map(|_| rng.random::<u8>()).collect()),
            DType::INT8 => Array::new(&dims, (0..n).map(|_| rng.random::<i8>()).collect()),
            DType::UINT16 => Array::new(&dims, (0..n).map(|_| rng.random::<u16>()).collect()),
            DType::INT16 => Array::new(&dims, (0..n).map(|_| rng.random::<i16>()).collect()),
            DType::BOOL => Array::new(&dims, (0..n).map(|_| rng.random::<bool>()).collect()),
            other => return Err(format!("input {name} has type {other}")),
        };
        out.push((name.to_owned(), a.map_err(|e| e.to_string())?));
    }
    Ok(out)
}

/// Runs the program before and after each of its passes, and holds them to what they declare.
fn held(input: &str, steps: &[PassRun]) -> Result<(), String> {
    let header =
        |what: &str| input.lines().map_while(|l| l.strip_prefix('#')).find_map(|l| l.trim().strip_prefix(what));
    let excuse = header("not run:");
    let sizes = header("sizes:").unwrap_or_default();
    let sizes: Vec<(&str, usize)> = sizes
        .split_whitespace()
        .map(|s| s.split_once('=').and_then(|(name, n)| Some((name, n.parse().ok()?))))
        .collect::<Option<_>>()
        .ok_or("`# sizes:` takes NAME=N ..")?;
    let Some([first, _]) = steps.iter().find(|s| s.changes > 0).and_then(|s| s.models.as_ref()) else {
        return Ok(());
    };
    let ran = feed(first, &sizes).and_then(|inputs| {
        verify_each(steps, &inputs, 2).map_err(|e| match e {
            EachError::Runtime { pass, source } => format!("after {pass}: {source}"),
            other => other.to_string(),
        })
    });
    let moved = match (ran, excuse) {
        (Err(e), None) => {
            return Err(format!("the program does not run ({e}); give `# not run: REASON` if it cannot"));
        }
        (Err(_), Some(_)) => return Ok(()),
        (Ok(moved), Some(_)) if moved.iter().all(|m| m.kept) => {
            return Err("the header says `# not run`, but the program runs, and alike: take that line out".into());
        }
        (Ok(_), Some(_)) => return Ok(()),
        (Ok(moved), None) => moved,
    };
    let broken: Vec<String> = moved
        .iter()
        .filter(|m| !m.kept)
        .map(|m| format!("{} declares {:?} and moves {} by {:e}", m.pass, m.numerics, m.output, m.distance))
        .collect();
    if broken.is_empty() { Ok(()) } else { Err(broken.join("\n")) }
}

/// Checks one file, or rewrites its expectation.
fn check(path: &Path, bless: bool) -> Result<(), String> {
    let text = fs::read_to_string(path).map_err(|e| e.to_string())?;
    let (input, expected) = match text.split_once(&format!("\n{RULE}")) {
        Some((input, expected)) => (format!("{input}\n"), expected),
        None if bless => (format!("{}\n", text.trim_end()), ""),
        None => return Err(format!("there is no line `{}` with the expected result below it", RULE.trim_end())),
    };
    let plan = plan_beside(path)?;
    let (got, steps) = outcome(&input, plan.as_ref())?;
    held(&input, &steps)?;
    if got == expected {
        return Ok(());
    }
    if bless {
        return fs::write(path, format!("{input}{RULE}{got}")).map_err(|e| e.to_string());
    }
    let diff = similar::TextDiff::from_lines(expected, got.as_str());
    Err(diff.unified_diff().context_radius(3).header("expected", "got").to_string())
}

/// Every registered pass is shown at work, and shown leaving a program alone that is not meant for it.
#[test]
fn every_pass_fires_somewhere_and_is_quiet_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let (mut fired, mut quiet) = (BTreeSet::new(), BTreeSet::new());
    for f in files(&root) {
        let text = fs::read_to_string(&f).expect("a readable file");
        let input = text.split_once(&format!("\n{RULE}")).map_or(text.as_str(), |(i, _)| i);
        let plan = plan_beside(&f).expect("a plan");
        for s in outcome(&format!("{input}\n"), plan.as_ref()).map(|(_, steps)| steps).unwrap_or_default() {
            // Of a pass that takes a number, any number will do.
            let names = [s.pass.clone(), s.pass.split('=').next().expect("a name").to_owned()];
            let seen = if s.changes > 0 { &mut fired } else { &mut quiet };
            seen.extend(names.into_iter().filter(|n| registry::names().any(|known| known == n)));
        }
    }
    let lacking =
        |seen: &BTreeSet<String>| -> Vec<&str> { registry::names().filter(|name| !seen.contains(*name)).collect() };
    assert!(
        lacking(&fired).is_empty() && lacking(&quiet).is_empty(),
        "no file below tests/golden shows these passes at work: {:?}; nor these leaving a program alone: {:?}",
        lacking(&fired),
        lacking(&quiet)
    );
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
