//! One definition of a number: the kernel that defines codes and the vectorised one that the runtime computes with agree on
//! every bit.

use fqvit_opt::quant::kernel::{dequantize, quantize};
use fqvit_opt::runtime::kernel::{Grain, Params};

/// Quotients on ties, one unit in the last place beside them, and far outside of the range.
fn values(scale: f32) -> Vec<f32> {
    let mut out = vec![0.0, -0.0, f32::MAX, f32::MIN, f32::MIN_POSITIVE, f32::INFINITY, f32::NEG_INFINITY];
    for k in -600..600 {
        let tie = (k as f32 + 0.5) * scale;
        out.extend([tie, tie.next_up(), tie.next_down(), k as f32 * scale, k as f32 * 0.37 * scale]);
    }
    out
}

#[test]
fn the_runtime_computes_what_the_definition_says() {
    for scale in [1.0, 0.1, 0.007_843_138, 3.0e-5, 17.3, 0.25] {
        let x = values(scale);
        for zero in [0, 1, 10, 127, 128, 254, 255] {
            let p = Params::new(Grain::Tensor, &[scale], &[zero], (0, 255)).unwrap();
            let (mut codes, mut back) = (vec![0u8; x.len()], vec![0f32; x.len()]);
            p.quantize(&[x.len()], &x, &mut codes).unwrap();
            p.dequantize(&[x.len()], &codes, &mut back).unwrap();
            for ((x, q), y) in x.iter().zip(codes).zip(back) {
                let want = quantize(*x, scale, zero, 0, 255);
                assert_eq!(i32::from(q), want, "code of {x:e} at scale {scale}, zero point {zero}");
                assert_eq!(y.to_bits(), dequantize(want, scale, zero).to_bits(), "value of code {q} at scale {scale}");
            }
        }
        let p = Params::new(Grain::Tensor, &[scale], &[0], (-127, 127)).unwrap();
        let mut codes = vec![0i8; x.len()];
        p.quantize(&[x.len()], &x, &mut codes).unwrap();
        for (x, q) in x.iter().zip(codes) {
            assert_eq!(i32::from(q), quantize(*x, scale, 0, -127, 127), "code of {x:e} at scale {scale}");
        }
    }
}
