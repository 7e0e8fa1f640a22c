use proptest::prelude::*;

use super::*;

/// Codes that are never dull: extremes and everything between.
fn codes(n: usize, seed: u32) -> Vec<u8> {
    let mut x = seed | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        x
    };
    (0..n)
        .map(|_| match next() % 4 {
            0 => [0, 255, 128, 127][(next() % 4) as usize],
            _ => (next() >> 11) as u8,
        })
        .collect()
}

/// One operand of a test: signed or not, stored along the depth or across it, one zero point or many.
#[derive(Clone, Debug)]
struct Case {
    signed: bool,
    across: bool,
    zero: Vec<i32>,
    codes: Vec<u8>,
}

impl Case {
    fn new(lines: usize, depth: usize, signed: bool, across: bool, zeros: usize, seed: u32) -> Case {
        let wide = |b: &u8| if signed { *b as i8 as i32 } else { *b as i32 };
        let many = codes(lines, seed ^ 77).iter().map(wide).collect::<Vec<_>>();
        let zero = match zeros {
            0 => vec![0],
            1 => vec![wide(&codes(1, seed ^ 77)[0])],
            2 => vec![if signed { 0 } else { 128 }],
            _ => many,
        };
        Case { signed, across, zero, codes: codes(lines * depth, seed) }
    }

    fn operand(&self, lines: usize, depth: usize) -> Operand<'_> {
        let (line_stride, depth_stride) = if self.across { (1, lines) } else { (depth, 1) };
        Operand { codes: &self.codes, signed: self.signed, lines, depth, line_stride, depth_stride, zero: &self.zero }
    }

    fn at(&self, x: Operand<'_>, line: usize, k: usize) -> i32 {
        let b = self.codes[line * x.line_stride + k * x.depth_stride];
        let zero = if self.zero.len() == 1 { self.zero[0] } else { self.zero[line] };
        (if self.signed { b as i8 as i32 } else { b as i32 }) - zero
    }
}

fn plain(a: &Case, b: &Case, (m, n, k): (usize, usize, usize)) -> Vec<i32> {
    let (x, y) = (a.operand(m, k), b.operand(n, k));
    let sum = |i: usize, j: usize| (0..k).fold(0i32, |s, t| s.wrapping_add(a.at(x, i, t).wrapping_mul(b.at(y, j, t))));
    (0..m * n).map(|at| sum(at / n, at % n)).collect()
}

type Multiply<'a> = &'a dyn Fn(Left<'_>, &Packed, &mut Scratch, &mut dyn FnMut(Strip<'_>));

fn usual(a: Left<'_>, b: &Packed, scratch: &mut Scratch, each: &mut dyn FnMut(Strip<'_>)) {
    multiply(a, b, scratch, each)
}

fn product(isa: Isa, with: Multiply<'_>, a: &Case, b: &Case, (m, n, k): (usize, usize, usize)) -> Vec<i32> {
    let (mut left, mut right, mut scratch) = (Packed::default(), Packed::default(), Scratch::default());
    // What an earlier, larger product left behind must not show.
    left.pack(isa, Side::Left, Case::new(m + 7, k + 5, true, false, 1, 5).operand(m + 7, k + 5));
    left.pack(isa, Side::Left, a.operand(m, k));
    right.pack(isa, Side::Right, b.operand(n, k));
    let mut multiplied = |left: Left<'_>| {
        let mut out = vec![i32::MIN; m * n];
        with(left, &right, &mut scratch, &mut |s| {
            assert_eq!((s.rows, s.sums.len()), (m, m * s.width));
            for (i, row) in s.sums.chunks_exact(s.width).enumerate() {
                out[i * n + s.first..][..s.cols].copy_from_slice(&row[..s.cols]);
            }
        });
        out
    };
    let out = multiplied(Left::Packed(&left));
    if let Some(rows) = Rows::of(isa, a.operand(m, k)) {
        assert_eq!(multiplied(Left::Rows(rows)), out, "{}: rows as they lie {:?}", isa.name(), (m, n, k));
    }
    out
}

fn check(isa: Isa, with: Multiply<'_>, a: &Case, b: &Case, size: (usize, usize, usize)) {
    assert_eq!(product(isa, with, a, b, size), plain(a, b, size), "{} {size:?}", isa.name());
}

/// Sizes around the tiles, every sign, every kind of zero point, rows and columns.
#[test]
fn every_kernel_is_exact() {
    let sizes: &[(usize, usize, usize)] = if cfg!(miri) {
        &[(5, 9, 5)]
    } else {
        &[(1, 1, 1), (5, 9, 3), (6, 16, 4), (13, 33, 9), (24, 64, 7), (7, 31, 130)]
    };
    for isa in Isa::here() {
        for size in sizes {
            for bits in 0..16u32 {
                for zeros in 0..4 {
                    let a = Case::new(size.0, size.2, bits & 1 > 0, bits & 2 > 0, zeros, bits + 1);
                    let b =
                        Case::new(size.1, size.2, bits & 4 > 0, bits & 8 > 0, (zeros + bits as usize) % 4, bits + 99);
                    check(isa, &usual, &a, &b, *size);
                }
            }
        }
    }
}

