//! What the passes did.

use crate::ir::Model;
use crate::passes::Numerics;

/// What the passes did, in the order they ran.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    pub steps: Vec<PassRun>,
    /// What the passes want to tell the user.
    pub notes: Vec<String>,
    /// Whether the models before and after each pass are kept.
    pub(super) keep_models: bool,
}

/// One pass that ran.
#[derive(Clone, Debug)]
pub struct PassRun {
    pub pass: String,
    pub changes: usize,
    /// What the pass says it does to the numbers.
    pub numerics: Numerics,
    /// The model as the pass found and left it, in a journal that keeps models.
    pub models: Option<[Model; 2]>,
}

impl Journal {
    /// A journal that keeps the model before and after each pass, for [`verify_each`](super::each::verify_each). Weights
    /// that no pass replaced are shared, not copied.
    pub fn keeping_models() -> Journal {
        Journal { keep_models: true, ..Journal::default() }
    }

    /// The model as a pass left it, in a journal that keeps models: after its first run, or after its second for
    /// `PASS:2`. `None` if it has not run.
    pub fn after(&self, pass: &str) -> Option<&Model> {
        let (id, run) = match pass.rsplit_once(':') {
            Some((id, n)) => (id, n.parse::<usize>().ok()?.checked_sub(1)?),
            None => (pass, 0),
        };
        let step = self.steps.iter().filter(|s| s.pass == id).nth(run)?;
        step.models.as_ref().map(|[_, after]| after)
    }
}
