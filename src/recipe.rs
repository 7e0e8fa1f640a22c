//! Recipes: which passes run, what may be quantized how, and what the result must reach.

use std::path::{Path, PathBuf};

use include_dir::{Dir, include_dir};
use serde::{Deserialize, Serialize};

use crate::file;
use crate::plan::recipe::{QuantRecipe, WeightRecipe};
use crate::plan::{Rounding, Target};
use crate::verify::thresholds::Thresholds;

mod check;

static RECIPES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/passes/recipes");

/// The recipe that says how weights become INT4.
const FOUR_BITS: &str = "w4a8-int4";

/// A pipeline with its options, as a file in `passes/recipes` says it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Recipe {
    pub name: String,
    /// One line for `--help` and reports.
    pub summary: String,
    /// Absent: the model is imported and exported, nothing else.
    #[serde(default)]
    pub prepare: Option<Prepare>,
    /// Absent: the model stays in float.
    #[serde(default)]
    pub quantize: Option<QuantRecipe>,
    /// What verification must measure for the exit status to be 0.
    #[serde(default)]
    pub thresholds: Thresholds,
}

/// How a model is brought into canonical form.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Prepare {
    /// Oldest operator set the result may have; a newer one is kept.
    pub opset: i64,
}

/// Why a recipe could not be read.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    #[error("there is no recipe `{name}`; shipped are {known}; a path to a .yaml file works as well")]
    Unknown { name: String, known: String },
    #[error("recipe {path}: {message}")]
    Read { path: String, message: String },
}

impl Recipe {
    /// The recipe for this target, where one is named, and for processors with VNNI alone, where that is promised.
    #[must_use]
    pub fn written_for(mut self, target: Option<Target>, assume_vnni: bool) -> Recipe {
        if let Some(q) = &mut self.quantize {
            q.target = target.unwrap_or(q.target);
            q.weights.assume_vnni |= assume_vnni;
        }
        self
    }

    /// The recipe of this name: a file path, a file in `dir` (a user's passes folder, under `recipes/`), or a shipped one.
    ///
    /// # Errors
    /// If there is none of this name, or the file cannot be read or is no recipe.
    pub fn find(name: &str, dir: Option<&Path>) -> Result<Recipe, RecipeError> {
        if let Some(f) = Recipe::file(name, dir) {
            return Recipe::read(&f);
        }
        match RECIPES.get_file(format!("{name}.yaml")).and_then(|f| f.contents_utf8()) {
            Some(text) => Recipe::parse(text, name),
            None => Err(RecipeError::Unknown { name: name.to_owned(), known: Recipe::shipped().join(", ") }),
        }
    }

    /// The recipe that made a plan, by the name that the plan has of it: a shipped one, or one of a user's passes folder. A
    /// name is no path here, whatever a plan says.
    pub fn of_plan(name: &str, dir: Option<&Path>) -> Option<Recipe> {
        let is_word = name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
        if is_word { Recipe::find(name, dir).ok() } else { None }
    }

    /// The file that [`find`](Recipe::find) reads; `None` for a shipped recipe, or one that there is not.
    pub fn file(name: &str, dir: Option<&Path>) -> Option<PathBuf> {
        let file = Path::new(name);
        if file.extension().is_some_and(|e| e == "yaml" || e == "yml") {
            return Some(file.to_owned());
        }
        dir.map(|d| d.join("recipes").join(format!("{name}.yaml"))).filter(|f| f.is_file())
    }

    fn read(file: &Path) -> Result<Recipe, RecipeError> {
        let path = file.display().to_string();
        let text = file::text(file).map_err(|e| RecipeError::Read { path: path.clone(), message: e.to_string() })?;
        Recipe::parse(&text, &path)
    }

    /// The recipe for statistics from synthetic data.
    pub fn without_data(&self) -> Recipe {
        let mut r = self.clone();
        if let Some(q) = &mut r.quantize {
            q.activations.extend(std::mem::take(&mut q.without_data));
            q.folds.extend(std::mem::take(&mut q.folds_without_data));
        }
        r
    }

    /// The recipe with weights in 4 bits, as the shipped one for INT4 has them, and the operator set that has the type.
    ///
    /// # Errors
    /// As [`find`](Recipe::find).
    pub fn in_four_bits(&self) -> Result<Recipe, RecipeError> {
        let (mut r, four) = (self.with_four_bits()?, Recipe::find(FOUR_BITS, None)?);
        if let (Some(q), Some(f)) = (&mut r.quantize, four.quantize) {
            let WeightRecipe { rounding, assume_vnni, .. } = q.weights;
            // Every part is measured, the first and the last layer too.
            q.weights = WeightRecipe { rounding, assume_vnni, ends: None, ..f.weights };
        }
        Ok(r)
    }

    /// The recipe with an operator set that has INT4.
    ///
    /// # Errors
    /// As [`find`](Recipe::find).
    pub fn with_four_bits(&self) -> Result<Recipe, RecipeError> {
        let mut r = self.clone();
        let four = Recipe::find(FOUR_BITS, None)?;
        if let (Some(p), Some(f)) = (&mut r.prepare, four.prepare) {
            p.opset = p.opset.max(f.opset);
        }
        Ok(r)
    }

