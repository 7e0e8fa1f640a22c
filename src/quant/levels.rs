//! Values that lie on a grid: what eight-bit data looks like after it was normalised.

use serde::{Deserialize, Serialize};

/// The distinct values of a channel, while they are few.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Levels {
    /// In rising order; none if there were too many.
    values: Vec<f32>,
    many: bool,
}

/// More distinct values than these are no eight-bit data.
const MOST: usize = 256;
/// How far off the grid a value may lie, in steps: normalisation in float32 moves a value by some ten-thousandths.
const OFF: f64 = 0.01;

/// Evenly spaced values: `lowest`, `lowest + step`, up to `lowest + last step`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid {
    pub lowest: f64,
    pub step: f64,
    /// At most 255.
    pub last: u32,
}

impl Levels {
    /// Whether there are no more of them than observation keeps, in order: true of what was observed, but not of whatever a
    /// file may say.
    pub(super) fn hold_together(&self) -> bool {
        let rising = self.values.windows(2).all(|w| w[0] < w[1]);
        self.values.len() <= MOST && rising && self.values.iter().all(|v| v.is_finite())
    }

    /// Whether no more values need be taken in.
    pub fn are_many(&self) -> bool {
        self.many
    }

    /// Takes in values, until they are seen to lie on no grid: then none are kept.
    pub fn add(&mut self, values: impl IntoIterator<Item = f32>) {
        // Where a value that came already is looked for first. Bits of no number stand for nothing.
        let mut met = [u32::MAX; 1024];
        for v in values {
            if self.many {
                return;
            }
            // Zeros of either sign are one.
            let v = v + 0.0;
            let met = &mut met[(v.to_bits().wrapping_mul(0x9E37_79B1) >> 22) as usize];
            if *met == v.to_bits() {
                continue;
            }
            *met = v.to_bits();
            if let Err(at) = self.values.binary_search_by(|x| x.total_cmp(&v)) {
                self.values.insert(at, v);
                // More values only widen the span and narrow the least gap, so this is never taken back. Of values that are
                // spread at random some twenty are enough.
                if self.values.len() > MOST || self.steps().is_some_and(|s| s >= MOST as f64) {
                    *self = Levels { values: Vec::new(), many: true };
                }
            }
        }
    }

    /// How many of the least gaps the span is; `None` of fewer than two values.
    fn steps(&self) -> Option<f64> {
        let (first, last) = (f64::from(*self.values.first()?), f64::from(*self.values.last()?));
        let gaps = self.values.windows(2).map(|w| f64::from(w[1]) - f64::from(w[0]));
        let least = gaps.fold(f64::INFINITY, f64::min);
        (last > first).then(|| ((last - first) / least).round())
    }

    /// Joins what another shard saw; the order does not matter.
    pub fn merge(&mut self, o: &Levels) {
        if o.many {
            *self = o.clone();
        }
        self.add(o.values.iter().copied());
    }

    /// The coarsest grid that holds all values; `None` if there is none of 256 values, or fewer than two were seen.
    pub fn grid(&self) -> Option<Grid> {
        let (first, last) = (f64::from(*self.values.first()?), f64::from(*self.values.last()?));
        let steps = self.steps()?;
        if !(1.0..MOST as f64).contains(&steps) {
            return None;
        }
        let step = (last - first) / steps;
        let on = |v: &f32| {
            let at = (f64::from(*v) - first) / step;
            (at - at.round()).abs() < OFF
        };
        self.values.iter().all(on).then_some(Grid { lowest: first, step, last: steps as u32 })
    }
}

impl Grid {
    /// The grid of 256 values that holds this one: as fine as can be, with as much room below as above.
    pub fn filled(self) -> Grid {
        let most = MOST as u32 - 1;
        let finer = most / self.last.max(1);
        let step = self.step / f64::from(finer);
        let below = (most - self.last * finer) / 2;
        Grid { lowest: self.lowest - f64::from(below) * step, step, last: most }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pixels(which: impl Iterator<Item = u32>) -> Levels {
        let mut l = Levels::default();
        let all: Vec<f32> = which.map(|p| (p as f32 / 255.0 - 0.485) / 0.229).collect();
        l.add(all);
        l
    }

    #[test]
    fn normalised_pixels_lie_on_the_grid_they_came_from() {
        let g = pixels((0..900).map(|i| (i * 37) % 256)).grid().unwrap();
        assert!((g.lowest + 0.485 / 0.229).abs() < 1e-6 && (g.step - 1.0 / 255.0 / 0.229).abs() < 1e-8, "{g:?}");
        assert_eq!(g.last, 255);
        assert_eq!(g.filled(), g);
    }

    #[test]
    fn a_grid_that_is_not_full_gets_room_at_both_ends() {
        // Pixels 5 to 247, not all of them.
        let g = pixels((5..=247).filter(|p| p % 7 != 3)).grid().unwrap();
        assert_eq!(g.last, 242);
        let f = g.filled();
        assert_eq!(f.last, 255);
        assert!((f.lowest - (g.lowest - 6.0 * g.step)).abs() < 1e-9);
        // Two values: the grid between them is as fine as 256 codes allow.
        let f = pixels([0, 255].into_iter()).grid().unwrap().filled();
        assert!((f.step - 1.0 / 255.0 / 0.229).abs() < 1e-6);
    }

    #[test]
    fn what_is_not_even_or_too_much_has_no_grid() {
        let mut l = Levels::default();
        l.add([0.0, 1.0, 2.5]);
        assert_eq!(l.grid(), None);
        l.add((0..300).map(|i| i as f32));
        assert_eq!(l, Levels { values: vec![], many: true });
        assert_eq!(l.grid(), None);
        let mut l = Levels::default();
        l.add([3.0, 3.0]);
        assert_eq!(l.grid(), None);
    }

    #[test]
    fn values_on_no_grid_are_given_up_soon_and_zeros_of_either_sign_are_one() {
        let spread = |n: u32| (0..n).map(|i| (f64::from(i) * 0.618_033_988_75).fract() as f32);
        let mut l = Levels::default();
        l.add(spread(4));
        assert!(!l.are_many());
        l.add(spread(400).map(|v| v * v));
        assert!(l.are_many() && l.values.is_empty());
        let mut l = Levels::default();
        l.add([0.0, -0.0, 1.0, 2.0]);
        assert_eq!(l.grid(), Some(Grid { lowest: 0.0, step: 1.0, last: 2 }));
    }

    #[test]
    fn shards_join_in_any_order() {
        let (a, b) = (pixels(0..100), pixels(50..256));
        let many = Levels { values: vec![], many: true };
        let join = |x: &Levels, y: &Levels| {
            let mut x = x.clone();
            x.merge(y);
            x
        };
        assert_eq!(join(&a, &b), join(&b, &a));
        assert_eq!(join(&a, &b), pixels(0..256));
        assert_eq!(join(&a, &many), many);
        assert_eq!(join(&many, &a), many);
    }
}
