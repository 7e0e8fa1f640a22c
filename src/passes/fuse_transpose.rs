use super::common::{bypass, commit, erasable, is_plain, is_read, perm_of};
use super::reshape_static::static_target;
use super::{Context, Numerics, Outcome, Pass, PassError};
use crate::infer::{ShapeMap, Size};
use crate::ir::{Class, Graph, NodeId, ValueId};
use crate::rewrite::Patch;

/// # What it does
/// Makes one move out of several.
///
/// # When it fires
/// - `Transpose` of `Transpose`: one, or none if they cancel.
/// - `Reshape` of `Reshape`, `Flatten`, `Squeeze` or `Unsqueeze`: one, if the result's shape can be written as a constant
///   target, or none if the result has the shape it started from.
/// - `Unsqueeze` -> `Transpose` -> `Reshape`: the first is left out.
/// - `Squeeze` of `Reshape`: one `Reshape`, as above.
/// - `Reshape` (which merges axes) -> `Transpose` -> `Reshape` (which splits them again): one `Transpose`, if inference
///   proves every size. The exporter's K^T, `[B,H,N,D] -> [BH,N,D] -> [BH,D,N] -> [B,H,D,N]`, is `perm = [0,1,3,2]`. After
///   another Transpose also where axes of size 1 come or go: a Transpose, which joins that one, and a Reshape.
/// - `Reshape` -> `Transpose` -> `Reshape` with axes of size 1 in between: all three without these.
///
/// # Why it is correct
/// Permutations compose. A Reshape keeps the row-major order of elements, so only the last shape counts. Moving a merged
/// axis moves the axes it was merged from together, in their order.
///
/// # Numerics
/// Bit-exact.
///
/// # Before / after
/// ```text
/// a = Reshape (k, [-1, 17, 16])              # k: float[1, 3, 17, 16]
/// b = Transpose <perm = [0, 2, 1]> (a)
/// y = Reshape (b, [1, 3, 16, 17])            y = Transpose <perm = [0, 1, 3, 2]> (k)
/// ```
///
/// # Source
/// Fused attention as the dynamo exporter decomposes it; `Einsum` as tf2onnx does.
pub struct FuseTranspose;

impl Pass for FuseTranspose {
    fn id(&self) -> &'static str {
        "fuse-transpose"
    }

    fn summary(&self) -> &'static str {
        "Merges chains of Transpose and Reshape."
    }

    fn numerics(&self) -> Numerics {
        Numerics::BitExact
    }

    fn run(&self, model: &mut Context) -> Result<Outcome, PassError> {
        let mut out = Outcome::default();
        let map = model.shapes();
        for id in model.graph.schedule() {
            let g = &model.graph;
            if g.try_node(id).is_none() || !is_plain(g, id) {
                continue;
            }
            let Some(y) = g.node(id).out().filter(|y| is_read(g, *y) || g.is_output(*y)) else { continue };
            // Values made by this run are not in the map: they wait for the next run.
            let found = transposes(g, id, &map).or_else(|| reshapes(g, id, &map)).or_else(|| narrower(g, id, &map));
            let Some(found) = found else { continue };
            let name = g.name_of(y).to_owned();
            let mut patch = Patch::new(self.id()).before(id).made_from([name.clone()]);
            let (mut e, x) = (patch.under(&name), found.x.into());
            let new = match found.made {
                Made::Nothing => {
                    bypass(self.id(), id, found.x, model, &mut out)?;
                    continue;
                }
                Made::Transpose(perm) => e.turned("", x, &perm),
                Made::Reshape(to) => e.reshaped("", x, &to),
                Made::Both(perm, to) => {
                    let moved = e.turned("moved", x, &perm);
                    e.reshaped("", moved, &to)
                }
                Made::Three(axes, perm, to) => {
                    let axes = e.reshaped("axes", x, &axes);
                    let moved = e.turned("moved", axes, &perm);
                    e.reshaped("", moved, &to)
                }
            };
            if let Some(ty) = map.ty(y) {
                patch.typed(new, ty.dtype, ty.shape);
            }
            patch.replace(y, new);
            if erasable(g, id, &[y]) {
                patch.erase(id);
            }
            commit(patch, model, &mut out)?;
        }
        Ok(out)
    }
}

