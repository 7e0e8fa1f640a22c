//! Pipelines: which passes run, in which order, on the way from a file to a file. This is the one place that says so; every
//! command takes its passes from here.

use super::Pass;
use super::batch_norm_layers::BatchNormLayers;
use super::batch_norm_rows::BatchNormRows;
use super::clean_up::CleanUp;
use super::cse::Cse;
use super::dead::Dead;
use super::decompose_attention::DecomposeAttention;
use super::drop_full_scatter::DropFullScatter;
use super::drop_renormalization::DropRenormalization;
use super::drop_sequences::DropSequences;
use super::einsum::EinsumAsProduct;
use super::einsum_pairs::EinsumPairs;
use super::fix_defaults::FixDefaults;
use super::flat_layers::FlatLayers;
use super::fold_close::FoldClose;
use super::gain_into_layer::GainIntoLayer;
use super::heads_apart::HeadsApart;
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
use super::requirement::Requirement::{self, *};
use super::rules::ApplyRules;
use super::scale_after_product::ScaleAfterProduct;
use super::select::SelectByArithmetic;
use super::softmax_last::SoftmaxLast;
use super::softmax_repeated::SoftmaxRepeated;
use super::split_projection::SplitProjection;
use super::squeeze_vectors::SqueezeVectors;
use super::stack_sums::StackSums;
use super::widen_floats::WidenFloats;
use crate::plan::Target;

/// A named list of passes with their parameters.
#[derive(Clone, Copy)]
pub struct Pipeline {
    pub name: &'static str,
    /// One line of help.
    pub summary: &'static str,
    /// What must hold of the model before the first pass.
    pub requires: &'static [Requirement],
    pub passes: &'static [&'static dyn Pass],
    /// What holds after the last one.
    pub ensures: &'static [Requirement],
}

/// What lets the executor run a model as its exporter wrote it.
pub static RUNNABLE: Pipeline = Pipeline {
    name: "runnable",
    summary: "Lets the executor run a model as its exporter wrote it.",
    requires: &[],
    passes: &[&CleanUp, &DropSequences, &DecomposeAttention, &EinsumPairs, &PatchSums, &BatchNormRows],
    ensures: &[],
};

/// What brings a model into the form that rules are written for.
pub static PLAIN: Pipeline = Pipeline {
    name: "plain",
    summary: "Brings what exporters write into the forms that rules describe.",
    requires: &[NotQuantized, Portable, HasOutput, KnownOpset],
    passes: &[
        &FixDefaults,
        &WidenFloats,
        // Shape arithmetic goes, constants are folded, what is written twice becomes one.
        &CleanUp,
        &DropSequences,
        &DecomposeAttention,
        &EinsumPairs,
        &EinsumAsProduct,
        &PatchSums,
        &BatchNormRows,
        &PoolMean,
        &SqueezeVectors,
        &SelectByArithmetic,
        &KeysByQueries,
        &BatchNormLayers,
        &FlatLayers,
        &DropFullScatter,
        &StackSums,
        &CleanUp,
        &HeadsApart,
        &SoftmaxLast,
        &SoftmaxRepeated,
        &OrderScoreOps,
        &FoldClose,
        &DropRenormalization,
        &NormChannelsLast,
        &RaiseOpset::AsWanted,
    ],
    ensures: &[NoDefaults, NotNarrow],
};

/// What the rules rewrite, and what follows from it.
pub static CANONICAL: Pipeline = Pipeline {
    name: "canonical",
    summary: "Makes LayerNorm and GELU one node each, moves the scale of attention after its product, splits joint projections.",
    requires: &[NoDefaults, NotNarrow, NotQuantized],
    passes: &[
        &ApplyRules::of_context(),
        &FoldClose,
        &ScaleAfterProduct,
        &SplitProjection,
        &GainIntoLayer,
        &CleanUp,
        &Dead,
    ],
    ensures: &[Tidy],
};

/// What a plan asks for before anything else is decided: the same function of the inputs.
pub static EQUALISED: Pipeline = Pipeline {
    name: "equalised",
    summary: "Equalises the channels of queries, keys and values as planned.",
    requires: &[Tidy, NotQuantized],
    passes: &[&Equalise],
    ensures: &[],
};

/// What carries out a plan, up to float operators between QuantizeLinear and DequantizeLinear.
pub static QUANTIZED: Pipeline = Pipeline {
    name: "quantized",
    summary: "Carries out the plan: folds, weights, attention, activations.",
    requires: &[Planned, NotQuantized],
    passes: &[&FoldFactors, &QuantizeWeights, &QuantizeAttention, &QuantizeActivations, &Dead],
    ensures: &[Tidy],
};

/// Float operators between QuantizeLinear and DequantizeLinear, one scale each: the runtime fuses what it has kernels for.
pub static QDQ: Pipeline = Pipeline {
    name: "qdq",
    summary: "Writes float operators between QuantizeLinear and DequantizeLinear with per-tensor scales: one Gemm per layer, layers of the same input merged.",
    requires: &[Planned, Tidy],
    passes: &[
        &Cse,
        &PatchesAsRows,
        &KeepReduced,
        &CodesFirst,
        &IntegerSums::Shared,
        &ProductScales,
        // Before anything moves codes about: what is left of these is floats.
        &WideCodes::WhereMissing,
        &LayersWhole,
        &Cse,
        &MergeGemms,
        &PerChannel::WhereSlow,
        &DelayReshape,
        &ExpandByCodes,
        &Cse,
        &Dead,
    ],
    ensures: &[Tidy],
};

/// The arithmetic between codes written out: the same bits in onnxruntime and tract.
pub static INTEGER: Pipeline = Pipeline {
    name: "integer",
    summary: "Writes the arithmetic between codes out: integer sums, products and LayerNorm statistics.",
    requires: &[Planned, Tidy],
    passes: &[
        &Cse,
        &PatchesAsRows,
        &CodesFirst,
        &IntegerSums::FromCodes,
        &IntegerProducts,
        &IntegerNorm,
        &PerChannel::Everywhere,
        &WideCodes::Always,
        &Cse,
        &Dead,
    ],
    ensures: &[Tidy],
};

/// All pipelines, in the order a model goes through them.
pub static ALL: [&Pipeline; 7] = [&RUNNABLE, &PLAIN, &CANONICAL, &EQUALISED, &QUANTIZED, &QDQ, &INTEGER];

/// How a target writes the arithmetic between codes.
pub fn lowering(target: Target) -> &'static Pipeline {
    match target {
        Target::Qdq => &QDQ,
        Target::Integer => &INTEGER,
    }
}
