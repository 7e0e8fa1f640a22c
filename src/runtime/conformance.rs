//! What this project relies on in tract, one test each. A failure after an upgrade of tract says which habit changed.

use prost::Message;
use tract_onnx::pb;

use super::build::{Build, Value};
use super::{Array, Outputs, RuntimeError, Session, SessionOptions};
use crate::ir::validate::validate;
use crate::ir::{DType, Dim, Tensor as Constant};
use crate::text::parse_model;

fn f32s(dims: &[usize], x: &[f32]) -> Array {
    Array::new(dims, x.to_vec()).unwrap()
}

fn u8s(dims: &[usize], x: &[u8]) -> Array {
    Array::new(dims, x.to_vec()).unwrap()
}

/// Numbers spread over -range..range, the same on every machine.
fn noise(n: usize, range: f32) -> Vec<f32> {
    (0..n as u32).map(|i| (i.wrapping_mul(2654435761) >> 8) as f32 / (1 << 23) as f32 * range - range).collect()
}

fn quantize(x: f32, s: f32, z: i32, lo: i32, hi: i32) -> i32 {
    ((x / s).round_ties_even() as i32).saturating_add(z).clamp(lo, hi)
}

fn softmax_chain() -> Vec<u8> {
    Build::new(17)
        .input("x", DType::UINT8, &["2", "5"])
        .scalars(&[("s", 0.1), ("t", 1.0 / 256.0)])
        .constant("z", Constant::u8(&[], &[128]))
        .constant("z0", Constant::u8(&[], &[0]))
        .node("a = DequantizeLinear(x, s, z)", &[])
        .node("b = Softmax(a)", &[("axis", Value::Int(-1))])
        .node("y = QuantizeLinear(b, t, z0)", &[])
        .bytes(&["y"])
}

const SOFTMAX_IN: [u8; 10] = [100, 120, 140, 160, 130, 0, 255, 250, 128, 245];

fn softmax_codes() -> Vec<u8> {
    let mut out = vec![];
    for row in SOFTMAX_IN.chunks(5) {
        let e: Vec<f64> = row.iter().map(|q| ((*q as f64 - 128.0) * 0.1).exp()).collect();
        let sum: f64 = e.iter().sum();
        out.extend(e.iter().map(|e| (e / sum * 256.0).round_ties_even().min(255.0) as u8));
    }
    out
}

/// Fact 2, tract's defect. When this fails tract has been mended and its own operators may be looked at again.
/// See `leave_amx_alone`: the kernel reads past the end of its operand.
#[cfg(target_arch = "x86_64")]
#[test]
fn the_amx_kernel_is_out_of_the_choice() {
    use tract_linalg::isa::{Isa, native};
    let relu = Build::new(17).input("x", DType::FLOAT, &["2"]).node("y = Relu(x)", &[]).bytes(&["y"]);
    Session::of_bytes(&relu, None, &SessionOptions::default()).unwrap();
    assert!(!native().has(Isa::X86_64AmxInt8));
}

#[test]
fn tracts_own_operators_make_a_table_of_a_softmax() {
    let stock = Session::with_operators(&tract_onnx::onnx(), &softmax_chain(), None, &SessionOptions::default());
    let wrong = match stock.and_then(|s| s.run(&[("x", u8s(&[2, 5], &SOFTMAX_IN))])) {
        Ok(out) => out.outputs[0].values::<u8>().unwrap()[..] != softmax_codes(),
        Err(_) => true,
    };
    assert!(wrong);
}

/// Fact 2, ours.
#[test]
fn a_softmax_between_codes_is_right() {
    let session = Session::of_bytes(&softmax_chain(), None, &SessionOptions::default()).unwrap();
    let out = session.run(&[("x", u8s(&[2, 5], &SOFTMAX_IN))]).unwrap();
    assert_eq!(out.outputs[0].values::<u8>().unwrap()[..], softmax_codes());
}

/// Fact 3: unsigned in, signed out.
#[test]
fn codes_may_change_their_sign() {
    let b = Build::new(17)
        .input("x", DType::UINT8, &["4"])
        .scalars(&[("s", 0.5), ("t", 0.25)])
        .constant("z", Constant::u8(&[], &[10]))
        .constant("z0", Constant::i8(&[], &[-3]))
        .node("a = DequantizeLinear(x, s, z)", &[])
        .node("b = Relu(a)", &[])
        .node("y = QuantizeLinear(b, t, z0)", &[]);
    let y = b.run(&["y"], &[("x", u8s(&[4], &[0, 10, 12, 255]))]);
    assert_eq!(y[0].values::<i8>().unwrap()[..], [-3, -3, 1, 127]);
}

