//! A histogram that finds its own range, merges in any order to the same bits, and never grows past a fixed size.
//!
//! Bins lie on multiples of a power of two: bin `i` holds `i * 2^e <= x < (i + 1) * 2^e`. When a value does not fit,
//! `e` rises and neighbouring bins join. The final `e` depends only on the largest magnitude seen, so neither the order
//! of samples nor how they were split over threads or machines shows in the result.

use serde::{Deserialize, Serialize};

/// `HALF` is the number of bins on each side of zero, a power of two.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hist<const HALF: i32 = 512> {
    /// Bin width is `2^exp`; meaningless while empty.
    exp: i32,
    /// Number of the first stored bin.
    first: i32,
    counts: Vec<u32>,
}

fn width(exp: i32) -> f64 {
    f64::powi(2.0, exp)
}

impl<const HALF: i32> Hist<HALF> {
    /// Smallest exponent at which `x` falls into the bins.
    fn exponent_for(x: f32) -> i32 {
        if x == 0.0 {
            return -140;
        }
        // Nothing is counted that is not finite; asked for by mistake, it must not search for ever.
        let x = if x.is_finite() { x } else { f32::MAX };
        // HALF * 2^e > |x|  (a negative x may equal -HALF * 2^e; one exponent more is harmless and keeps it simple)
        let e = (x.abs() as f64).log2().floor() as i32 + 1 - HALF.ilog2() as i32;
        // log2 may round up at a power of two; start low and correct.
        (e - 1..).find(|e| (x.abs() as f64) < HALF as f64 * width(*e)).expect("some exponent fits")
    }

    fn coarsen_to(&mut self, exp: i32) {
        while self.exp < exp && !self.counts.is_empty() {
            let new_first = self.first.div_euclid(2);
            let last = (self.first + self.counts.len() as i32 - 1).div_euclid(2);
            let mut joined = vec![0u32; (last - new_first + 1) as usize];
            for (i, c) in self.counts.iter().enumerate() {
                let at = ((self.first + i as i32).div_euclid(2) - new_first) as usize;
                joined[at] = joined[at].saturating_add(*c);
            }
            self.counts = joined;
            self.first = new_first;
            self.exp += 1;
        }
        self.exp = self.exp.max(exp);
    }

    fn reach_bins(&mut self, lo: i32, hi: i32) {
        if self.counts.is_empty() {
            self.first = lo;
        }
        if lo < self.first {
            let n = (self.first - lo) as usize;
            self.counts.splice(0..0, std::iter::repeat_n(0, n));
            self.first = lo;
        }
        let need = (hi - self.first + 1) as usize;
        if need > self.counts.len() {
            self.counts.resize(need, 0);
        }
    }

    /// Makes room for values in `lo..=hi` (both finite), so that [`Hist::count`] can be called for them.
    pub fn prepare(&mut self, lo: f32, hi: f32) {
        let e = Self::exponent_for(lo).max(Self::exponent_for(hi));
        if self.counts.is_empty() {
            self.exp = e;
        } else {
            self.coarsen_to(e);
        }
        let (a, b) = (self.bin(lo), self.bin(hi));
        self.reach_bins(a, b);
    }

    fn bin(&self, x: f32) -> i32 {
        (x as f64 * width(-self.exp)).floor() as i32
    }

    /// The factor that turns a value into its bin number.
    pub fn inverse_width(&self) -> f64 {
        width(-self.exp)
    }

    /// Counts values for which [`Hist::prepare`] has made room.
    #[inline]
    pub fn count(&mut self, inverse_width: f64, x: f32) {
        self.count_times(inverse_width, x, 1);
    }

    /// As [`Hist::count`], as if the value came `times` times.
    #[inline]
    pub fn count_times(&mut self, inverse_width: f64, x: f32, times: u32) {
        let i = (x as f64 * inverse_width).floor() as i32 - self.first;
        if let Some(c) = self.counts.get_mut(i as usize) {
            *c = c.saturating_add(times);
        }
    }

    /// Adds all counts of another histogram.
    pub fn merge(&mut self, other: &Hist<HALF>) {
        if other.counts.is_empty() {
            return;
        }
        if self.counts.is_empty() {
            *self = other.clone();
            return;
        }
        let mut other = other.clone();
        let e = self.exp.max(other.exp);
        self.coarsen_to(e);
        other.coarsen_to(e);
        self.reach_bins(other.first, other.first + other.counts.len() as i32 - 1);
        for (i, c) in other.counts.iter().enumerate() {
            let at = (other.first + i as i32 - self.first) as usize;
            self.counts[at] = self.counts[at].saturating_add(*c);
        }
    }

