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
    assert!(code(&o) == Some(1) && err(&o).contains("are not known, so no share"), "{}", err(&o));
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
    // Its own recipe, named or not, with what that asks of the result; statistics are nobody's business then.
    for more in [&["--json", "r.json"][..], &["--json", "r.json", "--recipe", "linear-w8a8", "--stats", "s.npz"]] {
        let again = compile(more);
        assert_eq!(code(&again), Some(0), "{}", err(&again));
        assert_eq!(fs::read(dir.path().join("q.onnx")).expect("written"), q, "the plan is carried out");
        let r: Value =
            serde_json::from_str(&fs::read_to_string(dir.path().join("r.json")).expect("written")).expect("JSON");
        assert_eq!((&r["recipe"], &r["checks"][0]["limit"]), (&Value::from("linear-w8a8"), &Value::from(15.0)));
        assert_eq!(r["notes"].to_string().contains("statistics are neither read nor written"), more.len() > 2);
    }
    assert!(!dir.path().join("s.npz").exists());
    // Another recipe would not be used, so it is refused, at once.
    for more in [&["--recipe", "w4a8"][..], &["--recipe", "fq-vit", "--dry-run"]] {
        let o = compile(more);
        let words =
            [&format!("--recipe {}: plan p.yaml was made by recipe `linear-w8a8`", more[1]), "leave --recipe away"];
        assert!(code(&o) == Some(1) && words.iter().all(|w| err(&o).contains(w)), "{}", err(&o));
    }
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

/// The digits' samples, as a test wants them.
fn samples(dir: &TempDir, edit: impl FnOnce(&mut ndarray::ArrayD<f32>, &mut ndarray::Array1<i64>)) -> &'static str {
    let file = fs::File::open(digits("digits_eval.npz")).expect("samples");
    let mut from = ndarray_npy::NpzReader::new(file).expect("an archive");
    let x: ndarray::ArrayD<f32> = from.by_name("input").expect("samples");
    let labels: ndarray::Array1<i64> = from.by_name("labels").expect("labels");
    let mut x = x.slice_axis(ndarray::Axis(0), (0..24).into()).to_owned();
    let mut labels = labels.slice(ndarray::s![..24]).to_owned();
    edit(&mut x, &mut labels);
    let mut w = ndarray_npy::NpzWriter::new(fs::File::create(dir.path().join("edited.npz")).expect("writable"));
    w.add_array("input", &x).expect("writable");
    w.add_array("labels", &labels).expect("writable");
    w.finish().expect("writable");
    "edited.npz"
}

/// What can be known of a sample or its label is told before the model runs on any.
#[test]
fn no_sample_is_found_wrong_after_minutes_of_work() {
    let dir = place();
    let (m, c) = (digits("digits_vit.onnx"), digits("digits_calib.npz"));
    let told = |args: &[&str], words: &[&str]| {
        let o = run(&dir, &[&[m.as_str(), "-o", "q.onnx"], args].concat());
        let said = err(&o);
        assert!(code(&o) == Some(1) && words.iter().all(|w| said.contains(w)), "{args:?}: {said}");
        assert!(!said.contains("calibrating") && !said.contains("verifying"), "{args:?}: {said}");
    };
    told(&["--calibrate", &c, "--samples", "1"], &["no samples are left for verification"]);
    told(&["--calibrate", &c, "--samples", "1", "--no-verify", "--keep-float", "1"], &["no samples are left"]);
    let beyond = samples(&dir, |_, labels| labels[23] = 77);
    let words = ["edited.npz[23]", "its label 77 is no class of tensor", "which has 10"];
    told(&["--calibrate", &c, "--verify", beyond], &words);
    told(&["--calibrate", beyond], &words);
    told(&["--calibrate", beyond, "--dry-run"], &words);
    let o = run(&dir, &["eval", &m, "--data", beyond]);
    assert!(code(&o) == Some(1) && words.iter().all(|w| err(&o).contains(w)) && !err(&o).contains("evaluating"));
    // Nobody asks for the classes of samples that ranges alone come from.
    let o = run(&dir, &["calibrate", &m, "--calibrate", beyond, "--stats", "s.npz", "--quiet"]);
    assert_eq!(code(&o), Some(0), "{}", err(&o));
    let broken = samples(&dir, |x, _| x.iter_mut().last().into_iter().for_each(|x| *x = f32::NAN));
    told(&["--calibrate", &c, "--verify", broken], &["edited.npz", "sample 23", "NaN"]);
    told(&["--calibrate", broken], &["edited.npz", "sample 23", "NaN"]);
}