/// Facts 1 and 10: every axis, also counted from the end, every type of codes, quotients and not products.
#[test]
fn quantize_and_dequantize_per_axis() {
    let x = noise(2 * 3 * 4, 60.0);
    let zeros = [7, 100, 50, 0];
    for (axis, n) in [(0i64, 2usize), (1, 3), (2, 4), (-1, 4), (-3, 2)] {
        let scale: Vec<f32> = (0..n).map(|i| 0.37 + 0.11 * i as f32).collect();
        let real = (axis + 3) as usize % 3;
        let inner: usize = [2, 3, 4][real + 1..].iter().product();
        let n64 = n as i64;
        let z8: Vec<i8> = zeros[..n].iter().map(|z| (*z - 60) as i8).collect();
        let z16: Vec<u16> = zeros[..n].iter().map(|z| (*z * 300) as u16).collect();
        let zu: Vec<u8> = zeros[..n].iter().map(|z| *z as u8).collect();
        let attr = || [("axis", Value::Int(axis))];
        let y = Build::new(21)
            .input("x", DType::FLOAT, &["2", "3", "4"])
            .constant("s", Constant::f32(&[n64], &scale))
            .constant("zu", Constant::u8(&[n64], &zu))
            .constant("z8", Constant::i8(&[n64], &z8))
            .constant("z16", Constant::u16(&[n64], &z16))
            .node("a = QuantizeLinear(x, s, zu)", &attr())
            .node("b = QuantizeLinear(x, s, z8)", &attr())
            .node("c = QuantizeLinear(x, s, z16)", &attr())
            .node("d = DequantizeLinear(a, s, zu)", &attr())
            .run(&["a", "b", "c", "d"], &[("x", f32s(&[2, 3, 4], &x))]);
        for (i, x) in x.iter().enumerate() {
            let c = i / inner % n;
            let a = quantize(*x, scale[c], zu[c] as i32, 0, 255);
            assert_eq!(y[0].values::<u8>().unwrap()[i] as i32, a);
            assert_eq!(y[1].values::<i8>().unwrap()[i] as i32, quantize(*x, scale[c], z8[c] as i32, -128, 127));
            assert_eq!(y[2].values::<u16>().unwrap()[i] as i32, quantize(*x, scale[c], z16[c] as i32, 0, 65535));
            assert_eq!(y[3].f32s()[i], (a - zu[c] as i32) as f32 * scale[c]);
        }
    }
}

/// Fact 10: at a tie, the quotient decides. tract's own operator takes the other code.
#[test]
fn ties_fall_as_a_division_has_them() {
    let s = 0.37f32;
    let x: Vec<f32> = (0..250).map(|i| (i as f32 + 0.5) * s).collect();
    let want: Vec<u8> = x.iter().map(|x| quantize(*x, s, 0, 0, 255) as u8).collect();
    let build = || {
        Build::new(13)
            .input("x", DType::FLOAT, &["250"])
            .scalars(&[("s", s)])
            .constant("z", Constant::u8(&[], &[0]))
            .node("y = QuantizeLinear(x, s, z)", &[])
    };
    let given = [("x", f32s(&[250], &x))];
    assert_eq!(build().run(&["y"], &given)[0].values::<u8>().unwrap()[..], want);
    let stock = Session::with_operators(&tract_onnx::onnx(), &build().bytes(&["y"]), None, &SessionOptions::default());
    assert_ne!(stock.unwrap().run(&given).unwrap().outputs[0].values::<u8>().unwrap()[..], want);
}

