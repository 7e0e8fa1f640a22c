//! Numbers at which arithmetic ends, in the weights and in the data of a small transformer, and sizes at its ends: what each
//! recipe and target makes of them. Either a model whose outputs are finite, or one error that names the value.

#![cfg(all(feature = "cli", feature = "tract", target_os = "linux"))]

#[path = "support/limits.rs"]
mod limits;

use std::fs;
use std::path::Path;

use fqvit_opt::ir::Model;
use fqvit_opt::ir::validate::validate;
use fqvit_opt::onnx::{encode, load};
use fqvit_opt::recipe::Recipe;
use fqvit_opt::runtime::{Array, Session, SessionOptions};
use fqvit_opt::text::parse_model;
use limits::run;
use tempfile::TempDir;

const WIDTH: usize = 16;

/// Weights that are nothing special: a sequence that fills the range evenly.
fn plain(i: usize) -> f32 {
    ((i * 37 % 101) as f32 - 50.0) / 250.0
}

fn list(n: usize, f: impl Fn(usize) -> f32) -> String {
    let text = |x: f32| match x {
        x if x.is_nan() => "nan".to_owned(),
        x if x.is_infinite() => if x > 0.0 { "inf" } else { "-inf" }.to_owned(),
        x => format!("{x:e}"),
    };
    (0..n).map(|i| text(f(i))).collect::<Vec<_>>().join(", ")
}

/// One block: LayerNorm, attention of two heads, projection, residual, GELU, a head. `special` makes the values' weights.
fn block(batch: &str, tokens: usize, special: impl Fn(usize) -> f32) -> Model {
    let (w, n) = (WIDTH, tokens);
    let square = |name: &str, f: &dyn Fn(usize) -> f32| format!("float[{w}, {w}] {name} = {{{}}}", list(w * w, f));
    let constants = [
        square("wq", &|i| plain(i)),
        square("wk", &|i| plain(i + 7)),
        square("wv", &special),
        square("wo", &|i| plain(i + 13)),
        square("w1", &|i| plain(i + 29)),
        format!("float[{w}] gamma = {{{}}}", list(w, |_| 1.0)),
        format!("float[{w}] beta = {{{}}}", list(w, |_| 0.0)),
        "float scale = {0.35355338}".to_owned(),
        format!("int64[4] heads = {{0, {n}, 2, 8}}"),
        format!("int64[3] rows = {{0, {n}, {w}}}"),
    ]
    .join(", ");
    let head = |v: &str| {
        format!(
            "{v}m = MatMul (n, w{v})\n{v}r = Reshape ({v}m, heads)\n{v}h = Transpose <perm = [0, 2, 1, 3]> ({v}r)\n"
        )
    };
    let text = format!(
        "<ir_version: 8, opset_import: [\"\" : 17]>\n\
         g (float[{batch}, {n}, {w}] x) => (float[{batch}, {n}, {w}] y)\n<{constants}> {{\n\
         n = LayerNormalization <axis = -1, epsilon = 0.00001> (x, gamma, beta)\n{}{}{}\
         kt = Transpose <perm = [0, 1, 3, 2]> (kh)\ns = MatMul (qh, kt)\nsc = Mul (s, scale)\n\
         a = Softmax <axis = -1> (sc)\no = MatMul (a, vh)\not = Transpose <perm = [0, 2, 1, 3]> (o)\n\
         or = Reshape (ot, rows)\np = MatMul (or, wo)\nz = Add (p, x)\ny = MatMul (z, w1)\n}}",
        head("q"),
        head("k"),
        head("v")
    );
    parse_model(&text).unwrap_or_else(|e| panic!("{e}"))
}

fn write(dir: &Path, m: &Model) {
    fs::write(dir.join("m.onnx"), encode(validate(m).expect("a valid model"))).expect("writable");
}

fn npy(path: &Path, dims: &[usize], f: impl Fn(usize) -> f32) {
    let shape: Vec<String> = dims.iter().map(usize::to_string).collect();
    let head = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({},), }}\n", shape.join(", "));
    let mut b = b"\x93NUMPY\x01\x00".to_vec();
    b.extend((head.len() as u16).to_le_bytes());
    b.extend(head.as_bytes());
    b.extend((0..dims.iter().product()).flat_map(|i| f(i).to_le_bytes()));
    fs::write(path, b).expect("writable");
}

