//! Reading and writing ONNX files.
//!
//! [`load`] maps a large file, so that weights stay where they are: an initializer is a handle to mapped bytes, also when
//! it lies in a data file beside the model. [`encode`] and [`save`] write a model back, which then points to no file but
//! its own.
//!
//! **No-op law.** Loading and encoding with nothing between gives the same bytes for canonically encoded files (fields
//! by ascending number, as protobuf libraries write them) whose nodes are sorted, as the standard demands, and whose data
//! they hold themselves; for other encodings it gives a message that decodes to the same content, and data files come
//! home into the model. What the IR does not model rides along (see
//! [`Rider`](crate::ir::Rider)); fields that not even the schema knows cannot be carried and are reported in
//! [`Loaded::unknown`].

mod attr;
mod back;
mod dense;
mod error;
mod external;
mod front;
mod inline;
mod nested;
mod proto;
mod save;
#[cfg(test)]
mod save_tests;
mod scope;
mod sniff;
mod tensor;
#[cfg(test)]
mod tests;
mod wire;

use std::fmt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message;

pub use dense::{SparseError, dense_weights};
pub use error::{LoadError, SaveError};
pub use inline::{InlineError, inline_functions};
pub use nested::{map_bodies, names_in_bodies, open_body};
pub use save::{External, SaveOptions, data_path, save, size, stage, write_to};

use crate::file;
use crate::ir::{Model, Validated};
use external::Origin;

/// A file, read.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub model: Model,
    /// Fields of the file that the schema does not know and that a saved model will lack, in file order. Normally
    /// empty; not so for files of a newer standard or with a vendor's own extensions.
    pub unknown: Vec<UnknownField>,
    /// The files it was read from and their sizes: the model's own first (if it has one), then data files.
    pub files: Vec<(PathBuf, u64)>,
}

/// A field that the ONNX schema of this program does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownField {
    /// Where it stands: a path such as `graph.node[3].attribute`, empty for the model itself. A missing index is 0.
    pub message: String,
    /// Type of the message it stands in, such as `onnx.NodeProto`.
    pub kind: &'static str,
    /// Field number.
    pub number: u32,
    /// Size in the file, key included.
    pub bytes: usize,
}

impl fmt::Display for UnknownField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = if self.message.is_empty() { "the model" } else { &self.message };
        write!(f, "field {} of {} in {at} ({} bytes)", self.number, self.kind, self.bytes)
    }
}

/// Loads a model from a file, a pipe, or standard input (`-`). A large file is mapped (see [`file::read`]).
///
/// Tensors whose data lie in other files get them: see `docs/files.md` for where these files may be.
///
/// # Errors
/// If the file cannot be read, is no ONNX model, or breaks the rules every graph obeys (one definition for each
/// value, nothing undefined read, no cycle); if a data file beside the model is missing, too short, or outside the
/// model's folder.
pub fn load(path: &Path) -> Result<Loaded, LoadError> {
    let piped = path == Path::new(file::STDIN);
    let kind = (!piped).then(|| std::fs::metadata(path)).transpose();
    let kind = kind.map_err(|e| LoadError::Io { path: path.to_owned(), source: e.into() })?;
    if kind.as_ref().is_some_and(|m| m.is_dir()) {
        return Err(LoadError::Folder { path: path.to_owned() });
    }
    let bytes = file::read(path).map_err(|source| LoadError::Io { path: path.to_owned(), source })?;
    let size = bytes.len() as u64;
    let name = if piped { "standard input".to_owned() } else { path.display().to_string() };
    let is_file = kind.is_some_and(|m| m.is_file());
    let mut loaded = parse_from(bytes, if is_file { Origin::File(path) } else { Origin::Pipe }, &name)?;
    loaded.files.insert(0, (path.to_owned(), size));
    Ok(loaded)
}

/// Reads a model from memory; decoding copies no weights out of `bytes`.
///
/// `dir` is the folder in which external data is looked for; without it external tensors load without their bytes.
/// `name_for_errors` is what messages call the file.
///
/// # Errors
/// As [`load`].
pub fn parse(bytes: Bytes, dir: Option<&Path>, name_for_errors: &str) -> Result<Loaded, LoadError> {
    parse_from(bytes, dir.map_or(Origin::Memory, Origin::Folder), name_for_errors)
}

fn parse_from(bytes: Bytes, origin: Origin<'_>, name_for_errors: &str) -> Result<Loaded, LoadError> {
    let file = || name_for_errors.to_owned();
    if bytes.is_empty() {
        return Err(LoadError::Empty { file: file() });
    }
    if let Some((what, hint)) = sniff::foreign(&bytes) {
        return Err(LoadError::Foreign { file: file(), what, hint });
    }
    let unknown = wire::walk_model(&bytes).map_err(|d| match d.kind {
        wire::DamageKind::Short(missing) => LoadError::Truncated { file: file(), at: d.at, path: d.path, missing },
        wire::DamageKind::Nonsense(what) => {
            LoadError::Malformed { file: file(), at: d.at, path: d.path, what: what.to_owned() }
        }
    })?;
    let mut p = proto::ModelProto::decode(bytes).map_err(|e| LoadError::Malformed {
        file: file(),
        at: 0,
        path: String::new(),
        what: e.to_string(),
    })?;
    let files = external::bring_home(&mut p, origin, name_for_errors)?;
    let model = front::model(p, name_for_errors)?;
    Ok(Loaded { model, unknown, files })
}

/// The encoded model, all in one piece. This holds a copy of all weights: [`save`] does not. Tensors whose data were not
/// loaded keep pointing to them.
pub fn encode(m: Validated<'_>) -> Vec<u8> {
    back::model(m.model()).encode_to_vec()
}

/// Bytes of data from which on an initializer is handed out beside the message.
const APART: usize = 1 << 12;

/// As [`encode`], but without the data of large initializers of the main graph. These come beside it, each with the number of its
/// initializer, so that who decodes the message can put them back: a message with all weights would be a copy more of them,
/// and cannot be larger than 2 GB.
pub fn encode_apart(m: Validated<'_>) -> (Vec<u8>, Vec<(usize, Bytes)>) {
    let mut p = back::model(m.model());
    let mut apart = Vec::new();
    for (i, t) in p.graph.iter_mut().flat_map(|g| &mut g.initializer).enumerate() {
        apart.extend(t.raw_data.take_if(|b| b.len() >= APART).map(|b| (i, b)));
    }
    (p.encode_to_vec(), apart)
}
