//! Writing a model to disk: all or nothing, and without a second copy of the weights in memory.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bytes::BufMut;
use bytes::buf::UninitSlice;
use prost::Message;

use super::tensor::FAR;
use super::{SaveError, back, external, nested, proto};
use crate::file::{self, Batch, Pending, WriteError};
use crate::ir::{Validated, validate};

/// Above this encoded size [`External::Auto`] puts the weights into a file of their own. One protobuf message cannot
/// be larger than 2 GB, and readers count differently on the way there.
const INLINE_LIMIT: usize = 1_900_000_000;

/// The hard limit of a protobuf message.
const MESSAGE_LIMIT: usize = i32::MAX as usize;

/// How a model is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SaveOptions {
    pub external: External,
}

/// Where the weights go. Wherever they came from, the result points to no file but its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum External {
    /// Into the model file, or into `OUT.data` beside it if the model file would grow beyond 1.9 GB.
    #[default]
    Auto,
    /// Everything into the model file.
    Inline,
    /// Every tensor of 1 KiB and more into the file of this name beside the model.
    Always { location: String },
}

/// The data file that a model of this path would get. A link is followed, as the model itself goes where it leads.
pub fn data_path(path: &Path) -> PathBuf {
    let mut name = file::target(path).into_os_string();
    name.push(".data");
    name.into()
}

/// Writes the model to `path`, with a data file beside it if it needs one. Each is written under another name in the same
/// folder and then renamed, both or neither, so that a failure leaves files that were there untouched, and a model can
/// be saved over the very file it is mapped from.
///
/// # Errors
/// If the folder cannot be written to, data of a tensor is missing, the model is too large for one file, or a file that it
/// was read from has changed since.
pub fn save(m: Validated<'_>, path: &Path, opt: &SaveOptions) -> Result<(), SaveError> {
    let mut batch = Batch::default();
    stage(m, path, opt, &mut batch)?;
    Ok(batch.commit()?)
}

/// As [`save`], up to the renames: these are the batch's, which may hold other files. Returns the bytes of all files.
///
/// # Errors
/// As [`save`].
pub fn stage(m: Validated<'_>, path: &Path, opt: &SaveOptions, batch: &mut Batch) -> Result<u64, SaveError> {
    stage_within(INLINE_LIMIT, m, path, opt, batch)
}

/// As [`stage`], with another limit for what [`External::Auto`] keeps in one file.
pub(super) fn stage_within(
    limit: usize,
    m: Validated<'_>,
    path: &Path,
    opt: &SaveOptions,
    batch: &mut Batch,
) -> Result<u64, SaveError> {
    let out = Pending::create(path)?;
    // Handles, not weights.
    let mut p = home(m)?;
    let own = out.path().file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let location = match &opt.external {
        External::Inline => None,
        External::Always { location } => {
            let plain = Path::new(location).file_name().is_some_and(|n| n == location.as_str());
            if !plain || *location == own || location.contains(['/', '\\']) {
                return Err(SaveError::Location { location: location.clone() });
            }
            Some(location.clone())
        }
        External::Auto => (p.encoded_len() > limit).then(|| format!("{own}.data")),
    };
    let sources = bytes_of(&mut p);
    let whole = |done: Result<(), SaveError>| match file::intact(&sources) {
        // A map that was cut short can also show as an error of the disk.
        Err(path) => Err(SaveError::Changed { path }),
        Ok(()) => done,
    };
    let data = match location {
        Some(l) => {
            let data = Pending::create(&file::folder(out.path()).join(&l))?;
            let moved = move_into(&data, &l, &mut p);
            whole(moved.as_ref().map(drop).map_err(|e| io_error(&data, e)))?;
            // A file that nothing points to is not written.
            moved.is_ok_and(|n| n > 0).then_some(data)
        }
        None => None,
    };
    check_size(&p)?;
    let mut sink = Sink::new(out.file());
    // The sink has no end, so encoding can only fail by a write error, which the sink remembers.
    let encoded = p.encode(&mut sink).map_err(io::Error::other);
    whole(sink.finish().and(encoded).map_err(|e| io_error(&out, &e)))?;
    let bytes = out.len() + data.as_ref().map_or(0, Pending::len);
    // The data goes first: a model that points to data not yet there would be worse than data nobody reads yet.
    data.into_iter().for_each(|d| batch.add(d));
    batch.add(out);
    Ok(bytes)
}

