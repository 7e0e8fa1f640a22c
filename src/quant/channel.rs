//! What is kept of one channel of a value.

use serde::{Deserialize, Serialize};

use super::hist::{Hist, Moments};
use super::levels::Levels;

/// A sum whose result does not depend on the order of its terms: 2^-40 steps in 128 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExactSum(i128);

impl ExactSum {
    const ONE: f64 = (1u64 << 40) as f64;

    /// Adds a partial sum. Terms beyond 2^80 saturate.
    pub fn add(&mut self, v: f64) {
        self.0 = self.0.saturating_add((v * Self::ONE).round_ties_even() as i128);
    }

    pub fn merge(&mut self, o: ExactSum) {
        self.0 = self.0.saturating_add(o.0);
    }

    pub fn get(self) -> f64 {
        self.0 as f64 / Self::ONE
    }
}

/// Statistics of one channel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Channel {
    pub min: f32,
    pub max: f32,
    pub sum: ExactSum,
    pub square_sum: ExactSum,
    pub hist: Hist,
    /// Its distinct values, if they are few.
    pub levels: Levels,
    /// [`Watch::Tokens`](super::watch::Watch::Tokens) only: what each quarter of the samples saw.
    pub quarters: Vec<Quarter>,
}

/// What one quarter of the samples saw of a channel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quarter {
    pub min: f32,
    pub max: f32,
    /// Each value counted with the weight of its token.
    pub weighted: Hist,
}

impl Default for Quarter {
    fn default() -> Quarter {
        Quarter { min: f32::INFINITY, max: f32::NEG_INFINITY, weighted: Hist::default() }
    }
}

impl Default for Channel {
    fn default() -> Channel {
        Channel {
            min: f32::INFINITY,
            max: f32::NEG_INFINITY,
            sum: ExactSum::default(),
            square_sum: ExactSum::default(),
            hist: Hist::default(),
            levels: Levels::default(),
            quarters: Vec::new(),
        }
    }
}

impl Channel {
    pub(super) fn merge(&mut self, o: &Channel) {
        self.min = self.min.min(o.min);
        self.max = self.max.max(o.max);
        self.sum.merge(o.sum);
        self.square_sum.merge(o.square_sum);
        self.hist.merge(&o.hist);
        self.levels.merge(&o.levels);
        if self.quarters.is_empty() {
            self.quarters.clone_from(&o.quarters);
        } else {
            for (a, b) in self.quarters.iter_mut().zip(&o.quarters) {
                a.min = a.min.min(b.min);
                a.max = a.max.max(b.max);
                a.weighted.merge(&b.weighted);
            }
        }
    }

    /// [`Watch::Tokens`](super::watch::Watch::Tokens) only: each value counted with the weight of its token.
    pub fn weighted(&self) -> Hist {
        let mut h = Hist::default();
        for q in &self.quarters {
            h.merge(&q.weighted);
        }
        h
    }

    /// Its distribution. Middles of bins that lie outside of what was seen are moved to its ends.
    pub fn moments(&self) -> Moments {
        let (lo, hi) = (f64::from(self.min), f64::from(self.max));
        let inside = |x: f64| if lo <= hi { x.clamp(lo, hi) } else { x };
        Moments::from_bins(self.hist.bins().map(|(x, n)| (inside(x), f64::from(n))))
    }

    /// What the chosen quarters alone saw, every value counted with the weight of its token; `None` if that is nothing.
    pub(super) fn part(&self, keep: impl Fn(usize) -> bool) -> Option<Channel> {
        let mut ch = Channel::default();
        for (_, q) in self.quarters.iter().enumerate().filter(|(i, q)| keep(*i) && q.min <= q.max) {
            ch.min = ch.min.min(q.min);
            ch.max = ch.max.max(q.max);
            ch.quarters.push(q.clone());
        }
        ch.hist = ch.weighted();
        (ch.min <= ch.max).then_some(ch)
    }
}
