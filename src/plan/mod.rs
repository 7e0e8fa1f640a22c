//! The plan: every quantization decision, with its reason, in a file a person can read, edit, commit and apply again.
//!
//! Calibration and the planner write it; the rewriting passes do what it says and decide nothing.

pub(crate) mod apart;
pub mod channel_map;
mod channels;
mod check;
pub mod climb;
pub mod costs;
pub mod fed;
pub mod files;
mod fits;
pub(crate) mod head_rows;
mod hidden;
pub mod parts;
mod places;
pub mod planner;
pub mod precision;
pub mod recipe;
pub mod scores;
pub mod sites;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use self::precision::Chosen;
use crate::quant::lis::LisSpec;
use crate::quant::{Code, QParams};
pub use sites::Role;

/// Version of the plan format.
pub const VERSION: u32 = 1;

/// All decisions for one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuantPlan {
    pub version: u32,
    /// The recipe that asked for it.
    pub recipe: String,
    /// Fingerprint of the canonical model the names belong to.
    pub model: String,
    /// Least operator set of the model, where that is another one than the recipe asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opset: Option<i64>,
    /// Function-preserving changes of scale, made before anything is quantized.
    #[serde(default)]
    pub folds: Vec<Fold>,
    /// The same between two layers with an attention between them; made before the folds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub equalisations: Vec<Equalisation>,
    #[serde(default)]
    pub activations: Vec<Activation>,
    /// Results of linear layers that go into a sum as they are, in the layer's own integer units, and are rounded with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sums: Vec<String>,
    /// Constant operands of elementwise operators.
    #[serde(default)]
    pub constants: Vec<Constant>,
    #[serde(default)]
    pub layers: Vec<Layer>,
    #[serde(default)]
    pub attentions: Vec<AttentionPlan>,
    /// How the arithmetic between codes is written.
    #[serde(default, alias = "form")]
    pub target: Target,
    /// The processors that will run the file have VNNI: products of uint8 and int8 do not saturate there, so weights need
    /// not keep out of that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub assume_vnni: bool,
    /// What stays in float, and why.
    #[serde(default)]
    pub islands: Vec<Island>,
    /// What each part has, where a search gave parts a precision of their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<Chosen>,
    /// Where it was read from.
    #[serde(skip)]
    pub source: Source,
}

/// The text that a plan was read from, which messages name the lines of. Two plans that decide the same are equal, wherever
/// they come from.
#[derive(Clone, Debug, Default)]
pub struct Source(Option<Arc<str>>);

impl PartialEq for Source {
    fn eq(&self, _: &Source) -> bool {
        true
    }
}

/// A factor and an offset per channel moved from a value into the layers after it: `x` becomes `(x - offset) / factor`, the
/// weights are multiplied by the factors, and the biases gain what the weights make of the offsets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fold {
    /// The value that is divided.
    pub value: String,
    pub role: Role,
    /// One factor per channel, space-separated.
    #[serde(with = "numbers")]
    pub factors: Vec<f32>,
    /// One offset per channel, in units of the value; none: all are 0.
    #[serde(default, with = "numbers", skip_serializing_if = "Vec::is_empty")]
    pub offsets: Vec<f32>,
    pub reason: String,
}

impl Fold {
    /// The offset of channel `c`.
    pub fn offset(&self, c: usize) -> f32 {
        self.offsets.get(c).copied().unwrap_or(0.0)
    }
}

/// Factors traded between two linear layers through an attention: output channels of one layer are divided, and the
/// channels of the other layer that they meet multiplied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Equalisation {
    pub between: Between,
    /// Output of the layer whose channels are divided: of values or queries.
    pub divided: String,
    /// Output of the layer that is multiplied: its input channels for a projection, its output channels for keys.
    pub multiplied: String,
    /// One an output channel of the divided layer; none: both layers stay as they are.
    #[serde(default, with = "numbers", skip_serializing_if = "Vec::is_empty")]
    pub factors: Vec<f32>,
    pub reason: String,
}

