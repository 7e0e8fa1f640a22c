//! The attentions on which emitted Log-Int-Softmax is compared with its reference, in every runtime.

use fqvit_opt::ir::validate::validate;
use fqvit_opt::ir::{DType, Model};
use fqvit_opt::quant::lis::standalone::{self, Sizes};
use fqvit_opt::quant::lis::{Anchor, Form, LisFacts, LisPlan, LisSpec, LogBase, Normalise, Rounding, Tail, reference};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// One attention with its inputs and the output the reference gives.
pub struct Case {
    pub name: String,
    pub model: Vec<u8>,
    /// The same with a Softmax of the codes' logarithms, where there is such a form, and what the codes of the reference give
    /// in exact arithmetic.
    #[allow(dead_code)] // Not all who include this file run it.
    pub softmax: Option<(Vec<u8>, Vec<f32>)>,
    pub sizes: Sizes,
    pub scores: Vec<u8>,
    /// V's codes as bytes, whatever their sign; none where the weights are the output.
    pub v: Vec<u8>,
    pub v_type: DType,
    /// Sizes and elements.
    pub mask: Option<(Vec<usize>, Vec<bool>)>,
    pub expected: Vec<f32>,
}

/// What varies besides the spec.
#[derive(Clone, Copy)]
struct Setting {
    sizes: Sizes,
    scale: [f32; 2],
    v: (DType, i32),
    v_per_head: bool,
    mask: Mask,
    known: bool,
    opset: i64,
}

#[derive(Clone, Copy, PartialEq)]
enum Mask {
    None,
    /// `[B, 1, 1, M]`.
    Keys,
    /// `[B, H, N, M]`, the first row of every head dropped whole.
    Full,
}

fn sizes(queries: usize, keys: usize) -> Sizes {
    Sizes { batch: 1, heads: 2, queries, keys, width: 5 }
}

const PLAIN: Setting = Setting {
    sizes: Sizes { batch: 2, heads: 2, queries: 7, keys: 197, width: 9 },
    scale: [0.1, 0.1],
    v: (DType::UINT8, 128),
    v_per_head: false,
    mask: Mask::None,
    known: true,
    opset: 17,
};

/// Every variant that has a meaning, by name.
pub fn variants() -> Vec<(String, LisSpec)> {
    let mut out = Vec::new();
    for anchor in [Anchor::Max, Anchor::SumTable, Anchor::SumPoly, Anchor::SumIexp] {
        for bits in 3..=6 {
            for rounding in [Rounding::Geometric, Rounding::Paper] {
                for tail in [Tail::Levels17, Tail::Zero, Tail::Saturate] {
                    for normalise in [Normalise::Renormalised, Normalise::Pow15] {
                        let spec = LisSpec::new(anchor, bits)
                            .and_then(|s| s.with_tail(tail).with_normalise(normalise))
                            .and_then(|s| s.with_rounding(rounding));
                        if let Ok(spec) = spec {
                            out.push((format!("{anchor:?}-{bits}-{rounding:?}-{tail:?}-{normalise:?}"), spec));
                        }
                    }
                }
            }
        }
    }
    for (name, base) in [
        ("sqrt2", vec![LogBase::Root2]),
        ("cbrt2", vec![LogBase::Root3]),
        ("mixed", vec![LogBase::Two, LogBase::Root3]),
        ("mixed", vec![LogBase::Root2, LogBase::Two]),
    ] {
        for anchor in [Anchor::Max, Anchor::SumTable, Anchor::SumPoly, Anchor::SumIexp] {
            let spec = LisSpec::new(anchor, 4).and_then(|s| s.with_base(base.clone())).expect("bases have a meaning");
            out.push((format!("{anchor:?}-4-{name}-{}", base[0].steps()), spec));
        }
    }
    let no_codes = LisSpec::default().with_rounding(Rounding::None).expect("anchor max has a meaning without codes");
    out.push(("Max-None".to_owned(), no_codes));
    for (name, fine) in [("fine8", vec![8]), ("fine-mixed", vec![14, 2]), ("fine-mixed", vec![0, 6])] {
        for (bits, tail) in [(4, Tail::Zero), (4, Tail::Saturate), (4, Tail::Levels17), (3, Tail::Zero)] {
            let spec = LisSpec::new(Anchor::Max, bits).and_then(|s| s.with_tail(tail).with_fine(fine.clone()));
            out.push((format!("{name}-{}-{bits}-{tail:?}", fine[0]), spec.expect("half octaves have a meaning")));
        }
    }
    out
}

