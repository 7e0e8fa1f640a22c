//! The program from the outside: what it says, what it writes, and what it leaves alone when something is wrong.

#![cfg(all(feature = "cli", feature = "tract"))]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;
use fqvit_opt::ir::validate::validate;
use fqvit_opt::ir::{Model, Tensor};
use fqvit_opt::onnx;
use fqvit_opt::rewrite::Patch;
use tempfile::TempDir;

fn digits(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/digits").join(name)
}

fn text(p: &Path) -> &str {
    p.to_str().expect("a plain path")
}

/// A folder to work in, with an older output that must survive every failure.
struct Place {
    dir: TempDir,
}

const OLD: &[u8] = b"the older output";

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().expect("a temporary folder");
        fs::write(dir.path().join("out.onnx"), OLD).expect("writable");
        Place { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> String {
        fs::write(self.path(name), bytes).expect("writable");
        text(&self.path(name)).to_owned()
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut c = Command::cargo_bin("fqvit-opt").expect("the program is built");
        c.current_dir(self.dir.path()).env("COLUMNS", "120").args(args).output().expect("it runs")
    }

    /// Compiles `model` with more arguments, to `out.onnx`.
    fn compile(&self, model: &str, more: &[&str]) -> Output {
        self.run(&[&[model, "-o", "out.onnx", "--quiet"], more].concat())
    }

    /// One error that says all of `words`, exit status 1, nothing written beside what the test wrote.
    #[track_caller]
    fn refused(&self, args: &[&str], words: &[&str]) {
        let before = self.names();
        let o = self.run(args);
        let (out, err) = (String::from_utf8_lossy(&o.stdout), String::from_utf8_lossy(&o.stderr));
        assert_eq!(o.status.code(), Some(1), "{args:?}: {out}{err}");
        assert!(out.is_empty(), "{args:?} printed {out}");
        assert_eq!(err.matches("error:").count(), 1, "{args:?}: {err}");
        for w in words {
            assert!(err.contains(w), "{args:?}: no `{w}` in: {err}");
        }
        assert_eq!(fs::read(self.path("out.onnx")).expect("still there"), OLD, "{args:?}");
        assert_eq!(self.names(), before, "{args:?}");
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).expect("readable");
        let mut v: Vec<String> =
            entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        v.sort();
        v
    }
}

/// The arguments of a whole compilation of the digits.
fn whole<'a>(model: &'a str, data: &'a str) -> Vec<&'a str> {
    vec![model, "-o", "out.onnx", "--calibrate", data, "--samples", "16", "--quiet"]
}

fn edited(name: &str, place: &Place, edit: impl FnOnce(&mut Model)) -> String {
    let mut m = onnx::load(&digits("digits_vit.onnx")).expect("the digits").model;
    edit(&mut m);
    let to = place.path(name);
    onnx::save(validate(&m).unwrap_or_else(|e| panic!("{e}")), &to, &Default::default()).expect("writable");
    text(&to).to_owned()
}

/// The digits with one weight changed in one element.
fn with_weight(name: &str, place: &Place, weight: &str, value: f32) -> String {
    edited(name, place, |m| {
        let v = m.graph.find(weight).expect("a weight of the digits");
        let t = m.graph.constant(v).expect("a constant");
        let mut data = t.to_f32s().expect("floats").into_owned();
        data[5] = value;
        let mut p = Patch::new("test");
        let c = p.constant(&format!("{weight}_new"), Tensor::f32(&t.dims.clone(), &data));
        p.replace(v, c);
        p.commit(m).expect("a valid model");
    })
}

/// Arrays as numpy would store them in an `.npz`.
fn npz(place: &Place, name: &str, arrays: &[(&str, &[usize], f32)]) -> String {
    let mut w = ndarray_npy::NpzWriter::new(fs::File::create(place.path(name)).expect("writable"));
    for (array, dims, value) in arrays {
        w.add_array(*array, &ndarray::ArrayD::from_elem(dims.to_vec(), *value)).expect("writable");
    }
    w.finish().expect("writable");
    text(&place.path(name)).to_owned()
}

#[test]
fn models_that_can_not_be_compiled() {
    let p = Place::new();
    let calib = digits("digits_calib.npz");
    let refused = |model: &str, words: &[&str]| p.refused(&whole(model, text(&calib)), words);
    let bytes = fs::read(digits("digits_vit.onnx")).expect("the digits");

    refused("missing.onnx", &["missing.onnx", "No such file"]);
    refused(&p.write("text.onnx", b"hello, I am no model\n"), &["text.onnx", "not an ONNX model"]);
    refused(&p.write("empty.onnx", b""), &["empty.onnx", "is empty"]);
    refused(&p.write("short.onnx", &bytes[..bytes.len() / 2]), &["short.onnx", "cut short"]);
    refused(text(p.dir.path()), &["is a folder"]);

    let weight = "head.weight";
    let w = with_weight("nan.onnx", &p, weight, f32::NAN);
    refused(&w, &["nan.onnx", weight, "/head/Gemm", "NaN at element 5"]);
    let w = with_weight("inf.onnx", &p, weight, f32::NEG_INFINITY);
    refused(&w, &["inf.onnx", weight, "infinity at element 5"]);

    let w = with_weight("nan_token.onnx", &p, "cls_token", f32::NAN);
    refused(&w, &["digits_calib.npz[0]", "cls_token", "NaN at element 5"]);

    let op = |name: &str, from: &str, to: &str| {
        edited(name, &p, |m| {
            let nodes: Vec<_> = m.graph.nodes().filter(|(_, n)| n.op.is(from)).map(|(id, _)| id).collect();
            for n in nodes {
                let x = m.graph.node(n).input(0).expect("an input");
                let y = m.graph.node(n).out().expect("an output");
                let mut patch = Patch::new("test");
                let new = patch.node(to, "new", &[x.into()], Default::default());
                patch.succeed(y, new);
                patch.commit(m).expect("a valid model");
            }
        })
    };
    let m = op("no_attention.onnx", "Softmax", "Sigmoid");
    let o = p.compile(&m, &["--calibrate", text(&calib), "--samples", "16"]);
    assert_ne!(o.status.code(), Some(1), "what is no attention is quantized as what it is");
    let told = String::from_utf8_lossy(&o.stdout);
    assert!(told.contains("no attention was found"), "{told}");
    p.write("out.onnx", OLD);

    // The number of the operator set, behind the empty name of its domain, is the last field of the file.
    let opset = bytes.iter().rposition(|b| *b == 17).expect("the digits have opset 17");
    let with = |n: u8| [&bytes[..opset], &[n], &bytes[opset + 1..]].concat();
    refused(&p.write("new.onnx", &with(99)), &["new.onnx", "operator set is 99", "up to"]);
    refused(&p.write("old.onnx", &with(5)), &["old.onnx", "begins with opset", "lines more"]);

    // A name of the same length keeps the file whole.
    let swap = |to: &str| {
        let at = bytes.windows(8).position(|w| w == b"\x22\x06Conv\x2a".as_slice()).unwrap_or(0);
        let at =
            if at == 0 { bytes.windows(6).position(|w| w == b"\x22\x04Conv").expect("a Conv") + 2 } else { at + 2 };
        [&bytes[..at], to.as_bytes(), &bytes[at + 4..]].concat()
    };
    refused(&p.write("op.onnx", &swap("Cnov")), &["op.onnx", "no operator Cnov"]);

    // A quantized model is no float model.
    let o = p.run(&whole(text(&digits("digits_vit.onnx")), text(&calib)));
    assert!(o.status.success(), "{}", String::from_utf8_lossy(&o.stderr));
    fs::rename(p.path("out.onnx"), p.path("q.onnx")).expect("renamed");
    p.write("out.onnx", OLD);
    refused("q.onnx", &["q.onnx", "quantized already"]);
}

