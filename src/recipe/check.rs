//! What no recipe may say, whatever model it is for: it is told when the recipe is read, and not after calibration.

use serde_json::Value;

use super::Recipe;
use crate::ir::ops;
use crate::plan::Role;
use crate::plan::recipe::{AttentionRecipe, Candidate, FoldRecipe, QuantRecipe, ScoreRange};
use crate::quant::Code;
use crate::yaml::Step;

/// Entries of a list: each is a way that is tried.
const MOST_WAYS: usize = 64;
/// No number of a recipe is larger.
const MOST: f32 = 1e6;

/// What weights can be stored as: signed, and of 8 bits at most.
const OF_WEIGHTS: [Code; 4] = [Code::I8, Code::I7, Code::I4in8, Code::I4];
/// What values can be: `i32` has no scales of its own, and `i4` is no type of an operator's input.
const OF_VALUES: [Code; 7] = [Code::U8, Code::S8, Code::I8, Code::I7, Code::I4in8, Code::U16, Code::I16];

/// Something that a recipe may not say, and where it says it.
#[derive(Debug)]
pub(super) struct Fault {
    pub at: Vec<Step>,
    pub what: String,
}

fn fault(at: &[Step], what: impl Into<String>) -> Fault {
    Fault { at: at.to_vec(), what: what.into() }
}

/// The first thing that the recipe may not say.
pub(super) fn check(recipe: &Recipe) -> Result<(), Fault> {
    let whole = |e: serde_json::Error| fault(&[], e.to_string());
    numbers(&serde_json::to_value(recipe).map_err(whole)?, &mut Vec::new())?;
    if recipe.name.trim().is_empty() {
        return Err(fault(&["name".into()], "it is empty; give the recipe a name for reports and plans"));
    }
    // Files are named after recipes, and reports and terminals show their names.
    let fits = |c: char| c.is_alphanumeric() || "-_.+ ".contains(c);
    if !recipe.name.chars().all(fits) || recipe.name.starts_with('.') || recipe.name.len() > 100 {
        let what = format!(
            "{:?} is no name of a recipe: it has up to 100 letters, digits, spaces and characters of `-_.+`, and does not begin \
             with a dot",
            recipe.name.chars().take(100).collect::<String>()
        );
        return Err(fault(&["name".into()], what));
    }
    let Some(q) = &recipe.quantize else { return Ok(()) };
    if recipe.prepare.is_none() {
        let what =
            "a model that is not prepared cannot be quantized; add `prepare: { opset: 17 }`, or leave `quantize` out";
        return Err(fault(&["quantize".into()], what));
    }
    weights(q)?;
    activations(q)?;
    folds(q)?;
    attention(&q.attention)?;
    if q.costs.is_some() && !q.linear_only {
        return Err(fault(
            &within("costs"),
            "figures of what products cost are for `linear-only: true`; add that, or leave them out",
        ));
    }
    Ok(())
}

/// The way to a key of `quantize`.
fn within(key: &str) -> Vec<Step> {
    vec!["quantize".into(), key.into()]
}

fn weights(q: &QuantRecipe) -> Result<(), Fault> {
    let at = |key: &str| [within("weights"), vec![key.into()]].concat();
    for (key, code) in [("code", Some(q.weights.code)), ("ends", q.weights.ends)] {
        if code.is_some_and(|c| !OF_WEIGHTS.contains(&c)) {
            return Err(fault(&at(key), "weights have signed codes of at most 8 bits; give i8, i7, i4in8 or i4"));
        }
    }
    if q.weights.clip.is_empty() {
        return Err(fault(&at("clip"), "the list is empty; give shares of the range to try, or leave it out for 1.0"));
    }
    Ok(())
}

fn activations(q: &QuantRecipe) -> Result<(), Fault> {
    let lis = matches!(q.attention, AttentionRecipe::Lis { .. });
    let attends = lis && !q.linear_only && !q.keep_float.contains(&Role::Value);
    for (list, key) in [(&q.activations, "activations"), (&q.without_data, "without-data")] {
        for (role, candidates) in list {
            let at = [within(key), vec![role.name().into()]].concat();
            let codes = |c: &Candidate| matches!(c, Candidate::Affine { .. } | Candidate::Ptf { .. });
            if !candidates.iter().any(codes) {
                let what = "no candidate here is `affine` or `ptf`, which every value can have; add one (a role that shall stay \
                            float goes into `keep-float`)";
                return Err(fault(&at, what));
            }
            // Values that attention weights multiply.
            let attended = attends && key == "activations" && std::ptr::eq(q.candidates(Role::Value), &candidates[..]);
            for (i, c) in candidates.iter().enumerate() {
                candidate(c, attended).map_err(|(key, what)| {
                    let to = key.map(Step::from);
                    fault(&at.iter().cloned().chain([i.into()]).chain(to).collect::<Vec<_>>(), what)
                })?;
            }
        }
    }
    Ok(())
}

