//! What a plan must not say of the model that it is for.

use super::channels::channel_axis;
use super::{Activation, PlanError, QuantPlan, Role};
use crate::ir::{Dim, Graph, ValueId, nearest};
use crate::yaml::{Step, wrong_at};

impl QuantPlan {
    /// Checks what passes take the plan's word for: that the values named are there, and that scales lie along an axis that
    /// has as many channels.
    ///
    /// # Errors
    /// The first entry that does not fit the model, with its line where the plan came from a text.
    pub fn fits(&self, g: &Graph) -> Result<(), PlanError> {
        self.named(g)?;
        for (i, name) in self.sums.iter().enumerate() {
            if g.find(name).is_none_or(|v| g.producer(v).is_none()) {
                return Err(self.placed(&["sums".into(), i.into()], missing(g, name, "result of a node")));
            }
        }
        for (i, a) in self.activations.iter().enumerate() {
            if let Some(what) = g.find(&a.value).and_then(|v| along(g, v, a).err()) {
                let wrong = PlanError::Number { value: a.value.clone(), what };
                return Err(self.placed(&["activations".into(), i.into(), "params".into(), "axis".into()], wrong));
            }
        }
        Ok(())
    }

    /// Checks that every value an entry is about is there.
    fn named(&self, g: &Graph) -> Result<(), PlanError> {
        let all = [
            ("folds", "value", self.folds.iter().map(|f| &f.value).collect::<Vec<_>>()),
            ("equalisations", "divided", self.equalisations.iter().map(|e| &e.divided).collect()),
            ("equalisations", "multiplied", self.equalisations.iter().map(|e| &e.multiplied).collect()),
            ("activations", "value", self.activations.iter().map(|a| &a.value).collect()),
            ("constants", "value", self.constants.iter().map(|c| &c.value).collect()),
            ("layers", "output", self.layers.iter().map(|l| &l.output).collect()),
            ("attentions", "output", self.attentions.iter().map(|a| &a.output).collect()),
        ];
        for (section, key, names) in all {
            if let Some((i, name)) = names.into_iter().enumerate().find(|(_, n)| g.find(n).is_none()) {
                return Err(self.placed(&[section.into(), i.into(), key.into()], missing(g, name, "value")));
            }
        }
        Ok(())
    }

    /// Checks that the plan's recipe is the one that is `given`, or a `known` one.
    ///
    /// # Errors
    /// If it is neither.
    pub fn follows(&self, given: &str, known: &[String]) -> Result<(), PlanError> {
        if self.recipe == given || known.contains(&self.recipe) {
            return Ok(());
        }
        let (recipe, given) = (self.recipe.clone(), given.to_owned());
        Err(self.placed(&["recipe".into()], PlanError::Recipe { recipe, given }))
    }

    /// The error with the place of the entry in the text that the plan was read from.
    pub(super) fn placed(&self, way: &[Step], e: PlanError) -> PlanError {
        match &self.source.0 {
            Some(text) => PlanError::Placed { told: wrong_at(text, way, &e.to_string()) },
            None => e,
        }
    }
}

/// The error that there is no such value, with the one that may have been meant.
fn missing(g: &Graph, name: &str, kind: &'static str) -> PlanError {
    let near = nearest(name, g.values().map(|(v, _)| g.name_of(v)));
    let hint = near.map_or_else(String::new, |n| format!("; did you mean `{n}`?"));
    PlanError::Missing { what: name.to_owned(), kind, hint }
}

/// Whether the scales of an entry lie along channels of its value.
fn along(g: &Graph, v: ValueId, a: &Activation) -> Result<(), String> {
    let (Some(axis), Some(rank)) = (a.params.axis(), g.rank(v)) else { return Ok(()) };
    let at = usize::try_from(if axis < 0 { axis + rank as i64 } else { axis }).ok().filter(|at| *at < rank);
    let at = at.ok_or_else(|| format!("axis {axis}, and the value has {rank} axes"))?;
    let scales = a.params.channels();
    if let Some(Dim::Known(n)) = g.shape(v).and_then(|s| s.get(at))
        && *n != scales as i64
    {
        return Err(format!("{scales} scales along axis {axis}, which has {n} entries"));
    }
    // Scores have their heads in front of queries and keys, which may be their first axis.
    if at == 0 && rank > 1 && a.role != Role::Scores && channel_axis(g, v) != 0 {
        return Err(format!(
            "axis {axis}, along which samples lie; scales belong to channels (axis -1, or 1 of an image)"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::parse_model;

    fn told(rest: &str) -> String {
        let m = parse_model(
            "<ir_version: 8, opset_import: [\"\" : 17]>
            g (float[n,3,4] x) => (float[3,n,4] y) {
                h = Relu (x)
                moved = Transpose <perm = [1, 0, 2]> (h)
                y = Relu (moved)
            }",
        );
        let plan = QuantPlan::from_yaml(&format!("version: 1\nrecipe: r\nmodel: m\n{rest}"), "p").unwrap();
        let mut m = m.unwrap();
        crate::infer::annotate(&mut m);
        plan.fits(&m.graph).map_or_else(|e| e.to_string(), |()| "fine".to_owned())
    }

    #[test]
    fn scales_lie_along_channels() {
        let with = |value: &str, axis: i64, scales: &str| {
            let params = format!(
                "kind: per-axis, code: u8, axis: {axis}, scales: '{scales}', zero_points: '0 x{}'",
                scales.split(' ').count()
            );
            told(&format!("activations:\n- {{ value: {value}, role: other, params: {{ {params} }}, reason: '' }}\n"))
        };
        assert_eq!(with("h", -1, "1 2 3 4"), "fine");
        assert_eq!(with("h", 1, "1 2 3"), "fine");
        for (axis, scales, what) in [
            (0, "1", "along which samples lie"),
            (-3, "1 2", "along which samples lie"),
            (2, "1 2", "has 4 entries"),
            (3, "1", "has 3 axes"),
        ] {
            let e = with("h", axis, scales);
            assert!(e.starts_with("activations[0].params.axis: the plan gives `h`"), "{e}");
            assert!(e.contains(what) && e.contains("correct it") && e.contains("at line 5 column "), "{e}");
        }
    }

    #[test]
    fn a_plan_follows_a_recipe_that_there_is() {
        let plan = QuantPlan::from_yaml("version: 1\nmodel: m\nrecipe: mine\n", "p").unwrap();
        let known = ["theirs".to_owned()];
        assert_eq!(plan.follows("mine", &known).map_err(|e| e.to_string()), Ok(()));
        assert!(plan.follows("other", &["mine".to_owned()]).is_ok());
        let e = plan.follows("other", &known).unwrap_err().to_string();
        assert!(e.contains("`mine`") && e.contains("--recipe") && e.ends_with("at line 3 column 9"), "{e}");
    }

    #[test]
    fn sums_are_results_of_nodes() {
        assert_eq!(told("sums: [h]\n"), "fine");
        for name in ["nowhere", "x"] {
            let e = told(&format!("sums:\n- h\n- {name}\n"));
            assert!(e.contains(&format!("`{name}`")) && e.ends_with("at line 6 column 3"), "{e}");
        }
    }
}
