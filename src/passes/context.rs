//! What passes work on: a model, what is known of it, and what was decided for it.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use super::PassError;
use crate::infer::{self, ShapeMap};
use crate::ir::{DType, Model, Tensor, ValueId};
use crate::pattern::{Attention, Facts, Recognition, RuleSet, attentions, recognise};
use crate::plan::sites::{self, Sites};
use crate::plan::{Equalisation, QuantPlan};
use crate::rewrite::{Committed, Patch, PatchError, WidenError, sweep, widen_graph};

/// A model on its way through passes.
///
/// It is read as a [`Model`] and changed by [`commit`](Context::commit), [`sweep`](Context::sweep) and nothing else. What
/// is known of it (shapes, constants, recognised forms) is computed when it is asked for, kept as long as the model stays as
/// it is, and forgotten when the model changes, so that no pass has to know what ran before it.
#[derive(Clone, Debug)]
pub struct Context<'a> {
    model: Model,
    rules: Option<Cow<'a, RuleSet>>,
    least_opset: Option<i64>,
    plan: Option<&'a QuantPlan>,
    equalisations: &'a [Equalisation],
    sites: Option<Arc<Sites>>,
    /// What stands for each planned value now.
    planned: BTreeMap<&'a str, ValueId>,
    shapes: OnceCell<Arc<ShapeMap>>,
    attentions: OnceCell<Vec<Attention>>,
    /// Whether the types that values have in the model are all that can be proved.
    typed: bool,
    /// How often the model changed.
    revision: u64,
}

impl Deref for Context<'_> {
    type Target = Model;

    fn deref(&self) -> &Model {
        &self.model
    }
}

