//! What is asked for has an effect, or is refused before the work begins; and what is said about a result holds.

#![cfg(all(feature = "cli", feature = "tract"))]

use std::fs;
use std::path::Path;
use std::process::Output;

use assert_cmd::Command;
use fqvit_opt::ir::validate;
use fqvit_opt::onnx::{self, SaveOptions};
use fqvit_opt::text::parse_model;
use serde_json::Value;
use tempfile::TempDir;

fn digits(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/digits").join(name).to_str().expect("a plain path").to_owned()
}

struct Place {
    dir: TempDir,
    model: String,
    data: String,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().expect("a temporary folder");
        Place { dir, model: digits("digits_vit.onnx"), data: digits("digits_calib.npz") }
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut c = Command::cargo_bin("fqvit-opt").expect("the program is built");
        c.current_dir(self.dir.path()).env("COLUMNS", "120").args(args).output().expect("it runs")
    }

    /// Compiles the digits with sixteen samples.
    fn compile(&self, more: &[&str]) -> Output {
        let usual =
            [&self.model, "-o", "q.onnx", "--calibrate", &self.data, "--samples", "16", "--quiet", "--no-bench"];
        self.run(&[&usual[..], more].concat())
    }

    fn has(&self, name: &str) -> bool {
        self.dir.path().join(name).exists()
    }

    /// Writes a model.
    fn save(&self, name: &str, text: &str) -> String {
        let m = parse_model(text).expect("a model");
        let path = self.dir.path().join(name);
        onnx::save(validate::validate(&m).expect("valid"), &path, &SaveOptions::default()).expect("writable");
        path.to_str().expect("a plain path").to_owned()
    }
}

fn err(o: &Output) -> String {
    String::from_utf8_lossy(&o.stderr).into_owned()
}

fn json(o: &Output) -> Value {
    serde_json::from_slice(&o.stdout).unwrap_or_else(|e| panic!("{e}: {}", err(o)))
}

#[test]
fn what_would_have_no_effect_is_refused_before_the_work() {
    let p = Place::new();
    fs::create_dir(p.dir.path().join("empty")).expect("a folder");
    for (args, words) in [
        (&["--by", "block"][..], "--by says what a part is"),
        (&["--stop-after", "fold-factors", "--json", "r.json"], "cannot be used with"),
        (&["--stop-after", "fold-factors", "--plan", "p.yaml"], "p.yaml is not there, and would not be made"),
        (&["--stop-after", "nosuch"], "there is no pass of this name"),
        (&["--stop-after", "clean-up:x"], "`x` is no number of a run"),
        (&["--stop-after", "clean-up", "--min-sqnr", "3"], "cannot be used with"),
        (&["--recipe", "none", "--stop-after", "quantize-weights"], "no such pass ran"),
        (&["--passes-dir", "empty"], "neither rules (rules/*.yaml) nor recipes"),
        (&["--no-verify", "--verify", &p.data], "cannot be used with"),
        (&["--recipe", "none", "--verify", &p.data, "--stats", "s.stats"], "(--stats, --verify)"),
        (&["--judge", "onnxruntime", "--python", "/bin/true"], "it runs no Python"),
    ] {
        let o = p.compile(args);
        assert!(o.status.code().is_some_and(|c| c == 1 || c == 2) && err(&o).contains(words), "{args:?}: {}", err(&o));
        assert!(!p.has("q.onnx") && !p.has("p.yaml") && !p.has("s.stats"), "{args:?}");
    }
    let o = p.run(&[&p.model, "-o", "folder-to-be/", "--calibrate", &p.data, "--quiet"]);
    assert!(err(&o).contains("it is a folder; give the name of a file"), "{}", err(&o));
    let o = p.run(&["eval", &p.model, "--data", &p.data, "--min-top1", "0.5", "--quiet"]);
    assert!(err(&o).contains("the classes of arrays of"), "{}", err(&o));
}

