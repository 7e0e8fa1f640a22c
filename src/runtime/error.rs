use crate::ir::DType;

/// Why a model could not be loaded or run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuntimeError {
    #[error("not an ONNX file: {0}")]
    Decode(String),
    #[error("node '{node}': operator {domain}::{op} is outside the ONNX standard; nothing here can run it")]
    ForeignDomain { node: String, op: String, domain: String },
    #[error("node '{node}' calls {op}, a function defined in the model; inline the model's functions first")]
    LocalFunction { node: String, op: String },
    #[error("node '{node}': operator {op} cannot be run here: {why}")]
    Unsupported { node: String, op: String, why: String },
    #[error("tensor '{tensor}': {why}")]
    Tensor { tensor: String, why: String },
    #[error("no value is called '{0}' in the main graph; a tap must name a node output, graph input or initializer")]
    UnknownValue(String),
    #[error("the model has no input called '{name}'; its inputs are {known:?}")]
    UnknownInput { name: String, known: Vec<String> },
    #[error("input '{0}' was not given")]
    MissingInput(String),
    #[error("input '{0}' was given twice")]
    RepeatedInput(String),
    #[error("input '{input}': size {axis} ({dim}) is not fixed by the model; give the whole shape of this input")]
    OpenDim { input: String, axis: usize, dim: String },
    #[error("input '{input}' has shape {declared}; {given:?} does not fit it")]
    InputShape { input: String, declared: String, given: Vec<usize> },
    #[error("input '{input}' has elements of type {expected}, not {given}")]
    InputType { input: String, expected: DType, given: DType },
    #[error("value '{value}' has elements of a type that cannot be handed out ({dtype})")]
    OutputType { value: String, dtype: String },
    #[error(
        "tract, which runs models here, cannot {action} the model: {message}; if onnxruntime runs it, report it, otherwise \
         export it again"
    )]
    Engine { action: &'static str, message: String },
    #[error(
        "tract, which runs models here, failed while it tried to {action} the model: {message}; if onnxruntime runs it, \
         report it, otherwise export it again"
    )]
    Panicked { action: &'static str, message: String },
}