/// Fact 5: weights dequantize once, above 4 MiB too, and after a Transpose.
#[test]
fn constant_weights_are_folded_whatever_their_size() {
    let n = 1200usize;
    let w: Vec<i8> = (0..n * n).map(|i| (i * 31 % 255) as i8).collect();
    let scale: Vec<f32> = (0..n).map(|i| 0.01 + i as f32 * 1e-5).collect();
    for transpose in [false, true] {
        let b = Build::new(13)
            .input("x", DType::FLOAT, &["1", "1200"])
            .constant("w", Constant::i8(&[1200, 1200], &w))
            .constant("s", Constant::f32(&[1200], &scale));
        let b = if transpose {
            b.node("t = Transpose(w)", &[("perm", Value::Ints(vec![1, 0]))])
                .node("d = DequantizeLinear(t, s)", &[("axis", Value::Int(1))])
        } else {
            b.node("d = DequantizeLinear(w, s)", &[("axis", Value::Int(1))])
        };
        let bytes = b.node("y = MatMul(x, d)", &[]).bytes(&["y"]);
        let session = Session::of_bytes(&bytes, None, &SessionOptions::default()).unwrap();
        assert_eq!(session.count_of("Dequantize"), 0, "transpose: {transpose}");
        let mut x = vec![0f32; n];
        x[5] = 1.0;
        let y = session.run(&[("x", f32s(&[1, n], &x))]).unwrap().outputs[0].f32s().into_owned();
        for (j, y) in y.iter().enumerate() {
            let q = if transpose { w[j * n + 5] } else { w[5 * n + j] };
            assert_eq!(*y, q as f32 * scale[j]);
        }
    }
}

/// Blocked scales and 4-bit constants, which tract has neither of.
#[test]
fn four_bit_weights_with_blocked_scales() {
    // [4, 2], blocks of 2 along axis 0: scales [2, 2].
    let nibbles: Vec<i64> = vec![-8, 7, 1, -1, 3, -4, 0, 5];
    let packed: Vec<u8> = nibbles.chunks(2).map(|p| (p[0] as u8 & 15) | (p[1] as u8) << 4).collect();
    let scale = [0.5, 2.0, 4.0, 0.25];
    let y = Build::new(21)
        .input("x", DType::FLOAT, &["4", "2"])
        .constant("w", Constant::raw(DType::INT4, &[4, 2], packed))
        .constant("s", Constant::f32(&[2, 2], &scale))
        .node("d = DequantizeLinear(w, s)", &[("axis", Value::Int(0)), ("block_size", Value::Int(2))])
        .node("y = Add(x, d)", &[])
        .run(&["y"], &[("x", f32s(&[4, 2], &[0.0; 8]))]);
    let want: Vec<f32> = (0..8).map(|i| nibbles[i] as f32 * scale[i / 4 * 2 + i % 2]).collect();
    assert_eq!(y[0].f32s()[..], want);
}

/// Codes of 4 bits saturate at 4 bits, whether the zero point or the attribute says so.
#[test]
fn four_bit_codes_saturate() {
    let x = [-9.0, -8.0, 0.5, 6.0, 7.4, 20.0];
    let y = Build::new(21)
        .input("x", DType::FLOAT, &["6"])
        .scalars(&[("s", 1.0)])
        .constant("z", Constant::raw(DType::UINT4, &[], vec![3u8]))
        .node("a = QuantizeLinear(x, s)", &[("output_dtype", Value::Int(DType::INT4.0 as i64))])
        .node("b = QuantizeLinear(x, s, z)", &[])
        .run(&["a", "b"], &[("x", f32s(&[6], &x))]);
    assert_eq!(y[0].values::<i8>().unwrap()[..], [-8, -8, 0, 6, 7, 7]);
    assert_eq!(y[1].values::<u8>().unwrap()[..], [0, 0, 3, 9, 10, 15]);
}

/// Fact 8: tract's own takes uint8 here.
#[test]
fn output_dtype_without_a_zero_point() {
    let y = Build::new(21)
        .input("x", DType::FLOAT, &["3"])
        .scalars(&[("s", 1.0)])
        .node("y = QuantizeLinear(x, s)", &[("output_dtype", Value::Int(DType::INT8.0 as i64))])
        .run(&["y"], &[("x", f32s(&[3], &[-200.0, -1.5, 2.5]))]);
    assert_eq!(y[0].values::<i8>().unwrap()[..], [-128, -2, 2]);
}

