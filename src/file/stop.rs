//! The end of a program that is told to stop, or whose input is cut short under it.
//!
//! A signal handler may do next to nothing. Here it writes one byte into a pipe; a thread of its own waits there, removes
//! what has no name yet and ends the program. While a [`Batch`](super::Batch) takes its places the thread waits.

use std::path::PathBuf;

/// Why the program ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A signal that asks a program to end, by number.
    Signal(i32),
    /// A mapped file lost the bytes that were read just now; which one, if it is one of this program's.
    CutShort(Option<PathBuf>),
}

/// The end of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    pub cause: Cause,
    /// Files that had been written by then.
    pub written: Vec<PathBuf>,
}

impl Ending {
    /// 128 and the number of the signal, as shells have it; 1 for an input that was cut short, which is an error.
    pub fn status(&self) -> i32 {
        match self.cause {
            Cause::Signal(n) => 128 + n,
            Cause::CutShort(_) => 1,
        }
    }
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.cause {
            Cause::Signal(n) => {
                write!(f, "stopped by {}", name_of(*n))?;
            }
            Cause::CutShort(Some(p)) => {
                write!(
                    f,
                    "{} was cut short while it was read; wait until it is complete, and start again",
                    p.display()
                )?;
            }
            Cause::CutShort(None) => {
                f.write_str("memory of a file cannot be read any more (SIGBUS): is a disk full?")?
            }
        }
        match &self.written[..] {
            [] => f.write_str("; nothing was written"),
            all => {
                let names: Vec<_> = all.iter().map(|p| p.display().to_string()).collect();
                write!(f, "; written before that: {}", names.join(", "))
            }
        }
    }
}

/// Signals that ask a program to end, for whatever reason: its user, its terminal, its limits, its clock.
#[cfg(unix)]
const ENDING: [(i32, &str); 8] = [
    (libc::SIGHUP, "SIGHUP"),
    (libc::SIGINT, "SIGINT"),
    (libc::SIGQUIT, "SIGQUIT"),
    (libc::SIGTERM, "SIGTERM"),
    (libc::SIGALRM, "SIGALRM"),
    (libc::SIGXCPU, "SIGXCPU"),
    (libc::SIGUSR1, "SIGUSR1"),
    (libc::SIGUSR2, "SIGUSR2"),
];
#[cfg(not(unix))]
const ENDING: [(i32, &str); 0] = [];

fn name_of(signal: i32) -> &'static str {
    ENDING.iter().find(|(n, _)| *n == signal).map_or("a signal", |(_, name)| name)
}

/// From now on SIGBUS and every signal that asks a program to end, such as SIGINT, SIGTERM, SIGHUP and SIGXCPU, end it in order: temporary files are removed, `tell` is called,
/// and the exit status is [`Ending::status`]. Signals that the program was started to ignore (`nohup`) stay ignored. To be
/// called once, by a program and not by a library.
///
/// # Errors
/// If the system has no pipe or thread left.
#[cfg(unix)]
pub fn watch(tell: impl Fn(&Ending) + Send + 'static) -> std::io::Result<()> {
    unix::watch(tell)
}

/// Nothing: this system ends programs in its own way.
///
/// # Errors
/// None.
#[cfg(not(unix))]
pub fn watch(_: impl Fn(&Ending) + Send + 'static) -> std::io::Result<()> {
    Ok(())
}

/// Removes the temporary files of this process, for a program that ends at once.
pub fn abandon() {
    super::temp::hold().remove_temps();
}

#[cfg(unix)]
mod unix {
    use std::io::{self, Read};
    use std::mem::MaybeUninit;
    use std::os::fd::IntoRawFd;
    use std::ptr;
    use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

    use super::{Cause, Ending};
    use crate::file::{read, temp};

    /// The writing end of the pipe.
    static WAKE: AtomicI32 = AtomicI32::new(-1);

    /// Where the byte is that could not be read.
    static FAULT: AtomicUsize = AtomicUsize::new(0);

    /// Puts the signal's number into the pipe. Async-signal-safe: one atomic load and write(2).
    fn wake(signal: libc::c_int) {
        let byte = signal as u8;
        // SAFETY: the descriptor is never closed, and one byte is read from a live variable. A full pipe or an error is of
        // no matter: then the thread has been woken already.
        unsafe { libc::write(WAKE.load(Ordering::SeqCst), ptr::from_ref(&byte).cast(), 1) };
    }

