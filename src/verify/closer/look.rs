//! Both models side by side, for values in the middle of them.

use std::borrow::Cow;

use super::CodeShare;
use super::codes::{CodedAttention, Table, Tally};
use super::values::{CodedValue, Measured, Places};
use crate::calibrate::data::Dataset;
use crate::calibrate::run::open_shapes;
use crate::ir::Validated;
use crate::runtime::{Session, SessionOptions, Tapped, fold_samples};
use crate::verify::run::VerifyError;

/// What to look at.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    pub values: Vec<CodedValue>,
    pub attentions: Vec<CodedAttention>,
}

/// What was seen of it, in the same order. Values and codes that could not be compared are empty.
#[derive(Clone, Debug, Default)]
pub struct Looked {
    pub values: Vec<Measured>,
    pub attentions: Vec<Vec<CodeShare>>,
}

/// Both models with what is tapped in each.
struct Pair<'a> {
    asked: &'a Asked,
    float: Session,
    quantized: Session,
    places: Vec<Places>,
    tables: Vec<Option<Table>>,
}

/// What one sample shows.
type Seen = (Vec<Option<Measured>>, Vec<Option<Tally>>);

/// Runs both models over the samples `indices` and compares what is asked for.
///
/// # Errors
/// If a sample cannot be read, or a model does not run.
pub fn look(
    float: Validated<'_>,
    quantized: Validated<'_>,
    (data, indices): (&Dataset, &[usize]),
    asked: &Asked,
    threads: usize,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<Looked, VerifyError> {
    let first = indices.first().ok_or(VerifyError::Empty)?;
    let shapes = open_shapes(&float.model().graph, &data.sample(*first)?.inputs);
    let open = |model: Validated<'_>, what, taps: Vec<String>| {
        let options =
            SessionOptions { batch: data.batch(), taps, shapes: shapes.clone(), outputs: false, optimize: true };
        Session::of(model, &options).map_err(|source| VerifyError::Runtime { model: what, source })
    };
    let values = || asked.values.iter();
    let scores = asked.attentions.iter().flat_map(|a| std::iter::once(a.codes.clone()).chain(a.mask.clone()));
    let pair = Pair {
        asked,
        float: open(float, "float", values().map(|v| v.value.clone()).collect())?,
        quantized: open(quantized, "quantized", values().map(|v| v.codes.clone()).chain(scores).collect())?,
        places: values().map(|v| Places::of(&v.reading)).collect(),
        tables: asked.attentions.iter().map(|a| Table::of(&a.plan)).collect(),
    };
    let mut measured: Vec<Option<Measured>> = vec![Some(Measured::default()); asked.values.len()];
    let mut tallies: Vec<Option<Tally>> = vec![Some(Tally::default()); asked.attentions.len()];
    let mut done = 0;
    fold_samples(
        indices.len(),
        threads,
        |i| pair.sample(data, indices[i]),
        |_, (values, codes)| {
            add_up(&mut measured, values, Measured::add);
            add_up(&mut tallies, codes, Tally::add);
            done += 1;
            progress(done);
            Ok(())
        },
    )?;
    let finished = |(t, table): (Option<Tally>, &Option<Table>)| match (t, table) {
        (Some(t), Some(table)) => t.finish(table),
        _ => Vec::new(),
    };
    Ok(Looked {
        values: measured.into_iter().map(Option::unwrap_or_default).collect(),
        attentions: tallies.into_iter().zip(&pair.tables).map(finished).collect(),
    })
}

/// Adds what one sample shows. What cannot be compared on one sample is not told from the others.
fn add_up<T>(all: &mut [Option<T>], sample: Vec<Option<T>>, add: impl Fn(&mut T, &T)) {
    for (all, one) in all.iter_mut().zip(sample) {
        match (all.as_mut(), one) {
            (Some(all), Some(one)) => add(all, &one),
            _ => *all = None,
        }
    }
}

impl Pair<'_> {
    fn sample(&self, data: &Dataset, index: usize) -> Result<Seen, VerifyError> {
        let s = data.sample(index)?;
        let of = |model: &'static str| move |source| VerifyError::Runtime { model, source };
        let a = self.float.tapped(&s.inputs).map_err(of("float"))?;
        let b = self.quantized.tapped(&s.inputs).map_err(of("quantized"))?;
        fn tap<'t>(from: &'t Tapped<'_>, at: usize) -> Result<(Cow<'t, [f32]>, &'t [usize]), VerifyError> {
            from.value(at).map_err(|source| VerifyError::Runtime { model: "tapped", source })
        }
        let values = &self.asked.values;
        let (mut measured, mut next) = (Vec::with_capacity(values.len()), values.len());
        for (t, (v, places)) in values.iter().zip(&self.places).enumerate() {
            let ((y, dims), (q, code_dims)) = (tap(&a, t)?, tap(&b, t)?);
            measured.push(Measured::of(&v.reading, places, (&y, dims), (&q, code_dims)));
        }
        let mut codes = Vec::with_capacity(self.tables.len());
        for (at, table) in self.asked.attentions.iter().zip(&self.tables) {
            let (x, dims) = tap(&b, next)?;
            let mask = at.mask.as_ref().map(|_| tap(&b, next + 1)).transpose()?;
            next += 1 + usize::from(mask.is_some());
            let mask = mask.as_ref().map(|(m, dims)| (&m[..], *dims));
            codes.push(table.as_ref().and_then(|t| Tally::of(&at.plan, t, (&x, dims), mask)));
        }
        Ok((measured, codes))
    }
}
