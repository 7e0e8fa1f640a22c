//! Protobuf's wire format as a tree, with as much of ONNX's schema as tells messages from texts.

use rand::RngExt;

use crate::{Rng, number, pick};

#[derive(Clone)]
pub enum Value {
    Varint(u64),
    Fixed64([u8; 8]),
    Fixed32([u8; 4]),
    Bytes(Vec<u8>),
    Message(Message),
}

#[derive(Clone)]
pub struct Message {
    kind: &'static str,
    fields: Vec<(u32, Value)>,
}

/// The message that a field holds.
fn inner(kind: &str, number: u32) -> Option<&'static str> {
    Some(match (kind, number) {
        ("Model", 7) => "Graph",
        ("Model", 8) => "Opset",
        ("Model", 25) => "Function",
        ("Graph", 1) | ("Function", 7) => "Node",
        ("Graph", 5) | ("Attribute", 5 | 10) => "Tensor",
        ("Graph", 11..=13) => "Info",
        ("Node", 5) => "Attribute",
        ("Attribute", 6 | 11) => "Graph",
        ("Info", 2) => "Type",
        ("Type", 1) => "TypeTensor",
        ("TypeTensor", 2) => "Shape",
        ("Shape", 1) => "Dim",
        ("Function", 9) => "Opset",
        _ => return None,
    })
}

fn varint(b: &[u8], at: &mut usize) -> Option<u64> {
    let mut v = 0;
    for shift in (0..64).step_by(7) {
        let x = *b.get(*at)?;
        *at += 1;
        v |= u64::from(x & 127) << shift;
        if x < 128 {
            return Some(v);
        }
    }
    None
}

fn put(out: &mut Vec<u8>, mut v: u64) {
    while v >= 128 {
        out.push(v as u8 | 128);
        v >>= 7;
    }
    out.push(v as u8);
}

impl Message {
    pub fn parse(b: &[u8], kind: &'static str) -> Option<Message> {
        let (mut at, mut fields) = (0, Vec::new());
        while at < b.len() {
            let key = varint(b, &mut at)?;
            let number = (key >> 3) as u32;
            let value = match key & 7 {
                0 => Value::Varint(varint(b, &mut at)?),
                1 => {
                    at += 8;
                    Value::Fixed64(b.get(at - 8..at)?.try_into().ok()?)
                }
                5 => {
                    at += 4;
                    Value::Fixed32(b.get(at - 4..at)?.try_into().ok()?)
                }
                2 => {
                    let n = usize::try_from(varint(b, &mut at)?).ok()?;
                    let bytes = b.get(at..at.checked_add(n)?)?;
                    at += n;
                    match inner(kind, number) {
                        Some(k) => Value::Message(Message::parse(bytes, k)?),
                        None => Value::Bytes(bytes.to_vec()),
                    }
                }
                _ => return None,
            };
            fields.push((number, value));
        }
        Some(Message { kind, fields })
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (number, v) in &self.fields {
            let key = |wire: u64| u64::from(*number) << 3 | wire;
            match v {
                Value::Varint(x) => {
                    put(&mut out, key(0));
                    put(&mut out, *x);
                }
                Value::Fixed64(x) => {
                    put(&mut out, key(1));
                    out.extend(x);
                }
                Value::Fixed32(x) => {
                    put(&mut out, key(5));
                    out.extend(x);
                }
                Value::Bytes(x) => {
                    put(&mut out, key(2));
                    put(&mut out, x.len() as u64);
                    out.extend(x);
                }
                Value::Message(m) => {
                    let x = m.bytes();
                    put(&mut out, key(2));
                    put(&mut out, x.len() as u64);
                    out.extend(x);
                }
            }
        }
        out
    }

    fn graph(&mut self) -> Option<&mut Message> {
        self.fields.iter_mut().find_map(|(n, v)| match v {
            Value::Message(m) if *n == 7 => Some(m),
            _ => None,
        })
    }

    /// Names that nodes, inputs and constants make.
    fn names(&self) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        for (n, v) in &self.fields {
            let Value::Message(m) = v else { continue };
            let number = match (m.kind, n) {
                ("Node", _) => 2,
                ("Tensor", _) => 8,
                ("Info", 11) => 1,
                _ => continue,
            };
            out.extend(m.fields.iter().filter(|(n, _)| *n == number).filter_map(|(_, v)| match v {
                Value::Bytes(b) => Some(b.clone()),
                _ => None,
            }));
        }
        out
    }
}

