use std::path::Path;

use prost::Message;
use tempfile::tempdir;

use super::proto::*;
use super::save::stage_within;
use super::tests::{node, s, small, weight};
use super::{External, LoadError, SaveError, SaveOptions, load, save};
use crate::file::{Batch, WriteError};
use crate::ir::validate::validate;
use crate::ir::{Model, Payload, Tensor};

fn write(path: &Path, p: &ModelProto) {
    std::fs::write(path, p.encode_to_vec()).expect("a temporary folder");
}

/// `small` with a weight `big` of 2000 bytes at offset 64 of `location`.
fn far(location: &str) -> ModelProto {
    let mut p = small();
    let g = p.graph.as_mut().expect("graph");
    let pair = |k: &str, v: &str| StringStringEntryProto { key: s(k), value: s(v) };
    g.initializer.push(TensorProto {
        raw_data: None,
        data_location: Some(1),
        external_data: vec![pair("location", location), pair("offset", "64"), pair("length", "2000")],
        ..weight("big", 500)
    });
    p
}

fn data() -> Vec<u8> {
    (0..2064u32).map(|i| (i % 253) as u8).collect()
}

fn loaded(path: &Path) -> Model {
    load(path).unwrap_or_else(|e| panic!("{e}")).model
}

fn big(m: &Model) -> &Tensor {
    m.graph.try_init(m.graph.find("big").expect("value big")).expect("an initializer")
}

fn saved(m: &Model, to: &Path, external: External) -> Result<(), SaveError> {
    save(validate(m).unwrap_or_else(|e| panic!("{e}")), to, &SaveOptions { external })
}

fn files(dir: &Path) -> Vec<String> {
    let mut v: Vec<String> = std::fs::read_dir(dir)
        .expect("a folder")
        .map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    v.sort();
    v
}

#[test]
fn external_data_comes_home_and_the_output_stands_alone() {
    let (dir, other) = (tempdir().expect("temp"), tempdir().expect("temp"));
    let from = dir.path().join("in.onnx");
    write(&from, &far("w.bin"));
    std::fs::write(dir.path().join("w.bin"), data()).expect("temp");
    let l = load(&from).unwrap_or_else(|e| panic!("{e}"));
    let size = std::fs::metadata(&from).expect("there").len();
    assert_eq!(l.files, [(from.clone(), size), (dir.path().join("w.bin"), 2064)]);
    assert_eq!(big(&l.model).raw_bytes().expect("read")[..], data()[64..]);
    // Beside the input, or elsewhere where a stranger has the data's name: one file that points to no other.
    std::fs::write(other.path().join("w.bin"), vec![1; 4000]).expect("temp");
    for folder in [dir.path(), other.path()] {
        let to = folder.join("out.onnx");
        saved(&l.model, &to, External::Auto).unwrap_or_else(|e| panic!("{e}"));
        let text = std::fs::read(&to).expect("there");
        assert!(!text.windows(8).any(|w| w == b"location" || &w[..5] == b"w.bin"), "it points to a file");
        let alone = tempdir().expect("temp");
        std::fs::copy(&to, alone.path().join("moved.onnx")).expect("temp");
        let m = loaded(&alone.path().join("moved.onnx"));
        assert!(matches!(&big(&m).data, Payload::Raw(b) if b[..] == data()[64..]));
    }
    assert_eq!(files(dir.path()), ["in.onnx", "out.onnx", "w.bin"]);
    assert_eq!(files(other.path()), ["out.onnx", "w.bin"]);
    assert_eq!(std::fs::read(other.path().join("w.bin")).expect("there"), vec![1; 4000]);
}

