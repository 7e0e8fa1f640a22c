//! Loops over slices, compiled once for any processor and once for those with wider vectors.
//!
//! All versions are the same Rust code and compute the same bits: each element is computed by itself, and the compiler
//! never contracts a product and a sum.

/// Defines functions whose bodies are compiled for AVX2 and for AVX-512 as well, and chosen when called.
macro_rules! wide {
    ($($(#[$doc:meta])* $vis:vis fn $name:ident $(<$g:ident: $bound:path>)? ($($arg:ident: $ty:ty),* $(,)?) $(-> $out:ty)? $body:block)*) => {$(
        $(#[$doc])*
        $vis fn $name $(<$g: $bound>)? ($($arg: $ty),*) $(-> $out)? {
            #[inline(always)]
            fn plain $(<$g: $bound>)? ($($arg: $ty),*) $(-> $out)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn avx2 $(<$g: $bound>)? ($($arg: $ty),*) $(-> $out)? {
                    plain($($arg),*)
                }
                #[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512 $(<$g: $bound>)? ($($arg: $ty),*) $(-> $out)? {
                    plain($($arg),*)
                }
                if std::arch::is_x86_feature_detected!("avx512f")
                    && std::arch::is_x86_feature_detected!("avx512vl")
                    && std::arch::is_x86_feature_detected!("avx512bw")
                    && std::arch::is_x86_feature_detected!("avx512dq")
                    && std::arch::is_x86_feature_detected!("avx2")
                {
                    // SAFETY: the processor has all of these.
                    return unsafe { avx512($($arg),*) };
                }
                if std::arch::is_x86_feature_detected!("avx2") {
                    // SAFETY: the processor has AVX2.
                    return unsafe { avx2($($arg),*) };
                }
            }
            plain($($arg),*)
        }
    )*};
}
pub(crate) use wide;
