//! Statistics files, changed inside their packed form: field by field, so that what is read is a file of the right layout.

use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;
use rand::RngExt;

use crate::{Rng, damage, few, number, pick};

/// The layout of `StatsFile` in postcard, which says nothing of itself.
enum Shape {
    /// With its bits; signed ones are written as zigzag.
    Uint(u32),
    Bool,
    Float,
    Text,
    List(&'static Shape),
    Fields(&'static [Shape]),
    /// One of these, by its number.
    OneOf(&'static [Shape]),
}
use Shape::{Bool, Fields, Float, List, OneOf, Text, Uint};

/// Exponent, number of the first bin, counts.
const HIST: Shape = Fields(&[Uint(32), Uint(32), List(&Uint(32))]);
const ENDS: Shape = Fields(&[Float, Float]);
/// Range, sums, histogram, levels, and parts of the samples.
const CHANNEL: Shape =
    Fields(&[Float, Float, Uint(128), Uint(128), HIST, Fields(&[List(&Float), Bool]), List(&ENDS), List(&HIST)]);
const WATCH: Shape =
    OneOf(&[Fields(&[]), Fields(&[Uint(64)]), Fields(&[Uint(64), Fields(&[List(&Uint(64)), Bool])]), Fields(&[Bool])]);
const ROW: Shape = Fields(&[Uint(64), Uint(32), List(&Float)]);
/// How it was watched, sizes, channels, elements, and what else is known of scores and of tokens.
const STATS: Shape = Fields(&[
    WATCH,
    List(&Uint(64)),
    List(&CHANNEL),
    Uint(64),
    List(&Float),
    List(&ROW),
    List(&Fields(&[Uint(128), Uint(128)])),
]);
const SHARDS: Shape = Fields(&[Uint(32), List(&Uint(32))]);
/// Model, data, made up, samples, how, seen, values.
const FILE: Shape =
    Fields(&[Text, Text, Bool, Uint(64), Text, List(&Fields(&[Text, SHARDS])), List(&Fields(&[Text, STATS]))]);

#[derive(Clone)]
enum Value {
    /// With its bits.
    Uint(u128, u32),
    Bool(u8),
    Float(f32),
    Text(Vec<u8>),
    List(Vec<Value>),
    Fields(Vec<Value>),
    OneOf(u128, Box<Value>),
}

/// A whole file, and what it is made of.
pub struct Seed {
    file: Vec<u8>,
    tree: Value,
}

/// Bytes before what is packed: the kind and the checksum.
const HEAD: usize = 40;

impl Seed {
    /// `None` if the file is laid out in another way than [`FILE`] says.
    pub fn of(file: &[u8]) -> Option<Seed> {
        let mut plain = Vec::new();
        ZlibDecoder::new(file.get(HEAD..)?).read_to_end(&mut plain).ok()?;
        let mut rest = &plain[..];
        let tree = read(&mut rest, &FILE)?;
        let mut again = Vec::new();
        write(&tree, &mut again);
        (rest.is_empty() && again == plain).then(|| Seed { file: file.to_vec(), tree })
    }

    /// The same, as if made from other data: what the file can be joined with.
    pub fn of_other_data(&self) -> Vec<u8> {
        let mut tree = self.tree.clone();
        if let Value::Fields(all) = &mut tree
            && let Value::List(seen) = &mut all[5]
            && let Some(Value::Fields(first)) = seen.first_mut()
            && let Value::Text(data) = &mut first[0]
        {
            data.push(b'x');
        }
        let mut plain = Vec::new();
        write(&tree, &mut plain);
        self.packed(&plain)
    }

    fn packed(&self, plain: &[u8]) -> Vec<u8> {
        let mut z = ZlibEncoder::new(Vec::new(), Compression::fast());
        z.write_all(plain).expect("memory takes every byte");
        let packed = z.finish().expect("memory takes every byte");
        [&self.file[..8], blake3::hash(&packed).as_bytes(), &packed].concat()
    }

    /// A changed file, nearly always with a right checksum.
    pub fn damaged(&self, rng: &mut Rng) -> Vec<u8> {
        if rng.random_range(0..16) == 0 {
            let mut b = self.file.clone();
            damage(rng, &mut b);
            return b;
        }
        let mut tree = self.tree.clone();
        for _ in 0..few(rng) {
            // What was seen of a value: all else is checked first, and names have to be what they are.
            let seen = match &mut tree {
                Value::Fields(all) if rng.random_range(0..16) > 0 => match &mut all[6] {
                    Value::List(values) if !values.is_empty() => {
                        let at = rng.random_range(0..values.len());
                        match &mut values[at] {
                            Value::Fields(named) => &mut named[1],
                            other => other,
                        }
                    }
                    other => other,
                },
                other => other,
            };
            change(rng, seen);
        }
        let mut plain = Vec::new();
        write(&tree, &mut plain);
        if rng.random_range(0..16) == 0 {
            damage(rng, &mut plain);
        }
        self.packed(&plain)
    }
}

fn varint(b: &mut &[u8]) -> Option<u128> {
    let mut v = 0;
    for shift in (0..128).step_by(7) {
        let (x, rest) = b.split_first()?;
        *b = rest;
        v |= u128::from(x & 127) << shift;
        if *x < 128 {
            return Some(v);
        }
    }
    None
}

fn put(mut v: u128, out: &mut Vec<u8>) {
    while v >= 128 {
        out.push(v as u8 | 128);
        v >>= 7;
    }
    out.push(v as u8);
}

fn read(b: &mut &[u8], shape: &Shape) -> Option<Value> {
    Some(match shape {
        Uint(bits) => Value::Uint(varint(b)?, *bits),
        Bool => Value::Bool(b.split_off_first().copied()?),
        Float => Value::Float(f32::from_le_bytes(b.split_off(..4)?.try_into().ok()?)),
        Text => {
            let n = varint(b)?;
            Value::Text(b.split_off(..usize::try_from(n).ok()?)?.to_vec())
        }
        List(of) => Value::List((0..varint(b)?).map(|_| read(b, of)).collect::<Option<_>>()?),
        Fields(of) => Value::Fields(of.iter().map(|s| read(b, s)).collect::<Option<_>>()?),
        OneOf(of) => {
            let which = varint(b)?;
            Value::OneOf(which, Box::new(read(b, of.get(which as usize)?)?))
        }
    })
}

fn write(v: &Value, out: &mut Vec<u8>) {
    match v {
        Value::Uint(n, _) => put(*n, out),
        Value::Bool(b) => out.push(*b),
        Value::Float(x) => out.extend(x.to_le_bytes()),
        Value::Text(t) => {
            put(t.len() as u128, out);
            out.extend(t);
        }
        Value::List(all) => {
            put(all.len() as u128, out);
            all.iter().for_each(|v| write(v, out));
        }
        Value::Fields(all) => all.iter().for_each(|v| write(v, out)),
        Value::OneOf(which, v) => {
            put(*which, out);
            write(v, out);
        }
    }
}

/// One change in a value or in one that it holds, at every depth as often.
fn change(rng: &mut Rng, v: &mut Value) {
    match v {
        Value::Uint(n, bits) => {
            let other = match rng.random_range(0..5) {
                0 => number(rng) as u64 as u128,
                1 => *n ^ 1 << rng.random_range(0..20),
                2 => n.saturating_add_signed(rng.random_range(-3..4)),
                3 => u128::MAX >> rng.random_range(0..3),
                _ => *n / 2,
            };
            // Any other number makes it no statistics file.
            *n = other & u128::MAX >> (128 - *bits);
        }
        Value::Bool(b) => *b ^= 1,
        Value::Float(x) => {
            const ENDS: [f32; 9] =
                [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, 1e30, -1e30, 1e-30, 1e-45, f32::MAX];
            *x = match rng.random_range(0..4) {
                0 => *pick(rng, &ENDS),
                1 => -*x,
                _ => *x * *pick(rng, &[0.5, 2.0, 1.001, 1e-3, 1e3]),
            };
        }
        Value::Text(t) if t.is_empty() => t.push(b'x'),
        Value::Text(t) => damage(rng, t),
        Value::List(all) if all.is_empty() => {}
        Value::List(all) => {
            let at = rng.random_range(0..all.len());
            match rng.random_range(0..16) {
                0 => all.clear(),
                1 => drop(all.remove(at)),
                2 => {
                    let copy = all[at].clone();
                    let times = *pick(rng, &[1, 1, 1, 2, 1000]);
                    all.splice(at..at, vec![copy; if all.len() < 4096 { times } else { 1 }]);
                }
                3 => {
                    let other = rng.random_range(0..all.len());
                    all.swap(at, other);
                }
                4 => all.truncate(at),
                _ => change(rng, &mut all[at]),
            }
        }
        Value::Fields(all) if all.is_empty() => {}
        Value::Fields(all) => {
            let at = rng.random_range(0..all.len());
            change(rng, &mut all[at]);
        }
        Value::OneOf(_, v) => change(rng, v),
    }
}
