//! What a plan must not say, whatever model it is for: an edited file can contradict itself.

use std::collections::BTreeSet;

use super::{Activation, PlanError, QuantPlan, Readers, Rounding};

impl QuantPlan {
    /// Checks that nothing is decided twice and that every number can be one.
    ///
    /// # Errors
    /// The first decision that contradicts another one, or holds a number that no model can take.
    pub fn check(&self) -> Result<(), PlanError> {
        let names = |kind, all: Vec<&str>| once(kind, all.into_iter().map(|n| (n, "")));
        names("a layer", self.layers.iter().map(|l| l.output.as_str()).collect())?;
        names("an attention", self.attentions.iter().map(|a| a.output.as_str()).collect())?;
        names("a constant", self.constants.iter().map(|c| c.value.as_str()).collect())?;
        names("a fold", self.folds.iter().map(|f| f.value.as_str()).collect())?;
        names("a sum", self.sums.iter().map(String::as_str).collect())?;
        once("an equalisation", self.equalisations.iter().map(|e| (e.divided.as_str(), e.between.name())))?;
        once("an equalisation", self.equalisations.iter().map(|e| (e.multiplied.as_str(), e.between.name())))?;
        // A value may have codes for the readers that contract and others for the rest, but no two for one reader.
        once("an activation", self.activations.iter().flat_map(|a| readers(a).iter().map(|r| (a.value.as_str(), *r))))?;
        // The terms of a sum have no codes of their own.
        let sums: BTreeSet<&str> = self.sums.iter().map(String::as_str).collect();
        if let Some(a) = self.activations.iter().find(|a| sums.contains(a.value.as_str())) {
            return Err(PlanError::Twice { value: a.value.clone(), kind: "an activation and a sum" });
        }
        self.activations.iter().try_for_each(outliers)?;
        for l in &self.layers {
            let bad = |what: String| Err(PlanError::Number { value: l.output.clone(), what });
            if !(l.clip.is_finite() && l.clip > 0.0) {
                return bad(format!("clip {}, which is no share of a range", l.clip));
            }
            if l.stored.is_some() != (l.rounding == Rounding::Gptq) {
                return bad("codes of its own without `rounding: gptq`, or that without codes".to_owned());
            }
            if let Some(s) = l.stored.iter().flat_map(|s| &s.scales).find(|s| !(s.is_finite() && **s > 0.0)) {
                return bad(format!("scale {s}, which is not above 0"));
            }
        }
        Ok(())
    }
}

fn readers(a: &Activation) -> &'static [&'static str] {
    match a.readers {
        Readers::All => &["contracting", "elementwise"],
        Readers::Contracting => &["contracting"],
        Readers::Elementwise => &["elementwise"],
    }
}

fn outliers(a: &Activation) -> Result<(), PlanError> {
    let mut seen = BTreeSet::new();
    for o in &a.outliers {
        let bad = |what: String| Err(PlanError::Number { value: a.value.clone(), what });
        if !seen.insert(o.channel) {
            return bad(format!("two second codes of channel {}", o.channel));
        }
        if !(o.scale.is_finite() && o.scale > 0.0) {
            return bad(format!("scale {} of channel {}, which is not above 0", o.scale, o.channel));
        }
        if !(0..=255).contains(&o.zero_point) {
            return bad(format!("zero point {} of channel {}, which is no uint8", o.zero_point, o.channel));
        }
    }
    Ok(())
}

fn once<'p>(kind: &'static str, all: impl Iterator<Item = (&'p str, &'p str)>) -> Result<(), PlanError> {
    let mut seen = BTreeSet::new();
    for (name, part) in all {
        if !seen.insert((name, part)) {
            return Err(PlanError::Twice { value: name.to_owned(), kind });
        }
    }
    Ok(())
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
        assert!(told("sums: [v, w, v]\n").contains("`v`"));
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
        let with = |o: &str| {
            let a = format!("value: v, role: residual, {CODES}, outliers: [{o}]");
            told(&format!("activations:\n- {{ {a} }}\n"))
        };
        assert_eq!(with("{ channel: 1, scale: 0.5, zero_point: 9 }"), "fine");
        assert!(with("{ channel: 1, scale: .nan, zero_point: 9 }").contains("scale NaN"));
        assert!(with("{ channel: 1, scale: 0.5, zero_point: 256 }").contains("256"));
        let one = "{ channel: 1, scale: 0.5, zero_point: 9 }";
        assert!(with(&format!("{one}, {one}")).contains("channel 1"));
    }
}
