//! Files beside the model: found, checked and mapped. Paths come from the model file and are treated as hostile.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use memmap2::Mmap;

/// Maps a file. An empty file gives no bytes (an empty range can not be mapped).
pub(super) fn map_file(path: &Path) -> std::io::Result<Bytes> {
    let file = File::open(path)?;
    if file.metadata()?.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the map is read only and private to this process. What Rust can not promise is that nobody else shortens
    // the file meanwhile, which would end the process; every program that maps its input has that limit. This
    // program itself never writes to a file in place: it writes a new one and renames it.
    let map = unsafe { Mmap::map(&file)? };
    Ok(Bytes::from_owner(map))
}

/// The data files of one model, each mapped once.
pub(super) struct Folder<'p> {
    dir: Option<&'p Path>,
    real: Option<PathBuf>,
    mapped: BTreeMap<String, Bytes>,
}

/// A tensor's location that can not be used, and why.
#[derive(Debug)]
pub(super) struct Refused {
    pub location: String,
    pub problem: String,
}

fn entry<'e>(entries: &'e [(String, String)], key: &str) -> Option<&'e str> {
    entries.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
}

/// The `location` entry.
pub(super) fn location(entries: &[(String, String)]) -> &str {
    entry(entries, "location").unwrap_or("")
}

/// `offset` and `length`; `None` in the first place if one is written but is no number.
pub(super) fn range(entries: &[(String, String)]) -> Option<(usize, Option<usize>)> {
    let number = |k| entry(entries, k).map(|s| s.parse::<usize>()).transpose();
    Some((number("offset").ok()?.unwrap_or(0), number("length").ok()?))
}

impl<'p> Folder<'p> {
    /// `dir` is the model's folder; without it external tensors load without their bytes.
    pub(super) fn new(dir: Option<&'p Path>) -> Folder<'p> {
        Folder { dir, real: None, mapped: BTreeMap::new() }
    }

    /// The bytes that the entries of an external tensor point to; `size` is what its shape asks for, used when the
    /// entries give no length.
    pub(super) fn find(&mut self, entries: &[(String, String)], size: Option<usize>) -> Result<Option<Bytes>, Refused> {
        let Some(dir) = self.dir else { return Ok(None) };
        let location = location(entries).to_owned();
        let refuse = |problem: &str| Refused { location: location.clone(), problem: problem.to_owned() };
        let (offset, length) =
            range(entries).ok_or_else(|| refuse("is given with an offset or length that is no number"))?;
        if !self.mapped.contains_key(&location) {
            let bytes = self.open(dir, &location).map_err(|p| refuse(&p))?;
            self.mapped.insert(location.clone(), bytes);
        }
        let all = &self.mapped[&location];
        let rest = all.len().checked_sub(offset);
        let length = length.or(size).or(rest).unwrap_or(0);
        if rest.is_none_or(|r| r < length) {
            return Err(refuse(&format!(
                "has {} bytes, too few for the {length} at offset {offset} that the tensor needs: it was cut short or \
                 belongs to another model",
                all.len()
            )));
        }
        Ok(Some(all.slice(offset..offset + length)))
    }

    fn open(&mut self, dir: &Path, location: &str) -> Result<Bytes, String> {
        let inside = !location.is_empty()
            && Path::new(location).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
        if !inside {
            return Err("is no path inside the model's folder: refused".into());
        }
        let real = match &self.real {
            Some(r) => r,
            None => {
                let r = dir.canonicalize().map_err(|e| format!("can not be looked for in {}: {e}", dir.display()))?;
                self.real.insert(r)
            }
        };
        let path = dir.join(location);
        let target = path.canonicalize().map_err(|e| {
            format!("can not be read: {e}; put the data file that came with the model at {}", path.display())
        })?;
        if !target.starts_with(real) {
            return Err("is a link that leads out of the model's folder: refused".into());
        }
        if !target.is_file() {
            return Err("is no regular file: refused".into());
        }
        map_file(&target).map_err(|e| format!("can not be read: {e}"))
    }
}
