//! Counts of bins, in 16 bits until one needs more.

use serde::{Deserialize, Serialize};

/// Counts of bins that lie side by side. Of a calibration set few bins are met so often that 16 bits do not hold it: most
/// histograms take half the memory, and half as much of it passes through the caches whenever values are counted.
///
/// Two are equal if their numbers are.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(from = "Vec<u32>", into = "Vec<u32>")]
pub(super) enum Counts {
    Narrow(Vec<u16>),
    Wide(Vec<u32>),
}

impl Default for Counts {
    fn default() -> Counts {
        Counts::Narrow(Vec::new())
    }
}

impl PartialEq for Counts {
    fn eq(&self, o: &Counts) -> bool {
        self.len() == o.len() && self.iter().eq(o.iter())
    }
}

impl Eq for Counts {}

impl From<Vec<u32>> for Counts {
    fn from(v: Vec<u32>) -> Counts {
        let narrow: Result<Vec<u16>, _> = v.iter().map(|c| u16::try_from(*c)).collect();
        narrow.map_or(Counts::Wide(v), Counts::Narrow)
    }
}

impl From<Counts> for Vec<u32> {
    fn from(c: Counts) -> Vec<u32> {
        match c {
            Counts::Narrow(v) => v.into_iter().map(u32::from).collect(),
            Counts::Wide(v) => v,
        }
    }
}

impl Counts {
    pub fn len(&self) -> usize {
        match self {
            Counts::Narrow(v) => v.len(),
            Counts::Wide(v) => v.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        let (narrow, wide): (&[u16], &[u32]) = match self {
            Counts::Narrow(v) => (v, &[]),
            Counts::Wide(v) => (&[], v),
        };
        narrow.iter().map(|c| u32::from(*c)).chain(wide.iter().copied())
    }

    /// Makes them hold 32 bits each.
    pub fn widen(&mut self) {
        if let Counts::Narrow(v) = self {
            let mut wide = Vec::with_capacity(v.capacity());
            wide.extend(v.iter().map(|c| u32::from(*c)));
            *self = Counts::Wide(wide);
        }
    }

    /// Adds `times(k)` to the count at `places[k]`, for each `k`; places outside are left out. What does not fit into 32 bits
    /// stays at the most that does.
    #[inline]
    pub fn add(&mut self, places: &[i32], times: impl Fn(usize) -> u32) {
        let mut k = 0;
        if let Counts::Narrow(v) = self {
            while k < places.len() {
                if let Some(c) = v.get_mut(places[k] as usize) {
                    let Ok(sum) = u16::try_from(u32::from(*c).saturating_add(times(k))) else { break };
                    *c = sum;
                }
                k += 1;
            }
            if k == places.len() {
                return;
            }
            self.widen();
        }
        let Counts::Wide(v) = self else { unreachable!("it was just made wide") };
        for (k, at) in places.iter().enumerate().skip(k) {
            if let Some(c) = v.get_mut(*at as usize) {
                *c = c.saturating_add(times(k));
            }
        }
    }

    /// Joins neighbours, as bins twice as wide have them; `first` is the number of the first bin.
    pub fn join_pairs(&mut self, first: i32) {
        if let Counts::Narrow(v) = self
            && v.iter().any(|c| *c > u16::MAX / 2)
        {
            self.widen();
        }
        match self {
            Counts::Narrow(v) => join_pairs(v, first, |a, b| a + b),
            Counts::Wide(v) => join_pairs(v, first, u32::saturating_add),
        }
    }

    /// Makes them `before + len` with `before` zeros in front, in memory for `room` of them if there is too little.
    pub fn grow(&mut self, before: usize, len: usize, room: usize) {
        match self {
            Counts::Narrow(v) => grow(v, before, len, room),
            Counts::Wide(v) => grow(v, before, len, room),
        }
    }
}

/// In place: a channel in a thousand others should not leave its former counts behind as a hole in memory.
fn join_pairs<T: Copy + Default>(v: &mut Vec<T>, first: i32, add: impl Fn(T, T) -> T) {
    let joined = first.div_euclid(2);
    let mut len = 0;
    for i in 0..v.len() {
        let at = ((first + i as i32).div_euclid(2) - joined) as usize;
        let before = if at < len { v[at] } else { T::default() };
        v[at] = add(before, v[i]);
        len = at + 1;
    }
    v.truncate(len);
}

fn grow<T: Copy + Default>(v: &mut Vec<T>, before: usize, len: usize, room: usize) {
    if before + len > v.capacity() {
        v.reserve_exact(room - v.len());
    }
    v.resize(len, T::default());
    if before > 0 {
        v.splice(0..0, std::iter::repeat_n(T::default(), before));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_are_those_of_32_bits(
            steps in prop::collection::vec((0i32..12, prop::sample::select(vec![1u32, 40_000, 70_000, u32::MAX])), 0..40),
            first in -9i32..9,
        ) {
            let (mut counts, mut plain) = (Counts::default(), vec![0u32; 10]);
            counts.grow(0, 10, 16);
            let (places, times): (Vec<i32>, Vec<u32>) = steps.into_iter().unzip();
            counts.add(&places, |k| times[k]);
            for (at, n) in places.iter().zip(&times) {
                if let Some(c) = plain.get_mut(*at as usize) { *c = c.saturating_add(*n) }
            }
            prop_assert_eq!(counts.iter().collect::<Vec<_>>(), plain.clone());
            prop_assert_eq!(&Counts::from(plain.clone()), &counts);
            prop_assert_eq!(Vec::<u32>::from(counts.clone()), plain.clone());
            counts.join_pairs(first);
            let joined = first.div_euclid(2);
            let mut wanted = vec![0u32; ((first + 9).div_euclid(2) - joined + 1) as usize];
            for (i, c) in plain.iter().enumerate() {
                let to = &mut wanted[((first + i as i32).div_euclid(2) - joined) as usize];
                *to = to.saturating_add(*c);
            }
            prop_assert_eq!(counts.iter().collect::<Vec<_>>(), wanted.clone());
            counts.grow(3, wanted.len() + 2, 32);
            prop_assert_eq!(counts.iter().take(4).collect::<Vec<_>>(), [0, 0, 0, wanted[0]]);
            prop_assert_eq!(counts.len(), wanted.len() + 5);
        }
    }
}