/// Which layers of an attention trade factors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Between {
    /// The layer of the values and the projection after the attention.
    ValuesProjection,
    /// The layer of the queries and that of the keys.
    QueriesKeys,
}

impl Between {
    /// What plans and messages call it.
    pub fn name(self) -> &'static str {
        match self {
            Between::ValuesProjection => "values-projection",
            Between::QueriesKeys => "queries-keys",
        }
    }
}

/// A value that becomes codes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Activation {
    pub value: String,
    pub role: Role,
    #[serde(default, skip_serializing_if = "Readers::is_all")]
    pub readers: Readers,
    pub params: QParams,
    /// No reader tells values below this from it: error below it is none. For information.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<f32>,
    pub reason: String,
}

/// A constant operand that is stored as codes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Constant {
    pub value: String,
    pub params: QParams,
}

/// How the arithmetic between codes is written: for whom the file is. What is quantized, and to which codes, is the same for
/// all, and so are the results up to float rounding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// Float operators between DequantizeLinear and QuantizeLinear with one scale each, as runtimes on CPUs fuse them and
    /// compilers for accelerators read them.
    #[default]
    Qdq,
    /// Exact integer products and element-wise arithmetic in a fixed order: the same bits in onnxruntime and tract.
    Integer,
}

/// Which readers of a value a decision is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Readers {
    #[default]
    All,
    /// MatMul, Gemm, Conv and attention products.
    Contracting,
    /// Everything else.
    Elementwise,
}

impl Readers {
    fn is_all(&self) -> bool {
        *self == Readers::All
    }
}

/// How a weight is rounded to codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rounding {
    Nearest,
    /// Error-compensating rounding on the second moments of the layer's input.
    Gptq,
}

/// A MatMul, Gemm or Conv with a constant weight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// The layer's output, bias included.
    pub output: String,
    pub weight: Code,
    /// Scale of each output channel, as a share of the one that reaches the largest weight: 1 clips nothing.
    #[serde(default = "one")]
    pub clip: f32,
    pub rounding: Rounding,
    /// The codes themselves where they do not follow from the weight: present exactly when `rounding` is `gptq`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored: Option<StoredWeight>,
    /// Added to the bias, one number per output channel: what rounding the weight shifts the mean output by.
    #[serde(default, with = "numbers", skip_serializing_if = "Vec::is_empty")]
    pub correction: Vec<f32>,
    pub reason: String,
}

fn one() -> f32 {
    1.0
}

/// A weight as codes that were found on calibration data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredWeight {
    /// One an output channel.
    #[serde(with = "numbers")]
    pub scales: Vec<f32>,
    /// One a weight, in the order of the model's tensor; in the file, the bytes in Base64.
    #[serde(with = "bytes")]
    pub codes: Vec<i8>,
}

/// How an attention computes its weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionPlan {
    /// The attention's output.
    pub output: String,
    pub form: AttentionForm,
    pub reason: String,
}

/// How attention weights are made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum AttentionForm {
    /// Log-Int-Softmax on the codes of the scores.
    Lis { spec: LisSpec },
    /// A float Softmax between codes, with uniform codes for the weights.
    Uniform { params: QParams },
}

/// A compute operator that stays in float; or, as `op` says, a `part` of the model, or a `value` without codes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Island {
    pub node: String,
    pub op: String,
    pub reason: String,
}

impl Island {
    /// What `op` says of a part of the model.
    pub const PART: &'static str = "part";
}

