//! Files under temporary names: locked while their program lives, known to [`super::stop`], swept up when it died.
//!
//! A lock and not a process number says whether somebody still writes: numbers are given again, and a folder can be shared
//! by machines. The system drops the lock of a program however it ends. Where locks do not reach another machine, the name
//! tells the boot that it was made in, and files of another boot stay for a day.

use std::collections::BTreeSet;
use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tempfile::{Builder, NamedTempFile, TempPath};

const PREFIX: &str = ".fqvit-opt-";
const SUFFIX: &str = ".tmp";

/// How old a file of another machine (or another boot) must be to count as left behind.
const ABANDONED: Duration = Duration::from_secs(24 * 60 * 60);

/// What this process has under temporary names, and what it has put in place.
#[derive(Default)]
pub(super) struct Live {
    temps: BTreeSet<PathBuf>,
    pub written: Vec<PathBuf>,
    /// Folders that go with the program, and commands that work for it.
    pub folders: BTreeSet<PathBuf>,
    pub children: BTreeSet<u32>,
    /// Whether a signal comes to [`super::stop`], which ends these.
    pub watched: bool,
}

impl Live {
    /// Removes every temporary file and folder, and ends what works in them.
    pub fn remove_temps(&mut self) {
        std::mem::take(&mut self.children).into_iter().for_each(end);
        for f in std::mem::take(&mut self.folders) {
            self.written.retain(|p| !p.starts_with(&f));
            let _ = std::fs::remove_dir_all(f);
        }
        for t in std::mem::take(&mut self.temps) {
            // Gone already is as good; nothing else can be done about one that stays.
            let _ = std::fs::remove_file(t);
        }
    }
}

/// Ends a command that this process waits for.
#[cfg(unix)]
fn end(child: u32) {
    let Ok(group) = libc::pid_t::try_from(child) else { return };
    // SAFETY: a signal to a group that was made for the child, which has not been waited for: nobody else has its number.
    unsafe { libc::kill(-group, libc::SIGTERM) };
}

#[cfg(not(unix))]
fn end(_: u32) {}

static LIVE: Mutex<Option<Live>> = Mutex::new(None);

/// Held while files take their places, so that a signal waits until all have or none has.
pub(super) struct Hold(MutexGuard<'static, Option<Live>>);

impl std::ops::Deref for Hold {
    type Target = Live;

    fn deref(&self) -> &Live {
        self.0.as_ref().expect("filled by `hold`")
    }
}

impl std::ops::DerefMut for Hold {
    fn deref_mut(&mut self) -> &mut Live {
        self.0.as_mut().expect("filled by `hold`")
    }
}

pub(super) fn hold() -> Hold {
    let mut live = LIVE.lock().unwrap_or_else(PoisonError::into_inner);
    live.get_or_insert_default();
    Hold(live)
}

/// An open file under a temporary name. Dropped, it is removed.
#[derive(Debug)]
pub(super) struct Temp {
    /// Taken when the file gets its name.
    file: Option<NamedTempFile>,
    listed: PathBuf,
}

/// A second name of a file, kept until its successor is safe. Dropped, it is removed.
#[derive(Debug)]
pub(super) struct Spare {
    path: TempPath,
    /// Locked, so that no sweep takes it.
    _held: Option<File>,
}

impl Temp {
    /// An empty file in `dir`: its owner's alone (`private`), or with the permissions any new file has.
    pub fn create(dir: &Path, private: bool) -> io::Result<Temp> {
        sweep(dir);
        let mut builder = builder();
        #[cfg(unix)]
        if !private {
            builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        }
        loop {
            let mut live = hold();
            let file = builder.tempfile_in(dir)?;
            let listed = std::path::absolute(file.path())?;
            live.temps.insert(listed.clone());
            drop(live);
            let t = Temp { file: Some(file), listed };
            // A sweep may have come between the file and its lock: then it has no name any more, or the sweep holds it.
            // Folders without locks are never swept.
            match t.file().try_lock() {
                Err(TryLockError::WouldBlock) => {}
                Ok(()) if !t.file().metadata().is_ok_and(|m| named(&m)) => {}
                _ => return Ok(t),
            }
        }
    }

    pub fn file(&self) -> &File {
        self.file.as_ref().expect("there until `persist`").as_file()
    }

    /// Gives the file its name, in place of what has it.
    pub fn persist(mut self, to: &Path, live: &mut Hold) -> io::Result<()> {
        let file = self.file.take().expect("there until now");
        let done = file.persist(to).map(drop).map_err(|e| e.error);
        live.temps.remove(&self.listed);
        done
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        if let Some(f) = self.file.take() {
            let mut live = hold();
            drop(f);
            live.temps.remove(&self.listed);
        }
    }
}

impl Spare {
    /// Keeps what stands under `path`.
    pub fn keep(path: &Path) -> io::Result<Spare> {
        let dir = super::folder(path);
        let linked = builder().make_in(dir, |to| std::fs::hard_link(path, to));
        // Not every file system has links.
        let made = linked.map(NamedTempFile::into_temp_path).or_else(|_| {
            builder().make_in(dir, |to| std::fs::copy(path, to).map(drop)).map(NamedTempFile::into_temp_path)
        })?;
        let held = File::open(&made).ok().filter(|f| f.try_lock().is_ok());
        Ok(Spare { path: made, _held: held })
    }

    pub fn restore(self, path: &Path) -> io::Result<()> {
        self.path.persist(path).map_err(|e| {
            // The only copy must not go with the handle.
            let _ = e.path.keep();
            e.error
        })
    }
}

fn builder() -> Builder<'static, 'static> {
    static OURS: LazyLock<String> = LazyLock::new(|| format!("{PREFIX}{}-", boot()));
    let mut b = Builder::new();
    b.prefix(OURS.as_str()).suffix(SUFFIX).rand_bytes(10);
    b
}

/// Eight digits for the running system; the same for every system that does not tell.
fn boot() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    blake3::hash(id.trim().as_bytes()).to_hex()[..8].to_owned()
}

