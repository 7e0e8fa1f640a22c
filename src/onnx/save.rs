//! Writing a model to disk: all or nothing, and without a second copy of the weights in memory.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use bytes::BufMut;
use bytes::buf::UninitSlice;
use prost::Message;

use super::external::{self, Folder};
use super::{SaveError, back};
use crate::file::{Pending, WriteError};
use crate::ir::{Attr, AttrValue, Def, External as Far, Model, Payload, Rider, Tensor, Validated};

/// Above this encoded size [`External::Auto`] puts the weights into a file of their own. One protobuf message can not
/// be larger than 2 GB, and readers count differently on the way there.
const INLINE_LIMIT: usize = 1_900_000_000;

/// The hard limit of a protobuf message.
const MESSAGE_LIMIT: usize = i32::MAX as usize;

/// External tensors start at multiples of this, so that readers can map each by itself.
const PAGE: u64 = 4096;

/// Tensors below this size stay in the model, in bytes: shapes and scalars must be readable without the data file.
const SMALL: usize = 1024;

/// How a model is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SaveOptions {
    pub external: External,
}

/// Where the weights go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum External {
    /// As it was: tensors that lay in a file beside the model stay there if that file lies beside the output too, and
    /// otherwise move into `OUT.data`; inline tensors stay inline unless the model would grow beyond 1.9 GB.
    #[default]
    Auto,
    /// Everything into the model file.
    Inline,
    /// Every tensor of 1 KiB and more into the file of this name beside the model.
    Always { location: String },
}

/// Writes the model to `path`. It is written under another name in the same folder and then renamed, so that a failure
/// leaves a file that was there untouched, and a model can be saved over the very file it is mapped from.
///
/// # Errors
/// If the folder can not be written to, an external tensor's data is missing, or the model is too large for one file.
pub fn save(m: Validated<'_>, path: &Path, opt: &SaveOptions) -> Result<(), SaveError> {
    let dir = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    let out = Pending::create(path)?;
    let own = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let beside = format!("{own}.data");
    // Clones handles, not weights.
    let mut model = m.model().clone();
    let data = match &opt.external {
        External::Inline => {
            inline(&mut model)?;
            None
        }
        External::Always { location } => {
            let plain = Path::new(location).file_name().is_some_and(|n| n == location.as_str());
            if !plain || *location == own || location.contains(['/', '\\']) {
                return Err(SaveError::Location { location: location.clone() });
            }
            Some(write_data(&mut model, dir, location, |t| t.byte_len() >= SMALL)?)
        }
        External::Auto => {
            if !far_data_stands(&model, dir)? {
                Some(write_data(&mut model, dir, &beside, |t| matches!(t.data, Payload::External(_)))?)
            } else if back::model(&model).encoded_len() > INLINE_LIMIT {
                Some(write_data(&mut model, dir, &beside, |t| t.byte_len() >= SMALL)?)
            } else {
                None
            }
        }
    };
    let p = back::model(&model);
    let size = p.encoded_len();
    if size > MESSAGE_LIMIT {
        return Err(SaveError::TooLarge { bytes: size });
    }
    let mut sink = Sink::new(out.file());
    // The sink has no end, so encoding can only fail by a write error, which the sink remembers.
    let encoded = p.encode(&mut sink).map_err(io::Error::other);
    sink.finish().and(encoded).map_err(|source| WriteError::Io { path: path.to_owned(), source })?;
    match data {
        // The data goes first: a model that points to data not yet there would be worse than data nobody reads yet.
        Some(data) => data.commit_with(out)?,
        None => out.commit()?,
    }
    Ok(())
}

