//! Weights whose products never saturate.
//!
//! Processors with AVX2 but without VNNI multiply uint8 by int8 with `vpmaddubsw`: two neighbouring products along the
//! contracted axis are added in 16 bits, and the sum saturates at -32768 and 32767. With activations up to 255 that can
//! not happen if `255 (max(w0, 0) + max(w1, 0)) <= 32767` and `-255 (min(w0, 0) + min(w1, 0)) <= 32768`, so if weights of
//! the same sign in a pair add up to 128 at most. Few pairs of a trained layer exceed that, and rounding that
//! compensates its errors moves what is cut off into later weights.
//!
//! Which weights are neighbours depends on how a runtime lays a layer out: input channels 2i and 2i + 1 of a MatMul; of a
//! Conv, elements of the kernel in the order channel, row, column, or row, column, channel.
//!
//! *Source.* The definition of `vpmaddubsw`; onnxruntime's and oneDNN's kernels for processors without VNNI.

/// Largest sum of two weights of the same sign in a pair.
pub const MOST: i32 = 128;

/// For each of the weights of one output channel, those that may be its neighbours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mates(Vec<Vec<usize>>);

impl Mates {
    /// Of a row of `n` weights that are contracted one after the other.
    pub fn of_row(n: usize) -> Mates {
        Mates((0..n).map(|i| Vec::from_iter(Some(i ^ 1).filter(|m| *m < n))).collect())
    }

    /// Of a kernel `[inputs, ..spatial]`, whatever the order that the runtime contracts it in.
    pub fn of_kernel(inputs: usize, spatial: usize) -> Mates {
        let n = inputs * spatial;
        let mut all = Mates::of_row(n);
        // Channels last: element (c, s) lies at s * inputs + c.
        let place = |i: usize| (i % spatial.max(1)) * inputs + i / spatial.max(1);
        let back = |at: usize| (at % inputs.max(1)) * spatial + at / inputs.max(1);
        for (i, mates) in all.0.iter_mut().enumerate() {
            let at = place(i) ^ 1;
            if at < n && !mates.contains(&back(at)) {
                mates.push(back(at));
            }
        }
        all
    }

    /// The possible neighbours of weight `i`.
    pub fn of(&self, i: usize) -> &[usize] {
        &self.0[i]
    }

    /// How many weights an output channel has.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True if an output channel has no weights.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// True if no pair of `row` saturates.
    pub fn are_safe(&self, row: &[i32]) -> bool {
        row.iter().enumerate().all(|(i, q)| self.of(i).iter().all(|m| fits(*q, row[*m])))
    }

    /// Moves weights that saturate with a neighbour towards zero, the larger of the two first.
    pub fn settle(&self, row: &mut [i32]) {
        for i in 0..row.len() {
            for m in self.of(i) {
                while !fits(row[i], row[*m]) {
                    let larger = if row[i].abs() >= row[*m].abs() { i } else { *m };
                    row[larger] -= row[larger].signum();
                }
            }
        }
    }
}

/// The codes of a layer's weight, as rows that are contracted.
#[derive(Clone, Debug)]
pub struct WeightRows {
    mates: Mates,
    outs: usize,
    /// The outputs are the first axis.
    out_first: bool,
}

impl WeightRows {
    /// Of a weight of these sizes: a matrix, or a Conv's kernel `[outputs, inputs, ..spatial]`. `None` for other ranks.
    pub fn of(dims: &[usize], out_axis: usize, conv: bool) -> Option<WeightRows> {
        let outs = *dims.get(out_axis)?;
        let mates = match dims {
            [_, inputs, spatial @ ..] if conv => Mates::of_kernel(*inputs, spatial.iter().product()),
            [_, _] => Mates::of_row(dims[1 - out_axis]),
            _ => return None,
        };
        Some(WeightRows { mates, outs, out_first: out_axis == 0 })
    }

    /// The possible neighbours of each weight of a row.
    pub fn into_mates(self) -> Mates {
        self.mates
    }

    fn at(&self, o: usize, i: usize) -> usize {
        if self.out_first { o * self.mates.len() + i } else { i * self.outs + o }
    }

    fn row(&self, codes: &[i32], o: usize) -> Vec<i32> {
        (0..self.mates.len()).map(|i| codes[self.at(o, i)]).collect()
    }

    /// True if no pair of the weight saturates. Codes are in the order of the tensor.
    pub fn are_safe(&self, codes: &[i32]) -> bool {
        (0..self.outs).all(|o| self.mates.are_safe(&self.row(codes, o)))
    }

