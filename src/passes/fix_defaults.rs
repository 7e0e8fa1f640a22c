use super::{Context, Numerics, Outcome, Pass, PassError};
use crate::ir::{Def, ValueId};
use crate::rewrite::Patch;

/// # What it does
/// Turns inputs with a default into constants.
///
/// # When it fires
/// On every graph input that an initializer gives a default, unless it is an output as well.
///
/// # Why it is correct
/// Files of IR version 3 and older had to list every weight among the inputs. A caller who overrides one gives another
/// model, and numbers chosen for this one would not fit it.
///
/// # Numerics
/// Bit-exact for callers who leave the defaults alone.
///
/// # Before / after
/// ```text
/// g (float[2] x, float[2] w = {1, 2}) => (y)       g (float[2] x) => (y) <float[2] w = {1, 2}>
/// ```
///
/// # Source
/// ONNX IR specification, "Initializers".
pub struct FixDefaults;

impl Pass for FixDefaults {
    fn id(&self) -> &'static str {
        "fix-defaults"
    }

    fn summary(&self) -> &'static str {
        "Turns inputs with a default value into constants."
    }

    fn numerics(&self) -> Numerics {
        Numerics::BitExact
    }

    fn run(&self, model: &mut Context) -> Result<Outcome, PassError> {
        let g = &model.graph;
        let found: Vec<ValueId> = g
            .inputs()
            .iter()
            .copied()
            .filter(|v| matches!(g.value(*v).def, Def::InputWithDefault(_)) && !g.is_output(*v))
            .collect();
        let mut out = Outcome::default();
        if found.is_empty() {
            return Ok(out);
        }
        let mut patch = Patch::new(self.id());
        found.iter().for_each(|v| patch.fix_default(*v));
        model.commit(patch)?;
        out.changes = found.len();
        out.notes.push(format!("{} inputs with a default are constants now and cannot be overridden", found.len()));
        Ok(out)
    }
}
