use super::*;
use crate::ir::Model;
use crate::plan::QuantPlan;
use crate::plan::sites::{self, Sites};
use crate::text::{Elide, parse_model, print_model};

/// A model with `body` between `x` and `y`, and its sites.
fn model(shape: &str, body: &str) -> (Model, Sites) {
    let mut m =
        parse_model(&format!("<ir_version: 8, opset_import: [\"\" : 20]>\n g (float[{shape}] x) => (y) {body}"))
            .expect("parses");
    crate::infer::annotate(&mut m);
    let sites = sites::find(&m, vec![]);
    (m, sites)
}

fn folded(m: &Model, sites: &Sites, value: &str, factors: &[f32], offsets: &[f32]) -> Result<Model, String> {
    let numbers = |v: &[f32]| v.iter().map(|v| v.to_string()).collect::<Vec<_>>().join(" ");
    let plan = format!(
        "version: 1\nrecipe: test\nmodel: test\nfolds:\n- {{ value: {value}, role: other, factors: '{}', offsets: '{}', \
         reason: '' }}\n",
        numbers(factors),
        numbers(offsets)
    );
    let plan = QuantPlan::from_yaml(&plan, "test").expect("a plan");
    let mut cx = Context::new(m.clone()).with_plan(&plan, sites);
    FoldFactors.run(&mut cx).map_err(|e| e.to_string())?;
    crate::ir::validate::validate(&cx).expect("the pass leaves a valid model");
    Ok(cx.into_model())
}

const NORM: &str = "<float[2] g = {2, 3}, float[2] b = {4, 5}, float[2,1] w = {7, 11}, float[1] c = {100},
    float[2,1] v = {1, 1}, float[1] d = {0}>
{ n = LayerNormalization (x, g, b) m = MatMul (n, w) p = Add (m, c) k = MatMul (n, v) q = Add (d, k) y = Mul (p, q) }";

#[test]
fn a_norm_takes_factors_and_offsets_into_gamma_and_beta() {
    let (m, sites) = model("1,3,2", NORM);
    let text = print_model(&folded(&m, &sites, "n", &[2.0, 4.0], &[1.0, -3.0]).unwrap(), Elide::Full);
    for line in [
        "float[2] g_2 = {1.0, 0.75}",
        "float[2] b_2 = {1.5, 2.0}",
        "float[2,1] w_2 = {14.0, 44.0}",
        "float[1] c_2 = {74.0}",
        "float[1] d_2 = {-2.0}",
    ] {
        assert!(text.contains(line), "no `{line}` in\n{text}");
    }
}

#[test]
fn in_front_of_a_convolution_channels_are_the_second_axis() {
    let body = "<float[1,2,1,2] w = {1, 2, 3, 4}, float[1] b = {1}> { y = Conv <strides = [1, 2]> (x, w, b) }";
    let (m, sites) = model("1,2,4,4", body);
    let text = print_model(&folded(&m, &sites, "x", &[2.0, 0.5], &[1.0, 10.0]).unwrap(), Elide::Full);
    for line in [
        "float[2,1,1] x_folded_offset = {1.0, 10.0}",
        "float[2,1,1] x_folded_factor = {0.5, 2.0}",
        "float[1,2,1,2] w_2 = {2.0, 4.0, 1.5, 2.0}",
        "float[1] b_2 = {74.0}",
        "x_folded_shifted = Sub (x, x_folded_offset)",
        "x_folded = Mul (x_folded_shifted, x_folded_factor)",
    ] {
        assert!(text.contains(line), "no `{line}` in\n{text}");
    }
}

#[test]
fn what_can_not_be_folded_is_refused() {
    let of = |shape: &str, body: &str, value: &str, factors: &[f32], offsets: &[f32]| {
        let (m, sites) = model(shape, body);
        folded(&m, &sites, value, factors, offsets).unwrap_err()
    };
    let padded = "<float[1,2,1,1] w = {1, 2}, float[1] b = {0}> { y = Conv <pads = [0, 1, 0, 1]> (x, w, b) }";
    let without = "<float[2,1] w = {1, 2}> { r = Relu (x) y = MatMul (r, w) }";
    let shared = "<float[2,1] w = {1, 2}> { r = Relu (x) m = MatMul (r, w) s = Neg (r) y = Add (m, s) }";
    for (e, what) in [
        (of("1,3,2", NORM, "n", &[2.0], &[]), "number of factors"),
        (of("1,3,2", NORM, "n", &[2.0, 1.0], &[1.0]), "number of offsets"),
        (of("1,3,2", NORM, "n", &[2.0, -1.0], &[]), "must be positive"),
        (of("1,2,4,4", padded, "x", &[2.0, 1.0], &[1.0, 1.0]), "a Conv that pads"),
        (of("1,3,2", without, "r", &[2.0, 1.0], &[1.0, 1.0]), "has no bias"),
        (of("1,3,2", shared, "r", &[2.0, 1.0], &[]), "not all its readers"),
    ] {
        assert!(e.contains(what) && e.contains("fold of `"), "{e}");
    }
}

#[cfg(feature = "tract")]
#[test]
fn the_float_model_computes_the_same() {
    use crate::passes::quantize::same_tests::{difference, spread};
    let numbers = |n: usize, seed| -> String {
        let v: Vec<String> = spread(n, seed).iter().map(|v| (v.log2() / 3.0).to_string()).collect();
        v.join(", ")
    };
    let norm = format!(
        "<float[6] g = {{{}}}, float[6] b = {{{}}}, float[6,5] w = {{{}}}, float[5] c = {{{}}}>
         {{ v = LayerNormalization (x, g, b) m = MatMul (v, w) y = Add (m, c) }}",
        numbers(6, 1),
        numbers(6, 2),
        numbers(30, 3),
        numbers(5, 4)
    );
    let behind = format!(
        "<float[5,6] w = {{{}}}, float[5] c = {{{}}}> {{ v = Relu (x) y = Gemm <transB = 1> (v, w, c) }}",
        numbers(30, 3),
        numbers(5, 4)
    );
    let image = format!(
        "<float[4,6,2,3] w = {{{}}}, float[4] c = {{{}}}>
         {{ v = Relu (x) y = Conv <strides = [1, 2], dilations = [2, 1]> (v, w, c) }}",
        numbers(144, 3),
        numbers(4, 4)
    );
    let no_beta = norm.replace("(x, g, b)", "(x, g)");
    for (shape, body) in [("2,7,6", &norm), ("2,7,6", &no_beta), ("7,6", &behind), ("2,6,5,7", &image)] {
        let (m, sites) = model(shape, body);
        let offsets: Vec<f32> = spread(6, 8).iter().map(|v| v.log2()).collect();
        for o in [&offsets[..], &[]] {
            let moved = difference(&m, &folded(&m, &sites, "v", &spread(6, 9), o).unwrap());
            assert!(moved < 1e-5, "{body}: {moved}");
        }
    }
}