/// All cases, in a fixed order.
pub fn cases() -> Vec<Case> {
    let settings: Vec<(&str, Setting)> = vec![
        ("plain", PLAIN),
        ("per-head", Setting { scale: [0.03, 0.4], v_per_head: true, v: (DType::INT8, -3), opset: 18, ..PLAIN }),
        ("distances", Setting { sizes: sizes(256, 2), scale: [0.02, 0.17], opset: 20, ..PLAIN }),
        ("coarse", Setting { scale: [0.9, 40.0], v: (DType::UINT8, 0), ..PLAIN }),
        ("fine", Setting { scale: [1e-5, 0.004], v: (DType::INT8, 127), opset: 13, ..PLAIN }),
        ("masked", Setting { mask: Mask::Full, scale: [0.1, 0.2], ..PLAIN }),
        ("key-mask", Setting { mask: Mask::Keys, v: (DType::INT8, 0), opset: 21, ..PLAIN }),
        ("few", Setting { sizes: sizes(9, 3), v: (DType::UINT8, 131), ..PLAIN }),
        ("one", Setting { sizes: sizes(3, 1), ..PLAIN }),
        ("long", Setting { sizes: sizes(5, 4096), scale: [0.01, 0.2], ..PLAIN }),
        ("dynamic", Setting { sizes: sizes(4, 1500), scale: [0.05, 0.05], known: false, ..PLAIN }),
    ];
    let mut out = Vec::new();
    for (vname, spec) in variants() {
        for (i, (sname, setting)) in settings.iter().enumerate() {
            for form in [Form::Auto, Form::Planes] {
                // Forms differ in the product only; the planes see every setting on the default and some on the rest.
                if form == Form::Planes && spec != LisSpec::default() && !matches!(*sname, "plain" | "per-head") {
                    continue;
                }
                let name = format!("{vname}-{form:?}-{sname}");
                if let Some(c) = case(name, &spec.clone().with_form(form), setting, 100 + i as u64) {
                    out.push(c);
                }
            }
            // Weights that are no product's operand: where the rest of the arithmetic differs, and on the default.
            if spec == LisSpec::default() || matches!(*sname, "plain" | "distances" | "masked" | "dynamic") {
                let alone = Setting { sizes: Sizes { width: 0, ..setting.sizes }, v_per_head: false, ..*setting };
                out.extend(case(format!("{vname}-weights-{sname}"), &spec, &alone, 100 + i as u64));
            }
        }
    }
    out
}

