//! The rules against what real exporters wrote: every attention, LayerNorm and GELU of the sample models is found.
//!
//! The counts follow from the architectures. A plain encoder of depth 2 has 2 attentions, 2 GELUs and 5 LayerNorms (two a
//! block and the last one); `nn.TransformerEncoder` without a final norm has 4. The Swin samples have 2 stages of 2
//! blocks: 4 attentions, 4 GELUs, 11 LayerNorms (8 in blocks, patch embedding, patch merging, the last one). The digit
//! model has depth 4.

use std::path::Path;

use fqvit_opt::ir::{Def, Model};
use fqvit_opt::onnx::load;
use fqvit_opt::passes::decompose_attention::DecomposeAttention;
use fqvit_opt::passes::raise_opset::RaiseOpset;
use fqvit_opt::passes::{ApplyRules, Pass, opset_wanted};
use fqvit_opt::pattern::{Facts, MaskKind, RuleSet, attentions, gelus, layer_norms};

fn sample(path: &str) -> Model {
    load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(path)).unwrap().model
}

/// File, attentions (outside fused Attention nodes), LayerNorms, GELUs.
const SAMPLES: &[(&str, usize, usize, usize)] = &[
    ("zoo/hf_swin.torchscript.opset17.onnx", 4, 11, 4),
    ("zoo/hf_vit-eager.dynamo.opset20.onnx", 2, 5, 2),
    ("zoo/hf_vit-eager.torchscript.dynbatch.opset13.onnx", 2, 5, 2),
    ("zoo/hf_vit-sdpa.dynamo.opset20.onnx", 2, 5, 2),
    // Two fused Attention nodes: there is nothing to recognise before they are decomposed.
    ("zoo/hf_vit-sdpa.dynamo.opset23.onnx", 0, 5, 2),
    ("zoo/hf_vit-sdpa.torchscript.dynbatch.opset17.onnx", 2, 5, 2),
    ("zoo/nn_encoder.dynamo.opset20.onnx", 2, 4, 2),
    ("zoo/nn_encoder.torchscript.opset17.onnx", 2, 4, 2),
    ("zoo/timm_deit_distilled-eager.torchscript.dynbatch.opset17.onnx", 2, 5, 2),
    ("zoo/timm_dinov2-fused.dynamo.dynbatch.opset20.onnx", 2, 5, 2),
    ("zoo/timm_swin-eager.dynamo.opset20.onnx", 4, 11, 4),
    ("zoo/timm_swin-eager.torchscript.dynbatch.opset17.onnx", 4, 11, 4),
    ("zoo/timm_swin-eager.torchscript.opset13.onnx", 4, 11, 4),
    ("zoo/timm_vit-eager.dynamo.dynbatch.opset20.onnx", 2, 5, 2),
    ("zoo/timm_vit-eager.dynamo.opset18.onnx", 2, 5, 2),
    ("zoo/timm_vit-eager.torchscript.dynbatch.opset13.onnx", 2, 5, 2),
    ("zoo/timm_vit-eager.torchscript.dynbatch.opset17.onnx", 2, 5, 2),
    ("zoo/timm_vit-eager.torchscript.opset11.onnx", 2, 5, 2),
    ("zoo/timm_vit-fused.dynamo.dynbatch.opset23.onnx", 0, 5, 2),
    ("zoo/timm_vit-fused.dynamo.opset20.onnx", 2, 5, 2),
    ("zoo/timm_vit-fused.torchscript.dynbatch.opset17.onnx", 2, 5, 2),
    ("zoo/timm_vit-fused.torchscript.opset14.onnx", 2, 5, 2),
    ("zoo/timm_vit-fused.torchscript.opset20.onnx", 2, 5, 2),
    ("zoo/tv_swin.dynamo.opset20.onnx", 4, 11, 4),
    ("zoo/tv_vit.dynamo.opset20.onnx", 2, 5, 2),
    ("digits/digits_vit.onnx", 4, 9, 4),
];

