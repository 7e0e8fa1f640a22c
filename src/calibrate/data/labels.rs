//! `labels.txt`: the classes of a folder's images.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use super::DataError;
use crate::file;

/// Reads "file class" lines: the class is the last word, the file's name all before it. Blank lines are skipped. The order
/// of the lines is the order of the samples. Files lie in `folder`.
pub(super) fn read(path: &Path, folder: &Path) -> Result<Vec<(String, i64)>, DataError> {
    // A list of millions of pictures has more than a text that people write.
    let wrong = |source| DataError::Read { path: path.to_path_buf(), source };
    let bytes = file::read(path).map_err(wrong)?;
    let text = file::as_text(&bytes).map_err(wrong)?;
    let mut rows = Vec::new();
    let mut lines = BTreeMap::new();
    for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let fail = |reason: String| DataError::LabelLine { path: path.to_path_buf(), line: i + 1, reason };
        let (file, class) = line
            .trim()
            .rsplit_once(char::is_whitespace)
            .ok_or_else(|| fail(format!("{:?} has no class", line.trim())))?;
        let class = class.parse::<i64>().map_err(|_| fail(format!("{class:?} is no class number")))?;
        let file = file.trim_end().to_string();
        if !Path::new(&file).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
            return Err(fail(format!("{file:?} is no path inside the folder")));
        }
        if let Some(first) = lines.insert(file.clone(), i + 1) {
            return Err(fail(format!("{file:?} stands in line {first} already")));
        }
        if !folder.join(&file).is_file() {
            return Err(fail(format!("{} has no file {file:?}", folder.display())));
        }
        rows.push((file, class));
    }
    if rows.is_empty() {
        return Err(DataError::Labels { path: path.to_path_buf(), reason: "names no image".into() });
    }
    Ok(rows)
}

/// The classes as labels: `None` when every one is negative, which says "not known". A mixture is refused, because a
/// score over it would silently count the unknown ones as wrong.
pub(super) fn checked(path: &Path, labels: Vec<i64>) -> Result<Option<Vec<i64>>, DataError> {
    match labels.iter().filter(|l| **l < 0).count() {
        0 => Ok(Some(labels)),
        n if n == labels.len() => Ok(None),
        n => {
            let reason = format!("{n} of {} labels are negative: label every sample, or none", labels.len());
            Err(DataError::Labels { path: path.to_path_buf(), reason })
        }
    }
}
