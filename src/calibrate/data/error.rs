//! What can be wrong with calibration data.

use std::path::PathBuf;

use crate::budget::OverBudget;
use crate::file::ReadError;
use crate::ir::DType;

/// Why a data source could not be opened, or one of its samples not made. Every message names the file, the array or the
/// sample, and says what to do where that is not plain.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error(transparent)]
    Memory(#[from] OverBudget),
    #[error("{}: no such file or folder; give a folder of pictures, or an .npy or .npz file", path.display())]
    Missing { path: PathBuf },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: ReadError },
    #[error("{}: it was changed while it was read; wait until it is complete, and start again", path.display())]
    Changed { path: PathBuf },
    #[error("{}: neither a folder of images nor an .npy or .npz file{}", path.display(),
        if *.is_image { "; give the folder that holds the image" } else { "" })]
    UnknownFormat { path: PathBuf, is_image: bool },
    #[error("{}: {reason}; mend it, or pass over it with --preprocessor none", path.display())]
    Config { path: PathBuf, reason: String },
    #[error("{}: the folder is empty; put pictures of what the model will see into it, or give another one", path.display())]
    EmptyFolder { path: PathBuf },
    #[error("{}: no JPEG, PNG, WebP or BMP picture in it; convert its pictures to one of these, or give another folder",
        path.display())]
    NoImages { path: PathBuf },
    #[error("{}: {count} of {of} pictures cannot be read: {files}; convert them to PNG or JPEG, repair them, or take them out",
        path.display())]
    Unread { path: PathBuf, count: usize, of: usize, files: String },
    #[error("{}: cannot be decoded: {reason}; remove or repair the file", path.display())]
    Decode { path: PathBuf, reason: String },
    #[error("{}: {width}x{height} pixels{} cannot be cropped to {crop_width}x{crop_height}: resize the short side with --resize {}",
        path.display(), if *.resized { " after resizing" } else { "" }, crop_width.max(crop_height))]
    TooSmall { path: PathBuf, width: u32, height: u32, resized: bool, crop_width: u32, crop_height: u32 },
    #[error("{}, line {line}: {reason}; a line is the file's name, a space, and its class (0, 1, ...)", path.display())]
    LabelLine { path: PathBuf, line: usize, reason: String },
    #[error("{}: {reason}", path.display())]
    Labels { path: PathBuf, reason: String },
    #[error("{}, array {array:?}: {reason}", path.display())]
    Malformed { path: PathBuf, array: String, reason: String },
    #[error("{}: no whole .npz file ({reason}); was it cut short? Write it again with numpy.savez", path.display())]
    Archive { path: PathBuf, reason: String },
    #[error("{}: no array named {input:?} for that input of the model; it has {}", path.display(), have.join(", "))]
    MissingArray { path: PathBuf, input: String, have: Vec<String> },
    #[error("{}: an .npy file feeds a model of one input, this one has {}: use an .npz with these names", path.display(), inputs.join(", "))]
    NeedsNpz { path: PathBuf, inputs: Vec<String> },
    #[error("{}, array {array:?}: its shape is {shape:?}, the model's input of that name needs [samples{}]", path.display(),
        expected.iter().map(|d| format!(", {d}")).collect::<String>())]
    Shape { path: PathBuf, array: String, shape: Vec<usize>, expected: Vec<String> },
    #[error("{}, array {array:?}: {samples} samples, but {other:?} has {other_samples}", path.display())]
    Lengths { path: PathBuf, array: String, samples: usize, other: String, other_samples: usize },
    #[error("{}, array {array:?}, sample {sample}: {value} ({from}) has no exact value in the input's type {to}", path.display())]
    Lossy { path: PathBuf, array: String, sample: usize, value: String, from: &'static str, to: DType },
    #[error("{}, array {array:?}, sample {sample}: holds {value}; remove or repair the sample", path.display())]
    NonFinite { path: PathBuf, array: String, sample: usize, value: f64 },
    #[error("input {input:?} is {signature}: {reason}")]
    Input { input: String, signature: String, reason: String },
    #[error("the model has no input to feed")]
    NoInputs,
    #[error("{have} sample(s) do not fill one batch: the model's input {input:?} has a fixed batch of {batch}")]
    Batch { have: usize, input: String, batch: usize },
    #[error(
        "--mean has {mean} value(s) and --std {std}, input {input:?} has {channels} channel(s): give one value, or one per channel"
    )]
    Normalisation { mean: usize, std: usize, input: String, channels: usize },
    #[error("--{flag} {value}: {reason}")]
    Flag { flag: &'static str, value: String, reason: String },
    #[error("stopped as asked")]
    Stopped,
    #[error("{name}: {array:?} has {what} in one batch and {other} in another; all batches must be alike")]
    Batches { name: String, array: String, what: String, other: String },
    #[error("{name}: samples cannot be put aside in the folder for temporary files: {source}")]
    Spool { name: String, source: std::io::Error },
    #[error("sample {index} was asked for, there are {len}")]
    OutOfRange { index: usize, len: usize },
}
