//! Mistakes in what people write, and files that ask for more than they hold: each ends with one error that says where it is,
//! and what to do, before anything is run.

#![cfg(all(feature = "cli", feature = "tract", target_os = "linux"))]

#[path = "support/limits.rs"]
mod limits;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use fqvit_opt::ir::validate::validate;
use fqvit_opt::onnx::encode;
use fqvit_opt::text::parse_model;
use limits::{Run, run};
use tempfile::TempDir;

struct Place(TempDir);

impl Place {
    fn new() -> Place {
        let p = Place(tempfile::tempdir().expect("a folder"));
        let digits = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/digits");
        for (from, to) in [("digits_vit.onnx", "m.onnx"), ("digits_calib.npz", "c.npz")] {
            fs::copy(digits.join(from), p.0.path().join(to)).expect("writable");
        }
        p
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().expect("in the folder")).expect("writable");
        fs::write(path, bytes).expect("writable");
    }

    fn model(&self, text: &str) {
        let m = parse_model(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        self.write("m.onnx", encode(validate(&m).expect("a valid model")));
    }

    fn run(&self, args: &[&str]) -> Run {
        run(self.0.path(), args)
    }

    fn compile(&self, more: &[&str]) -> Run {
        self.run(&[&["m.onnx", "-o", "out.onnx", "--quiet", "--no-bench"], more].concat())
    }

    fn on_digits(&self, more: &[&str]) -> Run {
        self.compile(&[&["--calibrate", "c.npz", "--samples", "8", "--no-verify"], more].concat())
    }
}

fn recipe(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("passes/recipes/{name}.yaml"));
    fs::read_to_string(path).expect("it is shipped")
}

// ---- recipes and plans ----------------------------------------------------------------------------------------------

/// Each change of the recipe, and what the error says of it.
const OF_RECIPES: &[(&str, &str, &str, &str)] = &[
    ("clip: [1.0, 0.95,", "clip: [0, 0.95,", "quantize.weights.clip[0]", "line 6 column 47"),
    ("clip: [1.0, 0.95,", "clip: [1.0, 1.5,", "quantize.weights.clip[1]", "line 6"),
    ("clip: [1.0, 0.95, 0.9, 0.85, 0.8]", "clip: []", "quantize.weights.clip", "line 6"),
    ("code: i8", "code: u8", "quantize.weights.code", "line 6 column 20"),
    ("code: i8", "code: i8, ends: i16", "quantize.weights.ends", "line 6"),
    ("max-shift: 7", "max-shift: 16", "quantize.activations.residual[0].max-shift", "line 21"),
    (
        "kind: affine, range: mse",
        "kind: affine, code: i32, range: mse",
        "quantize.activations.default[1].code",
        "line 10",
    ),
    (
        "kind: affine, range: mse",
        "kind: affine, code: u16, range: mse",
        "quantize.activations.default[1].code",
        "`value`",
    ),
    ("gelu-input:", "gelu-inputt:", "`gelu-inputt`", "`default`"),
    ("headroom: 1.2 ", "headroom: 0.001 ", "quantize.activations.output[0].range.headroom", "line 19"),
    ("- { kind: affine, range: { headroom: 1.2 } }", "- { kind: sums }", "quantize.activations.output", "line 19"),
    ("grid: true", "grid: true, floor: 0", "quantize.folds.input.floor", "line 38"),
    ("offsets: true, grid: true", "grid: true", "quantize.folds.input.grid", "offsets: true"),
    ("beyond: [1.0, 1.25", "beyond: [0, 1.25", "quantize.folds.gelu-output.beyond[0]", "line 40"),
    ("value: { strengths: [0.25", "value: { strengths: [-1", "quantize.equalise.value.strengths[0]", "line 44"),
    ("fine: [0, 2", "fine: [0, 3", "quantize.attention.fine[1]", "even numbers"),
    ("fine: [0, 2", "fines: [0, 2", "`fines`", "expected one of"),
    ("bits: 4,", "bits: 5,", "quantize.attention.fine[0]", "at most 4 bits"),
    ("scores: weights", "scores: min-max\n    scale-by-head: true", "quantize.attention.scale-by-head", "line 50"),
    ("gelu-floor: -3.5", "gelu-floor: 0", "quantize.gelu-floor", "line 53"),
    ("gelu-input: 4.0", "gelu-input: 0.5", "quantize.one-scale-within.gelu-input", "line 52"),
    ("prepare:\n  opset: 17\n", "", "quantize", "prepare: { opset: 17 }"),
    ("opset: 17", "opset: 0", "prepare.opset", "line 4 column 10"),
    ("agreement: 0.9", "agreement: 2", "thresholds.agreement", "line 57"),
    ("name: fq-vit", "name: ''", "name", "line 1"),
    ("name: fq-vit", "name: ../victim/model", "name", "is no name of a recipe"),
    ("name: fq-vit", "name: /etc/model", "name", "line 1"),
    ("name: fq-vit", "name: \"a\\nb\"", "name", "line 1"),
];

