//! Attention over codes of scores and LayerNorms of codes, through whole models.

use super::build::{Build, Value};
use super::{Array, Session, SessionOptions};
use crate::ir::{DType, Tensor as Constant};

const HEADS: usize = 3;

fn floats(dims: &[i64], v: &[f32]) -> Constant {
    Constant::raw(DType::FLOAT, dims, v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
}

/// A sequence that looks random.
fn bytes(n: usize, mut x: u64) -> Vec<u8> {
    let mut next = || {
        x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (x >> 40) as u8
    };
    (0..n).map(|_| next()).collect()
}

/// What a model is tried with.
#[derive(Clone, Copy, Debug)]
struct Case {
    batch: usize,
    rows: usize,
    keys: usize,
    cols: usize,
    /// The slope of the axis near the largest score, straightened again after the codes.
    bend: Option<f32>,
    /// Whether values have codes of their own sign.
    signed: bool,
    /// Whether the result becomes codes.
    requantize: bool,
}

const CASE: Case = Case { batch: 2, rows: 14, keys: 37, cols: 35, bend: None, signed: false, requantize: true };

/// Log-Int-Softmax of scores as target `qdq` writes it, times values; `x` and `v` are codes. The logits are `logits`.
fn model(c: Case) -> Build {
    let dims = |a: usize, b: usize| [c.batch, HEADS, a, b].map(|d| d.to_string());
    let (x, v) = (dims(c.rows, c.keys), dims(c.keys, c.cols));
    let (x, v) = (x.each_ref().map(|s| &s[..]), v.each_ref().map(|s| &s[..]));
    let value_type = if c.signed { DType::INT8 } else { DType::UINT8 };
    let step = -std::f32::consts::LN_2 * c.bend.map_or(1.0, |_| 0.5);
    let b = Build::new(20)
        .input("x", DType::UINT8, &x)
        .input("v", value_type, &v)
        .scalars(&[("unit", 1.0), ("sv", 0.03), ("sy", 0.02), ("far", -64.0)])
        .constant("zx", Constant::u8(&[], &[0]))
        .constant("zv", if c.signed { Constant::i8(&[], &[-7]) } else { Constant::u8(&[], &[113]) })
        .constant("zy", Constant::u8(&[], &[120]))
        .constant("axis", Constant::i64(&[1], &[-1]))
        // Each head counts its steps in its own unit, from its own origin.
        .constant("origin", floats(&[HEADS as i64, 1, 1], &[0.0, 3.0, -2.0]))
        .constant("code_scale", floats(&[HEADS as i64], &[-9.0, -14.0, -5.5]))
        .constant("code_zero", Constant::u8(&[HEADS as i64], &[0; HEADS]))
        .constant("logit_scale", floats(&[HEADS as i64], &[step; HEADS]))
        .node("largest = ReduceMax(x, axis)", &[("keepdims", Value::Int(1))])
        .node("position = DequantizeLinear(x, unit, zx)", &[])
        .node("top = DequantizeLinear(largest, unit, zx)", &[])
        .node("row = Add(top, origin)", &[])
        .node("below = Sub(position, row)", &[]);
    let b = match c.bend {
        Some(slope) => b.node("bent = LeakyRelu(below)", &[("alpha", Value::Float(slope))]),
        None => b.node("bent = Identity(below)", &[]),
    };
    let b = b
        .node("quotient = QuantizeLinear(bent, code_scale, code_zero)", &[("axis", Value::Int(1))])
        .constant("most", Constant::u8(&[], &[15]))
        .node("code = Min(quotient, most)", &[])
        .node("logit = DequantizeLinear(code, logit_scale, code_zero)", &[("axis", Value::Int(1))]);
    let b = match c.bend {
        Some(slope) => b.node("straight = LeakyRelu(logit)", &[("alpha", Value::Float(1.0 / slope))]),
        None => b.node("straight = Identity(logit)", &[]),
    };
    b.node("logits = Max(straight, far)", &[])
        .node("weights = Softmax(logits)", &[("axis", Value::Int(-1))])
        .node("values = DequantizeLinear(v, sv, zv)", &[])
        .node("mean = MatMul(weights, values)", &[])
        .node("y = QuantizeLinear(mean, sy, zy)", &[])
}

fn inputs(c: Case) -> Vec<(&'static str, Array)> {
    let x = [c.batch, HEADS, c.rows, c.keys];
    let v = [c.batch, HEADS, c.keys, c.cols];
    let values = bytes(v.iter().product(), 5);
    let values = if c.signed {
        Array::new(&v, values.iter().map(|b| *b as i8).collect()).unwrap()
    } else {
        Array::new(&v, values).unwrap()
    };
    // Rows whose scores reach from the first codes only to all of them.
    let mut scores = bytes(x.iter().product(), 3);
    for (r, row) in scores.chunks_exact_mut(c.keys).enumerate() {
        row.iter_mut().for_each(|s| *s %= (1 + r * 37 % 256).min(255) as u8);
    }
    vec![("x", Array::new(&x, scores).unwrap()), ("v", values)]
}

fn session(bytes: &[u8], taps: &[&str], optimize: bool) -> Session {
    let taps = taps.iter().map(|t| (*t).to_owned()).collect();
    Session::of_bytes(bytes, None, &SessionOptions { taps, optimize, ..SessionOptions::default() }).unwrap()
}

/// The result in double precision, from the logits of the model as it is written.
fn exact(c: Case, logits: &[f32], values: &Array) -> Vec<f64> {
    let values = values.f32s();
    let zero = if c.signed { -7.0 } else { 113.0 };
    let mut out = Vec::new();
    for (i, row) in logits.chunks_exact(c.keys).enumerate() {
        let matrix = i / c.rows;
        let top = row.iter().fold(f64::MIN, |m, l| m.max(*l as f64));
        let w: Vec<f64> = row.iter().map(|l| (*l as f64 - top).exp()).collect();
        let total: f64 = w.iter().sum();
        out.extend((0..c.cols).map(|n| {
            let v = |k: usize| (values[(matrix * c.keys + k) * c.cols + n] as f64 - zero) * 0.03f32 as f64;
            w.iter().enumerate().map(|(k, w)| w * v(k)).sum::<f64>() / total
        }));
    }
    out
}

#[test]
fn weights_of_codes_times_codes_are_one_operator() {
    let cases = [
        CASE,
        Case { bend: Some(0.5), signed: true, ..CASE },
        Case { requantize: false, batch: 1, ..CASE },
        Case { rows: 3, keys: 5, cols: 2, bend: Some(0.5), ..CASE },
        Case { rows: 25, keys: 197, cols: 64, requantize: false, signed: true, ..CASE },
    ];
    for c in cases {
        let out = if c.requantize { "y" } else { "mean" };
        let bytes = model(c).bytes(&[out]);
        let s = session(&bytes, &[], true);
        let counts = ["CodeAttend", "Softmax", "Quantize", "Dequantize"].map(|op| s.count_of(op));
        assert_eq!(counts, [1, 0, 0, 0], "{c:?}");
        let given = inputs(c);
        let got = s.run(&given).unwrap().outputs.remove(0);
        let written = session(&bytes, &["logits"], false).run(&given).unwrap();
        let want = exact(c, &written.taps[0].f32s(), &given[1].1);
        assert_eq!(got.dims(), written.outputs[0].dims());
        for (got, want) in got.f32s().iter().zip(&want) {
            if c.requantize {
                let code = want / 0.02f32 as f64 + 120.0;
                let tie = (code - code.floor() - 0.5).abs() < 1e-3;
                let near = (*got as f64 - code.clamp(0.0, 255.0)).abs();
                assert!(near <= if tie { 0.51 } else { 0.5 }, "{c:?} {got} {code}");
            } else {
                assert!((*got as f64 - want).abs() <= 1e-6 * (1.0 + want.abs()), "{c:?} {got} {want}");
            }
        }
    }
}

/// What else reads the weights still finds them.
#[test]
fn weights_that_others_read_are_there() {
    let given = inputs(CASE);
    let bytes = model(CASE).bytes(&["y"]);
    let seen = session(&bytes, &["weights"], true).run(&given).unwrap();
    let plain = session(&bytes, &["weights"], false).run(&given).unwrap();
    for (a, b) in seen.taps[0].f32s().iter().zip(plain.taps[0].f32s().iter()) {
        assert!((a - b).abs() < 1e-6);
    }
    assert_eq!(seen.outputs[0], session(&bytes, &[], true).run(&given).unwrap().outputs[0]);
}

/// Another function, or one of more than the scores and their largest, is left to the operators.
#[test]
fn other_softmaxes_are_left_alone() {
    let lines = |axis: i64, logits: &str| {
        Build::new(20)
            .input("x", DType::UINT8, &["2", "3", "16", "16"])
            .input("v", DType::UINT8, &["2", "3", "16", "8"])
            .input("m", DType::FLOAT, &["2", "3", "16", "16"])
            .scalars(&[("s", 0.3), ("t", -40.0), ("wide", 9.0)])
            .constant("z", Constant::u8(&[], &[0]))
            .constant("last", Constant::i64(&[1], &[-1]))
            .constant("by_key", floats(&[16], &[0.5; 16]))
            .node("largest = ReduceMax(x, last)", &[("keepdims", Value::Int(1))])
            .node("p = DequantizeLinear(x, s, z)", &[])
            .node("q = DequantizeLinear(largest, s, z)", &[])
            .node("d = Sub(p, q)", &[])
            .node("far = Max(d, t)", &[])
            .node("coarse = QuantizeLinear(far, wide, zs)", &[])
            .constant("zs", Constant::i8(&[], &[0]))
            .node("fine = DequantizeLinear(coarse, wide, zs)", &[])
            .node(logits, &[])
            .node("w = Softmax(l)", &[("axis", Value::Int(axis))])
            .node("values = DequantizeLinear(v, s, z)", &[])
            .node("y = MatMul(w, values)", &[])
            .bytes(&["y"])
    };
    let fused = |axis, logits| session(&lines(axis, logits), &[], true).count_of("CodeAttend");
    assert_eq!(fused(-1, "l = Identity(fine)"), 1);
    // The wrong axis; the furthest first; a mask; another factor for each key.
    let others = ["l = Neg(fine)", "l = Add(fine, m)", "l = Mul(fine, by_key)"];
    assert_eq!(fused(-2, "l = Identity(fine)"), 0);
    others.iter().for_each(|l| assert_eq!(fused(-1, l), 0, "{l}"));
}

/// A LayerNormalization of what comes from codes reads the codes; what it makes of them is what the operators make.
#[test]
fn a_layer_norm_of_codes_reads_codes() {
    for (cols, signed, with_bias, requantize) in
        [(192, false, true, true), (37, true, true, false), (5, false, false, true), (64, true, true, true)]
    {
        let rows = 35;
        let dims = [rows, cols].map(|d: usize| d.to_string());
        let dims = dims.each_ref().map(|s| &s[..]);
        let channel = |seed: u64, least: f32| {
            let v: Vec<f32> = bytes(cols, seed).iter().map(|b| least + *b as f32 / 200.0).collect();
            floats(&[cols as i64], &v)
        };
        let codes = bytes(rows * cols, 9);
        let x = if signed {
            Array::new(&[1, rows, cols], codes.iter().map(|b| *b as i8).collect()).unwrap()
        } else {
            Array::new(&[1, rows, cols], codes).unwrap()
        };
        let zero = |v: i8| if signed { Constant::i8(&[], &[v]) } else { Constant::u8(&[], &[v as u8]) };
        let call = if with_bias { "n = LayerNormalization(w, gain, bias)" } else { "n = LayerNormalization(w, gain)" };
        let model = Build::new(20)
            .input("x", if signed { DType::INT8 } else { DType::UINT8 }, &["1", dims[0], dims[1]])
            .scalars(&[("s", 0.25), ("t", 0.03)])
            .constant("zx", zero(17))
            .constant("zy", zero(101))
            .constant("u", channel(1, 0.1))
            .constant("v", channel(2, -0.7))
            .constant("gain", channel(3, 0.5))
            .constant("bias", channel(4, -0.5))
            .node("d = DequantizeLinear(x, s, zx)", &[])
            .node("m = Mul(d, u)", &[])
            .node("w = Add(v, m)", &[])
            .node(call, &[("epsilon", Value::Float(1e-6))])
            .node("y = QuantizeLinear(n, t, zy)", &[]);
        let out = if requantize { "y" } else { "n" };
        let bytes = model.bytes(&[out]);
        let s = session(&bytes, &[], true);
        let counts = ["CodeNorm", "RmsNorm", "Quantize", "Dequantize"].map(|op| s.count_of(op));
        assert_eq!(counts, [1, 0, 0, 0], "{cols}");
        let got = s.run(&[("x", x.clone())]).unwrap().outputs.remove(0);
        let written = session(&bytes, &["n"], false).run(&[("x", x)]).unwrap();
        let values = written.taps[0].f32s();
        assert_eq!(got.dims(), written.outputs[0].dims());
        for (got, value) in got.f32s().iter().zip(values.iter()) {
            if requantize {
                let (low, high) = if signed { (-128.0, 127.0) } else { (0.0, 255.0) };
                let code = (value / 0.03 + 101.0).clamp(low, high);
                assert!((got - code).abs() <= 0.501, "{cols}: {got} {code}");
            } else {
                assert!((got - value).abs() <= 2e-6 * (1.0 + value.abs()), "{cols}: {got} {value}");
            }
        }
    }
}
