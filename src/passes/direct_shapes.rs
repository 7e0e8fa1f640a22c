use std::collections::BTreeMap;

use super::common::{commit, erasable, is_plain, is_read};
use super::{Context, Numerics, Outcome, Pass, PassError};
use crate::infer::{ShapeMap, Size};
use crate::ir::{Attrs, DType, ValueId};
use crate::rewrite::{Patch, Ref};

/// # What it does
/// Puts a computed shape together directly from its sizes, where a `Where` chose them.
///
/// # When it fires
/// On an int64 `Where` of one axis each of whose elements is proved to be a number, or equal to a one-element vector
/// that is computed before it.
///
/// # Why it is correct
/// Inference has proved each element.
///
/// # Numerics
/// Bit-exact.
///
/// # Before / after
/// ```text
/// s = Concat <axis = 0> (batch, [-1, -1])
/// open = Equal (s, [-1, -1, -1])
/// t = Where (open, [1, 1, 1], s)              t = Concat <axis = 0> (batch, [1, 1])
/// y = Expand (class_token, t)                 y = Expand (class_token, t)
/// ```
///
/// # Source
/// `cls_token.expand(B, -1, -1)` as the TorchScript exporter writes it.
pub struct DirectShapes;

impl Pass for DirectShapes {
    fn id(&self) -> &'static str {
        "direct-shapes"
    }

    fn summary(&self) -> &'static str {
        "Replaces a shape selected by Where with a Concat of its sizes."
    }

    fn numerics(&self) -> Numerics {
        Numerics::BitExact
    }

    fn run(&self, model: &mut Context) -> Result<Outcome, PassError> {
        let mut out = Outcome::default();
        let map = model.shapes();
        // One-element vectors made so far, by what they hold.
        let mut sizes: BTreeMap<Size, ValueId> = BTreeMap::new();
        for id in model.graph.schedule() {
            let g = &model.graph;
            let Some(y) = g.node(id).out() else { continue };
            if let Some([Some(s)]) = map.elements(y)
                && map.rank(y) == Some(1)
                && map.dtype(y) == Some(DType::INT64)
            {
                sizes.entry(s.clone()).or_insert(y);
            }
            if !g.node(id).op.is("Where") || !is_plain(g, id) || !(is_read(g, y) || g.is_output(y)) {
                continue;
            }
            let Some(parts) = parts(&map, y, &sizes) else { continue };
            let name = g.name_of(y).to_owned();
            let mut patch = Patch::new(self.id()).before(id).made_from([name.clone()]);
            let inputs: Vec<Ref> = parts
                .into_iter()
                .map(|p| match p {
                    SizePart::Value(v) => Ref::Old(v),
                    SizePart::Numbers(n) => patch.under(&name).ints("sizes", &n),
                })
                .collect();
            let new = patch.node("Concat", &name, &inputs, Attrs::new().with_int("axis", 0));
            patch.replace(y, new);
            if erasable(g, id, &[y]) {
                patch.erase(id);
            }
            commit(patch, model, &mut out)?;
        }
        Ok(out)
    }
}

enum SizePart {
    Value(ValueId),
    Numbers(Vec<i64>),
}

/// The pieces of a vector of sizes; `None` if one is unknown, not at hand, or all are numbers (folding does that).
fn parts(map: &ShapeMap, y: ValueId, sizes: &BTreeMap<Size, ValueId>) -> Option<Vec<SizePart>> {
    if map.rank(y) != Some(1) || map.dtype(y) != Some(DType::INT64) || map.constant(y).is_some() {
        return None;
    }
    let mut parts = Vec::new();
    for e in map.elements(y)? {
        match (e.as_ref()?, parts.last_mut()) {
            (Size::Known(n), Some(SizePart::Numbers(list))) => list.push(*n),
            (Size::Known(n), _) => parts.push(SizePart::Numbers(vec![*n])),
            (s, _) => parts.push(SizePart::Value(*sizes.get(s)?)),
        }
    }
    Some(parts)
}
