//! Message types generated from `proto/onnx.proto` by `build.rs`.

#![allow(missing_docs, clippy::all)]

include!(concat!(env!("OUT_DIR"), "/onnx.rs"));