#[test]
fn every_sample_is_recognised() {
    let rules = RuleSet::embedded().unwrap();
    let mut wrong = Vec::new();
    for (file, a, l, g) in SAMPLES {
        let m = sample(file);
        let got = (attentions(&m, &rules).len(), layer_norms(&m, &rules).len(), gelus(&m, &rules).len());
        if got != (*a, *l, *g) {
            wrong.push(format!("{file}: {got:?}, expected {:?}", (a, l, g)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn attention_operators_are_recognised_once_they_are_written_out() {
    let rules = RuleSet::embedded().unwrap();
    for file in ["zoo/hf_vit-sdpa.dynamo.opset23.onnx", "zoo/timm_vit-fused.dynamo.dynbatch.opset23.onnx"] {
        let mut m = sample(file);
        let out = DecomposeAttention.run_on(&mut m).unwrap();
        assert!(out.changes == 2 && out.notes.is_empty(), "{file}: {:?}", out.notes);
        let found = attentions(&m, &rules);
        assert_eq!(found.len(), 2, "{file}");
        assert!(found.iter().all(|a| a.chain.scale.is_some_and(|s| s.factor == 0.25)), "{file}");
    }
}

#[test]
fn every_softmax_of_a_sample_belongs_to_an_attention() {
    let rules = RuleSet::embedded().unwrap();
    for (file, ..) in SAMPLES {
        let m = sample(file);
        let found: Vec<_> = attentions(&m, &rules).iter().map(|a| a.softmax).collect();
        for (id, n) in m.graph.nodes().filter(|(_, n)| n.op.is("Softmax")) {
            assert!(found.contains(&id), "{file}: {}", m.graph.name_of(n.out().unwrap()));
        }
    }
}

#[test]
fn the_parts_of_an_attention_fit_together() {
    let rules = RuleSet::embedded().unwrap();
    for (file, ..) in SAMPLES {
        let m = sample(file);
        let g = &m.graph;
        for a in attentions(&m, &rules) {
            let p = a.product.expect("the samples are plain");
            let product = g.node(p.node);
            assert_eq!((product.input(0), product.input(1)), (Some(p.q), Some(p.k)), "{file}");
            assert_eq!(g.node(a.softmax).input(0), Some(a.scores), "{file}");
            assert_eq!(g.node(a.weighted).input(0), Some(a.probs), "{file}");
            assert_eq!(g.node(a.weighted).input(1), a.v, "{file}");
            let mut v = a.scores_product;
            for n in &a.chain.nodes {
                assert!(g.node(*n).inputs.contains(&Some(v)), "{file}: the chain has a gap");
                v = g.node(*n).out().unwrap();
            }
            assert_eq!(v, a.scores, "{file}");
        }
    }
}

#[test]
fn scales_masks_biases_and_guards_are_told_apart() {
    let rules = RuleSet::embedded().unwrap();
    let of = |file: &str| {
        let m = sample(file);
        attentions(&m, &rules)
    };
    let vit = of("zoo/hf_vit-eager.dynamo.opset20.onnx");
    assert!(vit.iter().all(|a| a.chain.scale.is_some_and(|s| s.factor == 0.25) && a.chain.masks.len() == 1));
    let guarded = of("zoo/hf_vit-sdpa.dynamo.opset20.onnx");
    assert!(guarded.iter().all(|a| a.guard.len() == 2 && a.chain.scale.is_none()));
    let plain = of("zoo/timm_vit-eager.dynamo.opset18.onnx");
    assert!(plain.iter().all(|a| a.chain.nodes.is_empty() && a.guard.is_empty()));
    // One block in two has shifted windows; this file has one stage small enough to need no shift.
    for file in
        ["zoo/timm_swin-eager.torchscript.dynbatch.opset17.onnx", "zoo/timm_swin-eager.torchscript.opset13.onnx"]
    {
        let swin = of(file);
        let kinds: Vec<Vec<MaskKind>> = swin.iter().map(|a| a.chain.masks.iter().map(|m| m.kind).collect()).collect();
        assert!(kinds.iter().all(|k| k[0] == MaskKind::Bias), "{file}: {kinds:?}");
        assert!(kinds.iter().any(|k| k[..] == [MaskKind::Bias, MaskKind::Additive]), "{file}: {kinds:?}");
    }
}

#[test]
fn decomposed_forms_become_single_nodes_where_the_opset_allows() {
    let rules = RuleSet::embedded().unwrap();
    for (file, opset, norms, gelus, wanted) in [
        // Opset 18 has LayerNormalization, which the exporter used; GELU needs 20.
        ("zoo/timm_vit-eager.dynamo.opset18.onnx", 18, 5, 0, Some(20)),
        ("zoo/timm_swin-eager.torchscript.opset13.onnx", 13, 0, 0, Some(20)),
        ("zoo/timm_vit-fused.torchscript.opset20.onnx", 20, 5, 2, None),
    ] {
        let mut m = sample(file);
        assert_eq!((m.opset(), opset_wanted(&Facts::new(&m), &rules)), (opset, wanted), "{file}");
        ApplyRules::new(&rules).run_on(&mut m).unwrap();
        let count = |op: &str| m.graph.nodes().filter(|(_, n)| n.op.is(op)).count();
        assert_eq!((count("LayerNormalization"), count("Gelu")), (norms, gelus), "{file}");
    }
}

#[test]
fn a_raised_model_is_rewritten_and_stays_whole() {
    let rules = RuleSet::embedded().unwrap();
    for (file, _, norms, n_gelus) in SAMPLES.iter().filter(|s| s.0.contains("torchscript") || s.0.contains("opset18")) {
        let mut m = sample(file);
        RaiseOpset::To(20).run_on(&mut m).unwrap();
        let outputs: Vec<String> = m.graph.outputs().iter().map(|v| m.graph.name_of(*v).to_owned()).collect();
        let out = ApplyRules::new(&rules).run_on(&mut m).unwrap();
        assert!(out.notes.is_empty(), "{file}: {:?}", out.notes);
        let g = &m.graph;
        let count = |op: &str| g.nodes().filter(|(_, n)| n.op.is(op)).count();
        assert_eq!((count("LayerNormalization"), count("Gelu"), count("Erf")), (*norms, *n_gelus, 0), "{file}");
        assert_eq!(count("Pow"), 0, "{file}: the old nodes are swept away");
        assert_eq!(g.outputs().iter().map(|v| g.name_of(*v).to_owned()).collect::<Vec<_>>(), outputs);
        if let Some((_, v)) = g.values().find(|(v, x)| x.def == Def::Nothing && g.use_count(*v) > 0) {
            panic!("{file}: `{}` is read but never made", v.name);
        }
        fqvit_opt::ir::validate::validate(&m).unwrap();
        // Every attention is still there, and a second run finds nothing to do.
        assert_eq!(ApplyRules::new(&rules).run_on(&mut m).unwrap().changes, 0, "{file}");
    }
}
