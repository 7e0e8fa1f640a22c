//! Files on their way.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::temp::{self, Spare, Temp};
use super::{folder, links, target};

/// Why a file could not be written. Unless the message says otherwise, nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("cannot write into the folder {folder}: {source}; choose a folder that exists and may be written to")]
    Folder { folder: PathBuf, source: io::Error },
    #[error("cannot write {path}: it is a folder; give the name of a file")]
    IsFolder { path: PathBuf },
    #[error(
        "cannot write {path}: it is a device, a pipe or an open stream, which a new file would replace; give the name of a file, or `-` \
         for standard output"
    )]
    Special { path: PathBuf },
    #[error(
        "cannot write {path}: the file is there and may not be written to ({source}); give another name, or allow it \
         (`chmod u+w`)"
    )]
    Protected { path: PathBuf, source: io::Error },
    #[error("cannot write {path}: {source}; nothing was changed: free space on the disk, or choose another folder")]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "cannot write {path}: {source}; what stood under {kept:?} before could not be put back, these files are new; free space on the disk, and \
         start again"
    )]
    Part { path: PathBuf, source: io::Error, kept: Vec<PathBuf> },
}

/// A file on its way: it has its bytes, or will get them, and takes its name with [`commit`](Pending::commit). Dropped
/// before that, it leaves nothing behind.
#[derive(Debug)]
pub struct Pending {
    temp: Temp,
    path: PathBuf,
}

impl Pending {
    /// Begins a file that will be called `path`. A link is followed, so that the file it leads to is replaced. Where a file
    /// of that name is replaced, the new one has its permissions and owner, as far as the system allows it.
    ///
    /// # Errors
    /// If `path` is a folder, a device, or a file that may not be written to, or its folder cannot be written to.
    pub fn create(path: &Path) -> Result<Pending, WriteError> {
        let owned = || path.to_owned();
        let old = std::fs::metadata(path).ok();
        match &old {
            Some(m) if m.is_dir() => return Err(WriteError::IsFolder { path: owned() }),
            Some(m) if !m.is_file() || is_descriptor(path) => return Err(WriteError::Special { path: owned() }),
            Some(m) => may_be_written(path, m).map_err(|source| WriteError::Protected { path: owned(), source })?,
            None if path.as_os_str().to_string_lossy().ends_with(std::path::is_separator) => {
                return Err(WriteError::IsFolder { path: owned() });
            }
            None => {}
        }
        let path = target(path);
        let dir = folder(&path);
        let failed = |source: io::Error| WriteError::Folder { folder: dir.to_owned(), source };
        std::fs::metadata(dir).map_err(failed)?;
        // Only the kind: the message holds a name of a file that nobody asked for.
        let temp = Temp::create(dir, old.is_some()).map_err(|e| failed(e.kind().into()))?;
        allow(temp.file(), old.as_ref()).map_err(|source| WriteError::Io { path: owned(), source })?;
        Ok(Pending { temp, path })
    }

    /// Where the bytes go.
    pub fn file(&self) -> &File {
        self.temp.file()
    }

    /// The name it will have.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes it has by now.
    pub fn len(&self) -> u64 {
        self.file().metadata().map_or(0, |m| m.len())
    }

    /// True if nothing was written yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// If the file cannot be put there; what was there before then stays.
    pub fn commit(self) -> Result<(), WriteError> {
        Batch(vec![self]).commit()
    }
}

/// Whether a path leads through the table of open files (`/dev/stdout`, `/dev/fd/3`): what is open there has a place to write at,
/// and perhaps other writers.
fn is_descriptor(path: &Path) -> bool {
    links(path).any(|at| {
        let dir = folder(&at).canonicalize().unwrap_or_default();
        dir == Path::new("/dev/fd") || dir.starts_with("/proc") && dir.ends_with("fd")
    })
}

/// Files that belong together: all take their places, or none does.
#[derive(Debug, Default)]
pub struct Batch(Vec<Pending>);

