//! What changed up to operator set 11: attributes became inputs, and operands that were laid along an axis are now laid as
//! NumPy does it.

use super::Conversion;
use crate::ir::{AttrValue, Attrs, DType, Op, Tensor, ValueId};
use crate::rewrite::{Patch, Ref};

impl Conversion<'_> {
    /// The conversion to one new version of an operator, of those up to opset 11; `None` for others.
    pub(super) fn early(&self, op: &str, version: i64, patch: &mut Patch) -> Option<Result<(), String>> {
        let without = |names: &[&str], patch: &mut Patch| {
            names.iter().for_each(|n| patch.set_attr(self.id, n, None));
            Ok(())
        };
        Some(match (op, version) {
            ("Cast", 6) => self.cast(patch),
            ("Tile", 6) => Err("opset 6 repeats all axes, and opset 1 one".to_owned()),
            (_, 6) => without(&["consumed_inputs"], patch),
            ("Concat", 4) => {
                let axis = self.g.node(self.id).attrs.int("axis").unwrap_or(1);
                patch.set_attr(self.id, "axis", Some(AttrValue::Int(axis)));
                Ok(())
            }
            ("Reshape", 5) => {
                patch.set_attr(self.id, "consumed_inputs", None);
                self.list_to("shape", 1, patch)
            }
            ("Add" | "Sub" | "Mul" | "Div" | "Pow" | "And" | "Or" | "Xor" | "Equal" | "Less" | "Greater", 7) => {
                self.broadcast(patch)
            }
            ("PRelu", 7) => self.slopes(patch),
            ("Gemm", 7) => without(&["broadcast"], patch),
            // With one output it never was in training.
            ("Dropout", 7) => without(&["is_test"], patch),
            ("BatchNormalization", 7) => without(&["is_test"], patch),
            ("BatchNormalization", 9) if self.g.node(self.id).attrs.int("spatial") == Some(0) => {
                Err("it normalises each place by itself (spatial = 0), which opset 9 no longer has".to_owned())
            }
            ("BatchNormalization", 9) => without(&["spatial"], patch),
            ("LSTM" | "GRU" | "RNN", 7) => without(&["output_sequence"], patch),
            ("Slice", 10) => {
                ["starts", "ends", "axes"].iter().zip(1..).try_for_each(|(attr, slot)| self.list_to(attr, slot, patch))
            }
            ("TopK", 10) => self.number_of_top(patch),
            ("Clip", 11) => self.bounds(patch),
            ("Pad", 2) => {
                let pads = self.g.node(self.id).attrs.get("paddings").cloned();
                patch.set_attr(self.id, "pads", pads);
                without(&["paddings"], patch)
            }
            ("Pad", 11) => self.pads(patch),
            ("Scatter", 11) => self.scatter(patch),
            // Opset 10 has another name for it; only that is converted.
            ("Upsample", 7 | 9) if self.to >= 10 => Ok(()),
            ("Upsample", 10) => self.upsample(patch),
            ("Resize", 11) => self.resize(patch),
            _ => return None,
        })
    }

    /// A list that was an attribute becomes an input.
    fn list_to(&self, attr: &str, slot: usize, patch: &mut Patch) -> Result<(), String> {
        let Some(v) = self.g.node(self.id).attrs.get(attr) else { return Ok(()) };
        let AttrValue::Ints(list) = v else { return Err(format!("attribute {attr} is no list of integers")) };
        let t = patch.under(&self.name()).ints(attr, list);
        patch.set_input(self.id, slot, Some(t));
        patch.set_attr(self.id, attr, None);
        Ok(())
    }

    /// Until opset 5 the type is a word.
    fn cast(&self, patch: &mut Patch) -> Result<(), String> {
        let Some(word) = self.attr("to") else { return Err("attribute to is no name of a type".to_owned()) };
        let named = |t: &DType| t.name().is_some_and(|n| n.eq_ignore_ascii_case(word));
        let to = (1..32).map(DType).find(named).ok_or_else(|| format!("there is no element type {word:?}"))?;
        patch.set_attr(self.id, "to", Some(AttrValue::Int(to.0.into())));
        Ok(())
    }

    fn rank(&self, v: ValueId) -> Option<usize> {
        self.map.dims(v).map(<[_]>::len)
    }

    /// The value with so many trailing axes of size 1.
    fn widened(&self, v: ValueId, rank: usize, more: usize, patch: &mut Patch) -> Ref {
        let name = self.name();
        // A 0 copies the size of that axis.
        let shape: Vec<i64> = (0..rank).map(|_| 0).chain((0..more).map(|_| 1)).collect();
        patch.under(&name).reshaped("aligned", v.into(), &shape)
    }

    /// Until opset 6 the second operand is laid along the axes of the first from `axis` on, or along the last ones.
    fn broadcast(&self, patch: &mut Patch) -> Result<(), String> {
        let node = self.g.node(self.id);
        let along = node.attrs.int("axis").filter(|_| node.attrs.int("broadcast") == Some(1));
        if let Some(axis) = along {
            let (a, b) = node.input(0).zip(node.input(1)).ok_or("it lacks an operand")?;
            let unknown = "how many axes its operands have, which `axis` counts, is not known";
            let (ra, rb) = self.rank(a).zip(self.rank(b)).ok_or(unknown)?;
            let from = if axis < 0 { axis + ra as i64 } else { axis };
            let more = usize::try_from(ra as i64 - from - rb as i64);
            let more = more.ok().filter(|_| from >= 0).ok_or_else(|| {
                format!("its second operand has {rb} axes, too many for the first one's {ra} from axis {axis} on")
            })?;
            if more > 0 {
                let b = self.widened(b, rb, more, patch);
                patch.set_input(self.id, 1, Some(b));
            }
        }
        patch.set_attr(self.id, "axis", None);
        patch.set_attr(self.id, "broadcast", None);
        Ok(())
    }

    /// Until opset 6 slopes belong to the second axis.
    fn slopes(&self, patch: &mut Patch) -> Result<(), String> {
        let node = self.g.node(self.id);
        let (x, slope) = node.input(0).zip(node.input(1)).ok_or("it lacks an operand")?;
        let unknown = "how many axes its operands have is not known";
        let (rx, rs) = self.rank(x).zip(self.rank(slope)).ok_or(unknown)?;
        let one = self.map.dims(slope).is_some_and(|d| d.iter().all(|d| d.known() == Some(1)));
        if rs == 1 && rx > 2 && !one {
            let slope = self.widened(slope, 1, rx - 2, patch);
            patch.set_input(self.id, 1, Some(slope));
        }
        Ok(())
    }

    fn number_of_top(&self, patch: &mut Patch) -> Result<(), String> {
        let k = self.g.node(self.id).attrs.int("k").ok_or("it lacks k")?;
        let k = patch.under(&self.name()).ints("k", &[k]);
        patch.set_input(self.id, 1, Some(k));
        patch.set_attr(self.id, "k", None);
        Ok(())
    }

    /// A number in the type of the node's input.
    fn number(&self, part: &str, x: f32, patch: &mut Patch) -> Result<Ref, String> {
        let of = self.g.node(self.id).input(0).and_then(|v| self.map.ty(v)).map(|t| t.dtype);
        let t = match of {
            Some(DType::FLOAT) => Tensor::f32(&[], &[x]),
            Some(DType::DOUBLE) => Tensor::raw(DType::DOUBLE, &[], f64::from(x).to_le_bytes().to_vec()),
            Some(DType::FLOAT16) => Tensor::raw(DType::FLOAT16, &[], half::f16::from_f32(x).to_le_bytes().to_vec()),
            _ => {
                return Err(
                    "its element type, in which its numbers are to be, is not known or none of floats".to_owned()
                );
            }
        };
        Ok(patch.under(&self.name()).constant(part, t))
    }

    fn bounds(&self, patch: &mut Patch) -> Result<(), String> {
        for (slot, attr) in [(1, "min"), (2, "max")] {
            if let Some(x) = self.g.node(self.id).attrs.float(attr) {
                let t = self.number(attr, x, patch)?;
                if slot == 2 && self.g.node(self.id).attrs.get("min").is_none() {
                    patch.set_input(self.id, 1, None);
                }
                patch.set_input(self.id, slot, Some(t));
                patch.set_attr(self.id, attr, None);
            }
        }
        Ok(())
    }

    fn pads(&self, patch: &mut Patch) -> Result<(), String> {
        let node = self.g.node(self.id);
        // The name of opset 1.
        let pads = node.attrs.ints("pads").or_else(|| node.attrs.ints("paddings")).ok_or("it lacks pads")?;
        let t = patch.under(&self.name()).ints("pads", pads);
        patch.set_input(self.id, 1, Some(t));
        if let Some(x) = node.attrs.float("value").filter(|x| *x != 0.0) {
            let t = self.number("value", x, patch)?;
            patch.set_input(self.id, 2, Some(t));
        }
        ["pads", "value"].iter().for_each(|a| patch.set_attr(self.id, a, None));
        Ok(())
    }

    fn scatter(&self, patch: &mut Patch) -> Result<(), String> {
        let node = self.g.node(self.id);
        let (_, y) = self.ends()?;
        let inputs: Vec<Ref> = node.inputs.iter().flatten().map(|v| Ref::from(*v)).collect();
        let new = patch.under(&self.name()).op_with("ScatterElements", "", &inputs, node.attrs.clone());
        self.replace(y, new, patch)
    }

    fn upsample(&self, patch: &mut Patch) -> Result<(), String> {
        let node = self.g.node(self.id);
        let (x, y) = self.ends()?;
        let mode = self.attr("mode").unwrap_or("nearest");
        let mode = if mode == "bilinear" { "linear" } else { mode };
        let scales = match (node.input(1), node.attrs.get("scales")) {
            (Some(v), _) => Ref::from(v),
            (None, Some(AttrValue::Floats(s))) => patch.under(&self.name()).floats("scales", s),
            (None, _) => {
                let side = |attr| node.attrs.float(attr);
                let (h, w) = side("height_scale").zip(side("width_scale")).ok_or("it lacks its scales")?;
                patch.under(&self.name()).floats("scales", &[1.0, 1.0, h, w])
            }
        };
        self.resized((x, y), scales, mode, patch)
    }

    fn resize(&self, patch: &mut Patch) -> Result<(), String> {
        let scales = self.g.node(self.id).input(1).ok_or("it lacks its scales")?;
        let mode = self.attr("mode").unwrap_or("nearest").to_owned();
        self.resized(self.ends()?, scales.into(), &mode, patch)
    }

    /// Until opset 10, places are divided by the scale, and the nearest one is that before.
    fn resized(&self, (x, y): (ValueId, ValueId), scales: Ref, mode: &str, patch: &mut Patch) -> Result<(), String> {
        if self.to < 11 {
            return Err("its conversion is known to opset 11 and later alone".to_owned());
        }
        let node = self.g.node(self.id);
        let larger = match node.input(1) {
            Some(v) => self.map.constant(v).and_then(Tensor::to_f32s).map(|s| s.to_vec()),
            // Upsample makes nothing smaller.
            None => Some(Vec::new()),
        };
        if mode == "nearest" && !node.op.is("Upsample") && larger.is_none_or(|s| s.iter().any(|s| *s < 1.0)) {
            return Err("runtimes do not agree on which element is the nearest where opset 10 makes a picture smaller"
                .to_owned());
        }
        let attrs = Attrs::new()
            .with_str("mode", mode)
            .with_str("coordinate_transformation_mode", "asymmetric")
            .with_str("nearest_mode", "floor");
        let roi = patch.under(&self.name()).floats("roi", &[]);
        let new =
            patch.node_with(Op::onnx("Resize"), &[Some(x.into()), Some(roi), Some(scales)], &[&self.name()], attrs)[0];
        self.replace(y, new, patch)
    }
}

