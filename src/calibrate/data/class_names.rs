//! What the classes of a model are called: a list of the user's, or what transformers and timm write beside the model.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{DataError, DataOptions};
use crate::file;

/// Names by class.
pub type ClassNames = BTreeMap<usize, String>;

impl DataOptions {
    /// The file that the user named.
    pub fn class_names_file(&self) -> Option<PathBuf> {
        self.class_names.clone()
    }

    /// Names of classes: those of the user's file, or of the `config.json` beside the model; none if there is neither.
    ///
    /// # Errors
    /// If the user's file cannot be read, or holds no names.
    pub(super) fn names_of_classes(&self) -> Result<ClassNames, DataError> {
        if let Some(path) = &self.class_names {
            let wrong = |reason: &str| DataError::Labels { path: path.clone(), reason: reason.to_owned() };
            let text = file::text(path).map_err(|source| DataError::Read { path: path.clone(), source })?;
            let names = match serde_json::from_str::<Value>(&text) {
                Ok(v) if v.is_object() || v.is_array() => of_json(&v),
                _ => text
                    .lines()
                    .enumerate()
                    .map(|(i, l)| (i, l.trim().to_owned()))
                    .filter(|(_, l)| !l.is_empty())
                    .collect(),
            };
            if names.is_empty() {
                return Err(wrong("names no class: give a line for each class, or a JSON file with `id2label`"));
            }
            return Ok(names);
        }
        // Whatever lies beside a model is not the user's word: what cannot be used is passed over.
        let beside = self.model.as_deref().and_then(Path::parent);
        let folders = beside.into_iter().flat_map(|d| [d.to_owned(), d.join("..")]).take(
            // Exporters put the model into a folder `onnx` of its repository.
            if beside.and_then(Path::file_name).is_some_and(|n| n == "onnx") { 2 } else { 1 },
        );
        let texts = folders.map(|d| d.join("config.json")).filter(|f| f.is_file()).filter_map(|f| file::text(&f).ok());
        let found = texts.filter_map(|t| serde_json::from_str::<Value>(&t).ok()).map(|v| of_json(&v));
        Ok(found.into_iter().find(|n| !n.is_empty()).unwrap_or_default())
    }
}

/// `id2label` of transformers, `label_names` of timm, or a plain list or map.
fn of_json(v: &Value) -> ClassNames {
    let inner = ["id2label", "label_names"].iter().find_map(|k| v.get(k)).unwrap_or(v);
    let word = |v: &Value| v.as_str().map(|s| s.trim().to_owned()).filter(|s| !s.is_empty());
    let names: ClassNames = match inner {
        Value::Array(list) => list.iter().enumerate().filter_map(|(i, v)| Some((i, word(v)?))).collect(),
        Value::Object(map) => map.iter().filter_map(|(k, v)| Some((k.parse().ok()?, word(v)?))).collect(),
        _ => ClassNames::new(),
    };
    // What transformers writes where nobody named anything.
    if names.iter().all(|(i, n)| *n == format!("LABEL_{i}")) { ClassNames::new() } else { names }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(file: &str, text: &str, asked: bool) -> Result<ClassNames, DataError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(file);
        std::fs::write(&path, text).unwrap();
        let class_names = asked.then_some(path);
        DataOptions { class_names, model: Some(dir.path().join("m.onnx")), ..DataOptions::default() }.names_of_classes()
    }

    #[test]
    fn names_come_from_a_list_or_from_what_lies_beside_the_model() {
        let want: ClassNames = [(0, "tench".to_owned()), (2, "white shark".to_owned())].into();
        assert_eq!(named("names.txt", "tench\n\nwhite shark\n", true).unwrap(), want);
        for (text, asked) in [
            (r#"{"id2label": {"0": "tench", "2": "white shark"}}"#, false),
            (r#"{"id2label": {"0": "tench", "2": "white shark"}}"#, true),
            (r#"{"label_names": ["tench", "", "white shark"]}"#, false),
        ] {
            assert_eq!(named("config.json", text, asked).unwrap(), want, "{text}");
        }
        for text in ["{", "[]", r#"{"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}"#, r#"{"architecture": "vit"}"#] {
            assert_eq!(named("config.json", text, false).unwrap(), ClassNames::new(), "{text}");
        }
        let e = named("names.txt", "\n \n", true).unwrap_err().to_string();
        assert!(e.contains("names.txt") && e.contains("a line for each class"), "{e}");
    }
}
