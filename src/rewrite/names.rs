//! Names in the file that is written.
//!
//! Each pass names what it makes after what it found, so that a name tells where a value came from while passes work. Over
//! several passes such names grow to a hundred bytes, a twentieth of the file of a small ViT, and what is shared by many
//! nodes keeps the name of the first. The file says the same in short: the name of the float model's value or node that
//! the value stands for, and in one word what it is: `blocks.3/attn/qkv/Add/scale`; a constant of few elements is named by
//! them: `float_0.125`. What the float model names is not touched. The parts of a name are not joined by a dot: tract names what it
//! makes of the node `conv` `conv.bias`, and refuses two nodes of one name.

use std::collections::{BTreeMap, BTreeSet};

use crate::ir::{DType, Def, Model, NodeId, Origin, Tensor, Value, ValueId};

/// Names longer than this are not searched for names of the float model: searching takes the square of the length.
const LONG: usize = 1000;

/// Constants of up to so many elements are named by them.
const FEW: usize = 6;

/// Gives short names to the values and nodes of `m` that the model as it was read does not have; that one's names are
/// `known`. No value gets a name that nested graphs define, `inside`.
pub fn shorten_names(m: &mut Model, known: &BTreeSet<String>, inside: BTreeSet<String>) {
    let g = &m.graph;
    let captured: BTreeSet<ValueId> = g.nodes().flat_map(|(_, n)| n.captures.iter().copied()).collect();
    let fixed = |id: ValueId, v: &Value| {
        let made = matches!(v.def, Def::Node { .. } | Def::Init(_));
        known.contains(&v.name) || g.is_output(id) || captured.contains(&id) || !made
    };
    let (kept, made): (Vec<_>, Vec<_>) = g.values().partition(|(id, v)| fixed(*id, v));
    let mut taken = inside;
    taken.extend(known.iter().cloned());
    taken.extend(kept.iter().map(|(_, v)| v.name.clone()));
    let mut names = Names { taken, next: BTreeMap::new() };
    let renamed: Vec<(ValueId, String)> = made.iter().map(|(id, v)| (*id, names.of(v, known))).collect();
    m.graph.rename_all(&renamed);
    let passes_own: Vec<NodeId> =
        m.graph.nodes().filter(|(_, n)| n.origin != Origin::Imported && !n.name.is_empty()).map(|(id, _)| id).collect();
    for id in passes_own {
        let Some(first) = m.graph.node(id).outputs.iter().flatten().next() else { continue };
        let name = stem(m.graph.name_of(*first));
        m.graph.node_mut(id).name = name;
    }
}

/// Names that are given.
struct Names {
    taken: BTreeSet<String>,
    /// The number that the next value of this name gets.
    next: BTreeMap<String, usize>,
}

impl Names {
    /// A free name for a value.
    fn of(&mut self, v: &Value, known: &BTreeSet<String>) -> String {
        let short = match &v.def {
            Def::Init(t) => by_elements(t),
            _ => None,
        };
        let short = short.unwrap_or_else(|| by_origin(&v.name, known));
        let next = self.next.entry(short.clone()).or_insert(1);
        loop {
            let name = if *next == 1 { short.clone() } else { format!("{short}_{next}") };
            *next += 1;
            if self.taken.insert(name.clone()) {
                return name;
            }
        }
    }
}

/// Type and elements of a constant of few numbers.
fn by_elements(t: &Tensor) -> Option<String> {
    let ty = t.dtype.name()?;
    let elements: Vec<String> = match t.dtype {
        DType::FLOAT if t.len() == 1 => t.to_f32s()?.iter().map(|x| format!("{x:?}")).collect(),
        DType::INT64 if (1..=FEW).contains(&t.len()) => t.to_i64s()?.iter().map(i64::to_string).collect(),
        DType::UINT8 | DType::INT8 | DType::UINT16 | DType::INT16 | DType::INT32 if t.len() == 1 => {
            t.to_i64s()?.iter().map(i64::to_string).collect()
        }
        _ => return None,
    };
    Some(format!("{ty}_{}", elements.join("x")))
}

