//! Rule files as plain structures.

use crate::yaml::{self, Value};

use super::place::Pos;

/// One rule as written.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RawRule {
    pub id: String,
    pub summary: String,
    pub matches: String,
    pub conditions: Vec<Condition>,
    pub replace: Option<String>,
    pub stands_for: Option<(String, Vec<(String, String)>)>,
}

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

/// What is wrong with a file: the rule, if one is known, the place, if one is known, and the message.
pub(super) struct Wrong {
    pub rule: Option<String>,
    pub pos: Option<Pos>,
    pub message: String,
}

/// Reads a file: a list of rules.
pub(super) fn read(text: &str) -> Result<Vec<RawRule>, Wrong> {
    let root: Value = yaml::from_str(text).map_err(|e| Wrong {
        rule: None,
        pos: e.location().map(|l| Pos { line: l.line(), column: l.column() }),
        message: e.to_string(),
    })?;
    let Value::Sequence(items) = root else {
        return Err(Wrong { rule: None, pos: None, message: "a rule file is a list: `- id: ...`".to_owned() });
    };
    items.iter().enumerate().map(|(i, item)| rule(i, item)).collect()
}

fn rule(index: usize, item: &Value) -> Result<RawRule, Wrong> {
    let id = item.get("id").and_then(Value::as_str).map(str::to_owned);
    let wrong = |message: String| Wrong { rule: id.clone(), pos: None, message };
    let Value::Mapping(map) = item else {
        return Err(wrong(format!("entry {} is no mapping with `id`, `summary` and `match`", index + 1)));
    };
    const KEYS: [&str; 6] = ["id", "summary", "match", "where", "replace", "stands_for"];
    for key in map.keys() {
        if !key.as_str().is_some_and(|k| KEYS.contains(&k)) {
            return Err(wrong(format!("{key:?} is no part of a rule; the parts are {}", KEYS.join(", "))));
        }
    }
    let text = |key: &str| match item.get(key) {
        None => Ok(None),
        Some(Value::String(s)) => Ok(Some(s.clone())),
        Some(_) => Err(wrong(format!("`{key}` must be a text"))),
    };
    let needed = |key: &str| text(key)?.ok_or_else(|| wrong(format!("entry {} has no `{key}`", index + 1)));
    let conditions = match item.get("where") {
        None => Vec::new(),
        Some(Value::Sequence(all)) => all.iter().map(|c| condition(c).map_err(wrong)).collect::<Result<_, _>>()?,
        Some(_) => return Err(wrong("`where` is a list: `where: [ scalar: eps ]`".to_owned())),
    };
    let stands_for = match item.get("stands_for") {
        None => None,
        Some(s) => Some(stands_for(s).map_err(wrong)?),
    };
    Ok(RawRule {
        id: needed("id")?,
        summary: needed("summary")?,
        matches: needed("match")?,
        conditions,
        replace: text("replace")?,
        stands_for,
    })
}

fn condition(v: &Value) -> Result<Condition, String> {
    let form = || "a `where` entry is `predicate: names` or `predicate: {name: value}`".to_owned();
    let Value::Mapping(m) = v else { return Err(form()) };
    let (Some((Value::String(name), arg)), 1) = (m.iter().next(), m.len()) else { return Err(form()) };
    let argument = match arg {
        Value::String(s) => Argument::Names(vec![s.clone()]),
        Value::Sequence(s) => {
            Argument::Names(s.iter().map(|x| x.as_str().map(str::to_owned)).collect::<Option<_>>().ok_or_else(form)?)
        }
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

fn stands_for(v: &Value) -> Result<(String, Vec<(String, String)>), String> {
    let form = || "`stands_for` is `{what: name, roles: {role: name of the match, ...}}`".to_owned();
    let what = v.get("what").and_then(Value::as_str).ok_or_else(form)?;
    let pair = |(k, v): (&Value, &Value)| Some((k.as_str()?.to_owned(), v.as_str()?.to_owned()));
    let Some(Value::Mapping(roles)) = v.get("roles") else { return Err(form()) };
    Ok((what.to_owned(), roles.iter().map(pair).collect::<Option<_>>().ok_or_else(form)?))
}

/// Where in the file the text of a rule's part stands: the place of its first character. Block texts only (`match: |`);
/// the YAML reader tells no places, so this looks for the rule's `id` line and the part's line after it.
pub(super) fn place_of(file: &str, id: &str, part: &str) -> Option<Pos> {
    let key = |l: &str, k: &str| {
        let l = l.trim_start().trim_start_matches("- ").trim_start();
        l.strip_prefix(k)?.strip_prefix(':').map(|v| v.trim().trim_matches(['"', '\'']).to_owned())
    };
    let lines: Vec<&str> = file.lines().collect();
    let rule = lines.iter().position(|l| key(l, "id").as_deref() == Some(id))?;
    let at = rule + lines[rule..].iter().position(|l| key(l, part).is_some_and(|v| v.starts_with('|')))?;
    let body = lines[at + 1..].iter().position(|l| !l.trim().is_empty())?;
    if body > 0 {
        return None;
    }
    let indent = lines[at + 1].chars().take_while(|c| *c == ' ').count();
    Some(Pos { line: at + 2, column: indent + 1 })
}
