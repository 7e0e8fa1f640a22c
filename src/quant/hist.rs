//! A histogram that finds its own range, merges in any order to the same bits, and never grows past a fixed size.
//!
//! Bins lie on multiples of a power of two: bin `i` holds `i * 2^e <= x < (i + 1) * 2^e`. When a value does not fit,
//! `e` rises and neighbouring bins join. The final `e` depends only on the largest magnitude seen, so neither the order
//! of samples nor how they were split over threads or machines shows in the result.

use serde::{Deserialize, Serialize};

use super::counts::Counts;
use super::wide::wide;

/// Bins on each side of zero, a power of two: of a range that is all on one side, as many as codes of 8 bits have steps.
const HALF: i32 = 256;

/// Bins for which room is made at once.
const ROOM: usize = 32;

/// Counts in bins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hist {
    /// Bin width is `2^exp`; meaningless while empty.
    exp: i32,
    /// Number of the first stored bin.
    first: i32,
    counts: Counts,
}

/// `2^exp`, for exponents of numbers in float64 that are not denormal.
fn width(exp: i32) -> f64 {
    f64::from_bits(((1023 + i64::from(exp)) as u64) << 52)
}

/// The largest whole number up to `t`, which an i32 must hold: without the call that `f64::floor` is on processors of any
/// age.
#[inline]
fn floor(t: f64) -> i32 {
    let i = t as i32;
    i - i32::from(f64::from(i) > t)
}

/// Values whose bins are computed at once.
const AT_ONCE: usize = 64;

/// `1.5 * 2^23`: what a float within `±2^22` has added to it to be rounded to a whole number, half to even.
const MAGIC: f32 = 12_582_912.0;

wide! {
    /// The number of each value's bin, less `first`: `floor(x * inverse)`, where that is less than `2^22`.
    fn bins_of(values: &[f32], inverse: f32, first: i32, at: &mut [i32]) {
        for (i, x) in at.iter_mut().zip(values) {
            let t = x * inverse;
            let rounded = t + MAGIC;
            let whole = (rounded.to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32);
            *i = whole - i32::from(rounded - MAGIC > t) - first;
        }
    }
}

impl Hist {
    /// Whether the bins are of a width and in places that observation can give them: true of what was observed, but not of
    /// whatever a file may say.
    pub(super) fn holds_together(&self) -> bool {
        let end = i64::from(self.first) + self.counts.len() as i64;
        let widths = Self::exponent_for(f32::from_bits(1))..=Self::exponent_for(f32::MAX);
        self.counts.is_empty() || (widths.contains(&self.exp) && self.first >= -HALF && end <= i64::from(HALF))
    }

    /// Smallest exponent at which `x` falls into the bins.
    fn exponent_for(x: f32) -> i32 {
        if x == 0.0 {
            return -140;
        }
        // Nothing is counted that is not finite; asked for by mistake, it must not ask for bins without end.
        let x = if x.is_finite() { x } else { f32::MAX };
        // `2^k <= |x| < 2^(k + 1)`, and `HALF * 2^e > |x|` is wanted. (A negative x may equal `-HALF * 2^e`; one exponent more
        // is harmless and keeps it simple.) No float32 is denormal as a float64.
        let k = ((f64::from(x).to_bits() >> 52) & 0x7ff) as i32 - 1023;
        k + 1 - HALF.ilog2() as i32
    }

    fn coarsen_to(&mut self, exp: i32) {
        while self.exp < exp && !self.counts.is_empty() {
            self.counts.join_pairs(self.first);
            self.first = self.first.div_euclid(2);
            self.exp += 1;
        }
        self.exp = self.exp.max(exp);
    }

    fn reach_bins(&mut self, lo: i32, hi: i32) {
        if self.counts.is_empty() {
            self.first = lo;
        }
        let before = usize::try_from(self.first - lo).unwrap_or(0);
        let len = self.counts.len().max((hi - self.first + 1).max(0) as usize);
        // No room to double: there are never more than both sides have.
        self.counts.grow(before, len, (before + len).next_multiple_of(ROOM));
        if before > 0 {
            self.first = lo;
        }
    }

