//! Bytes of files, pipes and standard input.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

use bytes::Bytes;
use memmap2::Mmap;

/// The name that stands for standard input (and output).
pub const STDIN: &str = "-";

/// Files up to this size are read, larger ones mapped: 64 MiB.
const SMALL: u64 = 64 << 20;

/// The most that is read from a pipe: nothing says beforehand how much will come. 2 GiB, what one ONNX file may have.
const PIPE: u64 = 1 << 31;

/// The longest text that is read: 16 MiB. Recipes and rules have a few KiB.
const TEXT: u64 = 16 << 20;

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("{0}; {remedy}", remedy = remedy(.0))]
    Io(#[from] io::Error),
    #[error("it is a device; give a file, a pipe, or `-` for standard input")]
    Device,
    #[error("it is a folder; give a file")]
    Folder,
    #[error("more than {} GiB come out of this pipe; give a file", PIPE >> 30)]
    Endless,
    #[error("it is longer than {} MiB; recipes, rules and settings are shorter", TEXT >> 20)]
    Long,
    #[error("it is not UTF-8 text; save it as UTF-8")]
    NotText,
    #[error("it was changed while it was read; wait until it is complete, and start again")]
    Changed,
}

/// What to do about a file that cannot be read.
fn remedy(e: &io::Error) -> &'static str {
    match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => "check the path",
        io::ErrorKind::PermissionDenied => "let it be read (`chmod u+r`), or give another file",
        _ => "copy it to another disk, and try again",
    }
}

/// A file that is mapped somewhere.
#[derive(Debug)]
struct Mapping {
    path: PathBuf,
    /// Kept open: it stays the same file when another one takes its name.
    file: File,
    at: Range<usize>,
    state: State,
}

/// What changes when a file is written to.
type State = (u64, Option<SystemTime>);

fn state(m: &Metadata) -> State {
    (m.len(), m.modified().ok())
}

static MAPPINGS: Mutex<Vec<Weak<Mapping>>> = Mutex::new(Vec::new());

/// A map and its entry in the list: what [`Bytes`] keeps alive.
struct Owner {
    map: Mmap,
    _entry: Arc<Mapping>,
}

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

/// The bytes of a file, of a pipe until its end, or of standard input if `path` is `-`. Files of more than 64 MiB are mapped:
/// before their bytes are trusted at the end of a long work, ask [`intact`].
///
/// # Errors
/// If it cannot be read, is a device or an endless pipe, or changes meanwhile.
pub fn read(path: &Path) -> Result<Bytes, ReadError> {
    if path == Path::new(STDIN) {
        return drained(io::stdin().lock());
    }
    let mut file = File::open(path)?;
    let before = file.metadata()?;
    if !before.is_file() {
        return match () {
            () if is_pipe(&before) => drained(file),
            () if before.is_dir() => Err(ReadError::Folder),
            () => Err(ReadError::Device),
        };
    }
    if before.len() > SMALL {
        return mapped(path, file, &before);
    }
    let mut v = Vec::with_capacity(before.len() as usize);
    file.by_ref().take(SMALL + 1).read_to_end(&mut v)?;
    // Files that are made while they are read, such as those below /proc, have no size beforehand.
    let grew = v.len() as u64 != before.len() && before.len() > 0;
    if grew || v.len() as u64 > SMALL || state(&file.metadata()?) != state(&before) {
        return Err(ReadError::Changed);
    }
    Ok(v.into())
}