/// What `name` stands for, and in a word what it is.
fn by_origin(name: &str, known: &BTreeSet<String>) -> String {
    let mut ends = name.rmatch_indices(['_', '/']).map(|(at, _)| at);
    // A value that no pass named after the float model's keeps all of its name but the last word.
    let last = ends.clone().next().unwrap_or(name.len());
    let known = (name.len() <= LONG).then(|| ends.find(|at| known.contains(&name[..*at]))).flatten();
    let at = known.unwrap_or(last);
    let (of, rest) = name.split_at(at);
    let mut words = rest.split(['_', '/']).filter(|w| !w.is_empty() && !w.bytes().all(|b| b.is_ascii_digit()));
    match (stem(of), words.next_back()) {
        (of, Some(word)) if !of.is_empty() => format!("{of}/{word}"),
        (of, None) if !of.is_empty() => of,
        (_, word) => word.unwrap_or("value").to_owned(),
    }
}

/// A name as exporters write it without what they repeat: of `/blocks/blocks.3/attn/Add_output_0`, `blocks.3/attn/Add`.
pub(crate) fn stem(name: &str) -> String {
    let name = name.strip_suffix("_output_0").unwrap_or(name);
    let name = name.strip_prefix("onnx::").unwrap_or(name);
    let parts: Vec<&str> = name.split('/').filter(|p| !p.is_empty()).collect();
    let within = |part: &str, next: &str| next.strip_prefix(part).is_some_and(|rest| rest.starts_with('.'));
    let repeated = |i: usize| parts.get(i + 1).is_some_and(|next| within(parts[i], next));
    let told: Vec<&str> = (0..parts.len()).filter(|i| !repeated(*i)).map(|i| parts[i]).collect();
    if told.is_empty() { name.to_owned() } else { told.join("/") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::validate;
    use crate::text::{Elide, parse_model, print_model};

    #[test]
    fn names_tell_origin_and_kind() {
        let known: BTreeSet<String> =
            ["/blocks/blocks.3/attn/qkv/Add_output_0", "/blocks/blocks.3/Add_output_0", "onnx::MatMul_9", "x", "a/b"]
                .map(str::to_owned)
                .into();
        for (long, short) in [
            ("/blocks/blocks.3/attn/qkv/Add_output_0_part0_rounded_joined_scale", "blocks.3/attn/qkv/Add/scale"),
            ("/blocks/blocks.3/Add_output_0_2", "blocks.3/Add"),
            ("/blocks/blocks.3/Add_output_0/max_position", "blocks.3/Add/position"),
            ("onnx::MatMul_9_2_codes_/blocks/blocks.3/Add_output_0_q_dq", "MatMul_9/dq"),
            ("x_q", "x/q"),
            ("a/b_q", "a/b/q"),
            ("nobodys_own_name", "nobodys_own/name"),
            ("plain", "plain"),
            ("_", "value"),
            ("/", "value"),
        ] {
            assert_eq!(by_origin(long, &known), short);
        }
    }

    #[test]
    fn only_what_passes_made_is_renamed() {
        let mut m = parse_model(
            r#"
<ir_version: 8, opset_import: ["" : 17]>
m (float[2] x) => (float[2] y_scaled)
<float one_of_mine_scale = {1.0}, float x_scale = {0.5}, float x_other_scale = {0.5}>
{
    h = Mul(x, x_scale)
    h_q_before = Mul(h, x_other_scale)
    h_dq_before = Add(h_q_before, one_of_mine_scale)
    y_scaled = Relu(h_dq_before)
}"#,
        )
        .unwrap();
        let known: BTreeSet<String> = ["x", "h", "one_of_mine_scale"].map(str::to_owned).into();
        shorten_names(&mut m, &known, ["h/before".to_owned()].into());
        validate::validate(&m).unwrap();
        let said = print_model(&m, Elide::Full).replace(['"', ' '], "");
        for line in [
            "h=Mul(x,float_0.5)",
            "h/before_2=Mul(h,float_0.5_2)",
            "h/before_3=Add(h/before_2,one_of_mine_scale)",
            "y_scaled=Relu(h/before_3)",
        ] {
            assert!(said.contains(line), "{line} is not in\n{said}");
        }
    }

    #[test]
    fn few_elements_are_a_name() {
        assert_eq!(by_elements(&Tensor::scalar_f32(0.125)).as_deref(), Some("float_0.125"));
        assert_eq!(by_elements(&Tensor::u8(&[1], &[128])).as_deref(), Some("uint8_128"));
        assert_eq!(by_elements(&Tensor::i64(&[3], &[-1, 197, 64])).as_deref(), Some("int64_-1x197x64"));
        assert_eq!(by_elements(&Tensor::f32(&[2], &[1.0, 2.0])), None);
        assert_eq!(by_elements(&Tensor::i64(&[0], &[])), None);
    }
}
