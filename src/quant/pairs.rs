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

    pub fn len(&self) -> usize {
        self.0.len()
    }

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
pub struct Rows {
    mates: Mates,
    outs: usize,
    /// The outputs are the first axis.
    out_first: bool,
}

impl Rows {
    /// Of a weight of these sizes: a matrix, or a Conv's kernel `[outputs, inputs, ..spatial]`. `None` for other ranks.
    pub fn of(dims: &[usize], out_axis: usize, conv: bool) -> Option<Rows> {
        let outs = *dims.get(out_axis)?;
        let mates = match dims {
            [_, inputs, spatial @ ..] if conv => Mates::of_kernel(*inputs, spatial.iter().product()),
            [_, _] => Mates::of_row(dims[1 - out_axis]),
            _ => return None,
        };
        Some(Rows { mates, outs, out_first: out_axis == 0 })
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

    /// See [`Mates::settle`].
    pub fn settle(&self, codes: &mut [i32]) {
        for o in 0..self.outs {
            let mut row = self.row(codes, o);
            self.mates.settle(&mut row);
            row.iter().enumerate().for_each(|(i, q)| codes[self.at(o, i)] = *q);
        }
    }
}

/// True if two neighbours can not saturate.
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
}
