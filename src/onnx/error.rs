//! What can go wrong with a file, and what to do about it.

use std::path::PathBuf;

use crate::file::{ReadError, WriteError};
use crate::ir::Invalid;

/// Why a file could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("cannot read {path}: {source}")]
    Io { path: PathBuf, source: ReadError },
    #[error("{path} is a folder; give the path of the .onnx file inside it")]
    Folder { path: PathBuf },
    #[error("{file} is empty (0 bytes); export or download the model again")]
    Empty { file: String },
    #[error("{file} is not an ONNX model: it is {what}; {hint}")]
    Foreign { file: String, what: &'static str, hint: &'static str },
    #[error(
        "{file} breaks off at byte {at}{}: it was cut short (an interrupted download or copy?); get the whole file \
         again", place(.path, *.missing)
    )]
    Truncated { file: String, at: usize, path: String, missing: usize },
    #[error("{file} is not an ONNX model: {what} (byte {at}{}); check that it is the file you meant", place(.path, 0))]
    Malformed { file: String, at: usize, path: String, what: String },
    #[error("{file} holds no graph; it is no ONNX model, or only the first bytes of one: get the whole file again")]
    NoGraph { file: String },
    #[error(
        "{file} (format version {ir_version}) imports no operator set; the end of the file may be missing: get the whole file again"
    )]
    NoOpset { file: String, ir_version: i64 },
    #[error("{file}: {what} has no name; every input, output and constant needs one: export the model again")]
    Unnamed { file: String, what: String },
    #[error("{file}: node {node} names no operator; export the model again")]
    NoOperator { file: String, node: String },
    #[error(
        "{file}: value `{value}` is defined twice, by {first} and by {second}; a value has one definition: export \
         the model again"
    )]
    Duplicate { file: String, value: String, first: String, second: String },
    #[error("{file}: {reader} reads `{value}`, which nothing defines; export the model again")]
    Undefined { file: String, reader: String, value: String },
    #[error(
        "{file}: node {node} depends on its own output `{value}`; a graph must not have cycles: export the model again"
    )]
    Cycle { file: String, node: String, value: String },
    #[error("{file}: tensor `{tensor}` lies in the file `{location}`, which {problem}")]
    External { file: String, tensor: String, location: String, problem: String },
}

fn place(path: &str, missing: usize) -> String {
    let mut s = if path.is_empty() { String::new() } else { format!(", in {path}") };
    if missing > 0 {
        s.push_str(&format!(", {missing} bytes short"));
    }
    s
}

/// Why a model could not be written. The file that stood under the output's name, if any, is as it was.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("`{location}` cannot hold the external data: give a plain file name other than the model's own")]
    Location { location: String },
    #[error("the data of tensor `{tensor}` was not loaded (it lies in `{location}`): load the model from its folder")]
    NotLoaded { tensor: String, location: String },
    #[error("{path} was changed since it was read; nothing was written: wait until it is complete, and start again")]
    Changed { path: PathBuf },
    #[error("no runtime would take the model as it would be written: {0}")]
    Types(Invalid),
    #[error("in a nested graph of node {node}: {source}")]
    Body { node: String, source: Invalid },
    #[error("the model cannot be written to the pipe: {0}; give a file, or a reader that takes all of it")]
    Pipe(std::io::Error),
    #[error(
        "the model takes {bytes} bytes, more than the 2 GB one ONNX file may have; let the weights go into a file \
         beside it"
    )]
    TooLarge { bytes: usize },
}
