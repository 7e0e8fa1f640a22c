//! What a model holds, and what the rules recognise in it.

use indexmap::IndexMap;
use serde::Serialize;

use super::{CompileError, Journal, prepare, unpacked};
use crate::ir::Model;
use crate::passes::Pass;
use crate::passes::clean_up::CleanUp;
use crate::pattern::{RuleSet, gelus, layer_norms};
use crate::recipe::Prepare;

/// For recipes that prepare nothing.
pub const UNPREPARED: Prepare = Prepare { opset: 17 };

/// What there is to tell of a model, as its exporter wrote it and in canonical form.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    pub opset: i64,
    pub nodes: usize,
    /// How many nodes of each operator, by its name.
    pub operators: IndexMap<String, usize>,
    /// LayerNorms and GELUs as written: how many each rule recognises.
    pub as_written: IndexMap<&'static str, IndexMap<String, usize>>,
    pub canonical: Canonical,
    /// What the passes have to tell.
    pub notes: Vec<String>,
}

/// A model in canonical form.
#[derive(Clone, Debug, Serialize)]
pub struct Canonical {
    pub opset: i64,
    pub nodes: usize,
    pub attentions: Vec<AttentionFound>,
    pub layer_norms: usize,
    pub gelus: usize,
    /// Layers with weights.
    pub linears: usize,
    /// Values that may be quantized.
    pub values: usize,
    /// Softmax of no recognised attention, which stay in float.
    pub softmaxes: Vec<String>,
    /// What else stays in float, and why.
    pub islands: Vec<(String, String)>,
}

/// A recognised attention.
#[derive(Clone, Debug, Serialize)]
pub struct AttentionFound {
    /// The value that it makes.
    pub output: String,
    pub rule: String,
    /// The factor of its scores, if there is one.
    pub scale: Option<f32>,
    pub masks: usize,
}

/// What a model holds before anything is done to it: operators, and how many nodes of each, by name.
pub fn operators(m: &Model) -> IndexMap<String, usize> {
    let mut ops: std::collections::BTreeMap<_, usize> = Default::default();
    for (_, n) in m.graph.nodes() {
        *ops.entry(&n.op).or_default() += 1;
    }
    ops.into_iter().map(|(o, n)| (o.to_string(), n)).collect()
}

/// Looks at a model.
///
/// # Errors
/// As [`prepare`].
pub fn inspect(m: &Model, how: &Prepare, rules: &RuleSet, keep_opset: bool) -> Result<Inspection, CompileError> {
    let (mut clean, _) = unpacked(m)?;
    CleanUp.run_on(&mut clean)?;
    let by_rule = |ids: Vec<String>| {
        let mut by: std::collections::BTreeMap<String, usize> = Default::default();
        ids.into_iter().for_each(|r| *by.entry(r).or_default() += 1);
        by.into_iter().collect::<IndexMap<_, _>>()
    };
    let norms = layer_norms(&clean, rules).into_iter().map(|s| s.rule).collect();
    let gelus = gelus(&clean, rules).into_iter().map(|s| s.rule).collect();
    let as_written = [("LayerNorm", by_rule(norms)), ("GELU", by_rule(gelus))].into_iter().collect();
    let mut journal = Journal::default();
    let p = prepare(m, how, rules, keep_opset, &mut journal)?;
    let g = &p.model.graph;
    let label = |n| g.label(g.node(n));
    let canonical = Canonical {
        opset: p.model.opset(),
        nodes: g.node_count(),
        attentions: p
            .sites
            .attentions
            .iter()
            .map(|a| AttentionFound {
                output: g.name_of(a.out).to_owned(),
                rule: a.rule.clone(),
                scale: a.chain.scale.map(|s| s.factor),
                masks: a.chain.masks.len(),
            })
            .collect(),
        layer_norms: p.sites.norms.len(),
        gelus: p.sites.gelus.len(),
        linears: p.sites.linears.len(),
        values: p.sites.sites.len(),
        softmaxes: p.sites.softmaxes.iter().map(|n| label(*n)).collect(),
        islands: p.sites.islands.iter().map(|(n, why)| (label(*n), why.clone())).collect(),
    };
    let (opset, nodes) = (m.opset(), m.graph.node_count());
    Ok(Inspection { opset, nodes, operators: operators(m), as_written, canonical, notes: journal.notes })
}
