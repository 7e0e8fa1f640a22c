//! What transformers and timm write beside a model about its pictures: `preprocessor_config.json`, `data_config.json`, and
//! `config.json` with a `pretrained_cfg`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde_json::{Map, Value};

use super::DataError;
use super::presets::{Fit, Interpolation, Preset, Side};
use super::said::{Manner, Said};
use crate::file::{self, ReadError};

/// Names that are looked for, the first one that says something counts.
const NAMES: [&str; 3] = ["preprocessor_config.json", "data_config.json", "config.json"];

/// Texts of files, each read once in a run: what is calibrated and what is verified on cannot go by two versions of a file.
/// Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Texts(Arc<Mutex<BTreeMap<PathBuf, Arc<str>>>>);

impl PartialEq for Texts {
    /// Options are the same whether their files have been read or not.
    fn eq(&self, _: &Texts) -> bool {
        true
    }
}

impl Texts {
    fn of(&self, path: &Path) -> Result<Arc<str>, ReadError> {
        let mut known = self.0.lock().expect("no panic inside");
        if let Some(text) = known.get(path) {
            return Ok(text.clone());
        }
        let text: Arc<str> = file::text(path)?.into();
        known.insert(path.to_owned(), text.clone());
        Ok(text)
    }
}

/// The first file beside a model that says how its pictures are prepared. Exporters put the model into a folder `onnx` of its
/// repository, so that files in the folder above belong to it, too.
///
/// # Errors
/// If one of these names is a file that cannot be read or is no JSON.
pub(super) fn beside(model: &Path, texts: &Texts) -> Result<Option<(PathBuf, Said)>, DataError> {
    let here = match model.parent() {
        Some(p) if p != Path::new("") => p.to_owned(),
        _ => PathBuf::from("."),
    };
    let above = here.file_name().is_some_and(|n| n == "onnx").then(|| here.join(".."));
    for folder in std::iter::once(here).chain(above) {
        for path in NAMES.map(|n| folder.join(n)) {
            // Many things are called config.json.
            let ours = || {
                let says = |text: Arc<str>| ["pretrained_cfg", "input_size"].iter().any(|k| text.contains(k));
                !path.ends_with("config.json") || texts.of(&path).is_ok_and(says)
            };
            if path.is_file()
                && ours()
                && let Some(said) = read(&path, texts)?
            {
                return Ok(Some((path, said)));
            }
        }
    }
    Ok(None)
}

/// Reads a file; `None` if it says nothing of pictures.
///
/// # Errors
/// If it cannot be read, is no JSON, or says something in a way that is unknown.
pub(super) fn read(path: &Path, texts: &Texts) -> Result<Option<Said>, DataError> {
    let wrong = |reason: String| DataError::Config { path: path.to_path_buf(), reason };
    let text = texts.of(path).map_err(|e| wrong(e.to_string()))?;
    let value: Value = serde_json::from_str(&text).map_err(|e| wrong(format!("not JSON: {e}")))?;
    let Value::Object(all) = value else { return Ok(None) };
    let said = if let Some(Value::Object(cfg)) = all.get("pretrained_cfg") {
        Some(timm(cfg))
    } else if all.contains_key("image_mean")
        || all.contains_key("image_processor_type")
        || all.contains_key("feature_extractor_type")
        || all.contains_key("do_resize")
    {
        Some(transformers(&all))
    } else if all.contains_key("mean") && (all.contains_key("input_size") || all.contains_key("interpolation")) {
        Some(timm(&all))
    } else {
        None
    };
    said.transpose().map_err(wrong)
}

/// A key whose value is not what it can be.
fn odd(key: &str, v: &Value) -> String {
    format!("{key}: {v} is not understood")
}

/// The value of a key that is there and not null.
fn some<'a>(all: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    all.get(key).filter(|v| !v.is_null())
}

fn flag(all: &Map<String, Value>, key: &str) -> Result<Option<bool>, String> {
    some(all, key).map(|v| v.as_bool().ok_or_else(|| odd(key, v))).transpose()
}