#[test]
fn a_recipe_is_checked_when_it_is_read() {
    let p = Place::new();
    let whole = recipe("fq-vit");
    for (from, to, at, says) in OF_RECIPES {
        assert!(whole.contains(from), "{from}");
        p.write("r.yaml", whole.replacen(from, to, 1));
        let r = p.on_digits(&["--recipe", "r.yaml"]);
        r.refused(to, &["recipe r.yaml: ", at, says]);
        assert!(!r.err.contains("calibrating"), "{to}: only after the model ran: {}", r.err);
    }
    for name in
        ["fq-vit", "fq-vit-paper", "fq-vit-r16", "w4a8", "w4a8-int4", "linear-w8a8", "minmax-w8a8", "cpu", "none"]
    {
        p.write("r.yaml", recipe(name));
        p.run(&["m.onnx", "-o", "out.onnx", "--dry-run", "--recipe", "r.yaml"]).done(name);
    }
    // What depends on the model is told before it runs, too.
    let no_default = whole.replacen(
        "    default:\n      - { kind: affine, range: min-max }\n      - { kind: affine, range: mse }\n",
        "",
        1,
    );
    p.write("r.yaml", no_default);
    let r = p.on_digits(&["--recipe", "r.yaml"]);
    r.refused("no default", &["no candidate", "default"]);
    assert!(!r.err.contains("calibrating"), "{}", r.err);
}

#[test]
fn an_edited_plan_is_checked_against_its_model() {
    let p = Place::new();
    let data = ["--calibrate", "c.npz", "--samples", "8", "--quiet", "--target", "integer"];
    p.run(&[&["plan", "m.onnx", "--plan", "p.yaml"], &data[..]].concat()).done("plan");
    let plan = fs::read_to_string(p.0.path().join("p.yaml")).expect("written");
    let numbers = fs::read(p.0.path().join("p.weights.npz")).expect("written");
    let with = |what: &str, changed: String, words: &[&str]| {
        assert_ne!(changed, plan, "{what}");
        p.write("q.yaml", &changed);
        p.write("q.weights.npz", &numbers);
        let line = changed.lines().zip(plan.lines()).position(|(a, b)| a != b).expect("another line") + 1;
        let line = format!("at line {line} column");
        p.on_digits(&["--plan", "q.yaml"]).refused(what, &[&["q.yaml: ", &line], words].concat());
    };
    with("axis 0", plan.replacen("    axis: -1", "    axis: 0", 1), &["axis 0, along which samples lie", "correct it"]);
    with("axis 5", plan.replacen("    axis: -1", "    axis: 5", 1), &["axis 5, and the value has"]);
    with("recipe", plan.replacen("recipe: fq-vit", "recipe: nonsense", 1), &["`nonsense`", "--recipe"]);
    let first = plan.lines().skip_while(|l| *l != "sums:").nth(1).expect("a sum");
    with("sums", plan.replacen(&format!("\n{first}\n"), "\n- nowhere\n", 1), &["sums[0]", "`nowhere`", "--canonical"]);
}

// ---- standard output ------------------------------------------------------------------------------------------------

