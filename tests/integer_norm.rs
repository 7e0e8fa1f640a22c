//! `integer-norm`: what it emits, what it leaves alone, and how far it is from LayerNormalization in double precision.
//!
//! The numeric tests leave their models and codes below cargo's folder for test files; `tests/integer_norm_cross.py`
//! runs the same in onnxruntime.

use fqvit_opt::ir::Model;
use fqvit_opt::ir::validate::validate;
use fqvit_opt::passes::Pass;
use fqvit_opt::passes::quantize::integer_norm::IntegerNorm;
use fqvit_opt::text::{Elide, parse_model, print_model};

fn apply(text: &str) -> (Model, Vec<String>) {
    let mut m = parse_model(text).expect("the program parses");
    validate(&m).expect("the program is valid");
    let out = IntegerNorm.run_on(&mut m).expect("the pass runs");
    validate(&m).expect("the pass leaves a valid model");
    assert_eq!(out.changes == 0, print_model(&m, Elide::Full) == print_model(&parse_model(text).unwrap(), Elide::Full));
    (m, out.notes)
}

const HEAD: &str = "<ir_version: 8, opset_import: [\"\" : 17]>\n";

#[test]
fn the_residual_add_keeps_its_operand() {
    let (m, notes) = apply(&format!(
        "{HEAD}g (float[b,3] x) => (float[b,3] sum) <float[3] s = {{0.5, 1.0, 4.0}}, uint8[3] z = {{100, 128, 7}},
         float[3] gamma = {{1.0, 2.0, 3.0}}, float[3] beta = {{0.5, 0.25, 0.0}}> {{
         q = QuantizeLinear <axis = -1> (x, s, z)
         d = DequantizeLinear <axis = -1> (q, s, z)
         y = LayerNormalization <axis = -1, epsilon = 1e-6> (d, gamma, beta)
         sum = Add (d, y) }}"
    ));
    assert!(notes.is_empty(), "{notes:?}");
    assert_eq!(print_model(&m, Elide::Full), SMALL);
}

#[test]
fn wide_factors_become_digits() {
    let (m, notes) = apply(&format!(
        "{HEAD}g (uint8[b,3] q) => (float[b,3] y) <float[3] s = {{0.25, 64.0, 4.0}}, uint8[3] z = {{100, 128, 7}},
         float[3] gamma = {{1.0, 2.0, 3.0}}> {{
         d = DequantizeLinear <axis = 1> (q, s, z)
         y = LayerNormalization (d, gamma) }}"
    ));
    assert!(notes.is_empty(), "{notes:?}");
    assert_eq!(print_model(&m, Elide::Full), WIDE);
}

