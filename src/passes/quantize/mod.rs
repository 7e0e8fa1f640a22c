//! The passes that carry out a [`QuantPlan`](crate::plan::QuantPlan). They contain no heuristics: every number they use
//! is in the plan, in the weights, or follows from both.
//!
//! Order: [`equalise`] and [`fold`] (function-preserving), [`weights`], [`attention`], [`activations`]; then [`lower`] where the plan
//! asks for integer form.

pub mod activations;
pub mod attention;
pub mod equalise;
pub mod fold;
mod hiding;
pub mod integer_norm;
pub mod lower;
#[cfg(all(test, feature = "tract"))]
mod same_tests;
pub mod weights;

use crate::ir::Attrs;
use crate::plan::{Activation, Readers};
use crate::quant::QParams;
use crate::rewrite::{Patch, Ref};

/// What the names of a planned value's codes begin with.
pub(crate) fn codes_hint(a: &Activation) -> String {
    match a.readers {
        Readers::Contracting => format!("{}_contracted", a.value),
        _ => a.value.clone(),
    }
}

/// What the codes of a planned value may be called in the quantized model, likeliest first: as they were made, as rows of a
/// matrix, or as a layer makes them.
pub fn codes_names(a: &Activation) -> [String; 3] {
    let hint = codes_hint(a);
    ["_q", "_q_rows", "_rounded"].map(|end| format!("{hint}{end}"))
}

/// Adds a QuantizeLinear; the result holds codes.
pub(crate) fn quantize_linear(p: &mut Patch, x: Ref, q: &QParams, hint: &str) -> Ref {
    let s = p.constant(&format!("{hint}_scale"), q.scale_tensor());
    let z = p.constant(&format!("{hint}_zero_point"), q.zero_tensor());
    p.node("QuantizeLinear", &format!("{hint}_q"), &[x, s, z], axis_attr(q))
}

/// Adds a DequantizeLinear.
pub(crate) fn dequantize_linear(p: &mut Patch, codes: Ref, q: &QParams, hint: &str) -> Ref {
    let s = p.constant(&format!("{hint}_scale"), q.scale_tensor());
    let z = p.constant(&format!("{hint}_zero_point"), q.zero_tensor());
    p.node("DequantizeLinear", &format!("{hint}_dq"), &[codes, s, z], axis_attr(q))
}

/// Quantize and dequantize with shared constants.
pub(crate) fn round_trip(p: &mut Patch, x: Ref, q: &QParams, hint: &str) -> Ref {
    let s = p.constant(&format!("{hint}_scale"), q.scale_tensor());
    let z = p.constant(&format!("{hint}_zero_point"), q.zero_tensor());
    let c = p.node("QuantizeLinear", &format!("{hint}_q"), &[x, s, z], axis_attr(q));
    p.node("DequantizeLinear", &format!("{hint}_dq"), &[c, s, z], axis_attr(q))
}

pub(crate) fn axis_attr(q: &QParams) -> Attrs {
    match q.axis() {
        Some(a) => Attrs::new().with_int("axis", a),
        None => Attrs::new(),
    }
}
