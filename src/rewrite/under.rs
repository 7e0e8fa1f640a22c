//! New values of a patch named after one that is there.

use std::ops::{Deref, DerefMut};

use super::{Patch, Ref};
use crate::ir::{Attrs, DType, Node, Tensor, ops};

/// A patch whose new values are named after one: `name_part`, or `name/part`. The part `""` is `name` itself.
pub struct Under<'p> {
    patch: &'p mut Patch,
    name: String,
    between: char,
}

impl Patch {
    /// The patch for new values `name_part`.
    pub fn under(&mut self, name: &str) -> Under<'_> {
        Under { patch: self, name: name.to_owned(), between: '_' }
    }

    /// The patch for new values `name/part`.
    pub fn inside(&mut self, name: &str) -> Under<'_> {
        Under { patch: self, name: name.to_owned(), between: '/' }
    }

    /// A node like this one, which reads `changed` at their slots and makes one value a hint.
    pub fn like(&mut self, n: &Node, changed: &[(usize, Ref)], hints: &[&str]) -> Vec<Ref> {
        let mut inputs: Vec<Option<Ref>> = n.inputs.iter().map(|v| v.map(Ref::from)).collect();
        for (slot, x) in changed {
            inputs.resize(inputs.len().max(slot + 1), None);
            inputs[*slot] = Some(*x);
        }
        self.node_with(n.op.clone(), &inputs, hints, n.attrs.clone())
    }
}

impl Under<'_> {
    /// The name of a part.
    pub fn name(&self, part: &str) -> String {
        match part {
            "" => self.name.clone(),
            part => format!("{}{}{part}", self.name, self.between),
        }
    }

    /// The patch for new values named after a part.
    pub fn part(&mut self, part: &str) -> Under<'_> {
        Under { name: self.name(part), patch: self.patch, between: '_' }
    }

    /// A new node without attributes.
    pub fn op(&mut self, op: &str, part: &str, inputs: &[Ref]) -> Ref {
        self.op_with(op, part, inputs, Attrs::new())
    }

    /// A node of one output with attributes; the output is named after `part`.
    pub fn op_with(&mut self, op: &str, part: &str, inputs: &[Ref], attrs: Attrs) -> Ref {
        let name = self.name(part);
        self.patch.node(op, &name, inputs, attrs)
    }

    /// A new node like `n`, which reads `changed` at their slots.
    pub fn like(&mut self, n: &Node, part: &str, changed: &[(usize, Ref)]) -> Ref {
        let name = self.name(part);
        self.patch.like(n, changed, &[&name])[0]
    }

    /// A new initializer.
    pub fn constant(&mut self, part: &str, t: Tensor) -> Ref {
        let name = self.name(part);
        self.patch.constant(&name, t)
    }

    /// A new initializer of one float32 and no axes.
    pub fn scalar(&mut self, part: &str, x: f32) -> Ref {
        self.constant(part, Tensor::scalar_f32(x))
    }

    /// A new initializer of one int64 and no axes.
    pub fn int(&mut self, part: &str, x: i64) -> Ref {
        self.constant(part, Tensor::i64(&[], &[x]))
    }

    /// A new list of int64.
    pub fn ints(&mut self, part: &str, list: &[i64]) -> Ref {
        self.constant(part, Tensor::i64(&[list.len() as i64], list))
    }

    /// A new vector of float32.
    pub fn floats(&mut self, part: &str, list: &[f32]) -> Ref {
        self.constant(part, Tensor::f32(&[list.len() as i64], list))
    }

    /// A Cast to another element type.
    pub fn cast(&mut self, part: &str, x: Ref, to: DType) -> Ref {
        self.op_with("Cast", part, &[x], Attrs::new().with_int("to", to.0.into()))
    }

    /// A Transpose.
    pub fn turned(&mut self, part: &str, x: Ref, perm: &[i64]) -> Ref {
        self.op_with("Transpose", part, &[x], Attrs::new().with_ints("perm", perm))
    }

    /// A Reshape to these sizes, which are the constant `part_shape`.
    pub fn reshaped(&mut self, part: &str, x: Ref, to: &[i64]) -> Ref {
        let to = self.part(part).ints("shape", to);
        self.op("Reshape", part, &[x, to])
    }

    /// An operator over axes, which were an attribute once and are the constant `part_axes` in newer operator sets.
    pub fn over(&mut self, op: &str, part: &str, x: Ref, axes: &[i64], attrs: Attrs, opset: i64) -> Ref {
        let constant = self.part(part).name("axes");
        self.over_named(op, part, x, (&constant, axes), attrs, opset)
    }

    fn over_named(&mut self, op: &str, part: &str, x: Ref, axes: (&str, &[i64]), attrs: Attrs, opset: i64) -> Ref {
        let (constant, axes) = axes;
        if !ops::schema(op, opset).is_some_and(|s| s.inputs().allows(2)) {
            return self.op_with(op, part, &[x], attrs.with_ints("axes", axes));
        }
        let axes = self.patch.constant(constant, Tensor::i64(&[axes.len() as i64], axes));
        self.op_with(op, part, &[x, axes], attrs)
    }

    /// A reduction over the last axis, which stays with size 1.
    pub fn reduced(&mut self, op: &str, part: &str, x: Ref, opset: i64) -> Ref {
        self.over(op, part, x, &[-1], Attrs::new().with_int("keepdims", 1), opset)
    }

    /// As [`Under::reduced`], with the constant that holds the axis as the part `axis`: several may have the same.
    pub fn reduced_by(&mut self, op: &str, part: &str, x: Ref, axis: &str, opset: i64) -> Ref {
        let constant = self.name(axis);
        self.over_named(op, part, x, (&constant, &[-1]), Attrs::new().with_int("keepdims", 1), opset)
    }
}

