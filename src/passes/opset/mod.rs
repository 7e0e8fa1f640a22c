//! What it takes to bring one node from one operator set to a newer one.

mod early;
mod unchanged;

use crate::infer::ShapeMap;
use crate::ir::{AttrValue, Attrs, Graph, NodeId, Op, Tensor, ValueId, ops};
use crate::rewrite::{Patch, Ref};
use unchanged::UNCHANGED;

use super::common::is_captured;

/// Newest operator set the conversions are known for.
pub(super) const NEWEST: i64 = 23;

/// One node on its way from operator set `from` to `to`.
pub(super) struct Conversion<'a> {
    pub g: &'a Graph,
    pub map: &'a ShapeMap,
    pub id: NodeId,
    pub from: i64,
    pub to: i64,
}

/// Adds to the patch what the node needs; `Err` says why it cannot be converted.
pub(super) fn convert(job: &Conversion, patch: &mut Patch) -> Result<(), String> {
    let node = job.g.node(job.id);
    if !node.op.is_onnx() {
        return Ok(());
    }
    let op = &node.op.name[..];
    let Some(versions) = ops::versions(op) else { return Err("the standard has no such operator".to_owned()) };
    for s in versions.iter().filter(|s| job.from < s.since && s.since <= job.to) {
        let same = UNCHANGED.binary_search_by_key(&op, |u| u.0).is_ok_and(|i| UNCHANGED[i].1.contains(&s.since));
        if !same {
            job.step(op, s.since, patch)?;
        }
    }
    Ok(())
}

