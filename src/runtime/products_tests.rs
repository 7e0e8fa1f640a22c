//! Products and convolutions of codes, through whole models.

use proptest::prelude::*;

use super::build::{Build, Value};
use super::{Array, Session, SessionOptions};
use crate::ir::{DType, Tensor as Constant};
use crate::quant::kernel::rounded;

/// A sequence that looks random, from 0 to `n - 1`.
pub struct Dice(pub u32);

impl Dice {
    pub fn roll(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0 as usize % n
    }

    /// Bit patterns of codes, extremes among them.
    fn codes(&mut self, n: usize) -> Vec<u8> {
        (0..n)
            .map(|_| if self.roll(4) == 0 { [0, 127, 128, 255][self.roll(4)] } else { self.roll(256) as u8 })
            .collect()
    }
}

/// Codes of either sign.
#[derive(Clone, Debug)]
pub struct Codes {
    dims: Vec<usize>,
    signed: bool,
    bits: Vec<u8>,
}

impl Codes {
    pub fn new(dims: &[usize], signed: bool, dice: &mut Dice) -> Codes {
        Codes { dims: dims.to_vec(), signed, bits: dice.codes(dims.iter().product()) }
    }

    fn at(&self, i: usize) -> i32 {
        if self.signed { self.bits[i] as i8 as i32 } else { self.bits[i] as i32 }
    }

    fn dtype(&self) -> DType {
        if self.signed { DType::INT8 } else { DType::UINT8 }
    }

    fn array(&self) -> Array {
        if self.signed {
            Array::new(&self.dims, self.bits.iter().map(|b| *b as i8).collect()).unwrap()
        } else {
            Array::new(&self.dims, self.bits.clone()).unwrap()
        }
    }

    fn constant(&self) -> Constant {
        let dims: Vec<i64> = self.dims.iter().map(|d| *d as i64).collect();
        Constant::raw(self.dtype(), &dims, self.bits.clone())
    }

