//! Types of attributes, by their names.

use super::view::View;
use crate::ir::AttrValue;

/// The type an attribute of this name has, in every operator of the standard that has one.
#[derive(Clone, Copy, PartialEq)]
enum AttrType {
    Int,
    Ints,
    Float,
    Text,
    Tensor,
}

impl AttrType {
    fn of(op: &str, name: &str) -> Option<AttrType> {
        Some(match name {
            // A list of outputs' sizes once, and of axes in Scan and of a whole shape in Reshape.
            "perm" | "axes" | "pads" | "strides" | "dilations" | "kernel_shape" | "output_shape" | "output_padding"
            | "split" | "starts" | "ends" | "shape" => AttrType::Ints,
            "axis"
            | "keepdims"
            | "group"
            | "transA"
            | "transB"
            | "to"
            | "blocksize"
            | "noop_with_empty_axes"
            | "allowzero"
            | "ceil_mode"
            | "count_include_pad"
            | "storage_order"
            | "num_heads"
            | "q_num_heads"
            | "kv_num_heads"
            | "is_causal"
            | "batch_dims"
            | "num_outputs"
            | "largest"
            | "sorted"
            | "exclusive"
            | "reverse"
            | "upper"
            | "select_last_index"
            | "stash_type"
            | "num_groups"
            | "fmod"
            | "training_mode" => AttrType::Int,
            "epsilon" | "alpha" | "beta" | "momentum" | "gamma" | "bias" | "lambd" => AttrType::Float,
            "auto_pad"
            | "equation"
            | "approximate"
            | "reduction"
            | "nearest_mode"
            | "coordinate_transformation_mode" => AttrType::Text,
            "mode" if op != "ImageDecoder" => AttrType::Text,
            "value" if matches!(op, "Constant" | "ConstantOfShape") => AttrType::Tensor,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            AttrType::Int => "an integer",
            AttrType::Ints => "a list of integers",
            AttrType::Float => "a float",
            AttrType::Text => "a text",
            AttrType::Tensor => "a tensor",
        }
    }

    fn is(self, v: &AttrValue) -> bool {
        match self {
            AttrType::Int => matches!(v, AttrValue::Int(_)),
            AttrType::Ints => matches!(v, AttrValue::Ints(_)),
            AttrType::Float => matches!(v, AttrValue::Float(_)),
            AttrType::Text => matches!(v, AttrValue::Str(_)),
            AttrType::Tensor => matches!(v, AttrValue::Tensor(_)),
        }
    }
}

/// Refuses an attribute of a type that the standard does not give it.
pub(super) fn types(view: &View) -> Result<(), String> {
    for a in &view.node.attrs.0 {
        if let Some(kind) = AttrType::of(view.op(), &a.name).filter(|k| !k.is(&a.value)) {
            // An empty list has no type of its own in some encodings.
            if kind == AttrType::Ints && matches!(&a.value, AttrValue::Floats(v) if v.is_empty()) {
                continue;
            }
            if matches!(a.value, AttrValue::Other(_)) {
                continue;
            }
            return Err(format!("attribute `{}` is not {}", a.name, kind.name()));
        }
    }
    Ok(())
}