#[cfg(test)]
mod tests {
    use crate::ir::validate::validate;
    use crate::ir::{DType, Model};
    use crate::passes::Pass;
    use crate::passes::raise_opset::{RaiseOpset, obstacles};
    use crate::text::{Elide, parse_model, print_model};

    fn model(opset: i64, signature: &str, constants: &str, body: &str) -> Model {
        let head = format!("<ir_version: 8, opset_import: [\"\" : {opset}]> g {signature} {constants}");
        parse_model(&format!("{head} {{ {body} }}")).unwrap_or_else(|e| panic!("{e}"))
    }

    /// The model at the operator set, as text.
    fn raised(mut m: Model, to: i64) -> String {
        RaiseOpset::To(to).run_on(&mut m).unwrap_or_else(|e| panic!("{e}"));
        validate(&m).unwrap_or_else(|e| panic!("{e}"));
        print_model(&m, Elide::default())
    }

    #[test]
    fn operands_along_an_axis_get_axes_behind_their_own() {
        let of = |attrs: &str, c: &str| {
            let m = model(
                6,
                &format!("(float[2,3,4,5] x, float[{c}] c) => (float[2,3,4,5] y)"),
                "",
                &format!("y = Add {attrs} (x, c)"),
            );
            raised(m, 7)
        };
        let text = of("<broadcast = 1, axis = 1>", "3");
        assert!(text.contains("Reshape (c, ") && text.contains("int64[3] y_aligned_shape = {0, 1, 1}"), "{text}");
        assert!(!text.contains("broadcast") && !text.contains("axis"), "{text}");
        let text = of("<broadcast = 1, axis = -3>", "3,4");
        assert!(text.contains("int64[3] y_aligned_shape = {0, 0, 1}"), "{text}");
        for (attrs, c) in [("<broadcast = 1>", "4,5"), ("<broadcast = 1, axis = 2>", "4,5"), ("", "2,3,4,5")] {
            let text = of(attrs, c);
            assert!(text.contains("y = Add (x, c)"), "{text}");
        }
        let m =
            model(6, "(float[2,3] x, float[2,3] c) => (float[2,3] y)", "", "y = Mul <broadcast = 1, axis = 1> (x, c)");
        let e = obstacles(&m, 7);
        assert!(e[0].contains("`y`") && e[0].contains("too many for the first one's 2 from axis 1 on"), "{e:?}");
    }