    /// Makes room for values in `lo..=hi` (both finite), so that they can be counted.
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
        floor(x as f64 * width(-self.exp))
    }

    /// The factor that turns a value into its bin number.
    pub fn inverse_width(&self) -> f64 {
        width(-self.exp)
    }

    /// Counts a value for which [`Hist::prepare`] has made room, as if it came `times` times.
    #[inline]
    pub fn count_times(&mut self, inverse_width: f64, x: f32, times: u32) {
        self.counts.add(&[floor(x as f64 * inverse_width) - self.first], |_| times);
    }

    /// Counts values for which [`Hist::prepare`] has made room.
    pub fn count_all(&mut self, values: &[f32]) {
        let mut at = [0i32; AT_ONCE];
        for part in values.chunks(AT_ONCE) {
            self.places(part, &mut at);
            self.counts.add(&at[..part.len()], |_| 1);
        }
    }

    /// As [`Hist::count_all`], each value as if it came so many times.
    pub fn count_weighted(&mut self, values: &[f32], times: &[u32]) {
        // Weights soon take more than 16 bits.
        self.counts.widen();
        let mut at = [0i32; AT_ONCE];
        for (part, times) in values.chunks(AT_ONCE).zip(times.chunks(AT_ONCE)) {
            self.places(part, &mut at);
            self.counts.add(&at[..part.len()], |k| times[k]);
        }
    }

    /// The place of each value among the counts.
    #[inline]
    fn places(&self, values: &[f32], at: &mut [i32; AT_ONCE]) {
        // Multiplying by a power of two is exact in float32 unless that is out of its range or makes the product smaller,
        // where a small value might vanish with its sign.
        if (-120..=0).contains(&self.exp) {
            bins_of(values, width(-self.exp) as f32, self.first, at);
        } else {
            for (i, x) in at.iter_mut().zip(values) {
                *i = self.bin(*x) - self.first;
            }
        }
    }

    /// Adds all counts of another histogram.
    pub fn merge(&mut self, other: &Hist) {
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
        for (c, at) in other.counts.iter().zip(other.first - self.first..) {
            self.counts.add(&[at], |_| c);
        }
    }

    /// The counts with everything below `floor` at it.
    pub fn at_least(&self, floor: f32) -> Hist {
        let mut from = self.clone();
        // A floor far below fine bins has a number that no i32 holds.
        if f64::from(floor) * self.inverse_width() < f64::from(self.first) || self.counts.is_empty() {
            return from;
        }
        from.coarsen_to(Self::exponent_for(floor));
        let mut h = Hist { exp: from.exp, ..Hist::default() };
        let lowest = from.bin(floor);
        let bins = || from.counts.iter().zip(from.first..).filter(|(n, _)| *n > 0).map(|(n, i)| (n, i.max(lowest)));
        let (Some(a), Some(b)) = (bins().map(|b| b.1).min(), bins().map(|b| b.1).max()) else { return h };
        h.reach_bins(a, b);
        bins().for_each(|(n, i)| h.counts.add(&[i - h.first], |_| n));
        h
    }

    /// How many values were counted.
    pub fn total(&self) -> u64 {
        self.counts.iter().map(u64::from).sum()
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
            .filter(|(_, c)| *c > 0)
            .map(move |(i, c)| ((self.first + i as i32) as f64 * w + 0.5 * w, c))
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

/// Prefix sums over a histogram: clipping errors of any window in constant time.
///
/// A search asks for millions of windows, so the points lie beside their sums, and a table of as many even cells as there
/// are points says where a value stands among them. (With binary searches instead, half of the time to make a plan went
/// into these.)
#[derive(Clone, Debug)]
pub struct Moments {
    /// The points, lowest first, each with the sums over all before it; at the end the sums over all, at infinity.
    points: Vec<Point>,
    /// For each cell, and one beyond the last: the number of points in the cells before it.
    cells: Vec<u32>,
    first: f64,
    /// Cells for one unit of x.
    density: f64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Point {
    x: f64,
    /// Running count, sum and sum of squares before it.
    n: f64,
    s1: f64,
    s2: f64,
}

impl Default for Moments {
    fn default() -> Moments {
        Moments::from_bins(std::iter::empty())
    }
}

/// The squared error of a window in its two parts.
#[derive(Clone, Copy, Debug)]
pub struct WindowError {
    /// Of what lies below and above it.
    pub below: f64,
    pub above: f64,
    /// Of rounding what lies inside.
    pub inside: f64,
}

impl WindowError {
    /// Of all that the window does.
    pub fn sum(self) -> f64 {
        self.below + self.above + self.inside
    }
}

impl Moments {
    /// Of a histogram.
    pub fn new(h: &Hist) -> Moments {
        Moments::from_bins(h.bins().map(|(x, n)| (x, n as f64)))
    }

    /// Over any weighted points, lowest first.
    pub fn from_bins(bins: impl Iterator<Item = (f64, f64)>) -> Moments {
        let mut points = Vec::with_capacity(bins.size_hint().0 + 1);
        let mut sums = Point { x: f64::INFINITY, ..Point::default() };
        for (x, c) in bins {
            points.push(Point { x, ..sums });
            sums.n += c;
            sums.s1 += c * x;
            sums.s2 += c * x * x;
        }
        let len = points.len();
        let (first, last) = (points.first().map_or(0.0, |p| p.x), points.last().map_or(0.0, |p| p.x));
        points.push(sums);
        // A span of nothing, or beyond all numbers, is one cell.
        let density = len as f64 / (last - first);
        let density = if density.is_finite() { density } else { 0.0 };
        let mut m = Moments { points, cells: vec![0; len + 2], first, density };
        for i in 0..len {
            let cell = m.cell(m.points[i].x);
            m.cells[cell + 1] += 1;
        }
        for i in 1..m.cells.len() {
            m.cells[i] += m.cells[i - 1];
        }
        m
    }

    fn len(&self) -> usize {
        self.points.len() - 1
    }

    /// The cell of a value: never falling as the value rises, so that points of earlier cells are smaller than it and
    /// points of later ones larger.
    #[inline]
    fn cell(&self, x: f64) -> usize {
        // A cast holds negative numbers and NaN at 0.
        (((x - self.first) * self.density) as usize).min(self.len())
    }

    /// The number of points for which `before` holds, which holds for those smaller than `x` and for none larger.
    #[inline]
    fn rank(&self, x: f64, before: impl Fn(f64) -> bool) -> usize {
        let cell = self.cell(x);
        let (from, to) = (self.cells[cell] as usize, self.cells[cell + 1] as usize);
        from + self.points[from..to].partition_point(|p| before(p.x))
    }

    fn total_sums(&self) -> &Point {
        self.points.last().expect("there is always an end")
    }

    /// With one more point at either end: a value below and a value above, each with its weight as a share of what lies in
    /// the present end, or `most` if that is less.
    pub fn with_ends(&self, below: (f64, f64), above: (f64, f64), most: f64) -> Moments {
        let points: Vec<(f64, f64)> = self.points.windows(2).map(|p| (p[0].x, p[1].n - p[0].n)).collect();
        let (Some(first), Some(last)) = (points.first(), points.last()) else { return self.clone() };
        let lo = (below.0.min(first.0), most.min(first.1 * below.1));
        let hi = (above.0.max(last.0), most.min(last.1 * above.1));
        Moments::from_bins([lo].into_iter().chain(points.iter().copied()).chain([hi]))
    }

    /// The sum of all weights.
    pub fn total(&self) -> f64 {
        self.total_sums().n
    }

    /// The interval that leaves `(1 - p) / 2` of the weight outside on each side.
    pub fn central(&self, p: f64) -> (f64, f64) {
        let out = (1.0 - p) / 2.0 * self.total();
        let a = self.points.partition_point(|p| p.n <= out).saturating_sub(1);
        let b = self.points.partition_point(|p| p.n < self.total() - out).saturating_sub(1);
        match self.len() {
            0 => (0.0, 0.0),
            n => (self.points[a.min(n - 1)].x, self.points[b.min(n - 1)].x),
        }
    }

    /// Sum of squares.
    pub fn power(&self) -> f64 {
        self.total_sums().s2
    }

    /// Sum of squared distances from `x`.
    pub fn power_about(&self, x: f64) -> f64 {
        (self.power() - 2.0 * x * self.total_sums().s1 + x * x * self.total()).max(0.0)
    }

    /// Sum of squared distances from the mean.
    pub fn variance(&self) -> f64 {
        let s1 = self.total_sums().s1;
        (self.power() - s1 * s1 / self.total().max(f64::MIN_POSITIVE)).max(0.0)
    }

    /// True if nothing lies outside of `lo..=hi`.
    pub fn within(&self, lo: f64, hi: f64) -> bool {
        self.len() == 0 || (self.first >= lo && self.points[self.len() - 1].x <= hi)
    }

    /// Expected sum of squared errors when values are rounded to multiples of `step` inside `lo..=hi` and clipped
    /// outside: `step^2 / 12` for each inside (rounding error taken as uniform), the squared distance for each outside.
    pub fn error(&self, lo: f64, hi: f64, step: f64) -> f64 {
        self.window(lo, hi, step).sum()
    }

    /// [`Moments::error`] in its parts.
    #[inline]
    pub fn window(&self, lo: f64, hi: f64, step: f64) -> WindowError {
        let a = &self.points[self.rank(lo, |x| x < lo)];
        let b = &self.points[self.rank(hi, |x| x <= hi)];
        let all = self.total_sums();
        let below = a.s2 - 2.0 * lo * a.s1 + lo * lo * a.n;
        let (n, s1, s2) = (all.n - b.n, all.s1 - b.s1, all.s2 - b.s2);
        let above = s2 - 2.0 * hi * s1 + hi * hi * n;
        let inside = (b.n - a.n).max(0.0);
        WindowError { below: below.max(0.0), above: above.max(0.0), inside: inside * step * step / 12.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_for_what_is_not_finite_is_found_too() {
        for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE, 1e-45] {
            assert!((-190..=128).contains(&Hist::exponent_for(x)), "{x}");
        }
    }
    use proptest::prelude::*;

    fn of(v: &[f32]) -> Hist {
        let mut h = Hist::default();
        for x in v {
            h.prepare(*x, *x);
            h.count_all(&[*x]);
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
        fn bins_hold_what_they_say(
            v in prop::collection::vec((-30i32..60, -1f32..1.0).prop_map(|(e, m)| m * f32::powi(2.0, e)), 1..200),
            shrink in prop::sample::select(vec![1f32, 1e-30, 1e-37]),
        ) {
            let v: Vec<f32> = v.iter().map(|x| x * shrink).collect();
            let (mut all, mut each) = (Hist::default(), Hist::default());
            let (lo, hi) = v.iter().fold((0f32, 0f32), |(a, b), x| (a.min(*x), b.max(*x)));
            all.prepare(lo, hi);
            each.prepare(lo, hi);
            let times: Vec<u32> = (0..v.len() as u32).collect();
            let inverse = each.inverse_width();
            v.iter().zip(&times).for_each(|(x, n)| each.count_times(inverse, *x, 1 + n));
            all.count_all(&v);
            all.count_weighted(&v, &times);
            prop_assert_eq!(&all, &each);
        }

        #[test]
        fn what_lies_below_a_floor_lies_at_it(
            v in prop::collection::vec((-140i32..127, -2f32..2.0).prop_map(|(e, m)| m * f32::powi(2.0, e)), 0..60),
            alike in any::<bool>(),
            floor in prop::sample::select(vec![-1e30f32, -200.0, -3.5, -1.0, -1e-20, 0.0, 0.5, 1e9]),
        ) {
            // Magnitudes far apart leave all but the largest in the bins around 0.
            let v: Vec<f32> = v.iter().map(|x| if alike { x.signum() * x.abs().powf(0.01) } else { *x }).collect();
            let raised = of(&v).at_least(floor);
            let mut want: Vec<f64> = v.iter().map(|x| f64::from(x.max(floor))).collect();
            want.sort_by(f64::total_cmp);
            let got: Vec<f64> = raised.bins().flat_map(|(x, n)| vec![x; n as usize]).collect();
            prop_assert_eq!(got.len(), want.len());
            for (x, y) in got.iter().zip(&want) {
                prop_assert!((x - y).abs() <= raised.bin_width(), "{} for {}", x, y);
            }
            prop_assert!(raised.holds_together());
        }

        #[test]
        fn size_is_bounded(v in prop::collection::vec(any::<f32>().prop_filter("finite", |x| x.is_finite()), 1..50)) {
            prop_assert!(of(&v).counts.len() <= 2 * 512 + 2);
        }

        #[test]
        fn windows_end_between_points_however_these_lie(
            mut x in prop::collection::vec((-20i32..20, -1f64..1.0).prop_map(|(e, m)| m * f64::powi(2.0, e)), 0..60),
            ends in prop::collection::vec(-2000f64..2000.0, 0..20),
        ) {
            x.sort_by(f64::total_cmp);
            let m = Moments::from_bins(x.iter().map(|x| (*x, 2.0)));
            for v in ends.iter().chain(&x) {
                prop_assert_eq!(m.rank(*v, |p| p < *v), x.partition_point(|p| p < v));
                prop_assert_eq!(m.rank(*v, |p| p <= *v), x.partition_point(|p| p <= v));
            }
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