#[test]
fn a_closed_standard_output_is_an_error() {
    let p = Place::new();
    let program = assert_cmd::cargo::cargo_bin("fqvit-opt");
    let closed = |args: &[&str]| {
        let mut c = Command::new("sh");
        c.args(["-c", "exec \"$0\" \"$@\" >&-"]).arg(&program).args(args).current_dir(p.0.path());
        c.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).output().expect("it runs")
    };
    for args in [
        &["m.onnx", "-o", "-", "--recipe", "none"][..],
        &["m.onnx", "-o", "o.onnx", "--recipe", "none", "--json", "-"],
        &["plan", "m.onnx", "--plan", "-", "--calibrate", "c.npz", "--samples", "8"],
        &["inspect", "m.onnx"],
        &["recipes"],
    ] {
        let o = closed(args);
        let e = String::from_utf8_lossy(&o.stderr).into_owned();
        assert_eq!(o.status.code(), Some(1), "{args:?}: {e}");
        assert!(e.contains("standard output") && e.contains("closed") && e.contains("file"), "{args:?}: {e}");
    }
    assert!(!p.0.path().join("o.onnx").exists());
    // The report is not what this call is for.
    let o = closed(&["m.onnx", "-o", "o.onnx", "--recipe", "none"]);
    assert_eq!(o.status.code(), Some(0), "{}", String::from_utf8_lossy(&o.stderr));
    assert!(p.0.path().join("o.onnx").exists());
}

// ---- rules ----------------------------------------------------------------------------------------------------------

#[test]
fn a_rule_that_matches_what_it_makes_is_named() {
    let p = Place::new();
    let rule = "- id: twice\n  summary: A ReLU is two.\n  match: |\n    y = Relu (x)\n  replace: |\n    h = Relu (x)\n    y = Relu (h)\n";
    p.write("own/rules/own.yaml", rule);
    p.model("<ir_version: 8, opset_import: [\"\" : 17]> g (float[1,4] x) => (float[1,4] y) <float[4,4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}> { h = MatMul (x, w) y = Relu (h) }");
    let r = p.compile(&["--passes-dir", "own", "--recipe", "linear-w8a8"]);
    r.refused("a rule for ever", &["m.onnx", "`twice` (own/rules/own.yaml, line 6)", "still fires", "`where`"]);
}

// ---- pictures -------------------------------------------------------------------------------------------------------

fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let mut h = crc32fast::Hasher::new();
    h.update(kind);
    h.update(data);
    [&(data.len() as u32).to_be_bytes()[..], kind, data, &h.finalize().to_be_bytes()].concat()
}

fn packed(bytes: &[u8], times: usize) -> Vec<u8> {
    let mut z = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    (0..times).for_each(|_| z.write_all(bytes).expect("in memory"));
    z.finish().expect("in memory")
}

/// A grey PNG of 8x8 with these chunks in front of its pixels.
fn png(extras: &[Vec<u8>]) -> Vec<u8> {
    let head = [&8u32.to_be_bytes()[..], &8u32.to_be_bytes(), &[8, 0, 0, 0, 0]].concat();
    let pixels = packed(&[0, 9, 9, 9, 9, 9, 9, 9, 9], 8);
    let mut all = vec![b"\x89PNG\r\n\x1a\n".to_vec(), chunk(b"IHDR", &head)];
    all.extend(extras.iter().cloned());
    all.extend([chunk(b"IDAT", &pixels), chunk(b"IEND", b"")]);
    all.concat()
}

