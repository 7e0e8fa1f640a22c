//! The ledger: one hash of the compiled bytes for each model and recipe, so that a refactor that changes a byte is seen at
//! once, and a change on purpose shows how far it reaches.
//!
//! Nothing is run, because the kernels of a runtime differ between processors in the last bit. Each watched value gets
//! numbers made up from its name and shape, which go through the real observers; weights are rounded to nearest. What the
//! ledger holds is therefore all from file to file but calibration and the fitting of weights.
//!
//! `FQVIT_BLESS=1 cargo test --release --test ledger` writes what came out into `tests/ledger.txt`. In a merge conflict
//! take either side and bless again.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use fqvit_opt::compile::{Journal, Prepared, apply, inputs, make_plan, prepare};
use fqvit_opt::infer;
use fqvit_opt::ir::validate::validate;
use fqvit_opt::ir::{Dim, Model};
use fqvit_opt::onnx;
use fqvit_opt::pattern::RuleSet;
use fqvit_opt::plan::planner::watches;
use fqvit_opt::quant::observe::{Stats, Watch};
use fqvit_opt::recipe::Recipe;
use indexmap::IndexMap;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

const BLESS: &str = "FQVIT_BLESS=1 cargo test --release --test ledger";
/// One for each quarter of a data set, and one more.
const SAMPLES: u64 = 5;
/// What an open size of an input becomes, the first apart.
const OPEN_SIZE: i64 = 16;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn models() -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = fs::read_dir(root().join("testdata/zoo"))
        .expect("testdata/zoo")
        .map(|e| e.expect("a readable folder").path())
        .filter(|p| p.extension().is_some_and(|e| e == "onnx"))
        .collect();
    all.sort();
    all.push(root().join("testdata/digits/digits_vit.onnx"));
    all
}

/// Four uniform numbers added: near a normal distribution, by additions alone, which every processor rounds alike.
fn number(rng: &mut ChaCha8Rng) -> f32 {
    (0..4).map(|_| rng.random::<f32>() - 0.5).sum::<f32>() * 1.75
}

/// Statistics of a value that was never computed: channels of different spread and middle, one far out.
fn made_up(name: &str, dims: &[usize], watch: &Watch) -> Stats {
    let seed = blake3::hash(format!("{name} {dims:?}").as_bytes());
    let mut rng = ChaCha8Rng::from_seed(*seed.as_bytes());
    let mut stats = Stats::new(watch.clone());
    let len: usize = dims.iter().product();
    let axis = stats.axis().map_or(0, |a| if a < 0 { a + dims.len() as i64 } else { a }) as usize;
    let (channels, inner) = match dims.get(axis) {
        Some(n) => (*n, dims[axis + 1..].iter().product::<usize>()),
        None => (1, 1),
    };
    let spread: Vec<f32> = (0..channels).map(|_| 0.25 + 1.5 * rng.random::<f32>()).collect();
    let middle: Vec<f32> = (0..channels).map(|_| 0.5 * number(&mut rng)).collect();
    let far = rng.random_range(0..channels.max(1));
    for sample in 0..SAMPLES {
        let x: Vec<f32> = (0..len)
            .map(|i| {
                let c = i / inner.max(1) % channels.max(1);
                let times = if c == far && channels > 4 { 12.0 } else { 1.0 };
                times * (spread[c] * number(&mut rng) + middle[c])
            })
            .collect();
        stats.observe(&x, dims, sample).unwrap_or_else(|e| panic!("{name} {dims:?}: {e}"));
    }
    stats.finish();
    stats
}

/// Statistics of every value that the recipe has watched.
fn statistics(p: &Prepared, recipe: &Recipe) -> IndexMap<String, Stats> {
    let quant = recipe.quantize.as_ref().expect("a recipe that quantizes");
    let fed: Vec<(String, Vec<i64>)> = inputs(&p.model.graph)
        .expect("inputs that can be fed")
        .into_iter()
        .map(|i| {
            let size = |(at, d): (usize, &Dim)| match d {
                Dim::Known(n) => *n,
                _ if at == 0 => 1,
                _ => OPEN_SIZE,
            };
            (i.name, i.dims.iter().enumerate().map(size).collect())
        })
        .collect();
    let fed: Vec<(&str, &[i64])> = fed.iter().map(|(n, d)| (n.as_str(), d.as_slice())).collect();
    let shapes = infer::shapes_fed(&p.model, &fed);
    let one = |(name, watch): (String, Watch)| {
        let v = p.model.graph.find(&name).expect("a watched value");
        let dims = shapes.known_dims(v).unwrap_or_else(|| panic!("no shape is known of {name}"));
        let dims: Vec<usize> = dims.iter().map(|n| *n as usize).collect();
        (name.clone(), made_up(&name, &dims, &watch))
    };
    watches(&p.model, &p.sites, quant).into_iter().map(one).collect()
}

