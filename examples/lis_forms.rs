//! Times the forms of Log-Int-Softmax against float Softmax and MatMul in tract, one thread, and writes the models so
//! that `benches/lis_forms.py` can do the same in onnxruntime:
//! `cargo run --release --example lis_forms -- OUTDIR`

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use fqvit_opt::ir::{DType, Model, validate::validate};
use fqvit_opt::quant::lis::standalone::{Sizes, float_model, model};
use fqvit_opt::quant::lis::{Anchor, Form, LisFacts, LisSpec};
use fqvit_opt::runtime::{Array, Session, SessionOptions};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let dir = std::env::args_os().nth(1).ok_or("usage: lis_forms OUTDIR")?;
    std::fs::create_dir_all(&dir)?;
    for heads in [3, 12, 16] {
        let sizes = Sizes { batch: 1, heads, queries: 197, keys: 197, width: 64 };
        let float = time(Path::new(&dir), &format!("float-{heads}"), &float_model(sizes, 17)?, sizes, true)?;
        let facts = LisFacts {
            score_scale: vec![0.1],
            v_scale: vec![0.02],
            v_zero: 128,
            v_type: DType::UINT8,
            keys: Some(197),
        };
        for (name, anchor, bits, form) in [
            ("max-planes", Anchor::Max, 4, Form::Planes),
            ("max-guard", Anchor::Max, 4, Form::Guard),
            ("max-6bit", Anchor::Max, 6, Form::Guard),
            ("sum-poly", Anchor::SumPoly, 4, Form::Guard),
            ("sum-iexp-planes", Anchor::SumIexp, 4, Form::Planes),
            ("sum-table", Anchor::SumTable, 4, Form::Guard),
        ] {
            let spec = LisSpec::new(anchor, bits)?.with_form(form);
            let m = model(&spec, &facts, sizes, None, 17)?;
            let t = time(Path::new(&dir), &format!("{name}-{heads}"), &m, sizes, false)?;
            writeln!(std::io::stdout(), "{heads:3} heads  {name:16} {:6.3} ms  {:5.2} x float", t, t / float)?;
        }
    }
    Ok(())
}

/// Writes the model and returns the shortest of its runs in milliseconds.
fn time(dir: &Path, name: &str, m: &Model, s: Sizes, float: bool) -> Result<f64, Failure> {
    let valid = validate(m)?;
    std::fs::write(dir.join(format!("{name}.onnx")), fqvit_opt::onnx::encode(valid))?;
    let session = Session::of(valid, &SessionOptions::default())?;
    let (x, v) = ([1, s.heads, s.queries, s.keys], [1, s.heads, s.keys, s.width]);
    let code = |i: usize| (i.wrapping_mul(2_654_435_761) >> 7) as u8;
    let make = |dims: &[usize; 4], scale: f32| {
        let codes: Vec<u8> = (0..dims.iter().product()).map(code).collect();
        if float {
            Array::new(dims, codes.iter().map(|c| f32::from(*c) * scale).collect())
        } else {
            Array::new(dims, codes)
        }
    };
    let given = [("scores", make(&x, 0.1)?), ("v", make(&v, 0.02)?)];
    let mut best = f64::MAX;
    for _ in 0..40 {
        let start = Instant::now();
        session.run(&given)?;
        best = best.min(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok(best)
}