fn numbers(all: &Map<String, Value>, key: &str) -> Result<Option<Vec<f64>>, String> {
    let Some(v) = some(all, key) else { return Ok(None) };
    let finite = |x: &Value| x.as_f64().filter(|x| x.is_finite());
    let list: Option<Vec<f64>> = match v {
        Value::Array(a) => a.iter().map(finite).collect(),
        x => finite(x).map(|x| vec![x]),
    };
    list.filter(|l| !l.is_empty()).map(Some).ok_or_else(|| odd(key, v))
}

fn side(v: &Value) -> Option<u32> {
    v.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| (1..=1 << 16).contains(n))
}

/// Standard deviations are positive.
fn positive(key: &str, v: &[f64]) -> Result<(), String> {
    if v.iter().all(|x| *x > 0.0) { Ok(()) } else { Err(format!("{key}: standard deviations are positive numbers")) }
}

fn narrow(v: Vec<f64>) -> Vec<f32> {
    v.into_iter().map(|x| x as f32).collect()
}

/// `pretrained_cfg`, and what `timm.data.resolve_data_config` returns.
fn timm(all: &Map<String, Value>) -> Result<Said, String> {
    let mean = numbers(all, "mean")?;
    let std = numbers(all, "std")?;
    std.iter().try_for_each(|s| positive("std", s))?;
    let size = match some(all, "input_size") {
        None => None,
        Some(v @ Value::Array(a)) => match &a[..] {
            [_, h, w] => {
                Some((side(h).ok_or_else(|| odd("input_size", v))?, side(w).ok_or_else(|| odd("input_size", v))?))
            }
            _ => return Err(odd("input_size", v)),
        },
        Some(v) => return Err(odd("input_size", v)),
    };
    let interpolation = match some(all, "interpolation") {
        None => None,
        // In evaluation it is not random.
        Some(v) if v == "random" => Some(Interpolation::Bilinear),
        Some(v) => Some(v.as_str().and_then(Interpolation::named).ok_or_else(|| odd("interpolation", v))?),
    };
    let fit = match some(all, "crop_mode") {
        None => Fit::Crop,
        Some(v) => match v.as_str() {
            Some("center" | "border") => Fit::Crop,
            Some("squash") => Fit::Squash,
            _ => return Err(odd("crop_mode", v)),
        },
    };
    let share = match some(all, "crop_pct") {
        None => 0.875,
        Some(v) => v.as_f64().filter(|x| *x > 0.0 && *x <= 1.0).ok_or_else(|| odd("crop_pct", v))?,
    };
    Ok(Said {
        mean: mean.map(narrow),
        std: std.map(narrow),
        fit: Some(fit),
        side: Some(Side::Share(share)),
        size,
        interpolation,
        manner: Some(Manner::Torchvision),
        notes: Vec::new(),
    })
}

/// `preprocessor_config.json`. What it leaves out is as its image processor has it.
fn transformers(all: &Map<String, Value>) -> Result<Said, String> {
    let class = ["image_processor_type", "feature_extractor_type"].iter().find_map(|k| all.get(*k)?.as_str());
    let row = class.and_then(Preset::named).map(Preset::row);
    let mut said = row.map(Said::of_row).unwrap_or_default();
    said.manner = Some(Manner::Transformers);
    normalisation(all, &mut said)?;
    if let Some(v) = some(all, "resample") {
        let found = v.as_u64().and_then(Interpolation::numbered).or_else(|| v.as_str().and_then(Interpolation::named));
        said.interpolation = Some(found.ok_or_else(|| odd("resample", v))?);
    }
    let crop = match some(all, "crop_size").filter(|_| flag(all, "do_center_crop").is_ok_and(|c| c != Some(false))) {
        Some(v) => Some(both(v).ok_or_else(|| odd("crop_size", v))?),
        None => None,
    };
    if flag(all, "do_resize")? == Some(false) {
        (said.side, said.size) = (Some(Side::AsIs), crop);
        return Ok(said);
    }
    let Some(v) = some(all, "size") else {
        said.size = crop.or(said.size);
        return Ok(said);
    };
    let in_map = |k: &str| v.get(k).filter(|x| !x.is_null());
    if let Some(n) = in_map("shortest_edge").and_then(side) {
        short_edge(all, &mut said, n, crop, in_map("longest_edge").is_some())?;
    } else if let (Some(h), Some(w)) = (in_map("height").and_then(side), in_map("width").and_then(side)) {
        squashed(&mut said, (h, w), crop);
    } else if let Some(n) = side(v) {
        // Old files have one number, which is the short side for some processors and both for others.
        let short = class.is_some_and(|c| {
            ["CLIP", "ConvNext", "Bit", "PoolFormer", "LeViT", "VideoMAE"].iter().any(|p| c.starts_with(p))
        });
        if short { short_edge(all, &mut said, n, crop, false)? } else { squashed(&mut said, (n, n), crop) }
    } else if let Some((h, w)) = both(v) {
        squashed(&mut said, (h, w), crop);
    } else {
        return Err(odd("size", v));
    }
    Ok(said)
}

