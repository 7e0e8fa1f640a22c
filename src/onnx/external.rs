//! Data beside the model: found, checked, and brought home when a model is read; moved out when one is written that is too
//! large for one file.
//!
//! Once read, a model does not know that its weights came from another file: their bytes are handles to that file's
//! bytes, and what is written later never points to the files that were read.
//!
//! *Where the data may lie.* A path inside a model file is a stranger's word. Its text must stay inside the folder: no `..`, no
//! root. It is looked for in the folder of the path by which the user named the model, then in the folder where that
//! path leads if it is a link. Links on the way are followed as long as the file they reach lies in one of these two
//! folders, or below. So the layout of caches works (`snapshots/7f/model.onnx` and `snapshots/7f/model.onnx_data` are
//! links into `blobs/`), because there the user's own link names the second folder; an archive that holds a model and a
//! link to somebody's key does not get the key into a file that its victim publishes. onnxruntime draws the same line.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;

use super::tensor::{FAR, rider, take_tensor, tensor_proto};
use super::{LoadError, front, proto};
use crate::file;
use crate::ir::{DType, Payload};

/// External tensors start at multiples of this, so that readers can map each by itself.
const PAGE: u64 = 4096;

/// Tensors below this size stay in the model, in bytes: shapes and scalars must be readable without the data file.
const SMALL: usize = 1024;

/// Where a model came from, as far as its data files are concerned.
#[derive(Clone, Copy, Debug)]
pub(super) enum Origin<'p> {
    /// The path by which the user named it.
    File(&'p Path),
    /// A folder; the model itself has no file.
    Folder(&'p Path),
    /// A pipe: there is no folder.
    Pipe,
    /// Nowhere; data files are left alone.
    Memory,
}

/// Visits every tensor of a graph and of the graphs in it, with what to call it.
fn tensors_of_graph<E>(
    g: &mut proto::GraphProto,
    f: &mut dyn FnMut(&str, &mut proto::TensorProto) -> Result<(), E>,
) -> Result<(), E> {
    for t in &mut g.initializer {
        let name = t.name.clone().unwrap_or_default();
        f(&name, t)?;
    }
    for s in &mut g.sparse_initializer {
        sparse(s, f)?;
    }
    tensors_of_nodes(&mut g.node, f)
}

fn sparse<E>(
    s: &mut proto::SparseTensorProto,
    f: &mut dyn FnMut(&str, &mut proto::TensorProto) -> Result<(), E>,
) -> Result<(), E> {
    let name = s.values.as_ref().and_then(|v| v.name.clone()).unwrap_or_default();
    s.values.iter_mut().chain(&mut s.indices).try_for_each(|t| f(&name, t))
}

fn tensors_of_nodes<E>(
    nodes: &mut [proto::NodeProto],
    f: &mut dyn FnMut(&str, &mut proto::TensorProto) -> Result<(), E>,
) -> Result<(), E> {
    for (i, n) in nodes.iter_mut().enumerate() {
        if n.attribute.is_empty() {
            continue;
        }
        let label = front::call(n, i);
        attributes(&mut n.attribute, &format!("of node {label}"), f)?;
    }
    Ok(())
}

fn attributes<E>(
    list: &mut [proto::AttributeProto],
    of: &str,
    f: &mut dyn FnMut(&str, &mut proto::TensorProto) -> Result<(), E>,
) -> Result<(), E> {
    for a in list {
        if a.t.is_some() || !a.tensors.is_empty() {
            let name = format!("{} {of}", a.name.as_deref().unwrap_or(""));
            a.t.iter_mut().chain(&mut a.tensors).try_for_each(|t| f(&name, t))?;
        }
        a.sparse_tensor.iter_mut().chain(&mut a.sparse_tensors).try_for_each(|s| sparse(s, f))?;
        a.g.iter_mut().chain(&mut a.graphs).try_for_each(|g| tensors_of_graph(g, f))?;
    }
    Ok(())
}

/// Visits every tensor of a model, also in functions and in what belongs to training.
pub(super) fn tensors<E>(
    p: &mut proto::ModelProto,
    f: &mut dyn FnMut(&str, &mut proto::TensorProto) -> Result<(), E>,
) -> Result<(), E> {
    p.graph.iter_mut().try_for_each(|g| tensors_of_graph(g, f))?;
    for function in &mut p.functions {
        let of = format!("of function {}", function.name.as_deref().unwrap_or(""));
        attributes(&mut function.attribute_proto, &of, f)?;
        tensors_of_nodes(&mut function.node, f)?;
    }
    for t in &mut p.training_info {
        t.initialization.iter_mut().chain(&mut t.algorithm).try_for_each(|g| tensors_of_graph(g, f))?;
    }
    Ok(())
}

/// Puts the bytes of every tensor that lies in a data file into the message, as handles to what was read or mapped.
/// Returns the data files, in the order in which they are named.
pub(super) fn bring_home(
    p: &mut proto::ModelProto,
    origin: Origin<'_>,
    file: &str,
) -> Result<Vec<(PathBuf, u64)>, LoadError> {
    if matches!(origin, Origin::Memory) {
        return Ok(Vec::new());
    }
    let mut folder = Folder { origin, known: BTreeMap::new(), files: Vec::new() };
    tensors(p, &mut |name, t| {
        if t.data_location != Some(FAR) {
            return Ok(());
        }
        let bytes = folder.find(t).map_err(|(location, problem)| LoadError::External {
            file: file.to_owned(),
            tensor: name.to_owned(),
            location,
            problem,
        })?;
        t.data_location = None;
        t.external_data = Vec::new();
        t.raw_data = Some(bytes);
        Ok(())
    })?;
    Ok(folder.files)
}

fn entry<'e>(t: &'e proto::TensorProto, key: &str) -> Option<&'e str> {
    t.external_data.iter().find(|e| e.key.as_deref() == Some(key)).and_then(|e| e.value.as_deref())
}