    extern "C" fn on_stop(signal: libc::c_int) {
        // SAFETY: errno belongs to the code that was interrupted; its address is valid for the thread's life.
        unsafe {
            let errno = errno();
            let saved = *errno;
            wake(signal);
            *errno = saved;
        }
    }

    extern "C" fn on_fault(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // SAFETY: the kernel hands a valid description of the fault to a handler that was installed with SA_SIGINFO.
        FAULT.store(unsafe { (*info).si_addr() } as usize, Ordering::SeqCst);
        wake(signal);
        // Back at the instruction it would fault again. The waiting thread ends the program.
        loop {
            // SAFETY: pause(2) takes nothing and is async-signal-safe.
            unsafe { libc::pause() };
        }
    }

    #[cfg(any(target_os = "linux", target_os = "android", target_os = "emscripten"))]
    unsafe fn errno() -> *mut libc::c_int {
        // SAFETY: always valid, says the C library.
        unsafe { libc::__errno_location() }
    }

    #[cfg(not(any(target_os = "linux", target_os = "android", target_os = "emscripten")))]
    unsafe fn errno() -> *mut libc::c_int {
        // SAFETY: always valid, says the C library.
        unsafe { libc::__error() }
    }

    /// Installs a handler, unless the signal is to be ignored.
    fn install(
        signal: libc::c_int,
        handler: libc::sighandler_t,
        flags: libc::c_int,
        even_ignored: bool,
    ) -> io::Result<()> {
        // SAFETY: both structures are plain data for which zero is valid and are filled before use; the handlers above do
        // what a handler may do; the old action is only looked at.
        unsafe {
            let mut old = MaybeUninit::<libc::sigaction>::zeroed();
            if libc::sigaction(signal, ptr::null(), old.as_mut_ptr()) != 0 {
                return Err(io::Error::last_os_error());
            }
            if old.assume_init().sa_sigaction == libc::SIG_IGN && !even_ignored {
                return Ok(());
            }
            let mut new: libc::sigaction = MaybeUninit::zeroed().assume_init();
            new.sa_sigaction = handler;
            new.sa_flags = flags;
            libc::sigemptyset(&mut new.sa_mask);
            if libc::sigaction(signal, &new, ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }

    pub fn watch(tell: impl Fn(&Ending) + Send + 'static) -> io::Result<()> {
        let (mut from, to) = io::pipe()?;
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            let mut byte = [0];
            // The writing end lives as long as the program.
            if from.read_exact(&mut byte).is_ok() {
                end(byte[0].into(), &tell);
            }
        })?;
        WAKE.store(to.into_raw_fd(), Ordering::SeqCst);
        temp::hold().watched = true;
        for (s, _) in super::ENDING {
            install(s, on_stop as *const () as libc::sighandler_t, libc::SA_RESTART, false)?;
        }
        // A file that grows beyond the limit of the process is an error of the write then, with its name.
        install(libc::SIGXFSZ, libc::SIG_IGN, 0, true)?;
        let flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        install(libc::SIGBUS, on_fault as *const () as libc::sighandler_t, flags, true)
    }

    fn end(signal: libc::c_int, tell: &dyn Fn(&Ending)) -> ! {
        let cause = match signal {
            libc::SIGBUS => Cause::CutShort(read::mapped_at(FAULT.load(Ordering::SeqCst))),
            n => Cause::Signal(n),
        };
        // Never let go again: nothing takes its place any more.
        let mut live = temp::hold();
        live.remove_temps();
        let stop = Ending { cause, written: std::mem::take(&mut live.written) };
        tell(&stop);
        // Other threads still run, perhaps in the very map that was cut short: destructors of statics must not run beside
        // them.
        // SAFETY: ends the process, nothing else.
        unsafe { libc::_exit(stop.status()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_says_why_and_what_stands() {
        let s = |cause, written: &[&str]| Ending { cause, written: written.iter().map(PathBuf::from).collect() };
        let (a, b) = (s(Cause::Signal(15), &[]), s(Cause::CutShort(Some("m.onnx".into())), &["p.yaml"]));
        assert_eq!((a.status(), a.to_string()), (143, "stopped by SIGTERM; nothing was written".into()));
        assert!(b.status() == 1 && b.to_string().starts_with("m.onnx was cut short"), "{b}");
        assert!(b.to_string().ends_with("written before that: p.yaml"), "{b}");
    }
}