#[test]
fn data_that_does_not_fit() {
    let p = Place::new();
    let m = digits("digits_vit.onnx");
    let refused = |data: &str, words: &[&str]| p.refused(&whole(text(&m), data), words);

    refused("missing.npz", &["missing.npz", "no such file"]);
    refused(&npz(&p, "name.npz", &[("pixels", &[4, 1, 8, 8], 1.0)]), &["name.npz", "\"input\"", "it has pixels"]);
    refused(
        &npz(&p, "shape.npz", &[("input", &[4, 1, 8, 5], 1.0)]),
        &["shape.npz", "[4, 1, 8, 5]", "[samples, 1, 8, 8]"],
    );
    refused(&npz(&p, "nan.npz", &[("input", &[4, 1, 8, 8], f32::NAN)]), &["nan.npz", "sample 0", "NaN"]);
    refused(&npz(&p, "none.npz", &[("input", &[0, 1, 8, 8], 1.0)]), &["none.npz", "no sample"]);
    let labels = npz(&p, "labels.npz", &[("input", &[4, 1, 8, 8], 1.0), ("labels", &[3], 1.0)]);
    refused(&labels, &["labels.npz", "3 samples", "has 4"]);
    let bytes = fs::read(digits("digits_calib.npz")).expect("the digits");
    refused(&p.write("short.npz", &bytes[..100]), &["short.npz", "cut short"]);
    refused(&p.write("photo.jpg", b"no photo"), &["photo.jpg", "the folder that holds the image"]);

    for d in ["empty", "texts", "images"] {
        fs::create_dir(p.path(d)).expect("writable");
    }
    p.write("texts/readme.txt", b"hello");
    p.write("images/a.jpg", b"hello");
    refused("empty", &["empty", "folder is empty"]);
    refused("texts", &["texts", "no JPEG, PNG, WebP or BMP picture"]);
    refused("images", &["images", "1 of 1 pictures cannot be read", "a.jpg (no picture"]);

    // The float model itself overflows: an activation, not a weight.
    let big = with_weight("big.onnx", &p, "patch_embed.proj.weight", 3e38);
    let bright = npz(&p, "bright.npz", &[("input", &[4, 1, 8, 8], 3e38)]);
    p.refused(&whole(&big, &bright), &["sample bright.npz[0]", "value `", "does not stay finite"]);
}

#[test]
fn options_that_can_not_be_followed() {
    let p = Place::new();
    let (m, c) = (digits("digits_vit.onnx"), digits("digits_calib.npz"));
    let refused = |more: &[&str], words: &[&str]| p.refused(&[&whole(text(&m), text(&c))[..], more].concat(), words);

    refused(&["--recipe", "fq-vitt"], &["no recipe `fq-vitt`", "fq-vit-paper", "minmax-w8a8"]);
    refused(&["--recipe", "no.yaml"], &["no.yaml", "No such file"]);
    p.write("bad.yaml", b"name: x\nsummary: y\nquantise: {}\n");
    refused(&["--recipe", "bad.yaml"], &["bad.yaml", "quantise"]);
    refused(&["--passes-dir", "nowhere"], &["nowhere", "no such folder"]);
    for flag in ["--json", "--html", "--plan", "--stats"] {
        refused(&[flag, "no/such/file"], &["folder no/such", "No such file or directory (os error 2);"]);
        refused(&[flag, "out.onnx"], &[flag, "-o", "the same file"]);
        refused(&[flag, text(&m)], &[flag, "MODEL", "the same file"]);
    }
    refused(&["--verify", "no.npz"], &["no.npz", "no such file"]);
    p.write("plan.yaml", b"version: 77\n");
    refused(&["--plan", "plan.yaml"], &["plan.yaml"]);
    p.write("stats", b"no statistics at all");
    refused(&["--stats", "stats"], &["stats", "no statistics file"]);
    refused(&["--preset", "imagenette"], &["imagenette", "there are imagenet, inception"]);
    refused(&["--mean", "127.5"], &["--mean 127.5", "--mean 0.5"]);
    refused(&["--threads", "many"], &["many", "--threads"]);
    refused(&["--frobnicate"], &["--frobnicate"]);

    // Outputs that are no files.
    let to = |out: &str, words: &[&str]| p.refused(&[text(&m), "-o", out, "--calibrate", text(&c), "--quiet"], words);
    to(".", &["it is a folder"]);
    to("no/such/out.onnx", &["folder no/such"]);
    if cfg!(unix) {
        to("/dev/null", &["a device"]);
    }
}

