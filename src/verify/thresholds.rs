//! What a quantized model must reach, and whether it does.
//!
//! Each output is held to what fits it: signal to noise and cosine for numbers, the share of rows that name the same class
//! for scores, of equal elements for labels, of detections that found their like for lists of boxes. A share of few
//! samples says little: at a true rate of 90 %, one of three samples flips every fourth time. A rate therefore misses the
//! recipe's threshold only where it would come out so low by chance less than once in twenty times
//! (one-sided exact binomial test, Clopper and Pearson 1934), and of fewer than [`ENOUGH`] samples never. A threshold that
//! the user asks for is taken at its word.

use serde::{Deserialize, Serialize};

use super::kinds::Kind;
use super::metrics::TensorMetrics;

/// Samples from which on a share of them may miss a threshold.
pub const ENOUGH: u64 = 8;

/// How seldom a rate may come out as low by chance.
const SELDOM: f64 = 0.05;

/// What a quantized model must reach.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Thresholds {
    /// Least SQNR of the worst output, dB.
    pub sqnr_db: Option<f64>,
    /// Least mean cosine of the worst output.
    pub cosine: Option<f64>,
    /// Least share, 0..1, of the worst output that has one: top-1 agreement, equal labels, matched detections.
    pub agreement: Option<f64>,
    /// Most top-1 accuracy lost against the float model, 0..1.
    pub top1_drop: Option<f64>,
    /// The user asked for `agreement`: it must exist, and holds for any number of samples.
    #[serde(skip)]
    pub agreement_asked: bool,
}

/// One threshold, held against its figure.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Check {
    pub name: String,
    /// `None`: the figure does not exist (no labels, nothing to agree on), which does not pass.
    pub value: Option<f64>,
    pub limit: f64,
    /// Whether the value must be at least the limit (otherwise at most).
    pub at_least: bool,
    pub pass: bool,
    /// Why a value beyond its limit passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
}

impl Check {
    /// The name of [`Check::of_nothing`].
    pub const QUANTIZED: &'static str = "quantized_values";
    /// The name of a number that a command of the user's gives.
    pub const ACCEPTED: &'static str = "accept_command";

    /// That of a model in which everything stays in float: however near it comes to the original, it is no quantized one.
    pub fn of_nothing() -> Check {
        Check {
            name: Check::QUANTIZED.to_owned(),
            value: Some(0.0),
            limit: 1.0,
            at_least: true,
            pass: false,
            because: Some("all of the model stays in float".to_owned()),
        }
    }

    /// That of a model whose outputs have no elements: files that differ at will would pass.
    pub fn of_no_elements() -> Check {
        Check {
            name: "compared_elements".to_owned(),
            value: Some(0.0),
            limit: 1.0,
            at_least: true,
            pass: false,
            because: Some("no output has elements in any sample, so nothing was compared".to_owned()),
        }
    }
}

impl Thresholds {
    /// For models of which no recipe is known: what a file of 8 bits reaches that is worth deploying, 10 dB and 90 %.
    pub fn usual() -> Thresholds {
        Thresholds { sqnr_db: Some(10.0), agreement: Some(0.9), ..Thresholds::default() }
    }

    /// Holds each threshold that is set against the worst of the outputs that it is for.
    pub fn check(&self, outputs: &[TensorMetrics]) -> Vec<Check> {
        let numbers = || outputs.iter().filter(|m| matches!(m.kind, Kind::Values | Kind::Classes { .. }));
        let mut checks = Vec::new();
        let figures = [
            ("sqnr_db", self.sqnr_db, numbers().map(|m| m.sqnr_db).reduce(f64::min)),
            ("cosine", self.cosine, numbers().map(|m| m.cosine).reduce(f64::min)),
        ];
        for (name, limit, value) in figures {
            // A model of labels or boxes alone has no such figure, and is held to the shares.
            if let (Some(limit), Some(value)) = (limit, value) {
                let (value, pass) = (Some(value), value >= limit);
                checks.push(Check { name: name.into(), value, limit, at_least: true, pass, because: None });
            }
        }
        if let Some(limit) = self.agreement {
            checks.extend(self.shares(outputs, limit));
        }
        if let Some(limit) = self.top1_drop {
            let drop = |m: &TensorMetrics| m.accuracy.as_ref().map(|a| a.top1_float - a.top1_quantized);
            let value = outputs.iter().filter_map(drop).reduce(f64::max);
            let pass = value.is_some_and(|v| v <= limit);
            checks.push(Check { name: "top1_drop".into(), value, limit, at_least: false, pass, because: None });
        }
        checks
    }