#[test]
fn what_lies_beside_pixels_is_not_unpacked() {
    let p = Place::new();
    p.model("<ir_version: 8, opset_import: [\"\" : 17]> g (float[n,1,8,8] x) => (float[n,2,4,4] y) <float[2,1,2,2] w = {1, 2, 3, 4, 5, 6, 7, 8}> { y = Conv <strides = [2, 2]> (x, w) }");
    // A gigabyte of zeros in a megabyte.
    let bomb = packed(&vec![0; 1 << 20], 1000);
    let profile = [b"p\0\0".to_vec(), bomb.clone()].concat();
    let itxt = [b"k\0\x01\0\0\0".to_vec(), bomb.clone()].concat();
    for (name, extra) in
        [("iccp", chunk(b"iCCP", &profile)), ("ztxt", chunk(b"zTXt", &profile)), ("itxt", chunk(b"iTXt", &itxt))]
    {
        p.write(&format!("d/{name}.png"), png(&[extra]));
    }
    let r = p.compile(&["--calibrate", "d", "--recipe", "linear-w8a8"]);
    r.done("profiles");
    assert!(r.peak_mb < 300, "{} MB", r.peak_mb);
    let webp = [
        b"RIFF\x64\0\0\0WEBPVP8X\x0a\0\0\0\x08\0\0\0\x07\0\0\x07\0\0EXIF".to_vec(),
        u32::MAX.to_le_bytes().to_vec(),
        b"ab".to_vec(),
    ];
    p.write("d/a.webp", webp.concat());
    p.compile(&["--calibrate", "d"]).refused("EXIF of 4 GB", &["a.webp"]);
}

// ---- old and wide models --------------------------------------------------------------------------------------------

#[test]
fn what_an_old_model_cannot_become_is_told_of_its_own_nodes() {
    let p = Place::new();
    p.model("<ir_version: 8, opset_import: [\"\" : 8]> g (float[1,3,2] x) => (float[1,3,2] y) <float[2,2] w = {1, 2, 3, 4}, float[3,2] a = {1, 1, 1, 1, 1, 1}> { h = MatMul (x, w) s = BatchNormalization <spatial = 0> (h, a, a, a, a) y = Relu (s) }");
    p.compile(&[]).refused("spatial", &["m.onnx", "`s`", "spatial = 0", "opset 8", "export it"]);
    p.model("<ir_version: 8, opset_import: [\"\" : 12]> g (float[1,4] x) => (float[1,4] y) <float[4,4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}> { y = MatMul (x, w) }");
    p.compile(&["--keep-opset"]).refused("kept", &["m.onnx", "opset 13", "opset 12", "--keep-opset"]);
    p.compile(&[]).done("raised");
    p.model("<ir_version: 8, opset_import: [\"\" : 17]> g (double[1,4] x) => (double[1,4] y) <double[4,4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}> { h = MatMul (x, w) y = Relu (h) }");
    for recipe in ["fq-vit", "linear-w8a8"] {
        p.compile(&["--recipe", recipe]).refused("float64", &["m.onnx", "`h`", "MatMul", "float64", "model.float()"]);
    }
}

#[test]
fn a_mask_is_no_bias() {
    let p = Place::new();
    for low in ["-3.4028235e38", "-1e9"] {
        let weights = (0..16).map(|i| format!("0.{}", i + 1)).collect::<Vec<_>>().join(", ");
        p.model(&format!(
            "<ir_version: 8, opset_import: [\"\" : 17]> g (float[1,5,4] x) => (float[1,5,4] y)
            <float[4,4] w = {{{weights}}}, float[4,4] v = {{{weights}}}, float[4] m = {{0, 0, 0, {low}}}> {{
                h = MatMul (x, w)
                s = Add (h, m)
                a = Softmax <axis = -1> (s)
                y = MatMul (a, v)
            }}"
        ));
        for recipe in ["fq-vit", "linear-w8a8"] {
            let r = p.compile(&["--recipe", recipe, "--json", "r.json"]);
            r.done(low);
            assert_eq!(r.status, Some(0), "{low} {recipe}: {}", r.err);
        }
    }
}

/// Each sample of it is progress, and 64 of them would take minutes.
#[test]
fn a_loop_of_a_million_steps_has_an_end() {
    let p = Place::new();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/hostile/loop_million.onnx");
    p.write("m.onnx", fs::read(file).expect("it is there"));
    let r = p.run(&["m.onnx", "-o", "out.onnx", "--no-bench", "--recipe", "linear-w8a8"]);
    r.done("a long loop");
    let told = ["Loop `n_loop` cannot be run here", "its iterations have taken", "--patience"];
    assert!(told.iter().all(|w| r.out.contains(w) || r.err.contains(w)), "{}{}", r.out, r.err);
}

