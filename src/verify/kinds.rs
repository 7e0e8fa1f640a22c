//! What each output of a model is, read off the graph, and so what a quantized one is judged by.
//!
//! Integers and truth values are labels. Boxes that operators chose and ordered by their scores (NonMaxSuppression, TopK, ...)
//! are detections, whose place in the list means nothing, with all that is listed beside them. Scores over classes come out
//! of a layer with a bias for each class, or of a Softmax that nothing else reads. Everything else is numbers: an embedding, a
//! depth map or a mask has a largest element too, but where it lies decides nothing.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::infer::{self, ShapeMap};
use crate::ir::{Class, Dim, Graph, Model, Node, NodeId, ValueId};
use crate::plan::apart::unfed;

/// What an output is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Numbers, judged by the error in them.
    #[default]
    Values,
    /// Scores over classes along an axis, judged by the class they name, too.
    Classes { axis: usize },
    /// Integers or truth values, judged by how many are the same.
    Labels,
    /// Boxes found in a picture, or what belongs to each of them, judged by how many found their like.
    Detections,
}

/// Words in names of outputs that are no scores over classes, although a layer with a bias makes them.
const NO_CLASSES: &[&str] = &[
    "box", "iou", "point", "coord", "keypoint", "landmark", "depth", "heatmap", "embed", "feature", "hidden", "recon",
    "pixel", "image", "flow", "pose", "mask",
];

/// Fewest classes of a map that no Softmax makes: two or three channels are a flow or a picture.
const DENSE: i64 = 4;

/// What the outputs are, in the graph's order.
pub fn kinds(m: &Model) -> Vec<Kind> {
    let g = &m.graph;
    let look = Look { g, shapes: infer::shapes(m), opset: m.opset(), unfed: unfed(g) };
    let chosen = look.chosen();
    let boxes = chosen.iter().any(|v| g.outputs().contains(v) && look.size_from_end(*v, 0) == Some(4));
    let kind = |v: &ValueId| {
        if boxes && chosen.contains(v) {
            Kind::Detections
        } else if look.shapes.dtype(*v).or(g.value(*v).ty.as_ref().map(|t| t.dtype)).is_some_and(|d| !d.is_float()) {
            Kind::Labels
        } else {
            look.classes(*v).map_or(Kind::Values, |axis| Kind::Classes { axis })
        }
    };
    g.outputs().iter().map(kind).collect()
}

struct Look<'g> {
    g: &'g Graph,
    shapes: Arc<ShapeMap>,
    opset: i64,
    /// Nodes whose results are the same whatever the model is fed.
    unfed: BTreeSet<NodeId>,
}

/// A step from an output towards what makes it.
enum Towards {
    /// On, through this operand.
    To(ValueId),
    /// Found, with the axis of the classes in what this node makes.
    Classes(i64),
    None,
}