/// Every recipe with every target.
fn ways() -> Vec<(String, &'static str)> {
    Recipe::shipped().into_iter().flat_map(|r| ["qdq", "integer"].map(|target| (r.clone(), target))).collect()
}

/// What the compiled model gives for an ordinary input is finite.
#[track_caller]
fn finite(dir: &Path, dims: &[usize], what: &str) {
    let m = load(&dir.join("out.onnx")).unwrap_or_else(|e| panic!("{what}: {e}")).model;
    let options = SessionOptions { batch: dims[0], ..SessionOptions::default() };
    let s = Session::of(validate(&m).expect("valid"), &options).unwrap_or_else(|e| panic!("{what}: {e}"));
    let x = Array::new(dims, (0..dims.iter().product()).map(|i| plain(i * 3)).collect::<Vec<f32>>()).expect("fits");
    let y = s.run(&[("x", x)]).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(y.outputs[0].f32s().iter().all(|v| v.is_finite()), "{what}: not finite");
}

enum Outcome {
    Done,
    Refused(&'static [&'static str]),
}
use Outcome::{Done, Refused};

#[test]
fn weights_at_the_ends_of_arithmetic() {
    type Weights = fn(usize) -> f32;
    let cases: [(&str, Weights, Outcome); 12] = [
        ("plain", plain, Done),
        ("zero", |_| 0.0, Done),
        ("constant", |_| 0.25, Done),
        ("minus zero", |_| -0.0, Done),
        ("a zero channel", |i| if i % WIDTH == 3 { 0.0 } else { plain(i) }, Done),
        ("a zero row", |i| if i / WIDTH == 3 { 0.0 } else { plain(i) }, Done),
        ("1e-30", |i| plain(i) * 1e-30, Done),
        ("denormal", |i| plain(i) * 1e-40, Done),
        ("one channel of 1e-30", |i| if i % WIDTH == 5 { 1e-30 } else { plain(i) }, Done),
        ("1e30", |i| plain(i) * 1e30, Refused(&["m.onnx"])),
        ("NaN", |i| if i == 100 { f32::NAN } else { plain(i) }, Refused(&["m.onnx", "`wv`", "NaN", "100"])),
        (
            "infinity",
            |i| if i == 7 { f32::NEG_INFINITY } else { plain(i) },
            Refused(&["m.onnx", "`wv`", "infinity", "7"]),
        ),
    ];
    for (name, weights, outcome) in &cases {
        let dir = tempfile::tempdir().expect("a folder");
        write(dir.path(), &block("n", 5, weights));
        for (recipe, target) in ways() {
            let what = format!("weights {name}, recipe {recipe}, target {target}");
            let _ = fs::remove_file(dir.path().join("out.onnx"));
            let r = run(
                dir.path(),
                &["m.onnx", "-o", "out.onnx", "--quiet", "--samples", "9", "--recipe", &recipe, "--target", target],
            );
            match outcome {
                // Nothing is computed: what comes in goes out.
                _ if recipe == "none" => r.bounded(&what),
                Done => {
                    r.done(&what);
                    finite(dir.path(), &[1, 5, WIDTH], &what);
                    &r
                }
                // Large weights may leave codes that hold them, or not stay finite.
                Refused(words) if *name == "1e30" && r.status != Some(1) => {
                    r.done(&what);
                    let _ = words;
                    &r
                }
                Refused(words) => {
                    r.refused(&what, words);
                    &r
                }
            };
        }
    }
}

