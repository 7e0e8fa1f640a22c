//! Inputs that ask for more than a machine has, or for what no operator does: each ends within the limits of
//! `support/limits.rs`, with a right file or with one error that names the file, the node or value, and what to do.

#![cfg(all(feature = "cli", feature = "tract", target_os = "linux"))]

#[path = "support/limits.rs"]
mod limits;

use std::fmt::Write;
use std::fs;
use std::path::Path;

use fqvit_opt::ir::validate::validate;
use fqvit_opt::onnx::encode;
use fqvit_opt::text::parse_model;
use limits::{Run, run};
use tempfile::TempDir;

/// A folder with one model.
struct Place(TempDir);

impl Place {
    fn new(text: &str) -> Place {
        let dir = tempfile::tempdir().expect("a folder");
        let m = parse_model(text).unwrap_or_else(|e| panic!("{e}\n{}", &text[..text.len().min(2000)]));
        fs::write(dir.path().join("m.onnx"), encode(validate(&m).expect("a valid model"))).expect("writable");
        Place(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn inspect(&self) -> Run {
        run(self.path(), &["inspect", "m.onnx"])
    }

    fn compile(&self, more: &[&str]) -> Run {
        run(self.path(), &[&["m.onnx", "-o", "out.onnx", "--quiet"], more].concat())
    }
}

fn model(opset: i64, signature: &str, constants: &str, body: &str) -> String {
    let constants = if constants.is_empty() { String::new() } else { format!("<{constants}>") };
    format!("<ir_version: 8, opset_import: [\"\" : {opset}]>\ng {signature}\n{constants} {{\n{body}\n}}")
}

fn zeros(n: usize) -> String {
    vec!["0.01"; n].join(", ")
}

// ---- sizes ----------------------------------------------------------------------------------------------------------

#[test]
fn inputs_of_any_declared_size() {
    for dims in [
        "1, 3, 2147483648, 4",
        "1, 3, 4294967296, 4",
        "1, 3, 4294967312, 4",
        "1, 3, 1152921504606846976, 4",
        "1, 3, 30000, 30000",
        "4294967296, 3, 4294967296, 4",
        "2147483648, 4",
        "1, 9223372036854775807",
        "9223372036854775807, 9223372036854775807",
        "1, 100000, 100000",
    ] {
        let text = model(17, &format!("(float[{dims}] x) => (float[n] y)"), "", "y = Relu (x)");
        for (what, r) in [("inspect", Place::new(&text).inspect()), ("compile", Place::new(&text).compile(&[]))] {
            r.refused(&format!("{what} {dims}"), &["m.onnx", "`x`", "--memory"]);
        }
    }
}

#[test]
fn values_of_any_computed_size() {
    let e = "int64[2] s = {1099511627776, 1}, float[1] v = {1}";
    let huge = "int64[2] s = {100000, 100000}, float[1] v = {1}";
    for (constants, body) in [
        (e, "e = Expand (v, s)\ny = Relu (e)"),
        (huge, "e = Expand (v, s)\ny = Relu (e)"),
        (huge, "e = ConstantOfShape (s)\ny = Relu (e)"),
        ("int64[2] s = {1, 1000000000000}", "e = Tile (x, s)\ny = Relu (e)"),
        ("int64[4] s = {0, 0, 0, 1000000000}, float z = {0}", "e = Pad (x, s, z)\ny = Relu (e)"),
        (
            "int64 a = {0}, int64 b = {1000000000000}, int64 c = {1}",
            "e = Range (a, b, c)\nf = Cast <to = 1> (e)\ny = Relu (f)",
        ),
        ("float[2] k = {1, 100000000}", "y = Resize <mode = \"nearest\"> (x, \"\", k)"),
        ("int64[2] s = {1, 1099511627776}", "y = Resize <mode = \"nearest\"> (x, \"\", \"\", s)"),
    ] {
        let text = model(17, "(float[1, 4] x) => (float[n, m] y)", constants, body);
        Place::new(&text).inspect().refused(body, &["m.onnx", "--memory"]);
    }
}

/// One constant of 64 MB in a file of some hundred bytes is computed once, not by every pass.
#[test]
fn large_constants_are_computed_once() {
    for (n, copies) in [(16_000_000, 1), (8_000_000, 1), (4_000_000, 8), (16_000_000, 6)] {
        let mut body = String::new();
        for i in 0..copies {
            writeln!(body, "e{i} = Expand (v{i}, s)\nr{i} = ReduceMax <axes = [0], keepdims = 0> (e{i})")
                .expect("text");
        }
        let sum: Vec<String> = (0..copies).map(|i| format!("r{i}")).collect();
        write!(body, "t = Sum ({})\ny = Add (x, t)", sum.join(", ")).expect("text");
        let v: Vec<String> = (0..copies).map(|i| format!("float[1] v{i} = {{{i}}}")).collect();
        let constants = format!("int64[1] s = {{{n}}}, {}", v.join(", "));
        Place::new(&model(17, "(float[4] x) => (float[4] y)", &constants, &body))
            .inspect()
            .bounded(&format!("{copies} x {n}"));
    }
}

#[test]
fn a_norm_without_gain_of_any_width() {
    for n in ["1099511627776", "4000000000", "100000000"] {
        let body = "m = ReduceMean <axes = [-1], keepdims = 1> (x)\nd = Sub (x, m)\nq = Mul (d, d)\n\
                    v = ReduceMean <axes = [-1], keepdims = 1> (q)\ne = Add (v, eps)\ns = Sqrt (e)\ny = Div (d, s)";
        let text = model(17, &format!("(float[1, {n}] x) => (float[1, {n}] y)"), "float eps = {0.00001}", body);
        Place::new(&text).inspect().bounded(n);
    }
}

/// No tokens, no heads, no channels, no batch.
#[test]
fn sizes_of_zero() {
    let attention = |b: i64, h: i64, n: i64, d: i64| {
        let body = "kt = Transpose <perm = [0, 1, 3, 2]> (k)\ns = MatMul (q, kt)\nw = Softmax <axis = -1> (s)\ny = MatMul (w, v)";
        let (t, l) = (format!("float[{b}, {h}, {n}, 4]"), format!("float[{b}, {h}, {n}, {d}]"));
        model(17, &format!("({t} q, {t} k, {l} v) => ({l} y)"), "", body)
    };
    for (b, h, n, d) in [(1, 2, 3, 0), (1, 2, 0, 4), (1, 0, 3, 4), (0, 2, 3, 4), (0, 0, 0, 0)] {
        let what = format!("attention {b} {h} {n} {d}");
        Place::new(&attention(b, h, n, d)).compile(&[]).refused(&what, &["m.onnx", "no elements"]);
    }
    for (ins, outs) in [(0, 4), (4, 0), (0, 0)] {
        let w = format!("float[{ins}, {outs}] w = {{}}");
        let text = model(17, &format!("(float[1, {ins}] x) => (float[1, {outs}] y)"), &w, "y = MatMul (x, w)");
        Place::new(&text).compile(&["--recipe", "linear-w8a8"]).refused(&format!("{ins} x {outs}"), &["m.onnx"]);
    }
}

// ---- options and data -----------------------------------------------------------------------------------------------

const IMAGE: &str = "(float[n, 3, h, w] x) => (float[n, 4, a, b] y)";

fn image_model() -> String {
    let body = "y = Conv <strides = [8, 8]> (x, w)";
    model(17, IMAGE, &format!("float[4, 3, 8, 8] w = {{{}}}", zeros(768)), body)
}

#[test]
fn options_that_ask_for_too_much() {
    let p = Place::new(&image_model());
    p.compile(&["--samples", "1000000000"]).refused("samples", &["--samples", "1000000000", "--calibrate"]);
    p.compile(&["--samples", "18446744073709551615"]).refused("samples", &["--samples"]);
    p.compile(&["--crop", "60000"]).refused("crop", &["--crop 60000", "--memory"]);
    p.compile(&["--crop", "4294967295"]).refused("crop", &["--crop 4294967295", "--memory"]);
    fs::create_dir(p.path().join("pictures")).expect("a folder");
    png(&p.path().join("pictures/a.png"), 8, 8);
    // One of two is held back.
    png(&p.path().join("pictures/b.png"), 8, 8);
    let of = ["--calibrate", "pictures"];
    p.compile(&[&of[..], &["--resize", "100000"]].concat()).refused("resize", &["a.png", "--resize", "--memory"]);
    p.compile(&[&of[..], &["--resize", "4294967295"]].concat()).refused("resize", &["a.png", "--resize", "--memory"]);
    p.compile(&[&of[..], &["--crop", "60000"]].concat()).refused("crop", &["--crop 60000", "--memory"]);
    p.compile(&["--memory", "nonsense"]).refused("memory", &["--memory", "800M"]);
}

/// A grey PNG of one colour.
fn png(path: &Path, width: u32, height: u32) {
    image::GrayImage::new(width, height).save(path).expect("writable");
}

#[test]
fn pictures_of_any_shape() {
    for (w, h) in [(1, 3_000_000), (3_000_000, 1), (2, 1_000_000), (30_000, 30_000), (20_000, 20_000)] {
        let p = Place::new(&image_model());
        fs::create_dir(p.path().join("pictures")).expect("a folder");
        png(&p.path().join("pictures/a.png"), w, h);
        let r = p.compile(&["--calibrate", "pictures", "--no-verify"]);
        r.refused(&format!("{w} x {h}"), &["a.png", "--memory"]);
    }
}

/// Headers that claim sizes which the data do not have.
#[test]
fn pictures_that_claim_any_size() {
    let jpeg = |w: u16, h: u16| {
        let mut b = vec![0xFF, 0xD8, 0xFF, 0xC0, 0, 17, 8];
        b.extend(h.to_be_bytes());
        b.extend(w.to_be_bytes());
        b.extend([3, 1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0, 0xFF, 0xD9]);
        b
    };
    for (w, h) in [(65_535, 65_535), (1, 65_535), (0, 0)] {
        let p = Place::new(&image_model());
        fs::create_dir(p.path().join("pictures")).expect("a folder");
        fs::write(p.path().join("pictures/a.jpg"), jpeg(w, h)).expect("writable");
        p.compile(&["--calibrate", "pictures"]).refused(&format!("{w} x {h}"), &["a.jpg"]);
    }
}

#[test]
fn arrays_that_claim_any_size() {
    let w = format!("float[8, 8] w = {{{}}}", zeros(64));
    for shape in [
        "(1000000000000000000, 0, 8)",
        "(4611686018427387904, 8, 8)",
        "(0, 1099511627776, 8)",
        "(3, 0, 8)",
        "()",
        "(8,)",
    ] {
        let p = Place::new(&model(17, "(float[n, m, 8] x) => (float[n, m, 8] y)", &w, "y = MatMul (x, w)"));
        npy(&p.path().join("a.npy"), "<f4", shape, &[0; 64]);
        p.compile(&["--calibrate", "a.npy"]).refused(shape, &["a.npy"]);
    }
}

/// A model of pictures and of one input beside them.
fn prompted(prompt: &str) -> Place {
    let signature = format!("(float[n, 3, 32, 32] x, {prompt} prompt) => (float[n, 4, a, b] y)");
    let body = "c = Conv <strides = [8, 8]> (x, w)\nf = Cast <to = 1> (prompt)\n\
                s = ReduceSum <keepdims = 0> (f)\ny = Add (c, s)";
    let p = Place::new(&model(17, &signature, &format!("float[4, 3, 8, 8] w = {{{}}}", zeros(768)), body));
    fs::create_dir(p.path().join("pictures")).expect("a folder");
    for name in ["pictures/a.png", "pictures/b.png"] {
        png(&p.path().join(name), 32, 32);
    }
    p
}

/// An `.npy` file with this header and these elements.
fn npy(path: &Path, descr: &str, shape: &str, elements: &[u8]) {
    let head = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
    let mut b = b"\x93NUMPY\x01\x00".to_vec();
    b.extend((head.len() as u16).to_le_bytes());
    b.extend(head.as_bytes());
    b.extend(elements);
    fs::write(path, b).expect("writable");
}

fn with_fixed(p: &Place, fixed: &[&str]) -> Run {
    let flags = fixed.iter().flat_map(|f| ["--fixed", f]);
    p.compile(&["--calibrate", "pictures"].into_iter().chain(flags).collect::<Vec<_>>())
}

/// A number is repeated as often as the input's size says, and a file may have any size that the model leaves open.
#[test]
fn fixed_inputs_of_any_size() {
    for size in ["1, 1099511627776", "1, 9223372036854775807", "n, 100000, 100000", "1, 75000000", "1099511627776, 1"] {
        let p = prompted(&format!("float[{size}]"));
        with_fixed(&p, &["prompt=1"]).refused(size, &["prompt", "--memory"]);
    }
    let p = prompted("float[n, m, k]");
    with_fixed(&p, &["prompt=1"]).refused("open sizes", &["--fixed prompt=1", "--shape"]);
    npy(&p.path().join("a.npy"), "<f4", "(1, 100000, 100000)", &[]);
    let elements = fs::OpenOptions::new().append(true).open(p.path().join("a.npy")).expect("it is there");
    elements.set_len((40 << 30) + 128).expect("a file of holes");
    with_fixed(&p, &["prompt=a.npy"]).refused("a file of 40 GB", &["a.npy", "prompt", "--memory"]);
    // The same as data: an array of which one sample is the whole of it.
    let w = format!("float[8, 8] w = {{{}}}", zeros(64));
    let p = Place::new(&model(17, "(float[n, m, 8] x) => (float[n, m, 8] y)", &w, "y = MatMul (x, w)"));
    npy(&p.path().join("a.npy"), "<f4", "(2, 600000000, 8)", &[]);
    let elements = fs::OpenOptions::new().append(true).open(p.path().join("a.npy")).expect("it is there");
    elements.set_len((40 << 30) + 128).expect("a file of holes");
    p.compile(&["--calibrate", "a.npy"]).refused("data of 40 GB", &["a.npy", "x", "--memory"]);
}

#[test]
fn fixed_inputs_of_any_value() {
    let floats = |v: [f32; 4]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let one = floats([1.0; 4]);
    let p = prompted("float[n, 4]");
    with_fixed(&p, &["prompt=-0.5"]).done("a number");
    for (descr, shape, elements, says) in [
        ("<f4", "(1, 4)", &one, None),
        ("<f4", "(1, 5)", &[&one[..], &[0; 4]].concat(), Some("[1, 5]")),
        ("<f4", "(4,)", &one, Some("needs [1, 4]")),
        ("<f4", "(2, 4)", &[&one[..], &one].concat(), Some("2 samples")),
        ("<f4", "(0, 4)", &vec![], Some("no sample")),
        ("<f4", "(1, 4)", &one[..9].to_vec(), Some("cut off")),
        ("<f4", "(1, 4)", &floats([1.0, f32::NAN, 0.0, 0.0]), Some("NaN")),
        ("<f4", "(1, 4)", &floats([1.0, 0.0, f32::NEG_INFINITY, 0.0]), Some("-inf")),
        ("<f8", "(1, 4)", &1e300f64.to_le_bytes().repeat(4), Some("1e300")),
        ("<U1", "(1, 4)", &one, Some("<U1")),
        ("|O", "(1, 4)", &one, Some("|O")),
        ("<c8", "(1, 4)", &[&one[..], &one].concat(), Some("<c8")),
    ] {
        npy(&p.path().join("a.npy"), descr, shape, elements);
        let r = with_fixed(&p, &["prompt=a.npy"]);
        match says {
            None => r.done("a file"),
            Some(says) => r.refused(says, &["--fixed prompt=a.npy", says]),
        }
    }
    fs::write(p.path().join("a.txt"), "1").expect("writable");
    for (fixed, says) in [
        (&["pompt=1"][..], "it has x, prompt"),
        (&["prompt=1", "prompt=1"], "before"),
        (&["prompt=1", "x=1"], "leave one input out"),
        (&["prompt"], "NAME=NUMBER"),
        (&["prompt="], "NAME=NUMBER"),
        (&["=1"], "NAME=NUMBER"),
        (&["prompt=nan"], "NaN"),
        (&["prompt=1e999"], "inf"),
        (&["prompt=1e300"], "1e300"),
        (&["prompt=nowhere.npy"], "nowhere.npy"),
        (&["prompt=pictures"], "it is a folder"),
        (&["prompt=a.txt"], "not an .npy file"),
        (&["prompt=m.onnx"], "not an .npy file"),
    ] {
        with_fixed(&p, fixed).refused(&fixed.join(" "), &["--fixed", says]);
    }
    let p = prompted("int64[n, 4]");
    with_fixed(&p, &["prompt=9007199254740992"]).done("the last whole number that a float has");
    with_fixed(&p, &["prompt=9007199254740993"]).refused("digits", &["prompt=9007199254740993", ".npy"]);
    with_fixed(&p, &["prompt=0.5"]).refused("half", &["--fixed prompt=0.5", "int64"]);
    with_fixed(&p, &["prompt=1e19"]).refused("too large", &["--fixed prompt=1", "int64"]);
}

// ---- depth ----------------------------------------------------------------------------------------------------------

fn chain(n: usize, op: &str) -> String {
    let mut body = String::with_capacity(n * 24);
    for i in 0..n {
        writeln!(body, "v{} = {op} (v{i})", i + 1).expect("text");
    }
    write!(body, "y = Relu (v{n})").expect("text");
    model(17, "(float[1, 4] v0) => (float[1, 4] y)", "", &body)
}

#[test]
fn a_chain_of_100000_nodes() {
    let p = Place::new(&chain(100_000, "Relu"));
    p.inspect().done("inspect");
    p.compile(&["--recipe", "none"]).done("none");
    Place::new(&chain(20_000, "Exp")).inspect().done("Exp");
}

#[test]
fn rules_of_any_depth_and_number_of_ways() {
    let rule = |text: &str| {
        let p = Place::new(&chain(3, "Relu"));
        fs::create_dir_all(p.path().join("p/rules")).expect("a folder");
        let body: Vec<String> = text.lines().map(|l| format!("    {l}")).collect();
        let yaml = format!(
            "- id: odd\n  summary: odd\n  match: |\n{}\n  stands_for: {{what: odd, roles: {{}}}}\n",
            body.join("\n")
        );
        fs::write(p.path().join("p/rules/r.yaml"), yaml).expect("writable");
        run(p.path(), &["inspect", "m.onnx", "--passes-dir", "p"])
    };
    for n in [200, 10_000, 100_000] {
        rule(&format!("y = {}x{}", "Exp (".repeat(n), ")".repeat(n)))
            .refused("nested", &["r.yaml:4:", "rule `odd`", "64"]);
        rule(&format!("y = Exp ({}x{})", "(".repeat(n), ")".repeat(n))).refused("groups", &["r.yaml:4:", "64"]);
    }
    let mut doubling = "a0 = Exp (x) | Neg (x)\n".to_owned();
    for i in 1..60 {
        writeln!(doubling, "a{i} = Add (a{}, a{}) | Mul (a{}, a{})", i - 1, i - 1, i - 1, i - 1).expect("text");
    }
    rule(&doubling).done("doubling");
}

/// What comes from a Concat of a value with itself has 2^n ways back.
#[test]
fn values_that_double() {
    for (op, n) in [("Add", 2000), ("Mul", 500)] {
        let mut body = String::new();
        for i in 0..n {
            writeln!(body, "v{} = {op} (v{i}, v{i})", i + 1).expect("text");
        }
        write!(body, "y = MatMul (v{n}, w)").expect("text");
        let w = format!("float[4, 4] w = {{{}}}", zeros(16));
        let text = model(17, "(float[1, 4] v0) => (float[1, 4] y)", &w, &body);
        Place::new(&text).compile(&["--samples", "2"]).bounded(op);
    }
    let mut body = String::new();
    for i in 0..20 {
        writeln!(body, "v{} = Concat <axis = 1> (v{i}, v{i})", i + 1).expect("text");
    }
    let text = model(17, "(float[1, 4] v0) => (float[1, n] y)", "", &format!("{body}y = Softmax <axis = -1> (v20)"));
    Place::new(&text).compile(&["--samples", "2"]).bounded("Concat");
}

// ---- number ---------------------------------------------------------------------------------------------------------

#[test]
fn very_many_outputs_constants_and_readers() {
    let n = 40_000;
    let (mut body, mut outs) = (String::new(), Vec::new());
    for i in 0..n {
        writeln!(body, "y{i} = Relu (x)").expect("text");
        outs.push(format!("float[4] y{i}"));
    }
    let outputs = model(17, &format!("(float[4] x) => ({})", outs.join(", ")), "", &body);
    Place::new(&outputs).inspect().done("outputs");

    let unused: Vec<String> = (0..80_000).map(|i| format!("float w{i} = {{{i}}}")).collect();
    let constants = model(17, "(float[4] x) => (float[4] y)", &unused.join(", "), "y = Relu (x)");
    Place::new(&constants).inspect().done("constants");

    let mut body = String::new();
    for i in 0..20_000 {
        writeln!(body, "r{i} = Elu <alpha = {i}.5> (h)").expect("text");
    }
    let sum: Vec<String> = (0..20_000).map(|i| format!("r{i}")).collect();
    let readers = format!("h = Exp (x)\n{body}y = Sum ({})", sum.join(", "));
    Place::new(&model(17, "(float[4] x) => (float[4] y)", "", &readers)).inspect().done("readers");

    // Equal readers, of which all but two go. (Moving an edge looks through all inputs of the node it goes into.)
    let mut body = String::new();
    for i in 0..10_000 {
        writeln!(body, "r{i} = {} (h)", if i % 2 == 0 { "Relu" } else { "Sigmoid" }).expect("text");
    }
    let sum: Vec<String> = (0..10_000).map(|i| format!("r{i}")).collect();
    let readers = format!("h = Exp (x)\n{body}y = Sum ({})", sum.join(", "));
    Place::new(&model(17, "(float[4] x) => (float[4] y)", "", &readers)).inspect().done("equal readers");

    let p = Place::new(&chain(2000, "Relu"));
    p.inspect().done("2000 Relu");
    p.compile(&["--samples", "2"]).bounded("2000 Relu");
}

// ---- what operators take --------------------------------------------------------------------------------------------

/// Each is refused by the program itself, not by what runs models for it.
#[test]
fn calls_that_no_operator_takes() {
    let w = format!("float[4, 3, 2, 2] w = {{{}}}", zeros(48));
    let image = |constants: &str, body: &str| {
        let all = if constants.is_empty() { w.clone() } else { format!("{w}, {constants}") };
        model(17, "(float[1, 3, 8, 8] x) => (float[a, b, c, d] y)", &all, body)
    };
    let far = "4611686018427387904";
    let cases = [
        image("", "y = Transpose <perm = [0, 0, 1, 2]> (x)"),
        image("", "y = Transpose <perm = [0, 1, 2]> (x)"),
        image("", "y = Transpose <perm = [0, 1, 2, 9]> (x)"),
        image("", &format!("y = Softmax <axis = {far}> (x)")),
        image("", "y = Softmax <axis = -5> (x)"),
        image("", &format!("y = Flatten <axis = {far}> (x)")),
        image("", "y = Concat <axis = 7> (x, x)"),
        image("float[8] g = {8 * 1}", &format!("y = LayerNormalization <axis = {far}> (x, g)"))
            .replace("8 * 1", &zeros(8)),
        image("float[7] g = {7 * 1}", "y = LayerNormalization <axis = -1> (x, g)").replace("7 * 1", &zeros(7)),
        image("", "y = Conv <group = 0> (x, w)"),
        image("", "y = Conv <group = 2> (x, w)"),
        image("", "y = Conv <strides = [0, 1]> (x, w)"),
        image("", "y = Conv <strides = [-1, 1]> (x, w)"),
        image("", "y = Conv <dilations = [0, 0]> (x, w)"),
        image("", &format!("y = Conv <pads = [{far}, 0, 0, 0]> (x, w)")),
        image("", "y = Conv <pads = [0, 0]> (x, w)"),
        image("", "y = Conv <kernel_shape = [3, 3]> (x, w)"),
        image("float s = {1}", "y = Conv (x, s)"),
        image("", "y = MaxPool <kernel_shape = [0, 2]> (x)"),
        image("", "y = AveragePool <kernel_shape = [2, 2], strides = [0, 0]> (x)"),
        image(&format!("int64[8] p = {{0, 0, 0, 0, 0, 0, 0, {far}}}, float z = {{0}}"), "y = Pad (x, p, z)"),
        image("int64[8] p = {0, 0, 0, -5, 0, 0, 0, -5}, float z = {0}", "y = Pad (x, p, z)"),
        image("int64[3] p = {0, 0, 0}, float z = {0}", "y = Pad (x, p, z)"),
        image("int64[2] s = {1, 1099511627776}", "y = Reshape (x, s)"),
        image("int64[2] s = {-1, -1}", "y = Reshape (x, s)"),
        image("int64[2] s = {-7, 3}", "y = Reshape (x, s)"),
        image("int64[1] i = {8}", "y = Gather <axis = 3> (x, i)"),
        image(&format!("int64[1] i = {{-{far}}}"), "y = Gather <axis = 3> (x, i)"),
        image("int64[1] i = {0}", "y = Gather <axis = 4> (x, i)"),
        image("int64[2] s = {1, 1}", "y, z = Split <axis = 1> (x, s)"),
        image("int64[2] s = {-1, 4}", "y, z = Split <axis = 1> (x, s)"),
        image("int64[2] a = {1, 1}", "y = Squeeze (x, a)"),
        image("int64[1] a = {9}", "y = Unsqueeze (x, a)"),
        image("", "y = ReduceMean <axes = [4]> (x)"),
        image("", "y = ReduceMean <axes = [1, 1]> (x)"),
        image(
            "int64 a = {0}, int64 b = {4}, int64 c = {0}",
            "r = Range (a, b, c)\nf = Cast <to = 1> (r)\ny = Mul (x, f)",
        ),
        image("float[5] v = {1, 2, 3, 4, 5}", "y = Add (x, v)"),
        image("float[5, 5] v = {25 * 1}", "y = MatMul (x, v)").replace("25 * 1", &zeros(25)),
        image("float[5] v = {1, 2, 3, 4, 5}", "y = Gemm (x, v)"),
        image("", "y = DepthToSpace <blocksize = 0> (x)"),
        image("", "y = Softmax <axis = 1.5> (x)"),
        image("", "y = Transpose <perm = 1> (x)"),
        image("", "y = Conv <group = \"two\"> (x, w)"),
        image("float[4] k = {1, 1, -1, 1}", "y = Resize <mode = \"nearest\"> (x, \"\", k)"),
        image("int64[4] s = {1, 3, 0, 4}", "y = Resize <mode = \"nearest\"> (x, \"\", \"\", s)"),
        image("int64[4] s = {1, 3, -1, 8}", "y = Expand (x, s)"),
        image("int64[4] s = {1, 1, 1, -2}", "y = Tile (x, s)"),
        image("float a = {0}, float b = {4}, float c = {0}", "r = Range (a, b, c)\ny = Mul (x, r)"),
        image("int64 a = {9}", "y = CumSum (x, a)"),
        image("int64[1] k = {-1}", "y, z = TopK (x, k)"),
        image("int64[1] k = {99}", "y, z = TopK (x, k)"),
        image("int64[1] a = {0}, int64[1] b = {4}, int64[1] s = {0}", "y = Slice (x, a, b, a, s)"),
        image("", "y = Einsum <equation = \"abcd,abcd->abcd\"> (x)"),
        image("", "y = Einsum <equation = \"abc->abc\"> (x)"),
        image("", "y = Conv <auto_pad = \"AROUND\"> (x, w)"),
        image("float[1, 32, 8] i = {256 * 1}, float[1, 32, 8] h = {256 * 1}", "y = LSTM <hidden_size = 9> (x, i, h)")
            .replace("256 * 1", &zeros(256)),
    ];
    for text in cases {
        let body = text.lines().nth(3).unwrap_or_default().to_owned();
        let op = body.split(" = ").nth(1).unwrap_or_default().split([' ', '(']).next().unwrap_or_default();
        let p = Place::new(&text);
        let op = if op == "Range" { "Range" } else { op };
        p.inspect().refused(&body, &["m.onnx", "node `", op, "export it again"]);
        p.compile(&["--recipe", "linear-w8a8"]).refused(&body, &["m.onnx", "node `", op]);
    }
}

/// Files that say they are newer than all there are.
#[test]
fn files_of_any_version() {
    let text = model(17, "(float[1, 4] x) => (float[1, 4] y)", "float[4, 4] w = {16 * 1}", "y = MatMul (x, w)")
        .replace("16 * 1", &zeros(16));
    for (from, to) in [("ir_version: 8", "ir_version: 1099511627776"), ("\"\" : 17", "\"\" : 1099511627776")] {
        let newer = text.replace(from, to);
        assert_ne!(newer, text);
        Place::new(&newer).compile(&[]).refused(to, &["m.onnx", "1099511627776", "knows them up to"]);
    }
}

/// Weights with fewer axes than a layer's have.
#[test]
fn weights_of_any_rank() {
    for (w, call) in [
        ("float[4] w = {1, 2, 3, 4}", "Gemm (x, w)"),
        ("float w = {1}", "Gemm (x, w)"),
        ("float w = {1}", "Conv (x, w)"),
        ("float[1, 4] w = {1, 2, 3, 4}", "Conv (x, w)"),
        ("float w = {1}", "MatMul (x, w)"),
    ] {
        for shape in ["[1, 4]", "[a, b]", "[]"] {
            let text = model(17, &format!("(float{shape} x) => (float[a, b] y)"), w, &format!("y = {call}"));
            Place::new(&text).compile(&["--recipe", "linear-w8a8"]).refused(&format!("{w} {shape}"), &["m.onnx"]);
        }
    }
}
