//! All passes by name.

use super::Pass;
use super::batch_norm_layers::BatchNormLayers;
use super::batch_norm_rows::BatchNormRows;
use super::bias_first::BiasFirst;
use super::clean_up::CleanUp;
use super::constant_branches::ConstantBranches;
use super::constant_masks::ConstantMasks;
use super::constant_nodes::ConstantNodes;
use super::counts_in_int32::CountsInInt32;
use super::crop_pad::CropPad;
use super::cse::Cse;
use super::dead::Dead;
use super::decompose_attention::DecomposeAttention;
use super::direct_shapes::DirectShapes;
use super::drop_full_scatter::DropFullScatter;
use super::drop_renormalization::DropRenormalization;
use super::drop_sequences::DropSequences;
use super::einsum::EinsumAsProduct;
use super::einsum_pairs::EinsumPairs;
use super::fix_defaults::FixDefaults;
use super::flat_layers::FlatLayers;
use super::fold_close::FoldClose;
use super::fold_constants::FoldConstants;
use super::fuse_pad::FusePad;
use super::fuse_transpose::FuseTranspose;
use super::gain_into_layer::GainIntoLayer;
use super::heads_apart::HeadsApart;
use super::identity::Identity;
use super::implied_expand::ImpliedExpand;
use super::keys_by_queries::KeysByQueries;
use super::norm_channels_last::NormChannelsLast;
use super::order_score_ops::OrderScoreOps;
use super::patch_sums::PatchSums;
use super::pool_mean::PoolMean;
use super::quantize::activations::QuantizeActivations;
use super::quantize::attention::QuantizeAttention;
use super::quantize::equalise::Equalise;
use super::quantize::fold::FoldFactors;
use super::quantize::integer_norm::IntegerNorm;
use super::quantize::lower::codes_first::CodesFirst;
use super::quantize::lower::delay_reshape::DelayReshape;
use super::quantize::lower::expand_by_codes::ExpandByCodes;
use super::quantize::lower::keep_reduced::KeepReduced;
use super::quantize::lower::layers::LayersWhole;
use super::quantize::lower::merge_gemms::MergeGemms;
use super::quantize::lower::patches::PatchesAsRows;
use super::quantize::lower::per_channel::PerChannel;
use super::quantize::lower::product_scales::ProductScales;
use super::quantize::lower::products::IntegerProducts;
use super::quantize::lower::sums::IntegerSums;
use super::quantize::lower::wide_codes::WideCodes;
use super::quantize::weights::QuantizeWeights;
use super::raise_opset::RaiseOpset;
use super::reshape_static::ReshapeStatic;
use super::rules::ApplyRules;
use super::scale_after_product::ScaleAfterProduct;
use super::select::SelectByArithmetic;
use super::softmax_last::SoftmaxLast;
use super::softmax_repeated::SoftmaxRepeated;
use super::split_projection::SplitProjection;
use super::squeeze_vectors::SqueezeVectors;
use super::stack_sums::StackSums;
use super::unfuse::Unfuse;
use super::widen_floats::WidenFloats;

/// Every pass, in the order help lists them.
pub static ALL: [&dyn Pass; 63] = [
    &CleanUp,
    &ConstantNodes,
    &ConstantBranches,
    &Dead,
    &Identity,
    &FoldConstants,
    &FoldClose,
    &ReshapeStatic,
    &DirectShapes,
    &Cse,
    &ConstantMasks,
    &FuseTranspose,
    &CropPad,
    &FusePad,
    &CountsInInt32,
    &BiasFirst,
    &ImpliedExpand,
    &Unfuse,
    &FixDefaults,
    &WidenFloats,
    &DecomposeAttention,
    &EinsumPairs,
    &EinsumAsProduct,
    &PatchSums,
    &DropSequences,
    &StackSums,
    &BatchNormLayers,
    &BatchNormRows,
    &PoolMean,
    &FlatLayers,
    &SqueezeVectors,
    &SelectByArithmetic,
    &KeysByQueries,
    &HeadsApart,
    &DropFullScatter,
    &SoftmaxLast,
    &SoftmaxRepeated,
    &DropRenormalization,
    &OrderScoreOps,
    &NormChannelsLast,
    &RaiseOpset::To(20),
    &ApplyRules::of_context(),
    &ScaleAfterProduct,
    &SplitProjection,
    &GainIntoLayer,
    &Equalise,
    &FoldFactors,
    &QuantizeWeights,
    &QuantizeAttention,
    &QuantizeActivations,
    &PatchesAsRows,
    &KeepReduced,
    &LayersWhole,
    &MergeGemms,
    &DelayReshape,
    &ExpandByCodes,
    &CodesFirst,
    &IntegerSums::FromCodes,
    &ProductScales,
    &IntegerProducts,
    &IntegerNorm,
    &PerChannel::Everywhere,
    &WideCodes::Always,
];

