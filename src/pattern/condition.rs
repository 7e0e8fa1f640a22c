//! One `where` entry of a rule file, as written.

use crate::yaml::Value;

/// One `where` entry: a predicate and what it speaks of.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Condition {
    pub name: String,
    pub argument: Argument,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Argument {
    Names(Vec<String>),
    Fields(Vec<(String, Field)>),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Field {
    Number(f64),
    Text(String),
}

impl Condition {
    /// Reads an entry.
    ///
    /// # Errors
    /// What form an entry has, if it is none.
    pub fn read(v: &Value) -> Result<Condition, String> {
        let form = || "a `where` entry is `predicate: names` or `predicate: {name: value}`".to_owned();
        let Value::Mapping(m) = v else { return Err(form()) };
        let (Some((Value::String(name), arg)), 1) = (m.iter().next(), m.len()) else { return Err(form()) };
        let argument = match arg {
            Value::String(s) => Argument::Names(vec![s.clone()]),
            Value::Sequence(s) => Argument::Names(
                s.iter().map(|x| x.as_str().map(str::to_owned)).collect::<Option<_>>().ok_or_else(form)?,
            ),
            Value::Mapping(m) => {
                let field = |(k, v): (&Value, &Value)| {
                    let v = match v {
                        Value::Number(n) => Field::Number(n.as_f64()?),
                        Value::String(s) => Field::Text(s.clone()),
                        _ => return None,
                    };
                    Some((k.as_str()?.to_owned(), v))
                };
                Argument::Fields(m.iter().map(field).collect::<Option<_>>().ok_or_else(form)?)
            }
            _ => return Err(form()),
        };
        Ok(Condition { name: name.clone(), argument })
    }

    /// Shows `other` each name it speaks of, to be changed. The words that are part of a predicate's form are no names.
    pub fn substitute(&mut self, other: &mut impl FnMut(&mut String)) {
        match &mut self.argument {
            Argument::Names(names) => names.iter_mut().for_each(&mut *other),
            Argument::Fields(fields) => {
                for (key, value) in fields {
                    match (self.name.as_str(), key.as_str(), value) {
                        ("size_power", "of", Field::Text(name)) => other(name),
                        ("size_power", "of", _) | ("approx", "within", _) | ("opset", ..) => {}
                        _ => other(key),
                    }
                }
            }
        }
    }
}