/// Removes what programs that ended left in this folder. It is no fault if that cannot be done.
fn sweep(dir: &Path) {
    static SWEPT: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    let Ok(real) = dir.canonicalize() else { return };
    if !SWEPT.lock().unwrap_or_else(PoisonError::into_inner).insert(real) {
        return;
    }
    sweep_now(dir);
}

fn sweep_now(dir: &Path) {
    let ours = format!("{PREFIX}{}-", boot());
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|n| n.starts_with(PREFIX) && n.ends_with(SUFFIX)) else { continue };
        let path = entry.path();
        let old = |m: &Metadata| m.modified().ok().and_then(|t| t.elapsed().ok()).is_some_and(|age| age > ABANDONED);
        let Ok(m) = path.symlink_metadata() else { continue };
        if m.is_file() && (name.starts_with(&ours) || old(&m)) && is_free(&path, &m) {
            let _ = std::fs::remove_file(&path);
        }
    }
}

/// True if no program holds the lock of this very file.
fn is_free(path: &Path, seen: &Metadata) -> bool {
    // Some network file systems want a file opened for writing.
    let Ok(f) = OpenOptions::new().write(true).open(path).or_else(|_| File::open(path)) else { return false };
    f.metadata().is_ok_and(|m| same(&m, seen)) && f.try_lock().is_ok()
}

#[cfg(unix)]
fn named(m: &Metadata) -> bool {
    std::os::unix::fs::MetadataExt::nlink(m) > 0
}

#[cfg(not(unix))]
fn named(_: &Metadata) -> bool {
    true
}

#[cfg(unix)]
fn same(a: &Metadata, b: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

#[cfg(not(unix))]
fn same(a: &Metadata, b: &Metadata) -> bool {
    a.len() == b.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut v: Vec<String> =
            std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        v.sort();
        v
    }

    #[test]
    fn only_what_nobody_holds_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        let at = |n: &str| dir.path().join(n);
        let mine = Temp::create(dir.path(), true).unwrap();
        let dead = format!("{PREFIX}{}-0123456789{SUFFIX}", boot());
        std::fs::write(at(&dead), "half").unwrap();
        // Of another boot or machine: left alone while it is young.
        let (young, old) = (format!("{PREFIX}00000000-a{SUFFIX}"), format!("{PREFIX}00000000-b{SUFFIX}"));
        std::fs::write(at(&young), "").unwrap();
        let f = File::create(at(&old)).unwrap();
        f.set_modified(std::time::SystemTime::now() - 2 * ABANDONED).unwrap();
        drop(f);
        std::fs::write(at(".fqvit-opt-notes.txt"), "").unwrap();
        sweep_now(dir.path());
        let kept = mine.listed.file_name().unwrap().to_str().unwrap().to_owned();
        let mut want = vec![young, kept, ".fqvit-opt-notes.txt".to_owned()];
        want.sort();
        assert_eq!(names(dir.path()), want);
        drop(mine);
    }

    #[test]
    fn a_first_file_in_a_folder_sweeps_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(format!("{PREFIX}{}-x{SUFFIX}", boot())), "half").unwrap();
        let t = Temp::create(dir.path(), true).unwrap();
        assert_eq!(names(dir.path()).len(), 1);
        assert!(hold().temps.contains(&t.listed));
        let listed = t.listed.clone();
        drop(t);
        assert!(!hold().temps.contains(&listed) && names(dir.path()).is_empty());
    }
}
