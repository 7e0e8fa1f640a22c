//! Which log-int-softmax is meant: a value that cannot hold a combination without a meaning.

use serde::{Deserialize, Serialize};

/// What the codes of a row are relative to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Anchor {
    /// The row's largest score: code `round(d s log2 e)`. Needs neither an exponential nor a sum.
    Max,
    /// The row's sum, exponentials from a 256-entry table: code `round(log2(S / e))`.
    SumTable,
    /// The row's sum, exponentials from the I-BERT polynomial evaluated on the fraction of a base-2 exponent.
    SumPoly,
    /// The row's sum, exponentials by I-BERT's integer-only i-exp (Kim et al., arXiv 2101.01321, algorithm 2).
    SumIexp,
}

impl Anchor {
    /// True for the anchors that normalise before rounding.
    pub fn is_sum(self) -> bool {
        self != Anchor::Max
    }
}

/// Where between two codes the border lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rounding {
    /// At the geometric middle: the logarithm is rounded to nearest, halves up.
    Geometric,
    /// As FQ-ViT's code does: first the ratio becomes an integer, then 1.5 times a power of two rounds up.
    Paper,
    /// Nowhere: a weight is the integer exponential itself, 2^15 at the largest. For weights that something else reads
    /// before they meet values, where a shift has nothing to shift.
    None,
}

/// What becomes of weights too small for the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tail {
    /// The paper's: every code of the width is a weight, and one level more (code 16 for 4 bits) means 0.
    Levels17,
    /// The last code (15 for 4 bits) means 0.
    Zero,
    /// The last code is a weight and everything smaller takes it.
    Saturate,
}

/// What the weighted sum is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Normalise {
    /// The sum of the row's own weights.
    Renormalised,
    /// The weight of code 0 (2^15 in the paper); only sums anchored at the sum are near 1 that way.
    Pow15,
}

/// How the product with V is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// The fastest form that is defined for the site.
    Auto,
    /// Two uint8 planes through `MatMulInteger`: every bit of every weight counts. Refused where int32 could overflow.
    Planes,
    /// One float `MatMul` whose partial sums are all exact; where they would not be, a guard first drops the weight
    /// bits that lie below the row's own precision.
    Guard,
}

/// The ratio between two neighbouring weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum LogBase {
    #[serde(rename = "2")]
    Two,
    #[serde(rename = "sqrt2")]
    Root2,
    #[serde(rename = "cbrt2")]
    Root3,
    #[serde(rename = "root4")]
    Root4,
}

impl LogBase {
    /// Codes from one weight to its half.
    pub fn steps(self) -> u32 {
        self as u32 + 1
    }
}

/// Why a spec, or a spec at a site, was refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum LisError {
    #[error("attention codes of {0} bits: choose 3, 4, 5 or 6 (8-bit uniform attention is plain quantization)")]
    Bits(u8),
    #[error("anchor `max` leaves the row unnormalised: use `normalise: renormalised`")]
    Unnormalised,
    #[error("rounding `paper` is defined on base 2: use at most 4 bits and leave `base` empty")]
    PaperBase,
    #[error("`fine: {0}`: give even numbers up to 14")]
    Fine(u8),
    #[error(
        "`fine` (finer steps near the largest weight) needs at most 4 bits, anchor `max`, rounding `geometric` and base 2; remove \
         `fine` to have something else"
    )]
    FineOf,
    #[error("rounding `none` leaves no codes: use anchor `max`, and leave `base` and `fine` empty")]
    NoCodes,
    #[error("rounding `paper` needs a ratio of integers: use anchor `max` or `sum-table`")]
    PaperSum,
    #[error("{what} has {found} entries; the attention has {heads} head(s): give 1 or {heads}")]
    Heads { what: &'static str, found: usize, heads: usize },
    #[error("scale {value} of {what} at `{hint}` is no positive finite number")]
    Scale { what: &'static str, value: f32, hint: String },
    #[error("zero point {zero} of V at `{hint}` does not fit {ty}")]
    Zero { zero: i32, ty: String, hint: String },
    #[error("`{hint}`: V must be uint8 or int8, not {ty}")]
    VType { ty: String, hint: String },
    #[error("`{hint}`: form `planes` is exact for {limit} keys at most here, the attention has {keys}; use `auto`")]
    Planes { limit: usize, keys: String, hint: String },
    #[error("`{hint}`: {keys} keys, at most {limit} keep the row sum in int32")]
    Keys { keys: usize, limit: usize, hint: String },
    #[error("`{hint}`: per-head scales or bases need a head axis, the scores have rank {rank}")]
    Rank { rank: usize, hint: String },
    #[error("`{hint}`: the integer forms need opset 13, the model has {has}")]
    Opset { has: i64, hint: String },
}

/// A variant of the log-int-softmax.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Raw", into = "Raw")]
pub struct LisSpec {
    raw: Raw,
}

/// The same fields, unchecked: what a recipe's text says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct Raw {
    bits: u8,
    anchor: Anchor,
    rounding: Rounding,
    tail: Tail,
    normalise: Normalise,
    form: Form,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    base: Vec<LogBase>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    fine: Vec<u8>,
}

