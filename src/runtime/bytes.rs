//! A table of 256 bytes looked up for every byte of a slice.

/// `to[i] = table[from[i]]`, as far as both reach.
pub fn look_up(table: &[u8; 256], from: &[u8], to: &mut [u8]) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if is_x86_feature_detected!("avx512vbmi") && is_x86_feature_detected!("avx512bw") {
        // SAFETY: the processor has the instructions.
        return unsafe { x86::look_up(table, from, to) };
    }
    plain(table, from, to);
}

fn plain(table: &[u8; 256], from: &[u8], to: &mut [u8]) {
    from.iter().zip(to).for_each(|(x, y)| *y = table[*x as usize]);
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
mod x86 {
    use std::arch::x86_64::*;

    /// Sixty-four bytes at a time: the table is four registers, of which two instructions look up in one half each.
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    pub fn look_up(table: &[u8; 256], from: &[u8], to: &mut [u8]) {
        let n = from.len().min(to.len());
        // SAFETY: the table has four times 64 bytes, and loads need no alignment.
        let t: [__m512i; 4] = std::array::from_fn(|i| unsafe { _mm512_loadu_si512(table.as_ptr().add(64 * i).cast()) });
        for at in (0..n).step_by(64) {
            let mask = if n - at < 64 { (1u64 << (n - at)) - 1 } else { u64::MAX };
            // SAFETY: `at` is less than either length; bytes that the mask leaves out are not touched.
            unsafe {
                let x = _mm512_maskz_loadu_epi8(mask, from.as_ptr().add(at).cast());
                // Of the index seven bits count here, and the eighth tells the halves apart.
                let low = _mm512_permutex2var_epi8(t[0], x, t[1]);
                let high = _mm512_permutex2var_epi8(t[2], x, t[3]);
                let y = _mm512_mask_blend_epi8(_mm512_movepi8_mask(x), low, high);
                _mm512_mask_storeu_epi8(to.as_mut_ptr().add(at).cast(), mask, y);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every byte at every place of a register, and every length of a rest; nothing after the end is touched.
    #[test]
    fn every_byte_at_every_place() {
        let table: [u8; 256] = std::array::from_fn(|i| (i * 167 + 13) as u8);
        for shift in 0..64 {
            let from: Vec<u8> = (0..256 + 63).map(|i: usize| (i + shift) as u8).collect();
            for n in [0, 1, 63, 64, 65, 127, 197, 256 + shift, 256 + 63] {
                let mut to = vec![99u8; from.len()];
                look_up(&table, &from, &mut to[..n]);
                let want: Vec<u8> = from[..n].iter().map(|x| table[*x as usize]).collect();
                assert_eq!(to[..n], want);
                assert!(to[n..].iter().all(|b| *b == 99));
            }
        }
        let mut to = vec![0u8; 300];
        look_up(&table, &[1, 2], &mut to);
        assert_eq!(to[..3], [table[1], table[2], 0]);
    }
}
