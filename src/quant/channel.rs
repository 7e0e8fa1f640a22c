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

    /// Adds another sum; the order of additions does not show in the result.
    pub fn merge(&mut self, o: ExactSum) {
        self.0 = self.0.saturating_add(o.0);
    }

    /// The sum, rounded once.
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
    /// [`Watch::Tokens`](super::watch::Watch::Tokens) only: how far each quarter of the samples reached.
    pub quarters: Vec<Ends>,
    /// The same only: for each half of the samples, each value counted with the weight of its token.
    pub halves: Vec<Hist>,
}

/// Into how many parts samples are divided, by their number, for their ends. How much the ends of parts differ from those of
/// all samples tells how far samples that were not seen may reach.
pub(super) const QUARTERS: usize = 4;

/// Into how many they are divided for what is counted, where ranges from one part are judged on another. The second
/// quarter is of the second half, as the fourth is.
pub(super) const HALVES: usize = 2;

/// The smallest and the largest value; nothing was seen while the first is larger.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ends {
    pub min: f32,
    pub max: f32,
}

impl Default for Ends {
    fn default() -> Ends {
        Ends { min: f32::INFINITY, max: f32::NEG_INFINITY }
    }
}

impl Ends {
    /// True if a value was seen.
    pub fn are_seen(&self) -> bool {
        self.min <= self.max
    }

    /// Whether they are numbers, or what they begin as.
    fn hold_together(&self) -> bool {
        *self == Ends::default() || (self.are_seen() && self.min.is_finite() && self.max.is_finite())
    }

    pub(super) fn widen(&mut self, o: Ends) {
        (self.min, self.max) = (self.min.min(o.min), self.max.max(o.max));
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
            halves: Vec::new(),
        }
    }
}

impl Channel {
    /// Whether its parts are what observation makes of them: true of what was observed, but not of whatever a file may say.
    pub(super) fn holds_together(&self) -> bool {
        [0, QUARTERS].contains(&self.quarters.len())
            && [0, HALVES].contains(&self.halves.len())
            && self.quarters.iter().chain([&Ends { min: self.min, max: self.max }]).all(Ends::hold_together)
            && self.halves.iter().chain([&self.hist]).all(Hist::holds_together)
            && self.levels.hold_together()
    }

    pub(super) fn merge(&mut self, o: &Channel) {
        self.min = self.min.min(o.min);
        self.max = self.max.max(o.max);
        self.sum.merge(o.sum);
        self.square_sum.merge(o.square_sum);
        self.hist.merge(&o.hist);
        self.levels.merge(&o.levels);
        self.quarters.resize(self.quarters.len().max(o.quarters.len()), Ends::default());
        self.quarters.iter_mut().zip(&o.quarters).for_each(|(a, b)| a.widen(*b));
        self.halves.resize(self.halves.len().max(o.halves.len()), Hist::default());
        self.halves.iter_mut().zip(&o.halves).for_each(|(a, b)| a.merge(b));
    }

    /// [`Watch::Tokens`](super::watch::Watch::Tokens) only: each value counted with the weight of its token.
    pub fn weighted(&self) -> Hist {
        let mut h = Hist::default();
        self.halves.iter().for_each(|half| h.merge(half));
        h
    }

    /// How far one half of the samples reached.
    pub(super) fn ends_of_half(&self, half: usize) -> Ends {
        let mut ends = Ends::default();
        self.quarters.iter().skip(half).step_by(HALVES).for_each(|q| ends.widen(*q));
        ends
    }

    /// What observation would have made of `max(x, floor)`, but for its sums and levels.
    pub(super) fn at_least(&self, floor: f32) -> Channel {
        let raised = |e: &Ends| match e.are_seen() {
            true => Ends { min: e.min.max(floor), max: e.max.max(floor) },
            false => *e,
        };
        let Ends { min, max } = raised(&Ends { min: self.min, max: self.max });
        Channel {
            min,
            max,
            hist: self.hist.at_least(floor),
            quarters: self.quarters.iter().map(raised).collect(),
            halves: self.halves.iter().map(|h| h.at_least(floor)).collect(),
            ..self.clone()
        }
    }

    /// Its distribution. Middles of bins that lie outside of what was seen are moved to its ends.
    pub fn moments(&self) -> Moments {
        let (lo, hi) = (f64::from(self.min), f64::from(self.max));
        let inside = |x: f64| if lo <= hi { x.clamp(lo, hi) } else { x };
        Moments::from_bins(self.hist.bins().map(|(x, n)| (inside(x), f64::from(n))))
    }

    /// What one half of the samples alone saw, every value counted with the weight of its token; `None` if that is nothing.
    pub(super) fn half(&self, half: usize) -> Option<Channel> {
        let Ends { min, max } = Some(self.ends_of_half(half)).filter(Ends::are_seen)?;
        let hist = self.halves.get(half)?.clone();
        let quarters = self.quarters.iter().skip(half).step_by(HALVES).copied().collect();
        Some(Channel { min, max, halves: vec![hist.clone()], hist, quarters, ..Channel::default() })
    }
}