/// The text of a small file or pipe, without a byte order mark.
///
/// # Errors
/// If it cannot be read, is a folder or a device, has more than 16 MiB, or is no UTF-8.
pub fn text(path: &Path) -> Result<String, ReadError> {
    let file = File::open(path)?;
    match file.metadata()? {
        m if m.is_dir() => return Err(ReadError::Folder),
        m if !m.is_file() && !is_pipe(&m) => return Err(ReadError::Device),
        _ => {}
    }
    let mut bytes = Vec::new();
    file.take(TEXT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > TEXT {
        return Err(ReadError::Long);
    }
    as_text(&bytes).map(str::to_owned)
}

/// Bytes as text, without a byte order mark.
///
/// # Errors
/// If they are no UTF-8.
pub fn as_text(bytes: &[u8]) -> Result<&str, ReadError> {
    let text = std::str::from_utf8(bytes).map_err(|_| ReadError::NotText)?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

fn drained(from: impl Read) -> Result<Bytes, ReadError> {
    let mut v = Vec::new();
    from.take(PIPE + 1).read_to_end(&mut v)?;
    if v.len() as u64 > PIPE { Err(ReadError::Endless) } else { Ok(v.into()) }
}

/// The bytes of an open file, mapped. `name` is what messages call it: it may be a file without a name.
///
/// # Errors
/// If it cannot be mapped; a file of no bytes cannot.
pub fn map(file: File, name: &Path) -> Result<Bytes, ReadError> {
    let m = file.metadata()?;
    mapped(name, file, &m)
}

fn mapped(path: &Path, file: File, m: &Metadata) -> Result<Bytes, ReadError> {
    // SAFETY: the map is read only and private to this process. What Rust cannot promise is that nobody else shortens
    // the file meanwhile; reading what is gone then raises SIGBUS, which `stop` turns into a message. This program itself
    // never writes to a file in place: it writes a new one and renames it.
    let map = unsafe { Mmap::map(&file)? };
    let from = map.as_ptr() as usize;
    let entry = Arc::new(Mapping { path: path.to_owned(), file, at: from..from + map.len(), state: state(m) });
    let mut all = MAPPINGS.lock().unwrap_or_else(PoisonError::into_inner);
    all.retain(|w| w.strong_count() > 0);
    all.push(Arc::downgrade(&entry));
    Ok(Bytes::from_owner(Owner { map, _entry: entry }))
}

/// The mapped files that some bytes lie in, also after the bytes are gone.
#[derive(Clone, Debug, Default)]
pub struct Sources(Vec<Arc<Mapping>>);

impl Sources {
    /// The files that these bytes are mapped from.
    pub fn of<'b>(bytes: impl IntoIterator<Item = &'b Bytes>) -> Sources {
        let mut found: Vec<Arc<Mapping>> = Vec::new();
        for b in bytes.into_iter().filter(|b| !b.is_empty()) {
            let at = b.as_ptr() as usize;
            if !found.iter().any(|m| m.at.contains(&at)) {
                found.extend(mapping(at));
            }
        }
        Sources(found)
    }

    /// Checks that the files are as they were when they were read.
    ///
    /// # Errors
    /// The first file that is not.
    pub fn intact(&self) -> Result<(), PathBuf> {
        self.0.iter().try_for_each(|m| m.intact())
    }
}

impl Mapping {
    fn intact(&self) -> Result<(), PathBuf> {
        if self.file.metadata().is_ok_and(|now| state(&now) == self.state) { Ok(()) } else { Err(self.path.clone()) }
    }
}

fn mapping(address: usize) -> Option<Arc<Mapping>> {
    let all = MAPPINGS.lock().unwrap_or_else(PoisonError::into_inner);
    all.iter().filter_map(Weak::upgrade).find(|m| m.at.contains(&address))
}

/// Checks that the files behind these bytes are as they were when they were read: as long, and not written to since. Bytes
/// in memory are always intact.
///
/// # Errors
/// The first file that is not.
pub fn intact<'b>(bytes: impl IntoIterator<Item = &'b Bytes>) -> Result<(), PathBuf> {
    let mut known: Option<Arc<Mapping>> = None;
    for b in bytes.into_iter().filter(|b| !b.is_empty()) {
        let at = b.as_ptr() as usize;
        // Neighbours mostly lie in one file, which is asked once.
        if known.as_ref().is_some_and(|m| m.at.contains(&at)) {
            continue;
        }
        let Some(m) = mapping(at) else { continue };
        m.intact()?;
        known = Some(m);
    }
    Ok(())
}

