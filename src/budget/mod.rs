//! Limits of memory and time, in one place: what a computation may take, asked before it is begun.
//!
//! *Memory.* [`memory`] is the budget of the process in bytes: by default a share of what the machine has, less for small
//! files (a few kilobytes that ask for gigabytes are a mistake or an attack), and what `--memory` says. Whoever is about to
//! allocate by a number out of a file asks [`afford`] first, so that the error names the value and the numbers. What is
//! not asked for (the runtime's own buffers) is counted by [`Counting`], the program's allocator.
//!
//! *Time.* [`Watchdog`] ends a process that takes more memory than its budget or makes no progress for longer than its
//! time; [`step`] and [`progress`] tell it what is being done.
//!
//! *Panics.* [`foreign`] makes an error of a panic in another crate.
//!
//! *Sizes.* [`elements`] multiplies sizes without wrapping; [`MOST_ELEMENTS`] is the most that any value may have.

mod counting;
mod foreign;
mod stop;
mod watch;

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

pub use counting::{Counting, give_back, keep_freed};
pub use foreign::{foreign, panic_message};
pub use stop::Stop;
pub use watch::{
    Exceeded, Limit, Watchdog, current, current_file, default_patience, file, patience, progress, set_patience, step,
};

/// Elements a value may have at most. Products of sizes below it, and of the bytes they take, fit into 64 bits.
pub const MOST_ELEMENTS: u64 = 1 << 48;

/// The memory budget in bytes that was asked for; [`UNSET`] until [`set_memory`] is called.
static MEMORY: AtomicUsize = AtomicUsize::new(UNSET);
const UNSET: usize = usize::MAX;

/// A computation that would take more memory than the budget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverBudget {
    /// What would take it: `value \`x\` (float[1, 3, 30000, 30000])`.
    pub what: String,
    /// Bytes it would take; `None` if the number fits no word.
    pub needs: Option<u64>,
    /// Bytes the budget has.
    pub budget: u64,
}

impl fmt::Display for OverBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let needs = self.needs.map_or_else(|| "more bytes than can be counted".to_owned(), readable);
        write!(
            f,
            "{} needs {needs} of memory, and the budget is {}; if the sizes are meant, raise it with --memory \
             (a library: `budget::set_memory`)",
            self.what,
            readable(self.budget)
        )
    }
}

impl std::error::Error for OverBudget {}

/// The memory budget in bytes: what [`set_memory`] said, otherwise nine tenths of the machine's memory, so that a library
/// refuses what cannot be allocated as the program does.
pub fn memory() -> usize {
    static MACHINE: OnceLock<usize> = OnceLock::new();
    match limit() {
        UNSET => *MACHINE.get_or_init(|| usize::try_from(machine_memory() / 10 * 9).unwrap_or(usize::MAX)),
        asked => asked,
    }
}

/// What the allocator holds the process to: nothing unless it was asked for. (It must not read files to find out.)
fn limit() -> usize {
    MEMORY.load(Ordering::Relaxed)
}

/// Sets the memory budget of the process.
pub fn set_memory(bytes: usize) {
    MEMORY.store(bytes, Ordering::Relaxed);
}

/// Asks whether a computation may take so much memory.
///
/// # Errors
/// [`OverBudget`] if it may not; `needs` is `None` for a product that overflowed.
pub fn afford(needs: Option<u64>, what: impl FnOnce() -> String) -> Result<(), OverBudget> {
    let budget = memory() as u64;
    match needs {
        Some(n) if n <= budget => Ok(()),
        _ => Err(OverBudget { what: what(), needs, budget }),
    }
}

/// The product of sizes; `None` if one is negative or the product of those that are not 0 exceeds [`MOST_ELEMENTS`]. (A
/// size of 0 does not excuse the others: parts of the product are used as well.)
pub fn elements(dims: impl IntoIterator<Item = i64>) -> Option<u64> {
    let (mut product, mut empty) = (1u64, false);
    for d in dims {
        let d = u64::try_from(d).ok()?;
        empty |= d == 0;
        product = product.checked_mul(d.max(1)).filter(|n| *n <= MOST_ELEMENTS)?;
    }
    Some(if empty { 0 } else { product })
}

/// A number of bytes as people read it: `640 MB`, `1.5 GB`.
pub fn readable(bytes: u64) -> String {
    let (unit, by) = match bytes {
        0..1_000 => return format!("{bytes} bytes"),
        1_000..1_000_000 => ("kB", 1e3),
        1_000_000..1_000_000_000 => ("MB", 1e6),
        1_000_000_000..1_000_000_000_000 => ("GB", 1e9),
        _ => ("TB", 1e12),
    };
    let n = bytes as f64 / by;
    if n < 10.0 { format!("{n:.1} {unit}") } else { format!("{n:.0} {unit}") }
}