fn hash(m: &Model) -> String {
    let bytes = onnx::encode(validate(m).expect("a valid model"));
    format!("{} {:5} nodes", &blake3::hash(&bytes).to_hex()[..16], m.graph.node_count())
}

/// The lines of one model: its canonical form, then what each recipe makes of it.
fn lines(path: &Path, recipes: &[Recipe], rules: &RuleSet) -> String {
    let name = path.file_stem().expect("a file").to_string_lossy();
    let m = onnx::load(path).expect("a model").model;
    let mut out = String::new();
    let mut line = |what: &str, found: Result<String, String>| {
        let found = found.unwrap_or_else(|e| format!("failed: {}", e.lines().next().unwrap_or_default()));
        writeln!(out, "{name:60} {what:14} {found}").expect("a string takes all");
    };
    let mut seen: Option<Result<Prepared, String>> = None;
    let mut how = None;
    for r in recipes {
        let Some(wanted) = &r.prepare else { continue };
        if how != Some(wanted) {
            let p = prepare(&m, wanted, rules, false, &mut Journal::default()).map_err(|e| e.to_string());
            line(&format!("opset={}", wanted.opset), p.as_ref().map(|p| hash(&p.model)).map_err(Clone::clone));
            (seen, how) = (Some(p), Some(wanted));
        }
        let Some(Ok(p)) = &seen else { continue };
        line(&r.name, compiled(p, r));
    }
    out
}

fn compiled(p: &Prepared, recipe: &Recipe) -> Result<String, String> {
    let plan = make_plan(p, &statistics(p, recipe), recipe).map_err(|e| e.to_string())?;
    let m = apply(p, &plan, &mut Journal::default()).map_err(|e| e.to_string())?;
    Ok(hash(&m))
}

#[test]
fn compiled_bytes_are_as_the_ledger_has_them() {
    let recipes: Vec<Recipe> = Recipe::shipped()
        .iter()
        .map(|n| Recipe::find(n, None).expect("a shipped recipe"))
        .filter(|r| r.prepare.is_some() && r.quantize.is_some())
        .collect();
    let rules = RuleSet::embedded().expect("shipped rules");
    let got: String = models().par_iter().map(|m| lines(m, &recipes, &rules)).collect();
    let path = root().join("tests/ledger.txt");
    let bless = std::env::var_os("FQVIT_BLESS").is_some_and(|v| v == "1");
    let expected = fs::read_to_string(&path).unwrap_or_default();
    if got == expected {
        return;
    }
    if bless {
        return fs::write(&path, got).expect("a writable ledger");
    }
    let changed: Vec<&str> = got.lines().filter(|l| !expected.lines().any(|e| e == *l)).collect();
    let diff = similar::TextDiff::from_lines(expected.as_str(), got.as_str());
    panic!(
        "{} of {} compiled models are other bytes than tests/ledger.txt has.\n\
         If that is on purpose, `{BLESS}` writes the new hashes; commit them with the change and say why.\n\n{}",
        changed.len(),
        got.lines().count(),
        diff.unified_diff().context_radius(0).header("ledger", "now")
    );
}

#[test]
fn made_up_numbers_are_the_same_on_every_processor() {
    let s = made_up("x", &[1, 3, 8], &Watch::Channels { axis: -1 });
    let ends: Vec<(u32, u32)> = s.channels.iter().map(|c| (c.min.to_bits(), c.max.to_bits())).collect();
    assert_eq!(&blake3::hash(format!("{ends:?}").as_bytes()).to_hex()[..16], "bfef3308ac11690b");
}
