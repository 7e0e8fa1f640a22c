//! What a recipe says about quantization: which candidates the planner may choose from, role by role.

use indexmap::IndexMap;
use serde::de::IntoDeserializer;
use serde::{Deserialize, Serialize};

use super::{Between, Role, Rounding, Target};
use crate::quant::Code;
use crate::quant::lis::{LisSpec, LogBase};
use crate::quant::ptf::PtfRule;
use crate::quant::range::Range;

/// The quantization part of a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct QuantRecipe {
    pub weights: WeightRecipe,
    /// Candidates for each role; `default` is for roles not named. The planner takes the one of least expected error.
    pub activations: IndexMap<ActivationKey, Vec<Candidate>>,
    /// Candidates in place of these where statistics come from synthetic data, which do not reach as far as real ones.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub without_data: IndexMap<ActivationKey, Vec<Candidate>>,
    /// Factors moved from a value into the weights after it.
    #[serde(default)]
    pub folds: IndexMap<Role, FoldRecipe>,
    /// What takes the place of `folds` where calibration had no data: made-up samples show less of how far channels reach.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub folds_without_data: IndexMap<Role, FoldRecipe>,
    /// Factors traded between layers through an attention.
    #[serde(default, skip_serializing_if = "EqualiseRecipe::is_off")]
    pub equalise: EqualiseRecipe,
    pub attention: AttentionRecipe,
    /// Shift the bias by the mean error that rounding the weights makes.
    #[serde(default)]
    pub bias_correction: bool,
    /// How the arithmetic between codes is written.
    #[serde(default, alias = "form")]
    pub target: Target,
    /// Roles that stay in float.
    #[serde(default)]
    pub keep_float: Vec<Role>,
    /// Quantize linear layers only and leave everything else, their outputs included, in float.
    #[serde(default)]
    pub linear_only: bool,
    /// With `linear-only`: give codes only where they save time by these figures, and to queries and keys as well where they do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub costs: Option<Costs>,
    /// Roles whose values get one scale even where one per channel is better, if it makes at most so many times the least error:
    /// factors per channel in front of a nonlinear operator are a pass over memory.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub one_scale_within: IndexMap<Role, f64>,
    /// Where GELU is as good as 0: a value that only GELUs read is quantized as if nothing lay below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gelu_floor: Option<f32>,
}

/// What products cost, in nanoseconds on one thread; see [`costs`](super::costs).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Costs {
    /// One multiplication with a constant weight, in float.
    pub layer_float: f64,
    /// The same of uint8 and int8 codes.
    pub layer_codes: f64,
    /// One multiplication of queries and keys, in float.
    pub product_float: f64,
    /// The same of two uint8 codes.
    pub product_codes: f64,
    /// Making a code of one element.
    pub quantize: f64,
    /// Moving one element, as heads are: float, and codes.
    pub move_float: f64,
    pub move_codes: f64,
}

/// A role, or what stands for all the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ActivationKey {
    Role(Role),
    Default,
}

impl ActivationKey {
    /// The role, if it is one.
    pub fn role(self) -> Option<Role> {
        match self {
            ActivationKey::Role(r) => Some(r),
            ActivationKey::Default => None,
        }
    }

    /// What recipes call it.
    pub fn name(self) -> &'static str {
        self.role().map_or("default", Role::name)
    }
}

impl From<ActivationKey> for String {
    fn from(k: ActivationKey) -> String {
        k.name().to_owned()
    }
}

impl TryFrom<String> for ActivationKey {
    type Error = String;

    fn try_from(name: String) -> Result<ActivationKey, String> {
        if name == "default" {
            return Ok(ActivationKey::Default);
        }
        let role = Role::deserialize(name.into_deserializer());
        role.map(ActivationKey::Role).map_err(|e: serde::de::value::Error| format!("{e}, or `default`"))
    }
}

/// How weights become codes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct WeightRecipe {
    pub code: Code,
    #[serde(default = "nearest")]
    pub rounding: Rounding,
    /// Shares of the full range to try as the scale of each output channel.
    #[serde(default = "no_clip")]
    pub clip: Vec<f32>,
    /// Code of the first and the last layer, where it is not that of the others.
    #[serde(default)]
    pub ends: Option<Code>,
    /// The processors that will run the file have VNNI, so weights may use pairs of codes that would saturate without it, see
    /// [`pairs`](crate::quant::pairs).
    #[serde(default)]
    pub assume_vnni: bool,
}

impl WeightRecipe {
    /// Code of layer `i` of `n`, counted in the order the model computes them.
    pub fn code_of(&self, i: usize, n: usize) -> Code {
        if i == 0 || i + 1 == n { self.ends.unwrap_or(self.code) } else { self.code }
    }
}

fn nearest() -> Rounding {
    Rounding::Nearest
}

fn no_clip() -> Vec<f32> {
    vec![1.0]
}