/// The `location` entry.
pub(super) fn location(t: &proto::TensorProto) -> &str {
    entry(t, "location").unwrap_or("")
}

/// `offset` and `length`; `None` in the first place if one is written but is no number.
fn range(t: &proto::TensorProto) -> Option<(usize, Option<usize>)> {
    let plain = |s: &str| s.bytes().all(|b| b.is_ascii_digit()).then(|| s.parse::<usize>().ok()).flatten();
    let number = |k| entry(t, k).map(|s| plain(s).ok_or(())).transpose();
    Some((number("offset").ok()?.unwrap_or(0), number("length").ok()?))
}

/// Bytes that the shape asks for, used when the entries give no length.
fn size(t: &proto::TensorProto) -> Option<usize> {
    let n = t.dims.iter().try_fold(1usize, |a, d| a.checked_mul(usize::try_from(*d).ok()?))?;
    Some(n.checked_mul(DType(t.data_type.unwrap_or(0)).bits()?)?.div_ceil(8))
}

/// The data files of one model, each read once.
struct Folder<'p> {
    origin: Origin<'p>,
    known: BTreeMap<String, Bytes>,
    files: Vec<(PathBuf, u64)>,
}

impl Folder<'_> {
    /// The bytes that the entries of an external tensor point to, or the location and what is wrong with it.
    fn find(&mut self, t: &proto::TensorProto) -> Result<Bytes, (String, String)> {
        let location = location(t);
        let refuse = |problem: String| (location.to_owned(), problem);
        // Readers differ on which of two counts.
        let mut keys: Vec<&str> = t.external_data.iter().filter_map(|e| e.key.as_deref()).collect();
        keys.sort_unstable();
        if let Some(twice) = keys.windows(2).find(|k| k[0] == k[1]) {
            return Err(refuse(format!(
                "is named with two entries `{}`, and readers differ on which counts; export the model again",
                twice[0]
            )));
        }
        let (offset, length) = range(t).ok_or_else(|| {
            refuse("is given with an offset or length that is no number; export the model again".into())
        })?;
        if !self.known.contains_key(location) {
            let bytes = self.open(location).map_err(refuse)?;
            self.known.insert(location.to_owned(), bytes);
        }
        let all = &self.known[location];
        let rest = all.len().checked_sub(offset);
        let length = length.or(size(t)).or(rest).unwrap_or(0);
        if rest.is_none_or(|r| r < length) {
            return Err(refuse(format!(
                "has {} bytes, too few for the {length} at offset {offset} that the tensor needs: it was cut short or \
                 belongs to another model; put the one that came with the model there",
                all.len()
            )));
        }
        Ok(all.slice(offset..offset + length))
    }

    fn open(&mut self, location: &str) -> Result<Bytes, String> {
        let inside = !location.is_empty()
            && Path::new(location).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
        if !inside {
            return Err("is no path inside the model's folder: refused; put the data beside the model, and export it again with that name".into());
        }
        let (named, led) = match self.origin {
            // Where the user's own link leads; the same folder if it is none.
            Origin::File(p) => (file::folder(p), p.canonicalize().ok().map(|p| file::folder(&p).to_owned())),
            Origin::Folder(d) => (d, None),
            Origin::Pipe | Origin::Memory => {
                let why = "has no folder to be looked for in, because the model comes through a pipe";
                return Err(format!("{why}; give the model by its path"));
            }
        };
        let home = named
            .canonicalize()
            .map_err(|e| format!("cannot be looked for in {}: {e}; check that folder", named.display()))?;
        let homes: Vec<PathBuf> = [Some(home), led].into_iter().flatten().collect();
        let path = named.join(location);
        let there = homes.iter().skip(1).map(|h| h.join(location)).find(|p| !path.exists() && p.exists());
        let path = there.unwrap_or(path);
        let target = path.canonicalize().map_err(|e| {
            format!("cannot be read: {e}; put the data file that came with the model at {}", path.display())
        })?;
        if !homes.iter().any(|h| target.starts_with(h)) {
            return Err(format!(
                "is a link that leads out of the model's folder, to {}: refused; if it is what you want, put that file \
                 itself at {}",
                target.display(),
                path.display()
            ));
        }
        if !target.is_file() {
            return Err("is no regular file: refused; put the data file that came with the model there".into());
        }
        let bytes = file::read(&target).map_err(|e| format!("cannot be read: {e}"))?;
        self.files.push((path, bytes.len() as u64));
        Ok(bytes)
    }
}

