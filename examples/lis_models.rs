//! Writes every Log-Int-Softmax conformance case to a folder, for `tests/lis_cross.py`:
//! `cargo run --release --no-default-features --example lis_models -- OUTDIR`

use std::path::PathBuf;
use std::process::ExitCode;

use ndarray::{ArrayD, IxDyn};
use ndarray_npy::{WriteNpyError, write_npy};

#[path = "../tests/support/lis_cases.rs"]
mod lis_cases;

use fqvit_opt::ir::DType;

fn main() -> ExitCode {
    let Some(dir) = std::env::args_os().nth(1).map(PathBuf::from) else {
        return ExitCode::from(2);
    };
    match write(&dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn write(dir: &std::path::Path) -> Result<(), WriteNpyError> {
    let io = |e: std::io::Error| WriteNpyError::Io(e);
    for c in lis_cases::cases() {
        let at = dir.join(&c.name);
        std::fs::create_dir_all(&at).map_err(io)?;
        std::fs::write(at.join("model.onnx"), &c.model).map_err(io)?;
        let s = c.sizes;
        let array = |dims: &[usize], v: Vec<u8>| ArrayD::from_shape_vec(IxDyn(dims), v).expect("sizes match");
        let v_dims = [s.batch, s.heads, s.keys, s.width];
        write_npy(at.join("scores.npy"), &array(&[s.batch, s.heads, s.queries, s.keys], c.scores))?;
        let v = array(&v_dims, c.v);
        // Without V the weights are the output.
        match c.v_type {
            _ if s.width == 0 => {}
            DType::INT8 => write_npy(at.join("v.npy"), &v.mapv(|x| x as i8))?,
            _ => write_npy(at.join("v.npy"), &v)?,
        }
        if let Some((dims, on)) = c.mask {
            let on = ArrayD::from_shape_vec(IxDyn(&dims), on).expect("sizes match");
            write_npy(at.join("mask.npy"), &on)?;
        }
        let y = ArrayD::from_shape_vec(IxDyn(&s.output()), c.expected);
        write_npy(at.join("expected.npy"), &y.expect("sizes match"))?;
    }
    Ok(())
}