/// External tensors in every place that holds tensors.
#[test]
fn data_come_home_from_everywhere() {
    use super::proto::attribute_proto::AttributeType as Kind;
    let dir = tempdir().expect("temp");
    let path = dir.path().join("m.onnx");
    std::fs::write(dir.path().join("w.bin"), data()).expect("temp");
    let mut p = far("w.bin");
    let g = p.graph.as_mut().expect("graph");
    let tensor = |name: &str| TensorProto { name: s(name), ..g.initializer.last().expect("the far one").clone() };
    let constant = |out: &str| NodeProto {
        attribute: vec![AttributeProto {
            name: s("value"),
            r#type: Some(Kind::Tensor as i32),
            t: Some(tensor("")),
            ..Default::default()
        }],
        ..node("Constant", "", &[], &[out])
    };
    let body = |out: &str| GraphProto {
        name: s("body"),
        node: vec![constant(out)],
        initializer: vec![tensor(&format!("{out}_w"))],
        output: vec![ValueInfoProto { name: s(out), ..Default::default() }],
        ..Default::default()
    };
    let branch = |name: &str| AttributeProto {
        name: s(name),
        r#type: Some(Kind::Graph as i32),
        g: Some(body(name)),
        ..Default::default()
    };
    let choice = NodeProto {
        attribute: vec![branch("then_branch"), branch("else_branch")],
        ..node("If", "choice", &["cond"], &["z"])
    };
    let made = [constant("made"), choice];
    let cond = ValueInfoProto { name: s("cond"), ..Default::default() };
    let function = FunctionProto {
        name: s("f"),
        domain: s("own"),
        output: vec!["made".into()],
        node: vec![constant("made")],
        ..Default::default()
    };
    g.node.extend(made);
    g.input.push(cond);
    p.functions.push(function);
    write(&path, &p);
    let m = loaded(&path);
    let bytes = super::encode(validate(&m).unwrap_or_else(|e| panic!("{e}")));
    assert!(!bytes.windows(8).any(|w| w == b"location"), "a tensor still points to a file");
    let count = bytes.windows(2000).filter(|w| *w == &data()[64..]).count();
    assert_eq!(count, 7, "an initializer, a Constant, two bodies with two each, a function");
    // The data file may go now.
    std::fs::remove_file(dir.path().join("w.bin")).expect("temp");
    saved(&m, &dir.path().join("out.onnx"), External::Auto).unwrap_or_else(|e| panic!("{e}"));
    let whole = super::encode(validate(&loaded(&dir.path().join("out.onnx"))).unwrap_or_else(|e| panic!("{e}")));
    assert!(whole == bytes);
}

#[test]
fn a_model_too_large_for_one_file_has_a_data_file_of_its_own() {
    let dir = tempdir().expect("temp");
    let to = dir.path().join("out.onnx");
    let mut p = small();
    p.graph.as_mut().expect("graph").initializer.push(weight("big", 500));
    let m = super::parse(p.encode_to_vec().into(), None, "t").unwrap_or_else(|e| panic!("{e}")).model;
    let stage = |m: &Model, limit: usize| {
        let mut batch = Batch::default();
        let valid = validate(m).unwrap_or_else(|e| panic!("{e}"));
        let n = stage_within(limit, valid, &to, &SaveOptions::default(), &mut batch).unwrap_or_else(|e| panic!("{e}"));
        batch.commit().unwrap_or_else(|e| panic!("{e}"));
        n
    };
    let on_disk = || -> u64 {
        files(dir.path()).iter().map(|f| std::fs::metadata(dir.path().join(f)).expect("there").len()).sum()
    };
    assert_eq!((stage(&m, 3000), files(dir.path())), (on_disk(), vec!["out.onnx".to_owned()]));
    assert_eq!((stage(&m, 1000), files(dir.path())), (on_disk(), vec!["out.onnx".into(), "out.onnx.data".into()]));
    assert_eq!(big(&loaded(&to)).raw_bytes(), big(&m).raw_bytes());
    // Nothing of that size in it: no data file, least of all an empty one.
    std::fs::remove_file(dir.path().join("out.onnx.data")).expect("there");
    let p = small();
    let m = super::parse(p.encode_to_vec().into(), None, "t").unwrap_or_else(|e| panic!("{e}")).model;
    assert_eq!((stage(&m, 10), files(dir.path())), (on_disk(), vec!["out.onnx".to_owned()]));
}