impl Look<'_> {
    fn rank(&self, v: ValueId) -> Option<usize> {
        self.told_rank(self.shaped(v))
    }

    fn told_rank(&self, v: ValueId) -> Option<usize> {
        self.shapes.rank(v).or_else(|| self.g.rank(v))
    }

    /// The value itself; where nothing tells its shape, as after a Loop, one of the same shape that is made of it element by element.
    fn shaped(&self, mut v: ValueId) -> ValueId {
        while self.told_rank(v).is_none()
            && let [(reader, 0)] = self.g.uses(v)[..]
            && let n = self.g.node(reader)
            && (n.is_a(Class::Unary) || ["Identity", "Cast", "Dropout"].iter().any(|op| n.op.is(op)))
            && let Some(out) = n.out()
        {
            v = out;
        }
        v
    }

    /// True if the value is the same whatever the model is fed.
    fn settled(&self, v: ValueId) -> bool {
        self.g.constant(v).is_some() || self.g.producer(v).is_some_and(|n| self.unfed.contains(&n))
    }

    /// The size of the axis that is this many in front of the last.
    fn size_from_end(&self, v: ValueId, back: usize) -> Option<i64> {
        let v = self.shaped(v);
        let known = self.shapes.dims(v).and_then(|d| d.get(d.len().checked_sub(back + 1)?)?.known());
        let declared = |d: &[Dim]| match d.get(d.len().checked_sub(back + 1)?)? {
            Dim::Known(n) => Some(*n),
            _ => None,
        };
        known.or_else(|| self.g.shape(v).and_then(declared))
    }

    /// Everything computed from what such operators chose.
    fn chosen(&self) -> BTreeSet<ValueId> {
        let mut found = BTreeSet::new();
        for id in self.g.schedule() {
            let n = self.g.node(id);
            if n.chooses_elements() || n.inputs.iter().flatten().any(|v| found.contains(v)) {
                found.extend(n.outputs.iter().flatten());
            }
        }
        found
    }

    /// The axis of the classes, if these are scores over some.
    fn classes(&self, out: ValueId) -> Option<usize> {
        let name = self.g.name_of(out).to_lowercase();
        if NO_CLASSES.iter().any(|w| name.contains(w)) {
            return None;
        }
        let (mut v, mut crossed) = (out, Vec::new());
        // A chain in a graph without cycles ends; the bound is for graphs that were not validated.
        for _ in 0..64 {
            let id = self.g.producer(v)?;
            // What others compute with is no result: attention weights that are an output as well, features.
            let others = |(n, slot): &(NodeId, usize)| *slot != usize::MAX && !crossed.contains(n) && !self.names(*n);
            if self.g.uses(v).iter().any(others) {
                return None;
            }
            match self.step(id, v) {
                Towards::To(x) => (v, crossed) = (x, [crossed, vec![id]].concat()),
                Towards::Classes(axis) => return self.forward(v, axis, &crossed),
                Towards::None => return None,
            }
        }
        None
    }

    /// True for a node that computes nothing with scores: it takes their sizes, or names the best of them for an output.
    fn names(&self, id: NodeId) -> bool {
        let n = self.g.node(id);
        if n.op.is("Shape") || n.op.is("Size") {
            return true;
        }
        if !(n.op.is("ArgMax") || n.op.is("TopK")) {
            return false;
        }
        let (mut todo, mut left) = (n.outputs.iter().flatten().copied().collect::<Vec<ValueId>>(), 16);
        while let Some(v) = todo.pop() {
            for (reader, slot) in self.g.uses(v) {
                let r = self.g.node(reader);
                left -= 1;
                if left == 0 || slot == usize::MAX || !(r.op.is("Cast") || r.moves(slot)) {
                    return false;
                }
                todo.extend(r.outputs.iter().flatten());
            }
        }
        true
    }

    fn step(&self, id: NodeId, v: ValueId) -> Towards {
        let n = self.g.node(id);
        let constant = |slot: usize| n.input(slot).is_some_and(|x| self.settled(x));
        let first = || n.input(0).map_or(Towards::None, Towards::To);
        match n.op.name.as_str() {
            _ if !n.op.is_onnx() => Towards::None,
            "Softmax" | "LogSoftmax" => match self.rank(v) {
                Some(rank) => Towards::Classes(n.axis_at(rank, self.opset) as i64),
                None => Towards::None,
            },
            "Gemm" if constant(1) && n.input(2).is_some() => Towards::Classes(-1),
            "Conv" if constant(1) && n.input(2).is_some() => {
                if self.channels(v, 1).is_some_and(|c| c >= DENSE) {
                    Towards::Classes(1)
                } else {
                    Towards::None
                }
            }
            "Add" if self.is_bias(n) => {
                // Features of patches have a bias each as well: more than one row of them is not taken for scores.
                if self.rank(v) == Some(2) || self.named_scores(v) { Towards::Classes(-1) } else { Towards::None }
            }
            "Sigmoid" | "Identity" | "Cast" | "Dropout" | "Resize" => first(),
            "Add" | "Sub" | "Mul" | "Div" if constant(1) => first(),
            "Add" | "Mul" if constant(0) => n.input(1).map_or(Towards::None, Towards::To),
            // The mean of two heads: what holds of one holds of the other.
            "Add" | "Mean" | "Sum" => first(),
            _ if n.is_move() && !n.op.is("Concat") => first(),
            _ => Towards::None,
        }
    }

    fn named_scores(&self, v: ValueId) -> bool {
        let name = self.g.name_of(v).to_lowercase();
        self.g.is_output(v) && ["logit", "class", "score", "prob"].iter().any(|w| name.contains(w))
    }

    fn channels(&self, v: ValueId, axis: usize) -> Option<i64> {
        self.size_from_end(v, self.rank(v)?.checked_sub(axis + 1)?)
    }

    /// True for the sum of a product with constant weights and a vector.
    fn is_bias(&self, n: &Node) -> bool {
        (0..2).any(|slot| {
            let (Some(x), Some(b)) = (n.input(slot), n.input(1 - slot)) else { return false };
            let vector = self.g.constant(b).is_some_and(|t| t.len() > 1);
            let weights = self.g.producer_is(x, "MatMul").and_then(|p| self.g.node(p).input(1));
            vector && weights.is_some_and(|w| self.g.constant(w).is_some())
        })
    }

    /// Where the axis of a value ends up after these nodes, the last of which stands first; only if it has at least two
    /// elements.
    fn forward(&self, v: ValueId, axis: i64, crossed: &[NodeId]) -> Option<usize> {
        let rank = self.rank(v)?;
        let mut axis = if axis < 0 { rank.checked_sub(axis.unsigned_abs() as usize)? } else { axis as usize };
        let size = self.channels(v, axis)?;
        let mut at = v;
        for id in crossed.iter().rev() {
            let n = self.g.node(*id);
            let out = n.out()?;
            let same = self.rank(at) == self.rank(out) && self.channels(out, axis) == Some(size);
            axis = match n.attrs.ints("perm") {
                Some(perm) if n.op.is("Transpose") => perm.iter().position(|p| *p == axis as i64)?,
                _ if n.op.is("Transpose") => rank.checked_sub(axis + 1)?,
                _ if same => axis,
                _ => {
                    let fits = |a: &usize| self.channels(out, *a) == Some(size);
                    let found: Vec<usize> = (0..self.rank(out)?).filter(fits).collect();
                    let [one] = found[..] else { return None };
                    one
                }
            };
            at = out;
        }
        (size >= 2).then_some(axis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::parse_model;

    fn of(text: &str) -> Vec<Kind> {
        at(17, text)
    }

    fn at(opset: i64, text: &str) -> Vec<Kind> {
        let mut m = parse_model(&format!("<ir_version: 8, opset_import: [\"\" : {opset}]>\n{text}")).unwrap();
        infer::annotate(&mut m);
        kinds(&m)
    }

    #[test]
    fn classifiers_are_told_from_embeddings_and_maps() {
        let found = of("g (float[n,2] x, float[n,2,6,6] p) =>
            (float[n,5] logits, float[n,5] probs, float[n,4] e, float[n,1,6,6] depth, float[n,9,12,12] seg, float[n,6,6,9] last, float[n,5] box)
            <float[2,5] w = {1,2,3,4,5,6,7,8,9,10}, float[5] b = {1,2,3,4,5}, float[2,4] k = {1,2,3,4,5,6,7,8}, float[1,2,1,1] d = {1,2},
             float[1] db = {1}, float[9,2,1,1] c = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9}, float[9] cb = {1,2,3,4,5,6,7,8,9},
             float[4] s = {1.0, 1.0, 2.0, 2.0}>
            {
                t = MatMul (x, w)
                logits = Add (t, b)
                t2 = MatMul (x, w)
                a2 = Add (b, t2)
                probs = Softmax <axis = -1> (a2)
                e = MatMul (x, k)
                depth = Conv (p, d, db)
                small = Conv (p, c, cb)
                seg = Resize (small, , s)
                other = Conv (p, c, cb)
                last = Transpose <perm = [0, 2, 3, 1]> (other)
                box = Gemm (x, w, b)
            }");
        let classes = |axis| Kind::Classes { axis };
        let want = [classes(1), classes(1), Kind::Values, Kind::Values, classes(1), classes(3), Kind::Values];
        assert_eq!(found, want);
    }

    #[test]
    fn attention_weights_and_features_are_numbers() {
        let found = of("g (float[2,4,4] s, float[2,4,8] v) => (float[2,4,4] w, float[2,4,8] y, float[2,4,1] h)
            <float[8,1] k = {1,2,3,4,5,6,7,8}, float[1] b = {1}>
            {
                w = Softmax <axis = -1> (s)
                y = MatMul (w, v)
                t = MatMul (v, k)
                h = Add (t, b)
            }");
        assert_eq!(found, [Kind::Values; 3]);
    }

    #[test]
    fn the_axis_of_softmax_is_that_of_the_opset() {
        let text = "g (float[n,5,6] s) => (float[n,5,6] p) { p = Softmax (s) }";
        assert_eq!([at(11, text), at(13, text)].concat(), [1, 2].map(|axis| Kind::Classes { axis }));
    }

    #[test]
    fn scores_are_told_through_what_hides_their_shape() {
        // What follows a Loop has no shape but that of the output; a temperature that is computed is a factor like any other; and
        // who picks the best class does not make the scores another thing.
        let found = of("g (float[n,2] x, bool b) =>
            (float[n,5] y, float t, float[n,5] z, int32[n] best, float[n,5] p, float[n,5] routed, float[n,2] picked)
            <float[5,2] book = {1,2,3,4,5,6,7,8,9,10}, float[2,5] w = {1,2,3,4,5,6,7,8,9,10}, float[5] c = {1,2,3,4,5}, float s = {2.0}>
            {
                l = If <then_branch: graph = \"00\", else_branch: graph = \"00\"> (b) @ (x)
                k = MatMul (l, w)
                a = Add (k, c)
                y = Identity (a)
                t = Exp (s)
                m = MatMul (x, w)
                d = Add (m, c)
                z = Mul (d, t)
                r = MatMul (x, w)
                p = Add (r, c)
                wide = ArgMax <axis = 1, keepdims = 0> (p)
                best = Cast <to = 6> (wide)
                u = MatMul (x, w)
                routed = Add (u, c)
                at = ArgMax <axis = 1, keepdims = 0> (routed)
                picked = Gather (book, at)
            }");
        // What chooses a way through the model names no class.
        let classes = Kind::Classes { axis: 1 };
        assert_eq!(found, [classes, Kind::Values, classes, Kind::Labels, classes, Kind::Values, Kind::Values]);
    }

    #[test]
    fn labels_and_detections() {
        let found = of("g (float[1,1,9] scores, float[1,9,4] boxes, float[1,9,6] l) =>
            (float[m,4] found, float[m] s, int64[1,9] top, float[1,9,6] raw)
            <int64 max = {3}, float iou = {0.5}, int64[1] last = {2}, int64[1] one = {1}, int64[1] zero = {0}, int64[1] end = {3}>
            {
                i = NonMaxSuppression (boxes, scores, max, iou)
                j = Slice (i, last, end, one)
                k = Squeeze (j, one)
                flat = Squeeze (boxes, zero)
                found = Gather <axis = 0> (flat, k)
                all = Squeeze (scores, zero)
                row = Squeeze (all, zero)
                s = Gather <axis = 0> (row, k)
                top = ArgMax <axis = 2, keepdims = 0> (l)
                raw = Identity (l)
            }");
        assert_eq!(found, [Kind::Detections, Kind::Detections, Kind::Labels, Kind::Values]);
    }
}