/// Why a plan could not be read.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("{path}: {message}")]
    Read { path: String, message: String },
    #[error("{path}: plan version {found}; this program reads version {VERSION}")]
    Version { path: String, found: u32 },
    #[error(
        "{path}: the plan was made for another model (fingerprint {plan}, this model has {model}); make a new one with \
         `fqvit-opt plan`"
    )]
    Model { path: String, plan: String, model: String },
    #[error(
        "the plan names `{what}`, which is not in the model (or is no {kind}){hint}; `fqvit-opt inspect MODEL --canonical` prints \
         the model with the names that plans use"
    )]
    Missing { what: String, kind: &'static str, hint: String },
    #[error("{path}: {source}")]
    Contradiction { path: String, source: Box<PlanError> },
    /// With the place in the plan's text.
    #[error("{told}")]
    Placed { told: String },
    #[error(
        "the plan is of recipe `{recipe}`, which is none of the shipped ones, and the run is with `{given}`; correct the name, or \
         give that recipe with --recipe"
    )]
    Recipe { recipe: String, given: String },
    #[error("the plan decides on `{value}` twice (as {kind}); delete one of the entries")]
    Twice { value: String, kind: &'static str },
    #[error("the plan gives `{value}` {what}; correct it, or make a new plan with `fqvit-opt plan`")]
    Number { value: String, what: String },
}

impl QuantPlan {
    /// True if all of the model stays in float.
    pub fn quantizes_nothing(&self) -> bool {
        self.activations.is_empty() && self.constants.is_empty() && self.layers.is_empty() && self.attentions.is_empty()
    }

    /// The readable form in one text, codes of weights in it as Base64. [`to_files`](Self::to_files) keeps it short.
    pub fn to_yaml(&self) -> String {
        crate::yaml::to_string(self).expect("a plan has no map keys that YAML cannot hold")
    }

    /// Reads the readable form; `path` is for error messages.
    ///
    /// # Errors
    /// If the text is no plan of this version, or holds a number that no plan may have.
    pub fn from_yaml(text: &str, path: &str) -> Result<QuantPlan, PlanError> {
        let p: QuantPlan = crate::yaml::from_str(text)
            .map_err(|e| PlanError::Read { path: path.to_owned(), message: e.to_string() })?;
        let p = QuantPlan { source: Source(Some(text.into())), ..p };
        if p.version != VERSION {
            return Err(PlanError::Version { path: path.to_owned(), found: p.version });
        }
        p.check().map_err(|e| PlanError::Contradiction { path: path.to_owned(), source: Box::new(e) })?;
        Ok(p)
    }

    /// The decision for a value.
    pub fn activation(&self, value: &str, contracting: bool) -> Option<&Activation> {
        self.activations.iter().find(|a| {
            a.value == value
                && match a.readers {
                    Readers::All => true,
                    Readers::Contracting => contracting,
                    Readers::Elementwise => !contracting,
                }
        })
    }
}

/// Lists of numbers as one line of text.
mod numbers {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(v: &[f32], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&v.iter().map(f32::to_string).collect::<Vec<_>>().join(" "))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<f32>, D::Error> {
        let text = String::deserialize(d)?;
        text.split_whitespace()
            .map(|w| {
                let v: f32 = w.parse().map_err(|_| serde::de::Error::custom(format!("`{w}` is no number")))?;
                if v.is_finite() { Ok(v) } else { Err(serde::de::Error::custom(format!("`{w}` is not finite"))) }
            })
            .collect()
    }
}

/// Codes as text: RFC 4648 Base64 of the two's-complement bytes.
mod bytes {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(v: &[i8], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&STANDARD.encode(v.iter().map(|q| *q as u8).collect::<Vec<_>>()))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<i8>, D::Error> {
        let text = String::deserialize(d)?;
        if text.starts_with('@') {
            let what = "these codes lie in a file beside the plan: give the plan as a file, one field a line";
            return Err(serde::de::Error::custom(what));
        }
        let bytes =
            STANDARD.decode(text).map_err(|e| serde::de::Error::custom(format!("codes are not Base64: {e}")))?;
        Ok(bytes.into_iter().map(|b| b as i8).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_codes_come_back_from_text() {
        let w = StoredWeight { scales: vec![0.1, 1.0 / 3.0], codes: (-128..=127).collect() };
        let text = crate::yaml::to_string(&w).unwrap();
        assert_eq!(crate::yaml::from_str::<StoredWeight>(&text).unwrap(), w);
        let e = crate::yaml::from_str::<StoredWeight>("scales: '1'\ncodes: '*'\n").unwrap_err().to_string();
        assert!(e.contains("Base64"), "{e}");
    }
}