#[test]
fn a_file_in_which_nothing_is_quantized_does_not_pass() {
    let dir = place();
    let (m, c) = (digits("digits_vit.onnx"), digits("digits_calib.npz"));
    let data = ["--calibrate", c.as_str(), "--fast", "--quiet", "--no-bench"];
    let o = run(&dir, &[&[m.as_str(), "-o", "q.onnx", "--keep-float", "1000"], &data[..]].concat());
    let said = out(&o);
    assert!(code(&o) == Some(2) && said.starts_with("fail: "), "{said}");
    assert!(said.contains("FAIL quantized_values 0, needs >= 1; all of the model stays in float"), "{said}");
    assert!(said.contains("leave fewer parts in float"), "{said}");
    let o = run(&dir, &["verify", &m, &m, "--data", &c, "--samples", "4", "--quiet", "--no-bench"]);
    assert!(out(&o).contains("holds no codes: nothing in it is quantized"), "{}", out(&o));
}

/// A size alone keeps the recipe's precision; how far it may go beyond that can be said.
#[test]
fn a_size_may_be_filled_with_16_bits() {
    let dir = place();
    let [m, c, e] = ["digits_vit.onnx", "digits_calib.npz", "digits_eval.npz"].map(digits);
    let compile = |more: &[&str]| {
        let data = ["--calibrate", c.as_str(), "--samples", "64", "--verify", e.as_str()];
        let asked = ["--quiet", "--no-bench", "--json", "-"];
        let o = run(&dir, &[&[m.as_str(), "-o", "q.onnx"], &data[..], &asked, more].concat());
        assert_eq!(code(&o), Some(0), "{}", err(&o));
        json(&o)
    };
    let precisions = |r: &Value| -> Vec<String> {
        r["parts"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|p| p["precision"].as_str().expect("a word").to_owned())
            .collect()
    };
    let db = |r: &Value| r["outputs"][0]["sqnr_db"].as_f64().expect("a figure");
    let plain = compile(&["--target-size", "50%"]);
    let wide = compile(&["--target-size", "50%", "--up-to", "16-bit"]);
    assert!(precisions(&plain).is_empty() && wide["quantized"]["bytes"].as_u64() < wide["float"]["bytes"].as_u64());
    let got = precisions(&wide);
    assert!(got.iter().any(|p| p == "16-bit") && got.iter().all(|p| p != "float" && p != "4-bit"), "{got:?}");
    assert!(db(&wide) > db(&plain) + 0.3, "{} and {}", db(&plain), db(&wide));
    for (args, words) in [
        (&["--up-to", "16-bit"][..], "--up-to says how far --target-sqnr or --target-size may go"),
        (&["--up-to", "16-bit", "--target-sqnr", "60"], "with parts in 16 bits at most"),
    ] {
        let o = run(&dir, &[&[m.as_str(), "-o", "x.onnx", "--calibrate", &c, "--samples", "32"], args].concat());
        assert!(code(&o) == Some(1) && err(&o).contains(words), "{}", err(&o));
    }
}

/// A recipe of the user's own is found again when a search ends with it.
#[test]
#[cfg(unix)]
fn a_search_takes_recipes_of_ones_own() {
    let dir = place();
    let (m, c) = (digits("digits_vit.onnx"), digits("digits_calib.npz"));
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("passes/recipes/minmax-w8a8.yaml"));
    let text = text.expect("a recipe").replace("name: minmax-w8a8", "name: mine");
    fs::write(dir.path().join("own.yaml"), text).expect("writable");
    let search = ["--accept-command", "echo {model} 1", "--accept", "1", "--accept-recipes", "own.yaml"];
    let data = ["--calibrate", c.as_str(), "--samples", "16", "--quiet", "--no-bench"];
    let o = run(&dir, &[&[m.as_str(), "-o", "q.onnx"], &search[..], &data].concat());
    assert!(code(&o) == Some(0) && out(&o).contains("recipe    mine"), "{}{}", out(&o), err(&o));
    let o = run(&dir, &[&[m.as_str(), "-o", "x.onnx", "--recipe", "cpu"], &search[..], &data].concat());
    assert!(code(&o) == Some(1) && err(&o).contains("cannot be used with"), "{}", err(&o));
}
