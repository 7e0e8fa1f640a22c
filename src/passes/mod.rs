//! Passes: one transformation of a model per file.
//!
//! A pass reads the model, builds [`Patch`](crate::rewrite::Patch)es and commits them. It declares its [`Numerics`],
//! and `--verify-each` holds it to that by running the model before and after.

pub mod batch_norm_layers;
pub mod batch_norm_rows;
pub mod bias_first;
pub mod clean_up;
mod common;
pub mod constant_branches;
pub mod constant_masks;
pub mod constant_nodes;
mod context;
pub mod counts_in_int32;
pub mod crop_pad;
pub mod cse;
pub mod dead;
pub mod decompose_attention;
pub mod direct_shapes;
pub mod drop_full_scatter;
pub mod drop_renormalization;
pub mod drop_sequences;
pub mod einsum;
pub mod einsum_pairs;
pub mod fix_defaults;
pub mod flat_layers;
pub mod fold_close;
pub mod fold_constants;
pub mod fuse_pad;
pub mod fuse_transpose;
pub mod gain_into_layer;
pub mod heads_apart;
pub mod identity;
pub mod implied_expand;
pub mod keys_by_queries;
mod layers;
pub mod norm_channels_last;
mod opset;
pub mod order_score_ops;
pub mod patch_sums;
pub mod pipelines;
pub mod pool_mean;
pub mod quantize;
pub mod raise_opset;
pub mod registry;
mod requirement;
pub mod reshape_static;
pub mod rules;
pub mod scale_after_product;
pub mod select;
pub mod softmax_last;
pub mod softmax_repeated;
pub mod split_projection;
pub mod squeeze_vectors;
pub mod stack_sums;
pub mod unfuse;
mod unfuse_attention;
pub mod widen_floats;

use crate::ir::Model;
use crate::rewrite::PatchError;

pub use context::Context;
pub use pipelines::Pipeline;
pub use requirement::{Requirement, Unmet, is_quantized};
pub use rules::{ApplyRules, opset_wanted};

include!(concat!(env!("OUT_DIR"), "/pass_help.rs"));

/// What a pass may do to the numbers a model computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Numerics {
    /// Every output keeps its bits.
    BitExact,
    /// Outputs stay within this relative distance: `max |a - b| <= rel * max |a|`.
    Close { rel: f32 },
    /// The pass gives up precision on purpose.
    Quantizes,
    /// The model computes in a wider type from here on: what it computed before is no measure.
    Widens,
}

/// What a pass did.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Rewrites committed; 0 means the model is unchanged.
    pub changes: usize,
    /// Things worth telling the user: what was left alone, and why.
    pub notes: Vec<String>,
}

/// Why a pass gave up. The model is as the last committed patch left it, which is a valid model.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    #[error(transparent)]
    Patch(#[from] PatchError),
    #[error("pass {pass}: {message}")]
    Failed { pass: String, message: String },
}

/// A transformation of a model. A pass holds its parameters and nothing else: what it works on, and with, is the
/// [`Context`]'s.
pub trait Pass: Sync {
    /// The name that commands and messages call it by.
    fn id(&self) -> &'static str;
    /// One line of help.
    fn summary(&self) -> &'static str;
    /// What the pass may do to the numbers that the model computes.
    fn numerics(&self) -> Numerics;
    /// What the pass does, when, and why that is right, as its source says it.
    fn help(&self) -> &'static str {
        HELP.iter().find(|(id, _)| *id == self.id()).map_or("", |(_, text)| text)
    }
    /// Rewrites the model until the pass finds nothing more to do.
    ///
    /// # Errors
    /// If a patch is refused, or something the pass needs is not there. The model is then as the last committed patch left
    /// it.
    fn run(&self, cx: &mut Context<'_>) -> Result<Outcome, PassError>;

    /// [`Pass::run`] on a model of which nothing is known and for which nothing was decided.
    ///
    /// # Errors
    /// As those of [`Pass::run`].
    fn run_on(&self, model: &mut Model) -> Result<Outcome, PassError> {
        let mut cx = Context::new(std::mem::take(model));
        let out = self.run(&mut cx);
        *model = cx.into_model();
        out
    }
}

impl<P: Pass + ?Sized> Pass for &P {
    fn id(&self) -> &'static str {
        (**self).id()
    }

    fn summary(&self) -> &'static str {
        (**self).summary()
    }

    fn numerics(&self) -> Numerics {
        (**self).numerics()
    }

    fn run(&self, cx: &mut Context<'_>) -> Result<Outcome, PassError> {
        (**self).run(cx)
    }
}