/// Fact 6, tract's pitfall, and the form that is exact.
#[test]
fn squares_of_one_tensor_go_through_floats() {
    let x = Array::new(&[2], vec![5001i32, -46340]).unwrap();
    let exact = Build::new(13)
        .input("x", DType::INT32, &["2"])
        .input("x2", DType::INT32, &["2"])
        .node("y = Mul(x, x2)", &[])
        .run(&["y"], &[("x", x.clone()), ("x2", x.clone())]);
    assert_eq!(exact[0].values::<i32>().unwrap()[..], [25_010_001, 2_147_395_600]);
    let bytes = Build::new(13).input("x", DType::INT32, &["2"]).node("y = Mul(x, x)", &[]).bytes(&["y"]);
    let y = Session::of_bytes(&bytes, None, &SessionOptions::default()).unwrap().run(&[("x", x)]).unwrap();
    assert_ne!(y.outputs[0].values::<i32>().unwrap()[0], 25_010_001, "tract squares exactly now");
}

/// Fact 7. onnxruntime wraps where tract saturates, so emitted graphs clip first.
#[test]
fn casts_of_floats() {
    let x = [-3.0, 0.9, 2.7, 254.99, 255.0];
    let to = |t: DType| [("to", Value::Int(t.0 as i64))];
    let y = Build::new(13)
        .input("x", DType::FLOAT, &["5"])
        .scalars(&[("lo", 0.0), ("hi", 31.0)])
        .node("c = Clip(x, lo, hi)", &[])
        .node("a = Cast(c)", &to(DType::UINT32))
        .node("b = Cast(c)", &to(DType::UINT8))
        .node("i = Cast(x)", &to(DType::INT32))
        .run(&["a", "b", "i"], &[("x", f32s(&[5], &x))]);
    assert_eq!(y[0].values::<u32>().unwrap()[..], [0, 0, 2, 31, 31]);
    assert_eq!(y[1].values::<u8>().unwrap()[..], [0, 0, 2, 31, 31]);
    assert_eq!(y[2].values::<i32>().unwrap()[..], [-3, 0, 2, 254, 255]);
    let y = Build::new(13)
        .input("x", DType::FLOAT, &["2"])
        .node("y = Cast(x)", &to(DType::UINT8))
        .run(&["y"], &[("x", f32s(&[2], &[-3.0, 300.0]))]);
    assert_eq!(y[0].values::<u8>().unwrap()[..], [0, 255]);
}

/// The low byte of a code word: integers wrap in a cast.
#[test]
fn casts_between_integers_take_the_low_byte() {
    let y = Build::new(13)
        .input("x", DType::UINT32, &["4"])
        .node("y = Cast(x)", &[("to", Value::Int(DType::UINT8.0 as i64))])
        .run(&["y"], &[("x", Array::new(&[4], vec![0u32, 255, 256, 0x1234]).unwrap())]);
    assert_eq!(y[0].values::<u8>().unwrap()[..], [0, 255, 0, 0x34]);
}

/// Facts 7 and 8: shifts below the width are plain; the codes' shift from 16384 by up to 31 gives 0 from 15 on.
#[test]
fn shifts() {
    let counts: Vec<u32> = (0..32).collect();
    let y = Build::new(13)
        .input("c", DType::UINT32, &["32"])
        .constant("one", Constant::u32(&[], &[16384]))
        .constant("eight", Constant::u32(&[], &[8]))
        .node("y = BitShift(one, c)", &[("direction", Value::Str("RIGHT"))])
        .node("l = BitShift(y, eight)", &[("direction", Value::Str("LEFT"))])
        .run(&["y", "l"], &[("c", Array::new(&[32], counts).unwrap())]);
    let want: Vec<u32> = (0..32).map(|c| 16384u32 >> c).collect();
    assert_eq!(y[0].values::<u32>().unwrap()[..], want);
    assert_eq!(y[1].values::<u32>().unwrap()[..], want.iter().map(|w| w << 8).collect::<Vec<_>>());
    let y = Build::new(13)
        .input("x", DType::UINT8, &["3"])
        .constant("c", Constant::u8(&[3], &[0, 3, 7]))
        .node("y = BitShift(x, c)", &[("direction", Value::Str("RIGHT"))])
        .run(&["y"], &[("x", u8s(&[3], &[255, 255, 255]))]);
    assert_eq!(y[0].values::<u8>().unwrap()[..], [255, 31, 1]);
}

