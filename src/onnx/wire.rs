//! The wire format, walked against the schema without decoding: finds fields the schema does not know (decoding would
//! drop them silently) and says where a damaged file breaks off.

use super::UnknownField;

/// A message type of the schema; `build.rs` writes the table.
struct Message {
    name: &'static str,
    /// By ascending number.
    fields: &'static [Field],
}

struct Field {
    number: u32,
    name: &'static str,
    /// Index into [`MESSAGES`] if the field holds a message.
    message: Option<usize>,
}

include!(concat!(env!("OUT_DIR"), "/schema.rs"));

/// Deepest nesting read, the limit the decoder has as well.
const MAX_DEPTH: usize = 100;

/// Where and why the bytes are no message.
#[derive(Debug, PartialEq)]
pub(super) struct Damage {
    /// Offset in the file.
    pub at: usize,
    /// Message path, empty at the top.
    pub path: String,
    pub kind: DamageKind,
}

#[derive(Debug, PartialEq)]
pub(super) enum DamageKind {
    /// The bytes end inside a field; this many more were announced (0: unknown).
    Short(usize),
    /// No message looks like this.
    Nonsense(&'static str),
}

struct Walk<'b> {
    bytes: &'b [u8],
    path: Vec<(&'static str, usize)>,
    unknown: Vec<UnknownField>,
}

/// Walks an encoded `onnx.ModelProto`.
pub(super) fn walk_model(bytes: &[u8]) -> Result<Vec<UnknownField>, Damage> {
    let root = MESSAGES.iter().position(|m| m.name == "onnx.ModelProto").expect("the schema has a model");
    let mut w = Walk { bytes, path: Vec::new(), unknown: Vec::new() };
    w.message(root, 0, bytes.len())?;
    Ok(w.unknown)
}

impl Walk<'_> {
    fn path(&self) -> String {
        let mut s = String::new();
        for (name, i) in &self.path {
            if !s.is_empty() {
                s.push('.');
            }
            s.push_str(name);
            // The first of a field needs no number; a reader takes `graph` and `node` for the same thing as `[0]`.
            if *i > 0 {
                s.push_str(&format!("[{i}]"));
            }
        }
        s
    }

    fn damage<T>(&self, at: usize, kind: DamageKind) -> Result<T, Damage> {
        Err(Damage { at, path: self.path(), kind })
    }

    fn varint(&self, pos: &mut usize, end: usize) -> Result<u64, Damage> {
        let (start, mut v) = (*pos, 0u64);
        for shift in (0..64).step_by(7) {
            if *pos >= end {
                return self.damage(start, DamageKind::Short(0));
            }
            let b = self.bytes[*pos];
            *pos += 1;
            v |= u64::from(b & 0x7f) << shift;
            if b < 0x80 {
                return Ok(v);
            }
        }
        self.damage(start, DamageKind::Nonsense("a number is longer than ten bytes"))
    }

    fn advance(&self, pos: &mut usize, n: u64, end: usize) -> Result<(), Damage> {
        let have = (end - *pos) as u64;
        if n > have {
            return self.damage(*pos, DamageKind::Short(usize::try_from(n - have).unwrap_or(usize::MAX)));
        }
        *pos += n as usize;
        Ok(())
    }

    /// Skips a field's value; `pos` stands after its key.
    fn skip(&self, pos: &mut usize, end: usize, wire: u64, depth: usize) -> Result<(), Damage> {
        match wire {
            0 => self.varint(pos, end).map(|_| ()),
            1 => self.advance(pos, 8, end),
            2 => {
                let n = self.varint(pos, end)?;
                self.advance(pos, n, end)
            }
            3 if depth < MAX_DEPTH => loop {
                let key = self.varint(pos, end)?;
                if key & 7 == 4 {
                    return Ok(());
                }
                self.skip(pos, end, key & 7, depth + 1)?;
            },
            5 => self.advance(pos, 4, end),
            _ => self.damage(*pos, DamageKind::Nonsense("a field has an impossible kind")),
        }
    }

    fn message(&mut self, schema: usize, start: usize, end: usize) -> Result<(), Damage> {
        if self.path.len() > MAX_DEPTH {
            return self.damage(start, DamageKind::Nonsense("messages are nested too deeply"));
        }
        let fields = MESSAGES[schema].fields;
        let mut seen = vec![0usize; fields.len()];
        let mut pos = start;
        while pos < end {
            let at = pos;
            let key = self.varint(&mut pos, end)?;
            let (number, wire) = (key >> 3, key & 7);
            if number == 0 || number > 0x1fff_ffff {
                return self.damage(at, DamageKind::Nonsense("a field has an impossible number"));
            }
            let known = fields.binary_search_by_key(&number, |f| u64::from(f.number)).ok();
            match known {
                Some(i) => {
                    let field = &fields[i];
                    if let (Some(inner), 2) = (field.message, wire) {
                        self.path.push((field.name, seen[i]));
                        let n = self.varint(&mut pos, end)?;
                        let from = pos;
                        self.advance(&mut pos, n, end)?;
                        self.message(inner, from, pos)?;
                        self.path.pop();
                    } else {
                        self.path.push((field.name, seen[i]));
                        self.skip(&mut pos, end, wire, 0)?;
                        self.path.pop();
                    }
                    seen[i] += 1;
                }
                None => {
                    self.skip(&mut pos, end, wire, 0)?;
                    self.unknown.push(UnknownField {
                        message: self.path(),
                        kind: MESSAGES[schema].name,
                        number: number as u32,
                        bytes: pos - at,
                    });
                }
            }
        }
        Ok(())
    }
}
