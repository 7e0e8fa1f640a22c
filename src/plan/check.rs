//! What a plan must not say, whatever model it is for: an edited file can contradict itself.

use std::collections::BTreeSet;

use super::{Activation, Layer, PlanError, QuantPlan, Readers, Rounding};
use crate::yaml::Step;

impl QuantPlan {
    /// Checks that nothing is decided twice and that every number can be one.
    ///
    /// # Errors
    /// The first decision that contradicts another one, or holds a number that no model can take.
    pub fn check(&self) -> Result<(), PlanError> {
        self.holds_together().map_err(|(way, e)| self.placed(&way, e))
    }

    fn holds_together(&self) -> Result<(), Fault> {
        let names =
            |section, kind, all: Vec<&str>| once(section, kind, all.into_iter().enumerate().map(|(i, n)| (i, n, "")));
        names("layers", "a layer", self.layers.iter().map(|l| l.output.as_str()).collect())?;
        names("attentions", "an attention", self.attentions.iter().map(|a| a.output.as_str()).collect())?;
        names("constants", "a constant", self.constants.iter().map(|c| c.value.as_str()).collect())?;
        names("folds", "a fold", self.folds.iter().map(|f| f.value.as_str()).collect())?;
        names("sums", "a sum", self.sums.iter().map(String::as_str).collect())?;
        let trades = || self.equalisations.iter().enumerate().map(|(i, e)| (i, e, e.between.name()));
        once("equalisations", "an equalisation", trades().map(|(i, e, kind)| (i, e.divided.as_str(), kind)))?;
        once("equalisations", "an equalisation", trades().map(|(i, e, kind)| (i, e.multiplied.as_str(), kind)))?;
        // A value may have codes for the readers that contract and others for the rest, but no two for one reader.
        let activations = || self.activations.iter().enumerate();
        let coded = activations().flat_map(|(i, a)| readers(a).iter().map(move |r| (i, a.value.as_str(), *r)));
        once("activations", "an activation", coded)?;
        self.terms_have_no_codes()?;
        self.layers.iter().enumerate().try_for_each(|(i, l)| numbers(i, l))
    }

    /// The terms of a sum have no codes of their own.
    fn terms_have_no_codes(&self) -> Result<(), Fault> {
        let sums: BTreeSet<&str> = self.sums.iter().map(String::as_str).collect();
        let coded = self.activations.iter().enumerate().find(|(_, a)| sums.contains(a.value.as_str()));
        coded.map_or(Ok(()), |(i, a)| {
            let e = PlanError::Twice { value: a.value.clone(), kind: "an activation and a sum" };
            Err((vec!["activations".into(), i.into(), "value".into()], e))
        })
    }
}

/// Where in the plan something is wrong, and what.
type Fault = (Vec<Step>, PlanError);

fn numbers(i: usize, l: &Layer) -> Result<(), Fault> {
    let bad = |key: &str, what: String| {
        Err((vec!["layers".into(), i.into(), key.into()], PlanError::Number { value: l.output.clone(), what }))
    };
    if !(l.clip.is_finite() && l.clip > 0.0) {
        return bad("clip", format!("clip {}, which is no share of a range", l.clip));
    }
    if l.stored.is_some() != (l.rounding == Rounding::Gptq) {
        return bad("rounding", "codes of its own without `rounding: gptq`, or that without codes".to_owned());
    }
    match l.stored.iter().flat_map(|s| &s.scales).find(|s| !(s.is_finite() && **s > 0.0)) {
        Some(wrong) => bad("stored", format!("scale {wrong}, which is not above 0 and finite")),
        None => Ok(()),
    }
}

fn readers(a: &Activation) -> &'static [&'static str] {
    match a.readers {
        Readers::All => &["contracting", "elementwise"],
        Readers::Contracting => &["contracting"],
        Readers::Elementwise => &["elementwise"],
    }
}

/// Refuses the second entry that decides on the same: entries by their number, with what they are of, and which part of it.
fn once<'p>(
    section: &str,
    kind: &'static str,
    mut all: impl Iterator<Item = (usize, &'p str, &'p str)>,
) -> Result<(), Fault> {
    let mut seen = BTreeSet::new();
    all.find(|(_, name, part)| !seen.insert((*name, *part))).map_or(Ok(()), |(i, value, _)| {
        Err((vec![section.into(), i.into()], PlanError::Twice { value: value.to_owned(), kind }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "version: 1\nrecipe: r\nmodel: m\n";
    const CODES: &str = "params: { kind: affine, code: u8, scale: 0.5, zero_point: 3 }, reason: x";

    fn told(rest: &str) -> String {
        QuantPlan::from_yaml(&format!("{HEAD}{rest}"), "p")
            .map(|_| ())
            .map_or_else(|e| e.to_string(), |()| "fine".into())
    }

    #[test]
    fn nothing_is_decided_twice() {
        let act = |readers: &str| format!("- {{ value: v, role: residual, readers: {readers}, {CODES} }}\n");
        let pair = |a: &str, b: &str| told(&format!("activations:\n{}{}", act(a), act(b)));
        assert_eq!(pair("contracting", "elementwise"), "fine");
        for (a, b) in [("all", "all"), ("all", "contracting"), ("elementwise", "all"), ("elementwise", "elementwise")] {
            let e = pair(a, b);
            assert!(e.contains("p: ") && e.contains("`v`") && e.contains("twice"), "{a} {b}: {e}");
        }
        assert!(told(&format!("activations:\n{}sums: [v]\n", act("all"))).contains("an activation and a sum"));
        let e = told("sums: [v, w, v]\n");
        assert!(e.starts_with("p: sums[2]: ") && e.contains("`v`") && e.ends_with("at line 4 column 14"), "{e}");
        let layer = "- { output: y, weight: i8, rounding: nearest, reason: x }\n";
        assert!(told(&format!("layers:\n{layer}{layer}")).contains("`y`"));
        let fold = "- { value: v, role: residual, factors: '1 2', reason: x }\n";
        assert!(told(&format!("folds:\n{fold}{fold}")).contains("a fold"));
    }

    #[test]
    fn numbers_must_be_able_to_be_one() {
        let layer = |more: &str| told(&format!("layers:\n- {{ output: y, weight: i8, reason: x, {more} }}\n"));
        assert_eq!(layer("rounding: nearest, clip: 0.5"), "fine");
        for bad in [".nan", "-1", "0", ".inf"] {
            assert!(layer(&format!("rounding: nearest, clip: {bad}")).contains("`y`"), "{bad}");
        }
        assert!(layer("rounding: gptq").contains("without codes"));
    }
}