// ---- graphs of many nodes -------------------------------------------------------------------------------------------

#[test]
fn many_outputs_of_one_value_and_many_terms_of_one_sum() {
    let p = Place::new();
    let list = |n: usize, of: &dyn Fn(usize) -> String| (0..n).map(of).collect::<Vec<_>>().join(", ");
    let outs = list(1500, &|i| format!("float[1,4] r{i}"));
    let nodes: String = (0..1500).map(|i| format!("r{i} = Relu (h)\n")).collect();
    p.model(&format!(
        "<ir_version: 8, opset_import: [\"\" : 17]> g (float[1,4] x) => ({outs}) <float[4,4] w = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}}> {{ h = MatMul (x, w)\n{nodes} }}"
    ));
    p.compile(&["--recipe", "linear-w8a8"]).done("1500 outputs");
}

/// A chain of Identity is one value: removing it takes no longer than reading it.
#[test]
fn a_long_chain_of_identities_is_followed_once() {
    let p = Place::new();
    let nodes: String = (0..20_000).map(|i| format!("i{} = Identity (i{i})\n", i + 1)).collect();
    p.model(&format!(
        "<ir_version: 8, opset_import: [\"\" : 17]> g (float[1,4] x) => (float[1,4] y) <float[4,4] w = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}}> {{ i0 = MatMul (x, w)\n{nodes} y = Relu (i20000) }}"
    ));
    p.compile(&["--samples", "8"]).done("20 000 identities");
}

// ---- names, operator sets, and nothing to compare -------------------------------------------------------------------

/// Old exporters number nodes and values, each from 0: the node `2` does not make the value `2`.
#[test]
fn nodes_with_the_names_of_other_values_run() {
    let p = Place::new();
    p.model(
        "<ir_version: 8, opset_import: [\"\" : 17]> g (float[1,4] x) => (float[2,2] v5)
        <float[4,4] v0 = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}, int64[2] v3 = {2, 2}> {
            [v0] v1 = MatMul (x, v0)
            [v1] v2 = Relu (v1)
            [v3] v4 = Reshape (v2, v3)
            [v4] v5 = Neg (v4)
        }",
    );
    let run = p.compile(&[]);
    run.done("numbers for names");
    assert!(run.out.contains("1 of 1 compute operators"), "{}", run.out);
}

#[test]
fn an_operator_set_that_there_is_not_is_told_as_that() {
    let p = Place::new();
    p.model("<ir_version: 8, opset_import: [\"\" : 17]> g (float[1,4] x) => (float[1,4] y) { y = LayerNormalization (x, x) }");
    let whole = fs::read(p.0.path().join("m.onnx")).expect("written");
    let at = whole.windows(2).rposition(|w| w == [0x10, 17]).expect("the version") + 1;
    for (version, said) in [(0, "version 0"), (127, "127")] {
        let mut bytes = whole.clone();
        bytes[at] = version;
        p.write("m.onnx", bytes);
        p.compile(&[]).refused("no such operator set", &["m.onnx", said]);
    }
}

#[test]
fn outputs_without_elements_do_not_pass() {
    let p = Place::new();
    let model = |more: &str| {
        format!(
            "<ir_version: 8, opset_import: [\"\" : 17]> g (float[1,4] x) => (float[1,n] y{more})
            <float[4,4] w = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}}, int64[1] a = {{9}}, int64[1] one = {{1}}>
            {{ z = MatMul (x, w) y = Slice (z, a, a, one) }}"
        )
    };
    p.model(&model(""));
    let run = p.compile(&[]);
    assert_eq!(run.status, Some(2), "{}", run.err);
    assert!(run.out.contains("FAIL compared_elements") && !run.out.contains("exact"), "{}", run.out);
    p.model(&model(", float[1,4] z"));
    let run = p.compile(&[]);
    assert_eq!(run.status, Some(0), "{}{}", run.out, run.err);
    assert!(run.out.contains("`y` has no elements in any sample"), "{}", run.out);
}
