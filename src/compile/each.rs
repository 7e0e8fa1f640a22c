//! Holds every pass to what it declares: the model runs before and after it, on one sample.

use super::PassRun;
use crate::calibrate::run::open_shapes;
use crate::ir::{Invalid, Model, validate};
use crate::passes::Numerics;
use crate::runtime::{Array, Outputs, RuntimeError, Session, SessionOptions};
use crate::verify::kinds::Kind;
use crate::verify::metrics::{Deviation, EXACT_DB, Subject, decibels};

/// What one pass did to the outputs.
#[derive(Clone, Debug)]
pub struct Moved {
    pub pass: String,
    /// Number of rewrites.
    pub changes: usize,
    pub numerics: Numerics,
    /// The output that moved most; empty for a model without outputs.
    pub output: String,
    /// `max |after - before| / max |before|` of that output; infinite if types or shapes differ or NaN came in.
    pub distance: f32,
    /// Signal to noise ratio against the output before the pass, in dB; -999 where `distance` is infinite.
    pub sqnr_db: f64,
    /// The same against the model before the first pass.
    pub total_db: f64,
    /// Whether the pass kept to its declaration.
    pub kept: bool,
}

/// Twice the error, in dB.
const TIES_DB: f64 = 6.0;

/// Why passes could not be checked.
#[derive(Debug, thiserror::Error)]
pub enum EachError {
    #[error("pass {pass} left a model that does not run: {source}")]
    Runtime { pass: String, source: RuntimeError },
    #[error("the model does not run: {0}")]
    Start(RuntimeError),
    #[error("pass {pass}: {source}")]
    Invalid { pass: String, source: Invalid },
    #[error("the journal holds no models; use Journal::keeping_models")]
    NoModels,
}

/// Runs `inputs` through the models of a journal, as they are written (without tract's own rewriting), and measures what
/// each pass moved. `batch` is what an open first size of an input becomes.
///
/// A pass without a rewrite is not run. Comparing begins at the first model that runs, and after half precision was
/// widened. A quantizing pass keeps to its declaration as long as its outputs have their
/// types and shapes and stay finite; how much it loses is what the figures are for.
///
/// After a quantizing pass, [`Numerics::Close`] holds up to the next rounding only: a value within the bound of a tie may
/// take the neighbouring code, and what follows is moved by a step of its codes. Such a pass keeps to its declaration as
/// long as it moves the outputs by less than twice what quantization has: one sample of a few outputs says no more exactly.
///
/// # Errors
/// If the journal holds no models, if none of them runs, or if a pass leaves one that does not.
pub fn verify_each(steps: &[PassRun], inputs: &[(String, Array)], batch: usize) -> Result<Vec<Moved>, EachError> {
    let mut first: Option<Outputs> = None;
    let mut last: Option<Outputs> = None;
    let mut out: Vec<Moved> = Vec::new();
    // Error of quantization so far, once there is one.
    let mut quantized: Option<f64> = None;
    // Why no model ran so far.
    let mut unable: Option<EachError> = None;
    for step in comparable(steps) {
        let [before, after] = step.models.as_ref().ok_or(EachError::NoModels)?;
        // Nothing was run yet, and nothing is to be compared: a model in half precision may not run before it is widened.
        if step.changes == 0 && last.is_none() {
            out.push(unmoved(step, after));
            continue;
        }
        let old = match last.take() {
            Some(o) => o,
            // tract may not load what the exporter wrote, and load what the first passes make of it.
            None => match run(before, "", inputs, batch) {
                Ok(o) => o,
                Err(e) => {
                    unable = Some(e);
                    out.push(unmoved(step, after));
                    continue;
                }
            },
        };
        unable = None;
        let origin = first.get_or_insert_with(|| old.clone());
        let new = if step.changes == 0 { old.clone() } else { run(after, &step.pass, inputs, batch)? };
        let mut m = moved(step, after, &old, &new, origin);
        if let (Numerics::Close { .. }, Some(db)) = (step.numerics, quantized) {
            m.kept |= m.distance.is_finite() && m.sqnr_db >= db - TIES_DB;
        }
        if step.numerics == Numerics::Quantizes && step.changes > 0 || quantized.is_some() {
            quantized = Some(quantized.map_or(m.total_db, |q: f64| q.min(m.total_db)));
        }
        out.push(m);
        last = Some(new);
    }
    unable.map_or(Ok(out), Err)
}