impl<'a> Context<'a> {
    /// A model of which nothing is known yet, with the shipped rules.
    pub fn new(model: Model) -> Context<'a> {
        Context {
            model,
            rules: None,
            least_opset: None,
            plan: None,
            equalisations: &[],
            sites: None,
            planned: BTreeMap::new(),
            shapes: OnceCell::new(),
            attentions: OnceCell::new(),
            typed: false,
            revision: 0,
        }
    }

    /// With these rules in place of the shipped ones.
    #[must_use]
    pub fn with_rules(mut self, rules: &'a RuleSet) -> Context<'a> {
        self.rules = Some(Cow::Borrowed(rules));
        self.attentions.take();
        self
    }

    /// Allows raising the operator set: to this one at least, and as far as the rules ask.
    #[must_use]
    pub fn with_opset(mut self, least: i64) -> Context<'a> {
        self.least_opset = Some(least);
        self
    }

    /// With a plan to carry out, made for the parts of the model that `sites` names.
    #[must_use]
    pub fn with_plan(mut self, plan: &'a QuantPlan, sites: &Sites) -> Context<'a> {
        self.plan = Some(plan);
        let found = plan.activations.iter().filter_map(|a| Some((&a.value[..], self.model.graph.find(&a.value)?)));
        self.planned = found.collect();
        self.with_equalisations(&plan.equalisations, sites)
    }

    /// With the equalisations of a plan that is still being made.
    #[must_use]
    pub fn with_equalisations(mut self, equalisations: &'a [Equalisation], sites: &Sites) -> Context<'a> {
        self.equalisations = equalisations;
        self.sites = Some(Arc::new(sites.clone()));
        self
    }

    /// The model as it is now.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Another number after every change of the model.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The model alone.
    pub fn into_model(self) -> Model {
        self.model
    }

    /// What can be proved of every value.
    pub fn shapes(&self) -> Arc<ShapeMap> {
        self.shapes.get_or_init(|| infer::shapes(&self.model)).clone()
    }

    /// The tensor behind a value that does not depend on what the model is fed: stored, or computed from constants.
    pub fn constant(&self, v: ValueId) -> Option<Tensor> {
        self.model.graph.constant(v).cloned().or_else(|| self.shapes().constant(v).cloned())
    }

    /// What rules may ask of the model.
    pub fn facts(&self) -> Facts<'_> {
        Facts::with(&self.model, self.shapes())
    }

    /// The rules that say what forms look like.
    pub fn rules(&self) -> &RuleSet {
        self.rules.as_deref().unwrap_or_else(|| shipped())
    }

    /// Every shape that a rule gives this name.
    pub fn recognised(&self, what: &str) -> Vec<Recognition> {
        recognise(&self.model, self.rules(), what)
    }

    /// The attentions that rules recognise.
    pub fn attentions(&self) -> &[Attention] {
        self.attentions.get_or_init(|| attentions(&self.model, self.rules()))
    }

    /// Everything in the model that can be quantized.
    pub fn found_sites(&self) -> Sites {
        sites::find(&self.model, self.attentions().to_vec())
    }

    /// The operator set that the recipe asks for at least; `None` if it must stay as it is.
    pub fn least_opset(&self) -> Option<i64> {
        self.least_opset
    }

    /// The plan that is carried out, if there is one.
    pub fn plan(&self) -> Option<&'a QuantPlan> {
        self.plan
    }

    /// The plan that is carried out, and the parts of the model it was made for.
    ///
    /// # Errors
    /// If there is none. `pass` is who asks.
    pub fn carried(&self, pass: &str) -> Result<(&'a QuantPlan, Arc<Sites>), PassError> {
        match (self.plan, &self.sites) {
            (Some(p), Some(s)) => Ok((p, s.clone())),
            _ => Err(PassError::Failed { pass: pass.to_owned(), message: "there is no plan to carry out".into() }),
        }
    }

    /// What readers of a planned value read now: the value itself, or what patches put in its place.
    pub fn stands_for(&self, planned: &str) -> Option<ValueId> {
        self.planned.get(planned).copied()
    }

    /// The name in the plan of what `v` stands for.
    pub fn planned_name(&self, v: ValueId) -> Option<&'a str> {
        self.planned.iter().find(|(_, now)| **now == v).map(|(name, _)| *name)
    }

    /// The equalisations to carry out, and the parts of the model they name; `None` if there are none.
    pub fn equalisations(&self) -> Option<(&'a [Equalisation], Arc<Sites>)> {
        let sites = self.sites.clone().filter(|_| !self.equalisations.is_empty())?;
        Some((self.equalisations, sites))
    }

    /// The parts of the model that the plan was made for, as they are now.
    pub fn sites(&self) -> Option<&Sites> {
        self.sites.as_deref()
    }

    /// Finds the weights and biases of the plan's parts anew, after a pass replaced them.
    pub fn reread_sites(&mut self) {
        self.sites = self.sites.as_ref().map(|s| Arc::new(s.reread(&self.model.graph)));
    }

    /// Puts a patch in, or refuses it and leaves the model as it was.
    ///
    /// # Errors
    /// If the patch does not fit the model.
    pub fn commit(&mut self, patch: Patch) -> Result<Committed, PatchError> {
        let replaced: Vec<_> = patch.replaced().collect();
        let done = patch.commit(&mut self.model)?;
        for (old, new) in replaced {
            let new = done.value(new);
            self.planned.values_mut().filter(|v| **v == old).for_each(|v| *v = new);
            if let Some(s) = self.sites.as_mut().filter(|s| s.holds_scores(old)) {
                Arc::make_mut(s).scores_are(old, new);
            }
        }
        self.forget();
        Ok(done)
    }

    /// Removes what nothing reads; returns how many nodes went.
    pub fn sweep(&mut self) -> usize {
        let count = |m: &Model| (m.graph.values().count(), m.graph.initializers().len());
        let before = count(&self.model);
        let gone = sweep(&mut self.model);
        if gone > 0 || count(&self.model) != before {
            self.forget();
        }
        gone
    }

    /// Writes what is proved of every value into the model, where passes and the search for sites read it as the value's
    /// type. Whoever runs passes calls it between them; it is free where nothing changed.
    pub fn settle_types(&mut self) {
        if !self.typed {
            let map = self.shapes();
            infer::write_types(&mut self.model, &map);
            self.typed = true;
            // Rules ask for sizes.
            self.attentions.take();
        }
    }

    /// Makes every value of half precision float32; `bodies` are nested graphs that were converted. Returns how many
    /// weights were widened. Constants keep standing for what they meant before.
    pub(super) fn widen(&mut self, was: DType, bodies: crate::rewrite::Bodies) -> Result<usize, WidenError> {
        let weights = widen_graph(&mut self.model, bodies, crate::rewrite::Ends::Keep)?;
        self.rules = Some(Cow::Owned(self.rules().for_constants_once(was)));
        self.forget();
        Ok(weights)
    }

    /// Goes on with a front part of the model alone.
    pub(crate) fn cut_to(&mut self, front: Model) {
        self.model = front;
        self.planned.clear();
        self.forget();
    }

    fn forget(&mut self) {
        self.shapes.take();
        self.attentions.take();
        self.typed = false;
        self.revision += 1;
    }
}

/// The rules that come with the program.
fn shipped() -> &'static RuleSet {
    static SHIPPED: OnceLock<RuleSet> = OnceLock::new();
    SHIPPED.get_or_init(|| RuleSet::embedded().expect("the shipped rules are read by a test"))
}