/// A number of bytes as people write it: `800M`, `1.5G`, `2000000`.
///
/// # Errors
/// If it is no such number, or not positive.
pub fn parse(text: &str) -> Result<usize, String> {
    match bytes(text) {
        Some(n) if n <= 1e15 => Ok(n as usize),
        _ => Err("give a size such as 800M or 4G".to_owned()),
    }
}

/// Bytes of a text: a number, alone or with a unit. `k`, `M`, `G` and `T` are powers of 1000, `Ki`, `Mi`, `Gi` and `Ti` of 1024;
/// neither case nor a `B` at the end matters. `None` if it is no such number, or less than one byte.
pub fn bytes(text: &str) -> Option<f64> {
    let t = text.trim().to_ascii_lowercase();
    let t = t.strip_suffix('b').unwrap_or(&t);
    let (t, step) = t.strip_suffix('i').map_or((t, 1000.0), |t| (t, 1024.0));
    let power = "kmgt".chars().position(|unit| t.ends_with(unit)).map(|p| p as i32 + 1);
    // `5i` is no number of bytes.
    let (digits, power) = match power {
        Some(p) => (&t[..t.len() - 1], p),
        None if step == 1000.0 => (t, 0),
        None => return None,
    };
    let n = digits.trim().parse::<f64>().ok()? * f64::powi(step, power);
    (1.0..f64::INFINITY).contains(&n).then_some(n)
}

/// What a process gets without a word: enough for a model of `file` bytes on `threads` threads, and nine tenths of the
/// machine's memory at most.
pub fn default_memory(file: u64, threads: usize) -> usize {
    const LEAST: u64 = 720_000_000;
    const A_THREAD: u64 = 64_000_000;
    /// Fitting, weights of several forms and sums of products take a multiple of the file.
    const A_BYTE: u64 = 120;
    let of_threads = A_THREAD.saturating_mul((threads as u64).saturating_sub(8));
    let wanted = file.saturating_mul(A_BYTE).saturating_add(of_threads).saturating_add(LEAST);
    usize::try_from(wanted.min(machine_memory() / 10 * 9)).unwrap_or(usize::MAX)
}

/// Memory of the machine, or of the container the process runs in; unlimited where it is not known.
fn machine_memory() -> u64 {
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let cgroup = limits.iter().find_map(|p| number(p)).unwrap_or(u64::MAX);
    let all = std::fs::read_to_string("/proc/meminfo").ok().and_then(|t| {
        let line = t.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    });
    cgroup.min(all.unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_do_not_wrap() {
        assert_eq!(elements([2, 3, 4]), Some(24));
        assert_eq!(elements([]), Some(1));
        assert_eq!(elements([1 << 32, 1 << 32]), None);
        assert_eq!(elements([16, 4_294_967_312]), Some(16 * 4_294_967_312));
        assert_eq!(elements([-1, 3]), None);
        // Parts of the product are used as well.
        assert_eq!(elements([0, 5]), Some(0));
        assert_eq!(elements([0, 1 << 40, 1 << 40]), None);
    }

    #[test]
    fn sizes_are_read_and_written_as_people_do() {
        assert_eq!(parse("800M"), Ok(800_000_000));
        assert_eq!(parse("1.5 G"), Ok(1_500_000_000));
        assert_eq!(parse("4GB"), Ok(4_000_000_000));
        assert_eq!(parse("2GiB"), Ok(2 << 30));
        assert_eq!(parse("2 mi"), Ok(2 << 20));
        assert_eq!(parse("700kb"), Ok(700_000));
        assert_eq!(parse("1000"), Ok(1000));
        for bad in ["", "G", "-1G", "0", "nan", "inf", "1e30", "x", "5i", "5iB", "5bb", "1e16"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert_eq!(readable(999), "999 bytes");
        assert_eq!(readable(1_500_000_000), "1.5 GB");
        assert_eq!(readable(64_000_000), "64 MB");
    }

    #[test]
    fn small_files_get_less_than_large_ones() {
        assert!(default_memory(1_000, 2) <= default_memory(20_000_000, 2));
        assert!(default_memory(1_000, 2) < 1_000_000_000);
        assert!(default_memory(u64::MAX, 64) as u64 <= machine_memory());
    }

    #[test]
    fn a_library_has_the_machine_for_a_budget() {
        let refused = afford(Some(1 << 60), || "value `x`".into()).unwrap_err();
        assert!(refused.budget <= machine_memory() && refused.needs == Some(1 << 60), "{refused}");
        assert_eq!(afford(Some(1 << 20), String::new), Ok(()));
        assert_eq!(limit(), UNSET);
    }

    #[test]
    fn what_can_not_be_afforded_names_both_numbers() {
        let e = OverBudget { what: "value `x`".into(), needs: Some(4_000_000_000), budget: 720_000_000 }.to_string();
        assert!(e.contains("`x`") && e.contains("4.0 GB") && e.contains("720 MB") && e.contains("--memory"), "{e}");
    }
}