    /// Scales and codes in `lo..=hi` with which every row is safe: where one is not, it gets a larger scale, weights moved
    /// towards zero ([`Mates::settle`]), or both, whatever has the least squared error. `weights` and `codes`, the nearest,
    /// are in the order of the tensor, `scales` one per output. `None` if the error grows by more than a tenth: codes of
    /// uint8 are better then, which saturate nowhere.
    pub fn settled(
        &self,
        weights: &[f32],
        (lo, hi): (i32, i32),
        scales: &[f32],
        codes: &[i32],
    ) -> Option<(Vec<f32>, Vec<i32>)> {
        let (mut scales, mut codes) = (scales.to_vec(), codes.to_vec());
        let (mut before, mut after) = (0.0, 0.0);
        for o in 0..self.outs {
            let row: Vec<f32> = (0..self.mates.len()).map(|i| weights[self.at(o, i)]).collect();
            let error = |scale: f32, q: &[i32]| {
                let one = |(w, q): (&f32, &i32)| (f64::from(*w) - f64::from(*q) * f64::from(scale)).powi(2);
                row.iter().zip(q).map(one).sum::<f64>()
            };
            let nearest = self.row(&codes, o);
            before += error(scales[o], &nearest);
            if self.mates.are_safe(&nearest) {
                after += error(scales[o], &nearest);
                continue;
            }
            let tried = STRETCHES.map(|by| {
                let scale = scales[o] * by;
                let mut q: Vec<i32> =
                    row.iter().map(|w| ((w / scale).round_ties_even() as i32).clamp(lo, hi)).collect();
                self.mates.settle(&mut q);
                (error(scale, &q), scale, q)
            });
            let (least, scale, q) = tried.into_iter().min_by(|a, b| a.0.total_cmp(&b.0))?;
            after += least;
            scales[o] = scale;
            q.iter().enumerate().for_each(|(i, q)| codes[self.at(o, i)] = *q);
        }
        (after <= before * WORTH).then_some((scales, codes))
    }
}

/// How much more error is worth weights in int8, which processors with VNNI multiply twice as fast as uint8.
const WORTH: f64 = 1.1;

/// Factors of a row's scale that are tried. With twice the scale no pair of int8 saturates.
const STRETCHES: [f32; 9] = [1.0, 1.125, 1.25, 1.375, 1.5, 1.625, 1.75, 1.875, 2.0];

/// True if two neighbours cannot saturate.
pub fn fits(a: i32, b: i32) -> bool {
    a.max(0) + b.max(0) <= MOST && -(a.min(0) + b.min(0)) <= MOST
}

/// The codes that a weight may take beside a neighbour that has its code.
pub fn range(neighbour: i32) -> (i32, i32) {
    (-MOST - neighbour.min(0), MOST - neighbour.max(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `vpmaddubsw` makes of two products, and what they are.
    fn pair(x: [i32; 2], w: [i32; 2]) -> (i32, i32) {
        let sum = x[0] * w[0] + x[1] * w[1];
        (sum.clamp(-32768, 32767), sum)
    }

    /// All pairs of weights, with the activations that reach farthest either way.
    #[test]
    fn a_pair_that_fits_never_saturates_and_the_bound_is_tight() {
        let mut refused = 0;
        for a in -127..=127 {
            for b in -127..=127 {
                let ends = [[0, 0], [0, 255], [255, 0], [255, 255]].map(|x| pair(x, [a, b]));
                let exact = ends.iter().all(|(got, sum)| got == sum);
                assert_eq!(exact, fits(a, b), "{a} and {b}");
                refused += i32::from(!exact);
                let (lo, hi) = range(a);
                assert_eq!((lo..=hi).contains(&b), fits(a, b), "{a} and {b}");
            }
        }
        assert!(refused > 0);
    }

    #[test]
    fn neighbours_are_those_of_either_order() {
        assert_eq!(Mates::of_row(5), Mates(vec![vec![1], vec![0], vec![3], vec![2], vec![]]));
        // Two channels of three: c0s0 c0s1 c0s2 c1s0 c1s1 c1s2, or s0c0 s0c1 s1c0 s1c1 s2c0 s2c1.
        let m = Mates::of_kernel(2, 3);
        assert_eq!(m.of(0), [1, 3]);
        assert_eq!(m.of(5), [4, 2]);
    }

    #[test]
    fn settled_rows_are_safe_and_close() {
        let mates = Mates::of_row(6);
        let mut row = vec![127, 127, -127, 100, -100, -60];
        assert!(!mates.are_safe(&row));
        mates.settle(&mut row);
        assert!(mates.are_safe(&row));
        assert_eq!(row, [64, 64, -127, 100, -68, -60]);
    }

    #[test]
    fn a_row_with_large_neighbours_gets_a_larger_scale() {
        // Two outputs: large neighbours of one sign in the first, none in the second.
        let w: Vec<f32> = vec![1.0, 0.98, 0.31, -0.2, 0.05, -0.47, 1.0, -0.9, 0.31, -0.2, 0.05, -0.47];
        let rows = WeightRows::of(&[2, 6], 0, false).expect("a matrix");
        let nearest = |s: f32| w.iter().map(|w| (w / s).round_ties_even() as i32).collect::<Vec<_>>();
        let mut scales = vec![1.0 / 127.0; 2];
        let mut codes = nearest(scales[0]);
        assert!(!rows.are_safe(&codes));
        let kept = rows.settled(&w, (-127, 127), &scales, &codes);
        assert!(kept.is_none(), "a row of six is no small part of two");
        // Many rows that are safe make up for one that is not.
        let many: Vec<f32> = w[..6].iter().chain(w[6..].iter().cycle().take(6 * 99)).copied().collect();
        let rows = WeightRows::of(&[100, 6], 0, false).expect("a matrix");
        let nearest: Vec<i32> = many.iter().map(|w| (w * 127.0).round_ties_even() as i32).collect();
        scales = vec![1.0 / 127.0; 100];
        (scales, codes) = rows.settled(&many, (-127, 127), &scales, &nearest).expect("worth it");
        assert!(rows.are_safe(&codes));
        assert_eq!((scales[1], &codes[6..]), (1.0 / 127.0, &nearest[6..]));
        let worst = (0..6).map(|i| (w[i] - codes[i] as f32 * scales[0]).abs()).fold(0.0, f32::max);
        assert!(worst <= 1.0 / 127.0, "{worst}");
    }
}