fn candidate(c: &Candidate, attended: bool) -> Result<(), (Option<&'static str>, &'static str)> {
    let (Candidate::Affine { code, .. } | Candidate::Ptf { code, .. }) = c else { return Ok(()) };
    if !OF_VALUES.contains(code) {
        return Err((Some("code"), "values have no such codes; give u8, s8, i8, i7, i4in8, u16 or i16"));
    }
    if attended && matches!(code, Code::U16 | Code::I16) {
        let what =
            "attention weights multiply values of 8 bits; give u8 or s8 (if this is `default`, name `value` apart)";
        return Err((Some("code"), what));
    }
    Ok(())
}

fn folds(q: &QuantRecipe) -> Result<(), Fault> {
    for (list, key) in [(&q.folds, "folds"), (&q.folds_without_data, "folds-without-data")] {
        for (role, FoldRecipe { grid, offsets, .. }) in list {
            if *grid && !offsets {
                let at = [within(key), vec![role.name().into(), "grid".into()]].concat();
                return Err(fault(&at, "a grid begins at the lowest value of a channel; add `offsets: true`"));
            }
        }
    }
    Ok(())
}

fn attention(a: &AttentionRecipe) -> Result<(), Fault> {
    let at = |key: &str| [within("attention"), vec![key.into()]].concat();
    let AttentionRecipe::Lis { spec, scores, fine, bases, scale_by_head, .. } = a else { return Ok(()) };
    for (i, n) in fine.iter().enumerate() {
        let way = [at("fine"), vec![i.into()]].concat();
        spec.clone().with_fine(vec![*n]).map_err(|e| fault(&way, e.to_string()))?;
    }
    for (i, b) in bases.iter().enumerate() {
        let way = [at("bases"), vec![i.into()]].concat();
        spec.clone().with_base(vec![*b]).map_err(|e| fault(&way, e.to_string()))?;
    }
    if *scale_by_head && *scores != ScoreRange::Weights {
        return Err(fault(
            &at("scale-by-head"),
            "scales of the heads are found by the weights; give `scores: weights`",
        ));
    }
    Ok(())
}

/// Between what a number under this key must lie.
fn limits(way: &[Step]) -> (f32, f32) {
    let key = |back: usize| match way.iter().filter(|s| matches!(s, Step::Key(_))).nth_back(back) {
        Some(Step::Key(k)) => k.as_str(),
        _ => "",
    };
    match (key(1), key(0)) {
        ("prepare", "opset") => (1.0, ops::newest_opset() as f32),
        // Less than a hundredth of a range leaves nothing of the weights.
        (_, "clip") => (0.01, 1.0),
        // Exponents of ranges beyond this leave no float of the factors.
        (_, "strengths") => (0.0, 8.0),
        // Of a candidate it is a share, of a fold a multiple of the median.
        (_, "beyond") if way.iter().any(|s| *s == "folds".into() || *s == "folds-without-data".into()) => (0.01, MOST),
        (_, "beyond") => (0.0, MOST),
        (_, "floor") => (1e-6, 1.0),
        (_, "max-shift") => (0.0, 15.0),
        (_, "headroom") => (0.01, 1000.0),
        ("one-scale-within", _) => (1.0, MOST),
        // GELU is at its least, -0.17, at -0.75.
        (_, "gelu-floor") => (-MOST, -1.0),
        ("costs", _) => (0.0, MOST),
        (_, "cosine") => (-1.0, 1.0),
        (_, "agreement" | "top1_drop") => (0.0, 1.0),
        _ => (-MOST, MOST),
    }
}

/// Numbers and lists within what makes sense.
fn numbers(v: &Value, way: &mut Vec<Step>) -> Result<(), Fault> {
    let mut part = |step: Step, x: &Value| {
        way.push(step);
        let r = numbers(x, way);
        way.pop();
        r
    };
    match v {
        Value::Number(n) => {
            // As the recipe has it: most numbers were read as f32.
            let x = n.as_f64().unwrap_or(f64::NAN) as f32;
            let (least, most) = limits(way);
            if (least..=most).contains(&x) {
                return Ok(());
            }
            Err(fault(way, format!("{x} is not between {least} and {most}; give a number that is")))
        }
        Value::Array(list) if list.len() > MOST_WAYS => {
            Err(fault(way, format!("{} entries are too many; give at most {MOST_WAYS}", list.len())))
        }
        Value::Array(list) => list.iter().enumerate().try_for_each(|(i, x)| part(i.into(), x)),
        Value::Object(map) => map.iter().try_for_each(|(k, x)| part(k.as_str().into(), x)),
        _ => Ok(()),
    }
}