    /// The recipe for a first look: weights are rounded to the nearest code instead of fitted to their input.
    pub fn without_fitting(&self) -> Recipe {
        let mut r = self.clone();
        if let Some(q) = &mut r.quantize {
            q.weights.rounding = Rounding::Nearest;
        }
        r
    }

    /// Reads a recipe's text; `path` is for error messages.
    ///
    /// # Errors
    /// If the text is no recipe; unknown fields are refused.
    pub fn parse(text: &str, path: &str) -> Result<Recipe, RecipeError> {
        let wrong = |message: String| RecipeError::Read { path: path.to_owned(), message };
        // A text of this size is no recipe; references in it could make it any size.
        if text.len() > MOST_BYTES {
            return Err(wrong(format!("{} bytes are too many for a recipe; is it the file you meant?", text.len())));
        }
        let recipe: Recipe = crate::yaml::from_str(text).map_err(|e| wrong(e.to_string()))?;
        let finite = |(i, line): (usize, &str)| {
            let read = line.split('#').next().unwrap_or_default();
            let word = words(read).find(|w| not_finite(w))?;
            // Words are parts of the line.
            Some((i + 1, word.as_ptr() as usize - line.as_ptr() as usize + 1, word.to_owned()))
        };
        if let Some((line, column, word)) = text.lines().enumerate().find_map(finite) {
            let what = "is no number to compute with; give a finite one";
            return Err(wrong(format!("`{word}` {what} at line {line} column {column}")));
        }
        check::check(&recipe).map_err(|f| wrong(crate::yaml::wrong_at(text, &f.at, &f.what)))?;
        Ok(recipe)
    }

    /// Names of the shipped recipes, sorted.
    pub fn shipped() -> Vec<String> {
        let mut v: Vec<String> =
            RECIPES.files().filter_map(|f| Some(f.path().file_stem()?.to_str()?.to_owned())).collect();
        v.sort();
        v
    }
}

const MOST_BYTES: usize = 1 << 20;

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| c.is_whitespace() || "[]{},:".contains(c))
}