/// All pairs of codes at once: a sum of two terms with every code on either side, where 16 bits would saturate, and the
/// longest sum of the largest products.
#[test]
fn nothing_saturates() {
    // Miri is thousands of times slower: the ends and the middle.
    let all: Vec<u8> = if cfg!(miri) { vec![0, 1, 127, 128, 255] } else { (0..=255).collect() };
    let long = if cfg!(miri) { 40 } else { 40_000 };
    for isa in Isa::here() {
        for (sa, sb) in [(false, false), (false, true), (true, false), (true, true)] {
            let twice = |signed| Case {
                signed,
                across: false,
                zero: vec![0],
                codes: all.iter().flat_map(|b| [*b; 4]).collect(),
            };
            let (a, b) = (twice(sa), twice(sb));
            check(isa, &usual, &a, &b, (all.len(), all.len(), 4));
            let worst = |signed: bool, code: u8, zero| Case {
                signed,
                across: false,
                zero: vec![zero],
                codes: vec![code; long],
            };
            for (x, y) in [(0x80u8, 0x80u8), (0x7f, 0x80), (0xff, 0xff), (0, 0xff)] {
                let end = |signed: bool| if signed { 127 } else { 255 };
                check(isa, &usual, &worst(sa, x, 0), &worst(sb, y, end(sb)), (1, 1, long));
            }
        }
    }
}

#[test]
fn empty_sums_and_empty_matrices() {
    for isa in Isa::here() {
        let none = |lines, depth| Case::new(lines, depth, false, false, 1, 3);
        for size in [(3, 5, 0), (0, 5, 4), (3, 0, 4)] {
            let with_zero = |c: Case| Case { zero: vec![7], ..c };
            check(isa, &usual, &with_zero(none(size.0, size.2)), &with_zero(none(size.1, size.2)), size);
        }
    }
}

/// The loop for AVX-VNNI runs here even where only the other encoding of its instruction exists.
#[test]
#[cfg(all(target_arch = "x86_64", not(miri)))]
fn the_narrow_vnni_kernel_is_exact() {
    if !is_x86_feature_detected!("avx512vl") || !is_x86_feature_detected!("avx512vnni") {
        return;
    }
    let with = |a: Left<'_>, b: &Packed, s: &mut Scratch, each: &mut dyn FnMut(Strip<'_>)| {
        multiply_with(tile::x86::avxvnni_as_avx512, Isa::AvxVnni, a, b, s, each)
    };
    for bits in 0..16u32 {
        let size = (13, 35, 11);
        let a = Case::new(size.0, size.2, bits & 1 > 0, bits & 2 > 0, 3, bits + 1);
        let b = Case::new(size.1, size.2, bits & 4 > 0, bits & 8 > 0, 3, bits + 99);
        check(Isa::AvxVnni, &with, &a, &b, size);
    }
}

/// Rows are read as they lie where the instructions take bytes: unsigned, one after the other, and enough of them; whether
/// the depth is a whole number of groups or the slice goes on after it.
#[test]
fn rows_that_need_no_packing() {
    let codes = codes(12 * 9 + 3, 5);
    let x = Operand { codes: &codes, signed: false, lines: 12, depth: 9, line_stride: 9, depth_stride: 1, zero: &[0] };
    for isa in [Isa::AvxVnni, Isa::Avx512Vnni] {
        assert!(Rows::of(isa, x).is_some());
        assert!(Rows::of(isa, Operand { codes: &codes[..12 * 9 + 2], ..x }).is_none());
        assert!(Rows::of(isa, Operand { depth: 8, codes: &codes[..12 * 9 - 1], ..x }).is_some());
        assert!(Rows::of(isa, Operand { signed: true, ..x }).is_none());
        assert!(Rows::of(isa, Operand { lines: 5, ..x }).is_none());
        assert!(Rows::of(isa, Operand { depth: 4, line_stride: 1, depth_stride: 12, ..x }).is_none());
    }
    assert!(Rows::of(Isa::Avx2, x).is_none());
}

#[test]
#[should_panic(expected = "does not fit its slice")]
fn an_operand_that_leads_out_of_its_slice_is_refused() {
    let x = Operand { codes: &[0; 11], signed: false, lines: 3, depth: 4, line_stride: 4, depth_stride: 1, zero: &[0] };
    Packed::default().pack(Isa::Portable, Side::Left, x);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 64 }))]
    #[test]
    fn any_product(m in 0usize..30, n in 0usize..70, k in 0usize..40, bits in 0u32..16, za in 0usize..4, zb in 0usize..4, seed in any::<u32>()) {
        let a = Case::new(m, k, bits & 1 > 0, bits & 2 > 0, if m == 0 { 0 } else { za }, seed);
        let b = Case::new(n, k, bits & 4 > 0, bits & 8 > 0, if n == 0 { 0 } else { zb }, seed ^ 0x5555);
        let want = plain(&a, &b, (m, n, k));
        for isa in Isa::here() {
            prop_assert_eq!(product(isa, &usual, &a, &b, (m, n, k)), want.clone(), "{}", isa.name());
        }
    }
}
