//! The program's allocator: mimalloc (the system's without the feature `cli`), with a count of what is live.
//!
//! Engines make and drop thousands of buffers for each sample, on several threads; mimalloc spends a tenth less of the whole
//! run on them than glibc's allocator, and leaves less memory in pieces.

#[cfg(not(feature = "cli"))]
use std::alloc::System as Heap;
use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::sync::atomic::{AtomicIsize, Ordering};

#[cfg(feature = "cli")]
use mimalloc::MiMalloc as Heap;

use super::watch;

/// Live bytes of the process, up to [`BATCH`] for each thread.
static LIVE: AtomicIsize = AtomicIsize::new(0);

/// The most that were.
static MOST: AtomicIsize = AtomicIsize::new(0);

/// Small allocations are counted together, so that threads do not wait for each other.
const BATCH: isize = 1 << 18;

thread_local! {
    /// Bytes this thread has taken and not yet counted. Constant and without a destructor: using it allocates nothing.
    static OWED: Cell<isize> = const { Cell::new(0) };
}

/// An allocator that tells the [watchdog](super::Watchdog) when more than the budget is live, and waits for
/// the end then. For `#[global_allocator]` of a program; a library's user keeps their own.
pub struct Counting;

/// Counts a change of so many bytes, made for one request.
#[inline]
fn count(change: isize) {
    let owed = OWED.get() + change;
    if owed.abs() < BATCH {
        OWED.set(owed);
        return;
    }
    OWED.set(0);
    let live = LIVE.fetch_add(owed, Ordering::Relaxed) + owed;
    MOST.fetch_max(live, Ordering::Relaxed);
    if change > 0 && live > 0 && live as usize > super::limit() && !watch::is_exempt() {
        watch::out_of_memory(live as usize, change as usize);
    }
}

/// `mi_option_purge_delay` (milliseconds) in the header of mimalloc, version 3, for which the binding has no name.
#[cfg(feature = "cli")]
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// Keeps memory that was freed for what is allocated next, until [`give_back`].
///
/// Each sample needs the buffers of the one before it. Given back in between, they are cleared page by page every time: a
/// tenth of all processor time.
pub fn keep_freed() {
    // SAFETY: the option exists, and setting it touches nothing else. What the environment says stands.
    #[cfg(feature = "cli")]
    unsafe {
        libmimalloc_sys::mi_option_set_default(PURGE_DELAY, 1_000_000_000);
    }
}

/// The most bytes that may have been live before what is kept is given back.
#[cfg(feature = "cli")]
const KEPT: isize = 1 << 30;

/// Gives memory that was freed and is kept for later back to the system, after a stage whose buffers the next one has no use
/// for. Each thread keeps what it freed, so those of rayon, which outlive a stage, are asked as well: it waits for them.
///
/// Only of a program that takes much: to take the memory again costs the next stage more than the little saves anybody (of
/// DeiT-tiny's compile time a tenth).
pub fn give_back() {
    #[cfg(feature = "cli")]
    if MOST.load(Ordering::Relaxed) > KEPT {
        // SAFETY: it touches no memory that is in use, whichever allocator the program has.
        let collect = || unsafe { libmimalloc_sys::mi_collect(true) };
        rayon::broadcast(|_| collect());
        collect();
    }
}

// SAFETY: every call is handed to the allocator below with the arguments it came with; counting touches no memory of
// the caller, does not allocate and does not unwind.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { Heap.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps `alloc_zeroed`'s contract.
        unsafe { Heap.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps `dealloc`'s contract, and `ptr` came from the same.
        unsafe { Heap.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // While the bytes move, both are there.
        let (more, less) = if size > layout.size() { (size, layout.size()) } else { (0, layout.size() - size) };
        count(more as isize);
        // SAFETY: the caller keeps `realloc`'s contract, and `ptr` came from the same.
        let to = unsafe { Heap.realloc(ptr, layout, size) };
        count(-(less as isize));
        to
    }
}