impl Default for Raw {
    fn default() -> Raw {
        Raw {
            bits: 4,
            anchor: Anchor::Max,
            rounding: Rounding::Geometric,
            tail: Tail::Zero,
            normalise: Normalise::Renormalised,
            form: Form::Auto,
            base: Vec::new(),
            fine: Vec::new(),
        }
    }
}

impl TryFrom<Raw> for LisSpec {
    type Error = LisError;

    fn try_from(raw: Raw) -> Result<LisSpec, LisError> {
        if !(3..=6).contains(&raw.bits) {
            return Err(LisError::Bits(raw.bits));
        }
        if raw.anchor == Anchor::Max && raw.normalise != Normalise::Renormalised {
            return Err(LisError::Unnormalised);
        }
        if raw.rounding == Rounding::Paper {
            if raw.bits > 4 || raw.base.iter().any(|b| *b != LogBase::Two) {
                return Err(LisError::PaperBase);
            }
            if matches!(raw.anchor, Anchor::SumPoly | Anchor::SumIexp) {
                return Err(LisError::PaperSum);
            }
        }
        if raw.rounding == Rounding::None && (raw.anchor != Anchor::Max || !raw.base.is_empty() || !raw.fine.is_empty())
        {
            return Err(LisError::NoCodes);
        }
        if !raw.fine.is_empty() {
            let base_two = raw.base.iter().all(|b| *b == LogBase::Two);
            let plain = raw.anchor == Anchor::Max && raw.rounding == Rounding::Geometric && base_two && raw.bits <= 4;
            if !plain {
                return Err(LisError::FineOf);
            }
            if let Some(bad) = raw.fine.iter().copied().find(|n| *n > 14 || n % 2 != 0) {
                return Err(LisError::Fine(bad));
            }
        }
        Ok(LisSpec { raw })
    }
}

impl From<LisSpec> for Raw {
    fn from(s: LisSpec) -> Raw {
        s.raw
    }
}

impl Default for LisSpec {
    /// The `fq-vit` recipe's: anchor `max`, 4 bits, code 15 means 0, renormalised.
    fn default() -> LisSpec {
        LisSpec { raw: Raw::default() }
    }
}

impl LisSpec {
    /// Geometric rounding, zero tail, renormalised, automatic form. Fails unless `bits` is 3, 4, 5 or 6.
    ///
    /// # Errors
    /// If `bits` is not 3, 4, 5 or 6.
    pub fn new(anchor: Anchor, bits: u8) -> Result<LisSpec, LisError> {
        Raw { anchor, bits, ..Raw::default() }.try_into()
    }

    /// The paper's form: sum anchor from a table, its two-step rounding, 17 levels, divided by 2^15.
    pub fn paper() -> LisSpec {
        let raw = Raw {
            anchor: Anchor::SumTable,
            rounding: Rounding::Paper,
            tail: Tail::Levels17,
            normalise: Normalise::Pow15,
            ..Raw::default()
        };
        LisSpec { raw }
    }

    /// How weights fall on codes.
    ///
    /// # Errors
    /// If the other choices rule it out; the [`LisError`] says which.
    pub fn with_rounding(self, rounding: Rounding) -> Result<LisSpec, LisError> {
        Raw { rounding, ..self.raw }.try_into()
    }

    /// How codes become weights.
    ///
    /// # Errors
    /// If the other choices rule it out; the [`LisError`] says which.
    pub fn with_normalise(self, normalise: Normalise) -> Result<LisSpec, LisError> {
        Raw { normalise, ..self.raw }.try_into()
    }

    /// With another tail.
    pub fn with_tail(self, tail: Tail) -> LisSpec {
        LisSpec { raw: Raw { tail, ..self.raw } }
    }

    /// With another form.
    pub fn with_form(self, form: Form) -> LisSpec {
        LisSpec { raw: Raw { form, ..self.raw } }
    }

