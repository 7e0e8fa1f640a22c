//! What one call reads and writes.

use std::fs::Metadata;
use std::path::{Path, PathBuf};

use super::{folder, target};

/// The files of one call. An entry has a word for the user (`-o`, `the calibration data`) and a path.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    read: Vec<(String, PathBuf)>,
    /// Read, for one purpose alone.
    sole: Vec<(String, PathBuf)>,
    written: Vec<(String, PathBuf)>,
}

/// Two entries that are one file, one of them to be written: the later would destroy the earlier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{written} and {other} are the same file, {path}; give another name", path = .path.display())]
pub struct Conflict {
    pub written: String,
    pub other: String,
    /// The file to be written.
    pub path: PathBuf,
}

/// What makes a file the one it is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Identity {
    /// A file that is there: device and number, whatever its names.
    #[cfg(unix)]
    Node(u64, u64),
    /// Folder and name, links followed.
    Name(PathBuf),
}

/// Folders of samples have folders for their classes, and nothing in these.
const FOLDERS_DEEP: usize = 1;

impl Ledger {
    /// Notes a file that is read.
    pub fn reads(&mut self, what: impl Into<String>, path: &Path) {
        self.read.push((what.into(), path.to_owned()));
    }

    /// Notes the files of a folder that is read, and those of the folders in it: one for each class, say.
    pub fn reads_folder(&mut self, what: &str, dir: &Path) {
        self.reads_within(what, dir, FOLDERS_DEEP);
    }

    fn reads_within(&mut self, what: &str, dir: &Path, deep: usize) {
        for path in std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()) {
            match path.is_dir() {
                true if deep > 0 => self.reads_within(what, &path, deep - 1),
                true => {}
                false => self.reads(what, &path),
            }
        }
    }

    /// Notes a file that is read, of a kind that nothing else of the call can be.
    pub fn reads_alone(&mut self, what: impl Into<String>, path: &Path) {
        self.sole.push((what.into(), path.to_owned()));
    }

    /// Notes a file that will be written.
    pub fn writes(&mut self, what: impl Into<String>, path: &Path) {
        self.written.push((what.into(), path.to_owned()));
    }

    /// The files to be written, with their words.
    pub fn written(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.written.iter().map(|(w, p)| (w.as_str(), p.as_path()))
    }

    /// Refuses a file to be written that the call also reads, or writes for another purpose. Files are the same by what
    /// they are, not by what they are called: links, hard links, `./x/../`, and letters where case does not count.
    ///
    /// # Errors
    /// The first such pair.
    pub fn check(&self) -> Result<(), Conflict> {
        let conflict = |w: &(String, PathBuf), o: &(String, PathBuf)| {
            Err(Conflict { written: w.0.clone(), other: o.0.clone(), path: w.1.clone() })
        };
        let written: Vec<_> = self.sole.iter().chain(&self.written).map(|w| (w, identity(&w.1))).collect();
        for (i, (w, id)) in written.iter().enumerate() {
            if let Some((o, _)) = written[..i].iter().find(|(_, other)| same(id, other)) {
                return conflict(w, o);
            }
        }
        // What is not there yet is not read: mostly nothing is left to compare.
        let there: Vec<_> = written.iter().filter(|(w, _)| w.1.exists()).collect();
        if there.is_empty() {
            return Ok(());
        }
        for r in &self.read {
            let id = identity(&r.1);
            if let Some((w, _)) = there.iter().find(|(_, other)| *other == id) {
                return conflict(w, r);
            }
        }
        Ok(())
    }
}

fn identity(path: &Path) -> Identity {
    match std::fs::metadata(path) {
        Ok(m) => present(path, &m),
        Err(_) => {
            let end = target(path);
            let dir = folder(&end);
            let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
            Identity::Name(dir.join(end.file_name().unwrap_or_default()))
        }
    }
}

#[cfg(unix)]
fn present(_: &Path, m: &Metadata) -> Identity {
    use std::os::unix::fs::MetadataExt;
    Identity::Node(m.dev(), m.ino())
}

#[cfg(not(unix))]
fn present(path: &Path, _: &Metadata) -> Identity {
    Identity::Name(path.canonicalize().unwrap_or_else(|_| path.to_owned()))
}

/// Whether two files to be written would be one.
fn same(a: &Identity, b: &Identity) -> bool {
    match (a, b) {
        (Identity::Name(a), Identity::Name(b)) if a != b => {
            let lower = |p: &Path| p.file_name().map(|n| n.to_string_lossy().to_lowercase());
            a.parent() == b.parent() && lower(a) == lower(b) && ignores_case(folder(a))
        }
        _ => a == b,
    }
}

/// Whether a folder takes `a` and `A` for one name. Only a file can tell.
fn ignores_case(dir: &Path) -> bool {
    let Ok(probe) = tempfile::Builder::new().prefix(".fqvit-opt-case-").tempfile_in(dir) else { return false };
    let name = probe.path().file_name().unwrap_or_default().to_string_lossy().to_uppercase();
    dir.join(name).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(read: &[&Path], written: &[&Path]) -> Option<String> {
        let mut l = Ledger::default();
        read.iter().enumerate().for_each(|(i, p)| l.reads(format!("r{i}"), p));
        written.iter().enumerate().for_each(|(i, p)| l.writes(format!("w{i}"), p));
        l.check().err().map(|e| format!("{} {}", e.written, e.other))
    }

    #[test]
    fn one_file_is_found_under_every_name() {
        let dir = tempfile::tempdir().unwrap();
        let at = |n: &str| dir.path().join(n);
        std::fs::create_dir(at("sub")).unwrap();
        std::fs::write(at("a"), "").unwrap();
        std::fs::write(at("b"), "").unwrap();
        assert_eq!(told(&[&at("a")], &[&at("b"), &at("new")]), None);
        assert_eq!(told(&[&at("a")], &[&at("sub/.././a")]).as_deref(), Some("w0 r0"));
        assert_eq!(told(&[], &[&at("new"), &at("sub/../new")]).as_deref(), Some("w1 w0"));
        // Reading twice harms nothing.
        assert_eq!(told(&[&at("a"), &at("a")], &[&at("b")]), None);
        std::fs::hard_link(at("a"), at("hard")).unwrap();
        assert_eq!(told(&[&at("b"), &at("a")], &[&at("hard")]).as_deref(), Some("w0 r1"));
        #[cfg(unix)]
        {
            let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, at(name)).unwrap();
            link("a", "soft");
            link("sub", "dir");
            link("../new", "sub/ahead");
            assert_eq!(told(&[&at("a")], &[&at("soft")]).as_deref(), Some("w0 r0"));
            assert_eq!(told(&[&at("soft")], &[&at("hard")]).as_deref(), Some("w0 r0"));
            assert_eq!(told(&[], &[&at("sub/x"), &at("dir/x")]).as_deref(), Some("w1 w0"));
            assert_eq!(told(&[], &[&at("new"), &at("dir/ahead")]).as_deref(), Some("w1 w0"));
        }
    }

    #[test]
    fn case_counts_where_the_folder_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let at = |n: &str| dir.path().join(n);
        let one = told(&[], &[&at("out.onnx"), &at("OUT.onnx")]).is_some();
        std::fs::write(at("probe"), "").unwrap();
        assert_eq!(one, at("PROBE").exists());
    }
}
