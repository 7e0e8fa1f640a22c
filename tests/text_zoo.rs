//! What exporters write is valid, and survives being printed and read back.

use std::path::Path;

use fqvit_opt::ir::validate::validate;
use fqvit_opt::onnx;
use fqvit_opt::text::{Elide, parse_model, print_model};

#[test]
fn every_model_of_the_zoo_reads_back_from_its_text() {
    let zoo = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/zoo");
    let mut files: Vec<_> =
        std::fs::read_dir(&zoo).expect("the zoo").map(|e| e.expect("a readable folder").path()).collect();
    files.retain(|p| p.extension().is_some_and(|e| e == "onnx"));
    files.sort();
    assert!(!files.is_empty());
    for f in files {
        let name = f.display();
        let m = onnx::load(&f).unwrap_or_else(|e| panic!("{name}: {e}")).model;
        validate(&m).unwrap_or_else(|e| panic!("{name}: {e}"));
        let text = print_model(&m, Elide::Full);
        let again = parse_model(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
        validate(&again).unwrap_or_else(|e| panic!("{name}, read back: {e}"));
        assert!(print_model(&again, Elide::Full) == text, "{name} reads back as another model");
        assert_eq!(again.graph.node_count(), m.graph.node_count(), "{name}");
    }
}
