//! What integers a model is fed are for.

use std::collections::BTreeSet;

use crate::ir::{Dim, Graph, ValueId, axis};

/// How many rows the smallest table has that an input of integers picks from, less what is added to them on the way: what it
/// holds must be below. `None` if it picks from no table of known size.
pub fn table_rows(g: &Graph, input: ValueId) -> Option<i64> {
    if g.value(input).ty.as_ref().is_none_or(|t| !t.dtype.is_int()) {
        return None;
    }
    let (mut todo, mut seen, mut least) = (vec![(input, 0i64)], BTreeSet::new(), None::<i64>);
    while let Some((v, more)) = todo.pop() {
        for (id, slot) in g.uses(v) {
            if slot == usize::MAX || !seen.insert((id, slot)) {
                continue;
            }
            let n = g.node(id);
            let scalar = |slot: usize| n.input(slot).and_then(|c| g.constant(c)).and_then(|t| t.as_scalar());
            let mut on = |by: i64| todo.extend(n.outputs.iter().flatten().map(|y| (*y, more.saturating_add(by))));
            match (n.op.name.as_str(), slot) {
                _ if !n.op.is_onnx() => {}
                ("Gather" | "GatherElements", 1) => {
                    let at = n.int("axis");
                    let Some(sizes) = n.input(0).and_then(|t| sizes(g, t)) else { continue };
                    // Of what is computed and of open size, the first row is there.
                    let size = axis(at, sizes.len()).and_then(|a| sizes[a]);
                    let rows = size.map_or(1, |n| n.saturating_sub(more).max(1));
                    least = Some(least.map_or(rows, |l| l.min(rows)));
                }
                // Regions are of the first image.
                ("RoiAlign", 2) => least = Some(1),
                ("Add", 0 | 1) => {
                    if let Some(c) = scalar(1 - slot) {
                        on((c as i64).max(0));
                    }
                }
                ("Cast", 0) => on(0),
                _ if n.moves(slot) => on(0),
                _ => {}
            }
        }
    }
    least
}

/// The sizes of a constant, or of a value as far as they are known.
fn sizes(g: &Graph, v: ValueId) -> Option<Vec<Option<i64>>> {
    if let Some(t) = g.constant(v) {
        return Some(t.dims.iter().map(|n| Some(*n)).collect());
    }
    let known = |d: &Dim| if let Dim::Known(n) = d { Some(*n) } else { None };
    Some(g.shape(v)?.iter().map(known).collect())
}

/// True for an input that goes nowhere but in front of, or beside, what the model computes, or into a product, moved at most:
/// a cache of keys and values.
pub fn continues(g: &Graph, input: ValueId) -> bool {
    let (mut todo, mut joined) = (vec![input], false);
    // A chain in a graph without cycles ends; the bound is for graphs that were not validated.
    for _ in 0..64 {
        let Some(v) = todo.pop() else { return joined };
        for (id, slot) in g.uses(v) {
            let n = g.node(id);
            match n.op.name.as_str() {
                _ if slot == usize::MAX || !n.op.is_onnx() => return false,
                "Shape" | "Size" => {}
                "Concat" if n.inputs.len() == 1 => todo.extend(n.out()),
                "Concat" | "MatMul" => joined |= n.inputs.iter().flatten().any(|x| *x != v && g.constant(*x).is_none()),
                "Transpose" | "Identity" | "Cast" => todo.extend(n.out()),
                _ => return false,
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::parse_model;

    #[test]
    fn the_smallest_table_counts_less_what_is_added() {
        let m = parse_model(
            r#"<ir_version: 8, opset_import: ["" : 17]>
            g (int64[1,4] ids, int64[1,4] free, int64[1,4] places) => (float[1,4,1] y, int64[1,4] z)
            <float[10,1] words = {1,2,3,4,5,6,7,8,9,10}, float[1,7] turned = {1,2,3,4,5,6,7},
             float[12,1] positions = {1,2,3,4,5,6,7,8,9,10,11,12}, int64 two = {2}>
            {
                a = Gather (words, ids)
                b = Gather <axis = 1> (turned, ids)
                p = Add (places, two)
                c = Gather (positions, p)
                y = Add (a, c)
                z = Add (free, ids)
            }"#,
        )
        .unwrap();
        let g = &m.graph;
        let rows = |n: &str| table_rows(g, g.find(n).unwrap());
        assert_eq!(["ids", "free", "places"].map(rows), [Some(7), None, Some(10)]);
    }

    #[test]
    fn caches_are_told_from_images() {
        let m = parse_model(
            r#"<ir_version: 8, opset_import: ["" : 17]>
            g (float[1,3,past,16] k, float[1,3,past,16] v, float[1,3,1,16] now, float[1,3,16,16] image, float[1,3,8,8] flat)
            => (float[1,3,all,16] k2, float[1,3,1,16] y, float[1,4,16,16] z, float[3,64] r)
            <float[4,3,1,1] w, int64[2] shape = {3, 64}>
            {
                k2 = Concat <axis = 2> (k, now)
                t = Transpose <perm = [0, 1, 3, 2]> (k2)
                s = MatMul (now, t)
                y = MatMul (s, v)
                z = Conv (image, w)
                r = Reshape (flat, shape)
            }"#,
        )
        .unwrap();
        let g = &m.graph;
        let found = |n: &str| continues(g, g.find(n).unwrap());
        assert_eq!(["k", "v", "image", "flat"].map(found), [true, true, false, false]);
    }
}
