//! The program's allocator: the system's, with a count of what is live.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicIsize, Ordering};

use super::watch;

/// Live bytes of the process, up to [`BATCH`] for each thread.
static LIVE: AtomicIsize = AtomicIsize::new(0);

/// Small allocations are counted together, so that threads do not wait for each other.
const BATCH: isize = 1 << 18;

thread_local! {
    /// Bytes this thread has taken and not yet counted. Constant and without a destructor: using it allocates nothing.
    static OWED: Cell<isize> = const { Cell::new(0) };
}

/// The system's allocator, which tells the [watchdog](super::Watchdog) when more than the budget is live, and waits for
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
    if change > 0 && live > 0 && live as usize > super::memory() && !watch::is_exempt() {
        watch::out_of_memory(live as usize, change as usize);
    }
}

// SAFETY: every call is handed to the system's allocator with the arguments it came with; counting touches no memory of
// the caller, does not allocate and does not unwind.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps `alloc_zeroed`'s contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps `dealloc`'s contract, and `ptr` came from `System`.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: the caller keeps `realloc`'s contract, and `ptr` came from `System`.
        unsafe { System.realloc(ptr, layout, size) }
    }
}
