//! YAML, as recipes, rules and plans are written. The only file that names the crate behind it: `yaml_serde`, the successor
//! of `serde_yaml` that the YAML organisation keeps up. Its errors say line and column.

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;

pub use yaml_serde::{Value, from_str, to_string};

/// One step on the way to a part of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Key(String),
    Index(usize),
}

impl From<&str> for Step {
    fn from(key: &str) -> Step {
        Step::Key(key.to_owned())
    }
}

impl From<usize> for Step {
    fn from(index: usize) -> Step {
        Step::Index(index)
    }
}

/// What is wrong with a part of a text that was read, as the parser tells what it cannot read: with the way to the part, its
/// line and its column. A part that the text does not have is told at what it would be in.
pub fn wrong_at(text: &str, way: &[Step], what: &str) -> String {
    let d = yaml_serde::Deserializer::from_str(text);
    At { way, what }.deserialize(d).err().map_or_else(|| what.to_owned(), |e| e.to_string())
}

/// Reads a text as far as a part of it, and fails there: the parser then adds the place.
#[derive(Clone, Copy)]
struct At<'a> {
    way: &'a [Step],
    what: &'a str,
}

impl<'de> DeserializeSeed<'de> for At<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for At<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            match self.way.split_first() {
                Some((Step::Key(k), way)) if *k == key => map.next_value_seed(At { way, ..self })?,
                _ => _ = map.next_value::<IgnoredAny>()?,
            }
        }
        Err(A::Error::custom(self.what))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        if let Some((Step::Index(n), way)) = self.way.split_first() {
            for _ in 0..*n {
                seq.next_element::<IgnoredAny>()?;
            }
            seq.next_element_seed(At { way, ..self })?;
        }
        Err(A::Error::custom(self.what))
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        Err(E::custom(self.what))
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        Err(E::custom(self.what))
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        Err(E::custom(self.what))
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        Err(E::custom(self.what))
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        Err(E::custom(self.what))
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Err(E::custom(self.what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_text_is_found() {
        let text = "a: 1\nb:\n  - { c: [1, 2], d: x }\n  - e: 5\nf: {}\n";
        let at = |way: &[Step]| wrong_at(text, way, "no");
        assert_eq!(at(&["a".into()]), "a: no at line 1 column 4");
        assert_eq!(at(&["b".into(), 0.into(), "c".into(), 1.into()]), "b[0].c[1]: no at line 3 column 14");
        assert_eq!(at(&["b".into(), 1.into(), "e".into()]), "b[1].e: no at line 4 column 8");
        assert!(at(&["f".into(), "g".into()]).starts_with("f: no at line 5"), "{}", at(&["f".into(), "g".into()]));
        assert!(at(&["b".into(), 7.into()]).contains("b: no at line 3"), "{}", at(&["b".into(), 7.into()]));
    }
}