    /// Adds these to a model, as an input or as a constant.
    pub fn put(&self, b: Build, name: &str, fixed: bool, inputs: &mut Vec<(&'static str, Array)>) -> Build {
        if fixed {
            return b.constant(name, self.constant());
        }
        let dims: Vec<String> = self.dims.iter().map(|d| d.to_string()).collect();
        let dims: Vec<&str> = dims.iter().map(String::as_str).collect();
        inputs.push((["a", "b", "za", "zb"].into_iter().find(|n| *n == name).unwrap(), self.array()));
        b.input(name, self.dtype(), &dims)
    }
}

/// `a` and `b` with as many leading axes of size one as it takes, and the indices of both matrices for each of the product.
fn batches(a: &[usize], b: &[usize]) -> Vec<(usize, usize)> {
    let rank = a.len().max(b.len());
    let wide = |s: &[usize]| [vec![1; rank - s.len()], s.to_vec()].concat();
    let (a, b) = (wide(a), wide(b));
    let mut out = vec![(0, 0)];
    for (x, y) in a.iter().zip(&b) {
        let n = (*x).max(*y);
        out = out.into_iter().flat_map(|(i, j)| (0..n).map(move |k| (i * x + k % x, j * y + k % y))).collect();
    }
    out
}

struct Shapes {
    a: &'static [usize],
    b: &'static [usize],
}

/// MatMulInteger of every kind: signs, zero points of one, of each row and column, of each row of each matrix, missing and
/// computed, and leading axes that are repeated.
#[test]
fn matmul_integer_is_exact() {
    let shapes = [
        Shapes { a: &[5, 7], b: &[7, 3] },
        Shapes { a: &[2, 5, 7], b: &[7, 33] },
        Shapes { a: &[2, 1, 13, 4], b: &[3, 4, 17] },
        Shapes { a: &[1, 6], b: &[2, 6, 5] },
    ];
    let mut dice = Dice(7);
    for s in shapes {
        for case in 0..64 {
            let (a, b) = (Codes::new(s.a, case & 1 > 0, &mut dice), Codes::new(s.b, case & 2 > 0, &mut dice));
            let (m, k, n) = (s.a[s.a.len() - 2], s.a[s.a.len() - 1], s.b[s.b.len() - 1]);
            let fixed = case & 4 > 0;
            let zero_dims = |shape: &[usize], lines: usize, row: bool, dice: &mut Dice| match dice.roll(4) {
                0 => vec![],
                1 => vec![1],
                2 => vec![lines],
                _ => {
                    let batch = &shape[..shape.len() - 2];
                    [batch.to_vec(), if row { vec![lines, 1] } else { vec![1, lines] }].concat()
                }
            };
            let (da, db) = (zero_dims(s.a, m, true, &mut dice), zero_dims(s.b, n, false, &mut dice));
            let (za, zb) = (Codes::new(&da, a.signed, &mut dice), Codes::new(&db, b.signed, &mut dice));
            let mut inputs = vec![];
            let mut model = Build::new(13);
            model = a.put(model, "a", false, &mut inputs);
            model = b.put(model, "b", fixed, &mut inputs);
            model = za.put(model, "za", case & 8 > 0, &mut inputs);
            model = zb.put(model, "zb", case & 16 > 0, &mut inputs);
            let given = case & 32 == 0;
            let call = if given { "y = MatMulInteger(a, b, za, zb)" } else { "y = MatMulInteger(a, b)" };
            if !given {
                inputs.truncate(2 - fixed as usize);
                model.graph.input.retain(|i| !i.name.starts_with('z'));
            }
            let got = model.node(call, &[]).run(&["y"], &inputs);
            let zero = |z: &Codes, batch: usize, lines: usize, line: usize| match z.bits.len() {
                _ if !given => 0,
                1 => z.at(0),
                n if n == lines => z.at(line),
                _ => z.at(batch * lines + line),
            };
            let mut want = vec![];
            for (i, j) in batches(&s.a[..s.a.len() - 2], &s.b[..s.b.len() - 2]) {
                for at in 0..m * n {
                    let (r, c) = (at / n, at % n);
                    let term = |t: usize| {
                        (a.at((i * m + r) * k + t) - zero(&za, i, m, r))
                            * (b.at((j * k + t) * n + c) - zero(&zb, j, n, c))
                    };
                    want.push((0..k).map(term).sum::<i32>());
                }
            }
            let Array::I32(y) = &got[0] else { panic!("{:?}", got[0].dtype()) };
            assert_eq!(y.iter().copied().collect::<Vec<_>>(), want, "{:?} x {:?}, case {case}", s.a, s.b);
        }
    }
}

#[test]
fn a_vector_is_a_row_or_a_column() {
    let mut dice = Dice(3);
    for (da, db) in [(&[4usize][..], &[4usize, 3][..]), (&[2, 4], &[4]), (&[5, 2, 4], &[4]), (&[4], &[4])] {
        let (a, b) = (Codes::new(da, false, &mut dice), Codes::new(db, true, &mut dice));
        let mut inputs = vec![];
        let model = b.put(a.put(Build::new(13), "a", false, &mut inputs), "b", false, &mut inputs);
        let got = model.node("y = MatMulInteger(a, b)", &[]).run(&["y"], &inputs);
        let n = if db.len() == 1 { 1 } else { db[1] };
        let rows = a.bits.len() / 4;
        let want: Vec<i32> =
            (0..rows * n).map(|i| (0..4).map(|t| a.at(i / n * 4 + t) * b.at(t * n + i % n)).sum()).collect();
        let Array::I32(y) = &got[0] else { panic!("{:?}", got[0].dtype()) };
        assert_eq!(y.iter().copied().collect::<Vec<_>>(), want, "{da:?} x {db:?}");
    }
}

/// One convolution of a test, in two axes.
#[derive(Clone, Copy, Debug)]
struct Window {
    channels: usize,
    out: usize,
    group: usize,
    image: [usize; 2],
    kernel: [usize; 2],
    stride: [usize; 2],
    dilation: [usize; 2],
    /// Top, left, bottom, right.
    pads: [usize; 4],
}

impl Window {
    fn attributes(&self) -> Vec<(&'static str, Value)> {
        let ints = |v: &[usize]| Value::Ints(v.iter().map(|x| *x as i64).collect());
        vec![
            ("group", Value::Int(self.group as i64)),
            ("kernel_shape", ints(&self.kernel)),
            ("strides", ints(&self.stride)),
            ("dilations", ints(&self.dilation)),
            ("pads", ints(&self.pads)),
        ]
    }

