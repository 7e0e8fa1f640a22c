//! Which instructions a product uses.

use std::sync::OnceLock;

/// The environment variable that holds products to one set of instructions: the [`Isa::name`] of one that the processor
/// has. It lets a fast machine be timed as a plain one.
pub const VARIABLE: &str = "FQVIT_ISA";

/// Sets of instructions that there is a kernel for, from the plainest to the fastest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Isa {
    /// No instructions of one processor: what the compiler makes of plain loops.
    Portable,
    /// Any x86: pairs of 16-bit integers, multiplied and added into 32 bits.
    Sse2,
    /// x86 with AVX2: pairs of 16-bit integers, multiplied and added into 32 bits.
    Avx2,
    /// x86 with AVX-VNNI: groups of four codes in 256 bits.
    AvxVnni,
    /// x86 with AVX-512 VNNI: groups of four codes in 512 bits.
    Avx512Vnni,
}

/// How operands are laid out for a kernel, and how large a tile it computes at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Rows and columns of a tile.
    pub rows: usize,
    pub cols: usize,
    /// Neighbours along the summed axis that lie together.
    pub group: usize,
    /// Whether operands are packed as bytes (as they are, with a correction afterwards) or as 16-bit integers that have
    /// the zero point taken off already.
    pub bytes: bool,
}

impl Isa {
    /// From the plainest to the widest.
    pub const ALL: [Isa; 5] = [Isa::Portable, Isa::Sse2, Isa::Avx2, Isa::AvxVnni, Isa::Avx512Vnni];

    /// What reports call it.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Sse2 => "sse2",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avxvnni",
            Isa::Avx512Vnni => "avx512vnni",
        }
    }

    /// The tile that its kernel computes at once.
    pub fn shape(self) -> Shape {
        let shape = |rows, cols, group, bytes| Shape { rows, cols, group, bytes };
        match self {
            Isa::Portable => shape(4, 8, 1, false),
            Isa::Sse2 => shape(4, 8, 2, false),
            Isa::Avx2 => shape(6, 16, 2, false),
            Isa::AvxVnni => shape(6, 16, 4, true),
            Isa::Avx512Vnni => shape(12, 32, 4, true),
        }
    }

    /// Whether this processor has the instructions.
    pub fn runs_here(self) -> bool {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        {
            match self {
                Isa::Portable | Isa::Sse2 => true,
                Isa::Avx2 => is_x86_feature_detected!("avx2"),
                Isa::AvxVnni => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("avxvnni"),
                Isa::Avx512Vnni => {
                    is_x86_feature_detected!("avx2")
                        && is_x86_feature_detected!("avx512f")
                        && is_x86_feature_detected!("avx512bw")
                        && is_x86_feature_detected!("avx512vnni")
                }
            }
        }
        #[cfg(not(all(target_arch = "x86_64", not(miri))))]
        {
            self == Isa::Portable
        }
    }

    /// Those this processor has.
    pub fn here() -> impl Iterator<Item = Isa> {
        Isa::ALL.into_iter().filter(|i| i.runs_here())
    }

    /// The fastest this processor has, or the one that [`VARIABLE`] names. Asked once.
    pub fn best() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| {
            let asked = std::env::var(VARIABLE).ok();
            let fastest = Isa::here().last().unwrap_or(Isa::Portable);
            asked.and_then(|name| Isa::here().find(|i| i.name() == name)).unwrap_or(fastest)
        })
    }
}