impl Conversion<'_> {
    /// The conversion to one new version of the operator.
    fn step(&self, op: &str, version: i64, patch: &mut Patch) -> Result<(), String> {
        if let Some(done) = self.early(op, version, patch) {
            return done;
        }
        match (op, version) {
            ("Softmax" | "LogSoftmax" | "Hardmax", 13) => self.softmax(op, patch),
            ("Squeeze" | "Unsqueeze" | "ReduceSum", 13) => self.to_input("axes", patch),
            (_, 18) if op.starts_with("Reduce") => self.to_input("axes", patch),
            ("Split", 13) => self.to_input("split", patch),
            ("Split", 18) => {
                let node = self.g.node(self.id);
                // The parts named by an attribute until 12 have become an input in the step before.
                if node.input(1).is_none() && node.attrs.ints("split").is_none_or(<[i64]>::is_empty) {
                    patch.set_attr(self.id, "num_outputs", Some(AttrValue::Int(node.outputs.len() as i64)));
                }
                Ok(())
            }
            // How much is dropped matters in training only, and this form of the operator has no training.
            ("Dropout", 12) => {
                patch.set_attr(self.id, "ratio", None);
                Ok(())
            }
            ("BatchNormalization", 14) => self.batch_norm(patch),
            ("Resize", 13) if self.attr("coordinate_transformation_mode") != Some("tf_half_pixel_for_nn") => Ok(()),
            ("Resize", 13) => Err("opset 13 has no coordinate_transformation_mode tf_half_pixel_for_nn".to_owned()),
            ("AveragePool", 19) if self.g.node(self.id).int("ceil_mode") == 0 => Ok(()),
            ("AveragePool", 19) => Err("opset 19 counts windows in another way with ceil_mode = 1".to_owned()),
            ("RoiAlign", 16) => {
                let mode = AttrValue::Str("output_half_pixel".into());
                patch.set_attr(self.id, "coordinate_transformation_mode", Some(mode));
                Ok(())
            }
            ("GridSample", 20) => {
                let name = match self.attr("mode") {
                    Some("bilinear") => "linear",
                    Some("bicubic") => "cubic",
                    _ => return Ok(()),
                };
                patch.set_attr(self.id, "mode", Some(AttrValue::Str(name.into())));
                Ok(())
            }
            ("GroupNormalization", 21) => self.group_norm(patch),
            _ => Err(format!("how {op} changed at opset {version} is not known here")),
        }
    }

    fn attr(&self, name: &str) -> Option<&str> {
        self.g.node(self.id).attrs.str(name)
    }

    /// A list that was an attribute becomes input 1.
    fn to_input(&self, attr: &str, patch: &mut Patch) -> Result<(), String> {
        let node = self.g.node(self.id);
        let Some(list) = node.attrs.ints(attr) else {
            return match node.attrs.get(attr) {
                None => Ok(()),
                Some(_) => Err(format!("attribute {attr} is no list of integers")),
            };
        };
        // An empty list means the default in both forms, but for the axes that are put in.
        if !list.is_empty() || node.op.is("Unsqueeze") {
            let t = patch.under(&self.name()).ints(attr, list);
            patch.set_input(self.id, 1, Some(t));
        }
        patch.set_attr(self.id, attr, None);
        Ok(())
    }

    fn name(&self) -> String {
        self.g.node(self.id).outputs.iter().flatten().next().map_or(String::new(), |v| self.g.name_of(*v).to_owned())
    }

    fn ends(&self) -> Result<(ValueId, ValueId), String> {
        let node = self.g.node(self.id);
        node.input(0).zip(node.out()).ok_or_else(|| "it lacks its input or output".to_owned())
    }

    /// Until opset 12 softmax runs over all axes from `axis` on, together; from 13 on over one axis.
    fn softmax(&self, op: &str, patch: &mut Patch) -> Result<(), String> {
        let (x, y) = self.ends()?;
        let axis = self.g.node(self.id).attrs.int("axis").unwrap_or(1);
        let dims = self.map.dims(x);
        let at = dims.and_then(|d| usize::try_from(if axis < 0 { axis + d.len() as i64 } else { axis }).ok());
        let one_axis = axis == -1
            || dims.zip(at).and_then(|(d, a)| d.get(a + 1..)).is_some_and(|r| r.iter().all(|d| d.known() == Some(1)));
        if one_axis {
            let last = dims.zip(at).is_some_and(|(d, a)| a + 1 == d.len());
            let axis = if last { -1 } else { axis };
            patch.set_attr(self.id, "axis", Some(AttrValue::Int(axis)));
            return Ok(());
        }
        let name = self.name();
        let mut e = patch.under(&name);
        let flat = e.op_with("Flatten", "flat", &[x.into()], Attrs::new().with_int("axis", axis));
        let soft = e.op_with(op, "rows", &[flat], Attrs::new().with_int("axis", -1));
        let shape = e.op("Shape", "shape", &[x.into()]);
        let new = e.op("Reshape", "", &[soft, shape]);
        self.replace(y, new, patch)
    }

    fn replace(&self, y: ValueId, new: Ref, patch: &mut Patch) -> Result<(), String> {
        if is_captured(self.g, y) {
            return Err("a nested graph reads what it makes, which would be made in another way".to_owned());
        }
        if let Some(ty) = self.map.ty(y) {
            patch.typed(new, ty.dtype, ty.shape);
        }
        patch.replace(y, new);
        patch.erase(self.id);
        Ok(())
    }

    /// Opset 14 has no saved mean and variance any more; whoever reads them trains.
    fn batch_norm(&self, patch: &mut Patch) -> Result<(), String> {
        let node = self.g.node(self.id);
        let mut rest = node.outputs.iter().skip(1).flatten().peekable();
        if rest.peek().is_none() {
            return Ok(());
        }
        if rest.any(|v| self.g.use_count(*v) > 0) {
            return Err("it is in training mode, which opset 14 writes differently".to_owned());
        }
        let (_, y) = self.ends()?;
        let new = patch.under(&self.name()).like(node, "", &[]);
        self.replace(y, new, patch)
    }

    /// Opset 18 has one scale and bias per group, opset 21 one per channel.
    fn group_norm(&self, patch: &mut Patch) -> Result<(), String> {
        let node = self.g.node(self.id);
        let (x, _) = self.ends()?;
        let groups = node.attrs.int("num_groups").filter(|g| *g > 0).ok_or("it lacks num_groups")?;
        let channels =
            self.map.dims(x).and_then(|d| d.get(1)?.known()).filter(|c| (1..1 << 20).contains(c) && c % groups == 0);
        let each = channels.ok_or("its number of channels is not known or not a multiple of its groups")? / groups;
        for slot in [1, 2] {
            let v = node.input(slot).ok_or("it lacks its scale or bias")?;
            let t = self.map.constant(v).ok_or("its scale and bias are computed at run time")?;
            let (bytes, size) = (t.to_le_bytes(), t.dtype.bits().unwrap_or(0) / 8);
            let bytes =
                bytes.filter(|_| t.dims == [groups] && size > 0).ok_or("its scale or bias has a wrong shape")?;
            let wide: Vec<u8> = bytes.chunks_exact(size).flat_map(|e| e.repeat(each as usize)).collect();
            let wide = Tensor::raw(t.dtype, &[groups * each], wide);
            let new = patch.under(self.g.name_of(v)).constant("per_channel", wide);
            patch.set_input(self.id, slot, Some(new));
        }
        Ok(())
    }
}

/// How a message names an operator call.
pub(super) fn describe(g: &Graph, id: NodeId) -> String {
    let node = g.node(id);
    let op: &Op = &node.op;
    match (&node.name[..], node.outputs.iter().flatten().next()) {
        ("", Some(v)) => format!("{op} (which makes `{}`)", g.name_of(*v)),
        ("", None) => op.to_string(),
        (name, _) => format!("{op} `{name}`"),
    }
}
