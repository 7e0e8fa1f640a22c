//! The road a model travels, as library calls: `compile MODEL DATA OUT`, with DATA a folder of images or an .npz file.
//! Writes the plan beside the result, as OUT.plan.yaml.

use std::error::Error;
use std::path::Path;

use fqvit_opt::calibrate::data::{DataOptions, Dataset};
use fqvit_opt::calibrate::run;
use fqvit_opt::compile::refine::{FitData, refine};
use fqvit_opt::compile::{self, Journal};
use fqvit_opt::ir::validate::validate;
use fqvit_opt::onnx::{self, SaveOptions};
use fqvit_opt::pattern::RuleSet;
use fqvit_opt::plan::planner;
use fqvit_opt::recipe::Recipe;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, model, data, out] = &args[..] else { return Err("usage: compile MODEL DATA OUT".into()) };
    let recipe = Recipe::find("fq-vit", None)?;
    let (Some(prepare), Some(quantize)) = (&recipe.prepare, &recipe.quantize) else {
        return Err("this recipe quantizes nothing".into());
    };

    // Recognise: canonical form, and what can be quantized in it.
    let model = onnx::load(Path::new(model))?.model;
    let mut journal = Journal::default();
    let prepared = compile::prepare(&model, prepare, &RuleSet::embedded()?, false, &mut journal)?;

    // Calibrate: the float model runs, observers watch. The result does not depend on the number of threads.
    let options = DataOptions { calibrate: Some(data.into()), ..DataOptions::default() };
    let data = Dataset::open(&options, &compile::inputs(&prepared.model.graph)?)?;
    let samples: Vec<usize> = (0..data.len()).collect();
    let watches = planner::watches(&prepared.model, &prepared.sites, quantize);
    let stats = run::observe(validate(&prepared.model)?, &data, &samples, &watches, 2, &|_| ())?.stats;

    // Decide, then do.
    let plan = compile::make_plan(&prepared, &stats, &recipe)?;
    // Where the recipe asks for it, as the shipped ones do, weights are fitted on the data once more.
    let fit = FitData { data: &data, indices: &samples, threads: 2 };
    let plan = refine(&prepared, &plan, &quantize.weights, fit, &|_| ())?;
    std::fs::write(format!("{out}.plan.yaml"), plan.to_yaml())?;
    let quantized = compile::apply(&prepared, &plan, &mut journal)?;
    onnx::save(validate(&quantized)?, Path::new(out), &SaveOptions::default())?;
    Ok(())
}