#[test]
fn of_a_norm_without_a_mean_nothing_is_centred() {
    let (m, notes) = apply(&format!(
        "{}g (uint8[b,3] q) => (float[b,3] y) <float[3] s = {{0.5, 1.0, 4.0}}, uint8[3] z = {{100, 128, 7}},
         float[3] gamma = {{1.0, 2.0, 3.0}}> {{
         d = DequantizeLinear <axis = 1> (q, s, z)
         y = RMSNormalization <axis = -1, epsilon = 1e-6> (d, gamma) }}",
        HEAD.replace("17", "23").replace("ir_version: 8", "ir_version: 11")
    ));
    assert!(notes.is_empty(), "{notes:?}");
    let text = print_model(&m, Elide::Full);
    for line in [
        "\"y/square\" = Mul (\"y/v\", \"y/v\")",
        "\"y/variance_epsilon\" = Add (\"y/mean_square\", \"y/epsilon\")",
        "\"y/normalised\" = Mul (\"y/v\", \"y/inverse_deviation\")",
        "y = Mul (\"y/normalised\", gamma)",
        "float \"y/epsilon\" = {4e-6}",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    assert!(!text.contains("centre"), "{text}");
}

#[test]
fn channels_are_counted_by_gamma_whatever_the_scales_run_along() {
    // One scale, given as a vector of one along another axis: a pooled image in front of a classifier.
    let (m, notes) = apply(&format!(
        "{HEAD}g (uint8[b,1,3] q) => (float[b,1,3] y) <float[1] s = {{0.5}}, uint8[1] z = {{100}},
         float[3] gamma = {{1.0, 2.0, 3.0}}> {{
         d = DequantizeLinear <axis = 1> (q, s, z)
         y = LayerNormalization (d, gamma) }}"
    ));
    assert!(notes.is_empty(), "{notes:?}");
    let count = m.graph.find("y/channels").and_then(|v| m.graph.constant(v)?.to_f32s().map(|c| c.into_owned()));
    assert_eq!(count, Some(vec![3.0]));
}

#[test]
fn what_it_can_not_do_it_leaves_and_says_why() {
    let model = |scales: &str, dq: &str, norm: &str| {
        format!(
            "{HEAD}g (uint8[2,2] q) => (float[2,2] y) <float[2] s = {{{scales}}}, uint8[2] z = {{1, 2}},
             float[2] gamma = {{1.0, 2.0}}> {{ d = DequantizeLinear <axis = {dq}> (q, s, z) {norm} }}"
        )
    };
    let norm = "y = LayerNormalization (d, gamma)";
    for (text, why) in [
        (model("1.0, 2.7182817", "1", norm), "whole numbers"),
        (model("1.0, 512.0", "1", norm), "whole numbers up to 256"),
        (model("1.0, 2.0", "0", norm), "last axis"),
        (model("1.0, 2.0", "1", "y = LayerNormalization <axis = 0> (d, gamma)"), "last axis alone"),
        (model("1e-30, 2e-30", "1", norm), "no normal float32"),
        (model("1.0, 2.0", "1", "e = Relu (d) y = LayerNormalization (e, gamma)"), "`e` does not come from codes"),
        (model("1.0, 2.0", "1", "n, y = LayerNormalization (d, gamma)"), "is read"),
    ] {
        let (m, notes) = apply(&text);
        assert!(m.graph.nodes().any(|(_, n)| n.op.is("LayerNormalization")), "{text}");
        assert!(matches!(&notes[..], [n] if n.contains(why)), "{notes:?} for {why}");
    }
}

const SMALL: &str = r#"<
   ir_version: 8,
   opset_import: ["" : 17]
>
g (float[b,3] x) => (float[b,3] sum)
   <float[3] s = {0.5, 1.0, 4.0},
    uint8[3] z = {100, 128, 7},
    float[3] gamma = {1.0, 2.0, 3.0},
    float[3] beta = {0.5, 0.25, 0.0},
    float[3] "y/factors" = {1.0, 2.0, 8.0},
    float "y/per_channel" = {0.33333334},
    int64[1] "y/last_axis" = {-1},
    float "y/channels" = {3.0},
    int64[1] "y/last_axis_2" = {-1},
    float "y/per_channel_2" = {0.33333334},
    float "y/epsilon" = {4e-6}
   >
{
   q = QuantizeLinear <axis = -1> (x, s, z)
   d = DequantizeLinear <axis = -1> (q, s, z)
   ["y/v"] "y/v" = DequantizeLinear <axis = -1> (q, "y/factors", z)
   ["y/sum"] "y/sum" = ReduceSum <keepdims = 1> ("y/v", "y/last_axis")
   ["y/mean"] "y/mean" = Mul ("y/sum", "y/per_channel")
   ["y/centre"] "y/centre" = Round ("y/mean")
   ["y/centre_sum"] "y/centre_sum" = Mul ("y/centre", "y/channels")
   ["y/rest_sum"] "y/rest_sum" = Sub ("y/sum", "y/centre_sum")
   ["y/rest"] "y/rest" = Mul ("y/rest_sum", "y/per_channel")
   ["y/centred"] "y/centred" = Sub ("y/v", "y/centre")
   ["y/square"] "y/square" = Mul ("y/centred", "y/centred")
   ["y/squares"] "y/squares" = ReduceSum <keepdims = 1> ("y/square", "y/last_axis_2")
   ["y/mean_square"] "y/mean_square" = Mul ("y/squares", "y/per_channel_2")
   ["y/rest_square"] "y/rest_square" = Mul ("y/rest", "y/rest")
   ["y/variance"] "y/variance" = Sub ("y/mean_square", "y/rest_square")
   ["y/variance_epsilon"] "y/variance_epsilon" = Add ("y/variance", "y/epsilon")
   ["y/deviation"] "y/deviation" = Sqrt ("y/variance_epsilon")
   ["y/inverse_deviation"] "y/inverse_deviation" = Reciprocal ("y/deviation")
   ["y/distance"] "y/distance" = Sub ("y/centred", "y/rest")
   ["y/normalised"] "y/normalised" = Mul ("y/distance", "y/inverse_deviation")
   ["y/scaled"] "y/scaled" = Mul ("y/normalised", gamma)
   [y] y = Add ("y/scaled", beta)
   sum = Add (d, y)
}
"#;

const WIDE: &str = r#"<
   ir_version: 8,
   opset_import: ["" : 17]
>
g (uint8[b,3] q) => (float[b,3] y)
   <uint8[3] z = {100, 128, 7},
    float[3] gamma = {1.0, 2.0, 3.0},
    float[3] "y/factors" = {1.0, 256.0, 16.0},
    float "y/per_channel" = {0.33333334},
    int64[1] "y/last_axis" = {-1},
    float "y/channels" = {3.0},
    float "y/digit_inverse" = {0.00390625},
    float "y/digit" = {256.0},
    int64[1] "y/last_axis_2" = {-1},
    int64[1] "y/last_axis_3" = {-1},
    int64[1] "y/last_axis_4" = {-1},
    float "y/two" = {2.0},
    float "y/per_channel_2" = {0.33333334},
    float "y/epsilon" = {0.00016}
   >
{
   ["y/v"] "y/v" = DequantizeLinear <axis = 1> (q, "y/factors", z)
   ["y/sum"] "y/sum" = ReduceSum <keepdims = 1> ("y/v", "y/last_axis")
   ["y/mean"] "y/mean" = Mul ("y/sum", "y/per_channel")
   ["y/centre"] "y/centre" = Round ("y/mean")
   ["y/centre_sum"] "y/centre_sum" = Mul ("y/centre", "y/channels")
   ["y/rest_sum"] "y/rest_sum" = Sub ("y/sum", "y/centre_sum")
   ["y/rest"] "y/rest" = Mul ("y/rest_sum", "y/per_channel")
   ["y/centred"] "y/centred" = Sub ("y/v", "y/centre")
   ["y/quotient"] "y/quotient" = Mul ("y/centred", "y/digit_inverse")
   ["y/high_digit"] "y/high_digit" = Round ("y/quotient")
   ["y/high"] "y/high" = Mul ("y/high_digit", "y/digit")
   ["y/low"] "y/low" = Sub ("y/centred", "y/high")
   ["y/high_high"] "y/high_high" = Mul ("y/high", "y/high")
   ["y/high_high_sum"] "y/high_high_sum" = ReduceSum <keepdims = 1> ("y/high_high", "y/last_axis_2")
   ["y/high_low"] "y/high_low" = Mul ("y/high", "y/low")
   ["y/high_low_sum"] "y/high_low_sum" = ReduceSum <keepdims = 1> ("y/high_low", "y/last_axis_3")
   ["y/low_low"] "y/low_low" = Mul ("y/low", "y/low")
   ["y/low_low_sum"] "y/low_low_sum" = ReduceSum <keepdims = 1> ("y/low_low", "y/last_axis_4")
   ["y/high_low_twice"] "y/high_low_twice" = Mul ("y/high_low_sum", "y/two")
   ["y/upper_squares"] "y/upper_squares" = Add ("y/high_high_sum", "y/high_low_twice")
   ["y/squares"] "y/squares" = Add ("y/upper_squares", "y/low_low_sum")
   ["y/mean_square"] "y/mean_square" = Mul ("y/squares", "y/per_channel_2")
   ["y/rest_square"] "y/rest_square" = Mul ("y/rest", "y/rest")
   ["y/variance"] "y/variance" = Sub ("y/mean_square", "y/rest_square")
   ["y/variance_epsilon"] "y/variance_epsilon" = Add ("y/variance", "y/epsilon")
   ["y/deviation"] "y/deviation" = Sqrt ("y/variance_epsilon")
   ["y/inverse_deviation"] "y/inverse_deviation" = Reciprocal ("y/deviation")
   ["y/distance"] "y/distance" = Sub ("y/centred", "y/rest")
   ["y/normalised"] "y/normalised" = Mul ("y/distance", "y/inverse_deviation")
   [y] y = Mul ("y/normalised", gamma)
}
"#;

mod numbers {
    use super::*;
    use fqvit_opt::ir::Tensor;
    use fqvit_opt::onnx;
    #[cfg(feature = "tract")]
    use fqvit_opt::runtime::{Array, Session, SessionOptions};
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    const EPS: f64 = 1e-6;

    /// One LayerNormalization over codes.
    struct Case {
        name: String,
        channels: usize,
        base: f32,
        factors: Vec<u32>,
        /// int8 codes instead of uint8.
        signed: bool,
        zeros: Vec<i32>,
        gamma: Vec<f32>,
        beta: Vec<f32>,
        /// Rows of codes.
        codes: Vec<i32>,
    }

    impl Case {
        /// `spread`: zero points a channel. Half of the rows are random; the others are the worst there are: all equal,
        /// all at one end, two ends in halves, one channel alone away from its zero point, and small steps.
        fn new(name: &str, channels: usize, shift: u32, worst: bool, spread: bool, signed: bool) -> Case {
            let mut r = ChaCha8Rng::seed_from_u64(channels as u64 + u64::from(shift));
            let low = if signed { -128 } else { 0 };
            let factors = (0..channels)
                // One channel without a shift: otherwise the common factor goes into the base and nothing is wide.
                .map(|c| 1 << if worst { if c == 0 { 0 } else { shift } } else { r.random_range(0..=shift) })
                .collect();
            let one = low + 117;
            let zeros: Vec<i32> = (0..channels)
                .map(|c| match (spread, worst) {
                    (false, _) => one,
                    (true, true) => low + if c % 2 == 0 { 0 } else { 255 },
                    (true, false) => low + r.random_range(0..=255),
                })
                .collect();
            let mut codes: Vec<i32> = (0..16 * channels).map(|_| low + r.random_range(0..=255)).collect();
            for row in 0..8 {
                codes.extend((0..channels).map(|c| match row {
                    0 => zeros[c],
                    1 => low,
                    2 => low + 255,
                    3 => low + if c % 2 == 0 { 255 } else { 0 },
                    4 if c == 5 => low + if zeros[c] > low + 127 { 0 } else { 255 },
                    4 => zeros[c],
                    5 => (zeros[c] + (c % 3 == 0) as i32).min(low + 255),
                    6 => (zeros[c] - (c % 7 == 0) as i32).max(low),
                    _ => low + (c * 37 % 256) as i32,
                }));
            }
            Case {
                name: name.to_owned(),
                channels,
                base: 0.0137,
                factors,
                signed,
                zeros,
                gamma: (0..channels).map(|_| r.random_range(-3.0..3.0)).collect(),
                beta: (0..channels).map(|_| r.random_range(-1.0..1.0)).collect(),
                codes,
            }
        }

        /// The same with any whole factors up to the largest, whose products with the base are exact.
        fn whole(mut self) -> Case {
            let mut r = ChaCha8Rng::seed_from_u64(self.channels as u64);
            let top = self.factors.iter().copied().max().unwrap_or(1);
            self.factors.iter_mut().skip(1).for_each(|f| *f = r.random_range(1..=top));
            self.base = f32::from_bits(self.base.to_bits() & !0xff);
            self
        }

        fn text(&self) -> String {
            let list = |v: Vec<String>| v.join(", ");
            let floats = |v: &[f32]| list(v.iter().map(|x| format!("{x:?}")).collect());
            let ints = |v: &[i32]| list(v.iter().map(i32::to_string).collect());
            let scales: Vec<f32> = self.factors.iter().map(|f| self.base * *f as f32).collect();
            let (c, ty) = (self.channels, if self.signed { "int8" } else { "uint8" });
            format!(
                "{HEAD}g ({ty}[n,{c}] q) => (float[n,{c}] y, uint8[n,{c}] k, float[n,{c}] r)
                 <float[{c}] s = {{{}}}, {ty}[{c}] z = {{{}}}, float[{c}] gamma = {{{}}}, float[{c}] beta = {{{}}},
                 float ys = {{0.0625}}, uint8 yz = {{128}}> {{
                 d = DequantizeLinear <axis = -1> (q, s, z)
                 y = LayerNormalization <axis = -1, epsilon = {EPS:e}> (d, gamma, beta)
                 k = QuantizeLinear (y, ys, yz)
                 r = Add (d, y) }}",
                floats(&scales),
                ints(&self.zeros),
                floats(&self.gamma),
                floats(&self.beta)
            )
        }

        #[cfg(feature = "tract")]
        fn rows(&self) -> usize {
            self.codes.len() / self.channels
        }

        /// The normalised value before gamma and beta, and the result, in double precision.
        fn reference(&self) -> Vec<(f64, f64)> {
            let n = self.channels as f64;
            let mut out = Vec::new();
            for row in self.codes.chunks(self.channels) {
                let x: Vec<f64> = row
                    .iter()
                    .enumerate()
                    .map(|(c, q)| f64::from(self.base) * f64::from((q - self.zeros[c]) * self.factors[c] as i32))
                    .collect();
                let mean = x.iter().sum::<f64>() / n;
                let var = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
                let eps = f64::from(EPS as f32);
                out.extend(x.iter().enumerate().map(|(c, x)| {
                    let h = (x - mean) / (var + eps).sqrt();
                    (h, h * f64::from(self.gamma[c]) + f64::from(self.beta[c]))
                }));
            }
            out
        }

        #[cfg(feature = "tract")]
        fn array(&self) -> Array {
            let dims = [self.rows(), self.channels];
            if self.signed {
                Array::new(&dims, self.codes.iter().map(|q| *q as i8).collect()).unwrap()
            } else {
                Array::new(&dims, self.codes.iter().map(|q| *q as u8).collect()).unwrap()
            }
        }
    }

    fn cases() -> Vec<Case> {
        let mut out = vec![
            Case::new("c96_k0", 96, 0, true, false, false),
            Case::new("c192_k8_worst_spread", 192, 8, true, true, false),
            Case::new("c1024_k7_worst_spread", 1024, 7, true, true, false),
            Case::new("c3072_k7_worst", 3072, 7, true, true, true),
            Case::new("c192_whole_zeros_u8", 192, 7, false, true, false).whole(),
            Case::new("c1024_whole_zeros_i8", 1024, 8, false, true, true).whole(),
        ];
        for channels in [192, 768] {
            for shift in [3, 7] {
                for (spread, zeros) in [(false, "one_zero"), (true, "zeros")] {
                    for signed in [false, true] {
                        let name = format!("c{channels}_k{shift}_{zeros}_{}", if signed { "i8" } else { "u8" });
                        out.push(Case::new(&name, channels, shift, false, spread, signed));
                    }
                }
            }
        }
        out
    }

    /// The rewritten model and the one it was made from, encoded.
    fn models(c: &Case) -> (Vec<u8>, Vec<u8>) {
        let text = c.text();
        let (m, notes) = apply(&text);
        assert!(notes.is_empty(), "{}: {notes:?}", c.name);
        assert!(!m.graph.nodes().any(|(_, n)| n.op.is("LayerNormalization")), "{}", c.name);
        let float = parse_model(&text).unwrap();
        (onnx::encode(validate(&m).unwrap()), onnx::encode(validate(&float).unwrap()))
    }

    #[test]
    fn sums_leave_float32_only_where_they_must() {
        let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("integer_norm");
        std::fs::create_dir_all(&dir).unwrap();
        let mut int32 = Vec::new();
        for c in cases() {
            let (bytes, float) = models(&c);
            if bytes.windows(4).any(|w| w == b"_i32") {
                int32.push(c.name.clone());
            }
            // For onnxruntime.
            let write = |what: &str, data: &[u8]| std::fs::write(dir.join(format!("{}.{what}", c.name)), data).unwrap();
            write("onnx", &bytes);
            write("float.onnx", &float);
            write("codes", &c.codes.iter().map(|q| *q as u8).collect::<Vec<_>>());
            let reference: Vec<f32> = c.reference().iter().map(|r| r.1 as f32).collect();
            write("expected", &Tensor::f32(&[reference.len() as i64], &reference).to_le_bytes().unwrap());
        }
        assert!(int32.iter().any(|n| n == "c3072_k7_worst"), "{int32:?}");
        assert!(!int32.iter().any(|n| n.starts_with("c192_k3")), "{int32:?}");
    }

    /// The distance to double precision, over the size of the terms that make the result.
    #[cfg(feature = "tract")]
    fn worst(c: &Case, y: &[f32]) -> f64 {
        let want = c.reference();
        assert_eq!(want.len(), y.len());
        let far = |(i, ((h, w), y)): (usize, (&(f64, f64), &f32))| {
            let k = i % c.channels;
            let size = (h * f64::from(c.gamma[k])).abs() + f64::from(c.beta[k]).abs();
            (w - f64::from(*y)).abs() / size.max(1e-6)
        };
        // NaN must not be lost on the way.
        want.iter().zip(y).enumerate().map(far).fold(0.0, |a, b| if b.is_nan() || b > a { b } else { a })
    }

    #[cfg(feature = "tract")]
    #[test]
    fn tract_is_close_to_double_precision() {
        let mut bad = Vec::new();
        for c in cases() {
            let (bytes, float) = models(&c);
            for optimize in [true, false] {
                let options = SessionOptions { optimize, batch: c.rows(), ..Default::default() };
                let run = |b: &[u8]| {
                    let m = fqvit_opt::onnx::parse(b.to_vec().into(), None, "model").unwrap().model;
                    let session = Session::of(validate(&m).unwrap(), &options).unwrap();
                    session.run(&[("q", c.array())]).unwrap().outputs
                };
                let (got, was) = (run(&bytes), run(&float));
                let (e, f) = (worst(&c, &got[0].f32s()), worst(&c, &was[0].f32s()));
                let off = off_ties(&c, &got[1].values::<u8>().unwrap());
                if e.is_nan() || e > 3e-6 || off > 0 {
                    bad.push(format!(
                        "{} (optimize: {optimize}): {e:e}, float LayerNormalization {f:e}; {off} codes off",
                        c.name
                    ));
                }
            }
        }
        assert!(bad.is_empty(), "{}", bad.join("\n"));
    }

    /// Codes behind the norm that are not the double-precision result's, ties aside.
    #[cfg(feature = "tract")]
    fn off_ties(c: &Case, codes: &[u8]) -> usize {
        let want = c.reference();
        want.iter()
            .zip(codes)
            .filter(|((_, y), q)| {
                let at = y / 0.0625;
                let code = (at.round_ties_even() + 128.0).clamp(0.0, 255.0);
                let tie = (at - at.floor() - 0.5).abs() < 1e-5 * at.abs().max(1.0);
                !tie && code != f64::from(**q)
            })
            .count()
    }
}