#[test]
fn the_model_itself_is_never_overwritten() {
    let p = Place::new();
    let c = digits("digits_calib.npz");
    let bytes = fs::read(digits("digits_vit.onnx")).expect("the digits");
    p.write("m.onnx", &bytes);
    p.refused(&["m.onnx", "-o", "./m.onnx", "--calibrate", text(&c)], &["-o and MODEL", "another name"]);
    p.refused(&["calibrate", "m.onnx", "--stats", "m.onnx", "--calibrate", text(&c)], &["--stats and MODEL"]);
    p.refused(&["plan", "m.onnx", "--plan", "m.onnx", "--calibrate", text(&c)], &["--plan and MODEL"]);
    p.refused(&["verify", "m.onnx", "m.onnx", "--outputs", "m.onnx", "--data", text(&c)], &["--outputs"]);
    assert_eq!(fs::read(p.path("m.onnx")).expect("still there"), bytes);
}

#[test]
fn plans_and_statistics_of_another_model() {
    let p = Place::new();
    let (m, c) = (digits("digits_vit.onnx"), digits("digits_calib.npz"));
    let (m, c) = (text(&m), text(&c));
    let o = p.run(&["plan", m, "--plan", "p.yaml", "--stats", "s", "--calibrate", c, "--samples", "16", "-q"]);
    assert!(o.status.success(), "{}", String::from_utf8_lossy(&o.stderr));
    let other = with_weight("other.onnx", &p, "head.weight", 0.25);
    let args = whole(&other, c);
    p.refused(&[&args[..], &["--plan", "p.yaml"]].concat(), &["p.yaml", "another model", "fqvit-opt plan"]);
    p.refused(&[&args[..], &["--stats", "s"]].concat(), &["s was made for another model"]);

    // A failed calibration leaves the statistics that were there.
    let before = fs::read(p.path("s")).expect("statistics");
    let bad = npz(&p, "nan.npz", &[("input", &[4, 1, 8, 8], f32::NAN)]);
    p.refused(&["calibrate", m, "--stats", "s", "--calibrate", &bad, "-q"], &["NaN"]);
    assert_eq!(fs::read(p.path("s")).expect("statistics"), before);

    let mut damaged = before;
    *damaged.last_mut().expect("not empty") ^= 1;
    p.write("damaged", &damaged);
    p.refused(&[&whole(m, c)[..], &["--stats", "damaged"]].concat(), &["damaged", "checksum"]);

    // A plan that names what the model does not have.
    let plan = fs::read_to_string(p.path("p.yaml")).expect("a plan");
    p.write("p2.yaml", plan.replace("value: logits", "value: nonsense").as_bytes());
    p.write("p2.weights.npz", &fs::read(p.path("p.weights.npz")).expect("the codes of the weights"));
    p.refused(&[&whole(m, c)[..], &["--plan", "p2.yaml"]].concat(), &["p2.yaml", "`nonsense`"]);
}

#[test]
fn json_is_alone_on_standard_output() {
    let p = Place::new();
    let (m, c) = (digits("digits_vit.onnx"), digits("digits_calib.npz"));
    // Without --quiet: progress goes to standard error.
    let args = [text(&m), "-o", "out.onnx", "--calibrate", text(&c), "--samples", "16", "--json", "-", "--verify-each"];
    let o = p.run(&args);
    assert!(o.status.success(), "{}", String::from_utf8_lossy(&o.stderr));
    let report: serde_json::Value = serde_json::from_slice(&o.stdout).expect("nothing but JSON");
    assert_eq!(report["coverage"]["covered"], report["coverage"]["total"]);
    assert_eq!(report["data"]["calibration_samples"], 14);
    let passes: Vec<&str> =
        report["passes"].as_array().expect("a list").iter().filter_map(|p| p["pass"].as_str()).collect();
    assert_eq!(passes.first(), Some(&"fix-defaults"));
    assert!(passes.contains(&"quantize-weights"), "{passes:?}");
    let total =
        report["passes"].as_array().and_then(|p| p.last()).and_then(|p| p["total_db"].as_f64()).expect("a figure");
    assert!((5.0..60.0).contains(&total), "{total} dB");
    assert!(report["speed"]["ratio"].as_f64().is_some_and(|r| r > 0.0), "{}", report["speed"]);
}

#[test]
fn a_bench_times_both_models() {
    let p = Place::new();
    let m = digits("digits_vit.onnx");
    let done = p.compile(text(&m), &["--samples", "4", "--no-verify", "--json", "report.json"]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let report: serde_json::Value =
        serde_json::from_slice(&fs::read(p.path("report.json")).expect("a report")).expect("JSON");
    assert!(report.get("speed").is_none(), "nothing was timed");
    let o = p.run(&["bench", text(&m), "out.onnx", "--rounds", "3", "--json", "-"]);
    assert!(o.status.success(), "{}", String::from_utf8_lossy(&o.stderr));
    let speed: serde_json::Value = serde_json::from_slice(&o.stdout).expect("nothing but JSON");
    assert_eq!((&speed["runtime"], &speed["threads"], &speed["rounds"]), (&"tract".into(), &1.into(), &3.into()));
    for key in ["float_ms", "quantized_ms", "ratio"] {
        assert!(speed[key].as_f64().is_some_and(|x| x > 0.0), "{key}: {speed}");
    }
    fs::rename(p.path("out.onnx"), p.path("q.onnx")).expect("it was written");
    fs::write(p.path("out.onnx"), "the older output").expect("writable");
    p.refused(&["bench", text(&m), text(&digits("digits_calib.npz"))], &["digits_calib.npz"]);
    p.refused(&["bench", text(&m), "q.onnx", "--json", "q.onnx"], &["--json", "q.onnx"]);
}

#[test]
fn a_missed_threshold_is_told_from_an_error() {
    let p = Place::new();
    let (m, c) = (digits("digits_vit.onnx"), digits("digits_calib.npz"));
    let o = p.compile(text(&m), &["--calibrate", text(&c), "--samples", "16", "--min-sqnr", "80"]);
    assert_eq!(o.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&o.stdout).contains("FAIL sqnr_db"));
    assert_ne!(fs::read(p.path("out.onnx")).expect("written"), OLD);
}

