//! Whether what the compiler measures against is the model that was read.
//!
//! Everything is measured against the prepared model, whose values are those of the plan. A rule of the user's own, or a pass,
//! that changed what the model computes would show in no figure: it would be in both models. So both are run once.

use std::collections::BTreeMap;

use super::Prepared;
use super::comparison::float_to_run;
use super::each::run;
use super::error::CompilerError;
use super::stages::{Log, Running, timed};
use crate::calibrate::data::Dataset;
use crate::ir::{Model, validate};
use crate::runtime::Array;
use crate::verify::kinds::Kind;
use crate::verify::metrics::TensorMetrics;
use crate::verify::run::compare;
use crate::verify::thresholds::Check;

/// Signal to noise, dB, that preparing must leave at the worst output. Other orders of float32 sums leave 80 and more.
const LEAST_DB: f64 = 40.0;

/// The check that the prepared model misses, if on this sample its outputs are not those of the model as read; a note says
/// what to do.
///
/// Not looked at are models that draw random numbers, outputs that are labels or lists of boxes, whose ties rounding decides, and
/// models that end at operators which cannot be run.
pub(super) fn unfaithful(
    read: &Model,
    p: &Prepared,
    (data, sample): (&Dataset, usize),
    how: Running<'_>,
    log: &mut Log,
) -> Option<Check> {
    if !p.tails.is_empty() || read.graph.nodes().any(|(_, n)| n.is_random()) {
        return None;
    }
    let mut notes = Vec::new();
    let compared = timed(&mut log.timings, "compare with the model as read", || {
        let read = float_to_run(read, &mut notes)?;
        let models = (validate::validate(&read)?, validate::validate(&p.model)?);
        let mut outputs = compare(models.0, models.1, data, &[sample], &[], how.threads, &|_| {})?.outputs;
        if outputs.iter().any(differs) {
            let moved = moved(&read, &p.model, data, sample)?;
            outputs.retain(|m| moved.get(&m.tensor).is_none_or(|(by, rounding)| *by > rounding * MORE_THAN_ROUNDING));
        }
        Ok::<_, CompilerError>(outputs)
    });
    let outputs = match compared {
        Ok(outputs) => outputs,
        Err(e) => {
            log.notes.push(format!("the model as it was read was not compared with the prepared one: {e}"));
            return None;
        }
    };
    let worst = outputs.iter().filter(|m| differs(m)).min_by(|a, b| a.sqnr_db.total_cmp(&b.sqnr_db))?;
    log.notes.push(format!(
        "before anything was quantized, output `{}` was no longer that of the model as it was read: a rule or a pass changed \
         what the model computes, and the figures above do not show it; --blame names the first",
        worst.tensor
    ));
    let name = "sqnr_db of the prepared model".to_owned();
    Some(Check { name, value: Some(worst.sqnr_db), limit: LEAST_DB, at_least: true, pass: false, because: None })
}

fn differs(m: &TensorMetrics) -> bool {
    matches!(m.kind, Kind::Values | Kind::Classes { .. }) && m.sqnr_db < LEAST_DB
}

/// An error of the inputs, relative, as roundings on the way add up to, and how many times as far another order of sums may move an
/// output: a quarter of a thousandth, where a broken rule is told at a hundredth.
const ROUNDING: f32 = f32::EPSILON * 128.0;
const MORE_THAN_ROUNDING: f64 = 16.0;

/// By output, how far the prepared model has moved it, operator by operator as both are written, and how far it moves where the
/// inputs do by a rounding error: a small difference of large values is all rounding, and no other way to compute it gives the same.
fn moved(
    read: &Model,
    prepared: &Model,
    data: &Dataset,
    sample: usize,
) -> Result<BTreeMap<String, (f64, f64)>, CompilerError> {
    let mut inputs = data.sample(sample)?.inputs;
    let first = run(read, "", &inputs, data.batch())?;
    let other = run(prepared, "", &inputs, data.batch())?;
    for (_, a) in &mut inputs {
        let Some(x) = a.values::<f32>() else { continue };
        let moved = x.iter().enumerate().map(|(i, x)| x * if i % 2 == 0 { 1.0 + ROUNDING } else { 1.0 - ROUNDING });
        *a = Array::new(a.dims(), moved.collect()).expect("as many as before");
    }
    let second = run(read, "", &inputs, data.batch())?;
    let far = |(a, b): (&Array, &Array)| {
        a.f32s().iter().zip(b.f32s().iter()).map(|(x, y)| f64::from((x - y).abs())).fold(0.0, f64::max)
    };
    let names = read.graph.outputs().iter().map(|v| read.graph.name_of(*v).to_owned());
    let by = first.outputs.iter().zip(&other.outputs).map(far);
    Ok(names.zip(by.zip(first.outputs.iter().zip(&second.outputs).map(far))).collect())
}

#[cfg(test)]
mod tests {
    use crate::calibrate::data::{DataOptions, Dataset};
    use crate::compile::inputs;
    use crate::text::parse_model;

    #[test]
    fn a_difference_of_equal_values_is_rounding() {
        let m = parse_model(
            "<ir_version: 8, opset_import: [\"\" : 17]> g (float[1,64] x) => (float[1,64] small, float[1,64] plain)
            <float tenth = {0.1}, float ten = {10.0}> {
                product = Mul (x, tenth)
                quotient = Div (x, ten)
                small = Sub (product, quotient)
                plain = Mul (x, ten)
            }",
        )
        .unwrap();
        let options = DataOptions { samples: Some(1), ..DataOptions::default() };
        let data = Dataset::open(&options, &inputs(&m.graph).unwrap()).unwrap();
        let moved = super::moved(&m, &m, &data, 0).unwrap();
        // Nothing but rounding, which falls another way; and what the inputs moved. The same model moves nothing.
        let rounding = |name: &str| moved[name].1;
        assert!((1e-10..1e-6).contains(&rounding("small")) && (1e-6..1e-2).contains(&rounding("plain")), "{moved:?}");
        assert!(moved.values().all(|(by, _)| *by == 0.0), "{moved:?}");
    }
}