#[test]
fn flags_for_pictures_are_noted_where_there_are_none() {
    let p = Place::new();
    let r = json(&p.compile(&["--std", "0.5", "--fit", "squash", "--no-verify", "--json", "-"]));
    let notes = r["notes"].to_string();
    assert!(notes.contains("--std and --fit: for a folder of pictures"), "{notes}");
}

#[test]
fn a_key_of_a_recipe_comes_once() {
    let p = Place::new();
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("passes/recipes/minmax-w8a8.yaml"));
    let text = text.expect("a recipe");
    let line = text.lines().find(|l| l.trim_start().starts_with("default:")).expect("a default");
    fs::write(p.dir.path().join("own.yaml"), text.replace(line, &format!("{line}\n{line}"))).expect("writable");
    let o = p.compile(&["--recipe", "own.yaml"]);
    assert!(err(&o).contains("`default` is given twice") && err(&o).contains("line"), "{}", err(&o));
}

#[test]
fn samples_that_statistics_have_seen_are_told() {
    let p = Place::new();
    let o = p.run(&["calibrate", &p.model, "--stats", "s.stats", "--calibrate", &p.data, "--samples", "16", "--quiet"]);
    assert_eq!(o.status.code(), Some(0), "{}", err(&o));
    let noted =
        |args: &[&str]| json(&p.compile(&[args, &["--stats", "s.stats", "--json", "-"]].concat()))["notes"].to_string();
    let notes = noted(&[]);
    assert!(notes.contains("14 of 16 are not held back here"), "{notes}");
    let more = p.run(&[
        &p.model,
        "-o",
        "y.onnx",
        "--calibrate",
        &p.data,
        "--samples",
        "32",
        "--stats",
        "s.stats",
        "--quiet",
        "--json",
        "-",
    ]);
    let notes = json(&more)["notes"].to_string();
    assert!(notes.contains("28 of 32 are not held back here"), "{notes}");
    // What a compilation keeps for itself has not seen them.
    let r = p.compile(&["--stats", "own.stats"]);
    assert_eq!(r.status.code(), Some(0), "{}", err(&r));
    let again = json(&p.compile(&["--stats", "own.stats", "--json", "-"]))["notes"].to_string();
    assert!(again.contains("statistics of 14 samples") && !again.contains("held back here"), "{again}");
    let other = digits("digits_eval.npz");
    let o = p.run(&[
        &p.model,
        "-o",
        "x.onnx",
        "--calibrate",
        &other,
        "--samples",
        "16",
        "--stats",
        "s.stats",
        "--quiet",
        "--json",
        "-",
    ]);
    let notes = json(&o)["notes"].to_string();
    assert!(notes.contains("weights are fitted to") && notes.contains("digits_eval.npz"), "{notes}");
}

#[test]
fn a_search_says_what_it_was_calibrated_on() {
    let p = Place::new();
    let r = json(&p.compile(&["--accept-command", "echo {model} 1", "--accept", "1", "--json", "-"]));
    assert_eq!(r["data"]["calibration_samples"], 14, "{}", r["data"]);
    let search = ["--accept-command", "echo {model} 1", "--accept", "1", "--json", "-", "--quiet", "--no-bench"];
    let made_up = json(&p.run(&[&[p.model.as_str(), "-o", "x.onnx", "--samples", "16"], &search[..]].concat()));
    assert_eq!(made_up["data"]["synthetic"], true, "{}", made_up["data"]);
}

