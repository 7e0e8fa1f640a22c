//! Writing files: whole or not at all.
//!
//! A file is written under another name in the same folder and takes its place by a rename, so that a failure leaves what
//! was there untouched, and nobody ever reads half a file.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempPath};

/// Why a file could not be written. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("cannot write into the folder {folder}: {source}; choose a folder that exists and may be written to")]
    Folder { folder: PathBuf, source: io::Error },
    #[error("cannot write {path}: it is a folder; give the name of a file")]
    IsFolder { path: PathBuf },
    #[error("cannot write {path}: it is a device or a pipe, which a new file would replace; give the name of a file")]
    Special { path: PathBuf },
    #[error("cannot write {path}: {source}; nothing was changed")]
    Io { path: PathBuf, source: io::Error },
}

/// A file on its way: it has its bytes, or will get them, and takes its name with [`commit`](Pending::commit). Dropped
/// before that, it leaves nothing behind.
#[derive(Debug)]
pub struct Pending {
    temp: NamedTempFile,
    path: PathBuf,
}

impl Pending {
    /// Begins a file that will be called `path`. A link is followed, so that the file it leads to is replaced.
    ///
    /// # Errors
    /// If `path` is a folder or a device, or its folder can not be written to.
    pub fn create(path: &Path) -> Result<Pending, WriteError> {
        match std::fs::metadata(path) {
            Ok(m) if m.is_dir() => return Err(WriteError::IsFolder { path: path.to_owned() }),
            Ok(m) if !m.is_file() => return Err(WriteError::Special { path: path.to_owned() }),
            _ => {}
        }
        let path = if path.is_symlink() { path.canonicalize().unwrap_or(path.to_owned()) } else { path.to_owned() };
        Ok(Pending { temp: temp_in(folder(&path))?, path })
    }

    /// Where the bytes go.
    pub fn file(&self) -> &File {
        self.temp.as_file()
    }

    /// The name it will have.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts the file in its place.
    pub fn commit(self) -> Result<(), WriteError> {
        let Pending { temp, path } = self;
        temp.persist(&path).map(|_| ()).map_err(|e| WriteError::Io { path, source: e.error })
    }

    /// Puts this file in its place and `second` after it: both or neither.
    pub fn commit_with(self, second: Pending) -> Result<(), WriteError> {
        let path = self.path.clone();
        let aside = Aside::step(&path)?;
        let done = self.commit().and_then(|()| second.commit());
        if done.is_err() {
            aside.restore(&path).map_err(|source| WriteError::Io { path, source })?;
        }
        done
    }
}

/// What stood under a name, kept until its successor is safe.
struct Aside(Option<TempPath>);

impl Aside {
    fn step(path: &Path) -> Result<Aside, WriteError> {
        if !path.exists() {
            return Ok(Aside(None));
        }
        let to = temp_in(folder(path))?.into_temp_path();
        std::fs::rename(path, &to).map_err(|source| WriteError::Io { path: path.to_owned(), source })?;
        Ok(Aside(Some(to)))
    }

    fn restore(&self, path: &Path) -> io::Result<()> {
        match &self.0 {
            Some(a) => std::fs::rename(a, path),
            None if path.exists() => std::fs::remove_file(path),
            None => Ok(()),
        }
    }
}

/// Writes a whole file.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), WriteError> {
    let p = Pending::create(path)?;
    p.file().write_all(bytes).map_err(|source| WriteError::Io { path: path.to_owned(), source })?;
    p.commit()
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn temp_in(dir: &Path) -> Result<NamedTempFile, WriteError> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".fqvit-opt-").suffix(".tmp");
    // Temporary files are private by default; an output has the permissions any new file has.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let failed = |source| WriteError::Folder { folder: dir.to_owned(), source };
    std::fs::metadata(dir).map_err(failed)?;
    // Only the kind: the message holds a name of a file that nobody asked for.
    builder.tempfile_in(dir).map_err(|e| failed(e.kind().into()))
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
        drop(p);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["a"]);
        write(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(names(dir.path()), ["a"]);
    }

    #[test]
    fn two_files_come_together_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let at = |n: &str| dir.path().join(n);
        std::fs::write(at("data"), "old").unwrap();
        let begin = |n: &str, text: &str| {
            let p = Pending::create(&at(n)).unwrap();
            p.file().write_all(text.as_bytes()).unwrap();
            p
        };
        // A folder takes the second name after its file was begun, so that the rename fails.
        let (first, second) = (begin("data", "new"), begin("model", "m"));
        std::fs::create_dir(at("model")).unwrap();
        assert!(first.commit_with(second).is_err());
        assert_eq!(std::fs::read(at("data")).unwrap(), b"old");
        std::fs::remove_dir(at("model")).unwrap();
        begin("data", "new").commit_with(begin("model", "m")).unwrap();
        assert_eq!(std::fs::read(at("data")).unwrap(), b"new");
        assert_eq!(names(dir.path()), ["data", "model"]);
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_devices_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        std::fs::write(&real, "old").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        write(&link, b"new").unwrap();
        assert!(link.is_symlink());
        assert_eq!(std::fs::read(&real).unwrap(), b"new");
        assert!(matches!(write(Path::new("/dev/null"), b""), Err(WriteError::Special { .. })));
        assert!(matches!(write(dir.path(), b""), Err(WriteError::IsFolder { .. })));
        assert!(matches!(write(&dir.path().join("no/file"), b""), Err(WriteError::Folder { .. })));
    }
}
