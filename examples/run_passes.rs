//! Runs passes over a model file: `run_passes IN OUT PASS,PASS,...`. Prints one line of JSON.

#![allow(clippy::print_stdout)]

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use fqvit_opt::ir::validate::validate;
use fqvit_opt::onnx;
use fqvit_opt::passes::registry;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, input, output, passes] = &args[..] else { return Err("usage: run_passes IN OUT PASS,PASS,...".into()) };
    let mut model = onnx::load(Path::new(input))?.model;
    let before = model.graph.node_count();
    let (mut notes, mut times) = (Vec::new(), Vec::new());
    for id in passes.split(',').filter(|p| !p.is_empty()) {
        let pass = registry::pass(id).ok_or_else(|| format!("there is no pass {id}"))?;
        let start = Instant::now();
        notes.extend(pass.run_on(&mut model)?.notes);
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    onnx::save(validate(&model)?, Path::new(output), &onnx::SaveOptions::default())?;
    println!(
        "{}",
        serde_json::json!({ "before": before, "after": model.graph.node_count(), "ms": times, "notes": notes })
    );
    Ok(())
}
