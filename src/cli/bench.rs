//! Timing two models.

use std::path::Path;
use std::time::Duration;

use super::args::BenchArgs;
use super::compile::float_to_run;
use super::{Failure, distinct, load, writable};
use crate::calibrate::data::Dataset;
use crate::compile::{inputs, unpacked};
use crate::file;
use crate::ir::validate;
use crate::verify::report;
use crate::verify::speed::{Effort, measure};

pub fn bench(a: &BenchArgs) -> Result<bool, Failure> {
    let to_stdout = a.json.as_deref() == Some(Path::new("-"));
    distinct(&[
        ("the float model", Some(&a.float)),
        ("--calibrate", a.data.calibrate.as_deref()),
        ("--json", a.json.as_deref()),
    ])?;
    distinct(&[("the quantized model", Some(&a.quantized)), ("--json", a.json.as_deref())])?;
    if let Some(p) = a.json.as_deref().filter(|_| !to_stdout) {
        writable(p)?;
    }
    let mut notes = Vec::new();
    let float = float_to_run(&a.float, &mut notes)?;
    let (quantized, _) = unpacked(&load(&a.quantized, &mut notes)?)?;
    let data = Dataset::open(&a.data, &inputs(&float.graph)?)?;
    let named = |path: &Path, e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let f = validate::validate(&float).map_err(|e| named(&a.float, &e))?;
    let q = validate::validate(&quantized).map_err(|e| named(&a.quantized, &e))?;
    let rounds = a.rounds as usize;
    let effort = Effort { time: Duration::ZERO, least: rounds, most: rounds };
    let speed = measure(f, q, &data.sample(0)?.inputs, data.batch(), effort)
        .map_err(|(what, e)| named(if what == "float" { &a.float } else { &a.quantized }, &e))?;
    match &a.json {
        Some(_) if to_stdout => say!("{}", serde_json::to_string_pretty(&speed)?),
        Some(p) => file::write(p, format!("{}\n", serde_json::to_string_pretty(&speed)?).as_bytes())?,
        None => {}
    }
    if !to_stdout {
        for n in &notes {
            say!("note: {n}");
        }
        say!("{}", report::speed(&speed));
    }
    Ok(true)
}