/// Mean and std of pixels in [0, 1], whatever they are rescaled by.
fn normalisation(all: &Map<String, Value>, said: &mut Said) -> Result<(), String> {
    let factor = match (flag(all, "do_rescale")?, some(all, "rescale_factor")) {
        (Some(false), _) => 1.0,
        (_, Some(v)) => v.as_f64().filter(|x| *x > 0.0).ok_or_else(|| odd("rescale_factor", v))?,
        (_, None) => 1.0 / 255.0,
    };
    let (mut mean, mut std) = (numbers(all, "image_mean")?, numbers(all, "image_std")?);
    std.iter().try_for_each(|s| positive("image_std", s))?;
    if flag(all, "do_normalize")? == Some(false) {
        (mean, std) = (Some(vec![0.0]), Some(vec![1.0]));
    }
    // (x f - m) / s is (x / 255 - m / (255 f)) / (s / (255 f)).
    let by = 255.0 * factor;
    let by = if (by - 1.0).abs() < 1e-3 { 1.0 } else { by };
    let scaled = |v: Vec<f64>| narrow(v.into_iter().map(|x| x / by).collect());
    said.mean = mean.map(scaled).or(said.mean.take());
    said.std = std.map(scaled).or(said.std.take());
    Ok(())
}

fn squashed(said: &mut Said, (h, w): (u32, u32), crop: Option<(u32, u32)>) {
    (said.fit, said.side, said.size) = (Some(Fit::Squash), Some(Side::Exact(h, w)), crop.or(Some((h, w))));
}

fn short_edge(
    all: &Map<String, Value>,
    said: &mut Said,
    n: u32,
    crop: Option<(u32, u32)>,
    limited: bool,
) -> Result<(), String> {
    let share = match some(all, "crop_pct") {
        None => None,
        Some(v) => Some(v.as_f64().filter(|x| *x > 0.0 && *x <= 1.0).ok_or_else(|| odd("crop_pct", v))?),
    };
    (said.fit, said.side, said.size) = match (share, crop) {
        // ConvNeXt: up to 384 the short side is larger than the crop, from there on the picture is squashed.
        (Some(p), None) if n < 384 => (Some(Fit::Crop), Some(Side::Share(p)), Some((n, n))),
        (Some(_), None) => (Some(Fit::Squash), Some(Side::Exact(n, n)), Some((n, n))),
        (_, Some(c)) => (Some(Fit::Crop), Some(Side::Pixels(n)), Some(c)),
        (None, None) => {
            said.notes.push(
                "pictures keep their proportions there, and become inputs of any size; here they are squashed to one size"
                    .to_owned(),
            );
            (Some(Fit::Squash), Some(Side::Share(1.0)), if limited { None } else { Some((n, n)) })
        }
    };
    Ok(())
}

/// Height and width: one number, two, or by name.
fn both(v: &Value) -> Option<(u32, u32)> {
    match v {
        Value::Array(a) => match &a[..] {
            [h, w] => Some((side(h)?, side(w)?)),
            [n] => Some((side(n)?, side(n)?)),
            _ => None,
        },
        Value::Object(_) => match (v.get("height"), v.get("width"), v.get("shortest_edge")) {
            (Some(h), Some(w), _) => Some((side(h)?, side(w)?)),
            (_, _, Some(n)) => Some((side(n)?, side(n)?)),
            _ => None,
        },
        n => Some((side(n)?, side(n)?)),
    }
}