#[test]
fn chosen_data_files_start_tensors_on_pages_and_can_be_saved_over_themselves() {
    let dir = tempdir().expect("temp");
    let path = dir.path().join("m.onnx");
    let mut p = small();
    let g = p.graph.as_mut().expect("graph");
    g.initializer.push(weight("first", 1100));
    g.initializer.push(TensorProto { raw_data: None, float_data: vec![0.5; 300], ..weight("typed", 300) });
    g.initializer.push(weight("big", 500));
    write(&path, &p);
    let before = loaded(&path);
    let always = External::Always { location: "weights".into() };
    saved(&before, &path, always.clone()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(files(dir.path()), ["m.onnx", "weights"]);
    let size = std::fs::metadata(dir.path().join("weights")).expect("there").len();
    assert_eq!(size, 2 * 4096 + 4096 + 2000, "4400, 1200 and 2000 bytes on pages");
    let check = |m: &Model| {
        assert_eq!(big(m).raw_bytes(), big(&before).raw_bytes());
        let typed = m.graph.try_init(m.graph.find("typed").expect("value")).expect("initializer");
        assert_eq!(typed.to_f32s().as_deref(), Some(&[0.5f32; 300][..]));
        let small = m.graph.try_init(m.graph.find("w").expect("value")).expect("initializer");
        assert!(matches!(small.data, Payload::Raw(_)), "small tensors stay in the model");
    };
    // Mapped from the very files that are replaced now.
    let again = loaded(&path);
    check(&again);
    saved(&again, &path, always).unwrap_or_else(|e| panic!("{e}"));
    check(&again);
    check(&loaded(&path));
    saved(&again, &path, External::Inline).unwrap_or_else(|e| panic!("{e}"));
    check(&again);
    check(&loaded(&path));
}

#[test]
fn hostile_and_broken_locations_are_refused() {
    let outside = tempdir().expect("temp");
    std::fs::write(outside.path().join("secret"), data()).expect("temp");
    let dir = tempdir().expect("temp");
    let path = dir.path().join("m.onnx");
    let refused = |location: &str| {
        write(&path, &far(location));
        match load(&path) {
            Err(e @ LoadError::External { .. }) => e.to_string(),
            Err(e) => panic!("{e}"),
            Ok(_) => panic!("{location} was accepted"),
        }
    };
    let absolute = outside.path().join("secret");
    assert!(refused(&absolute.to_string_lossy()).contains("no path inside"));
    assert!(refused("../secret").contains("no path inside"));
    assert!(refused("a/../../secret").contains("no path inside"));
    assert!(refused("").contains("no path inside"));
    assert!(refused("missing.bin").contains("put the data file"));
    assert!(refused(".").contains("no regular file"));
    std::fs::write(dir.path().join("short.bin"), [0; 100]).expect("temp");
    let e = refused("short.bin");
    assert!(e.contains("`big`") && e.contains("has 100 bytes, too few for the 2000 at offset 64"), "{e}");
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(&absolute, dir.path().join("link")).expect("temp");
        let e = refused("link");
        assert!(e.contains("leads out") && e.contains("secret") && e.contains("put that file itself at"), "{e}");
        std::os::unix::fs::symlink(outside.path(), dir.path().join("folder")).expect("temp");
        assert!(refused("folder/secret").contains("leads out"));
        std::fs::write(dir.path().join("real.bin"), data()).expect("temp");
        std::os::unix::fs::symlink("real.bin", dir.path().join("inside")).expect("temp");
        write(&path, &far("inside"));
        assert!(load(&path).is_ok(), "a link that stays inside is a path inside");
    }
}

#[cfg(unix)]
#[test]
fn links_that_the_user_named_are_followed() {
    use std::os::unix::fs::symlink;
    let dir = tempdir().expect("temp");
    let at = |n: &str| dir.path().join(n);
    let make = |n: &str| std::fs::create_dir_all(at(n)).expect("temp");
    // A cache: the user's path is a link, and so is the data file beside it.
    make("blobs");
    make("snapshots/7f/onnx");
    write(&at("blobs/m1"), &far("model.onnx_data"));
    std::fs::write(at("blobs/d1"), data()).expect("temp");
    symlink("../../../blobs/m1", at("snapshots/7f/onnx/model.onnx")).expect("temp");
    symlink("../../../blobs/d1", at("snapshots/7f/onnx/model.onnx_data")).expect("temp");
    let model = at("snapshots/7f/onnx/model.onnx");
    let l = load(&model).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(big(&l.model).raw_bytes().expect("read")[..], data()[64..]);
    assert_eq!(l.files[1].0, at("snapshots/7f/onnx/model.onnx_data"));
    // The folder itself is a link.
    symlink("snapshots/7f", at("latest")).expect("temp");
    assert!(load(&at("latest/onnx/model.onnx")).is_ok());
    // Data beside the model itself only.
    make("real");
    write(&at("real/m.onnx"), &far("w.bin"));
    std::fs::write(at("real/w.bin"), data()).expect("temp");
    symlink("real/m.onnx", at("named.onnx")).expect("temp");
    assert!(load(&at("named.onnx")).is_ok());
    // An archive with a link that somebody else made: inside the archive the model is a link, too, but neither folder
    // holds the secret.
    make("archive/parts");
    std::fs::write(at("secret"), data()).expect("temp");
    write(&at("archive/parts/m.onnx"), &far("w.bin"));
    symlink("parts/m.onnx", at("archive/m.onnx")).expect("temp");
    symlink("../secret", at("archive/w.bin")).expect("temp");
    let e = load(&at("archive/m.onnx")).map(|_| ()).expect_err("it leads out").to_string();
    assert!(e.contains("leads out") && e.contains("secret"), "{e}");
}