    fn out_size(&self, axis: usize) -> usize {
        let reach = (self.kernel[axis] - 1) * self.dilation[axis] + 1;
        (self.image[axis] + self.pads[axis] + self.pads[axis + 2] - reach) / self.stride[axis] + 1
    }

    fn shapes(&self) -> ([usize; 4], [usize; 4]) {
        let x = [2, self.channels, self.image[0], self.image[1]];
        (x, [self.out, self.channels / self.group, self.kernel[0], self.kernel[1]])
    }

    /// The sum for each element of the product, computed place by place.
    fn plain(&self, x: &Codes, w: &Codes, zx: i32, zw: &dyn Fn(usize) -> i32) -> Vec<i32> {
        let (oh, ow) = (self.out_size(0), self.out_size(1));
        let (per_in, per_out) = (self.channels / self.group, self.out / self.group);
        let mut y = vec![];
        for at in 0..2 * self.out * oh * ow {
            let (n, o, r, c) = (at / (self.out * oh * ow), at / (oh * ow) % self.out, at / ow % oh, at % ow);
            let mut sum = 0;
            for i in 0..per_in {
                for kr in 0..self.kernel[0] {
                    for kc in 0..self.kernel[1] {
                        let row = (r * self.stride[0] + kr * self.dilation[0]).wrapping_sub(self.pads[0]);
                        let col = (c * self.stride[1] + kc * self.dilation[1]).wrapping_sub(self.pads[1]);
                        if row < self.image[0] && col < self.image[1] {
                            let channel = n * self.channels + o / per_out * per_in + i;
                            let v = x.at((channel * self.image[0] + row) * self.image[1] + col) - zx;
                            let k = ((o * per_in + i) * self.kernel[0] + kr) * self.kernel[1] + kc;
                            sum += v * (w.at(k) - zw(o));
                        }
                    }
                }
            }
            y.push(sum);
        }
        y
    }
}

const PATCHES: Window = Window {
    channels: 3,
    out: 35,
    group: 1,
    image: [8, 12],
    kernel: [4, 4],
    stride: [4, 4],
    dilation: [1, 1],
    pads: [0; 4],
};

fn windows() -> [Window; 8] {
    [
        PATCHES,
        // One position comes out, as after a global pooling.
        Window { channels: 20, image: [1, 1], kernel: [1, 1], stride: [1, 1], ..PATCHES },
        Window { channels: 4, out: 18, group: 2, image: [3, 2], kernel: [3, 2], stride: [1, 1], ..PATCHES },
        Window {
            channels: 4,
            out: 18,
            group: 2,
            image: [5, 5],
            kernel: [3, 3],
            stride: [1, 1],
            pads: [1, 0, 0, 2],
            ..PATCHES
        },
        Window { out: 5, image: [7, 6], kernel: [3, 3], stride: [1, 2], pads: [1, 1, 1, 1], ..PATCHES },
        Window {
            out: 4,
            image: [9, 9],
            kernel: [3, 2],
            stride: [2, 1],
            dilation: [2, 3],
            pads: [2, 0, 1, 3],
            ..PATCHES
        },
        Window {
            channels: 4,
            out: 6,
            group: 2,
            image: [5, 5],
            kernel: [3, 3],
            stride: [1, 1],
            pads: [1, 0, 0, 2],
            ..PATCHES
        },
        Window {
            channels: 6,
            out: 6,
            group: 6,
            image: [3, 4],
            kernel: [5, 5],
            stride: [1, 1],
            pads: [2, 2, 2, 2],
            ..PATCHES
        },
    ]
}

#[test]
fn conv_integer_is_exact() {
    let mut dice = Dice(11);
    for w in windows() {
        for case in 0..32 {
            let (xs, ws) = w.shapes();
            let (a, b) = (Codes::new(&xs, case & 1 > 0, &mut dice), Codes::new(&ws, case & 2 > 0, &mut dice));
            let za = Codes::new(&[], a.signed, &mut dice);
            let each = if case & 16 > 0 { vec![w.out] } else { vec![] };
            let zb = Codes::new(&each, b.signed, &mut dice);
            let mut inputs = vec![];
            let mut model = a.put(Build::new(13), "a", false, &mut inputs);
            model = b.put(model, "b", case & 4 > 0, &mut inputs);
            model = za.put(model, "za", case & 8 > 0, &mut inputs);
            model = zb.put(model, "zb", case & 8 > 0, &mut inputs);
            let got = model.node("y = ConvInteger(a, b, za, zb)", &w.attributes()).run(&["y"], &inputs);
            assert_eq!(got[0].dims(), [2, w.out, w.out_size(0), w.out_size(1)]);
            let want = w.plain(&a, &b, za.at(0), &|o| zb.at(if zb.bits.len() == 1 { 0 } else { o }));
            let Array::I32(y) = &got[0] else { panic!("{:?}", got[0].dtype()) };
            assert_eq!(y.iter().copied().collect::<Vec<_>>(), want, "{w:?}, case {case}");
        }
    }
}

/// What the contract says of one element: the exact sum, to the nearest float, scaled, with bias.
fn value(sum: i32, scale: f32, bias: f32) -> f32 {
    sum as f32 * scale + bias
}

fn f32s(v: &[f32]) -> Constant {
    Constant::f32(&[v.len() as i64], v)
}

pub fn session(bytes: &[u8]) -> Session {
    Session::of_bytes(bytes, None, &SessionOptions::default()).unwrap()
}

/// A layer between codes is one operator, moves on the way included, and its codes are those of the contract.
#[test]
fn a_layer_between_codes_is_one_product() {
    let mut dice = Dice(5);
    let (m, k, n) = (13, 24, 19);
    // The second step is a power of two, by which a division is a product.
    for (transposed, sy) in [(false, 0.37f32), (true, 0.37), (false, 0.25)] {
        for signed in [false, true] {
            let a = Codes::new(&[2, k, m], false, &mut dice);
            let b = Codes::new(&if transposed { [n, k] } else { [k, n] }, signed, &mut dice);
            let zb = Codes::new(&[n], signed, &mut dice);
            let sb: Vec<f32> = (0..n).map(|i| 0.003 + 0.0007 * i as f32).collect();
            let bias: Vec<f32> = (0..n).map(|i| i as f32 * 0.1 - 0.7).collect();
            let sa = 0.021f32;
            let mut inputs = vec![];
            let model = a
                .put(Build::new(17), "a", false, &mut inputs)
                .constant("b", b.constant())
                .constant("zb", zb.constant())
                .constant("sb", f32s(&sb))
                .constant("bias", f32s(&bias))
                .constant("za", Constant::u8(&[], &[117]))
                .constant("zy", Constant::u8(&[], &[90]))
                .scalars(&[("sa", sa), ("sy", sy)])
                .node("af = DequantizeLinear(a, sa, za)", &[])
                .node("at = Transpose(af)", &[("perm", Value::Ints(vec![0, 2, 1]))])
                .node("bf = DequantizeLinear(b, sb, zb)", &[("axis", Value::Int(if transposed { 0 } else { 1 }))]);
            let model = if transposed {
                model.node("bt = Transpose(bf)", &[]).node("p = MatMul(at, bt)", &[])
            } else {
                model.node("p = MatMul(at, bf)", &[])
            };
            let bytes = model.node("z = Add(bias, p)", &[]).node("y = QuantizeLinear(z, sy, zy)", &[]).bytes(&["y"]);
            let s = session(&bytes);
            let counts = ["CodeProduct", "Quantize", "Dequantize", "OptMatMul"].map(|op| s.count_of(op));
            assert_eq!(counts, [1, 0, 0, 0], "transposed: {transposed}");
            let got = s.run(&inputs).unwrap().outputs;
            let mut want = vec![];
            for at in 0..2 * m * n {
                let (i, r, c) = (at / (m * n), at / n % m, at % n);
                let weight = |t: usize| b.at(if transposed { c * k + t } else { t * n + c }) - zb.at(c);
                let sum = (0..k).map(|t| (a.at((i * k + t) * m + r) - 117) * weight(t)).sum::<i32>();
                want.push((rounded(value(sum, sa * sb[c], bias[c]), sy, -90.0, 165.0) + 90) as u8);
            }
            assert!(want.iter().any(|x| *x > 0 && *x < 255));
            assert_eq!(got[0], Array::new(&[2, m, n], want).unwrap());
        }
    }
}

/// Attention's products: both operands computed, one of them transposed, codes out.
#[test]
fn a_product_of_two_activations_is_one_product() {
    let mut dice = Dice(9);
    let (a, b) = (Codes::new(&[1, 3, 7, 8], false, &mut dice), Codes::new(&[1, 3, 5, 8], true, &mut dice));
    let mut inputs = vec![];
    let model = b.put(a.put(Build::new(17), "a", false, &mut inputs), "b", false, &mut inputs);
    let bytes = model
        .constant("za", Constant::u8(&[], &[131]))
        .constant("zb", Constant::i8(&[], &[-7]))
        .scalars(&[("sa", 0.05), ("sb", 0.03), ("factor", 0.125)])
        .node("af = DequantizeLinear(a, sa, za)", &[])
        .node("bf = DequantizeLinear(b, sb, zb)", &[])
        .node("bt = Transpose(bf)", &[("perm", Value::Ints(vec![0, 1, 3, 2]))])
        .node("p = MatMul(af, bt)", &[])
        .node("y = Mul(p, factor)", &[])
        .bytes(&["y"]);
    let s = session(&bytes);
    assert_eq!(["CodeProduct", "Dequantize", "OptMulByScalar"].map(|op| s.count_of(op)), [1, 0, 0]);
    let got = s.run(&inputs).unwrap().outputs;
    let mut want = vec![];
    for at in 0..3 * 7 * 5 {
        let (h, r, c) = (at / 35, at / 5 % 7, at % 5);
        let sum: i32 = (0..8).map(|t| (a.at((h * 7 + r) * 8 + t) - 131) * (b.at((h * 5 + c) * 8 + t) + 7)).sum();
        want.push(sum as f32 * (0.05f32 * 0.03) * 0.125);
    }
    assert_eq!(got[0], Array::new(&[1, 3, 7, 5], want).unwrap());
}

/// Gemm with a bias in 32 bits, as quantizers write it.
#[test]
fn gemm_between_codes_is_one_product() {
    let mut dice = Dice(21);
    let (a, b) = (Codes::new(&[4, 6], true, &mut dice), Codes::new(&[3, 6], true, &mut dice));
    let mut inputs = vec![];
    let bias = [700i32, -90, 12345];
    let bytes = a
        .put(Build::new(17), "a", false, &mut inputs)
        .constant("b", b.constant())
        .constant("bias", Constant::i32(&[3], &bias))
        .scalars(&[("sa", 0.02), ("sb", 0.01), ("sc", 0.0002)])
        .node("af = DequantizeLinear(a, sa)", &[])
        .node("bf = DequantizeLinear(b, sb)", &[])
        .node("c = DequantizeLinear(bias, sc)", &[])
        .node("y = Gemm(af, bf, c)", &[("transB", Value::Int(1))])
        .bytes(&["y"]);
    let s = session(&bytes);
    assert_eq!(["CodeProduct", "Dequantize", "OptMatMul"].map(|op| s.count_of(op)), [1, 0, 0]);
    let want: Vec<f32> = (0..12)
        .map(|i| {
            let sum = (0..6).map(|t| a.at(i / 3 * 6 + t) * b.at(i % 3 * 6 + t)).sum();
            value(sum, 0.02f32 * 0.01, bias[i % 3] as f32 * 0.0002)
        })
        .collect();
    assert_eq!(s.run(&inputs).unwrap().outputs[0], Array::new(&[4, 3], want).unwrap());
}

/// A convolution between codes, group by group, one scale per channel.
#[test]
fn a_convolution_between_codes_is_one_operator() {
    let mut dice = Dice(33);
    // Groups of few channels stay in float.
    for w in windows().into_iter().filter(|w| w.group == 1 || w.out / w.group >= 8) {
        let (xs, ws) = w.shapes();
        let (a, b) = (Codes::new(&xs, false, &mut dice), Codes::new(&ws, true, &mut dice));
        let sb: Vec<f32> = (0..w.out).map(|i| 0.003 + 0.0007 * i as f32).collect();
        let bias: Vec<f32> = (0..w.out).map(|i| i as f32 * 0.1 - 0.7).collect();
        let mut inputs = vec![];
        let bytes = a
            .put(Build::new(17), "a", false, &mut inputs)
            .constant("b", b.constant())
            .constant("sb", f32s(&sb))
            .constant("bias", f32s(&bias))
            .constant("za", Constant::u8(&[], &[40]))
            .constant("zy", Constant::i8(&[], &[3]))
            .scalars(&[("sa", 0.021), ("sy", 0.5)])
            .node("af = DequantizeLinear(a, sa, za)", &[])
            .constant("zb", Constant::i8(&[w.out as i64], &vec![0; w.out]))
            .node("bf = DequantizeLinear(b, sb, zb)", &[("axis", Value::Int(0))])
            .node("p = Conv(af, bf, bias)", &w.attributes())
            .node("y = QuantizeLinear(p, sy, zy)", &[])
            .bytes(&["y"]);
        let s = session(&bytes);
        assert_eq!(["CodeConv", "Quantize", "Dequantize"].map(|op| s.count_of(op)), [1, 0, 0], "{w:?}");
        let plane = w.out_size(0) * w.out_size(1);
        let code = |(i, sum): (usize, i32)| {
            let o = i / plane % w.out;
            (rounded(value(sum, 0.021 * sb[o], bias[o]), 0.5, -131.0, 124.0) + 3) as i8
        };
        let want: Vec<i8> = w.plain(&a, &b, 40, &|_| 0).into_iter().enumerate().map(code).collect();
        let dims = [2, w.out, w.out_size(0), w.out_size(1)];
        assert_eq!(s.run(&inputs).unwrap().outputs[0], Array::new(&dims, want).unwrap(), "{w:?}");
    }
}

/// A value that others read as well leaves the product as it is: nothing is absorbed that would be missed.
#[test]
fn what_others_read_is_still_there() {
    let mut dice = Dice(2);
    let (a, b) = (Codes::new(&[3, 4], false, &mut dice), Codes::new(&[4, 2], true, &mut dice));
    let mut inputs = vec![];
    let bytes = a
        .put(Build::new(17), "a", false, &mut inputs)
        .constant("b", b.constant())
        .scalars(&[("s", 0.5), ("one", 1.0)])
        .node("af = DequantizeLinear(a, s)", &[])
        .node("bf = DequantizeLinear(b, s)", &[])
        .node("p = MatMul(af, bf)", &[])
        .node("q = Add(p, one)", &[])
        .node("r = Mul(q, q)", &[])
        .bytes(&["p", "q", "r"]);
    let sum = |i: usize| (0..4).map(|t| a.at(i / 2 * 4 + t) * b.at(t * 2 + i % 2)).sum::<i32>() as f32 * 0.25;
    let all: [fn(f32) -> f32; 3] = [|x| x, |x| x + 1.0, |x| (x + 1.0) * (x + 1.0)];
    let want = all.map(|f| Array::new(&[3, 2], (0..6).map(|i| f(sum(i))).collect::<Vec<f32>>()).unwrap());
    assert_eq!(session(&bytes).run(&inputs).unwrap().outputs, want);
}

/// What is no product of codes stays what it was: weights in float, codes with a scale per row of the left operand, codes of
/// weights that something else reads.
#[test]
fn other_products_are_left_alone() {
    let x: Vec<f32> = (0..12).map(|i| i as f32 * 0.25 - 1.0).collect();
    let half = Constant::i8(&[4, 3], &(0..12).collect::<Vec<i8>>());
    let model = || {
        Build::new(17)
            .input("x", DType::FLOAT, &["3", "4"])
            .constant("w", half.clone())
            .scalars(&[("s", 0.5)])
            .node("wf = DequantizeLinear(w, s)", &[])
    };
    let input = [("x", Array::new(&[3, 4], x.clone()).unwrap())];
    let product = model().node("y = MatMul(x, wf)", &[]).run(&["y"], &input);
    let want: Vec<f32> =
        (0..9).map(|i| (0..4).map(|t| x[i / 3 * 4 + t] * (t * 3 + i % 3) as f32 * 0.5).sum()).collect();
    assert_eq!(product[0], Array::new(&[3, 3], want).unwrap());
    let s = session(&model().node("y = MatMul(x, wf)", &[]).bytes(&["y"]));
    assert_eq!(["CodeProduct", "Dequantize"].map(|op| s.count_of(op)), [0, 0], "weights are ready in float");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    /// The integer form of a layer: product, integer bias, to float, scale and offset by column.
    #[test]
    fn the_integer_form_of_a_layer_is_one_product(m in 1usize..20, k in 1usize..40, n in 1usize..40, seed in 1u32..1000) {
        let mut dice = Dice(seed);
        let (a, b) = (Codes::new(&[m, k], false, &mut dice), Codes::new(&[k, n], true, &mut dice));
        let bias: Vec<i32> = (0..n).map(|_| dice.roll(20_000) as i32 - 10_000).collect();
        let scale: Vec<f32> = (0..n).map(|_| 0.001 + dice.roll(100) as f32 * 0.0001).collect();
        let mut inputs = vec![];
        let model = || a
            .put(Build::new(17), "a", false, &mut inputs)
            .constant("b", b.constant())
            .constant("bias", Constant::i32(&[n as i64], &bias))
            .constant("scale", f32s(&scale))
            .node("p = MatMulInteger(a, b)", &[])
            .node("q = Add(p, bias)", &[])
            .node("f = Cast(q)", &[("to", Value::Int(1))])
            .node("y = Mul(f, scale)", &[]);
        let mut model = model;
        let bytes = model().bytes(&["y"]);
        let s = session(&bytes);
        prop_assert_eq!(s.count_of("CodeProduct"), 1);
        prop_assert_eq!(s.count_of("Cast"), 0);
        let want: Vec<f32> = (0..m * n)
            .map(|i| {
                let sum: i32 = (0..k).map(|t| a.at(i / n * k + t) * b.at(t * n + i % n)).sum();
                (sum + bias[i % n]) as f32 * scale[i % n]
            })
            .collect();
        prop_assert_eq!(s.run(&inputs[..1]).unwrap().outputs[0].clone(), Array::new(&[m, n], want).unwrap());
    }
}
