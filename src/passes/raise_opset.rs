use super::opset::{self, Conversion};
use super::rules::opset_wanted;
use super::{Context, Numerics, Outcome, Pass, PassError};
use crate::infer::{self, ShapeMap};
use crate::ir::{Model, ValueId, ops};
use crate::onnx;
use crate::rewrite::Patch;

/// # What it does
/// Converts a model to a newer operator set, so that `LayerNormalization` (17) and `Gelu` (20) can be written.
///
/// # When it fires
/// On models that are older than the target (17 to 23 are of use; 7 for models that are older than that). All or nothing: if one
/// node cannot be converted, an error names every such node and the model stays as it is; keeping the opset is then
/// the way (recipes have a flag for it, rules fall back on decomposed forms).
///
/// # Why it is correct
/// For each node every operator version between the two sets is looked at. A version either means the same for all
/// models that were valid before (a table compared with ONNX's schemas), or has a conversion here, or is refused.
/// Converted: attributes of Slice, Clip, Pad, TopK and Reshape become inputs, operands that are laid along an axis (until opset
/// 6) get trailing axes of size 1, Upsample and the first Resize become a Resize that says what they mean; axes of Squeeze,
/// Unsqueeze and Reduce* and parts of Split become inputs, Split counts its outputs, Softmax and its kin over several axes become
/// Flatten, Softmax, Reshape, Dropout and BatchNormalization drop their training
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RaiseOpset {
    /// To this operator set.
    To(i64),
    /// As far as the rules ask, or else as far as the recipe does. A model that cannot be raised keeps its operator set, with
    /// a note.
    AsWanted,
}

impl RaiseOpset {
    pub(crate) const ID: &str = "raise-opset";
}

impl Default for RaiseOpset {
    /// To 20, the first with both `LayerNormalization` and `Gelu`.
    fn default() -> RaiseOpset {
        RaiseOpset::To(20)
    }
}

impl Pass for RaiseOpset {
    fn id(&self) -> &'static str {
        RaiseOpset::ID
    }

    fn summary(&self) -> &'static str {
        "Converts the model to a newer operator set."
    }

    fn numerics(&self) -> Numerics {
        Numerics::BitExact
    }

    fn run(&self, cx: &mut Context) -> Result<Outcome, PassError> {
        match self {
            RaiseOpset::To(to) => raise_to(cx, *to),
            RaiseOpset::AsWanted => as_wanted(cx),
        }
    }
}

fn as_wanted(cx: &mut Context) -> Result<Outcome, PassError> {
    let mut out = Outcome::default();
    let Some(least) = cx.least_opset() else { return Ok(out) };
    let wanted = opset_wanted(&cx.facts(), cx.rules()).unwrap_or(0).max(least);
    for to in [wanted, least] {
        match raise_to(cx, to) {
            Ok(done) => return Ok(Outcome { notes: out.notes, ..done }),
            Err(PassError::Failed { message, .. }) => out.notes.push(message),
            Err(e) => return Err(e),
        }
    }
    Ok(out)
}

fn raise_to(cx: &mut Context, to: i64) -> Result<Outcome, PassError> {
    let from = cx.opset();
    let failed = |message: String| Err(PassError::Failed { pass: RaiseOpset::ID.to_owned(), message });
    if to > opset::NEWEST {
        return failed(format!("opset {} is not known; the newest known is {}", to, opset::NEWEST));
    }
    if from >= to {
        return Ok(Outcome::default());
    }
    let patch = raised(cx, &cx.shapes(), to);
    match patch {
        Ok(p) => cx.commit(p)?,
        Err(bad) => {
            let remedy = match to {
                ..=ALIKE => "export it with a newer opset",
                _ => "keep its opset instead (keep-opset), or export it with a newer one",
            };
            return failed(format!(
                "the model cannot be raised from opset {from} to {to}:\n  {}\n{remedy}",
                bad.join("\n  ")
            ));
        }
    };
    Ok(Outcome { changes: 1, notes: Vec::new() })
}

/// From this operator set on, operands are broadcast as they are now: older models are raised to it before anything else.
pub const ALIKE: i64 = 7;

/// What stands in the way of raising a model to an operator set, node by node.
pub fn obstacles(model: &Model, to: i64) -> Vec<String> {
    raised(model, &infer::shapes(model), to).err().unwrap_or_default()
}

/// What raises a model, or of each node that stands in the way why it does. Nested graphs are of their model's operator set
/// and are raised with it.
fn raised(model: &Model, map: &ShapeMap, to: i64) -> Result<Patch, Vec<String>> {
    let from = model.opset();
    let mut patch = Patch::new(RaiseOpset::ID);
    patch.set_opset(to, ops::file_version(to));
    let mut bad = Vec::new();
    let g = &model.graph;
    for id in g.schedule() {
        let job = Conversion { g, map, id, from, to };
        let node = g.node(id);
        let mut done = opset::convert(&job, &mut patch);
        if done.is_ok() && node.has_subgraph() {
            let known = |v: ValueId| map.ty(v);
            let raised = onnx::map_bodies(model, node, &known, &mut |body| {
                let patch = raised(body, &infer::shapes(body), to).map_err(|bad| bad.join("; "))?;
                patch.commit(body).map(drop).map_err(|e| e.to_string())
            });
            done = raised.map(|new| new.into_iter().for_each(|(name, value)| patch.set_attr(id, &name, Some(value))));
        }
        if let Err(why) = done {
            bad.push(format!("{}: {why}", opset::describe(g, id)));
        }
    }
    if bad.is_empty() { Ok(patch) } else { Err(bad) }
}