/// Every tensor of the graph outside nested graphs, with what to call it.
fn tensors_mut(m: &mut Model, mut f: impl FnMut(&str, &mut Tensor) -> Result<(), SaveError>) -> Result<(), SaveError> {
    let g = &mut m.graph;
    for v in g.initializers().to_vec() {
        let x = g.value_mut(v);
        if let Def::Init(t) | Def::InputWithDefault(t) = &mut x.def {
            f(&x.name, t)?;
        }
    }
    let ids: Vec<_> = g.nodes().map(|(id, _)| id).collect();
    for id in ids {
        let n = g.node_mut(id);
        for Attr { name, value, .. } in &mut n.attrs.0 {
            match value {
                AttrValue::Tensor(t) => f(name, t)?,
                AttrValue::Tensors(ts) if ts.iter().any(|t| matches!(t.data, Payload::External(_))) => {
                    let mut list = ts.to_vec();
                    list.iter_mut().try_for_each(|t| f(name, t))?;
                    *ts = list.into();
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn missing(tensor: &str, e: &Far) -> SaveError {
    SaveError::NotLoaded { tensor: tensor.to_owned(), location: external::location(&e.entries).to_owned() }
}

/// What a tensor's rider may keep once its bytes have moved.
fn unplaced(r: &Rider) -> Rider {
    let mut p: super::proto::TensorProto = super::tensor::rest(r);
    p.external_data = Vec::new();
    super::tensor::rider(&p)
}

fn inline(m: &mut Model) -> Result<(), SaveError> {
    nested_external(m)?;
    tensors_mut(m, |name, t| {
        if let Payload::External(e) = &t.data {
            let b = e.bytes.clone().ok_or_else(|| missing(name, e))?;
            t.data = Payload::Raw(b);
            t.rider = unplaced(&t.rider);
        }
        Ok(())
    })
}

/// The encoded model with all its data in it, wherever its file keeps them: what a runtime is given. Tensors whose data were
/// not loaded keep pointing to them.
pub fn encode_whole(m: Validated<'_>) -> Vec<u8> {
    let mut model = m.model().clone();
    let moved = tensors_mut(&mut model, |_, t| {
        if let Payload::External(Far { bytes: Some(b), .. }) = &t.data {
            t.data = Payload::Raw(b.clone());
            t.rider = unplaced(&t.rider);
        }
        Ok(())
    });
    debug_assert!(moved.is_ok());
    back::model(&model).encode_to_vec()
}

/// Nested graphs are carried undecoded, so their external tensors can not move.
fn nested_external(m: &Model) -> Result<(), SaveError> {
    fn far(g: &super::proto::GraphProto) -> bool {
        let external = |t: &super::proto::TensorProto| !t.external_data.is_empty();
        g.initializer.iter().any(external)
            || g.node
                .iter()
                .flat_map(|n| &n.attribute)
                .any(|a| a.t.iter().chain(&a.tensors).any(external) || a.g.iter().chain(&a.graphs).any(far))
    }
    for (_, n) in m.graph.nodes() {
        let bodies = n.attrs.0.iter().flat_map(|a| match &a.value {
            AttrValue::Graph(b) => std::slice::from_ref(b),
            AttrValue::Graphs(v) => v,
            _ => &[],
        });
        if bodies.into_iter().any(|b| far(&super::attr::body(b))) {
            return Err(SaveError::Nested { node: n.name.clone() });
        }
    }
    Ok(())
}

/// True if every external tensor finds its own bytes at the same place beside the output (as it does when the output
/// goes into the folder the model came from), or was never loaded.
fn far_data_stands(m: &Model, dir: &Path) -> Result<bool, SaveError> {
    let mut folder = Folder::new(Some(dir));
    let mut stands = true;
    let mut check = |t: &Tensor| {
        if let Payload::External(Far { entries, bytes: Some(b) }) = &t.data {
            stands = stands && folder.find(entries, Some(b.len())).ok().flatten().is_some_and(|f| f == *b);
        }
    };
    for v in m.graph.initializers() {
        if let Def::Init(t) | Def::InputWithDefault(t) = &m.graph.value(*v).def {
            check(t);
        }
    }
    for (_, n) in m.graph.nodes() {
        for a in &n.attrs.0 {
            match &a.value {
                AttrValue::Tensor(t) => check(t),
                AttrValue::Tensors(ts) => ts.iter().for_each(&mut check),
                _ => {}
            }
        }
    }
    if !stands {
        nested_external(m)?;
    }
    Ok(stands)
}

/// Streams the chosen tensors into a new data file and makes them point there. Tensors that were external before
/// always move: their old file need not lie beside the output.
fn write_data(
    m: &mut Model,
    dir: &Path,
    location: &str,
    choose: impl Fn(&Tensor) -> bool,
) -> Result<Pending, SaveError> {
    nested_external(m)?;
    let data = Pending::create(&dir.join(location))?;
    let mut out = io::BufWriter::with_capacity(1 << 16, data.file());
    let mut at = 0u64;
    let fail = |source| WriteError::Io { path: data.path().to_owned(), source };
    tensors_mut(m, |name, t| {
        if let Payload::External(e) = &t.data {
            // Small ones come home, the others move.
            t.data = Payload::Raw(e.bytes.clone().ok_or_else(|| missing(name, e))?);
            t.rider = unplaced(&t.rider);
            if t.byte_len() < SMALL {
                return Ok(());
            }
        } else if !choose(t) {
            return Ok(());
        }
        let Some(b) = t.to_le_bytes() else { return Ok(()) };
        let pad = at.next_multiple_of(PAGE) - at;
        io::copy(&mut io::Read::take(io::repeat(0), pad), &mut out).map_err(fail)?;
        out.write_all(&b).map_err(fail)?;
        let offset = at + pad;
        at = offset + b.len() as u64;
        let entries: Arc<[(String, String)]> = [
            ("location".to_owned(), location.to_owned()),
            ("offset".to_owned(), offset.to_string()),
            ("length".to_owned(), b.len().to_string()),
        ]
        .into();
        t.data = Payload::External(Far { entries, bytes: None });
        Ok(())
    })?;
    out.flush().map_err(fail)?;
    drop(out);
    Ok(data)
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
