//! How long the float and the quantized model take, side by side.

use std::time::Duration;
#[cfg(feature = "tract")]
use std::time::Instant;

use serde::{Deserialize, Serialize};

#[cfg(feature = "tract")]
use crate::calibrate::run::open_shapes;
#[cfg(feature = "tract")]
use crate::ir::Validated;
#[cfg(feature = "tract")]
use crate::runtime::{Array, RuntimeError, Session, SessionOptions, gemm::Isa};

/// What timing both models found. Times are medians in milliseconds, of one run each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// What ran the models.
    pub runtime: String,
    /// The instructions that products of codes used: `portable`, `sse2`, `avx2`, `avxvnni` or `avx512vnni`.
    pub instructions: String,
    pub threads: u64,
    /// How often each model ran, in turn.
    pub rounds: u64,
    pub float_ms: f64,
    pub quantized_ms: f64,
    /// The median over the rounds of the quantized model's time as a share of the float model's.
    pub ratio: f64,
}

/// How long to time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// No new round begins after this time, unless there are too few of them.
    pub time: Duration,
    pub least: usize,
    pub most: usize,
}

impl Default for Effort {
    /// A quarter of a second; what a report needs.
    fn default() -> Effort {
        Effort { time: Duration::from_millis(250), least: 3, most: 25 }
    }
}

/// Times both models on one sample, on the calling thread. They run in turn, so that whatever else the machine does
/// disturbs both.
///
/// # Errors
/// If a model does not load or does not run; the error says which.
#[cfg(feature = "tract")]
pub fn measure(
    float: Validated<'_>,
    quantized: Validated<'_>,
    inputs: &[(String, Array)],
    batch: usize,
    effort: Effort,
) -> Result<Speed, (&'static str, RuntimeError)> {
    let options =
        SessionOptions { batch, shapes: open_shapes(&float.model().graph, inputs), ..SessionOptions::default() };
    let open = |what, model| {
        let session = Session::of(model, &options).map_err(|e| (what, e))?;
        // The first run fills caches and memory; it does not count.
        session.run(inputs).map_err(|e| (what, e))?;
        Ok((what, session))
    };
    let (f, q) = rayon::join(|| open("float", float), || open("quantized", quantized));
    let sessions = [f?, q?];
    let mut rounds: Vec<[f64; 2]> = Vec::new();
    let start = Instant::now();
    while rounds.len() < effort.least || (rounds.len() < effort.most && start.elapsed() < effort.time) {
        let mut times = [0.0; 2];
        for ((what, session), ms) in sessions.iter().zip(&mut times) {
            let begin = Instant::now();
            session.run(inputs).map_err(|e| (*what, e))?;
            *ms = begin.elapsed().as_secs_f64() * 1e3;
        }
        rounds.push(times);
    }
    Ok(Speed {
        runtime: "tract".into(),
        instructions: Isa::best().name().into(),
        threads: 1,
        rounds: rounds.len() as u64,
        float_ms: median(rounds.iter().map(|[f, _]| *f)),
        quantized_ms: median(rounds.iter().map(|[_, q]| *q)),
        ratio: median(rounds.iter().map(|[f, q]| q / f)),
    })
}

/// The middle one, or the mean of the two in the middle; 0 of none.
#[cfg(feature = "tract")]
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut v: Vec<f64> = values.collect();
    v.sort_by(f64::total_cmp);
    match v.len() {
        0 => 0.0,
        n => (v[(n - 1) / 2] + v[n / 2]) / 2.0,
    }
}

#[cfg(all(test, feature = "tract"))]
mod tests {
    use super::*;
    use crate::ir::validate::validate;
    use crate::text::parse_model;

    #[test]
    fn both_models_are_timed() {
        let model = |x: &str, op: &str| {
            let head = "<ir_version: 8, opset_import: [\"\" : 17]>";
            parse_model(&format!("{head}\ng (float[n,4] {x}) => (float[n,4] y) {{ y = {op}({x}) }}")).unwrap()
        };
        let (a, b) = (model("x", "Relu"), model("x", "Erf"));
        let x = [("x".to_owned(), Array::new(&[2, 4], vec![0.5f32; 8]).unwrap())];
        let effort = Effort { time: Duration::ZERO, least: 5, most: 9 };
        let s = measure(validate(&a).unwrap(), validate(&b).unwrap(), &x, 2, effort).unwrap();
        assert_eq!((s.rounds, s.threads), (5, 1));
        assert!(s.float_ms > 0.0 && s.quantized_ms > 0.0 && s.ratio > 0.0, "{s:?}");
        let other = model("z", "Relu");
        let e = measure(validate(&a).unwrap(), validate(&other).unwrap(), &x, 2, effort).unwrap_err();
        assert_eq!(e.0, "quantized");
    }

    #[test]
    fn medians() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
        assert_eq!(median(std::iter::empty()), 0.0);
    }
}
