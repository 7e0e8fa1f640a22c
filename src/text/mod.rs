//! The readable text form of a model: ONNX's own textual syntax.

pub mod lex;

pub use lex::{ParseError, Span};
