use super::common::{commit, is_plain};
use super::{Context, Numerics, Outcome, Pass, PassError};
use crate::infer::Size;
use crate::rewrite::Patch;

/// # What it does
/// Gives a `Reshape` whose target is computed at run time a constant target, so that the chain of Shape, Gather,
/// Unsqueeze and Concat after it dies.
///
/// # When it fires
/// When every size of the result is a number, or provably the size of the input on the same axis (written 0), except at
/// most one (written -1).
///
/// # Why it is correct
/// A 0 copies the input's size of that axis, which was proved equal. With all other sizes fixed the last one follows
/// from the number of elements, which a Reshape keeps; -1 computes just that. Sizes of 0 are never claimed, and a Reshape
/// with `allowzero` gets no 0.
///
/// # Numerics
/// Bit-exact.
///
/// # Before / after
/// ```text
/// s = Shape (x)                # x: float[batch, 197, 576]
/// b = Gather <axis = 0> (s, zero)
/// t = Concat <axis = 0> (b1, n, three, heads, d)
/// y = Reshape (x, t)           y = Reshape (x, [0, 197, 3, 3, 64])
/// ```
///
/// # Source
/// `x.reshape(B, N, 3, heads, d)` as TorchScript and dynamo export it for a dynamic batch.
pub struct ReshapeStatic;

/// A constant target that reshapes `from` to `to`: numbers, 0 for a size copied from the same axis (if allowed), one -1.
pub(super) fn static_target(from: &[Size], to: &[Size], zero: bool) -> Option<Vec<i64>> {
    let mut open = false;
    to.iter()
        .enumerate()
        .map(|(i, d)| match d {
            Size::Known(n) => (*n > 0).then_some(*n),
            d if zero && from.get(i) == Some(d) => Some(0),
            _ if open => None,
            _ => {
                open = true;
                Some(-1)
            }
        })
        .collect()
}

impl Pass for ReshapeStatic {
    fn id(&self) -> &'static str {
        "reshape-static"
    }

    fn summary(&self) -> &'static str {
        "Replaces a Reshape target computed at run time by a constant."
    }

    fn numerics(&self) -> Numerics {
        Numerics::BitExact
    }

    fn run(&self, model: &mut Context) -> Result<Outcome, PassError> {
        let mut out = Outcome::default();
        if model.opset() < 5 {
            return Ok(out);
        }
        let map = model.shapes();
        for id in model.graph.schedule() {
            let g = &model.graph;
            let node = g.node(id);
            if !node.op.is("Reshape") || !is_plain(g, id) {
                continue;
            }
            let (Some(x), Some(t), Some(y)) = (node.input(0), node.input(1), node.out()) else { continue };
            if map.constant(t).is_some() {
                continue;
            }
            let (Some(from), Some(to)) = (map.dims(x), map.dims(y)) else { continue };
            let zero = node.int("allowzero") == 0;
            let Some(target) = static_target(from, to, zero) else { continue };
            let mut patch = Patch::new(self.id());
            let new = patch.under(g.name_of(y)).ints("shape", &target);
            patch.set_input(id, 1, Some(new));
            commit(patch, model, &mut out)?;
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infer::Atom;

    #[test]
    fn at_most_one_size_is_left_open() {
        let (a, b, n) = (Size::atom(Atom(0)), Size::atom(Atom(1)), Size::Known);
        let from = [a.clone(), n(197), b.clone()];
        assert_eq!(static_target(&from, &[a.clone(), n(3), b.clone()], true), Some(vec![0, 3, 0]));
        assert_eq!(static_target(&from, &[b.clone(), n(3), b.clone()], true), Some(vec![-1, 3, 0]));
        assert_eq!(static_target(&from, &[b.clone(), a.clone()], true), None);
        assert_eq!(static_target(&from, &[a.clone(), n(3)], false), Some(vec![-1, 3]));
        assert_eq!(static_target(&from, &[a, n(0)], true), None);
    }
}