    /// One base for all heads, one per head, or none: then the width decides (see [`LisSpec::base_of`]).
    ///
    /// # Errors
    /// If the other choices rule it out; the [`LisError`] says which.
    pub fn with_base(self, base: Vec<LogBase>) -> Result<LisSpec, LisError> {
        Raw { base, ..self.raw }.try_into()
    }

    /// How many of the first steps between codes are half octaves, for all heads or per head; the steps after them are
    /// octaves. Even, at most 14; none given: every step is one of the base.
    ///
    /// Most of a row's error comes from its large weights, which the codes of one base know no better than the small ones:
    /// half octaves near the maximum and octaves far from it cost the same bits.
    ///
    /// # Errors
    /// If a number is odd or above 14, or the other choices allow no finer steps.
    pub fn with_fine(self, fine: Vec<u8>) -> Result<LisSpec, LisError> {
        Raw { fine, ..self.raw }.try_into()
    }

    /// The numbers of half-octave steps given: empty, one, or one per head.
    pub fn fine(&self) -> &[u8] {
        &self.raw.fine
    }

    /// Bits of a code.
    pub fn bits(&self) -> u8 {
        self.raw.bits
    }

    /// What weights are relative to.
    pub fn anchor(&self) -> Anchor {
        self.raw.anchor
    }

    /// How the logarithm is rounded.
    pub fn rounding(&self) -> Rounding {
        self.raw.rounding
    }

    /// What becomes of weights below the last code.
    pub fn tail(&self) -> Tail {
        self.raw.tail
    }

    /// Whether weights are made to add up to 1 again.
    pub fn normalise(&self) -> Normalise {
        self.raw.normalise
    }

    /// How it is written as operators.
    pub fn form(&self) -> Form {
        self.raw.form
    }

    /// The bases given: empty, one, or one per head.
    pub fn bases(&self) -> &[LogBase] {
        &self.raw.base
    }

    /// The base of one head. Where none is given, codes of up to 4 bits step by 2, of 5 bits by its square root, of 6
    /// bits by its fourth root, so that every width spans about 16 octaves (8 for 3 bits).
    pub fn base_of(&self, head: usize) -> LogBase {
        match (self.raw.base.as_slice(), self.raw.bits) {
            ([], ..=4) => LogBase::Two,
            ([], 5) => LogBase::Root2,
            ([], _) => LogBase::Root4,
            (b, _) => b[head.min(b.len() - 1)],
        }
    }

    /// Number of codes that are weights greater than 0; from here on a code means 0 (or takes the last of them, when
    /// the tail saturates).
    pub fn levels(&self) -> u32 {
        (1 << self.raw.bits) - (self.raw.tail == Tail::Zero) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_reads_back_and_defaults_fill_in() {
        let s: LisSpec = crate::yaml::from_str("anchor: sum-poly\nbits: 5\nbase: ['2', sqrt2, cbrt2]").unwrap();
        assert_eq!((s.anchor(), s.bits(), s.tail()), (Anchor::SumPoly, 5, Tail::Zero));
        assert_eq!((s.base_of(0).steps(), s.base_of(1).steps(), s.base_of(2).steps()), (1, 2, 3));
        let text = crate::yaml::to_string(&s).unwrap();
        assert_eq!(crate::yaml::from_str::<LisSpec>(&text).unwrap(), s);
        let json = serde_json::to_string(&LisSpec::paper()).unwrap();
        assert_eq!(serde_json::from_str::<LisSpec>(&json).unwrap(), LisSpec::paper());
    }

    #[test]
    fn combinations_without_a_meaning_are_refused() {
        let bad = |t: &str| crate::yaml::from_str::<LisSpec>(t).unwrap_err().to_string();
        assert!(bad("bits: 8").contains("3, 4, 5 or 6"));
        assert!(bad("normalise: pow15").contains("renormalised"));
        assert!(bad("{anchor: sum-poly, rounding: paper}").contains("sum-table"));
        assert!(bad("{rounding: paper, bits: 5}").contains("base 2"));
        assert!(bad("tails: zero").contains("tails"));
    }

    #[test]
    fn levels_count_the_codes_that_are_weights() {
        let s = LisSpec::default();
        assert_eq!(s.levels(), 15);
        assert_eq!(s.clone().with_tail(Tail::Levels17).levels(), 16);
        assert_eq!(LisSpec::new(Anchor::Max, 3).unwrap().with_tail(Tail::Saturate).levels(), 8);
    }
}
