//! The innermost loops: one tile of the product, exact in 32 bits.
//!
//! Every sum is the sum of products of codes modulo 2^32, with no saturation on the way: the 16-bit kernel multiplies
//! differences of at most 255, so a pair of products stays below 2^18; the VNNI instruction adds four products of eight
//! bits to the 32-bit sum at once, and the plain form of it (`vpdpbusd`, not `vpdpbusds`) wraps as integers do.

use super::isa::Isa;

/// A kernel: `groups` groups along the depth, the left operand with the bytes from row to row and from group to group, a
/// panel of the right one, what the sums of each column begin with, and where the tile goes, row after row.
///
/// Kernels of 16-bit integers read packed panels, whose steps they know.
///
/// # Safety
/// The processor has the instructions; `a` leads to `groups` groups of as many rows as [`Isa::shape`] tells, `b` to a panel
/// of as many groups, `init` holds a number per column, and `out` has room for a whole tile.
pub type Kernel =
    unsafe fn(groups: usize, a: *const u8, row: usize, step: usize, b: *const u8, init: *const i32, out: *mut i32);

/// The kernel of a set of instructions.
///
/// # Panics
/// If this processor lacks the instructions.
pub fn kernel(isa: Isa) -> Kernel {
    assert!(isa.runs_here(), "this processor has no {}", isa.name());
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Sse2 => x86::sse2,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => x86::avx2,
        #[cfg(target_arch = "x86_64")]
        Isa::AvxVnni => x86::avxvnni,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni => x86::avx512vnni,
        _ => portable,
    }
}

/// # Safety
/// As [`Kernel`].
unsafe fn portable(
    groups: usize,
    a: *const u8,
    _row: usize,
    _step: usize,
    b: *const u8,
    init: *const i32,
    out: *mut i32,
) {
    const ROWS: usize = 4;
    const COLS: usize = 8;
    // SAFETY: the caller vouches for the lengths; arrays of 16-bit integers are read without regard to alignment.
    unsafe {
        let start = init.cast::<[i32; COLS]>().read_unaligned();
        let mut sums = [start; ROWS];
        for k in 0..groups {
            let x = a.cast::<[i16; ROWS]>().add(k).read_unaligned();
            let y = b.cast::<[i16; COLS]>().add(k).read_unaligned();
            for (row, x) in sums.iter_mut().zip(x) {
                for (s, y) in row.iter_mut().zip(y) {
                    *s = s.wrapping_add(x as i32 * y as i32);
                }
            }
        }
        out.cast::<[[i32; COLS]; ROWS]>().write_unaligned(sums);
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use std::arch::x86_64::*;

    /// A kernel of two vectors a row: `$sum` multiplies a broadcast group of the left operand with a vector of groups of
    /// the right one and adds to a vector of sums. `packed` kernels know how far it is from row to row.
    macro_rules! kernel {
        ($(#[$doc:meta])* $name:ident, $features:literal, $layout:ident, $rows:literal, $vector:ty, $lanes:literal,
         $load:ident, $store:ident, $set1:ident, |$acc:ident, $x:ident, $y:ident| $sum:expr) => {
            $(#[$doc])*
            ///
            /// # Safety
            /// As [`Kernel`](super::Kernel).
            #[target_feature(enable = $features)]
            pub unsafe fn $name(
                groups: usize,
                a: *const u8,
                row: usize,
                step: usize,
                b: *const u8,
                init: *const i32,
                out: *mut i32,
            ) {
                let (row, step) = kernel!(@$layout $rows row step);
                // SAFETY: the caller vouches for the lengths; loads and stores need no alignment.
                unsafe {
                    let start = [$load(init.cast()), $load(init.add($lanes).cast())];
                    let mut sums = [start; $rows];
                    // Three rows share a pointer: so many addresses fit into the processor's registers.
                    let mut a: [*const u8; $rows / 3 + 1] = std::array::from_fn(|i| a.wrapping_add(3 * i * row));
                    let mut b = b.cast::<$vector>();
                    for _ in 0..groups {
                        let right = [$load(b.cast()), $load(b.add(1).cast())];
                        for (i, sums) in sums.iter_mut().enumerate() {
                            let $x = $set1(a[i / 3].add(i % 3 * row).cast::<i32>().read_unaligned());
                            for ($acc, $y) in sums.iter_mut().zip(right) {
                                *$acc = $sum;
                            }
                        }
                        a = a.map(|a| a.wrapping_add(step));
                        b = b.add(2);
                    }
                    for (i, row) in sums.iter().enumerate() {
                        $store(out.add(i * 2 * $lanes).cast(), row[0]);
                        $store(out.add((i * 2 + 1) * $lanes).cast(), row[1]);
                    }
                }
            }
        };
        (@packed $rows:literal $row:ident $step:ident) => {{
            let _ = ($row, $step);
            (4, 4 * $rows)
        }};
        (@rows $rows:literal $row:ident $step:ident) => { ($row, $step) };
    }

    kernel! {
        /// 4 x 8, pairs of 16-bit integers.
        sse2, "sse2", packed, 4, __m128i, 4, _mm_loadu_si128, _mm_storeu_si128, _mm_set1_epi32,
        |acc, x, y| _mm_add_epi32(*acc, _mm_madd_epi16(x, y))
    }
    kernel! {
        /// 6 x 16, pairs of 16-bit integers.
        avx2, "avx2", packed, 6, __m256i, 8, _mm256_loadu_si256, _mm256_storeu_si256, _mm256_set1_epi32,
        |acc, x, y| _mm256_add_epi32(*acc, _mm256_madd_epi16(x, y))
    }
    kernel! {
        /// 6 x 16, four unsigned codes by four signed ones.
        avxvnni, "avx2,avxvnni", rows, 6, __m256i, 8, _mm256_loadu_si256, _mm256_storeu_si256, _mm256_set1_epi32,
        |acc, x, y| _mm256_dpbusd_avx_epi32(*acc, x, y)
    }
    kernel! {
        /// 12 x 32, four unsigned codes by four signed ones.
        avx512vnni, "avx2,avx512f,avx512bw,avx512vnni", rows, 12, __m512i, 16, _mm512_loadu_si512, _mm512_storeu_si512,
        _mm512_set1_epi32, |acc, x, y| _mm512_dpbusd_epi32(*acc, x, y)
    }
    #[cfg(test)]
    kernel! {
        /// [`avxvnni`] with the encoding of AVX-512, so that its loop is tested on processors that have only this one.
        avxvnni_as_avx512, "avx2,avx512f,avx512vl,avx512vnni", rows, 6, __m256i, 8, _mm256_loadu_si256, _mm256_storeu_si256,
        _mm256_set1_epi32, |acc, x, y| _mm256_dpbusd_epi32(*acc, x, y)
    }
}
