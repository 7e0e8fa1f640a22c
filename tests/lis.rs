//! Emitted Log-Int-Softmax in tract gives the bits of its reference, in every variant.
#![cfg(feature = "tract")]

#[path = "support/lis_cases.rs"]
mod lis_cases;

use fqvit_opt::ir::DType;
use fqvit_opt::ir::validate::validate;
use fqvit_opt::onnx;
use fqvit_opt::runtime::{Array, Session, SessionOptions};
use lis_cases::Case;

fn run(c: &Case, model: &[u8]) -> Result<Vec<f32>, String> {
    let m = onnx::parse(model.to_vec().into(), None, &c.name).map_err(|e| e.to_string())?.model;
    let valid = validate(&m).map_err(|e| e.to_string())?;
    let session = Session::of(valid, &SessionOptions::default()).map_err(|e| e.to_string())?;
    let s = c.sizes;
    let array = |dims: &[usize], v: &[u8]| Array::new(dims, v.to_vec()).map_err(|e| e.to_string());
    let v_dims = [s.batch, s.heads, s.keys, s.width];
    let v = if c.v_type == DType::INT8 {
        Array::new(&v_dims, c.v.iter().map(|x| *x as i8).collect()).map_err(|e| e.to_string())?
    } else {
        array(&v_dims, &c.v)?
    };
    let mut given = vec![("scores", array(&[s.batch, s.heads, s.queries, s.keys], &c.scores)?)];
    if s.width > 0 {
        given.push(("v", v));
    }
    if let Some((dims, on)) = &c.mask {
        given.push(("mask", Array::new(dims, on.clone()).map_err(|e| e.to_string())?));
    }
    let out = session.run(&given).map_err(|e| e.to_string())?;
    Ok(out.outputs[0].f32s().into_owned())
}

#[test]
fn every_variant_has_the_bits_of_the_reference() {
    let cases = lis_cases::cases();
    assert!(cases.len() > 1000);
    let mut bad = Vec::new();
    for c in &cases {
        match run(c, &c.model) {
            Err(e) => bad.push(format!("{}: {e}", c.name)),
            Ok(y) => {
                let differ: Vec<usize> =
                    (0..c.expected.len()).filter(|i| y[*i].to_bits() != c.expected[*i].to_bits()).collect();
                if y.len() != c.expected.len() || !differ.is_empty() {
                    let i = differ.first().copied().unwrap_or(0);
                    let (n, of) = (differ.len(), y.len());
                    bad.push(format!("{}: {n} of {of} differ, [{i}] is {} for {}", c.name, y[i], c.expected[i]));
                }
            }
        }
    }
    assert!(bad.is_empty(), "{} of {} cases:\n{}", bad.len(), cases.len(), bad.join("\n"));
}

/// The codes are those of the reference, and the weights exact up to float32's rounding. One wrong code among 197 would be
/// off by some thousandths.
#[test]
fn a_softmax_of_the_codes_gives_what_the_codes_mean() {
    const REL: f32 = 2e-5;
    let cases = lis_cases::cases();
    let (mut bad, mut seen) = (Vec::new(), 0);
    for c in &cases {
        let Some((model, exact)) = &c.softmax else { continue };
        seen += 1;
        let reach = exact.iter().fold(0f32, |m, y| m.max(y.abs()));
        match run(c, model) {
            Err(e) => bad.push(format!("{}: {e}", c.name)),
            Ok(y) => {
                let off = y.iter().zip(exact).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
                if y.len() != exact.len() || off.is_nan() || off > REL * reach {
                    bad.push(format!("{}: off by {off}, reach {reach}", c.name));
                }
            }
        }
    }
    assert!(seen > 300, "{seen} cases");
    assert!(bad.is_empty(), "{} of {seen} cases:\n{}", bad.len(), bad.join("\n"));
}