/// One way to quantize a value.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Candidate {
    /// One scale and zero point per tensor.
    Affine {
        #[serde(default = "u8_code")]
        code: Code,
        range: Range,
    },
    /// Power-of-Two Factors. Where the value also feeds a contraction, that reader gets one scale per tensor.
    Ptf {
        #[serde(default = "u8_code")]
        code: Code,
        #[serde(flatten)]
        rule: PtfRule,
    },
    /// uint16 codes with one scale. Taken instead of the best of the others where the error of that is a larger share of a
    /// token's variance in the place where tokens are faintest than four times what it is in the median place, on average over
    /// the tokens there, and by more than `beyond`; or where it is more than the share `usual` of the variance in the median
    /// place. No codes at all where the error of these is still more than the share `float` in the place where tokens are
    /// faintest. Only for readers that do not contract.
    Wide {
        beyond: f64,
        #[serde(default = "all")]
        usual: f64,
        #[serde(default = "all")]
        float: f64,
    },
    /// No codes of its own: the layer's int32 sums, at their scale `s_x s_w[c]`, go into the Add that alone reads them, and
    /// the result is rounded once. Taken wherever it is possible, which is in the integer form only.
    Sums,
}

fn u8_code() -> Code {
    Code::U8
}

fn all() -> f64 {
    1.0
}

/// Which folding factors are tried: `f[c] = (range[c] / typical)^strength`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct FoldRecipe {
    /// 0 is always tried as well: no folding.
    pub strengths: Vec<f64>,
    /// Fold only channels whose range is beyond this many times the median range; others keep factor 1.
    #[serde(default)]
    pub beyond: Vec<f64>,
    /// Smallest factor, as a share of the median range: a dead channel must not explode its weights.
    #[serde(default = "fold_floor")]
    pub floor: f64,
    /// Powers of two only.
    #[serde(default)]
    pub power_of_two: bool,
    /// Also try to take each channel's lowest value out of it, into the biases of the layers that read it.
    #[serde(default)]
    pub offsets: bool,
    /// Where all values of every channel lie on a grid of 256, as those of an image of bytes do, take that for the codes:
    /// they are exact then. Needs `offsets`.
    #[serde(default)]
    pub grid: bool,
}

impl FoldRecipe {
    /// What is left for a weight that other layers have as well, which no factor may change: offsets, which go into biases.
    pub fn without_factors(&self) -> FoldRecipe {
        FoldRecipe { strengths: Vec::new(), beyond: Vec::new(), grid: false, ..self.clone() }
    }
}

fn fold_floor() -> f64 {
    0.1
}

/// Which pairs of layers may trade factors through an attention; absent: none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct EqualiseRecipe {
    /// The layer of the values and the projection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Strengths>,
    /// The layers of queries and keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<Strengths>,
}

impl EqualiseRecipe {
    /// True if no pair may trade factors.
    pub fn is_off(&self) -> bool {
        self.value.is_none() && self.query.is_none()
    }

    /// The factors to try for a kind of pair; `None` if it may not trade any.
    pub fn between(&self, which: Between) -> Option<&Strengths> {
        match which {
            Between::ValuesProjection => self.value.as_ref(),
            Between::QueriesKeys => self.query.as_ref(),
        }
    }
}

/// Which factors are tried: `f[c] = (range[c] / median)^strength`. None at all is always tried as well.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Strengths {
    pub strengths: Vec<f64>,
    /// No range counts as less than this share of the median: a dead channel must not explode the other layer's weights.
    #[serde(default = "fold_floor")]
    pub floor: f64,
}

/// How attention weights are made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", rename_all_fields = "kebab-case", deny_unknown_fields)]
pub enum AttentionRecipe {
    /// Log-Int-Softmax.
    Lis {
        #[serde(default)]
        spec: LisSpec,
        scores: ScoreRange,
        /// Numbers of half-octave steps to choose from, head by head; none: what `spec` says.
        #[serde(default)]
        fine: Vec<u8>,
        /// Bases to choose from, head by head, where they serve better than all of `fine`; none: what `spec` says.
        #[serde(default)]
        bases: Vec<LogBase>,
        /// Codes of the scores have one scale per head. With `scores: weights`, where the heads are an axis of their own.
        #[serde(default)]
        scale_by_head: bool,
        /// Instead of `spec`, for attentions whose weights something changes before they meet values.
        #[serde(default)]
        weights_alone: Option<LisSpec>,
    },
    /// Softmax between codes; the weights are uniform 8-bit codes.
    Uniform { scores: ScoreRange },
}

/// How the range of the scores is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScoreRange {
    /// All that was seen.
    MinMax,
    /// The range whose codes give the attention weights of least squared error on rows kept from calibration.
    Weights,
}

impl QuantRecipe {
    /// Candidates for a role.
    pub fn candidates(&self, role: Role) -> &[Candidate] {
        self.activations
            .get(&ActivationKey::Role(role))
            .or_else(|| self.activations.get(&ActivationKey::Default))
            .map_or(&[], Vec::as_slice)
    }
}