enum Made {
    Nothing,
    Transpose(Vec<i64>),
    Reshape(Vec<i64>),
    /// A Transpose and a Reshape after it.
    Both(Vec<i64>, Vec<i64>),
    /// A Transpose between two Reshapes.
    Three(Vec<i64>, Vec<i64>, Vec<i64>),
}

struct Fused {
    x: ValueId,
    made: Made,
}

fn as_move(x: ValueId, perm: Vec<usize>) -> Fused {
    let still = perm.iter().enumerate().all(|(i, a)| i == *a);
    let made = if still { Made::Nothing } else { Made::Transpose(perm.into_iter().map(|a| a as i64).collect()) };
    Fused { x, made }
}

fn transposes(g: &Graph, id: NodeId, map: &ShapeMap) -> Option<Fused> {
    let node = g.node(id);
    if !node.op.is("Transpose") {
        return None;
    }
    let middle = node.input(0)?;
    let first = g.producer_is(middle, "Transpose")?;
    let x = g.node(first).input(0)?;
    let rank = map.rank(x)?;
    let (p, q) = (perm_of(g, first, rank)?, perm_of(g, id, rank)?);
    Some(as_move(x, q.iter().map(|a| p.get(*a).copied()).collect::<Option<_>>()?))
}

fn reshapes(g: &Graph, id: NodeId, map: &ShapeMap) -> Option<Fused> {
    let node = g.node(id);
    let relabels = |n: NodeId| g.node(n).is_a(Class::Relabel);
    if !relabels(id) {
        return None;
    }
    let (middle, y) = (node.input(0)?, node.out()?);
    let before = g.producer(middle).filter(|n| is_plain(g, *n))?;
    let to = map.dims(y)?;
    if relabels(before) {
        let x = g.node(before).input(0)?;
        let from = map.dims(x)?;
        if from == to {
            return Some(Fused { x, made: Made::Nothing });
        }
        // Squeeze and Unsqueeze say more than a Reshape would: only a Reshape takes others in, or is taken in.
        let taken = node.op.is("Squeeze") && g.node(before).op.is("Reshape");
        if !node.op.is("Reshape") && !taken {
            return None;
        }
        return Some(Fused { x, made: Made::Reshape(static_target(from, to, true)?) });
    }
    if !node.op.is("Reshape") || !g.node(before).op.is("Transpose") {
        return None;
    }
    let merged = g.node(before).input(0)?;
    let first = g.producer(merged).filter(|n| relabels(*n) && is_plain(g, *n))?;
    let x = g.node(first).input(0)?;
    let from = map.dims(x)?;
    if let Some(found) = without_ones(x, from, map.dims(merged)?, &perm_of(g, before, map.rank(merged)?)?, to) {
        return Some(found);
    }
    let groups = merges(from, map.dims(merged)?)?;
    let perm = perm_of(g, before, groups.len())?;
    let moved: Vec<usize> = perm.iter().flat_map(|a| groups[*a].clone()).collect();
    let sizes: Vec<Size> = moved.iter().map(|a| from[*a].clone()).collect();
    if sizes == to {
        return Some(as_move(x, moved));
    }
    // The same but for axes of size 1: the Transpose may meet another one now.
    let many = |d: &&Size| **d != Size::Known(1);
    let alike = sizes.iter().filter(many).eq(to.iter().filter(many));
    let target = static_target(&sizes, to, true).filter(|_| alike && g.producer_is(x, "Transpose").is_some())?;
    Some(Fused { x, made: Made::Both(moved.into_iter().map(|a| a as i64).collect(), target) })
}