/// YAML's words for what is no finite number.
fn not_finite(word: &str) -> bool {
    let w = word.trim_start_matches(['+', '-']).to_ascii_lowercase();
    w == ".nan" || w == ".inf"
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::quant::ptf::{Factors, PtfRule};
    use crate::quant::range::Range;

    #[test]
    fn every_shipped_recipe_reads() {
        let names = Recipe::shipped();
        assert!(names.contains(&"fq-vit".to_owned()) && names.contains(&"none".to_owned()));
        for n in names {
            let r = Recipe::find(&n, None).unwrap();
            assert_eq!(r.name, n);
        }
    }

    #[test]
    fn numbers_that_make_no_sense_are_refused_with_their_place() {
        let text = RECIPES.get_file("fq-vit.yaml").and_then(|f| f.contents_utf8()).unwrap();
        let at = text.find("strengths: [").expect("a fold") + "strengths: [".len();
        let end = at + text[at..].find(']').unwrap();
        let with = |list: &str| Recipe::parse(&format!("{}{list}{}", &text[..at], &text[end..]), "r.yaml");
        assert!(with("0.5, 1.0").is_ok());
        let many = vec!["0.5"; 1000].join(", ");
        for (list, says) in
            [("65536", "strengths"), (".nan", ".nan"), ("-.inf", "-.inf"), ("1e300", "strengths"), (&many, "64")]
        {
            let e = with(list).expect_err(list).to_string();
            assert!(e.contains("r.yaml") && e.contains(says), "{list}: {e}");
        }
    }

    /// The names that a reader of recipes takes at one place: it lists them when it is given another one. `at` is a pointer into
    /// a whole recipe, to an object that gets a key, or to a word that is replaced.
    fn taken_at(at: &str) -> Vec<String> {
        let strengths = json!({ "strengths": [1.0] });
        let zero =
            ["layer-float", "layer-codes", "product-float", "product-codes", "quantize", "move-float", "move-codes"];
        let costs: serde_json::Map<_, _> = zero.iter().map(|k| (k.to_string(), json!(1.0))).collect();
        let mut whole = json!({
            "name": "r", "summary": "s", "prepare": { "opset": 17 }, "thresholds": {},
            "quantize": {
                "weights": { "code": "i8", "rounding": "nearest" },
                "activations": { "default": [
                    { "kind": "affine", "range": "min-max", "code": "u8" },
                    { "kind": "wide", "beyond": 0.1 },
                ] },
                "folds": { "input": strengths }, "equalise": { "value": strengths }, "costs": costs, "target": "qdq",
                "attention": { "kind": "lis", "scores": "weights", "spec": { "anchor": "max" } },
                "keep-float": ["input"],
            },
        });
        assert!(serde_json::from_value::<Recipe>(whole.clone()).is_ok());
        match whole.pointer_mut(at).expect(at) {
            serde_json::Value::Object(map) => drop(map.insert("zzz".into(), json!(1))),
            word => *word = json!("zzz"),
        }
        let said = serde_json::from_value::<Recipe>(whole).expect_err(at).to_string();
        assert!(said.contains("unknown"), "{at} takes anything: {said}");
        said.split('`').skip(1).step_by(2).filter(|w| *w != "zzz").map(str::to_owned).collect()
    }

    /// Whatever a reader of recipes takes stands in the documentation, and nothing is taken without a word.
    #[test]
    fn every_key_is_documented() {
        let doc = ["recipes.md", "plan.md"].map(|f| {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(f);
            std::fs::read_to_string(path).expect("documentation")
        });
        let [doc, of_spec] = &doc;
        let mut keys: Vec<String> = [
            "",
            "/prepare",
            "/thresholds",
            "/quantize",
            "/quantize/weights",
            "/quantize/activations/default/0",
            "/quantize/activations/default/1",
            "/quantize/activations/default/0/kind",
            "/quantize/folds/input",
            "/quantize/equalise",
            "/quantize/equalise/value",
            "/quantize/costs",
            "/quantize/attention",
            "/quantize/attention/kind",
            "/quantize/attention/scores",
            "/quantize/attention/spec",
            "/quantize/target",
            "/quantize/weights/rounding",
            "/quantize/weights/code",
            "/quantize/keep-float/0",
        ]
        .into_iter()
        .flat_map(taken_at)
        .collect();
        assert!(keys.len() > 80 && keys.iter().any(|k| k == "move-codes"), "{keys:?}");
        // The rule of a `ptf` candidate stands among the candidate's own keys, where no reader lists them.
        let rule = PtfRule {
            max_shift: 7,
            factors: Factors::Whole,
            channel_zeros: true,
            range: Range::Mse,
            published_base: true,
            normalised: true,
        };
        let serde_json::Value::Object(rule) = serde_json::to_value(rule).expect("plain") else { panic!() };
        keys.extend(rule.keys().cloned());
        keys.extend(["headroom", "percentile", "powers", "whole"].map(str::to_owned));
        let stands = |k: &str| [format!("`{k}`"), format!("`{k}:"), format!("{{ {k}:")].iter().any(|w| doc.contains(w));
        for k in keys {
            assert!(stands(&k), "docs/recipes.md lacks `{k}`");
        }
        for k in taken_at("/quantize/attention/spec/anchor") {
            assert!(of_spec.contains(&format!("`{k}`")), "docs/plan.md lacks `{k}`");
        }
    }

    #[test]
    fn an_unknown_recipe_names_the_known_ones() {
        let e = Recipe::find("nonsense", None).unwrap_err().to_string();
        assert!(e.contains("fq-vit") && e.contains("nonsense"), "{e}");
    }

    #[test]
    fn a_first_look_rounds_and_decides_everything_else_alike() {
        let r = Recipe::find("fq-vit", None).unwrap();
        let (full, fast) = (r.quantize.clone().unwrap(), r.without_fitting().quantize.unwrap());
        assert_eq!((full.weights.rounding, fast.weights.rounding), (Rounding::Gptq, Rounding::Nearest));
        assert_eq!((full.activations, full.attention), (fast.activations, fast.attention));
    }

    #[test]
    fn four_bits_change_weights_alone() {
        let r = Recipe::find("fq-vit", None).unwrap();
        let (mut four, shipped) = (r.in_four_bits().unwrap(), Recipe::find("w4a8-int4", None).unwrap());
        let weights = four.quantize.as_ref().unwrap().weights.clone();
        let want = WeightRecipe { ends: None, ..shipped.quantize.unwrap().weights };
        assert_eq!((&weights, four.prepare.as_ref().unwrap().opset), (&want, 21));
        assert_eq!(weights.code, crate::quant::Code::I4);
        four.quantize.as_mut().unwrap().weights = r.quantize.as_ref().unwrap().weights.clone();
        assert_eq!(four, r.with_four_bits().unwrap());
        // A first look rounds these, too.
        let fast = r.without_fitting().in_four_bits().unwrap().quantize.unwrap().weights;
        assert_eq!(fast.rounding, Rounding::Nearest);
    }

    #[test]
    fn made_up_samples_have_their_own_candidates_and_folds() {
        let r = Recipe::find("fq-vit", None).unwrap();
        let (with, without) = (r.quantize.clone().unwrap(), r.without_data().quantize.unwrap());
        let role = crate::plan::Role::GeluOutput;
        assert!(without.folds[&role].beyond[0] > with.folds[&role].beyond[0]);
        let output = crate::plan::Role::Output;
        assert_ne!(with.candidates(output), without.candidates(output));
        // What is not named stays.
        let norm = crate::plan::Role::NormOutput;
        assert_eq!((&with.folds[&norm], with.candidates(norm)), (&without.folds[&norm], without.candidates(norm)));
    }
}