#[test]
fn what_the_reader_did_not_know_is_told_by_every_recipe() {
    let p = Place::new();
    let mut bytes = fs::read(digits("digits_vit.onnx")).expect("the digits");
    // Field 999 of the model, a string.
    bytes.write_all(&[0xba, 0x3e, 3, b'a', b'b', b'c']).expect("memory");
    let m = p.write("strange.onnx", &bytes);
    let o = p.compile(&m, &["--recipe", "none"]);
    assert!(o.status.success(), "{}", String::from_utf8_lossy(&o.stderr));
    let said = String::from_utf8_lossy(&o.stdout);
    assert!(said.contains("note: ") && said.contains("unknown field") && said.contains("999"), "{said}");
    let o = p.compile(&m, &["--recipe", "none", "--json", "-"]);
    let report: serde_json::Value = serde_json::from_slice(&o.stdout).expect("JSON");
    assert!(report["notes"][0].as_str().is_some_and(|n| n.contains("999")), "{report}");
}

#[test]
fn none_gives_the_file_back() {
    let p = Place::new();
    let m = digits("digits_vit.onnx");
    let o = p.compile(text(&m), &["--recipe", "none"]);
    assert!(o.status.success(), "{}", String::from_utf8_lossy(&o.stderr));
    assert_eq!(fs::read(p.path("out.onnx")).expect("written"), fs::read(&m).expect("the digits"));
}

/// What `sensitivity` says of the digits, on 24 samples of which three are held back.
fn sensitivity(p: &Place, more: &[&str]) -> serde_json::Value {
    let (m, c) = (digits("digits_vit.onnx"), digits("digits_calib.npz"));
    let args = ["sensitivity", text(&m), "--calibrate", text(&c), "--samples", "24", "--stats", "s", "--json", "-"];
    let o = p.run(&[&args[..], &["--alone-only"], more].concat());
    assert!(o.status.code() != Some(1), "{}", String::from_utf8_lossy(&o.stderr));
    serde_json::from_slice(&o.stdout).expect("nothing but JSON")
}

#[test]
fn every_division_of_a_plan_holds_each_decision_once() {
    let p = Place::new();
    let counts = |by: &str| -> (Vec<String>, Vec<u64>) {
        let found = sensitivity(&p, &["--by", by]);
        let parts = found["parts"].as_array().expect("a list").clone();
        let alone: Vec<f64> = parts.iter().filter_map(|x| x["alone_db"].as_f64()).collect();
        assert!(alone.is_sorted(), "{alone:?}");
        let sum = |k: &str| parts.iter().filter_map(|x| x[k].as_u64()).sum();
        let mut names: Vec<String> = parts.iter().filter_map(|x| x["name"].as_str().map(str::to_owned)).collect();
        names.sort();
        (names, ["activations", "layers", "attentions", "constants"].map(sum).to_vec())
    };
    let (parts, by_part) = counts("part");
    let (blocks, by_block) = counts("block");
    let (roles, by_role) = counts("role");
    assert_eq!(by_part, by_block);
    assert_eq!(by_part, by_role);
    let (layers, by_layer) = counts("layer");
    assert_eq!(by_part, by_layer);
    // Queries, keys and values read one value; projection, fc1 and fc2 another one each.
    let weights: Vec<&String> = layers.iter().filter(|n| n.contains(" weights ")).collect();
    let of = |k: usize| ["attention", "mlp"].map(|half| [1, 2].map(|n| format!("block {k} {half} weights {n}")));
    let want = (0..4).flat_map(of).flatten().chain(["embedding weights 1".into(), "head weights 1".into()]);
    let want: Vec<String> = want.collect();
    assert_eq!(weights, want.iter().collect::<Vec<_>>());
    // Four blocks: queries, keys, values, projection, fc1 and fc2 in each; patches, head.
    assert_eq!((by_part[1], by_part[2]), (26, 4));
    let of = |k: usize| [format!("block {k} attention"), format!("block {k} mlp")];
    let want: Vec<String> = (0..4).flat_map(of).chain(["embedding".into(), "head".into()]).collect();
    assert_eq!(parts, want);
    assert_eq!(blocks, ["block 0", "block 1", "block 2", "block 3", "embedding", "head"]);
    assert!(
        ["attention", "weights", "residual", "constants"].iter().all(|r| roles.iter().any(|x| x == r)),
        "{roles:?}"
    );
}

#[test]
fn as_little_as_is_enough_reaches_the_target() {
    let p = Place::new();
    let whole = sensitivity(&p, &[])["whole_db"].as_f64().expect("a figure");
    let found = |more: f64| {
        let found = sensitivity(&p, &["--target-sqnr", &(whole + more).to_string()])["kept_in_float"].clone();
        let count = |list: &str| found[list].as_array().map_or(0, Vec::len);
        let reached = found["sqnr_db"].as_f64().expect("a figure");
        assert!(reached >= whole + more, "{found}");
        (count("in_16_bits"), count("parts"), reached)
    };
    // Nothing has to change; 16 bits are enough; they are not.
    assert_eq!(found(-1.0), (0, 0, whole));
    let (wide, kept, _) = found(0.5);
    assert!(wide > 0 && kept == 0, "{wide} in 16 bits, {kept} in float");
    let (_, kept, _) = found(8.0);
    assert!(kept > 0 && kept < 10, "{kept} in float");
    // Everything in float is exact; more than that nobody can reach.
    let all = sensitivity(&p, &["--keep-float", "10"]);
    assert_eq!(all["kept_in_float"]["sqnr_db"], 999.0);
    let m = digits("digits_vit.onnx");
    p.refused(&["sensitivity", text(&m), "--keep-float", "1", "--target-sqnr", "9"], &["cannot be used with"]);
    let args = ["sensitivity", text(&m), "--stats", "s", "-q", "--samples", "24"];
    p.refused(&[&args[..], &["--keep-float", "hed"]].concat(), &["`hed`", "head", "block 0 mlp"]);
}

/// Parts of a report by their precision.
fn at<'r>(report: &'r serde_json::Value, precision: &str) -> Vec<&'r str> {
    let parts = report["parts"].as_array().map_or(&[][..], |p| p);
    parts.iter().filter(|p| p["precision"] == precision).filter_map(|p| p["part"].as_str()).collect()
}

/// Parts of a report whose weights have so many bits.
fn with_weights<'r>(report: &'r serde_json::Value, bits: &str) -> Vec<&'r str> {
    let parts = report["parts"].as_array().map_or(&[][..], |p| p);
    parts.iter().filter(|p| p["weights"] == bits).filter_map(|p| p["part"].as_str()).collect()
}

