//! Commands about models that are there: `eval`, `diff`, `compare`; and what shells and manuals get.

#![cfg(all(feature = "cli", feature = "tract"))]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;
use fqvit_opt::calibrate::stats::StatsFile;
use fqvit_opt::quant::observe::Stats;
use serde_json::Value;
use tempfile::TempDir;

fn digits(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/digits").join(name).to_str().expect("a plain path").to_owned()
}

fn place() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn run(dir: &TempDir, args: &[&str]) -> Output {
    let mut c = Command::cargo_bin("fqvit-opt").expect("the program is built");
    c.current_dir(dir.path()).env("COLUMNS", "120").args(args).output().expect("it runs")
}

fn code(o: &Output) -> Option<i32> {
    o.status.code()
}

fn out(o: &Output) -> String {
    String::from_utf8_lossy(&o.stdout).into_owned()
}

fn err(o: &Output) -> String {
    String::from_utf8_lossy(&o.stderr).into_owned()
}

fn json(o: &Output) -> Value {
    serde_json::from_str(&out(o)).unwrap_or_else(|e| panic!("{e}: {}{}", out(o), err(o)))
}

/// The digits, quantized fast.
fn quantized(dir: &TempDir, recipe: &str) -> String {
    let name = format!("{recipe}.onnx");
    let (m, c) = (digits("digits_vit.onnx"), digits("digits_calib.npz"));
    let o = run(dir, &[&m, "-o", &name, "--calibrate", &c, "--recipe", recipe, "--fast", "--no-verify", "--quiet"]);
    assert_eq!(code(&o), Some(0), "{}", err(&o));
    name
}

#[test]
fn eval_counts_the_labels_that_are_met() {
    let dir = place();
    let (m, e) = (digits("digits_vit.onnx"), digits("digits_eval.npz"));
    let o = run(&dir, &["eval", &m, "--data", &e, "--json", "-", "--quiet"]);
    let found = json(&o);
    assert_eq!((found["version"].as_u64(), found["samples"].as_u64()), (Some(1), Some(500)));
    let hit = &found["outputs"][0]["accuracy"];
    let top1 = hit["top1"].as_f64().expect("labels");
    assert!(top1 > 0.9 && top1 <= hit["top5"].as_f64().expect("ten classes"), "{found}");
    assert_eq!(hit["samples"], 500);

    let text = out(&run(&dir, &["eval", &m, "--images", &e, "--quiet"]));
    let hits = (top1 * 500.0).round();
    assert!(text.contains(&format!("({hits} of 500)")) && text.contains("top-5"), "{text}");

    // A quantized model is one as well, and a threshold is an exit status.
    let q = quantized(&dir, "fq-vit");
    assert_eq!(code(&run(&dir, &["eval", &q, "--data", &e, "--min-top1", "0.9", "--quiet"])), Some(0));
    assert_eq!(code(&run(&dir, &["eval", &q, "--data", &e, "--min-top1", "1", "--quiet"])), Some(2));
    let o = run(&dir, &["eval", &q, "--data", &digits("digits_calib.npz"), "--min-top1", "0.9", "--quiet"]);
    assert!(code(&o) == Some(1) && err(&o).contains("no classes to compare with"), "{}", err(&o));
}

#[test]
fn eval_takes_folders_as_classes_only_if_there_is_one_for_each() {
    let dir = place();
    let m = digits("digits_vit.onnx");
    for class in 0..10 {
        let folder = dir
            .path()
            .join(format!("digits/{}", ["zero", "one"].get(class).map_or(format!("z{class}"), |s| (*s).into())));
        fs::create_dir_all(&folder).expect("writable");
        image::GrayImage::from_fn(8, 8, |x, y| image::Luma([(x * 20 + y) as u8]))
            .save(folder.join("a.png"))
            .expect("writable");
    }
    let found = json(&run(&dir, &["eval", &m, "--images", "digits", "--json", "-", "--quiet"]));
    assert_eq!(found["outputs"][0]["accuracy"]["top1"], 0.1, "the same picture ten times");
    fs::remove_dir_all(dir.path().join("digits/zero")).expect("removable");
    let found = json(&run(&dir, &["eval", &m, "--images", "digits", "--json", "-", "--quiet"]));
    assert!(found["outputs"][0]["accuracy"].is_null());
    let notes = found["notes"].to_string();
    assert!(notes.contains("9 folders of pictures, but the model tells 10 classes"), "{notes}");
}

