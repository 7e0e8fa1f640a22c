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
use super::patch_sums::PatchSums;
use super::plain_scores::PlainScores;
use super::pool_mean::PoolMean;
use super::quantize::integer_norm::IntegerNorm;
use super::quantize::lower::codes_first::CodesFirst;
use super::quantize::lower::layers::LayersWhole;
use super::quantize::lower::patches::PatchesAsRows;
use super::quantize::lower::per_channel::PerChannel;
use super::quantize::lower::products::IntegerProducts;
use super::quantize::lower::rows::Rows;
use super::quantize::lower::siblings::Siblings;
use super::quantize::lower::sums::IntegerSums;
use super::quantize::lower::wide_codes::WideCodes;
use super::raise_opset::RaiseOpset;
use super::reshape_static::ReshapeStatic;
use super::rules::ApplyRules;
use super::select::SelectByArithmetic;
use super::sequences::Sequences;
use super::softmax_last::SoftmaxLast;
use super::softmax_repeated::SoftmaxRepeated;
use super::split_projection::SplitProjection;
use super::stack_sums::StackSums;
use super::unfuse::Unfuse;
use super::unit_gain::UnitGain;
use super::unit_sums::UnitSums;
use super::vectors::Vectors;
use super::whole_update::WholeUpdate;

/// Every pass, in the order help lists them.
pub fn all() -> Vec<Box<dyn Pass>> {
    vec![
        Box::new(CleanUp),
        Box::new(ConstantNodes),
        Box::new(ConstantBranches),
        Box::new(Dead),
        Box::new(Identity),
        Box::new(FoldConstants),
        Box::new(FoldClose),
        Box::new(ReshapeStatic),
        Box::new(DirectShapes),
        Box::new(Cse),
        Box::new(ConstantMasks),
        Box::new(FuseTranspose),
        Box::new(CropPad),
        Box::new(FusePad),
        Box::new(CountsInInt32),
        Box::new(BiasFirst),
        Box::new(ImpliedExpand),
        Box::new(Unfuse),
        Box::new(FixDefaults),
        Box::new(DecomposeAttention),
        Box::new(EinsumAsProduct),
        Box::new(PatchSums),
        Box::new(Sequences),
        Box::new(StackSums),
        Box::new(BatchNormLayers),
        Box::new(BatchNormRows),
        Box::new(PoolMean),
        Box::new(FlatLayers),
        Box::new(Vectors),
        Box::new(SelectByArithmetic),
        Box::new(KeysByQueries),
        Box::new(HeadsApart),
        Box::new(WholeUpdate),
        Box::new(SoftmaxLast),
        Box::new(SoftmaxRepeated),
        Box::new(UnitSums),
        Box::new(UnitGain),
        Box::new(PlainScores),
        Box::new(RaiseOpset::default()),
        Box::new(ApplyRules::default()),
        Box::new(SplitProjection),
        Box::new(GainIntoLayer),
        Box::new(PatchesAsRows),
        Box::new(LayersWhole::default()),
        Box::new(Siblings),
        Box::new(Rows),
        Box::new(CodesFirst),
        Box::new(IntegerSums),
        Box::new(IntegerProducts),
        Box::new(IntegerNorm),
        Box::new(PerChannel { only_where_slow: false }),
        Box::new(WideCodes),
    ]
}

/// The pass of this name. A pass with a parameter takes it behind `=`: `raise-opset=17`.
pub fn pass(id: &str) -> Option<Box<dyn Pass>> {
    if let Some((RaiseOpset::ID, to)) = id.split_once('=') {
        return Some(Box::new(RaiseOpset { to: to.parse().ok()? }));
    }
    all().into_iter().find(|p| p.id() == id)
}
