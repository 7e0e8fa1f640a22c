//! What a program needs on its way and leaves nothing of, however it ends: a folder, and commands that work in it.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::temp::hold;

/// A folder of this run alone. Dropped, or when a signal ends the program, it is removed with all in it.
#[derive(Debug)]
pub struct Scratch {
    folder: tempfile::TempDir,
    listed: PathBuf,
}

impl Scratch {
    /// An empty folder where the system keeps temporary files.
    ///
    /// # Errors
    /// If there is no such place, or nothing can be written there; the error names it.
    pub fn new() -> io::Result<Scratch> {
        let mut live = hold();
        let named = |e: io::Error| {
            let place = std::env::temp_dir();
            io::Error::new(e.kind(), format!("no temporary folder can be made in {}: {e}; set TMPDIR", place.display()))
        };
        let folder = tempfile::tempdir().map_err(named)?;
        let listed = std::path::absolute(folder.path())?;
        live.folders.insert(listed.clone());
        Ok(Scratch { folder, listed })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let mut live = hold();
        live.folders.remove(&self.listed);
        live.written.retain(|p| !p.starts_with(&self.listed));
    }
}

/// Runs a command to its end and takes what it prints; it has nothing to read. If a signal ends this program, the command and
/// what it started get SIGTERM.
///
/// # Errors
/// If it cannot be started or waited for.
pub fn output(command: &mut Command) -> io::Result<Output> {
    let mut live = hold();
    // A group of its own, so that all of it can be ended. Where nobody would end it, as in a library, a terminal's signals
    // must reach it as they reach the program.
    #[cfg(unix)]
    if live.watched {
        std::os::unix::process::CommandExt::process_group(command, 0);
    }
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let id = child.id();
    if live.watched {
        live.children.insert(id);
    }
    drop(live);
    let out = child.wait_with_output();
    hold().children.remove(&id);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_of_a_folder() {
        let s = Scratch::new().unwrap();
        let path = s.path().to_owned();
        std::fs::write(path.join("a"), "a").unwrap();
        assert!(hold().folders.iter().any(|f| f.ends_with(path.file_name().unwrap())));
        drop(s);
        assert!(!path.exists() && !hold().folders.iter().any(|f| f.ends_with(path.file_name().unwrap())));
    }
}