impl Deref for Under<'_> {
    type Target = Patch;

    fn deref(&self) -> &Patch {
        self.patch
    }
}

impl DerefMut for Under<'_> {
    fn deref_mut(&mut self) -> &mut Patch {
        self.patch
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::{Elide, parse_model, print_model};

    /// What is written for two maxima and a Reshape, named after `z`, which they replace.
    fn written(opset: &str, e: impl Fn(&mut Patch) -> Ref) -> String {
        let text =
            format!("<ir_version: 8, opset_import: [\"\" : {opset}]> g (float[2,3] x) => (z) {{ z = Relu (x) }}");
        let mut m = parse_model(&text).expect("a model");
        let z = m.graph.find("z").expect("a value");
        let mut p = Patch::new("test");
        let new = e(&mut p);
        p.replace(z, new);
        p.commit(&mut m).expect("a patch that fits");
        print_model(&m, Elide::Full)
    }

    #[test]
    fn a_part_of_a_part_is_named_after_both() {
        let chain = |p: &mut Patch| {
            let mut e = p.inside("z");
            let x = e.scalar("x", 1.0);
            let y = e.part("near").op("Neg", "far", &[x]);
            let y = e.under("w").op("Abs", "", &[y]);
            e.part("").reshaped("flat", y, &[-1])
        };
        let text = written("17", chain);
        for line in [r#""z/near_far" = Neg ("z/x")"#, r#"w = Abs ("z/near_far")"#, "Reshape (w, z_flat_shape)"] {
            assert!(text.contains(line), "no `{line}` in\n{text}");
        }
    }

    #[test]
    fn axes_are_an_input_where_the_operator_set_wants_them_so() {
        let both = |opset: i64| {
            written(&opset.to_string(), |p| {
                let mut e = p.under("z");
                let x = e.constant("x", Tensor::f32(&[1, 2], &[1.0, 2.0]));
                let sum = e.over("ReduceSum", "sum", x, &[0], Attrs::new(), opset);
                e.reduced("ReduceMax", "max", sum, opset)
            })
        };
        for (opset, inputs) in [(11, [false, false]), (13, [true, false]), (18, [true, true])] {
            let text = both(opset);
            let named = ["z_sum_axes)", "z_max_axes)"].map(|axes| text.contains(axes));
            assert_eq!(named, inputs, "{text}");
        }
    }
}
