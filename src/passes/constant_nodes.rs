use super::common::{commit, erasable};
use super::{Context, Numerics, Outcome, Pass, PassError};
use crate::infer::constant_tensor;
use crate::rewrite::Patch;

/// # What it does
/// Turns `Constant` nodes into initializers.
///
/// # When it fires
/// On every `Constant` whose value is a dense tensor of numbers (`value`, `value_float(s)`, `value_int(s)`). Strings,
/// sparse tensors, parameters of model-local functions, and constants that a nested graph reads or that are graph
/// outputs stay.
///
/// # Why it is correct
/// Both mean the same tensor; the bytes are shared, not copied.
///
/// # Numerics
/// Bit-exact.
///
/// # Before / after
/// ```text
/// two = Constant <value_float = 2.0> ()     <float two = {2.0}>
/// y = Pow (x, two)                          y = Pow (x, two)
/// ```
///
/// # Source
/// TorchScript exports hold several hundred of them; every later pass gets simpler.
pub struct ConstantNodes;

impl Pass for ConstantNodes {
    fn id(&self) -> &'static str {
        "constant-nodes"
    }

    fn summary(&self) -> &'static str {
        "Turns Constant nodes into initializers."
    }

    fn numerics(&self) -> Numerics {
        Numerics::BitExact
    }

    fn run(&self, model: &mut Context) -> Result<Outcome, PassError> {
        let mut out = Outcome::default();
        let nodes: Vec<_> = model.graph.nodes().filter(|(_, n)| n.op.is("Constant")).map(|(id, _)| id).collect();
        for id in nodes {
            let g = &model.graph;
            let node = g.node(id);
            let (Some(v), Some(t)) = (node.out(), constant_tensor(node)) else { continue };
            if g.is_output(v) || !erasable(g, id, &[v]) {
                continue;
            }
            let mut patch = Patch::new(self.id());
            let new = patch.constant(g.name_of(v), crate::ir::Tensor { rider: Default::default(), ..t });
            patch.replace(v, new);
            patch.erase(id);
            commit(patch, model, &mut out)?;
        }
        Ok(out)
    }
}