/// `None` where the form is refused at this setting: planes that are not exact, or unknown keys for planes.
fn case(name: String, spec: &LisSpec, s: &Setting, seed: u64) -> Option<Case> {
    let Sizes { batch, heads, queries, keys, width } = s.sizes;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let scale = if s.scale[0] == s.scale[1] { vec![s.scale[0]] } else { s.scale.to_vec() };
    let v_scale = if s.v_per_head { vec![0.013, 0.4] } else { vec![0.021] };
    let (v_type, v_zero) = s.v;
    let known = s.known.then_some(keys);
    let facts = match width {
        0 => LisFacts::of_weights(scale, known),
        _ => LisFacts { score_scale: scale, v_scale, v_zero, v_type, keys: known },
    };
    let mask_dims = match s.mask {
        Mask::None => None,
        Mask::Keys => Some(vec![batch, 1, 1, keys]),
        Mask::Full => Some(vec![batch, heads, queries, keys]),
    };
    let plan = LisPlan::new(spec, &facts, &name).ok()?;
    let model = standalone::model(spec, &facts, s.sizes, mask_dims.as_deref(), s.opset)
        .unwrap_or_else(|e| panic!("{name}: {e}"));
    let encoded = |m: &Model| fqvit_opt::onnx::encode(validate(m).unwrap_or_else(|e| panic!("{name}: {e}")));
    let model = encoded(&model);
    let softmax = standalone::softmax_model(spec, &facts, s.sizes, mask_dims.as_deref(), s.opset)
        .unwrap_or_else(|e| panic!("{name}: {e}"))
        .as_ref()
        .map(|m| (encoded(m), Vec::new()));
    let mut softmax = softmax;

    let rows = batch * heads * queries;
    let mut scores = Vec::with_capacity(rows * keys);
    for r in 0..rows {
        row(&mut rng, r % queries, queries, keys, &mut scores);
    }
    let v: Vec<u8> = (0..batch * heads * keys * width).map(|_| rng.random()).collect();
    let code = |b: u8| if v_type == DType::INT8 { i32::from(b as i8) } else { i32::from(b) };
    let mask = mask_dims.map(|dims| {
        let full = s.mask == Mask::Full;
        let n: usize = dims.iter().product();
        let on: Vec<bool> = (0..n).map(|i| !(full && (i / keys) % queries == 0) && rng.random_bool(0.6)).collect();
        (dims, on)
    });
    let mut expected = Vec::with_capacity(rows * width);
    for r in 0..rows {
        let (b, head) = (r / (heads * queries), (r / queries) % heads);
        let m = mask.as_ref().map(|(_, on)| {
            let at = if s.mask == Mask::Full { r } else { b };
            &on[at * keys..(at + 1) * keys]
        });
        let scores = &scores[r * keys..(r + 1) * keys];
        let shares = shares_of_codes(&plan, head, scores, m);
        if width == 0 {
            expected.extend(reference::shares(&plan, head, scores, m));
            softmax.iter_mut().for_each(|(_, exact)| exact.extend(shares.iter().map(|s| *s as f32)));
            continue;
        }
        let at = (b * heads + head) * keys * width;
        let v: Vec<i32> = v[at..at + keys * width].iter().map(|x| code(*x)).collect();
        let v_scale = f64::from(facts.v_scale[head.min(facts.v_scale.len() - 1)]);
        let value = |j: usize, d: usize| f64::from(v[j * width + d] - v_zero) * v_scale;
        let sum = |d: usize| shares.iter().enumerate().map(|(j, s)| s * value(j, d)).sum::<f64>() as f32;
        softmax.iter_mut().for_each(|(_, exact)| exact.extend((0..width).map(sum)));
        expected.extend(reference::attend(&plan, head, scores, m, &v, width));
    }
    Some(Case { name, model, softmax, sizes: s.sizes, scores, v, v_type, mask, expected })
}

/// The shares of a row, from the codes of the reference: base to the power of minus the code, or half octaves up to the
/// knee and octaves from there. Without codes, exponentials of the distances.
fn shares_of_codes(plan: &LisPlan, head: usize, row: &[u8], mask: Option<&[bool]>) -> Vec<f64> {
    let (spec, facts) = (plan.spec(), plan.facts());
    let fine = spec.fine().get(head).or(spec.fine().last()).map_or(0.0, |f| f64::from(*f));
    let scale = f64::from(facts.score_scale[head.min(facts.score_scale.len() - 1)]);
    let weight = |c: u32| {
        let c = match spec.tail() {
            _ if spec.rounding() == Rounding::None => return (-f64::from(c) * scale).exp(),
            Tail::Saturate => c.min(spec.levels() - 1),
            _ if c >= spec.levels() => return 0.0,
            _ => c,
        };
        let c = f64::from(c);
        let octaves = if spec.fine().is_empty() {
            c / f64::from(spec.base_of(head).steps())
        } else {
            (c / 2.0).max(c - fine / 2.0)
        };
        (-octaves).exp2()
    };
    let codes = reference::codes(plan, head, row, mask);
    let weights: Vec<f64> = codes.into_iter().map(|c| c.map_or(0.0, weight)).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|w| if sum > 0.0 { w / sum } else { 0.0 }).collect()
}

/// A row of scores: every distance once where the rows are as many, otherwise bell-shaped, flat, peaked or equal.
fn row(rng: &mut impl Rng, i: usize, rows: usize, keys: usize, out: &mut Vec<u8>) {
    if rows == 256 {
        out.extend((0..keys).map(|j| if j == 0 { 255 } else { i as u8 }));
        return;
    }
    match i % 5 {
        0 => out.extend((0..keys).map(|_| rng.random::<u8>())),
        1 => out.extend((0..keys).map(|_| (0..8).map(|_| rng.random_range(0..32u32)).sum::<u32>() as u8)),
        2 => out.extend((0..keys).map(|j| if j == keys / 2 { 255 } else { rng.random_range(0..60) })),
        3 => out.extend((0..keys).map(|_| 77)),
        _ => out.extend((0..keys).map(|_| rng.random_range(200..=255))),
    }
}