impl Batch {
    /// Adds a file that has its bytes.
    pub fn add(&mut self, p: Pending) {
        self.0.push(p);
    }

    /// Adds a file of these bytes.
    ///
    /// # Errors
    /// As [`Pending::create`], and if the bytes cannot be stored.
    pub fn write(&mut self, path: &Path, bytes: &[u8]) -> Result<(), WriteError> {
        let p = Pending::create(path)?;
        p.file().write_all(bytes).map_err(|source| WriteError::Io { path: path.to_owned(), source })?;
        self.add(p);
        Ok(())
    }

    /// The names the files will have.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.0.iter().map(|p| p.path.clone()).collect()
    }

    /// Puts every file in its place, in the order in which they were added. Signals wait meanwhile (see [`super::stop`]).
    ///
    /// # Errors
    /// If one cannot take its place; those before it are then as they were, or the error names them.
    pub fn commit(self) -> Result<(), WriteError> {
        // What a disk or a server has no room for shows now, and not after the first file has its name.
        for p in &self.0 {
            stored(p.file()).map_err(|source| WriteError::Io { path: p.path.clone(), source })?;
        }
        let mut live = temp::hold();
        let mut done: Vec<(PathBuf, Option<Spare>)> = Vec::new();
        let n = self.0.len();
        for (i, Pending { temp, path }) in self.0.into_iter().enumerate() {
            // The last one is in its place or is not: it needs no way back.
            let spare = match i + 1 < n && path.exists() {
                true => Spare::keep(&path).map(Some),
                false => Ok(None),
            };
            let step = spare.and_then(|s| temp.persist(&path, &mut live).map(|()| s));
            match step {
                Ok(s) => done.push((path, s)),
                Err(source) => {
                    let kept: Vec<PathBuf> = done.into_iter().rev().filter_map(|(p, s)| back(p, s)).collect();
                    return Err(match kept.is_empty() {
                        true => WriteError::Io { path, source },
                        false => WriteError::Part { path, source, kept },
                    });
                }
            }
        }
        live.written.extend(done.into_iter().map(|(p, _)| p));
        Ok(())
    }
}

/// Undoes a rename; the name, if that failed.
fn back(path: PathBuf, spare: Option<Spare>) -> Option<PathBuf> {
    let undone = match spare {
        Some(s) => s.restore(&path),
        None => std::fs::remove_file(&path),
    };
    undone.is_err().then_some(path)
}

/// Waits until the bytes are stored. Not everything that holds files can say so.
fn stored(f: &File) -> io::Result<()> {
    match f.sync_all() {
        Err(e) if matches!(e.kind(), io::ErrorKind::Unsupported | io::ErrorKind::InvalidInput) => Ok(()),
        done => done,
    }
}

/// Writes a whole file.
///
/// # Errors
/// As [`Batch::write`] and [`Batch::commit`].
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), WriteError> {
    let mut b = Batch::default();
    b.write(path, bytes)?;
    b.commit()
}

/// A rename would replace a file whatever its own permissions say.
fn may_be_written(path: &Path, m: &Metadata) -> io::Result<()> {
    // An administrator may write to a read-only file; it is read-only nevertheless.
    if m.permissions().readonly() {
        return Err(io::Error::from(io::ErrorKind::PermissionDenied));
    }
    match OpenOptions::new().write(true).open(path) {
        Err(e) if matches!(e.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) => Err(e),
        _ => Ok(()),
    }
}

/// Gives a new file the owner and the permissions of the one it replaces.
#[cfg(unix)]
fn allow(new: &File, old: Option<&Metadata>) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
    let Some(m) = old else { return Ok(()) };
    let own = new.metadata()?;
    // Only an administrator may give a file away; a group that cannot be kept gets what everybody has.
    let owner = own.uid() == m.uid() || fchown(new, Some(m.uid()), None).is_ok();
    let group = own.gid() == m.gid() || fchown(new, None, Some(m.gid())).is_ok();
    let all = m.mode() & if owner && group { 0o7777 } else { 0o777 };
    let everybody = (all & 0o007) << 3;
    let mode = if group { all } else { all & (everybody | !0o070) };
    new.set_permissions(PermissionsExt::from_mode(mode))
}

