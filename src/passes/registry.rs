//! All passes by name.

use super::Pass;
use super::batch_norm_layers::BatchNormLayers;
use super::batch_norm_rows::BatchNormRows;
use super::bias_first::BiasFirst;
use super::clean_up::CleanUp;
use super::constant_branches::ConstantBranches;
use super::constant_masks::ConstantMasks;
use super::constant_nodes::ConstantNodes;
use super::counts::CountsInInt32;
use super::crop_pad::CropPad;
use super::cse::Cse;
use super::dead::Dead;
use super::decompose_attention::DecomposeAttention;
use super::direct_shapes::DirectShapes;
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
use super::patch_sums::PatchSums;
use super::plain_scores::PlainScores;
use super::pool_mean::PoolMean;
use super::quantize::activations::QuantizeActivations;
use super::quantize::attention::QuantizeAttention;
use super::quantize::equalise::Equalise;
use super::quantize::fold::FoldFactors;
use super::quantize::integer_norm::IntegerNorm;
use super::quantize::lower::codes_first::CodesFirst;
use super::quantize::lower::layers::LayersWhole;
use super::quantize::lower::patches::PatchesAsRows;
use super::quantize::lower::per_channel::PerChannel;
use super::quantize::lower::product_scales::ProductScales;
use super::quantize::lower::products::IntegerProducts;
use super::quantize::lower::rows::MatrixRows;
use super::quantize::lower::siblings::Siblings;
use super::quantize::lower::sums::IntegerSums;
use super::quantize::lower::wide_codes::WideCodes;
use super::quantize::weights::QuantizeWeights;
use super::raise_opset::RaiseOpset;
use super::reshape_static::ReshapeStatic;
use super::rules::ApplyRules;
use super::scale_after_product::ScaleAfterProduct;
use super::select::SelectByArithmetic;
use super::sequences::Sequences;
use super::softmax_last::SoftmaxLast;
use super::softmax_repeated::SoftmaxRepeated;
use super::split_projection::SplitProjection;
use super::stack_sums::StackSums;
use super::unfuse::Unfuse;
use super::unit_sums::UnitSums;
use super::vectors::Vectors;
use super::whole_update::WholeUpdate;
use super::widen_floats::WidenFloats;

/// Every pass, in the order help lists them.
pub static ALL: [&dyn Pass; 61] = [
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
    &Sequences,
    &StackSums,
    &BatchNormLayers,
    &BatchNormRows,
    &PoolMean,
    &FlatLayers,
    &Vectors,
    &SelectByArithmetic,
    &KeysByQueries,
    &HeadsApart,
    &WholeUpdate,
    &SoftmaxLast,
    &SoftmaxRepeated,
    &UnitSums,
    &PlainScores,
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
    &LayersWhole,
    &Siblings,
    &MatrixRows,
    &CodesFirst,
    &IntegerSums::FromCodes,
    &ProductScales,
    &IntegerProducts,
    &IntegerNorm,
    &PerChannel::Everywhere,
    &WideCodes::Always,
];

/// The pass of this name. A pass with a parameter takes it after `=`: `raise-opset=17`.
pub fn pass(id: &str) -> Option<Box<dyn Pass>> {
    if let Some((RaiseOpset::ID, to)) = id.split_once('=') {
        return Some(Box::new(RaiseOpset::To(to.parse().ok()?)));
    }
    ALL.into_iter().find(|p| p.id() == id).map(|p| Box::new(p) as Box<dyn Pass>)
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
    }

    #[test]
    fn names_are_unique() {
        let mut ids: Vec<&str> = ALL.iter().map(|p| p.id()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), ALL.len());
    }
}
