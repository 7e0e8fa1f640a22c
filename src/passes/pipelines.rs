//! Pipelines: which passes run, in which order, on the way from a file to a file. This is the one place that says so; every
//! command takes its passes from here.

use super::Pass;
use super::batch_norm_layers::BatchNormLayers;
use super::batch_norm_rows::BatchNormRows;
use super::clean_up::CleanUp;
use super::cse::Cse;
use super::dead::Dead;
use super::decompose_attention::DecomposeAttention;
use super::einsum::EinsumAsProduct;
use super::einsum_pairs::EinsumPairs;
use super::fix_defaults::FixDefaults;
use super::flat_layers::FlatLayers;
use super::fold_close::FoldClose;
use super::gain_into_layer::GainIntoLayer;
use super::heads_apart::HeadsApart;
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
use super::requirement::Requirement::{self, *};
use super::rules::ApplyRules;
use super::scale_after_product::ScaleAfterProduct;
use super::select::SelectByArithmetic;
use super::sequences::Sequences;
use super::softmax_last::SoftmaxLast;
use super::softmax_repeated::SoftmaxRepeated;
use super::split_projection::SplitProjection;
use super::stack_sums::StackSums;
use super::unit_sums::UnitSums;
use super::vectors::Vectors;
use super::whole_update::WholeUpdate;
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
    summary: "what lets the executor run a model as its exporter wrote it",
    requires: &[],
    passes: &[&CleanUp, &Sequences, &DecomposeAttention, &EinsumPairs, &PatchSums, &BatchNormRows],
    ensures: &[],
};

/// What brings a model into the form that rules are written for.
pub static PLAIN: Pipeline = Pipeline {
    name: "plain",
    summary: "from what exporters write to the forms that rules describe",
    requires: &[NotQuantized, Portable, HasOutput, KnownOpset],
    passes: &[
        &FixDefaults,
        &WidenFloats,
        // Shape arithmetic goes, constants are folded, what is written twice becomes one.
        &CleanUp,
        &Sequences,
        &DecomposeAttention,
        &EinsumPairs,
        &EinsumAsProduct,
        &PatchSums,
        &BatchNormRows,
        &PoolMean,
        &Vectors,
        &SelectByArithmetic,
        &KeysByQueries,
        &FlatLayers,
        &WholeUpdate,
        &BatchNormLayers,
        &StackSums,
        &CleanUp,
        &HeadsApart,
        &SoftmaxLast,
        &SoftmaxRepeated,
        &PlainScores,
        &FoldClose,
        &UnitSums,
        &NormChannelsLast,
        &RaiseOpset::AsWanted,
    ],
    ensures: &[NoDefaults, NotNarrow],
};

/// What the rules rewrite, and what follows from it.
pub static CANONICAL: Pipeline = Pipeline {
    name: "canonical",
    summary: "LayerNorm and GELU as one node each, the scale of attention after its product, one layer for each projection",
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
    summary: "channels of values, queries and keys evened out, as the plan says",
    requires: &[Tidy, NotQuantized],
    passes: &[&Equalise],
    ensures: &[],
};

/// What carries out a plan, up to float operators between QuantizeLinear and DequantizeLinear.
pub static QUANTIZED: Pipeline = Pipeline {
    name: "quantized",
    summary: "the plan carried out: folds, weights, attention, activations",
    requires: &[Planned, NotQuantized],
    passes: &[&FoldFactors, &QuantizeWeights, &QuantizeAttention, &QuantizeActivations, &Dead],
    ensures: &[Tidy],
};

/// Float operators between QuantizeLinear and DequantizeLinear, one scale each: the runtime fuses what it has kernels for.
pub static QDQ: Pipeline = Pipeline {
    name: "qdq",
    summary: "float operators between conversions of one scale: a Gemm a layer, rows of matrices, siblings as one product",
    requires: &[Planned, Tidy],
    passes: &[
        &Cse,
        &PatchesAsRows,
        &CodesFirst,
        &IntegerSums::Shared,
        &ProductScales,
        // Before anything moves codes about: what is left of these is floats.
        &WideCodes::WhereMissing,
        &LayersWhole,
        &Cse,
        &Siblings,
        &PerChannel::WhereSlow,
        &MatrixRows,
        &Cse,
        &Dead,
    ],
    ensures: &[Tidy],
};

/// The arithmetic between codes written out: the same bits in every runtime.
pub static INTEGER: Pipeline = Pipeline {
    name: "integer",
    summary: "the arithmetic between codes written out: patches as rows, integer sums, products and statistics",
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