/// The first pass after which the outputs differ from those of the model before the first pass by more than all passes up
/// to it declare together; `None` if there is none. Found by bisection, so that a model runs for a few of its passes only.
///
/// What a quantizing pass gives up is not bounded: from there on, outputs must have their types and shapes and stay finite.
///
/// # Errors
/// If the journal holds no models, or one of them does not run.
pub fn blame(steps: &[PassRun], inputs: &[(String, Array)], batch: usize) -> Result<Option<Moved>, EachError> {
    let steps: Vec<&PassRun> = comparable(steps).iter().filter(|s| s.changes > 0).collect();
    let Some(first) = steps.first() else { return Ok(None) };
    let [start, _] = first.models.as_ref().ok_or(EachError::NoModels)?;
    let origin = run(start, "", inputs, batch)?;
    // What the passes up to one declare together.
    let declared = |at: usize| {
        steps[..=at].iter().fold(Numerics::BitExact, |sum, s| match (sum, s.numerics) {
            (Numerics::BitExact, other) | (other, Numerics::BitExact) => other,
            (Numerics::Close { rel: a }, Numerics::Close { rel: b }) => Numerics::Close { rel: a + b },
            _ => Numerics::Quantizes,
        })
    };
    let outputs = |at: usize| -> Result<(Outputs, &Model), EachError> {
        let [_, after] = steps[at].models.as_ref().ok_or(EachError::NoModels)?;
        Ok((run(after, &steps[at].pass, inputs, batch)?, after))
    };
    let broken = |at: usize| -> Result<bool, EachError> {
        let (new, after) = outputs(at)?;
        let bound = PassRun { numerics: declared(at), ..steps[at].clone() };
        Ok(!moved(&bound, after, &origin, &new, &origin).kept)
    };
    // Quantization hides what was moved before it, so what comes before it is looked at first.
    let exact = steps.iter().position(|s| s.numerics == Numerics::Quantizes).unwrap_or(steps.len());
    for (from, to) in [(0, exact), (exact, steps.len())].into_iter().filter(|(from, to)| from < to) {
        if !broken(to - 1)? {
            continue;
        }
        let (mut good, mut bad) = (from, to - 1);
        while good < bad {
            let middle = good + (bad - good) / 2;
            if broken(middle)? { bad = middle } else { good = middle + 1 }
        }
        let (new, after) = outputs(bad)?;
        let old = if bad == 0 { origin.clone() } else { outputs(bad - 1)?.0 };
        return Ok(Some(moved(steps[bad], after, &old, &new, &origin)));
    }
    Ok(None)
}

/// The steps after half precision was widened: outputs in half precision are no reference for outputs in float32.
fn comparable(steps: &[PassRun]) -> &[PassRun] {
    let widened = steps.iter().rposition(|s| s.numerics == Numerics::Widens && s.changes > 0);
    &steps[widened.map_or(0, |i| i + 1)..]
}

pub(super) fn run(m: &Model, pass: &str, inputs: &[(String, Array)], batch: usize) -> Result<Outputs, EachError> {
    let valid = validate::validate(m).map_err(|source| EachError::Invalid { pass: pass.to_owned(), source })?;
    let shapes = open_shapes(&m.graph, inputs);
    let options = SessionOptions { batch, optimize: false, shapes, ..SessionOptions::default() };
    Session::of(valid, &options).and_then(|s| s.run(inputs)).map_err(|source| {
        if pass.is_empty() { EachError::Start(source) } else { EachError::Runtime { pass: pass.to_owned(), source } }
    })
}

/// A step that did nothing, of a model that was not run.
fn unmoved(step: &PassRun, model: &Model) -> Moved {
    Moved {
        pass: step.pass.clone(),
        changes: step.changes,
        numerics: step.numerics,
        output: model.graph.outputs().first().map_or(String::new(), |v| model.graph.name_of(*v).to_owned()),
        distance: 0.0,
        sqnr_db: EXACT_DB,
        total_db: EXACT_DB,
        kept: true,
    }
}