/// Passes with another parameter than in [`ALL`], by the names that say so.
static OTHERWISE: [(&str, &dyn Pass); 3] = [
    ("integer-sums=shared", &IntegerSums::Shared),
    ("per-channel=where-slow", &PerChannel::WhereSlow),
    ("wide-codes=where-missing", &WideCodes::WhereMissing),
];

/// The pass of this name. A pass with a parameter takes it after `=`: `raise-opset=17`.
pub fn pass(id: &str) -> Option<Box<dyn Pass>> {
    if let Some((RaiseOpset::ID, to)) = id.split_once('=') {
        return Some(Box::new(RaiseOpset::To(to.parse().ok()?)));
    }
    let mut named = ALL.into_iter().map(|p| (p.id(), p)).chain(OTHERWISE);
    named.find(|(name, _)| *name == id).map(|(_, p)| Box::new(p) as Box<dyn Pass>)
}

/// All names that [`pass`] knows, but for numbers after `=`.
pub fn names() -> impl Iterator<Item = &'static str> {
    ALL.into_iter().map(|p| p.id()).chain(OTHERWISE.map(|(name, _)| name))
}

/// Names that passes had, and those they have now.
const RENAMED: [(&str, &str); 9] = [
    ("counts", "counts-in-int32"),
    ("fold", "fold-factors"),
    ("plain-scores", "order-score-ops"),
    ("rows", "delay-reshape"),
    ("sequences", "drop-sequences"),
    ("siblings", "merge-gemms"),
    ("unit-sums", "drop-renormalization"),
    ("vectors", "squeeze-vectors"),
    ("whole-update", "drop-full-scatter"),
];

/// What to tell a user who names a pass by the name it had.
pub fn renamed(id: &str) -> Option<String> {
    let (_, now) = RENAMED.iter().find(|(old, _)| *old == id)?;
    Some(format!("pass `{id}` is now called `{now}`"))
}

#[cfg(test)]
mod tests {
    use super::super::pipelines;
    use super::*;

    #[test]
    fn every_pass_says_what_it_does_when_and_why() {
        let in_pipelines = pipelines::ALL.iter().flat_map(|p| p.passes.iter().copied());
        for pass in ALL.into_iter().chain(in_pipelines) {
            for heading in ["What it does", "When it fires", "Why it is correct", "Numerics", "Source"] {
                assert!(pass.help().contains(heading), "{} does not say: {heading}", pass.id());
            }
            assert!(ALL.iter().any(|p| p.id() == pass.id()), "{} is not registered", pass.id());
        }
        // Each is one sentence of the form "Removes operators that change nothing."
        let verb = |s: &str| {
            s.starts_with(char::is_uppercase) && s.split([' ', ',', ':']).next().is_some_and(|w| w.ends_with('s'))
        };
        let of_passes = ALL.iter().map(|p| p.summary());
        for s in of_passes.chain(pipelines::ALL.iter().map(|p| p.summary)) {
            assert!(
                verb(s) && s.ends_with('.') && s.matches(". ").count() == 0,
                "not one sentence that begins with a verb: {s}"
            );
        }
    }

    #[test]
    fn an_old_name_leads_to_the_new_one() {
        for (old, new) in RENAMED {
            assert!(pass(old).is_none() && pass(new).is_some_and(|p| p.id() == new), "{old}");
            assert_eq!(renamed(old), Some(format!("pass `{old}` is now called `{new}`")));
        }
        assert_eq!(renamed("cse"), None);
    }

    #[test]
    fn names_are_unique() {
        let mut ids: Vec<&str> = ALL.iter().map(|p| p.id()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), ALL.len());
    }
}
