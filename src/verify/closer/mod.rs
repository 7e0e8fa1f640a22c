//! A closer look at a quantized model: what its codes make of single values, and which codes its attentions use.
//!
//! Both models run side by side over a few of the verification samples, with what the codes say beside what the float
//! model computes. What is seen goes into bins at once, so memory does not grow with the samples.

#[cfg(feature = "tract")]
mod codes;
#[cfg(feature = "tract")]
mod look;
#[cfg(feature = "tract")]
mod values;

#[cfg(feature = "tract")]
pub use codes::CodedAttention;
#[cfg(feature = "tract")]
pub use look::{Asked, Looked, look};
#[cfg(feature = "tract")]
pub use values::{CodedValue, Measured, Reading};

use serde::{Deserialize, Serialize};

/// What a closer look found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CloserLook {
    /// Items that both models ran over for it.
    pub samples: u64,
    /// Values that the plan turns into codes, and those of them whose codes the file holds in a form that can be compared.
    pub planned: u64,
    pub measured: u64,
    /// The values of the lowest SQNR, the worst first.
    pub worst: Vec<ValueLook>,
    /// In the order of the model.
    pub attentions: Vec<AttentionLook>,
}

/// What the codes of the quantized model make of a value of the float model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ValueLook {
    /// Its name in the float model.
    pub tensor: String,
    /// The part of the model it belongs to.
    #[serde(default)]
    pub part: String,
    pub role: String,
    /// Number of codes, and how scales are given.
    pub levels: u64,
    pub scales: String,
    /// Of what the codes stand for, against the float model.
    pub sqnr_db: f64,
    /// What the codes alone cost: the float model's own values, rounded to them.
    pub rounding_db: f64,
    /// The smallest and the largest step between two codes, and the lowest and highest number that a code stands for.
    pub step: [f64; 2],
    pub reach: [f64; 2],
    /// Share of the float model's elements that lie beyond the last code of their channel, 0..1.
    pub clipped: f64,
    pub elements: u64,
    pub bins: Bins,
}

/// Two histograms over the same bins.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bins {
    /// The lower end of the first bin, and the width of each.
    pub from: f64,
    pub width: f64,
    pub float: Vec<u64>,
    pub quantized: Vec<u64>,
    /// Whether the first and the last bin also hold all that lies below and above.
    pub open: [bool; 2],
}

/// How an attention computes its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WeightsForm {
    /// Log-Int-Softmax: codes that stand for powers.
    Lis,
    /// A Softmax between codes.
    Uniform,
    /// A Softmax in float.
    Float,
}

/// The codes that an attention uses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttentionLook {
    /// Its output, or its weights where something else than the sum over the values reads them.
    pub tensor: String,
    #[serde(default)]
    pub part: String,
    pub form: WeightsForm,
    /// From the code of the largest weight down; empty where there are none, or they could not be read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub codes: Vec<CodeShare>,
}

/// One code of the weights of an attention.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CodeShare {
    /// Pairs of a query and a key that got it; hidden pairs are not counted.
    pub count: u64,
    /// The weight it stands for as a share of code 0's: the least and the most of all heads.
    pub weight: [f64; 2],
    /// Share of all attention that goes to its keys, 0..1.
    pub attention: f64,
}

impl AttentionLook {
    /// How many codes would be in use if all were used alike: 2 to the power of the entropy in bits.
    pub fn codes_in_use(&self) -> f64 {
        let total = self.codes.iter().map(|c| c.count).sum::<u64>() as f64;
        let bits = self.codes.iter().filter(|c| c.count > 0).map(|c| {
            let p = c.count as f64 / total;
            -p * p.log2()
        });
        bits.sum::<f64>().exp2()
    }
}

impl CloserLook {
    /// Attentions with as many codes as most others have, as if they were one; `None` if no codes were read.
    pub fn all_codes(&self) -> Option<(usize, Vec<CodeShare>)> {
        let of = |n: usize| self.attentions.iter().filter(move |a| a.codes.len() == n);
        let sizes = self.attentions.iter().map(|a| a.codes.len()).filter(|n| *n > 0);
        let n = sizes.max_by_key(|n| (of(*n).count(), *n))?;
        let many = of(n).count();
        let one = |i: usize| {
            let codes = || of(n).map(move |a| &a.codes[i]);
            CodeShare {
                count: codes().map(|c| c.count).sum(),
                weight: [
                    codes().map(|c| c.weight[0]).fold(f64::INFINITY, f64::min),
                    codes().map(|c| c.weight[1]).fold(0.0, f64::max),
                ],
                attention: codes().map(|c| c.attention).sum::<f64>() / many as f64,
            }
        };
        Some((many, (0..n).map(one).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attention(counts: &[u64], attention: f64) -> AttentionLook {
        let codes = counts.iter().map(|n| CodeShare { count: *n, weight: [0.5, 0.5 + attention / 10.0], attention });
        AttentionLook { tensor: "y".into(), part: String::new(), form: WeightsForm::Lis, codes: codes.collect() }
    }

    #[test]
    fn attentions_add_up_and_entropy_counts_codes() {
        assert_eq!(attention(&[5, 5, 5, 5, 0], 0.0).codes_in_use(), 4.0);
        assert_eq!(attention(&[0, 9], 0.0).codes_in_use(), 1.0);
        let uniform = AttentionLook { form: WeightsForm::Uniform, ..attention(&[], 0.0) };
        let all = CloserLook {
            samples: 1,
            planned: 0,
            measured: 0,
            worst: vec![],
            attentions: vec![attention(&[1, 2], 0.25), attention(&[9, 9, 9], 0.0), attention(&[3, 4], 0.75), uniform],
        };
        let (many, codes) = all.all_codes().unwrap();
        assert_eq!((many, codes.iter().map(|c| c.count).collect::<Vec<_>>()), (2, vec![4, 6]));
        assert_eq!((codes[0].attention, codes[0].weight), (0.5, [0.5, 0.575]));
        assert_eq!(CloserLook { attentions: vec![], ..all }.all_codes(), None);
    }
}