fn moved(step: &PassRun, model: &Model, old: &Outputs, new: &Outputs, origin: &Outputs) -> Moved {
    let names = model.graph.outputs().iter().map(|v| model.graph.name_of(*v));
    let mut worst = Moved { output: String::new(), distance: -1.0, ..unmoved(step, model) };
    let (old, new, origin) = (&old.outputs, &new.outputs, &origin.outputs);
    for (name, (a, (b, o))) in names.zip(old.iter().zip(new.iter().zip(origin))) {
        let distance = distance(a, b);
        worst.kept &= match step.numerics {
            Numerics::BitExact => distance == 0.0,
            Numerics::Close { rel } => distance <= rel,
            Numerics::Quantizes | Numerics::Widens => distance.is_finite(),
        };
        if distance > worst.distance {
            let site = Subject { tensor: name, sample: "", items: 1, labels: None, kind: Kind::Values };
            let db = |a: &Array, b: &Array| {
                Deviation::between(site, a, b).map_or(-EXACT_DB, |d| decibels(d.signal, d.noise))
            };
            worst.output = name.to_owned();
            (worst.distance, worst.sqnr_db, worst.total_db) = (distance, db(a, b), db(o, b));
        }
    }
    worst.distance = worst.distance.max(0.0);
    worst
}