/// The guard of the log-int-softmax: an addition and a subtraction of the same number are not the identity.
#[test]
fn add_subtract_pairs_are_kept() {
    let x = [0.3f32, 3.7, 2.5, 3.5, 1000.49];
    let y = Build::new(13)
        .input("x", DType::FLOAT, &["5"])
        .input("r", DType::FLOAT, &["5"])
        .scalars(&[("m", 8_388_608.0)])
        .node("a = Add(x, m)", &[])
        .node("y = Sub(a, m)", &[])
        .node("k = Mul(r, m)", &[])
        .node("b = Add(r, k)", &[])
        .node("p = Sub(b, k)", &[])
        .run(&["y", "p"], &[("x", f32s(&[5], &x)), ("r", f32s(&[5], &[3.0, 5.0, 6.5, 49152.0, 100.0]))]);
    assert_eq!(y[0].f32s()[..], [0.0, 4.0, 2.0, 4.0, 1000.0]);
    let want: Vec<f32> = [3f32, 5.0, 6.5, 49152.0, 100.0]
        .iter()
        .map(|r| {
            let k = std::hint::black_box(r * 8_388_608.0);
            std::hint::black_box(r + k) - k
        })
        .collect();
    assert_eq!(y[1].f32s()[..], want);
}

/// Zero points on both sides, batch dimensions, one side broadcast.
#[test]
fn integer_products() {
    let a: Vec<u8> = (0..2 * 3 * 5).map(|i| (i * 37 % 256) as u8).collect();
    let b: Vec<i8> = (0..5 * 4).map(|i| (i * 53 % 256) as u8 as i8).collect();
    let y = Build::new(13)
        .input("a", DType::UINT8, &["2", "3", "5"])
        .constant("b", Constant::i8(&[5, 4], &b))
        .constant("za", Constant::u8(&[], &[130]))
        .constant("zb", Constant::i8(&[], &[-7]))
        .node("y = MatMulInteger(a, b, za, zb)", &[])
        .node("n = MatMulInteger(a, b)", &[])
        .run(&["y", "n"], &[("a", u8s(&[2, 3, 5], &a))]);
    for (out, (za, zb)) in y.iter().zip([(130, -7), (0, 0)]) {
        for (i, got) in out.values::<i32>().unwrap().iter().enumerate() {
            let (row, col) = (i / 4, i % 4);
            let want: i32 = (0..5).map(|k| (a[row * 5 + k] as i32 - za) * (b[k * 4 + col] as i32 - zb)).sum();
            assert_eq!(*got, want);
        }
    }
}

/// A batch on both sides, as in attention, u8 by u8: the largest products do not saturate.
#[test]
fn integer_products_of_two_batches() {
    let y = Build::new(13)
        .input("a", DType::UINT8, &["2", "1", "64"])
        .input("b", DType::UINT8, &["2", "64", "1"])
        .node("y = MatMulInteger(a, b)", &[])
        .run(&["y"], &[("a", u8s(&[2, 1, 64], &[255; 128])), ("b", u8s(&[2, 64, 1], &[255; 128]))]);
    assert_eq!(y[0].values::<i32>().unwrap()[..], [64 * 255 * 255; 2]);
}

/// One rounding, not an estimate.
#[test]
fn reciprocals_are_exact() {
    let x: Vec<f32> = (1..5000).map(|i| i as f32 * 1.37).collect();
    let y = Build::new(13)
        .input("x", DType::FLOAT, &["4999"])
        .node("y = Reciprocal(x)", &[])
        .run(&["y"], &[("x", f32s(&[4999], &x))]);
    assert!(x.iter().zip(y[0].f32s().iter()).all(|(x, y)| (1.0 / x).to_bits() == y.to_bits()));
}

#[test]
fn largest_code_of_a_row() {
    let x = [3u8, 200, 7, 255, 0, 128];
    for dtype in [DType::UINT8, DType::INT32, DType::FLOAT] {
        let y = Build::new(13)
            .input("x", DType::UINT8, &["2", "3"])
            .node("c = Cast(x)", &[("to", Value::Int(dtype.0 as i64))])
            .node("y = ReduceMax(c)", &[("axes", Value::Ints(vec![-1])), ("keepdims", Value::Int(1))])
            .run(&["y"], &[("x", u8s(&[2, 3], &x))]);
        assert_eq!((y[0].dtype(), y[0].dims()), (dtype, &[2usize, 1][..]));
        assert_eq!(y[0].f32s()[..], [200.0, 255.0]);
    }
}