    /// The same bins in a histogram that could hold finer ones.
    pub fn with_room<const MORE: i32>(&self) -> Hist<MORE> {
        const { assert!(MORE >= HALF) };
        Hist { exp: self.exp, first: self.first, counts: self.counts.clone() }
    }

    pub fn total(&self) -> u64 {
        self.counts.iter().map(|c| *c as u64).sum()
    }

    /// The mean, and how far from it values lie below and above: the root of twice the sum of squared distances on that
    /// side over the number of all values, which is the standard deviation for as much on either side.
    pub fn deviations(&self) -> Option<(f64, f64, f64)> {
        let total = self.total() as f64;
        let over = |f: &dyn Fn(f64) -> f64| self.bins().map(|(x, n)| f(x) * f64::from(n)).sum::<f64>() / total;
        let mean = over(&|x| x);
        let side = |sign: f64| (2.0 * over(&|x| (sign * (x - mean)).max(0.0).powi(2))).sqrt();
        (total > 0.0).then(|| (mean, side(-1.0), side(1.0)))
    }

    /// `(centre, count)` of the bins that hold something, lowest first.
    pub fn bins(&self) -> impl Iterator<Item = (f64, u32)> + '_ {
        let w = width(self.exp);
        self.counts
            .iter()
            .enumerate()
            .filter(|(_, c)| **c > 0)
            .map(move |(i, c)| ((self.first + i as i32) as f64 * w + 0.5 * w, *c))
    }

    /// Width of a bin.
    pub fn bin_width(&self) -> f64 {
        width(self.exp)
    }

    /// The value below which a fraction `p` of the observations lies (interpolated inside a bin); 0 when empty.
    pub fn quantile(&self, p: f64) -> f64 {
        let total = self.total();
        let want = p * total as f64;
        let mut below = 0.0;
        let mut last = 0.0;
        for (x, n) in self.bins() {
            last = x + 0.5 * self.bin_width();
            if below + n as f64 >= want {
                return x + self.bin_width() * ((want - below) / n as f64 - 0.5);
            }
            below += n as f64;
        }
        last
    }
}

/// Prefix sums over a histogram: clipping errors of any window in logarithmic time.
#[derive(Clone, Debug, Default)]
pub struct Moments {
    x: Vec<f64>,
    /// Running count, sum and sum of squares before bin i.
    n: Vec<f64>,
    s1: Vec<f64>,
    s2: Vec<f64>,
}

impl Moments {
    pub fn new<const HALF: i32>(h: &Hist<HALF>) -> Moments {
        Moments::from_bins(h.bins().map(|(x, n)| (x, n as f64)))
    }

    /// Over any weighted points, lowest first.
    pub fn from_bins(bins: impl Iterator<Item = (f64, f64)>) -> Moments {
        let mut m = Moments { n: vec![0.0], s1: vec![0.0], s2: vec![0.0], x: Vec::new() };
        let (mut n, mut s1, mut s2) = (0.0, 0.0, 0.0);
        for (x, c) in bins {
            m.x.push(x);
            n += c;
            s1 += c * x;
            s2 += c * x * x;
            m.n.push(n);
            m.s1.push(s1);
            m.s2.push(s2);
        }
        m
    }

    /// With one more point at either end: a value below and a value above, each with its weight as a share of what lies in
    /// the present end, or `most` if that is less.
    pub fn with_ends(&self, below: (f64, f64), above: (f64, f64), most: f64) -> Moments {
        let points: Vec<(f64, f64)> = self.x.iter().enumerate().map(|(i, x)| (*x, self.n[i + 1] - self.n[i])).collect();
        let (Some(first), Some(last)) = (points.first(), points.last()) else { return self.clone() };
        let lo = (below.0.min(first.0), most.min(first.1 * below.1));
        let hi = (above.0.max(last.0), most.min(last.1 * above.1));
        Moments::from_bins([lo].into_iter().chain(points.iter().copied()).chain([hi]))
    }

    pub fn total(&self) -> f64 {
        *self.n.last().unwrap_or(&0.0)
    }

    /// The interval that leaves `(1 - p) / 2` of the weight outside on each side.
    pub fn central(&self, p: f64) -> (f64, f64) {
        let out = (1.0 - p) / 2.0 * self.total();
        let a = self.n.partition_point(|n| *n <= out).saturating_sub(1);
        let b = self.n.partition_point(|n| *n < self.total() - out).saturating_sub(1);
        match self.x.len() {
            0 => (0.0, 0.0),
            n => (self.x[a.min(n - 1)], self.x[b.min(n - 1)]),
        }
    }