#[test]
fn bodies_are_held_to_the_operator_set_too() {
    use super::proto::attribute_proto::AttributeType as Kind;
    let model = |opset: i64| {
        let to = AttributeProto { name: s("to"), r#type: Some(Kind::Int as i32), i: Some(22), ..Default::default() };
        let branch = |name: &str| AttributeProto {
            name: s(name),
            r#type: Some(Kind::Graph as i32),
            g: Some(GraphProto {
                name: s("body"),
                node: vec![NodeProto { attribute: vec![to.clone()], ..node("Cast", "", &["x"], &[name]) }],
                output: vec![ValueInfoProto { name: s(name), ..Default::default() }],
                ..Default::default()
            }),
            ..Default::default()
        };
        let mut p = small();
        p.ir_version = Some(10);
        p.opset_import[0].version = Some(opset);
        let g = p.graph.as_mut().expect("graph");
        g.input.push(ValueInfoProto { name: s("c"), ..Default::default() });
        g.node.push(NodeProto {
            attribute: vec![branch("then_branch"), branch("else_branch")],
            ..node("If", "choice", &["c"], &["z"])
        });
        super::parse(p.encode_to_vec().into(), None, "t").unwrap_or_else(|e| panic!("{e}")).model
    };
    let dir = tempdir().expect("temp");
    let to = dir.path().join("m.onnx");
    let e = saved(&model(17), &to, External::Auto).expect_err("int4 at opset 17").to_string();
    assert!(e.contains("in a nested graph of node choice") && e.contains("output 0 is int4"), "{e}");
    assert!(!to.exists());
    assert!(saved(&model(21), &to, External::Auto).is_ok());
}

#[test]
fn failures_leave_what_was_there() {
    let dir = tempdir().expect("temp");
    let path = dir.path().join("m.onnx");
    write(&path, &small());
    let m = loaded(&path);
    let nowhere = dir.path().join("no/such/folder/m.onnx");
    assert!(saved(&m, &nowhere, External::Auto).is_err_and(|e| e.to_string().contains("cannot write into the folder")));
    assert!(
        saved(&m, dir.path(), External::Auto)
            .is_err_and(|e| matches!(e, SaveError::Write(WriteError::IsFolder { .. })))
    );
    for bad in ["", "../x", "/x", "a/b", "m.onnx", ".."] {
        let e = saved(&m, &path, External::Always { location: bad.into() });
        assert!(matches!(e, Err(SaveError::Location { .. })), "{bad:?} was accepted");
    }
    // Data that was never loaded cannot be written; the output that is there stays.
    let bytes = far("w.bin").encode_to_vec();
    let unread = super::parse(bytes.into(), None, "t").unwrap_or_else(|e| panic!("{e}")).model;
    assert!(matches!(saved(&unread, &path, External::Inline), Err(SaveError::NotLoaded { .. })));
    assert!(std::fs::read(&path).expect("there") == small().encode_to_vec());
    // The data's place is taken by a folder: neither file changes.
    std::fs::create_dir(dir.path().join("taken")).expect("temp");
    assert!(saved(&m, &path, External::Always { location: "taken".into() }).is_err());
    assert!(std::fs::read(&path).expect("there") == small().encode_to_vec());
    assert_eq!(files(dir.path()), ["m.onnx", "taken"]);
}

#[test]
fn what_is_no_file_is_told() {
    let dir = tempdir().expect("temp");
    assert!(load(dir.path()).is_err_and(|e| e.to_string().contains("is a folder")));
    assert!(load(&dir.path().join("none.onnx")).is_err_and(|e| e.to_string().contains("cannot read")));
    std::fs::write(dir.path().join("empty.onnx"), b"").expect("temp");
    assert!(load(&dir.path().join("empty.onnx")).is_err_and(|e| matches!(e, LoadError::Empty { .. })));
}
