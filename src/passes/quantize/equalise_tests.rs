use super::*;
use crate::ir::Model;
use crate::ir::validate::validate;
use crate::plan::channel_map::tests::{Layout, sites_of};
use crate::text::{Elide, parse_model, print_model};

fn entry(between: Between, names: [&str; 2], factors: &[f32]) -> Equalisation {
    let [divided, multiplied] = names.map(str::to_owned);
    Equalisation { between, divided, multiplied, factors: factors.to_vec(), reason: String::new() }
}

fn applied(m: &Model, equalisations: &[Equalisation]) -> Result<Model, String> {
    let mut cx = Context::new(m.clone()).with_equalisations(equalisations, &sites_of(m));
    let done = Equalise.run(&mut cx).map_err(|e| e.to_string())?;
    validate(&cx).expect("the pass leaves a valid model");
    assert_eq!(done.changes, equalisations.iter().filter(|e| !e.factors.is_empty()).count());
    Ok(cx.into_model())
}

const SMALL: &str = "<ir_version: 8, opset_import: [\"\" : 17]>
g (float[1,3,2] x) => (y)
<float[2,2] wq = {1, 2, 3, 4}, float[2] bq = {5, 6}, float[2,2] wk = {1, 1, 1, 1}, float[2,2] wv = {8, 4, 2, 1},
 float[2] bv = {3, 5}, float[2,2] w = {1, 2, 3, 4}>
{
  qm = MatMul (x, wq)
  q = Add (qm, bq)
  k = MatMul (x, wk)
  vm = MatMul (x, wv)
  v = Add (vm, bv)
  kt = Transpose <perm = [0, 2, 1]> (k)
  s = MatMul (q, kt)
  p = Softmax (s)
  o = MatMul (p, v)
  y = MatMul (o, w)
}";

fn small() -> Model {
    let mut m = parse_model(SMALL).expect("parses");
    crate::infer::annotate(&mut m);
    m
}

#[test]
fn weights_and_biases_trade_factors() {
    let e = [
        entry(Between::ValuesProjection, ["v", "y"], &[2.0, 0.5]),
        entry(Between::QueriesKeys, ["q", "k"], &[0.25, 8.0]),
    ];
    let text = print_model(&applied(&small(), &e).unwrap(), Elide::Full);
    let wanted = [
        ("wq", "float[2,2]", "{4.0, 0.25, 12.0, 0.5}"),
        ("bq", "float[2]", "{20.0, 0.75}"),
        ("wk", "float[2,2]", "{0.25, 8.0, 0.25, 8.0}"),
        ("wv", "float[2,2]", "{4.0, 8.0, 1.0, 2.0}"),
        ("bv", "float[2]", "{1.5, 10.0}"),
        ("w", "float[2,2]", "{2.0, 4.0, 1.5, 2.0}"),
    ];
    for (name, ty, values) in wanted {
        // The old constant, which nobody reads any more, keeps the name until it is swept.
        let line = format!("{ty} {name}_2 = {values}");
        assert!(text.contains(&line), "no `{line}` in\n{text}");
    }
    // Nothing else changes: with the new names of constants put back, the nodes are those of the model.
    let nodes = |t: &str| t[t.find("\n{").expect("a body")..].replace("_2", "");
    assert_eq!(nodes(&text), nodes(&print_model(&small(), Elide::Full)));
}

#[test]
fn an_entry_without_factors_changes_nothing() {
    let m = small();
    let out = applied(&m, &[entry(Between::ValuesProjection, ["v", "y"], &[])]).unwrap();
    assert_eq!(print_model(&out, Elide::Full), print_model(&m, Elide::Full));
}

#[test]
fn what_is_not_proven_is_refused() {
    let of = |e: &[Equalisation]| applied(&small(), e).unwrap_err();
    let values = |f: &[f32]| entry(Between::ValuesProjection, ["v", "y"], f);
    for (e, what) in [
        (of(&[entry(Between::ValuesProjection, ["q", "y"], &[2.0, 1.0])]), "no two layers whose channels meet"),
        (of(&[entry(Between::QueriesKeys, ["v", "y"], &[2.0, 1.0])]), "no two layers whose channels meet"),
        (of(&[values(&[2.0])]), "number of factors"),
        (of(&[values(&[2.0, 0.0])]), "must be positive"),
        (of(&[values(&[2.0, 1.0]), values(&[2.0, 1.0])]), "twice"),
    ] {
        assert!(e.contains(what) && e.contains("equalisation of `"), "{e}");
    }
}

/// The largest difference that the pass makes, with random factors for every pair of layers, as a share of the largest
/// output; and how many pairs there are.
#[cfg(feature = "tract")]
fn moved(m: &Model, sites: &Sites) -> (f32, usize) {
    use crate::passes::quantize::same_tests::{difference, spread};
    let g = &m.graph;
    let pairs = pairs(g, sites);
    let e: Vec<Equalisation> = pairs
        .iter()
        .enumerate()
        .map(|(i, p)| {
            let names = [p.first, p.second].map(|l| g.name_of(sites.linears[l].out));
            entry(p.between, names, &spread(p.to.len(), i as u32 * 1000))
        })
        .collect();
    let mut cx = Context::new(m.clone()).with_equalisations(&e, sites);
    Equalise.run(&mut cx).expect("the pass runs");
    (difference(m, &cx), pairs.len())
}

#[cfg(feature = "tract")]
#[test]
fn the_float_model_computes_the_same_in_every_layout() {
    let layouts = [
        Layout::heads(2, 3, [false, false]),
        Layout::heads(2, 3, [true, false]),
        Layout::heads(3, 4, [false, true]),
        Layout::merged(2, 3),
        Layout::plain(5),
    ];
    for (i, l) in layouts.iter().enumerate() {
        let m = l.model();
        let (worst, pairs) = moved(&m, &sites_of(&m));
        assert!(worst < 1e-4 && pairs == 2, "layout {i}: {pairs} pairs, {worst}");
    }
}

/// Exported models, and how many pairs each has.
#[cfg(feature = "tract")]
const EXPORTED: &[(&str, usize)] = &[
    ("digits/digits_vit.onnx", 8),
    ("zoo/hf_vit-sdpa.torchscript.dynbatch.opset17.onnx", 4),
    ("zoo/timm_vit-fused.torchscript.dynbatch.opset17.onnx", 4),
];

#[cfg(feature = "tract")]
#[test]
fn exported_models_compute_the_same() {
    use crate::compile::{Journal, prepare};
    let mut wrong = Vec::new();
    for (file, wanted) in EXPORTED {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(file);
        let m = crate::onnx::load(&path).expect("loads").model;
        let rules = crate::pattern::RuleSet::embedded().expect("the rules are sound");
        let how = crate::recipe::Prepare { opset: 17 };
        let p = prepare(&m, &how, &rules, false, &mut Journal::default()).expect("is prepared");
        let (worst, pairs) = moved(&p.model, &p.sites);
        if worst >= 1e-4 || pairs != *wanted {
            wrong.push(format!("{file}: {pairs} pairs, moved by {worst}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