#[test]
fn a_size_takes_weights_in_four_bits() {
    let first = Place::new();
    let p = &first;
    let (m, c) = (digits("digits_vit.onnx"), digits("digits_calib.npz"));
    let data = [text(&m), "-o", "out.onnx", "-q", "--calibrate", text(&c), "--samples", "32", "--stats", "s"];
    let run = |more: &[&str]| -> (serde_json::Value, u64) {
        let o = p.run(&[&data[..], &["--json", "-"], more].concat());
        assert!(o.status.code() != Some(1), "{}", String::from_utf8_lossy(&o.stderr));
        let report: serde_json::Value = serde_json::from_slice(&o.stdout).expect("nothing but JSON");
        let bytes = fs::metadata(p.path("out.onnx")).expect("written").len();
        assert_eq!(report["quantized"]["bytes"], bytes);
        (report, bytes)
    };
    let sqnr = |r: &serde_json::Value| r["outputs"][0]["sqnr_db"].as_f64().expect("a figure");
    // It fits as it is.
    let (whole, most) = run(&["--target-size", "100%"]);
    assert!(whole["parts"].is_null(), "{}", whole["parts"]);
    // The least there is, which the error tells.
    let o = p.run(&[&data[..], &["--target-size", "1kB"]].concat());
    let said = String::from_utf8_lossy(&o.stderr).into_owned();
    assert!(o.status.code() == Some(1) && said.contains("1000 bytes are out of reach"), "{said}");
    let least: u64 = said.split("the file has ").nth(1).and_then(|s| s.split(' ').next()?.parse().ok()).expect(&said);
    let (narrow, bytes) = run(&["--target-size", &least.to_string()]);
    assert_eq!((bytes, with_weights(&narrow, "8")), (least, vec![]));
    // In between, some parts; none of the others would fit as well.
    let middle = (least + most) / 2;
    let (mixed, bytes) = run(&["--target-size", &middle.to_string(), "--plan", "p.yaml"]);
    let (four, eight) = (with_weights(&mixed, "4"), with_weights(&mixed, "8"));
    assert!(bytes <= middle && !four.is_empty() && !eight.is_empty(), "{bytes} of {middle}: {four:?} {eight:?}");
    assert_eq!(at(&mixed, "4-bit"), four);
    // The plan says it all, and other targets can be written from it.
    let mixed = fs::read(p.path("out.onnx")).expect("written");
    let again = |more: &[&str]| {
        let o = p.compile(
            text(&m),
            &[&["--calibrate", text(&c), "--samples", "32", "--plan", "p.yaml", "--json", "-"], more].concat(),
        );
        assert!(o.status.code() != Some(1), "{}", String::from_utf8_lossy(&o.stderr));
        serde_json::from_slice::<serde_json::Value>(&o.stdout).expect("nothing but JSON")
    };
    assert_eq!(at(&again(&[]), "4-bit"), four);
    assert_eq!(fs::read(p.path("out.onnx")).expect("written"), mixed);
    let integer = again(&["--target", "integer"]);
    assert!(sqnr(&integer) > 15.0 && at(&integer, "4-bit") == four, "{}", sqnr(&integer));
    let p = Place::new();
    p.write("p.yaml", &fs::read(first.path("p.yaml")).expect("written"));
    p.write("p.weights.npz", &fs::read(first.path("p.weights.npz")).expect("written"));
    let data = [text(&m), "-o", "out.onnx", "-q", "--calibrate", text(&c), "--samples", "32"];
    let refused = |more: &[&str], words: &[&str]| p.refused(&[&data[..], more].concat(), words);
    refused(&["--target-size", &(least - 1).to_string()], &[&least.to_string(), "out of reach"]);
    refused(&["--target-size", "50%", "--plan", "p.yaml"], &["p.yaml", "leave one of the two"]);
    refused(&["--target-size", "50%", "--keep-opset"], &["--target-size", "opset"]);
}

#[test]
fn a_size_and_a_target_together_take_the_smallest_file_that_reaches_it() {
    let p = Place::new();
    let (m, c) = (digits("digits_vit.onnx"), digits("digits_calib.npz"));
    let run = |size: &str, db: &str| -> (Option<i32>, serde_json::Value) {
        let data = ["--calibrate", text(&c), "--samples", "32", "--stats", "s", "--json", "-", "--no-bench"];
        let o = p.compile(text(&m), &[&data[..], &["--target-size", size, "--target-sqnr", db]].concat());
        (
            o.status.code(),
            serde_json::from_slice(&o.stdout).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&o.stderr))),
        )
    };
    let bytes = |r: &serde_json::Value| r["quantized"]["bytes"].as_u64().expect("a number");
    let reached = |r: &serde_json::Value| r["outputs"][0]["sqnr_db"].as_f64().expect("a figure");
    let (status, low) = run("100%", "14");
    assert!(status == Some(0) && reached(&low) >= 14.0, "{}", low["checks"]);
    assert!(at(&low, "4-bit").len() > 10, "{}", low["parts"]);
    let (status, high) = run("100%", "40");
    assert!(status == Some(0) && reached(&high) >= 40.0, "{}", high["checks"]);
    assert!(bytes(&low) < bytes(&high), "{} and {}", bytes(&low), bytes(&high));
    assert!(at(&high, "4-bit").len() < at(&low, "4-bit").len(), "{}", high["parts"]);
    assert!(!at(&high, "16-bit").is_empty() || !at(&high, "float").is_empty(), "{}", high["parts"]);
    // No file of that size has so much: the best there is comes, and the exit status says so.
    let (status, missed) = run("35%", "120");
    let checks = missed["checks"].as_array().expect("checks");
    let check = checks.iter().find(|c| c["name"] == "sqnr_db held back").expect("it is missed");
    assert_eq!((status, &check["pass"]), (Some(2), &false.into()));
    assert!(bytes(&missed) <= 848_813 * 35 / 100 && reached(&missed) > reached(&low), "{}", reached(&missed));
}

