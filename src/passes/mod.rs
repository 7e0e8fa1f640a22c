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
pub mod counts;
pub mod crop_pad;
pub mod cse;
pub mod dead;
pub mod decompose_attention;
pub mod direct_shapes;
pub mod einsum;
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
pub mod patch_sums;
pub mod plain_scores;
pub mod pool_mean;
pub mod quantize;
pub mod raise_opset;
pub mod registry;
pub mod reshape_static;
pub mod rules;
pub mod scale_after_product;
pub mod select;
pub mod sequences;
pub mod softmax_last;
pub mod softmax_repeated;
pub mod split_projection;
pub mod stack_sums;
pub mod unfuse;
mod unfuse_attention;
pub mod unit_gain;
pub mod unit_sums;
pub mod vectors;
pub mod whole_update;
pub mod widen_floats;

use crate::ir::Model;
use crate::rewrite::PatchError;

pub use rules::{ApplyRules, opset_wanted};

/// What a pass may do to the numbers a model computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Numerics {
    /// Every output keeps its bits.
    BitExact,
    /// Outputs stay within this relative distance: `max |a - b| <= rel * max |a|`.
    Close { rel: f32 },
    /// The pass gives up precision on purpose.
    Quantizes,
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

/// A transformation of a model.
pub trait Pass {
    /// The name recipes call it by.
    fn id(&self) -> &'static str;
    /// One line of help.
    fn summary(&self) -> &'static str;
    fn numerics(&self) -> Numerics;
    /// Rewrites the model until the pass finds nothing more to do.
    fn run(&self, model: &mut Model) -> Result<Outcome, PassError>;
}
