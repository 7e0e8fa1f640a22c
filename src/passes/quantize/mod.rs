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
use crate::rewrite::{Ref, Under};

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

/// Codes of a value, and the value from its codes. Their scale and zero point are `name_scale` and `name_zero_point`.
impl Under<'_> {
    /// A QuantizeLinear, `name_q`.
    pub(crate) fn quantized(&mut self, x: Ref, q: &QParams) -> Ref {
        let (s, z) = self.params(q);
        self.op_with("QuantizeLinear", "q", &[x, s, z], axis_attr(q))
    }

    /// A DequantizeLinear, `name_dq`.
    pub(crate) fn dequantized(&mut self, codes: Ref, q: &QParams) -> Ref {
        let (s, z) = self.params(q);
        self.op_with("DequantizeLinear", "dq", &[codes, s, z], axis_attr(q))
    }

    /// Both, with the same constants.
    pub(crate) fn round_trip(&mut self, x: Ref, q: &QParams) -> Ref {
        let (s, z) = self.params(q);
        let c = self.op_with("QuantizeLinear", "q", &[x, s, z], axis_attr(q));
        self.op_with("DequantizeLinear", "dq", &[c, s, z], axis_attr(q))
    }

    fn params(&mut self, q: &QParams) -> (Ref, Ref) {
        (self.constant("scale", q.scale_tensor()), self.constant("zero_point", q.zero_tensor()))
    }
}

fn axis_attr(q: &QParams) -> Attrs {
    match q.axis() {
        Some(a) => Attrs::new().with_int("axis", a),
        None => Attrs::new(),
    }
}