#[test]
fn diff_tells_what_differs_and_by_its_exit_status() {
    let dir = place();
    let m = digits("digits_vit.onnx");
    let o = run(&dir, &["diff", &m, &m]);
    assert!(code(&o) == Some(0) && out(&o).starts_with("the same: "), "{}{}", out(&o), err(&o));
    let q = quantized(&dir, "linear-w8a8");
    let o = run(&dir, &["diff", &m, &q, "--data", &digits("digits_eval.npz"), "--samples", "8"]);
    let text = out(&o);
    assert_eq!(code(&o), Some(1), "{}", err(&o));
    for part in ["operators: ", "  + QuantizeLinear: ", "nodes: ", "initializers: ", " dB"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let found = json(&run(&dir, &["diff", &m, &q, "--json", "-"]));
    assert_eq!(found["same"], false);
    let ops = found["operators"].as_array().expect("a list");
    assert!(ops.iter().any(|o| o["name"] == "QuantizeLinear" && o["a"].is_null()), "{ops:?}");
    // An error is no difference.
    let o = run(&dir, &["diff", &m, "gone.onnx"]);
    assert!(code(&o) == Some(2) && err(&o).contains("gone.onnx"), "{}", err(&o));
    let o = run(&dir, &["diff", &m, &q, "--quiet"]);
    assert!(code(&o) == Some(1) && out(&o).is_empty() && err(&o).is_empty());
}

#[test]
fn verify_wants_the_float_model_first() {
    let dir = place();
    let (m, e) = (digits("digits_vit.onnx"), digits("digits_eval.npz"));
    let q = quantized(&dir, "linear-w8a8");
    let o = run(&dir, &["verify", &q, &m, "--data", &e, "--samples", "4", "--quiet"]);
    assert!(code(&o) == Some(1) && err(&o).contains("give the float model first"), "{}", err(&o));
    let o = run(&dir, &["verify", &m, &q, "--data", &e, "--samples", "4", "--quiet", "--no-bench"]);
    assert!(code(&o) == Some(0) && !out(&o).contains("recipe"), "{}", out(&o));
}

#[test]
fn a_plan_says_by_which_recipe_it_was_made() {
    let dir = place();
    let (m, c) = (digits("digits_vit.onnx"), digits("digits_calib.npz"));
    let first = ["--calibrate", &c, "--fast", "--quiet", "--no-bench", "--plan", "p.yaml"];
    let compile = |more: &[&str]| run(&dir, &[&[m.as_str(), "-o", "q.onnx"], &first[..], more].concat());
    assert_eq!(code(&compile(&["--recipe", "linear-w8a8"])), Some(0));
    let q = fs::read(dir.path().join("q.onnx")).expect("written");
    assert!(fs::metadata(dir.path().join("p.yaml")).expect("written").len() < 200_000);
    let again = compile(&["--recipe", "w4a8", "--json", "r.json"]);
    assert_eq!(code(&again), Some(0), "{}", err(&again));
    assert_eq!(fs::read(dir.path().join("q.onnx")).expect("written"), q, "the plan is carried out");
    let r: Value =
        serde_json::from_str(&fs::read_to_string(dir.path().join("r.json")).expect("written")).expect("JSON");
    assert_eq!(r["recipe"], "linear-w8a8");
    // The command that makes plans says that one was there.
    let o = run(
        &dir,
        &["plan", &m, "--plan", "p.yaml", "--calibrate", &c, "--samples", "8", "--recipe", "linear-w8a8", "--quiet"],
    );
    assert!(code(&o) == Some(0) && out(&o).contains("p.yaml was there, and is written anew"), "{}", out(&o));
}

#[test]
fn a_plan_with_fitted_weights_is_two_files() {
    let dir = place();
    let (m, c) = (digits("digits_vit.onnx"), digits("digits_calib.npz"));
    let to = |name: &'static str| ["-o", name, "--no-verify", "--quiet", "--plan", "v.plan.yaml"];
    // The command that needs no name has one for those who look for it.
    let o = run(&dir, &[&["compile", m.as_str(), "--calibrate", &c, "--samples", "16"], &to("a.onnx")[..]].concat());
    assert_eq!(code(&o), Some(0), "{}", err(&o));
    let text = fs::read_to_string(dir.path().join("v.plan.yaml")).expect("written");
    assert!(text.contains("codes: '@ ") && text.len() < 100_000, "{} bytes", text.len());
    assert!(text.lines().all(|l| l.len() < 2_000), "it reads well in a diff");
    let numbers = dir.path().join("v.plan.weights.npz");
    let o = run(&dir, &[&[m.as_str()], &to("b.onnx")[..]].concat());
    assert_eq!(code(&o), Some(0), "{}", err(&o));
    assert_eq!(fs::read(dir.path().join("a.onnx")).expect("a"), fs::read(dir.path().join("b.onnx")).expect("b"));
    fs::rename(&numbers, dir.path().join("gone.npz")).expect("movable");
    let o = run(&dir, &[&[m.as_str()], &to("c.onnx")[..]].concat());
    assert!(code(&o) == Some(1) && err(&o).contains("v.plan.weights.npz: not there"), "{}", err(&o));
    // All in one, where it goes to a pipe.
    let o = run(&dir, &["plan", &m, "--plan", "-", "--calibrate", &c, "--samples", "16", "--quiet"]);
    assert!(code(&o) == Some(0) && out(&o).contains("codes: ") && !out(&o).contains("'@ "));
}

#[test]
fn compare_runs_every_recipe_on_the_same_data() {
    let dir = place();
    let (m, c, e) = (digits("digits_vit.onnx"), digits("digits_calib.npz"), digits("digits_eval.npz"));
    let args =
        ["compare", &m, "--recipes", "fq-vit,linear-w8a8", "--calibrate", &c, "--verify", &e, "--fast", "--quiet"];
    let files = ["--json", "t.json", "--html", "t.html", "--output-dir", "made/here"];
    let o = run(&dir, &[&args[..], &files].concat());
    let text = out(&o);
    assert_eq!(code(&o), Some(0), "{}", err(&o));
    for part in ["fq-vit", "linear-w8a8", "SQNR", "latency", "top-1", "Verified in tract on 16 samples"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let t: Value =
        serde_json::from_str(&fs::read_to_string(dir.path().join("t.json")).expect("written")).expect("JSON");
    for row in t["rows"].as_array().expect("rows") {
        let file: PathBuf = dir.path().join(format!("made/here/{}.onnx", row["recipe"].as_str().expect("a name")));
        assert_eq!(row["bytes"].as_u64(), Some(fs::metadata(&file).expect("written").len()));
        assert!(row["sqnr_db"].as_f64().is_some_and(|x| x > 10.0) && row["latency_ratio"].is_number(), "{row}");
    }
    let page = fs::read_to_string(dir.path().join("t.html")).expect("written");
    assert!(page.matches("<circle").count() == 2 && !page.contains("<script"));
    // A recipe that there is not is told before anything runs.
    let o = run(&dir, &["compare", &m, "--recipes", "fq-vit,fq-vitt", "--calibrate", &c, "--html", "n.html"]);
    assert!(code(&o) == Some(1) && err(&o).contains("fq-vitt") && !dir.path().join("n.html").exists());
}

#[test]
fn a_refused_call_makes_no_folders() {
    let dir = place();
    let (m, c) = (digits("digits_vit.onnx"), digits("digits_calib.npz"));
    let within = dir.path().join("new");
    let compare = |model: &str, more: &[&str]| {
        run(&dir, &[&["compare", model, "--recipes", "linear-w8a8", "--calibrate", &c, "--quiet"], more].concat())
    };
    // Another file cannot be written; there is no such model; the data are of another kind.
    for (model, more) in [
        (m.as_str(), &["--output-dir", "new/here", "--json", "nowhere/t.json"][..]),
        ("none.onnx", &["--output-dir", "new/here"]),
        (m.as_str(), &["--output-dir", "new/here", "--verify", "none.npz"]),
    ] {
        let o = compare(model, more);
        assert!(code(&o) == Some(1) && !within.exists(), "{more:?}: {}", err(&o));
    }
    fs::write(dir.path().join("file"), "").expect("writable");
    for there in ["file", "file/below"] {
        for o in [compare(&m, &["--output-dir", there]), run(&dir, &["man", "--dir", there])] {
            assert!(code(&o) == Some(1) && err(&o).contains("cannot be made"), "{}", err(&o));
        }
    }
    let o = run(&dir, &["man", "--dir", "new/here"]);
    assert!(code(&o) == Some(0) && within.join("here/fqvit-opt.1").is_file(), "{}", err(&o));
}

#[test]
fn statistics_of_heads_that_there_are_not_are_refused() {
    let dir = place();
    let (m, c) = (digits("digits_vit.onnx"), digits("digits_calib.npz"));
    let o = run(&dir, &["calibrate", &m, "--calibrate", &c, "--samples", "4", "--stats", "s.stats", "--quiet"]);
    assert_eq!(code(&o), Some(0), "{}", err(&o));
    let path = dir.path().join("s.stats");
    let whole = StatsFile::read(&path).expect("just written");
    whole.write(&dir.path().join("whole.stats")).expect("writable");
    let breaks: [fn(&mut Stats); 2] = [|s| s.rows[0].head = s.channels.len() as u32, |s| s.row_max_min.truncate(1)];
    for break_it in breaks {
        let mut broken = whole.clone();
        let scores = broken.values.iter_mut().find(|(_, s)| !s.rows.is_empty()).expect("scores are watched");
        break_it(&mut scores.1);
        broken.write(&path).expect("writable");
        let planned = ["plan", &m, "--stats", "s.stats", "--plan", "p.yaml", "--quiet"];
        let joined = ["calibrate", &m, "--join", "whole.stats", "s.stats", "--stats", "all.stats", "--quiet"];
        for o in [run(&dir, &planned), run(&dir, &joined)] {
            let told = err(&o);
            assert!(code(&o) == Some(1) && told.contains("s.stats"), "{told}");
            assert!(told.contains("contradict each other"), "{told}");
        }
    }
}

#[test]
fn shells_and_manuals_know_every_command() {
    let dir = place();
    for shell in ["bash", "zsh", "fish"] {
        let o = run(&dir, &["completions", shell]);
        let text = out(&o);
        assert!(code(&o) == Some(0) && err(&o).is_empty());
        for word in ["eval", "compare", "sensitivity", "calibrate", "interpolation"] {
            assert!(text.contains(word), "{shell} does not know {word}");
        }
    }
    assert_eq!(code(&run(&dir, &["completions", "tcsh"])), Some(1));
    let page = out(&run(&dir, &["man"]));
    assert!(page.starts_with(".ie") || page.contains(".TH fqvit"), "{}", &page[..80]);
    assert!(out(&run(&dir, &["man", "eval"])).contains("min\\-top1"));
    assert!(err(&run(&dir, &["man", "nothing"])).contains("there are inspect, calibrate"));
    assert_eq!(code(&run(&dir, &["man", "--dir", "man"])), Some(0), "the folder is made");
    for name in ["fqvit-opt", "fqvit-opt-eval", "fqvit-opt-diff", "fqvit-opt-compare", "fqvit-opt-verify"] {
        assert!(dir.path().join(format!("man/{name}.1")).is_file(), "{name}");
    }
}