#[test]
fn a_target_that_only_the_float_model_reaches_is_an_error() {
    let p = Place::new();
    let (m, c) = (digits("digits_vit.onnx"), digits("digits_calib.npz"));
    let args = [&whole(text(&m), text(&c))[..], &["--target-sqnr", "300"]].concat();
    p.refused(&args, &["--target-sqnr 300", "only the float model", "sensitivity"]);
    // The table is still worth having.
    let o = p.run(&["sensitivity", text(&m), "--calibrate", text(&c), "--samples", "16", "-q", "--target-sqnr", "300"]);
    let out = String::from_utf8_lossy(&o.stdout);
    assert_eq!(o.status.code(), Some(2), "{out}");
    assert!(out.contains("out of reach") && out.contains("block 0 mlp"), "{out}");
}

#[test]
fn names_of_parts_are_looked_at_before_any_work() {
    let p = Place::new();
    let m = digits("digits_vit.onnx");
    // The statistics would be read next, and are none.
    let s = p.write("s", b"no statistics");
    for part in ["block 4", "hed", "block 0 mpl"] {
        p.refused(&[text(&m), "-o", "out.onnx", "-q", "--stats", &s, "--keep-float", part], &[part, "block 3 mlp"]);
    }
    for part in ["block 3", "head", "residual", "weights", "block 0 mlp"] {
        p.refused(&[text(&m), "-o", "out.onnx", "-q", "--stats", &s, "--keep-float", part], &["statistics"]);
    }
}

#[test]
fn a_dry_run_tells_what_would_be_done_and_writes_nothing() {
    let p = Place::new();
    let (m, c) = (digits("digits_vit.onnx"), digits("digits_calib.npz"));
    let args = [&whole(text(&m), text(&c))[..], &["--dry-run", "--plan", "p.yaml", "--stats", "s"]].concat();
    let before = p.names();
    let o = p.run(&args);
    let out = String::from_utf8_lossy(&o.stdout);
    assert_eq!(o.status.code(), Some(0), "{}", String::from_utf8_lossy(&o.stderr));
    for said in
        ["4 attentions", "fq-vit, target qdq", "14 samples", "2 samples", "SQNR 10 dB", "one forward pass takes"]
    {
        assert!(out.contains(said), "no `{said}` in {out}");
    }
    assert_eq!(p.names(), before);
    assert_eq!(fs::read(p.path("out.onnx")).expect("still there"), OLD);
    let o = p.run(&[&args[..], &["--json", "-", "--target", "integer", "--min-sqnr", "12.5"]].concat());
    let told: serde_json::Value = serde_json::from_slice(&o.stdout).expect("nothing but JSON");
    assert_eq!((&told["target"], &told["thresholds"]["sqnr_db"]), (&"integer".into(), &12.5.into()));
    assert_eq!((&told["calibration_samples"], &told["verification_samples"]), (&14.into(), &2.into()));
    assert!(told["about_seconds"].as_f64().expect("a number") > 0.0);
    // What can be known to be wrong is an error, as in the run itself.
    p.refused(&[&args[..], &["--keep-float", "hed"]].concat(), &["`hed`"]);
    p.refused(&[&args[..], &["--verify", "none"]].concat(), &["none"]);
}

#[test]
fn a_judge_that_is_not_there_is_told_before_any_work() {
    let p = Place::new();
    let (m, c) = (digits("digits_vit.onnx"), digits("digits_calib.npz"));
    let args = [&whole(text(&m), text(&c))[..], &["--judge", "onnxruntime", "--python", "no-python"]].concat();
    p.refused(&args, &["no-python", "pip install onnxruntime", "--python"]);
}

#[test]
fn a_comparison_without_thresholds_is_held_to_the_usual_ones() {
    let p = Place::new();
    let (m, c) = (digits("digits_vit.onnx"), digits("digits_calib.npz"));
    let worse = with_weight("worse.onnx", &p, "head.weight", 30.0);
    let verify = |more: &[&str]| {
        let data = ["--data", text(&c), "--samples", "16", "-q", "--no-bench"];
        p.run(&[&["verify", text(&m), &worse], &data[..], more].concat())
    };
    let o = verify(&[]);
    let out = String::from_utf8_lossy(&o.stdout);
    assert_eq!(o.status.code(), Some(2), "{out}");
    assert!(out.contains("10.0") || out.contains("10 dB"), "{out}");
    assert_eq!(verify(&["--min-sqnr=-100", "--min-agreement", "0"]).status.code(), Some(0));
}

#[test]
fn what_is_kept_in_float_is_in_the_plan_and_in_the_report() {
    let p = Place::new();
    let (m, c) = (digits("digits_vit.onnx"), digits("digits_calib.npz"));
    let data = ["--calibrate", text(&c), "--samples", "24", "--stats", "s"];
    let run = |more: &[&str]| -> serde_json::Value {
        let o = p.compile(text(&m), &[&data[..], &["--json", "-"], more].concat());
        assert!(o.status.code() != Some(1), "{}", String::from_utf8_lossy(&o.stderr));
        serde_json::from_slice(&o.stdout).expect("nothing but JSON")
    };
    let sqnr = |r: &serde_json::Value| r["outputs"][0]["sqnr_db"].as_f64().expect("a figure");
    let whole = run(&[]);
    let less = run(&["--keep-float", "block 0 attention,head", "--plan", "p.yaml"]);
    assert_eq!(whole["coverage"]["covered"], whole["coverage"]["total"]);
    assert_ne!(less["coverage"]["covered"], less["coverage"]["total"]);
    let islands = less["islands"].as_array().expect("a list");
    assert!(islands.iter().any(|i| i["node"] == "block 0 attention" && i["op"] == "part"), "{islands:?}");
    // The plan alone gives the same file.
    let bytes = fs::read(p.path("out.onnx")).expect("written");
    run(&["--plan", "p.yaml"]);
    assert_eq!(fs::read(p.path("out.onnx")).expect("written"), bytes);
    // A number keeps as many parts, the worst as they are here: `sensitivity` ranks them with weights that are not fitted.
    let one = run(&["--keep-float", "1"]);
    let parts: Vec<_> = one["islands"].as_array().expect("a list").iter().filter(|i| i["op"] == "part").collect();
    let told = parts.first().and_then(|p| p["reason"].as_str()).unwrap_or_default();
    assert!(parts.len() == 1 && told.starts_with("kept in float: alone it leaves"), "{parts:?}");
    // Two parts of ten more or less may cancel each other's errors on three samples; nearly all parts do not.
    let blocks = (0..4).flat_map(|k| [format!("block {k} attention"), format!("block {k} mlp")]);
    let most = run(&["--keep-float", &blocks.collect::<Vec<_>>().join(",")]);
    assert!(sqnr(&most) > sqnr(&whole) + 3.0, "{} and {}", sqnr(&most), sqnr(&whole));
}