/// The mapped file that has this address, for [`super::stop`].
pub(super) fn mapped_at(address: usize) -> Option<PathBuf> {
    mapping(address).map(|m| m.path.clone())
}

#[cfg(unix)]
fn is_pipe(m: &Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;
    m.file_type().is_fifo() || m.file_type().is_socket()
}

#[cfg(not(unix))]
fn is_pipe(_: &Metadata) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn small_files_are_read_and_large_ones_mapped() {
        let dir = tempfile::tempdir().unwrap();
        let (small, large) = (dir.path().join("small"), dir.path().join("large"));
        std::fs::write(&small, "abc").unwrap();
        let b = read(&small).unwrap();
        assert!(b == "abc" && mapping(b.as_ptr() as usize).is_none());
        std::fs::write(&small, "").unwrap();
        assert!(read(&small).unwrap().is_empty() && b == "abc" && intact([&b]).is_ok());
        // A hole: nothing is stored.
        File::create(&large).unwrap().set_len(SMALL + 1).unwrap();
        let b = read(&large).unwrap();
        assert_eq!(b.len() as u64, SMALL + 1);
        assert_eq!(mapped_at(b.as_ptr() as usize + 5), Some(large.clone()));
        assert_eq!(intact([&b, &b.slice(100..200)]), Ok(()));
        // Replaced by name: the old file is still there. Written to: it is another.
        std::fs::write(dir.path().join("new"), "x").unwrap();
        let mut old = std::fs::OpenOptions::new().write(true).open(&large).unwrap();
        std::fs::rename(dir.path().join("new"), &large).unwrap();
        assert_eq!(intact([&b]), Ok(()));
        std::thread::sleep(std::time::Duration::from_millis(20));
        old.write_all(b"y").unwrap();
        assert_eq!(intact([&b]), Err(large.clone()));
        let at = b.as_ptr() as usize;
        drop(b);
        assert_eq!(mapped_at(at), None);
    }

    #[test]
    fn texts_are_short_and_utf8() {
        let dir = tempfile::tempdir().unwrap();
        let of = |bytes: &[u8]| {
            let path = dir.path().join("t");
            std::fs::write(&path, bytes).unwrap();
            text(&path)
        };
        assert_eq!(of("\u{feff}id: \u{e4}".as_bytes()).unwrap(), "id: \u{e4}");
        assert!(matches!(of(&[0xff, 0xfe]), Err(ReadError::NotText)));
        assert!(matches!(of(&vec![b'a'; TEXT as usize + 1]), Err(ReadError::Long)));
        assert!(matches!(text(dir.path()), Err(ReadError::Folder)));
        #[cfg(unix)]
        assert!(matches!(text(Path::new("/dev/zero")), Err(ReadError::Device)));
    }

    #[test]
    fn files_that_were_written_to_are_known_without_their_bytes() {
        use std::io::Write;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        std::fs::write(&path, [7; 4096]).unwrap();
        let bytes = map(File::open(&path).unwrap(), &path).unwrap();
        let sources = Sources::of([&bytes, &Bytes::from_static(b"in memory")]);
        drop(bytes);
        assert_eq!(sources.intact(), Ok(()));
        File::options().append(true).open(&path).unwrap().write_all(b"more").unwrap();
        assert_eq!(sources.intact(), Err(path));
    }

    #[cfg(unix)]
    #[test]
    fn pipes_are_read_to_their_end_and_devices_refused() {
        let (from, mut to) = io::pipe().unwrap();
        let writer = std::thread::spawn(move || to.write_all(&vec![7; 200_000]).unwrap());
        let name = format!("/dev/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&from));
        let b = read(Path::new(&name)).unwrap();
        writer.join().unwrap();
        assert!(b.len() == 200_000 && b.iter().all(|x| *x == 7));
        assert!(matches!(read(Path::new("/dev/zero")), Err(ReadError::Device)));
        assert!(matches!(read(Path::new("/dev")), Err(ReadError::Folder)));
        assert!(matches!(drained(io::repeat(0).take(PIPE + 9)), Err(ReadError::Endless)));
    }
}
