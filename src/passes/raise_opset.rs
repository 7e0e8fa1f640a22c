use super::opset::{self, Job};
use super::{Numerics, Outcome, Pass, PassError};
use crate::infer;
use crate::ir::{Model, ValueId, ops};
use crate::onnx;
use crate::rewrite::{Patch, PatchError};

/// # What it does
/// Converts a model to a newer operator set, so that `LayerNormalization` (17) and `Gelu` (20) can be written.
///
/// # When it fires
/// On models of operator set 11 and later that are older than the target (17 to 23 are of use). All or nothing: if one
/// node can not be converted, an error names every such node and the model stays as it is; keeping the opset is then
/// the way (recipes have a flag for it, rules fall back on decomposed forms).
///
/// # Why it is correct
/// For each node every operator version between the two sets is looked at. A version either means the same for all
/// models that were valid before (a table compared with ONNX's schemas), or has a conversion here, or is refused.
/// Converted: axes of Squeeze, Unsqueeze and Reduce* and parts of Split become inputs, Split counts its outputs, Softmax
/// and its kin over several axes become Flatten, Softmax, Reshape, Dropout and BatchNormalization drop their training
/// form, RoiAlign and GridSample spell their modes as before, GroupNormalization gets a scale per channel. Bodies of If,
/// Loop and Scan are of the model's operator set and go the same way, node by node. The file's IR version rises to what
/// the operator set needs.
///
/// # Numerics
/// Bit-exact.
///
/// # Before / after
/// ```text
/// <opset_import: ["" : 11]>                <opset_import: ["" : 17]>
/// y = Squeeze <axes = [0]> (x)             y = Squeeze (x, axes)
/// ```
///
/// # Source
/// ONNX operator schemas and their change log.
pub struct RaiseOpset {
    /// The operator set to convert to.
    pub to: i64,
}

impl RaiseOpset {
    pub(crate) const ID: &str = "raise-opset";
}

impl Default for RaiseOpset {
    /// To 20, the first with both `LayerNormalization` and `Gelu`.
    fn default() -> RaiseOpset {
        RaiseOpset { to: 20 }
    }
}

impl Pass for RaiseOpset {
    fn id(&self) -> &'static str {
        RaiseOpset::ID
    }

    fn summary(&self) -> &'static str {
        "the model is converted to a newer operator set"
    }

    fn numerics(&self) -> Numerics {
        Numerics::BitExact
    }

    fn run(&self, model: &mut Model) -> Result<Outcome, PassError> {
        let from = model.opset();
        let failed = |message: String| Err(PassError::Failed { pass: RaiseOpset::ID.to_owned(), message });
        if self.to > opset::NEWEST {
            return failed(format!("opset {} is not known; the newest known is {}", self.to, opset::NEWEST));
        }
        if from >= self.to {
            return Ok(Outcome::default());
        }
        if from < 11 {
            return failed(format!("the model is of opset {from}; conversions are known from 11 on. Export it anew"));
        }
        let bad = raise(model, self.to)?;
        if !bad.is_empty() {
            return failed(format!(
                "the model can not be raised from opset {from} to {}:\n  {}\nkeep its opset instead (keep-opset)",
                self.to,
                bad.join("\n  ")
            ));
        }
        Ok(Outcome { changes: 1, notes: Vec::new() })
    }
}

/// Raises a model, or says of each node that stands in the way why it does; the model is then as it was. Nested graphs are
/// of their model's operator set and are raised with it.
fn raise(model: &mut Model, to: i64) -> Result<Vec<String>, PatchError> {
    let from = model.opset();
    let map = infer::shapes(model);
    let mut patch = Patch::new(RaiseOpset::ID);
    patch.set_opset(to);
    let mut bad = Vec::new();
    let g = &model.graph;
    for id in g.schedule() {
        let job = Job { g, map: &map, id, from, to };
        let node = g.node(id);
        let mut done = opset::convert(&job, &mut patch);
        if done.is_ok() && node.has_subgraph() {
            let known = |v: ValueId| map.ty(v);
            let raised = onnx::map_bodies(model, node, &known, &mut |body| match raise(body, to) {
                Ok(bad) if bad.is_empty() => Ok(()),
                Ok(bad) => Err(bad.join("; ")),
                Err(e) => Err(e.to_string()),
            });
            done = raised.map(|new| new.into_iter().for_each(|(name, value)| patch.set_attr(id, &name, Some(value))));
        }
        if let Err(why) = done {
            bad.push(format!("{}: {why}", opset::describe(g, id)));
        }
    }
    if bad.is_empty() {
        patch.commit(model)?;
        model.ir_version = model.ir_version.max(ops::file_version(to));
    }
    Ok(bad)
}