#[test]
fn a_file_is_covered_as_its_compilation_said() {
    let p = Place::new();
    // Weights that count octaves in thirds.
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("passes/recipes/fq-vit.yaml"));
    let text = text
        .expect("a recipe")
        .replace("bits: 4, anchor: max, tail: saturate", "bits: 5, anchor: max, tail: zero, base: [cbrt2]");
    let thirds: Vec<&str> = text.lines().filter(|l| !l.trim_start().starts_with("fine:")).collect();
    assert!(thirds.iter().any(|l| l.contains("cbrt2")), "{text}");
    fs::write(p.dir.path().join("thirds.yaml"), thirds.join("\n")).expect("writable");
    for more in [
        &["--recipe", "fq-vit"][..],
        &["--recipe", "thirds.yaml"],
        &["--recipe", "fq-vit-paper"],
        &["--target", "integer"],
        &["--recipe", "cpu"],
    ] {
        let made = json(&p.compile(&[more, &["--fast", "--json", "-"]].concat()));
        let args =
            ["verify", &p.model, "q.onnx", "--data", &p.data, "--samples", "4", "--quiet", "--no-bench", "--json", "-"];
        let read = json(&p.run(&args));
        for key in ["covered", "total", "between"] {
            assert_eq!(made["coverage"][key], read["coverage"][key], "{more:?}: {key}");
        }
    }
    // A Softmax of codes that do not count octaves in whole steps is one in float.
    let peer = p.save(
        "peer.onnx",
        r#"<ir_version: 8, opset_import: ["" : 17]>
        g (float[2,4] x, float[4,3] v) => (float[2,3] y) <float step = {0.5}, float s = {0.34}, uint8 zero = {7}, uint8 z = {0}>
        { q = QuantizeLinear (x, step, zero) d = DequantizeLinear (q, s, zero) w = Softmax <axis = -1> (d) y = MatMul (w, v) }"#,
    );
    // And one of codes to which something else was added.
    let added = p.save(
        "added.onnx",
        r#"<ir_version: 8, opset_import: ["" : 17]>
        g (float[2,4] x, float[2,4] b, float[4,3] v) => (float[2,3] y) <float step = {0.5}, float s = {0.6931472}, uint8 zero = {7}>
        { q = QuantizeLinear (x, step, zero) d = DequantizeLinear (q, s, zero) t = Add (d, b)
          w = Softmax <axis = -1> (t) y = MatMul (w, v) }"#,
    );
    for m in [peer, added] {
        let o = p.run(&["verify", &m, &m, "--samples", "2", "--quiet", "--no-bench", "--json", "-"]);
        assert_eq!(json(&o)["coverage"]["covered"], 0, "{m}");
    }
}

const HEAD: &str = "<ir_version: 8, opset_import: [\"\" : 17]>\n";

/// Eight rows and columns of numbers between -1 and 1.
fn weights(seed: usize, n: usize) -> String {
    let x: Vec<String> = (0..n).map(|i| format!("{:.3}", ((i * 37 + seed * 11) % 101) as f64 / 50.5 - 1.0)).collect();
    x.join(",")
}

#[test]
fn scores_of_a_layer_that_gets_a_bias_are_found() {
    // A router without a bias, beside experts that read the same norm: folding its offset gives the router one.
    let p = Place::new();
    let text = format!(
        "{HEAD}g (float[n,6,8] x) => (float[n,6,8] y)
        <float[8] g = {{1,2,0.5,1,3,1,1,2}}, float[8] b = {{0.5,1,-1,0,0,2,0,1}}, float[8,2] r = {{{}}},
         float[8,8] e0 = {{{}}}, float[8] c0 = {{0,1,0,0,0,0,0,0}}, float[8,8] e1 = {{{}}}, float[8] c1 = {{1,0,0,0,0,0,0,0}},
         int64[1] third = {{2}}>
        {{
            h = LayerNormalization (x, g, b)
            s = MatMul (h, r) w = Softmax <axis = -1> (s)
            p0 = MatMul (h, e0) q0 = Add (p0, c0) p1 = MatMul (h, e1) q1 = Add (p1, c1)
            u0 = Unsqueeze (q0, third) u1 = Unsqueeze (q1, third) all = Concat <axis = 2> (u0, u1)
            one = Unsqueeze (w, third) m = MatMul (one, all) y = Squeeze (m, third)
        }}",
        weights(1, 16),
        weights(2, 64),
        weights(3, 64)
    );
    let m = p.save("router.onnx", &text);
    for target in ["qdq", "integer"] {
        let o = p.run(&[
            &m,
            "-o",
            "q.onnx",
            "--target",
            target,
            "--quiet",
            "--no-bench",
            "--json",
            "-",
            "--min-sqnr",
            "15",
        ]);
        assert_eq!(o.status.code(), Some(0), "{target}: {}", err(&o));
        assert!(json(&o)["outputs"][0]["sqnr_db"].as_f64().is_some_and(|db| db > 20.0), "{target}");
    }
}