#[test]
fn data_at_the_ends_of_arithmetic() {
    type Data = fn(usize) -> f32;
    let cases: [(&str, Data, Outcome); 9] = [
        ("plain", plain, Done),
        ("zero", |_| 0.0, Done),
        ("constant", |_| 0.5, Done),
        ("constant channels", |i| (i % WIDTH) as f32, Done),
        ("denormal", |i| plain(i) * 1e-40, Done),
        ("1e-30", |i| plain(i) * 1e-30, Done),
        ("NaN", |i| if i == 40 { f32::NAN } else { plain(i) }, Refused(&["a.npy", "NaN"])),
        ("infinity", |i| if i == 40 { f32::INFINITY } else { plain(i) }, Refused(&["a.npy", "inf"])),
        ("1e30", |i| plain(i) * 1e30, Refused(&["finite"])),
    ];
    let dir: TempDir = tempfile::tempdir().expect("a folder");
    write(dir.path(), &block("n", 5, plain));
    for (name, data, outcome) in &cases {
        npy(&dir.path().join("a.npy"), &[9, 5, WIDTH], data);
        for (recipe, target) in ways().into_iter().filter(|(r, _)| r != "none") {
            let what = format!("data {name}, recipe {recipe}, target {target}");
            let args = [
                "m.onnx",
                "-o",
                "out.onnx",
                "--quiet",
                "--calibrate",
                "a.npy",
                "--recipe",
                &recipe,
                "--target",
                target,
            ];
            let r = run(dir.path(), &args);
            match outcome {
                Done => {
                    r.done(&what);
                    finite(dir.path(), &[1, 5, WIDTH], &what);
                }
                // 1e30 squared is no float: either the norms say so, or codes of 1e28 each are found.
                Refused(_) if *name == "1e30" && r.status != Some(1) => r.done(&what),
                Refused(words) => r.refused(&what, words),
            }
        }
    }
}

#[test]
fn sequences_and_batches_of_every_size() {
    for (batch, tokens, samples) in
        [("1", 1, "1"), ("n", 1, "9"), ("33", 1, "66"), ("33", 5, "33"), ("1", 5, "1"), ("n", 5, "2")]
    {
        let dir = tempfile::tempdir().expect("a folder");
        write(dir.path(), &block(batch, tokens, plain));
        for (recipe, target) in ways() {
            let what = format!("batch {batch}, {tokens} tokens, {samples} samples, recipe {recipe}, target {target}");
            let r = run(
                dir.path(),
                &[
                    "m.onnx",
                    "-o",
                    "out.onnx",
                    "--quiet",
                    "--no-verify",
                    "--samples",
                    samples,
                    "--recipe",
                    &recipe,
                    "--target",
                    target,
                ],
            );
            r.done(&what);
            finite(dir.path(), &[batch.parse().unwrap_or(1), tokens, WIDTH], &what);
        }
    }
}

/// 4096 tokens: each matrix of weights has 33 million elements. It is compiled, or the error says what it would take.
#[test]
fn a_sequence_of_4096_tokens() {
    let dir = tempfile::tempdir().expect("a folder");
    write(dir.path(), &block("1", 4096, plain));
    for (recipe, target) in ways() {
        let what = format!("4096 tokens, recipe {recipe}, target {target}");
        let r = run(
            dir.path(),
            &[
                "m.onnx",
                "-o",
                "out.onnx",
                "--quiet",
                "--samples",
                "1",
                "--no-verify",
                "--recipe",
                &recipe,
                "--target",
                target,
            ],
        );
        match r.bounded(&what).status {
            Some(1) => r.refused(&what, &["m.onnx", "--memory"]),
            _ => r.done(&what),
        }
    }
}

#[test]
fn no_data_at_all() {
    let dir = tempfile::tempdir().expect("a folder");
    write(dir.path(), &block("n", 5, plain));
    fs::create_dir(dir.path().join("empty")).expect("a folder");
    npy(&dir.path().join("none.npy"), &[0, 5, WIDTH], |_| 0.0);
    let of = |more: &[&str]| run(dir.path(), &[&["m.onnx", "-o", "out.onnx", "--quiet"], more].concat());
    of(&["--samples", "0"]).refused("0 samples", &["--samples"]);
    of(&["--calibrate", "empty"]).refused("an empty folder", &["x"]);
    of(&["--calibrate", "none.npy"]).refused("an empty array", &["none.npy", "no sample"]);
    // One sample is for calibration; nothing is left to verify on.
    npy(&dir.path().join("one.npy"), &[1, 5, WIDTH], plain);
    of(&["--calibrate", "one.npy"]).refused("one sample", &["at least two samples"]);
    of(&["--calibrate", "one.npy", "--no-verify"]).done("one sample");
    finite(dir.path(), &[1, 5, WIDTH], "one sample");
}