    /// Sum of squares.
    pub fn power(&self) -> f64 {
        *self.s2.last().unwrap_or(&0.0)
    }

    /// Sum of squared distances from `x`.
    pub fn power_about(&self, x: f64) -> f64 {
        let s1 = *self.s1.last().unwrap_or(&0.0);
        (self.power() - 2.0 * x * s1 + x * x * self.total()).max(0.0)
    }

    /// Sum of squared distances from the mean.
    pub fn variance(&self) -> f64 {
        let s1 = *self.s1.last().unwrap_or(&0.0);
        (self.power() - s1 * s1 / self.total().max(f64::MIN_POSITIVE)).max(0.0)
    }

    /// Expected sum of squared errors when values are rounded to multiples of `step` inside `lo..=hi` and clipped
    /// outside: `step^2 / 12` for each inside (rounding error taken as uniform), the squared distance for each outside.
    pub fn error(&self, lo: f64, hi: f64, step: f64) -> f64 {
        if self.x.is_empty() {
            return 0.0;
        }
        let a = self.x.partition_point(|x| *x < lo);
        let b = self.x.partition_point(|x| *x <= hi);
        let last = self.x.len();
        let below = self.s2[a] - 2.0 * lo * self.s1[a] + lo * lo * self.n[a];
        let (n, s1, s2) = (self.n[last] - self.n[b], self.s1[last] - self.s1[b], self.s2[last] - self.s2[b]);
        let above = s2 - 2.0 * hi * s1 + hi * hi * n;
        let inside = (self.n[b] - self.n[a]).max(0.0);
        below.max(0.0) + above.max(0.0) + inside * step * step / 12.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_for_what_is_not_finite_is_found_too() {
        for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE, 1e-45] {
            assert!((-190..=128).contains(&Hist::<512>::exponent_for(x)), "{x}");
        }
    }
    use proptest::prelude::*;

    fn of(v: &[f32]) -> Hist {
        let mut h = Hist::default();
        for x in v {
            h.prepare(*x, *x);
            let w = h.inverse_width();
            h.count(w, *x);
        }
        h
    }

    proptest! {
        #[test]
        fn order_and_split_do_not_show(v in prop::collection::vec(-1000f32..1000.0, 1..80), cut in 0usize..80) {
            let whole = of(&v);
            let cut = cut.min(v.len());
            let (mut a, b) = (of(&v[..cut]), of(&v[cut..]));
            a.merge(&b);
            let (mut c, d) = (of(&v[cut..]), of(&v[..cut]));
            c.merge(&d);
            let norm = |h: &Hist| h.bins().map(|(x, n)| (x.to_bits(), n)).collect::<Vec<_>>();
            prop_assert_eq!(norm(&whole), norm(&a));
            prop_assert_eq!(norm(&a), norm(&c));
            prop_assert_eq!(whole.total(), v.len() as u64);
            let mut r = v.clone();
            r.reverse();
            prop_assert_eq!(norm(&whole), norm(&of(&r)));
        }

        #[test]
        fn size_is_bounded(v in prop::collection::vec(any::<f32>().prop_filter("finite", |x| x.is_finite()), 1..50)) {
            prop_assert!(of(&v).counts.len() <= 2 * 512 + 2);
        }

        #[test]
        fn window_error_matches_a_plain_sum(v in prop::collection::vec(-8f32..8.0, 1..60), lo in -6f64..0.0, hi in 0f64..6.0) {
            let h = of(&v);
            let m = Moments::new(&h);
            let plain: f64 = h.bins().map(|(x, n)| n as f64 * if x < lo { (x - lo).powi(2) } else if x > hi { (x - hi).powi(2) } else { 0.01 / 12.0 }).sum();
            prop_assert!((m.error(lo, hi, 0.1) - plain).abs() < 1e-6 * (1.0 + plain));
        }
    }

    #[test]
    fn quantiles_interpolate() {
        let v: Vec<f32> = (0..1000).map(|i| i as f32).collect();
        let h = of(&v);
        assert!((h.quantile(0.5) - 500.0).abs() < 3.0);
        assert!((h.quantile(1.0) - 1000.0).abs() < 3.0);
        assert!(h.quantile(0.0).abs() < 3.0);
    }
}
