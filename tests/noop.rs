//! The no-op law on files that real exporters wrote: loading and encoding changes no byte.

use std::path::{Path, PathBuf};

use fqvit_opt::ir::Payload;
use fqvit_opt::ir::validate::validate;
use fqvit_opt::onnx::{SaveOptions, encode, load, save};

fn models() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let mut found: Vec<PathBuf> = ["zoo", "digits"]
        .iter()
        .flat_map(|d| std::fs::read_dir(root.join(d)).expect("testdata is in the repository"))
        .map(|e| e.expect("a readable folder").path())
        .filter(|p| p.extension().is_some_and(|e| e == "onnx"))
        .collect();
    found.sort();
    found
}

#[test]
fn exporters_files_come_back_byte_for_byte() {
    let found = models();
    assert!(found.len() >= 26, "only {} models in testdata", found.len());
    for path in found {
        let loaded = load(&path).unwrap_or_else(|e| panic!("{e}"));
        assert!(loaded.unknown.is_empty(), "{}: {:?}", path.display(), loaded.unknown);
        let valid = validate(&loaded.model).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let was = std::fs::read(&path).expect("readable");
        assert!(encode(valid) == was, "{} changed", path.display());
        let out = tempfile::tempdir().expect("a temporary folder");
        let to = out.path().join("out.onnx");
        save(valid, &to, &SaveOptions::default()).unwrap_or_else(|e| panic!("{e}"));
        assert!(std::fs::read(&to).expect("written") == was, "{} changed when saved", path.display());
        assert_eq!(std::fs::read_dir(out.path()).expect("a folder").count(), 1, "something was left behind");
    }
}

#[test]
fn weights_stay_in_the_mapped_file() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/digits/digits_vit.onnx");
    let bytes = bytes::Bytes::from(std::fs::read(&path).expect("readable"));
    let (from, to) = (bytes.as_ptr() as usize, bytes.as_ptr() as usize + bytes.len());
    let loaded = fqvit_opt::onnx::parse(bytes, None, "digits").unwrap_or_else(|e| panic!("{e}"));
    let mut weights = 0;
    for v in loaded.model.graph.initializers() {
        if let Some(t) = loaded.model.graph.try_init(*v)
            && let Payload::Raw(b) = &t.data
            && !b.is_empty()
        {
            assert!((from..to).contains(&(b.as_ptr() as usize)), "{} was copied", loaded.model.graph.name_of(*v));
            weights += b.len();
        }
    }
    assert!(weights > 400_000, "found only {weights} bytes of weights");
}
