//! Timing two models.

use std::path::Path;
use std::time::Duration;

use super::args::BenchArgs;
use super::files::Files;
use super::{Failure, load};
use crate::calibrate::data::Dataset;
use crate::compile::comparison::float_to_run;
use crate::compile::{inputs_given, unpacked};
use crate::ir::validate;
use crate::verify::report;
use crate::verify::speed::{Effort, measure};

pub fn bench(a: &BenchArgs) -> Result<bool, Failure> {
    let mut files = Files::default();
    files.reads("the float model", &a.float)?;
    files.reads("the quantized model", &a.quantized)?;
    let options = files.samples("--calibrate", &a.data, &a.float)?;
    a.json.iter().try_for_each(|p| files.writes_or_prints("--json", p))?;
    files.check()?;
    let mut notes = Vec::new();
    let (float, _) = load("the float model", &a.float, &mut files, &mut notes)?;
    let (quantized, _) = load("the quantized model", &a.quantized, &mut files, &mut notes)?;
    let float = float_to_run(&float, &mut notes)?;
    let (quantized, _) = unpacked(&quantized)?;
    let data = Dataset::open(&options, &inputs_given(&float.graph, &options)?)?;
    let named = |path: &Path, e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let f = validate::validate(&float).map_err(|e| named(&a.float, &e))?;
    let q = validate::validate(&quantized).map_err(|e| named(&a.quantized, &e))?;
    let rounds = a.rounds as usize;
    let effort = Effort { time: Duration::ZERO, least: rounds, most: rounds };
    let speed = measure(f, q, &data.sample(0)?.inputs, data.batch(), effort)
        .map_err(|(what, e)| named(if what == "float" { &a.float } else { &a.quantized }, &e))?;
    if let Some(p) = &a.json {
        files.write(p, format!("{}\n", serde_json::to_string_pretty(&speed)?).as_bytes())?;
    }
    let taken = files.stdout_is_taken();
    files.commit()?;
    if !taken {
        for n in &notes {
            say!("note: {n}");
        }
        say!("{}", report::speed(&speed));
    }
    Ok(true)
}