fn erf(x: f64) -> f64 {
    // Maclaurin series; plenty for |x| < 5.
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / n as f64;
        sum += term / (2 * n + 1) as f64;
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

#[test]
fn layer_norm_and_gelu() {
    let x = noise(2 * 8, 4.0);
    let gamma: Vec<f32> = (0..8).map(|i| 0.5 + i as f32 * 0.1).collect();
    let beta: Vec<f32> = (0..8).map(|i| i as f32 * 0.05 - 0.2).collect();
    let bytes = Build::new(20)
        .input("x", DType::FLOAT, &["2", "8"])
        .constant("g", Constant::f32(&[8], &gamma))
        .constant("b", Constant::f32(&[8], &beta))
        .node("n = LayerNormalization(x, g, b)", &[("axis", Value::Int(-1)), ("epsilon", Value::Float(1e-5))])
        .node("e = Gelu(x)", &[])
        .node("t = Gelu(x)", &[("approximate", Value::Str("tanh"))])
        .bytes(&["n", "e", "t"]);
    let y = Session::of_bytes(&bytes, None, &SessionOptions::default()).unwrap();
    let y = y.run(&[("x", f32s(&[2, 8], &x))]).unwrap().outputs;
    for (i, v) in x.iter().enumerate() {
        let row: Vec<f64> = x[i / 8 * 8..i / 8 * 8 + 8].iter().map(|x| *x as f64).collect();
        let mean = row.iter().sum::<f64>() / 8.0;
        let var = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 8.0;
        let v = *v as f64;
        let norm = (v - mean) / (var + 1e-5).sqrt() * gamma[i % 8] as f64 + beta[i % 8] as f64;
        let exact = v * 0.5 * (1.0 + erf(v / std::f64::consts::SQRT_2));
        let tanh = 0.5 * v * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (v + 0.044715 * v.powi(3))).tanh());
        for (name, got, want) in [("norm", &y[0], norm), ("erf", &y[1], exact), ("tanh", &y[2], tanh)] {
            assert!((got.f32s()[i] as f64 - want).abs() < 1e-5, "{name} {v}: {} {want}", got.f32s()[i]);
        }
    }
}

/// Fact 9.
#[test]
fn what_tract_would_misread_is_refused() {
    let load = |b: Build| Session::of_bytes(&b.bytes(&["y"]), None, &SessionOptions::default()).unwrap_err();
    let start = || Build::new(17).input("x", DType::FLOAT, &["2"]);
    let foreign = load(start().node("y = com.acme::Relu(x)", &[]));
    assert!(
        matches!(&foreign, RuntimeError::ForeignDomain { node, op, domain } if node == "node_y" && op == "Relu" && domain == "com.acme"),
        "{foreign}"
    );
    let unknown = load(start().node("y = QLinearSoftmax(x)", &[]));
    assert!(matches!(&unknown, RuntimeError::Unsupported { op, .. } if op == "QLinearSoftmax"), "{unknown}");
    // Inside a subgraph, too.
    let inner = start().node("z = com.acme::Relu(x)", &[]).graph;
    let nested = load(start().node("y = If(x)", &[("then_branch", Value::Graph(inner))]));
    assert!(matches!(&nested, RuntimeError::ForeignDomain { .. }), "{nested}");
    // `ai.onnx` is the standard domain's other name.
    let same = start().node("y = ai.onnx::Relu(x)", &[]).run(&["y"], &[("x", f32s(&[2], &[-1.0, 2.0]))]);
    assert_eq!(same[0].f32s()[..], [0.0, 2.0]);
    let mut proto = start().node("y = Relu(x)", &[]).proto();
    proto.functions = vec![pb::FunctionProto { name: Some("Relu".into()), ..Default::default() }];
    let local = Session::of_bytes(&proto.encode_to_vec(), None, &SessionOptions::default()).unwrap_err();
    assert!(matches!(&local, RuntimeError::LocalFunction { op, .. } if op == "Relu"), "{local}");
    assert!(matches!(Session::of_bytes(b"\xff\xff", None, &SessionOptions::default()), Err(RuntimeError::Decode(_))));
}

/// uint32 constants in their own typed field, which tract does not read.
#[test]
fn typed_unsigned_constants() {
    let mut b = Build::new(13).input("x", DType::UINT32, &["2"]).node("y = Add(x, c)", &[]);
    b.graph.initializer.push(pb::TensorProto {
        name: "c".into(),
        dims: vec![2],
        data_type: DType::UINT32.0,
        uint64_data: vec![1, u32::MAX as u64 - 10],
        ..Default::default()
    });
    let y = b.run(&["y"], &[("x", Array::new(&[2], vec![4u32, 5]).unwrap())]);
    assert_eq!(y[0].values::<u32>().unwrap()[..], [5, u32::MAX - 5]);
}

