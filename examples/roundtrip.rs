//! Loads and writes back models without changing them: `roundtrip LIST`, where each line of LIST is `IN<tab>OUT`.
//! Prints one line a model: `ok`, `unknown` (fields the schema lacks) or `error`, and the reason. For
//! `tests/conformance.py`, which compares the files.

#![allow(clippy::print_stdout)]

use std::error::Error;
use std::path::Path;

use fqvit_opt::ir::validate::validate;
use fqvit_opt::onnx::{SaveOptions, load, save};

fn main() -> Result<(), Box<dyn Error>> {
    let list = std::env::args().nth(1).ok_or("usage: roundtrip LIST")?;
    for line in std::fs::read_to_string(list)?.lines() {
        let (from, to) = line.split_once('\t').ok_or("a line is IN<tab>OUT")?;
        match roundtrip(Path::new(from), Path::new(to)) {
            Ok(0) => println!("ok\t{from}"),
            Ok(n) => println!("unknown\t{from}\t{n} unknown fields"),
            Err(e) => println!("error\t{from}\t{}", e.to_string().replace('\n', " ")),
        }
    }
    Ok(())
}

fn roundtrip(from: &Path, to: &Path) -> Result<usize, Box<dyn Error>> {
    let loaded = load(from)?;
    save(validate(&loaded.model)?, to, &SaveOptions::default())?;
    Ok(loaded.unknown.len())
}