/// A constant, an input, an input with a default, what a Constant node makes and an inner value as outputs beside the result.
#[test]
fn outputs_that_no_layer_makes() {
    let p = Place::new();
    let numbers = |n: usize, f: f32| {
        let all: Vec<String> = (0..n).map(|i| format!("{:.3}", ((i * 37 % 23) as f32 - 11.0) * f)).collect();
        all.join(", ")
    };
    let model = format!(
        "<ir_version: 8, opset_import: [\"\" : 17]>
        g (float[batch, 8] x, float[8] d) => (float[batch, 8] y, float[8, 8] w, float[8] b, float[batch, 8] x, float[8] d,
            float[8] k, float[batch, 8] h, float[8] alone)
        <float[8, 8] w = {{{}}}, float[8, 8] v = {{{}}}, float[8] b = {{{}}}, float[8] d = {{{}}}, float[8] alone = {{{}}}>
        {{
            k = Constant <value: tensor = float[8] {{{}}}> ()
            p = MatMul (x, w) h = Add (p, b) r = Relu (h) s = Mul (r, k) t = Add (s, d) y = MatMul (t, v)
        }}",
        numbers(64, 0.05), numbers(64, 0.04), numbers(8, 0.1), numbers(8, 0.2), numbers(8, 0.3), numbers(8, 0.07)
    );
    let m = fqvit_opt::text::parse_model(&model).unwrap_or_else(|e| panic!("{e}"));
    onnx::save(validate(&m).unwrap_or_else(|e| panic!("{e}")), &p.path("m.onnx"), &Default::default())
        .expect("writable");
    let names =
        |m: &Model| -> Vec<String> { m.graph.outputs().iter().map(|v| m.graph.name_of(*v).to_owned()).collect() };
    let given = onnx::load(&p.path("m.onnx")).expect("a model").model;
    // What a constant output holds, through Identity if need be.
    let held = |m: &Model, name: &str| -> Vec<f32> {
        let mut v = m.graph.find(name).expect("an output");
        while let Some(n) = m.graph.producer(v) {
            let n = m.graph.node(n);
            if let Some(fqvit_opt::ir::AttrValue::Tensor(t)) = n.attrs.get("value") {
                return t.to_f32s().expect("floats").into_owned();
            }
            assert!(n.op.is("Identity"), "{name} is made by {}", n.op);
            v = n.input(0).expect("an input");
        }
        m.graph
            .constant(v)
            .unwrap_or_else(|| m.graph.try_init(v).expect("a constant"))
            .to_f32s()
            .expect("floats")
            .into_owned()
    };
    for recipe in
        ["none", "cpu", "linear-w8a8", "minmax-w8a8", "fq-vit", "fq-vit-r16", "w4a8", "w4a8-int4", "fq-vit-paper"]
    {
        let o = p.compile("m.onnx", &["--recipe", recipe, "--samples", "8"]);
        assert_ne!(o.status.code(), Some(1), "{recipe}: {}", String::from_utf8_lossy(&o.stderr));
        let q = onnx::load(&p.path("out.onnx")).unwrap_or_else(|e| panic!("{recipe}: {e}")).model;
        assert_eq!(names(&q), names(&given), "{recipe}");
        assert!(q.graph.node_count() >= 5, "{recipe} dropped the nodes");
        for c in ["w", "b", "k", "alone"] {
            assert_eq!(held(&q, c), held(&given, c), "{recipe}: {c}");
        }
        for i in ["x", "d"] {
            let v = q.graph.find(i).expect("an input");
            assert!(q.graph.inputs().contains(&v) && q.graph.outputs().contains(&v), "{recipe}: {i}");
        }
    }
    // A model without any output has nothing to compile.
    let m = fqvit_opt::text::parse_model(
        "<ir_version: 8, opset_import: [\"\" : 17]> g (float[1, 2] x) => () { y = Relu (x) }",
    );
    let m = m.unwrap_or_else(|e| panic!("{e}"));
    onnx::save(validate(&m).unwrap_or_else(|e| panic!("{e}")), &p.path("mute.onnx"), &Default::default())
        .expect("writable");
    p.write("out.onnx", OLD);
    p.refused(&["mute.onnx", "-o", "out.onnx", "--recipe", "linear-w8a8", "-q"], &["mute.onnx", "has no output"]);
}