    /// The worst share of each sort, of those that there are.
    fn shares(&self, outputs: &[TensorMetrics], limit: f64) -> Vec<Check> {
        type Share = fn(&TensorMetrics) -> Option<f64>;
        let sorts: [(&str, Share); 3] = [
            ("top1_agreement", |m| m.top1_agreement),
            ("equal_labels", |m| m.equal),
            ("matched_detections", |m| m.matched),
        ];
        let mut checks = Vec::new();
        for (name, share) in sorts {
            let of = outputs.iter().filter_map(|m| Some((share(m)?, m.samples)));
            let Some((value, samples)) = of.reduce(|a, b| if b.0 < a.0 { b } else { a }) else { continue };
            let below = value < limit;
            let telling = self.agreement_asked || is_below(value, samples, limit);
            let because = (below && !telling).then(|| format!("too few samples ({samples}) to tell it from the limit"));
            let (name, value, pass) = (name.to_string(), Some(value), !(below && telling));
            checks.push(Check { name, value, limit, at_least: true, pass, because });
        }
        if checks.is_empty() && self.agreement_asked && limit > 0.0 {
            let name = "top1_agreement".to_string();
            checks.push(Check { name, value: None, limit, at_least: true, pass: false, because: None });
        }
        checks
    }
}

/// True if a true rate of `limit` gives `rate` or less over `n` samples less often than [`SELDOM`].
fn is_below(rate: f64, n: u64, limit: f64) -> bool {
    if n < ENOUGH || rate >= limit {
        return false;
    }
    let hits = (rate * n as f64).round() as u64;
    // Terms by their logarithms: powers of many samples underflow.
    let (yes, no) = (limit.clamp(1e-9, 1.0 - 1e-9).ln(), (1.0 - limit.clamp(1e-9, 1.0 - 1e-9)).ln());
    let (mut ways, mut chance) = (0.0, 0.0);
    for k in 0..=hits {
        chance += (ways + k as f64 * yes + (n - k) as f64 * no).exp();
        ways += ((n - k) as f64 / (k + 1) as f64).ln();
    }
    chance < SELDOM
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(sqnr_db: f64, agreement: f64, samples: u64) -> TensorMetrics {
        TensorMetrics {
            tensor: "logits".into(),
            kind: Kind::Classes { axis: 1 },
            samples,
            sqnr_db,
            cosine: 0.99,
            top1_agreement: Some(agreement),
            ..Default::default()
        }
    }

    fn recipe() -> Thresholds {
        Thresholds { sqnr_db: Some(6.0), agreement: Some(0.8), ..Default::default() }
    }

    fn failed(t: &Thresholds, outputs: &[TensorMetrics]) -> Vec<String> {
        t.check(outputs).into_iter().filter(|c| !c.pass).map(|c| c.name).collect()
    }

    #[test]
    fn the_worst_output_counts() {
        assert!(failed(&recipe(), &[scores(20.0, 1.0, 50)]).is_empty());
        assert_eq!(failed(&recipe(), &[scores(20.0, 1.0, 50), scores(3.0, 0.4, 50)]), ["sqnr_db", "top1_agreement"]);
        let drop = Thresholds { top1_drop: Some(0.01), ..Default::default() };
        assert_eq!(failed(&drop, &[scores(20.0, 1.0, 50)]), ["top1_drop"], "no figure does not pass");
    }

    #[test]
    fn few_samples_do_not_fail_a_rate() {
        // One of three flips; half of eight are within chance of 80 %, a quarter are not.
        assert!(failed(&recipe(), &[scores(20.0, 2.0 / 3.0, 3)]).is_empty());
        assert!(failed(&recipe(), &[scores(20.0, 0.0, 7)]).is_empty());
        assert!(failed(&recipe(), &[scores(20.0, 0.5, 8)]).is_empty());
        assert_eq!(failed(&recipe(), &[scores(20.0, 0.25, 8)]), ["top1_agreement"]);
        assert_eq!(failed(&recipe(), &[scores(20.0, 0.78, 4000)]), ["top1_agreement"]);
        let c = recipe().check(&[scores(20.0, 2.0 / 3.0, 3)]);
        assert!(c[1].because.as_ref().is_some_and(|b| b.contains("(3)")), "{c:?}");
        let asked = Thresholds { agreement_asked: true, ..recipe() };
        assert_eq!(failed(&asked, &[scores(20.0, 2.0 / 3.0, 3)]), ["top1_agreement"]);
    }

    #[test]
    fn numbers_labels_and_boxes_are_held_to_what_fits_them() {
        let depth = TensorMetrics { kind: Kind::Values, top1_agreement: None, ..scores(23.6, 0.0, 50) };
        assert!(failed(&recipe(), std::slice::from_ref(&depth)).is_empty());
        let asked = Thresholds { agreement_asked: true, ..recipe() };
        assert_eq!(failed(&asked, &[depth]), ["top1_agreement"], "there is nothing to agree on");
        let labels = |equal| TensorMetrics {
            kind: Kind::Labels,
            top1_agreement: None,
            equal: Some(equal),
            ..scores(-5.0, 0.0, 50)
        };
        assert!(failed(&recipe(), &[labels(0.95)]).is_empty(), "decibels of labels say nothing");
        assert_eq!(failed(&recipe(), &[labels(0.5)]), ["equal_labels"]);
        let boxes = |matched| TensorMetrics {
            kind: Kind::Detections,
            top1_agreement: None,
            matched: Some(matched),
            ..scores(-5.0, 0.0, 50)
        };
        assert!(failed(&recipe(), &[boxes(0.9)]).is_empty());
        assert_eq!(failed(&recipe(), &[boxes(0.3)]), ["matched_detections"]);
    }
}
