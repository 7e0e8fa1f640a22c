//! How far a model can be run here.
//!
//! An operator may be known and fail all the same: on an attribute, a type, a size. Which one it is, is found by halving: the
//! front of the model that ends at a node runs or does not.

use std::collections::BTreeSet;

use super::{CompileError, Journal, Prepared, fingerprint, finite};
use crate::calibrate::data::Dataset;
use crate::calibrate::run::open_shapes;
use crate::ir::{Graph, Model, NodeId, validate};
use crate::pattern::{RuleSet, attentions};
use crate::plan::sites;
use crate::rewrite::cut;
use crate::runtime::{Session, SessionOptions};

/// Places at which a model is cut, at most.
const MOST_CUTS: usize = 8;

/// Why a model does not run on the first sample; `None` if it does.
fn stopped(m: &Model, data: &Dataset) -> Option<String> {
    let run = || -> Result<(), String> {
        let valid = validate::validate(m).map_err(|e| e.to_string())?;
        let sample = data.sample(0).map_err(|e| e.to_string())?;
        let shapes = open_shapes(&m.graph, &sample.inputs);
        let how = SessionOptions { batch: data.batch(), shapes, optimize: false, ..SessionOptions::default() };
        let session = Session::of(valid, &how).map_err(|e| e.to_string())?;
        session.run(&sample.inputs).map(|_| ()).map_err(|e| e.to_string())
    };
    run().err()
}

/// The first node, in the order the model computes, up to and with which it does not run.
fn first_failing(m: &Model, data: &Dataset) -> Option<NodeId> {
    let nodes = m.graph.schedule();
    let fails = |k: usize| {
        let rest: BTreeSet<NodeId> = nodes[k..].iter().copied().collect();
        cut(m, &rest).is_some_and(|(front, _)| stopped(&front, data).is_some())
    };
    let (mut runs, mut does_not) = (0, nodes.len());
    while does_not - runs > 1 {
        let middle = (runs + does_not) / 2;
        if fails(middle) { does_not = middle } else { runs = middle }
    }
    nodes.get(does_not.checked_sub(1)?).copied()
}

/// The model cut where it does not run on this data; `None` if it runs, or nothing that could be quantized is left of it.
///
/// # Errors
/// If a weight of what is left holds NaN or infinity.
pub fn cut_where_it_fails(
    p: &Prepared,
    data: &Dataset,
    rules: &RuleSet,
    journal: &mut Journal,
) -> Result<Option<Prepared>, CompileError> {
    let Some(why) = stopped(&p.model, data) else { return Ok(None) };
    let mut first: BTreeSet<NodeId> = BTreeSet::new();
    let mut front = p.model.clone();
    for _ in 0..MOST_CUTS {
        let Some(id) = first_failing(&front, data) else { return Ok(None) };
        first.insert(id);
        let Some((left, tail)) = cut(&p.model, &first) else { return Ok(None) };
        if stopped(&left, data).is_some() {
            front = left;
            continue;
        }
        let sites = sites::find(&left, attentions(&left, rules));
        if sites.attentions.is_empty() && sites.linears.is_empty() {
            return Ok(None);
        }
        finite(&left.graph, &sites)?;
        let cut: Vec<String> = tail.cut.iter().map(|v| format!("`{v}`")).collect();
        journal.notes.push(format!(
            "the model is quantized and measured up to {}: {} cannot be run here ({why}); {} operators stay as they are",
            if cut.is_empty() { "its other outputs".to_owned() } else { cut.join(", ") },
            named(&p.model.graph, &first),
            tail.nodes().count()
        ));
        let fingerprint = fingerprint(&left);
        let tails = p.tails.iter().cloned().chain([tail]).collect();
        return Ok(Some(Prepared { model: left, sites, fingerprint, tails, names: p.names.clone() }));
    }
    Ok(None)
}

fn named(g: &Graph, nodes: &BTreeSet<NodeId>) -> String {
    nodes.iter().map(|id| format!("{} `{}`", g.node(*id).op, g.label(g.node(*id)))).collect::<Vec<_>>().join(", ")
}