const OPS: [&str; 40] = [
    "Add",
    "Mul",
    "Sub",
    "Div",
    "MatMul",
    "Gemm",
    "Conv",
    "Softmax",
    "Reshape",
    "Transpose",
    "Concat",
    "Split",
    "Slice",
    "Gather",
    "Expand",
    "Tile",
    "Pad",
    "Range",
    "Cast",
    "Where",
    "Identity",
    "Relu",
    "Erf",
    "Sqrt",
    "ReduceMean",
    "ReduceSum",
    "LayerNormalization",
    "Squeeze",
    "Unsqueeze",
    "Shape",
    "ConstantOfShape",
    "Flatten",
    "Resize",
    "MaxPool",
    "AveragePool",
    "ConvTranspose",
    "TopK",
    "ScatterND",
    "GatherND",
    "Einsum",
];

/// One change somewhere in the graph.
pub fn mutate(m: &mut Message, rng: &mut Rng) {
    if rng.random_range(0..20) == 0 {
        return change(m, rng, &[]);
    }
    let Some(g) = m.graph() else { return };
    let names = g.names();
    // Where in the graph: nodes more often than their number says, for weights are many.
    let wanted = *pick(rng, &["Node", "Node", "Node", "Tensor", "Info", "Any"]);
    let at: Vec<usize> = (0..g.fields.len())
        .filter(|i| matches!(&g.fields[*i].1, Value::Message(m) if wanted == "Any" || m.kind == wanted))
        .collect();
    if at.is_empty() {
        return;
    }
    let i = *pick(rng, &at);
    match rng.random_range(0..12) {
        0 => drop(g.fields.remove(i)),
        1 => {
            let copy = g.fields[i].clone();
            g.fields.insert(i, copy);
        }
        2 => {
            let j = *pick(rng, &at);
            g.fields.swap(i, j);
        }
        _ => {
            if let Value::Message(m) = &mut g.fields[i].1 {
                change(m, rng, &names);
            }
        }
    }
}

/// One change in a message, or in one it holds.
fn change(m: &mut Message, rng: &mut Rng, names: &[Vec<u8>]) {
    if m.fields.is_empty() {
        let n = rng.random_range(1..12);
        return m.fields.push((n, Value::Varint(number(rng) as u64)));
    }
    let i = rng.random_range(0..m.fields.len());
    let (kind, field) = (m.kind, m.fields[i].0);
    match &mut m.fields[i].1 {
        Value::Message(inner) if rng.random_range(0..6) > 0 => change(inner, rng, names),
        Value::Varint(x) if rng.random_range(0..6) > 0 => *x = number(rng) as u64,
        Value::Fixed32(x) if rng.random() => {
            *x = (*pick(rng, &[f32::NAN, f32::INFINITY, 0.0, -1.0, 1e30, 1e-30])).to_le_bytes();
        }
        Value::Bytes(b) if rng.random_range(0..6) > 0 => {
            let text = matches!((kind, field), ("Node", 1..=4 | 7) | ("Info", 1) | ("Tensor", 8) | ("Attribute", 1));
            if kind == "Node" && field == 4 {
                *b = pick(rng, &OPS).as_bytes().to_vec();
            } else if text && !names.is_empty() {
                *b = if rng.random_range(0..8) == 0 { Vec::new() } else { pick(rng, names).clone() };
            } else if kind == "Tensor" && field == 9 && b.len() >= 4 {
                floats(b, rng);
            } else {
                // Packed numbers: of sizes, axes, permutations.
                *b = (0..rng.random_range(0..6)).flat_map(|_| packed(number(rng))).collect();
            }
        }
        _ => match rng.random_range(0..3) {
            0 => drop(m.fields.remove(i)),
            1 => {
                let copy = m.fields[i].clone();
                m.fields.push(copy);
            }
            _ => m.fields[i].0 = rng.random_range(1..12),
        },
    }
}

fn packed(n: i64) -> Vec<u8> {
    let mut v = Vec::new();
    put(&mut v, n as u64);
    v
}

/// Weights at which arithmetic ends; of integers, sizes.
fn floats(b: &mut [u8], rng: &mut Rng) {
    let ends = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, 1e30, -1e30, 1e-30, 1e-45, f32::MAX];
    let x = if rng.random() { pick(rng, &ends).to_le_bytes() } else { (number(rng) as i32).to_le_bytes() };
    let n = b.len() / 4;
    if rng.random() {
        let at = rng.random_range(0..n) * 4;
        b[at..at + 4].copy_from_slice(&x);
    } else {
        b.chunks_exact_mut(4).for_each(|c| c.copy_from_slice(&x));
    }
}