/// For Reshape -> Transpose -> Reshape with axes of size 1 in between that nobody needs: all three without them.
fn narrower(g: &Graph, id: NodeId, map: &ShapeMap) -> Option<Fused> {
    let plain = |v: ValueId, op: &str| g.producer_is(v, op).filter(|n| is_plain(g, *n) && g.use_count(v) == 1);
    let turn = plain(g.node(id).input(0).filter(|_| g.node(id).op.is("Reshape"))?, "Transpose")?;
    let between = g.node(turn).input(0)?;
    let x = g.node(plain(between, "Reshape")?).input(0)?;
    let (from, axes, to) = (map.dims(x)?, map.dims(between)?, map.dims(g.node(id).out()?)?);
    let kept: Vec<usize> = (0..axes.len()).filter(|a| axes[*a] != Size::Known(1)).collect();
    if kept.len() == axes.len() || kept.is_empty() {
        return None;
    }
    let sizes: Vec<Size> = kept.iter().map(|a| axes[*a].clone()).collect();
    let perm: Vec<usize> =
        perm_of(g, turn, axes.len())?.iter().filter_map(|a| kept.iter().position(|k| k == a)).collect();
    let moved: Vec<Size> = perm.iter().map(|a| sizes[*a].clone()).collect();
    let perm = perm.into_iter().map(|a| a as i64).collect();
    let made = Made::Three(static_target(from, &sizes, true)?, perm, static_target(&moved, to, true)?);
    Some(Fused { x, made })
}

/// For a change of shape from `from` to `between` that only puts in axes of size 1, and a Transpose and a Reshape after it:
/// the Transpose without these axes, and the Reshape if it still does something.
fn without_ones(x: ValueId, from: &[Size], between: &[Size], perm: &[usize], to: &[Size]) -> Option<Fused> {
    let mut rest = from.iter().enumerate();
    let mut next = rest.next();
    // The axis of `from` that each axis of `between` is.
    let mut axes = Vec::with_capacity(between.len());
    for d in between {
        match next {
            Some((i, f)) if f == d => {
                axes.push(Some(i));
                next = rest.next();
            }
            _ if *d == Size::Known(1) => axes.push(None),
            _ => return None,
        }
    }
    if next.is_some() || axes.iter().all(Option::is_some) {
        return None;
    }
    let perm: Vec<usize> = perm.iter().filter_map(|a| axes[*a]).collect();
    let moved: Vec<Size> = perm.iter().map(|a| from[*a].clone()).collect();
    if moved == to {
        return Some(as_move(x, perm));
    }
    let target = static_target(&moved, to, true)?;
    Some(Fused { x, made: Made::Both(perm.into_iter().map(|a| a as i64).collect(), target) })
}

/// For a Reshape that only merges neighbouring axes: the axes merged into each.
fn merges(from: &[Size], to: &[Size]) -> Option<Vec<Vec<usize>>> {
    let (mut at, mut groups) = (0, Vec::with_capacity(to.len()));
    for d in to {
        let (mut product, mut group) = (Size::Known(1), Vec::new());
        while group.is_empty() || product != *d {
            product = product.mul(from.get(at)?)?;
            group.push(at);
            at += 1;
        }
        groups.push(group);
    }
    // Sizes of 1 left over at the end belong to the last axis.
    while from.get(at) == Some(&Size::Known(1)) {
        groups.last_mut()?.push(at);
        at += 1;
    }
    (at == from.len()).then_some(groups)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infer::Atom;

    #[test]
    fn merging_is_seen_through_sizes_of_one_and_symbols() {
        let (b, n) = (Size::atom(Atom(0)), Size::Known);
        let bh = b.mul(&n(3)).unwrap();
        assert_eq!(
            merges(&[b.clone(), n(3), n(17), n(16)], &[bh, n(17), n(16)]),
            Some(vec![vec![0, 1], vec![2], vec![3]])
        );
        assert_eq!(merges(&[n(1), n(3), n(17)], &[n(3), n(17)]), Some(vec![vec![0, 1], vec![2]]));
        assert_eq!(merges(&[n(6), n(17)], &[n(2), n(3), n(17)]), None);
        assert_eq!(merges(&[b.clone(), n(3)], &[n(3), b]), None);
    }
}