fn small_net() -> Build {
    Build::new(17)
        .input("x", DType::FLOAT, &["batch", "4"])
        .constant("w", Constant::f32(&[4, 3], &noise(12, 1.0)))
        .constant("b", Constant::f32(&[3], &[0.1, -0.2, 0.3]))
        .node("h = MatMul(x, w)", &[])
        .node("k = Add(h, b)", &[])
        .node("r = Relu(k)", &[])
        .node("y = Softmax(r)", &[("axis", Value::Int(-1))])
}

fn tapped(optimize: bool, batch: usize, taps: &[&str]) -> (Session, Outputs) {
    let taps = taps.iter().map(|t| t.to_string()).collect();
    let options = SessionOptions { batch, taps, optimize, ..Default::default() };
    let session = Session::of_bytes(&small_net().bytes(&["y"]), None, &options).unwrap();
    let out = session.run(&[("x", f32s(&[batch, 4], &noise(batch * 4, 2.0)))]).unwrap();
    (session, out)
}

/// Fact 12: inner values, inputs, outputs and constants can be tapped, repeats included, and taps change nothing.
#[test]
fn taps_come_back_by_name_and_change_nothing() {
    let (session, out) = tapped(true, 2, &["k", "x", "y", "b", "k"]);
    let (_, written) = tapped(false, 2, &["k", "x", "y", "b", "k"]);
    let (_, bare) = tapped(true, 2, &[]);
    assert_eq!(out, written);
    assert_eq!(out.outputs, bare.outputs);
    assert_eq!(session.taps(), ["k", "x", "y", "b", "k"]);
    assert_eq!((&out.taps[0], &out.taps[2]), (&out.taps[4], &out.outputs[0]));
    assert_eq!(out.taps[1].f32s()[..], noise(8, 2.0));
    assert_eq!(out.taps[3].f32s()[..], [0.1, -0.2, 0.3]);
    assert_eq!(session.outputs()[0].dims.as_deref(), Some(&[2usize, 3][..]));
    // An input that is an output at the same time.
    let through = small_net().run(&["x", "y"], &[("x", f32s(&[1, 4], &noise(4, 2.0)))]);
    assert_eq!(through[0].f32s()[..], noise(4, 2.0));
    let gone = SessionOptions { taps: vec!["nowhere".into()], ..Default::default() };
    let e = Session::of_bytes(&small_net().bytes(&["y"]), None, &gone).unwrap_err();
    assert_eq!(e, RuntimeError::UnknownValue("nowhere".into()));
}

#[test]
fn wrong_inputs_are_named() {
    let (session, _) = tapped(true, 2, &[]);
    assert_eq!(session.inputs()[0].declared, [Dim::Symbol("batch".into()), Dim::Known(4)]);
    assert_eq!(session.inputs()[0].dims.as_deref(), Some(&[2usize, 4][..]));
    let good = f32s(&[2, 4], &[0.0; 8]);
    assert!(matches!(session.run::<String>(&[]), Err(RuntimeError::MissingInput(n)) if n == "x"));
    assert!(matches!(session.run(&[("z", good.clone())]), Err(RuntimeError::UnknownInput { .. })));
    assert!(matches!(session.run(&[("x", good.clone()), ("x", good)]), Err(RuntimeError::RepeatedInput(_))));
    assert!(matches!(session.run(&[("x", f32s(&[1, 4], &[0.0; 4]))]), Err(RuntimeError::InputShape { .. })));
    assert!(matches!(session.run(&[("x", u8s(&[2, 4], &[0; 8]))]), Err(RuntimeError::InputType { .. })));
}