#[cfg(not(unix))]
fn allow(_: &File, _: Option<&Metadata>) -> io::Result<()> {
    Ok(())
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
    fn what_is_not_committed_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, "old").unwrap();
        let p = Pending::create(&path).unwrap();
        p.file().write_all(b"new").unwrap();
        assert_eq!(p.len(), 3);
        drop(p);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["a"]);
        write(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(names(dir.path()), ["a"]);
    }

    #[test]
    fn files_come_together_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let at = |n: &str| dir.path().join(n);
        std::fs::write(at("data"), "old").unwrap();
        let batch = || {
            let mut b = Batch::default();
            for n in ["data", "report", "model"] {
                b.write(&at(n), n.as_bytes()).unwrap();
            }
            b
        };
        // A folder takes the last name after its file was begun, so that the rename fails.
        let b = batch();
        std::fs::create_dir(at("model")).unwrap();
        let e = b.commit().unwrap_err().to_string();
        assert!(e.contains("model") && e.contains("nothing was changed"), "{e}");
        assert_eq!(std::fs::read(at("data")).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["data", "model"]);
        std::fs::remove_dir(at("model")).unwrap();
        batch().commit().unwrap();
        assert_eq!(std::fs::read(at("data")).unwrap(), b"data");
        assert_eq!(names(dir.path()), ["data", "model", "report"]);
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_devices_refused() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        std::fs::write(&real, "old").unwrap();
        symlink(&real, &link).unwrap();
        write(&link, b"new").unwrap();
        assert!(link.is_symlink());
        assert_eq!(std::fs::read(&real).unwrap(), b"new");
        // A link to what is not there yet makes it.
        let (to, ahead) = (dir.path().join("to"), dir.path().join("ahead"));
        symlink("to", &ahead).unwrap();
        write(&ahead, b"made").unwrap();
        assert!(ahead.is_symlink() && std::fs::read(&to).unwrap() == b"made");
        assert!(matches!(write(Path::new("/dev/null"), b""), Err(WriteError::Special { .. })));
        // An open file, by its place in the table of those.
        #[cfg(target_os = "linux")]
        {
            use std::os::fd::AsRawFd;
            let open = std::fs::File::open(&real).unwrap();
            for table in ["/proc/self/fd", "/dev/fd"] {
                let path = format!("{table}/{}", open.as_raw_fd());
                assert!(matches!(write(Path::new(&path), b""), Err(WriteError::Special { .. })), "{path}");
            }
            assert_eq!(std::fs::read(&real).unwrap(), b"new");
        }
        assert!(matches!(write(dir.path(), b""), Err(WriteError::IsFolder { .. })));
        assert!(matches!(write(&dir.path().join("no/file"), b""), Err(WriteError::Folder { .. })));
    }

    #[cfg(unix)]
    #[test]
    fn permissions_are_kept_and_protection_is_respected() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let mode = |m: u32| std::fs::set_permissions(&path, PermissionsExt::from_mode(m)).unwrap();
        let now = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
        write(&path, b"1").unwrap();
        let usual = dir.path().join("usual");
        std::fs::write(&usual, "").unwrap();
        assert_eq!(now(), std::fs::metadata(&usual).unwrap().permissions().mode() & 0o7777);
        for m in [0o600, 0o640, 0o666, 0o755, 0o200] {
            mode(m);
            write(&path, b"2").unwrap();
            assert_eq!(now(), m, "{m:o}");
        }
        for m in [0o444, 0o400, 0o555, 0o000] {
            mode(m);
            let e = write(&path, b"3").unwrap_err();
            assert!(matches!(e, WriteError::Protected { .. }) && e.to_string().contains("chmod u+w"), "{e}");
            assert_eq!(now(), m);
        }
        mode(0o600);
        assert_eq!(std::fs::read(&path).unwrap(), b"2");
    }
}