/// Writes the model, all in one piece, to a pipe or whatever takes bytes. Returns their number.
///
/// # Errors
/// As [`save`].
pub fn write_to(m: Validated<'_>, out: &mut impl Write) -> Result<u64, SaveError> {
    let mut p = home(m)?;
    check_size(&p)?;
    let sources = bytes_of(&mut p);
    // In memory first: what has gone into a pipe cannot be taken back.
    let bytes = p.encode_to_vec();
    file::intact(&sources).map_err(|path| SaveError::Changed { path })?;
    out.write_all(&bytes).and_then(|()| out.flush()).map_err(SaveError::Pipe)?;
    Ok(bytes.len() as u64)
}

/// Bytes that the model takes, all in one piece.
///
/// # Errors
/// If it has operators that its operator set lacks, or tensors whose data were not loaded.
pub fn size(m: Validated<'_>) -> Result<u64, SaveError> {
    Ok(home(m)?.encoded_len() as u64)
}

/// The message of a model whose data are all there.
fn home(m: Validated<'_>) -> Result<proto::ModelProto, SaveError> {
    validate::operators(m.model()).map_err(SaveError::Types)?;
    nested::check_bodies(m.model()).map_err(|(node, source)| SaveError::Body { node, source })?;
    let mut p = back::model(m.model());
    external::tensors(&mut p, &mut |name, t| {
        if t.data_location != Some(FAR) {
            return Ok(());
        }
        Err(SaveError::NotLoaded { tensor: name.to_owned(), location: external::location(t).to_owned() })
    })?;
    Ok(p)
}

fn check_size(p: &proto::ModelProto) -> Result<(), SaveError> {
    match p.encoded_len() {
        bytes if bytes > MESSAGE_LIMIT => Err(SaveError::TooLarge { bytes }),
        _ => Ok(()),
    }
}

/// Handles to the elements of all tensors.
fn bytes_of(p: &mut proto::ModelProto) -> Vec<bytes::Bytes> {
    let mut all = Vec::new();
    let done: Result<(), std::convert::Infallible> = external::tensors(p, &mut |_, t| {
        all.extend(t.raw_data.clone());
        Ok(())
    });
    match done {
        Ok(()) => all,
        Err(e) => match e {},
    }
}

fn move_into(data: &Pending, location: &str, p: &mut proto::ModelProto) -> io::Result<u64> {
    let mut out = io::BufWriter::with_capacity(1 << 16, data.file());
    let n = external::move_out(p, location, &mut out)?;
    out.flush()?;
    Ok(n)
}

fn io_error(p: &Pending, e: &io::Error) -> SaveError {
    // The error is looked at twice, and none can be cloned.
    let source = e.raw_os_error().map_or_else(|| io::Error::new(e.kind(), e.to_string()), io::Error::from_raw_os_error);
    WriteError::Io { path: p.path().to_owned(), source }.into()
}

/// A file as an encoder's buffer: small pieces are gathered, large ones go straight through, the first error is kept
/// until [`Sink::finish`].
struct Sink<'f> {
    file: &'f File,
    buf: Box<[u8]>,
    len: usize,
    error: Option<io::Error>,
}

impl<'f> Sink<'f> {
    fn new(file: &'f File) -> Sink<'f> {
        Sink { file, buf: vec![0; 1 << 16].into(), len: 0, error: None }
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.error.is_none() {
            self.error = self.file.write_all(bytes).err();
        }
    }

    fn flush(&mut self) {
        let buf = std::mem::take(&mut self.buf);
        self.write(&buf[..self.len]);
        self.buf = buf;
        self.len = 0;
    }

    fn finish(mut self) -> io::Result<()> {
        self.flush();
        self.error.take().map_or(Ok(()), Err)
    }
}

// SAFETY: `chunk_mut` is the unused tail of a buffer that is initialised throughout, never empty because `advance_mut`
// empties a full buffer; `advance_mut` only counts bytes of that tail.
unsafe impl BufMut for Sink<'_> {
    fn remaining_mut(&self) -> usize {
        isize::MAX as usize
    }

    unsafe fn advance_mut(&mut self, n: usize) {
        self.len += n;
        assert!(self.len <= self.buf.len(), "advanced beyond the chunk");
        if self.len == self.buf.len() {
            self.flush();
        }
    }

    fn chunk_mut(&mut self) -> &mut UninitSlice {
        UninitSlice::new(&mut self.buf[self.len..])
    }

    fn put_slice(&mut self, src: &[u8]) {
        if src.len() >= self.buf.len() - self.len {
            self.flush();
            if src.len() >= self.buf.len() {
                return self.write(src);
            }
        }
        self.buf[self.len..self.len + src.len()].copy_from_slice(src);
        self.len += src.len();
    }

    fn put<T: bytes::Buf>(&mut self, mut src: T) {
        while src.has_remaining() {
            let n = src.chunk().len();
            self.put_slice(src.chunk());
            src.advance(n);
        }
    }
}