/// Streams the tensors of 1 KiB and more to `out` and makes them point to `location`. Returns the number of bytes: 0 if there
/// are no such tensors. Functions and what belongs to training keep theirs.
pub(super) fn move_out(p: &mut proto::ModelProto, location: &str, out: &mut impl Write) -> io::Result<u64> {
    let mut at = 0u64;
    let Some(g) = &mut p.graph else { return Ok(0) };
    tensors_of_graph(g, &mut |_, t| {
        let mut rest = std::mem::take(t);
        let mut x = take_tensor(&mut rest);
        x.rider = rider(&rest);
        if x.byte_len() >= SMALL
            && !matches!(x.data, Payload::External(_))
            && let Some(b) = x.to_le_bytes()
        {
            let pad = at.next_multiple_of(PAGE) - at;
            io::copy(&mut io::Read::take(io::repeat(0), pad), out)?;
            out.write_all(&b)?;
            let offset = at + pad;
            at = offset + b.len() as u64;
            let entry = |k: &str, v: String| (k.to_owned(), v);
            x.data = Payload::External(
                [
                    entry("location", location.to_owned()),
                    entry("offset", offset.to_string()),
                    entry("length", (at - offset).to_string()),
                ]
                .into(),
            );
        }
        *t = tensor_proto(&x);
        Ok(())
    })
    .map(|()| at)
}
