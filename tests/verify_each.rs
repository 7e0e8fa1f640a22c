//! Every pass keeps its word on the 25 models of `testdata/zoo`, as exporters write them: each model goes from file to file
//! with the default recipe and with others in turn, and runs before and after every pass that changed it. Over the models, every
//! shipped recipe meets every target.

use std::fs;
use std::path::Path;

use fqvit_opt::calibrate::data::{DataOptions, Dataset};
use fqvit_opt::calibrate::run::observe;
use fqvit_opt::compile::each::verify_each;
use fqvit_opt::compile::{Journal, apply, inputs, make_plan, prepare};
use fqvit_opt::ir::validate::validate;
use fqvit_opt::onnx;
use fqvit_opt::pattern::RuleSet;
use fqvit_opt::plan::Target;
use fqvit_opt::plan::planner::watches;
use fqvit_opt::recipe::Recipe;
use rayon::prelude::*;

/// Two pictures calibrate, the third goes through the passes: what is asked is whether passes keep their word, not how
/// good the result is.
const SAMPLES: usize = 3;

/// The passes that broke their word, or what else went wrong.
fn broken(
    path: &Path,
    (recipe, target): (&Recipe, Target),
    rules: &RuleSet,
) -> Result<Vec<String>, Box<dyn std::error::Error>> {
    let (how, quant) = (recipe.prepare.as_ref().expect("prepares"), recipe.quantize.as_ref().expect("quantizes"));
    let mut journal = Journal::keeping_models();
    let p = prepare(&onnx::load(path)?.model, how, rules, false, &mut journal)?;
    let options = DataOptions { samples: Some(SAMPLES), ..DataOptions::default() };
    let data = Dataset::open(&options, &inputs(&p.model.graph)?)?;
    let watched = watches(&p.model, &p.sites, quant);
    let stats = observe(validate(&p.model)?, &data, &[0, 1], &watched, 1, &|_| ())?;
    let mut plan = make_plan(&p, &stats.stats, recipe)?;
    plan.target = target;
    apply(&p, &plan, &mut journal)?;
    let moved = verify_each(&journal.steps, &data.sample(2)?.inputs, data.batch())?;
    let tell = |m: &fqvit_opt::compile::each::Moved| {
        format!("{} declares {:?} and moves {} by {:e}", m.pass, m.numerics, m.output, m.distance)
    };
    Ok(moved.iter().filter(|m| !m.kept).map(tell).collect())
}

#[test]
fn every_pass_keeps_its_word_on_every_model() {
    let recipes: Vec<Recipe> = Recipe::shipped()
        .iter()
        .map(|name| Recipe::find(name, None).expect("a shipped recipe"))
        .filter(|r| r.prepare.is_some() && r.quantize.is_some())
        .collect();
    let ways: Vec<(&Recipe, Target)> =
        recipes.iter().flat_map(|r| [Target::Qdq, Target::Integer].map(|target| (r, target))).collect();
    let default = recipes.iter().find(|r| r.name == "fq-vit").expect("the default recipe");
    let rules = RuleSet::embedded().expect("shipped rules");
    let mut models: Vec<_> = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/zoo"))
        .expect("testdata/zoo")
        .map(|e| e.expect("a readable folder").path())
        .filter(|p| p.extension().is_some_and(|e| e == "onnx"))
        .collect();
    models.sort();
    assert!(models.len() >= 25, "only {} models were found", models.len());
    assert!(models.len() >= ways.len(), "{} models for {} recipes and targets", models.len(), ways.len());
    let faults: Vec<String> = models
        .par_iter()
        .enumerate()
        .flat_map(|(i, m)| [(m, (default, Target::Qdq)), (m, ways[i % ways.len()])])
        .flat_map_iter(|(m, way)| {
            let name = format!("{}, {}, {:?}", m.file_name().expect("a file").display(), way.0.name, way.1);
            let found = broken(m, way, &rules).unwrap_or_else(|e| vec![e.to_string()]);
            found.into_iter().map(move |f| format!("{name}: {f}"))
        })
        .collect();
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}