/// Largest difference as a share of the largest magnitude; 0 for equal bits, infinite where the arrays cannot be
/// compared or the second holds NaN or infinity that the first does not.
fn distance(a: &Array, b: &Array) -> f32 {
    if a.dtype() != b.dtype() || a.dims() != b.dims() {
        return f32::INFINITY;
    }
    let (a, b) = (a.f32s(), b.f32s());
    let (mut peak, mut most) = (0f32, 0f32);
    for (x, y) in a.iter().zip(b.iter()) {
        if x.to_bits() == y.to_bits() || x == y {
            peak = peak.max(x.abs());
            continue;
        }
        if !(x - y).is_finite() {
            return f32::INFINITY;
        }
        peak = peak.max(x.abs());
        most = most.max((x - y).abs());
    }
    if most == 0.0 { 0.0 } else { most / peak.max(f32::MIN_POSITIVE) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::{Journal, run as run_pass};
    use crate::ir::Tensor;
    use crate::passes::{Context, Outcome, Pass, PassError};
    use crate::rewrite::Patch;
    use crate::text::parse_model;

    /// Multiplies the weight by a factor, whatever it declares.
    struct Scale {
        by: f32,
        says: Numerics,
    }

    impl Pass for Scale {
        fn id(&self) -> &'static str {
            "scale-weight"
        }

        fn summary(&self) -> &'static str {
            "a pass that changes what the model computes"
        }

        fn numerics(&self) -> Numerics {
            self.says
        }

        fn run(&self, m: &mut Context) -> Result<Outcome, PassError> {
            let (_, product) = m.graph.nodes().next().expect("a node");
            let w = product.input(1).expect("a weight");
            let t = m.graph.constant(w).expect("a constant");
            let data: Vec<f32> = t.to_f32s().expect("floats").iter().map(|x| x * self.by).collect();
            let mut p = Patch::new(self.id());
            let c = p.constant("scaled", Tensor::f32(&t.dims.clone(), &data));
            p.replace(w, c);
            m.commit(p)?;
            Ok(Outcome { changes: 1, notes: vec![] })
        }
    }

    fn journal(passes: &[Scale]) -> (Vec<PassRun>, Array) {
        let text = "<ir_version: 8, opset_import: [\"\" : 17]>\ng (float[1, 2] x) => (float[1, 2] y)\n\
                    <float[2, 2] w = {1, 2, 3, 4}> { y = MatMul (x, w) }";
        let mut cx = Context::new(parse_model(text).expect("a model"));
        let mut journal = Journal::keeping_models();
        passes.iter().for_each(|p| run_pass(p, &mut cx, &mut journal).expect("runs"));
        let x = Array::new(&[1, 2], vec![1.0f32, -0.5]).expect("fits");
        (journal.steps, x)
    }

    fn after(passes: &[Scale]) -> Vec<Moved> {
        let (steps, x) = journal(passes);
        verify_each(&steps, &[("x".into(), x)], 1).expect("runs")
    }

    #[test]
    fn a_pass_that_breaks_its_word_is_named() {
        let says = Numerics::BitExact;
        let m = after(&[Scale { by: 1.0, says }, Scale { by: 1.001, says }, Scale { by: 1.0, says }]);
        assert_eq!(m.iter().map(|m| m.kept).collect::<Vec<_>>(), [true, false, true]);
        assert_eq!(m[1].output, "y");
        assert!((m[1].distance - 0.001).abs() < 1e-6, "{:?}", m[1]);
        assert!((m[1].sqnr_db - 60.0).abs() < 0.01 && (m[2].total_db - 60.0).abs() < 0.01, "{m:?}");
    }

    #[test]
    fn blame_finds_the_first_pass_that_breaks_its_word() {
        let blamed = |factors: &[(f32, Numerics)]| {
            let passes: Vec<Scale> = factors.iter().map(|(by, says)| Scale { by: *by, says: *says }).collect();
            let (steps, x) = journal(&passes);
            blame(&steps, &[("x".into(), x)], 1).expect("runs").map(|m| (m.distance * 1e4).round() as i32)
        };
        let (exact, close, quantizes) = (Numerics::BitExact, Numerics::Close { rel: 0.002 }, Numerics::Quantizes);
        assert_eq!(blamed(&[(1.0, exact), (1.001, close), (1.001, close), (2.0, quantizes)]), None);
        assert_eq!(blamed(&[(1.0, exact), (1.001, close), (1.01, close), (1.001, close)]), Some(100));
        assert_eq!(blamed(&[(1.0, exact), (1.003, exact), (1.0, exact), (2.0, quantizes)]), Some(30));
        assert!(blamed(&[(1.0, exact), (2.0, quantizes), (f32::NAN, close), (1.0, close)]).is_some());
    }

    #[test]
    fn each_is_held_to_its_own_declaration() {
        let kept = |by, says| after(&[Scale { by, says }])[0].kept;
        assert!(kept(1.001, Numerics::Close { rel: 0.002 }));
        assert!(!kept(1.003, Numerics::Close { rel: 0.002 }));
        assert!(kept(3.0, Numerics::Quantizes));
        assert!(!kept(f32::NAN, Numerics::Quantizes));
        assert!(!kept(f32::INFINITY, Numerics::Quantizes));
    }

    #[test]
    fn after_quantization_codes_may_fall_the_other_way() {
        let close = Numerics::Close { rel: 1e-6 };
        let kept = |coarse, by| {
            let m = after(&[Scale { by: coarse, says: Numerics::Quantizes }, Scale { by, says: close }]);
            m[1].kept
        };
        // The first pass leaves 40 dB; the second moves the output by 60, 34.9 and 33.6 dB.
        assert!(kept(1.01, 1.001) && kept(1.01, 1.018));
        assert!(!kept(1.01, 1.021));
        // Without quantization before it, the bound is the bound.
        assert!(!after(&[Scale { by: 1.001, says: close }])[0].kept);
    }

    #[test]
    fn half_precision_is_widened_before_anything_is_compared() {
        // Sums of products that half precision rounds: computed in float32 they are others.
        let text = "<ir_version: 8, opset_import: [\"\" : 17]> g (float[1, 2] x) => (float[1, 2] y)
            <float16[2, 2] w = {0.3335, 1.001, -0.7, 2.71}, float16[2] b = {0.1, 0.2}, int64[2] s = {1, 2}> {
                h = Cast <to = 10> (x) p = MatMul (h, w) q = Add (p, b) r = MatMul (q, w) n = Identity (r)
                f = Reshape (n, s) y = Cast <to = 1> (f)
            }";
        let m = parse_model(text).expect("a model");
        let rules = crate::pattern::RuleSet::embedded().expect("rules");
        let mut journal = Journal::keeping_models();
        let how = crate::recipe::Prepare { opset: 17 };
        crate::compile::prepare(&m, &how, &rules, false, &mut journal).expect("a model that can be prepared");
        let x = Array::new(&[1, 2], vec![0.123f32, -0.456]).expect("fits");
        let moved = verify_each(&journal.steps, &[("x".into(), x)], 1).expect("runs");
        assert!(moved.iter().any(|m| m.pass == "clean-up" && m.changes > 0));
        for m in &moved {
            assert!(m.kept, "{m:?}");
        }
    }

    #[test]
    fn a_journal_without_models_says_so() {
        let step = PassRun { pass: "p".into(), changes: 1, numerics: Numerics::BitExact, models: None };
        assert!(matches!(verify_each(&[step], &[], 1), Err(EachError::NoModels)));
    }
}
