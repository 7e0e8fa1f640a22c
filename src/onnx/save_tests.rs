use std::path::Path;

use prost::Message;
use tempfile::tempdir;

use super::proto::*;
use super::tests::{s, small, weight};
use super::{External, LoadError, SaveError, SaveOptions, encode_whole, load, parse, save};
use crate::file::WriteError;
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
fn external_data_is_found_and_stays_where_it_is() {
    let dir = tempdir().expect("temp");
    let (from, to) = (dir.path().join("in.onnx"), dir.path().join("out.onnx"));
    write(&from, &far("w.bin"));
    std::fs::write(dir.path().join("w.bin"), data()).expect("temp");
    let m = loaded(&from);
    assert_eq!(big(&m).raw_bytes().expect("mapped")[..], data()[64..]);
    saved(&m, &to, External::Auto).unwrap_or_else(|e| panic!("{e}"));
    assert!(std::fs::read(&from).expect("in") == std::fs::read(&to).expect("out"));
    assert_eq!(files(dir.path()), ["in.onnx", "out.onnx", "w.bin"]);
}

#[test]
fn into_another_folder_the_data_comes_along() {
    let (dir, other) = (tempdir().expect("temp"), tempdir().expect("temp"));
    let from = dir.path().join("in.onnx");
    write(&from, &far("w.bin"));
    std::fs::write(dir.path().join("w.bin"), data()).expect("temp");
    // A stranger of the same name must not be taken for the data, nor be touched.
    std::fs::write(other.path().join("w.bin"), vec![1; 4000]).expect("temp");
    let to = other.path().join("out.onnx");
    saved(&loaded(&from), &to, External::Auto).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(files(other.path()), ["out.onnx", "out.onnx.data", "w.bin"]);
    assert_eq!(std::fs::read(other.path().join("w.bin")).expect("there"), vec![1; 4000]);
    assert_eq!(big(&loaded(&to)).raw_bytes().expect("mapped")[..], data()[64..]);
    // Back to one file.
    let one = other.path().join("one.onnx");
    saved(&loaded(&to), &one, External::Inline).unwrap_or_else(|e| panic!("{e}"));
    let m = loaded(&one);
    assert!(matches!(&big(&m).data, Payload::Raw(b) if b[..] == data()[64..]));
    let text = std::fs::read(&one).expect("there");
    assert!(!text.windows(8).any(|w| w == b"location"), "an inline tensor still points to a file");
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
        assert!(refused("link").contains("leads out"));
        std::os::unix::fs::symlink(outside.path(), dir.path().join("folder")).expect("temp");
        assert!(refused("folder/secret").contains("leads out"));
        std::fs::write(dir.path().join("real.bin"), data()).expect("temp");
        std::os::unix::fs::symlink("real.bin", dir.path().join("inside")).expect("temp");
        write(&path, &far("inside"));
        assert!(load(&path).is_ok(), "a link that stays inside is a path inside");
    }
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
    // Data that was never loaded can not be written; the output that is there stays.
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

#[test]
fn a_runtime_is_given_the_data_of_other_files_too() {
    let dir = tempdir().expect("temp");
    let from = dir.path().join("in.onnx");
    write(&from, &far("w.bin"));
    std::fs::write(dir.path().join("w.bin"), data()).expect("a temporary folder");
    let m = loaded(&from);
    let whole = encode_whole(validate(&m).unwrap_or_else(|e| panic!("{e}")));
    let again = parse(whole.into(), None, "whole").unwrap_or_else(|e| panic!("{e}")).model;
    assert_eq!(big(&again).data, Payload::Raw(data()[64..].to_vec().into()));
    // The model itself still points to its file.
    assert!(matches!(big(&m).data, Payload::External(_)));
}
