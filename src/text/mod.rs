//! The readable text form of a model: ONNX's own textual syntax (`onnx.parser` and `onnx.printer` read and write it).
//!
//! ```text
//! <ir_version: 8, opset_import: ["" : 17]>
//! mlp (float[batch,3] x) => (float[batch,4] y)
//!    <float[3,4] w = {...}, float[4] b = {1, 2, 3, 4}>
//! {
//!    h = MatMul (x, w)
//!    y = Add (h, b)
//! }
//! ```
//!
//! What ONNX's text cannot say has a form of its own: nested graphs and other encoded attributes are hexadecimal
//! strings with a kind (`body: graph = "0a1b"`), the outer values they read follow the inputs (`(c) @ (x, y)`), and
//! `functions: ["domain" : "name"]` in the header names model-local functions. In strings, `\n`, `\t` and `\xNN` mean
//! what they mean in most languages; ONNX's parser only knows `\"` and `\\`.
//!
//! Everything the IR carries as a rider stays out of the text.

mod elem;
pub mod lex;
mod parse;
mod print;

pub use lex::{ParseError, Span};
pub use parse::{parse_graph, parse_model};
pub use print::{print_graph, print_model};

pub use crate::ir::show::{Elide, node_line, type_text};

#[cfg(test)]
mod tests;