#[test]
fn texts_are_compared_as_labels() {
    let p = Place::new();
    let text = format!(
        "{HEAD}g (float[n,8] x) => (float[n,4] y, string[n] name)
        <float[8,4] k = {{{}}}, string[4] names = {{\"cat\", \"dog\", \"eel\", \"fox\"}}>
        {{ y = MatMul (x, k) i = ArgMax <axis = 1, keepdims = 0> (y) name = Gather (names, i) }}",
        weights(4, 32)
    );
    let m = p.save("named.onnx", &text);
    let o = p.run(&[&m, "-o", "q.onnx", "--quiet", "--no-bench", "--json", "-", "--min-agreement", "0"]);
    let r = json(&o);
    let e = json(&p.run(&["eval", "named.onnx", "--quiet", "--json", "-"]));
    assert_eq!(e["outputs"].as_array().map(Vec::len), Some(1), "texts have no mean: {e}");
    let name = r["outputs"].as_array().into_iter().flatten().find(|t| t["tensor"] == "name").expect("it is compared");
    assert!(name["equal"].as_f64().is_some_and(|share| share > 0.5 && share <= 1.0), "{name}");
}

#[test]
fn an_input_without_a_shape_takes_the_one_it_is_given() {
    let p = Place::new();
    let text = format!(
        "{HEAD}g (float[] x) => (float[n,4] y) <float[8,4] k = {{{}}}> {{ y = MatMul (x, k) }}",
        weights(5, 32)
    );
    p.save("open.onnx", &text);
    let o = p.run(&["open.onnx", "-o", "q.onnx", "--quiet"]);
    assert!(err(&o).contains("--shape x=1,3,224,224"), "{}", err(&o));
    let o = p.run(&["open.onnx", "-o", "q.onnx", "--shape", "x=1,8", "--quiet", "--min-sqnr", "20"]);
    assert_eq!(o.status.code(), Some(0), "{}", err(&o));
    for command in [
        &["verify", "open.onnx", "q.onnx"][..],
        &["eval", "open.onnx"],
        &["bench", "open.onnx", "q.onnx", "--rounds", "2"],
    ] {
        let o = p.run(&[command, &["--shape", "x=1,8"]].concat());
        assert_eq!(o.status.code(), Some(0), "{command:?}: {}", err(&o));
    }
    let o = p.run(&["open.onnx", "-o", "x.onnx", "--shape", "x=1,8", "--shape", "z=1,8", "--quiet"]);
    assert!(err(&o).contains("the model has no such input; it has x"), "{}", err(&o));
}

#[test]
fn a_size_that_is_declared_wrongly_does_no_harm() {
    let p = Place::new();
    let text = format!(
        "{HEAD}g (float[n,6,8] x) => (float[n,6,4] y)
        <float[8] g = {{1,2,0.5,1,3,1,1,2}}, float[8,8] a = {{{}}}, float[8,4] k = {{{}}}, float[3,5,5,5] h, float[n,7,13] s>
        {{ h = LayerNormalization (x, g) s = MatMul (h, a) r = Relu (s) y = MatMul (r, k) }}",
        weights(6, 64),
        weights(7, 32)
    );
    let m = p.save("wrong.onnx", &text);
    for recipe in ["fq-vit", "linear-w8a8"] {
        let o = p.run(&[&m, "-o", "q.onnx", "--recipe", recipe, "--quiet", "--min-sqnr", "20"]);
        assert_eq!(o.status.code(), Some(0), "{}", err(&o));
        let q = onnx::load(&p.dir.path().join("q.onnx")).expect("readable").model;
        let named = |v: &str| q.graph.find(v).and_then(|v| q.graph.shape(v).map(<[_]>::len));
        assert!(named("h").is_none_or(|n| n == 3) && named("s").is_none_or(|n| n == 3));
        let text = fqvit_opt::text::print_model(&q, fqvit_opt::text::Elide::default());
        assert!(!text.contains("[3,5,5,5]") && !text.contains(",7,13]"), "{text}");
    }
}

#[test]
fn a_bias_far_below_zero_is_a_bias() {
    let p = Place::new();
    let text = |bias: &str, beta: &str| {
        format!(
            "{HEAD}g (float[n,6,8] x) => (float[n,6,8] y)
            <float[8] g = {{1,2,0.5,1,3,1,1,2}}, float[8] b = {{0.5,1,{beta},0,0,2,0,1}}, float[8,8] a = {{{}}}, float[8] c = {{{bias}}},
             float[8,8] k = {{{}}}>
            {{ h = LayerNormalization (x, g, b) s = MatMul (h, a) t = Add (s, c) r = MatMul (t, k) y = Add (x, r) }}",
            weights(8, 64),
            weights(9, 64)
        )
    };
    for (bias, beta) in
        [("1,-15000,0.5,1,0,0,2,1", "-1"), ("1,0,0.5,1,0,0,2,1", "100000"), ("0,0,0,0,0,0,0,0", "-100000")]
    {
        let m = p.save("m.onnx", &text(bias, beta));
        for recipe in ["fq-vit", "linear-w8a8"] {
            let o = p.run(&[&m, "-o", "q.onnx", "--recipe", recipe, "--quiet", "--no-bench", "--min-sqnr", "20"]);
            assert_eq!(
                o.status.code(),
                Some(0),
                "{bias} {beta} {recipe}: {}{}",
                err(&o),
                String::from_utf8_lossy(&o.stdout)
            );
        }
    }
}

/// Numbers that masks are made of leave no steps for others: what they are added to has no codes, wherever it is read.
#[test]
fn numbers_of_masks_have_no_codes() {
    let p = Place::new();
    let classes = |low: &str| {
        format!(
            "{HEAD}g (float[n,6,8] x) => (float[n,6,8] y)
            <float[8,8] a = {{{}}}, float[8] c = {{1,{low},0.5,1,0,0,2,1}}, float[8,8] k = {{{}}}>
            {{ s = MatMul (x, a) t = Add (s, c) u = Relu (t) r = MatMul (u, k) y = Sigmoid (r) }}",
            weights(8, 64),
            weights(9, 64)
        )
    };
    let values = |low: &str| {
        format!(
            "{HEAD}g (float[n,6,8] x) => (float[n,6,8] y)
            <float[8,8] a = {{{}}}, float[8,8] b = {{{}}}, float[8,8] w = {{{}}}, float[8] c = {{0,{low},0,0,0,0,0,0}}>
            {{ q = MatMul (x, a) k = MatMul (x, b) kt = Transpose <perm = [0, 2, 1]> (k) s = MatMul (q, kt)
               p = Softmax <axis = -1> (s) m = MatMul (x, w) v = Add (m, c) o = MatMul (p, v) y = Clip (o) }}",
            weights(8, 64),
            weights(9, 64),
            weights(10, 64)
        )
    };
    for text in [classes("-1e9"), classes("-3.4e38"), values("-1e9"), values("-1e12")] {
        let m = p.save("m.onnx", &text);
        for recipe in ["fq-vit", "linear-w8a8"] {
            let o = p.run(&[&m, "-o", "q.onnx", "--recipe", recipe, "--quiet", "--no-bench", "--min-sqnr", "20"]);
            let told = format!("{}{}", err(&o), String::from_utf8_lossy(&o.stdout));
            assert_eq!(o.status.code(), Some(0), "{text} {recipe}: {told}");
        }
    }
}

/// What a caller reads of an attention stays what it was, codes or not.
#[test]
fn scores_may_be_an_output() {
    let p = Place::new();
    for more in ["s", "t", "w", "o"] {
        let m = p.save(
            "m.onnx",
            &format!(
                "{HEAD}g (float[n,6,8] x) => (float[n,6,8] y, {more})
                <float[8,8] a = {{{}}}, float[8,8] b = {{{}}}, float[8,8] c = {{{}}}, float f = {{0.35}}>
                {{ q = MatMul (x, a) k = MatMul (x, b) kt = Transpose <perm = [0, 2, 1]> (k) s = MatMul (q, kt) t = Mul (s, f)
                   w = Softmax <axis = -1> (t) v = MatMul (x, c) o = MatMul (w, v) y = Add (o, x) }}",
                weights(8, 64),
                weights(9, 64),
                weights(10, 64)
            ),
        );
        for target in ["qdq", "integer"] {
            let o = p.run(&[&m, "-o", "q.onnx", "--target", target, "--quiet", "--no-bench", "--min-sqnr", "15"]);
            let told = format!("{}{}", err(&o), String::from_utf8_lossy(&o.stdout));
            assert_eq!(o.status.code(), Some(0), "{more} {target}: {told}");
        }
    }
}

/// What the shell opened is a file as any other.
#[test]
#[cfg(unix)]
fn standard_input_and_output_are_known_as_the_files_they_are() {
    let p = Place::new();
    let path = p.dir.path().join("m.onnx");
    fs::copy(&p.model, &path).expect("copied");
    let before = fs::read(&path).expect("readable");
    let program = assert_cmd::cargo::cargo_bin("fqvit-opt");
    let shell = |line: &str| {
        let words = ["-c", line, "sh", program.to_str().expect("a plain path")];
        std::process::Command::new("sh").current_dir(p.dir.path()).args(words).output().expect("it runs")
    };
    for line in ["\"$1\" - -o m.onnx --quiet < m.onnx", "\"$1\" m.onnx -o - --quiet 1<> m.onnx"] {
        let o = shell(line);
        assert!(o.status.code() == Some(1) && err(&o).contains("are the same file"), "{line}: {}", err(&o));
        assert!(fs::read(&path).expect("readable") == before, "{line}");
    }
}

/// Nobody listens on standard error.
#[test]
#[cfg(target_os = "linux")]
fn the_work_goes_on_without_standard_error() {
    let p = Place::new();
    let program = assert_cmd::cargo::cargo_bin("fqvit-opt");
    for format in ["text", "json"] {
        let line = format!("\"$1\" \"$2\" -o {format}.onnx --fast --no-bench --log-format {format} 2> /dev/full");
        let words = ["-c", &line, "sh", program.to_str().expect("a plain path"), &p.model];
        let o = std::process::Command::new("sh").current_dir(p.dir.path()).args(words).output().expect("it runs");
        assert!(
            o.status.code().is_some_and(|c| c == 0 || c == 2) && p.has(&format!("{format}.onnx")),
            "{:?}",
            o.status
        );
        let line = "\"$1\" missing.onnx -o x.onnx 2> /dev/full";
        let words = ["-c", line, "sh", program.to_str().expect("a plain path")];
        let o = std::process::Command::new("sh").current_dir(p.dir.path()).args(words).output().expect("it runs");
        assert_eq!(o.status.code(), Some(1));
    }
}

#[test]
fn a_threshold_that_nothing_could_miss_is_refused() {
    let p = Place::new();
    let made = p.compile(&["--recipe", "minmax-w8a8", "--no-verify", "--plan", "p.yaml"]);
    assert_eq!(made.status.code(), Some(0), "{}", err(&made));
    for limit in [["--min-sqnr", "60"], ["--min-agreement", "1"]] {
        let o = p.compile(&[&limit[..], &["--no-verify"]].concat());
        assert!(o.status.code() == Some(1) && err(&o).contains("cannot be used with"), "{}", err(&o));
        let o = p.run(&[&[&p.model, "-o", "again.onnx", "--plan", "p.yaml", "--quiet"][..], &limit].concat());
        assert!(o.status.code() == Some(1) && err(&o).contains("nothing to compare the models on"), "{}", err(&o));
        assert!(!p.has("again.onnx"));
    }
}

#[test]
fn a_difference_is_no_error_and_an_error_no_difference() {
    let p = Place::new();
    let o = p.compile(&["--recipe", "minmax-w8a8", "--no-verify"]);
    assert_eq!(o.status.code(), Some(0), "{}", err(&o));
    let status = |args: &[&str]| p.run(&[&["diff"], args].concat()).status.code();
    assert_eq!(status(&[&p.model, &p.model]), Some(0));
    assert_eq!(status(&[&p.model, "q.onnx"]), Some(1));
    assert_eq!(status(&[&p.model, "gone.onnx"]), Some(2));
    assert_eq!(status(&["--nonsense"]), Some(2));
}

/// Whoever stops reading changes nothing about what was found.
#[cfg(unix)]
#[test]
fn the_exit_status_is_the_same_when_nobody_reads_on() {
    let p = Place::new();
    let o = p.compile(&["--recipe", "minmax-w8a8", "--no-verify"]);
    assert_eq!(o.status.code(), Some(0), "{}", err(&o));
    for (args, status) in [
        (vec!["diff", &p.model, "q.onnx", "--all"], 1),
        (vec!["verify", &p.model, "q.onnx", "--data", &p.data, "--samples", "4", "--min-sqnr", "99", "-q", "-v"], 2),
    ] {
        let mut c = std::process::Command::new(assert_cmd::cargo::cargo_bin("fqvit-opt"));
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let c = c.current_dir(p.dir.path()).args(&args).stdout(writer).stderr(std::process::Stdio::null());
        assert_eq!(c.status().expect("it runs").code(), Some(status), "{args:?}");
    }
}

#[test]
fn plans_name_the_values_of_the_canonical_model() {
    let p = Place::new();
    let o = p.compile(&["--recipe", "fq-vit", "--no-verify", "--plan", "p.yaml"]);
    assert_eq!(o.status.code(), Some(0), "{}", err(&o));
    let o = p.run(&["inspect", &p.model, "--canonical"]);
    let text = String::from_utf8_lossy(&o.stdout);
    let plan = fs::read_to_string(p.dir.path().join("p.yaml")).expect("a plan");
    let names: Vec<&str> = plan.lines().filter_map(|l| l.strip_prefix("- value: ")).collect();
    assert!(names.len() > 50, "{}", names.len());
    names.iter().for_each(|n| assert!(text.contains(n), "{n} is not in the canonical model"));
    // One letter is gone.
    let slip = &names[20][..names[20].len() - 1];
    let (line, meant) = (format!("- value: {}\n", names[20]), format!("did you mean `{}`?", names[20]));
    fs::write(p.dir.path().join("p.yaml"), plan.replacen(&line, &format!("- value: {slip}\n"), 1)).expect("writable");
    let o = p.run(&[&p.model, "-o", "again.onnx", "--plan", "p.yaml", "--quiet"]);
    let told = err(&o);
    assert!(told.contains(&meant) && told.contains("at line ") && told.contains("--canonical"), "{told}");
    // A quantized model is looked at as far as that goes.
    let o = p.run(&["inspect", "q.onnx"]);
    let text = String::from_utf8_lossy(&o.stdout);
    assert!(o.status.success() && text.contains("QuantizeLinear") && text.contains("quantized already"), "{text}");
}

#[test]
fn near_misses_are_told_where_they_are_near() {
    let p = Place::new();
    let o = p.run(&["explain", &p.model]);
    let text = String::from_utf8_lossy(&o.stdout);
    assert!(text.contains("rule attention:") && text.contains("matches at 4 place(s)"), "{text}");
    assert!(text.contains("other rules match no 3 nodes in a row"), "{text}");
    for line in text.lines().filter_map(|l| l.trim().strip_prefix("the nearest miss matched ")) {
        let nodes: usize = line.split(' ').next().and_then(|n| n.parse().ok()).expect("a number");
        assert!(nodes >= 3, "{line}");
    }
    let o = p.run(&["explain", &p.model, "--rule", "attention-shifted-window"]);
    assert!(String::from_utf8_lossy(&o.stdout).contains("matches at 0 place(s)"));
    assert!(err(&p.run(&["inspct", "m.onnx"])).contains("there is a command `inspect`"));
    for whole in [&["plan", "--nonsense"][..], &["--plan"], &["verify", "a.onnx"]] {
        assert!(!err(&p.run(whole)).contains("there is a command"), "{whole:?}");
    }
}