#[test]
fn help_and_recipes() {
    let p = Place::new();
    for args in [&["--help"][..], &["recipes"], &["verify", "--help"], &["--version"]] {
        let o = p.run(args);
        assert!(o.status.success() && o.stderr.is_empty() && !o.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn a_first_look_takes_few_samples_and_fits_nothing() {
    let p = Place::new();
    let (model, data) = (digits("digits_vit.onnx"), digits("digits_calib.npz"));
    let args = ["--calibrate", text(&data), "--fast", "--json", "fast.json", "--plan", "fast.yaml"];
    let o = p.compile(text(&model), &args);
    assert!(matches!(o.status.code(), Some(0 | 2)), "{}", String::from_utf8_lossy(&o.stderr));
    let report = fs::read_to_string(p.path("fast.json")).expect("a report");
    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    assert_eq!(report["data"]["calibration_samples"], 32);
    assert_eq!(report["data"]["verification_samples"], 12);
    let plan = fs::read_to_string(p.path("fast.yaml")).expect("a plan");
    assert!(plan.contains("rounding: nearest") && !plan.contains("rounding: gptq"), "{plan}");
}

/// Where no bar can be drawn, each stage is a line; programs get one object a line, errors too.
#[test]
fn a_log_tells_of_each_stage() {
    let p = Place::new();
    let (model, data) = (digits("digits_vit.onnx"), digits("digits_calib.npz"));
    let args = [text(&model), "-o", "out.onnx", "--calibrate", text(&data), "--samples", "16", "--no-bench"];
    let said = |more: &[&str]| String::from_utf8(p.run(&[&args[..], more].concat()).stderr).expect("text");
    let lines = said(&[]);
    assert!(lines.lines().any(|l| l.starts_with("calibrating: 14 in ")), "{lines}");
    let objects = said(&["--log-format", "json"]);
    let objects: Vec<serde_json::Value> =
        objects.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{l}: {e}"))).collect();
    let of = |stage: &str| objects.iter().filter(|o| o["stage"] == stage).collect::<Vec<_>>();
    for stage in ["calibrating", "fitting weights", "verifying"] {
        let [first, .., last] = &of(stage)[..] else { panic!("{stage}: {objects:?}") };
        assert!(first["done"] == 0 && last["done"] == last["of"] && last["seconds"].is_number(), "{first} {last}");
    }
    let other = [
        &["compare", text(&model), "--calibrate", text(&data), "--samples", "16", "--recipes", "minmax-w8a8"][..],
        &[text(&model), "-o", "x.onnx", "--calibrate", text(&data), "--samples", "16", "--stop-after", "fold-factors"],
        &[text(&model), "-o", "-", "--calibrate", text(&data), "--samples", "16", "--no-bench"],
    ];
    for args in other {
        let o = p.run(&[args, &["--log-format", "json"]].concat());
        let said = String::from_utf8(o.stderr).expect("text");
        assert!(said.lines().count() > 1, "{args:?}: {said}");
        for l in said.lines() {
            serde_json::from_str::<serde_json::Value>(l).unwrap_or_else(|e| panic!("{args:?}: {l}: {e}"));
        }
    }
    let wrong = p.run(&["none.onnx", "-o", "x.onnx", "--log-format", "json"]).stderr;
    let wrong: serde_json::Value = serde_json::from_slice(&wrong).expect("one object");
    assert!(wrong["event"] == "error" && wrong["message"].as_str().expect("text").contains("none.onnx"), "{wrong}");
}

/// A rule of the user's own that changes what the model computes changes both models that are compared.
#[test]
fn a_rule_that_changes_the_model_does_not_pass() {
    let p = Place::new();
    fs::create_dir_all(p.path("own/rules")).expect("a folder");
    let rule = |to: &str| {
        let text = format!("- id: mine\n  summary: s\n  match: y = Softmax <axis = -1> (x)\n  replace: y = {to} (x)\n");
        p.write("own/rules/r.yaml", text.as_bytes());
    };
    let (model, data) = (digits("digits_vit.onnx"), digits("digits_calib.npz"));
    let args = ["--calibrate", text(&data), "--samples", "16", "--passes-dir", "own", "--no-bench"];
    rule("Relu");
    let o = p.run(&[&[text(&model), "-o", "other.onnx"][..], &args].concat());
    let said = String::from_utf8_lossy(&o.stdout).into_owned() + &String::from_utf8_lossy(&o.stderr);
    assert_eq!(o.status.code(), Some(2), "{said}");
    for words in ["sqnr_db of the prepared model", "no longer that of the model as it was read", "--blame"] {
        assert!(said.contains(words), "no `{words}` in {said}");
    }
    for wrong in ["Softmax <axis = 99>", "Softmax <axis = \"a\">"] {
        rule(wrong);
        p.refused(
            &[&[text(&model), "-o", "out.onnx", "-q"][..], &args].concat(),
            &["Softmax", "`mine` made it", "rule"],
        );
    }
}

/// The command that accepts counts operators, so that its number grows with what stays
/// in float.
#[test]
#[cfg(unix)]
fn the_fastest_file_that_a_command_accepts_is_found() {
    let p = Place::new();
    let (model, data) = (digits("digits_vit.onnx"), digits("digits_calib.npz"));
    let count = "n=$(grep -ao DequantizeLinear {model} | wc -l); echo n $n; echo -$n";
    let search = |least: &str, more: &[&str]| {
        let args = [text(&model), "-o", "out.onnx", "--calibrate", text(&data), "--no-verify", "--samples", "16"];
        let accept = ["--accept-command", count, "--accept", least, "--accept-recipes", "fq-vit", "--json", "r.json"];
        let o = p.run(&[&args[..], &accept, more].concat());
        let report = fs::read(p.path("r.json")).expect("a report");
        let report: serde_json::Value = serde_json::from_slice(&report).expect("JSON");
        (o, report)
    };
    let (o, _) = search("1", &["--accept-state", "s.json"]);
    let said = String::from_utf8_lossy(&o.stderr).into_owned();
    assert_eq!(o.status.code(), Some(2), "{said}");
    let measured = said.matches("measured:").count();
    assert!(measured > 2 && said.contains("by fq-vit; ") && said.contains("float: "), "{said}");
    let state: serde_json::Value =
        serde_json::from_slice(&fs::read(p.path("s.json")).expect("the state")).expect("JSON");
    let mut scores: Vec<f64> =
        state["trials"].as_array().expect("trials").iter().map(|t| t["score"].as_f64().expect("a number")).collect();
    assert_eq!(scores.len(), measured);
    scores.sort_by(f64::total_cmp);
    // What is known is not measured again. The last but one has parts in float, whichever are raised first.
    let least = scores[scores.len() - 2].to_string();
    let (o, report) = search(&least, &["--accept-state", "s.json"]);
    let said = String::from_utf8_lossy(&o.stderr);
    assert_eq!(o.status.code(), Some(0), "{said}");
    assert!(said.matches("(known)").count() == measured, "{said}");
    assert!(report["notes"].as_array().expect("notes").iter().any(|n| n.to_string().contains("--accept-command")));
    let kept = report["islands"].as_array().expect("islands");
    assert!(kept.iter().any(|i| i["reason"].as_str().expect("a reason").contains("kept in float")), "{kept:?}");
}

#[test]
#[cfg(unix)]
fn a_command_that_says_nothing_is_an_error() {
    let p = Place::new();
    let (model, data) = (digits("digits_vit.onnx"), digits("digits_calib.npz"));
    let args = |command: &'static str| {
        let given = ["--accept-command", command, "--accept", "1", "--samples", "16"];
        [&[text(&model), "-o", "out.onnx", "-q", "--calibrate", text(&data)][..], &given].concat()
    };
    p.refused(&args("echo 1"), &["{model}", "--accept-command echo 1"]);
    p.refused(&args("echo {model} well"), &["no finite number", "well"]);
    p.refused(&args("false {model}"), &["it failed"]);
}
