//! Whether there is a standard output at all. Before `main`, Rust opens `/dev/null` in the place of one that was closed, so
//! that what is written goes nowhere without an error; therefore it is looked at before that.

use std::sync::atomic::{AtomicBool, Ordering};

/// False if the process was started with a closed standard output, as by `>&-`.
static OPEN: AtomicBool = AtomicBool::new(true);

/// True if the process was started with a standard output, even if that is `/dev/null`.
pub fn has_output() -> bool {
    #[cfg(any(target_os = "linux", target_os = "macos"))]
    std::hint::black_box(early::LOOK);
    OPEN.load(Ordering::Relaxed)
}

#[cfg(any(target_os = "linux", target_os = "macos"))]
mod early {
    use std::sync::atomic::Ordering;

    extern "C" fn look() {
        // SAFETY: asks for the flags of a descriptor, which changes nothing and is allowed before `main`.
        let closed = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) } == -1;
        super::OPEN.store(!closed, Ordering::Relaxed);
    }

    /// The loader calls what stands in this section before it calls `main`.
    // SAFETY: the section holds pointers to functions of this type, which the C library calls with arguments that this one
    // does not look at.
    #[used]
    #[cfg_attr(target_os = "linux", unsafe(link_section = ".init_array"))]
    #[cfg_attr(target_os = "macos", unsafe(link_section = "__DATA,__mod_init_func"))]
    pub static LOOK: extern "C" fn() = look;
}
