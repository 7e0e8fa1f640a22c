//! Whether what the compiler measures against is the model that was read.
//!
//! Everything is measured against the prepared model, whose values are those of the plan. A rule of the user's own, or a pass,
//! that changed what the model computes would show in no figure: it would be in both models. So both are run once.

use super::Prepared;
use super::comparison::float_to_run;
use super::error::CompilerError;
use super::stages::{Log, Running, timed};
use crate::calibrate::data::Dataset;
use crate::ir::{Model, validate};
use crate::verify::kinds::Kind;
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
        Ok::<_, CompilerError>(compare(models.0, models.1, data, &[sample], &[], how.threads, &|_| {})?)
    });
    let outputs = match compared {
        Ok(c) => c.outputs,
        Err(e) => {
            log.notes.push(format!("the model as it was read was not compared with the prepared one: {e}"));
            return None;
        }
    };
    let numbers = outputs.iter().filter(|m| matches!(m.kind, Kind::Values | Kind::Classes { .. }));
    let worst = numbers.min_by(|a, b| a.sqnr_db.total_cmp(&b.sqnr_db)).filter(|m| m.sqnr_db < LEAST_DB)?;
    log.notes.push(format!(
        "before anything was quantized, output `{}` was no longer that of the model as it was read: a rule or a pass changed \
         what the model computes, and the figures above do not show it; --blame names the first",
        worst.tensor
    ));
    let name = "sqnr_db of the prepared model".to_owned();
    Some(Check { name, value: Some(worst.sqnr_db), limit: LEAST_DB, at_least: true, pass: false, because: None })
}
