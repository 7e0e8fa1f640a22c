use super::common::{commit, is_plain};
use super::{Context, Numerics, Outcome, Pass, PassError};
use crate::rewrite::{Patch, Ref};

/// # What it does
/// Leaves out an Expand that broadcasting does.
///
/// # When it fires
/// On an Expand that feeds an operator with two operands, or a Where, one of whose other operands has the shape of the
/// result, as far as inference can tell.
///
/// # Why it is correct
/// The operator spreads the operand itself.
///
/// # Numerics
/// Bit-exact.
///
/// # Before / after
/// ```text
/// m = Expand (mean, shape)         # x: float[2, 17, 48], mean: float[2, 17, 1]
/// d = Sub (x, m)                   d = Sub (x, mean)
/// ```
///
/// # Source
/// `torch.var` and `full_like` by the dynamo exporter, `broadcast_to` of JAX.
pub struct ImpliedExpand;

const BROADCASTS: [&str; 15] = [
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Pow",
    "Min",
    "Max",
    "And",
    "Or",
    "Equal",
    "Less",
    "Greater",
    "LessOrEqual",
    "GreaterOrEqual",
    "Where",
];

impl Pass for ImpliedExpand {
    fn id(&self) -> &'static str {
        "implied-expand"
    }

    fn summary(&self) -> &'static str {
        "Removes an Expand that broadcasting makes unnecessary."
    }

    fn numerics(&self) -> Numerics {
        Numerics::BitExact
    }

    fn run(&self, model: &mut Context) -> Result<Outcome, PassError> {
        let mut out = Outcome::default();
        let map = model.shapes();
        for id in model.graph.schedule() {
            let g = &model.graph;
            if g.try_node(id).is_none() || !is_plain(g, id) || !BROADCASTS.contains(&g.node(id).op.name.as_str()) {
                continue;
            }
            let n = g.node(id);
            let whole = n.out().and_then(|y| map.dims(y));
            let found = (0..n.inputs.len()).find_map(|i| {
                let x = g.node(g.producer_is(n.input(i)?, "Expand")?).input(0)?;
                let other = (0..n.inputs.len()).filter(|j| *j != i).filter_map(|j| n.input(j));
                let narrow = map.rank(x)? <= whole?.len();
                (narrow && other.into_iter().any(|o| map.dims(o) == whole)).then_some((i, x))
            });
            let Some((slot, x)) = found else { continue };
            let mut patch = Patch::new(self.id());
            patch.set_input(id, slot, Some(Ref::Old(x)));
            commit(patch, model, &mut out)?;
        }
        Ok(out)
    }
}
