//! Writes a model as every pass that changes it leaves it, on the way from file to quantized file:
//! `pass_steps MODEL FOLDER [RECIPE [TARGET]]`.
//!
//! `FOLDER/000.onnx` is the model as read, `FOLDER/001.onnx` what the first pass that changed it made of it. Prints one line of JSON: a
//! list of the passes, each with its file and what it declares about the numbers (`bit-exact`, a relative bound, `quantizes`,
//! `widens`). A model that uses what its operator set lacks, such as codes of 16 bits that a later pass takes out, has no file.
//! `tests/passes_cross.py` holds passes to their word in onnxruntime.

#![allow(clippy::print_stdout)]

use std::error::Error;
use std::path::Path;

use fqvit_opt::calibrate::data::{DataOptions, Dataset};
use fqvit_opt::calibrate::run::observe;
use fqvit_opt::compile::{Journal, apply, inputs, make_plan, prepare};
use fqvit_opt::ir::Model;
use fqvit_opt::ir::validate::validate;
use fqvit_opt::onnx::{self, SaveError};
use fqvit_opt::passes::Numerics;
use fqvit_opt::pattern::RuleSet;
use fqvit_opt::plan::Target;
use fqvit_opt::plan::planner::watches;
use fqvit_opt::recipe::Recipe;
use serde_json::json;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (Some(file), Some(folder)) = (args.first(), args.get(1)) else {
        return Err("usage: pass_steps MODEL FOLDER [RECIPE [TARGET]]".into());
    };
    let recipe = Recipe::find(args.get(2).map_or("fq-vit", |r| r), None)?;
    let target = match args.get(3).map(String::as_str) {
        None | Some("qdq") => Target::Qdq,
        Some("integer") => Target::Integer,
        Some(other) => return Err(format!("there is no target {other}: give qdq or integer").into()),
    };
    let (Some(how), Some(quantize)) = (&recipe.prepare, &recipe.quantize) else {
        return Err(format!("recipe {} does not quantize", recipe.name).into());
    };
    let read = onnx::load(Path::new(file))?.model;
    let mut journal = Journal::keeping_models();
    let p = prepare(&read, how, &RuleSet::embedded()?, false, &mut journal)?;
    // Made-up samples: what is asked is whether passes keep their word, not how good the result is.
    let data = Dataset::open(&DataOptions { samples: Some(2), ..DataOptions::default() }, &inputs(&p.model.graph)?)?;
    let seen = observe(validate(&p.model)?, &data, &[0, 1], &watches(&p.model, &p.sites, quantize), 1, &|_| ())?;
    let mut plan = make_plan(&p, &seen.stats, &recipe)?;
    plan.target = target;
    apply(&p, &plan, &mut journal)?;

    let save = |m: &Model, number: usize| -> Result<Option<String>, Box<dyn Error>> {
        let path = Path::new(folder).join(format!("{number:03}.onnx"));
        match onnx::save(validate(m)?, &path, &onnx::SaveOptions::default()) {
            Ok(_) => Ok(Some(path.display().to_string())),
            Err(SaveError::Types(_)) => Ok(None),
            Err(e) => Err(e.into()),
        }
    };
    save(&read, 0)?;
    let mut steps = Vec::new();
    for step in journal.steps.iter().filter(|s| s.changes > 0) {
        let [_, after] = step.models.as_ref().expect("the journal keeps models");
        let numerics = match step.numerics {
            Numerics::BitExact => json!("bit-exact"),
            Numerics::Close { rel } => json!(rel),
            Numerics::Quantizes => json!("quantizes"),
            Numerics::Widens => json!("widens"),
        };
        steps.push(json!({ "pass": step.pass, "numerics": numerics, "file": save(after, steps.len() + 1)? }));
    }
    println!("{}", json!(steps));
    Ok(())
}
