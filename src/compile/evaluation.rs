//! One model over data, float or quantized.

use serde::Serialize;

use super::checked::{checked, labels_fit};
use super::comparison::{Read, float_to_run};
use super::error::CompilerError;
use super::stages::{Log, Running, Samples, open, timed};
use super::{Journal, runnable, unpacked};
use crate::ir::validate;
use crate::passes::is_quantized;
use crate::runtime::keep_sessions;
use crate::verify::alone::{Answer, answers};

/// Version of the JSON form.
const VERSION: u32 = 1;

/// What a model answered.
#[derive(Clone, Debug, Serialize)]
pub struct Evaluation {
    pub version: u32,
    pub tool: String,
    pub model: String,
    /// Of its files.
    pub bytes: u64,
    pub data: String,
    pub samples: u64,
    /// In the model's order.
    pub outputs: Vec<Answer>,
    pub seconds: f64,
    pub notes: Vec<String>,
}

impl Evaluation {
    /// The share of labels that the first output with classes met, if there are labels.
    pub fn top1(&self) -> Option<f64> {
        self.outputs.iter().find_map(|o| o.accuracy).map(|h| h.top1)
    }
}

/// Runs a model over samples. `judged`: the share of right classes is asked for.
///
/// # Errors
/// If the samples do not fit, the model does not run on them, or no classes are known that are asked for.
pub fn evaluate(
    model: Read,
    (samples, judged): (&Samples, bool),
    how: Running<'_>,
    notes: Vec<String>,
) -> Result<Evaluation, CompilerError> {
    let _kept = keep_sessions();
    let mut log = Log { notes, ..Log::default() };
    let m = if is_quantized(&model.model) {
        unpacked(&model.model)?.0
    } else {
        float_to_run(&model.model, &mut log.notes)?
    };
    let mut journal = Journal::default();
    let (m, _) = runnable(m, &mut journal)?;
    log.notes.append(&mut journal.notes);
    let data = open(samples, &m, &mut log)?.until(how.stop);
    if judged && data.labels().is_none() {
        return Err(CompilerError::NoClasses { data: data.description().to_owned() });
    }
    let all: Vec<usize> = (0..data.len()).collect();
    labels_fit(&data, &all, &m)?;
    checked((&data, &all), &m, how, &mut log)?;
    let done = how.steps("evaluating", data.len());
    let outputs = timed(&mut log.timings, "evaluate", || {
        Ok::<_, CompilerError>(answers(validate::validate(&m)?, &data, how.threads, &done)?)
    })?;
    Ok(Evaluation {
        version: VERSION,
        tool: format!("fqvit-opt {}", env!("CARGO_PKG_VERSION")),
        model: model.file.name,
        bytes: model.file.bytes,
        data: data.description().to_owned(),
        samples: (data.len() * data.batch()) as u64,
        outputs,
        seconds: log.timings.last().map_or(0.0, |t| t.seconds),
        notes: log.notes,
    })
}