#[test]
fn open_sizes_are_fixed_or_asked_for() {
    let build = || {
        Build::new(17)
            .input("x", DType::FLOAT, &["batch", "seq"])
            .input("m", DType::FLOAT, &["1", "seq"])
            .node("y = Add(x, m)", &[])
            .bytes(&["y"])
    };
    let e = Session::of_bytes(&build(), None, &SessionOptions::default()).unwrap_err();
    assert!(e.to_string().contains("seq"), "{e}");
    // The shape of one input binds the symbol for the other.
    let shapes = |n| vec![("x".to_string(), vec![3, n])];
    let s = Session::of_bytes(&build(), None, &SessionOptions { shapes: shapes(5), ..Default::default() }).unwrap();
    assert_eq!(s.inputs()[1].dims.as_deref(), Some(&[1usize, 5][..]));
    let clash = [shapes(5), vec![("m".to_string(), vec![1, 6])]].concat();
    let e = Session::of_bytes(&build(), None, &SessionOptions { shapes: clash, ..Default::default() }).unwrap_err();
    assert!(matches!(e, RuntimeError::InputShape { .. }), "{e}");
}

/// Sessions are shared, and a run has the same bits on every thread.
#[test]
fn one_session_on_several_threads() {
    let (session, _) = tapped(true, 1, &["k"]);
    let run = |i: usize| session.run(&[("x", f32s(&[1, 4], &noise(4 + i, 2.0)[i..]))]).unwrap();
    let alone: Vec<Outputs> = (0..40).map(run).collect();
    assert_eq!(super::map_samples(40, 4, run), alone);
}

/// tract's Div by an integer zero panics; the caller gets an error.
#[test]
fn a_panic_in_tract_is_an_error() {
    let bytes = Build::new(13)
        .input("x", DType::INT32, &["1"])
        .input("d", DType::INT32, &["1"])
        .node("y = Div(x, d)", &[])
        .bytes(&["y"]);
    let session = Session::of_bytes(&bytes, None, &SessionOptions::default()).unwrap();
    let int = |x: i32| Array::new(&[1], vec![x]).unwrap();
    assert!(matches!(session.run(&[("x", int(1)), ("d", int(0))]), Err(RuntimeError::Panicked { .. })));
    assert!(session.run(&[("x", int(6)), ("d", int(3))]).is_ok());
}

/// Fact 14: of a boolean mask, tract's Attention makes zeros and ones, and adds them to the scores. The standard leaves out
/// what is false, so the session refuses such a node where types are known.
#[test]
fn attention_reads_a_boolean_mask_as_numbers() {
    let text = r#"<ir_version: 10, opset_import: ["" : 23]>
        g (float[1,1,2,4] q, float[1,1,3,4] k, float[1,1,3,4] v, bool[2,3] keep) => (float[1,1,2,4] y) {
            y = Attention <scale = 1.0> (q, k, v, keep)
        }"#;
    let m = parse_model(text).unwrap();
    let valid = validate(&m).unwrap();
    let refused = Session::of(valid, &SessionOptions::default()).map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains("Attention") && refused.contains("boolean mask"), "{refused}");

    let keep = [true, false, true, false, true, true];
    let inputs = [
        ("q".to_owned(), f32s(&[1, 1, 2, 4], &noise(8, 2.0))),
        ("k".to_owned(), f32s(&[1, 1, 3, 4], &noise(12, 1.0))),
        ("v".to_owned(), f32s(&[1, 1, 3, 4], &noise(12, 3.0))),
        ("keep".to_owned(), Array::new(&[2, 3], keep.to_vec()).unwrap()),
    ];
    // With all of them left out but one, the weights are zeros and a one.
    let session = Session::of_bytes(&crate::onnx::encode(valid), None, &SessionOptions::default()).unwrap();
    let y = session.run(&inputs).unwrap().outputs.remove(0);
    let scores = |row: usize, key: usize| -> f32 {
        (0..4).map(|i| noise(8, 2.0)[row * 4 + i] * noise(12, 1.0)[key * 4 + i]).sum()
    };
    let weighed = |score: &dyn Fn(usize, usize) -> f32| -> Vec<f32> {
        let v = noise(12, 3.0);
        (0..2)
            .flat_map(|row| {
                let e: Vec<f32> = (0..3).map(|key| score(row, key).exp()).collect();
                let sum: f32 = e.iter().sum();
                let v = &v;
                (0..4).map(move |i| (0..3).map(|key| e[key] / sum * v[key * 4 + i]).sum()).collect::<Vec<f32>>()
            })
            .collect()
    };
    let standard = weighed(&|row, key| if keep[row * 3 + key] { scores(row, key) } else { f32::NEG_INFINITY });
    let far = y.f32s().iter().zip(&standard).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert!(far > 1e-2, "tract has been mended: the session need not refuse this any more");
}
