//! YAML, as recipes, rules and plans are written. The only file that names the crate behind it: `yaml_serde`, the successor
//! of `serde_yaml` that the YAML organisation keeps up. Its errors say line and column.

use std::collections::HashSet;
use std::fmt;

use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Error, IgnoredAny, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};

pub use yaml_serde::{Value, to_string};

/// Reads a text.
///
/// # Errors
/// If it is no YAML, is not of this type, or gives a key twice in one place, of which the parser would take the last.
pub fn from_str<T: DeserializeOwned>(text: &str) -> Result<T, yaml_serde::Error> {
    if let Some(line) = too_deep(text) {
        let said = format!("brackets are nested more than {DEEPEST} deep at line {line}");
        return Err(yaml_serde::Error::custom(said));
    }
    let read = yaml_serde::from_str(text).map_err(with_remedy)?;
    Once.deserialize(yaml_serde::Deserializer::from_str(text))?;
    Ok(read)
}

/// Keys that older versions wrote, and what to do about them.
const GONE: [(&str, &str); 3] = [
    ("outliers", "plans hold no second codes any more; make a new plan"),
    ("second-code-beyond", "there are no second codes any more; delete the key"),
    ("refit", "weights are not fitted a second time any more; delete the key"),
];

fn with_remedy(e: yaml_serde::Error) -> yaml_serde::Error {
    let said = e.to_string();
    let gone = GONE.iter().find(|(key, _)| said.contains(&format!("unknown field `{key}`")));
    gone.map_or(e, |(_, what)| yaml_serde::Error::custom(format!("{said}: {what}")))
}

/// What a visitor makes of every value that holds no others.
macro_rules! scalars {
    ($self:ident => $end:expr) => {
        scalars! { $self => $end; visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_i128: i128, visit_u128: u128 }
        scalars! { $self => $end; visit_f64: f64, visit_str: &str }

        fn visit_unit<E: Error>($self) -> Result<(), E> {
            $end
        }
    };
    ($self:ident => $end:expr; $($visit:ident: $ty:ty),*) => {
        $(fn $visit<E: Error>($self, _: $ty) -> Result<(), E> {
            $end
        })*
    };
}

/// Brackets that may be open at once: the parser takes time with the square of it.
const DEEPEST: usize = 1000;

/// The line at which more brackets are open than anybody means; quotes and comments are not looked for.
fn too_deep(text: &str) -> Option<usize> {
    let (mut open, mut line) = (0usize, 1);
    for b in text.bytes() {
        match b {
            b'\n' => line += 1,
            b'[' | b'{' => open += 1,
            b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        if open > DEEPEST {
            return Some(line);
        }
    }
    None
}

/// Reads anything in which no key comes twice.
#[derive(Clone, Copy)]
struct Once;

impl<'de> DeserializeSeed<'de> for Once {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Once {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key::<Value>()? {
            if seen.contains(&key) {
                let written = || to_string(&key).map_or_else(|_| String::new(), |t| t.trim_end().to_owned());
                let name = key.as_str().map_or_else(written, str::to_owned);
                return Err(A::Error::custom(format!("`{name}` is given twice; remove one of them")));
            }
            seen.insert(key);
            map.next_value_seed(self)?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(self)?.is_some() {}
        Ok(())
    }

    fn visit_enum<A: EnumAccess<'de>>(self, tagged: A) -> Result<(), A::Error> {
        let (_, value) = tagged.variant::<IgnoredAny>()?;
        value.newtype_variant_seed(self)
    }

    scalars! { self => Ok(()) }
}

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

    scalars! { self => Err(E::custom(self.what)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_nested_too_deep_is_refused_at_once() {
        for open in ["[", "{a: "] {
            let e = from_str::<IgnoredAny>(&format!("a:\n  - {}", open.repeat(1 << 20))).unwrap_err().to_string();
            assert!(e.contains("nested more than 1000 deep at line 2"), "{e}");
        }
        assert!(from_str::<IgnoredAny>(&format!("a: [{}1]", "[1], ".repeat(5000))).is_ok());
    }

    #[test]
    fn a_key_that_comes_twice_is_told_with_its_place() {
        let read = |text: &str| from_str::<IgnoredAny>(text).map_err(|e| e.to_string());
        let e = read("a: 1\nb:\n  - { c: 1, d: 2 }\n  - { e: 1, e: 2 }\n").unwrap_err();
        assert!(e.contains("`e` is given twice") && e.contains("line 4"), "{e}");
        // In different places, in a tag and as a number.
        assert!(read("a: { x: 1 }\nb: { x: 1 }\nc: !t { x: 1 }\n1: ~\n2: -5\n").is_ok());
        assert!(read("c: !t { x: 1, x: 2 }\n").unwrap_err().contains("`x` is given twice"));
        assert!(read("1: a\n1: b\n").unwrap_err().contains("`1` is given twice"));
    }

    #[test]
    fn keys_of_older_versions_are_refused_with_what_to_do() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Only {
            #[expect(dead_code)]
            a: i64,
        }
        let refused = |key: &str| from_str::<Only>(&format!("a: 1\n{key}: 2\n")).unwrap_err().to_string();
        for (key, what) in GONE {
            assert!(refused(key).contains("line 2") && refused(key).ends_with(what), "{}", refused(key));
        }
        assert!(refused("b").contains("unknown field `b`") && !refused("b").contains("any more"));
    }

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