    #[test]
    fn words_become_types_and_attributes_inputs() {
        let m = model(5, "(int64[2] x) => (float[2] y)", "", "y = Cast <to = \"FLOAT\"> (x)");
        assert!(raised(m, 7).contains(&format!("Cast <to = {}> (x)", DType::FLOAT.0)));
        let e = obstacles(&model(5, "(int64[2] x) => (float[2] y)", "", "y = Cast <to = \"FLOOT\"> (x)"), 7);
        assert!(e[0].contains("\"FLOOT\""), "{e:?}");
        let m = model(
            9,
            "(float[1,2,4,4] x) => (float[1,2,9,8] y)",
            "<float[4] scales = {1, 1, 3, 2}>",
            "a = Slice <starts = [0], ends = [3], axes = [2]> (x)
            b = Clip <min = 0.0, max = 6.0> (a)
            c = Pad <pads = [0, 0, 0, 0, 0, 0, 0, 0], value = 1.5> (b)
            t, i = TopK <k = 4> (c)
            s = Upsample <mode = \"nearest\"> (t, scales)
            y = Relu (s)",
        );
        let text = raised(m, 17);
        for part in [
            "Slice (x, a_starts, a_ends, a_axes)",
            "Clip (a, b_min, b_max)",
            "Pad (b, c_pads, c_value)",
            "TopK (c, t_k)",
            "coordinate_transformation_mode = \"asymmetric\"",
            "nearest_mode = \"floor\"",
            "(t, s_roi, scales)",
        ] {
            assert!(text.contains(part), "no {part} in\n{text}");
        }
    }

    #[test]
    fn what_newer_sets_lack_is_told() {
        let norm = "y = BatchNormalization <spatial = 0> (x, a, a, a, b)";
        let m = model(8, "(float[1,4] x, float[4] a, float[4] b) => (float[1,4] y)", "", norm);
        assert!(obstacles(&m, 17)[0].contains("spatial = 0"), "{:?}", obstacles(&m, 17));
        let small = "y = Resize <mode = \"nearest\"> (x, s)";
        let m = model(10, "(float[1,1,4,4] x) => (y)", "<float[4] s = {1.0, 1.0, 0.5, 0.5}>", small);
        assert!(obstacles(&m, 13)[0].contains("do not agree"), "{:?}", obstacles(&m, 13));
    }
}
