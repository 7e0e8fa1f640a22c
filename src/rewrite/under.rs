//! New values of a patch named after one that is there.

use std::ops::{Deref, DerefMut};

use super::{Patch, Ref};
use crate::ir::{Attrs, DType, Tensor};

/// A patch whose new values are named after one: `name_part`, or `name/part`.
pub struct Under<'p> {
    patch: &'p mut Patch,
    prefix: String,
}

impl Patch {
    /// The patch for new values `name_part`.
    pub fn under(&mut self, name: &str) -> Under<'_> {
        Under { patch: self, prefix: format!("{name}_") }
    }

    /// The patch for new values `name/part`.
    pub fn inside(&mut self, name: &str) -> Under<'_> {
        Under { patch: self, prefix: format!("{name}/") }
    }
}

impl Under<'_> {
    /// The name of a part.
    pub fn name(&self, part: &str) -> String {
        format!("{}{part}", self.prefix)
    }

    /// A new node without attributes.
    pub fn op(&mut self, op: &str, part: &str, inputs: &[Ref]) -> Ref {
        self.op_with(op, part, inputs, Attrs::new())
    }

    pub fn op_with(&mut self, op: &str, part: &str, inputs: &[Ref], attrs: Attrs) -> Ref {
        let name = self.name(part);
        self.patch.node(op, &name, inputs, attrs)
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

    pub fn cast(&mut self, part: &str, x: Ref, to: DType) -> Ref {
        self.op_with("Cast", part, &[x], Attrs::new().with_int("to", to.0.into()))
    }

    /// A Transpose.
    pub fn turned(&mut self, part: &str, x: Ref, perm: &[i64]) -> Ref {
        self.op_with("Transpose", part, &[x], Attrs::new().with_ints("perm", perm))
    }

    /// A Reshape to these sizes, which are the constant `part_shape`.
    pub fn reshaped(&mut self, part: &str, x: Ref, to: &[i64]) -> Ref {
        let to = self.constant(&format!("{part}_shape"), Tensor::i64(&[to.len() as i64], to));
        self.op("Reshape", part, &[x, to])
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
