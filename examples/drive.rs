use fqvit_opt::{calibrate::{data::*, run}, compile, ir, onnx, pattern::RuleSet, recipe::Recipe, plan};
use std::path::{Path, PathBuf};
use std::time::Instant;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let (model, out, rec, data, preset) = (&a[1], &a[2], &a[3], &a[4], &a[5]);
    let t = Instant::now();
    let m = onnx::load(Path::new(model)).unwrap_or_else(|e| panic!("{e}")).model;
    let rules = RuleSet::embedded().unwrap();
    let recipe = Recipe::find(rec, None).unwrap_or_else(|e| panic!("{e}"));
    let p = compile::prepare(&m, recipe.prepare.as_ref().unwrap(), &rules, false).unwrap_or_else(|e| panic!("{e}"));
    eprintln!("prepared {:?} {:?} att {} norms {} gelus {} lin {} sites {}", t.elapsed(), p.passes, p.sites.attentions.len(), p.sites.norms.len(), p.sites.gelus.len(), p.sites.linears.len(), p.sites.sites.len());
    for (n, r) in &p.sites.islands { eprintln!("island {} {r}", p.model.graph.node(*n).name); }
    std::fs::write(format!("{out}.canon.onnx"), onnx::encode(ir::validate::validate(&p.model).unwrap())).unwrap();
    let specs: Vec<InputSpec> = p.model.graph.inputs().iter().map(|v| { let v = p.model.graph.value(*v); let t = v.ty.clone().unwrap(); InputSpec { name: v.name.clone(), dtype: t.dtype, dims: t.shape.unwrap() } }).collect();
    let opts = DataOptions { calibrate: Some(PathBuf::from(data)), preset: if preset == "inception" { Preset::Inception } else { Preset::Imagenet }, ..Default::default() };
    let ds = Dataset::open(&opts, &specs).unwrap_or_else(|e| panic!("{e}"));
    let idx: Vec<usize> = (0..ds.len()).collect();
    let w = plan::planner::watches(&p.model, &p.sites, recipe.quantize.as_ref().unwrap());
    let t = Instant::now();
    let stats = run::observe(ir::validate::validate(&p.model).unwrap(), &ds, &idx, &w, 2, &|_| ()).unwrap_or_else(|e| panic!("{e}"));
    eprintln!("calibrated {:?}", t.elapsed());
    let t = Instant::now();
    let plan = compile::make_plan(&p, &stats, &recipe).unwrap_or_else(|e| panic!("{e}"));
    eprintln!("planned {:?}", t.elapsed());
    std::fs::write(format!("{out}.plan.yaml"), plan.to_yaml()).unwrap();
    let t = Instant::now();
    let q = compile::apply(&p, &plan).unwrap_or_else(|e| panic!("{e}"));
    eprintln!("applied {:?}", t.elapsed());
    onnx::save(ir::validate::validate(&q).unwrap(), Path::new(out), &Default::default()).unwrap_or_else(|e| panic!("{e}"));
}
