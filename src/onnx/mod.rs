//! Reading and writing ONNX files.
//!
//! [`load`] maps the file, so that weights stay where they are: an initializer is a handle to mapped bytes, also when
//! it lies in a data file beside the model. [`encode`] and [`save`] write a model back.
//!
//! **No-op law.** Loading and encoding with nothing between gives the same bytes for canonically encoded files (fields
//! by ascending number, as protobuf libraries write them) whose nodes are sorted, as the standard demands; for other
//! encodings it gives a message that decodes to the same content. What the IR does not model rides along (see
//! [`Rider`](crate::ir::Rider)); fields that not even the schema knows can not be carried and are reported in
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
use std::path::Path;

use bytes::Bytes;
use prost::Message;

pub use dense::{SparseError, dense_weights};
pub use error::{LoadError, SaveError};
pub use inline::{InlineError, inline_functions};
pub use nested::{map_bodies, open_body};
pub use save::{External, SaveOptions, encode_whole, save};

use crate::ir::{Model, Validated};

/// A file, read.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub model: Model,
    /// Fields of the file that the schema does not know and that a saved model will lack, in file order. Normally
    /// empty; not so for files of a newer standard or with a vendor's own extensions.
    pub unknown: Vec<UnknownField>,
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

/// Loads a model file. It is mapped, not read: the file must not be shortened while the model lives.
///
/// # Errors
/// If the file can not be read, is no ONNX model, or breaks the rules every graph obeys (one definition for each
/// value, nothing undefined read, no cycle); if a data file beside the model is missing, too short, or outside the
/// model's folder.
pub fn load(path: &Path) -> Result<Loaded, LoadError> {
    let io = |source| LoadError::Io { path: path.to_owned(), source };
    if std::fs::metadata(path).map_err(io)?.is_dir() {
        return Err(LoadError::Folder { path: path.to_owned() });
    }
    let bytes = external::map_file(path).map_err(io)?;
    let dir = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    parse(bytes, Some(dir), &path.display().to_string())
}

/// Reads a model from memory; decoding copies no weights out of `bytes`.
///
/// `dir` is the folder in which external data is looked for; without it external tensors load without their bytes.
/// `name_for_errors` is what messages call the file.
///
/// # Errors
/// As [`load`].
pub fn parse(bytes: Bytes, dir: Option<&Path>, name_for_errors: &str) -> Result<Loaded, LoadError> {
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
    let p = proto::ModelProto::decode(bytes).map_err(|e| LoadError::Malformed {
        file: file(),
        at: 0,
        path: String::new(),
        what: e.to_string(),
    })?;
    let model = front::model(p, external::Folder::new(dir), name_for_errors)?;
    Ok(Loaded { model, unknown })
}

/// The encoded model; external tensors keep pointing where they do. This holds a copy of all inline weights:
/// [`save`] does not.
pub fn encode(m: Validated<'_>) -> Vec<u8> {
    back::model(m.model()).encode_to_vec()
}
