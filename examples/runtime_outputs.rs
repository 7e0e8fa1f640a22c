//! Runs a model once and writes its outputs: `runtime_outputs model.onnx inputs.npz outputs.npz`. Used by
//! `tests/cross_runtime.py` to compare with onnxruntime.

use std::fs::File;
use std::path::Path;

use fqvit_opt::ir::DType;
use fqvit_opt::ir::validate::validate;
use fqvit_opt::onnx;
use fqvit_opt::runtime::{Array, Session, SessionOptions};
use ndarray::{ArrayD, IxDyn};
use ndarray_npy::{NpzReader, NpzWriter};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, inputs, outputs, rest @ ..] = &args[..] else {
        return Err("usage: runtime_outputs MODEL INPUTS OUTPUTS [--as-written]".into());
    };
    let options = SessionOptions { optimize: !rest.iter().any(|a| a == "--as-written"), ..Default::default() };
    let model = onnx::load(Path::new(model))?.model;
    let session = Session::of(validate(&model)?, &options)?;
    let mut npz = NpzReader::new(File::open(inputs)?)?;
    let mut given: Vec<(&str, Array)> = vec![];
    for port in session.inputs() {
        let name = format!("{}.npy", port.name);
        macro_rules! read {
            ($ty:ty) => {
                Array::from(npz.by_name::<ndarray::OwnedRepr<$ty>, IxDyn>(&name)?)
            };
        }
        let array = match port.dtype {
            DType::FLOAT => read!(f32),
            DType::UINT8 => read!(u8),
            DType::INT8 => read!(i8),
            DType::INT32 => read!(i32),
            DType::UINT32 => read!(u32),
            other => return Err(format!("an input of type {other} is not read here").into()),
        };
        given.push((&port.name, array));
    }
    let out = session.run(&given)?;
    let mut npz = NpzWriter::new(File::create(outputs)?);
    for (port, array) in session.outputs().iter().zip(&out.outputs) {
        macro_rules! write {
            ($($variant:ident)*) => {
                match array {
                    $(Array::$variant(a) => npz.add_array(&port.name, a)?,)*
                    // NumPy has no half floats in this crate; widened.
                    Array::F16(a) => npz.add_array(&port.name, &a.mapv(f32::from) as &ArrayD<f32>)?,
                }
            };
        }
        write!(F32 F64 I64 I32 I16 I8 U64 U32 U16 U8 Bool);
    }
    npz.finish()?;
    Ok(())
}
