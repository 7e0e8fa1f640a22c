//! Rule files as plain structures.

use std::sync::Arc;

use crate::yaml::{self, Value};

use super::condition::Condition;
use super::fragments::{Entry, Source, Written, Wrong, is_name};
use super::place::Pos;

/// One rule as written.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RawRule {
    pub id: String,
    pub summary: String,
    /// The match, what it is held to, and the roles of its names.
    pub matches: Written,
    pub replace: Option<String>,
    /// What the rule stands for; its roles are those of `matches`.
    pub stands_for: Option<String>,
}

/// Reads a file: rules, and fragments for the rules of all files.
pub(super) fn read(file: &str, text: &str) -> Result<(Vec<RawRule>, Vec<Written>), Wrong> {
    let wrong = |pos, message: String| Wrong { file: file.to_owned(), rule: None, pos, message };
    let root: Value = yaml::from_str(text)
        .map_err(|e| wrong(e.location().map(|l| Pos { line: l.line(), column: l.column() }), e.to_string()))?;
    let Value::Sequence(items) = root else {
        return Err(wrong(None, "a rule file is a list: `- id: ...`".to_owned()));
    };
    let (mut rules, mut fragments) = (Vec::new(), Vec::<Written>::new());
    for (index, item) in items.iter().enumerate() {
        let part = |entry, times| Part { file: (file, text), index, item, entry, times };
        let Some(name) = item.get(Entry::Fragment.key()) else {
            rules.push(rule(&part(Entry::Rule, 0))?);
            continue;
        };
        let times = fragments.iter().filter(|f| Some(f.source.name.as_str()) == name.as_str()).count();
        fragments.push(fragment(&part(Entry::Fragment, times))?);
    }
    Ok((rules, fragments))
}

/// One entry of a file, whose faults are told with its name.
struct Part<'a> {
    /// Name and text.
    file: (&'a str, &'a str),
    index: usize,
    item: &'a Value,
    entry: Entry,
    /// Entries of the same name before it.
    times: usize,
}

impl Part<'_> {
    fn check(&self, keys: &[&str]) -> Result<(), Wrong> {
        let Value::Mapping(map) = self.item else {
            let message = format!("entry {} is no mapping with `id`, `summary` and `match`", self.index + 1);
            return Err(self.wrong(message));
        };
        match map.keys().find(|key| !key.as_str().is_some_and(|k| keys.contains(&k))) {
            None => Ok(()),
            Some(key) => {
                let what = if self.entry == Entry::Rule { "rule" } else { "fragment" };
                Err(self.wrong(format!("{key:?} is no part of a {what}; the parts are {}", keys.join(", "))))
            }
        }
    }

    fn wrong(&self, message: String) -> Wrong {
        let name = self.item.get(self.entry.key()).and_then(Value::as_str);
        Wrong::of(self.file.0, (self.entry, name), None, message)
    }

    fn text(&self, key: &str) -> Result<Option<String>, Wrong> {
        match self.item.get(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s.clone())),
            Some(_) => Err(self.wrong(format!("`{key}` must be a text"))),
        }
    }

    fn needed(&self, key: &str) -> Result<String, Wrong> {
        self.text(key)?.ok_or_else(|| self.wrong(format!("entry {} has no `{key}`", self.index + 1)))
    }

    fn conditions(&self) -> Result<Vec<Condition>, Wrong> {
        match self.item.get("where") {
            None => Ok(Vec::new()),
            Some(Value::Sequence(all)) => {
                all.iter().map(|c| Condition::read(c).map_err(|m| self.wrong(m))).collect::<Result<_, _>>()
            }
            Some(_) => Err(self.wrong("`where` is a list: `where: [ scalar: eps ]`".to_owned())),
        }
    }

    /// Its match, which stands in the file under `name`.
    fn written(&self, name: &str, text: String, roles: Vec<(String, String)>) -> Result<Written, Wrong> {
        let (file, whole) = self.file;
        let line = line_of(whole, (self.entry, name), self.times);
        let source = Source {
            file: file.to_owned(),
            entry: self.entry,
            name: name.to_owned(),
            line: line.map(|l| l + 1),
            body: line.and_then(|l| block(whole, l, "match")),
        };
        Ok(Written { source: Arc::new(source), text, conditions: self.conditions()?, roles })
    }
}

fn fragment(part: &Part<'_>) -> Result<Written, Wrong> {
    part.check(&["fragment", "match", "where", "roles"])?;
    let name = part.needed("fragment")?;
    if !is_name(&name) {
        return Err(part.wrong("the name of a fragment is made of letters, digits and `-`".to_owned()));
    }
    let roles = match part.item.get("roles") {
        None => Vec::new(),
        Some(r) => roles(r).ok_or_else(|| part.wrong("`roles` is `{role: name of the match, ...}`".to_owned()))?,
    };
    // Conditions alone can be a fragment.
    let text = part.text("match")?.unwrap_or_default();
    if text.is_empty() && part.item.get("where").is_none() {
        return Err(part.wrong("it has neither `match` nor `where`".to_owned()));
    }
    part.written(&name, text, roles)
}

fn rule(part: &Part<'_>) -> Result<RawRule, Wrong> {
    part.check(&["id", "summary", "match", "where", "replace", "stands_for"])?;
    let id = part.needed("id")?;
    let (stands_for, roles) = match part.item.get("stands_for") {
        None => (None, Vec::new()),
        Some(s) => stands_for(s).map(|(what, roles)| (Some(what), roles)).map_err(|m| part.wrong(m))?,
    };
    let summary = part.needed("summary")?;
    let matches = part.written(&id, part.needed("match")?, roles)?;
    Ok(RawRule { id, summary, matches, replace: part.text("replace")?, stands_for })
}

fn stands_for(v: &Value) -> Result<(String, Vec<(String, String)>), String> {
    let form = || "`stands_for` is `{what: name, roles: {role: name of the match, ...}}`".to_owned();
    let what = v.get("what").and_then(Value::as_str).ok_or_else(form)?;
    let named = v.get("roles").map_or(Some(Vec::new()), roles).ok_or_else(form)?;
    Ok((what.to_owned(), named))
}

/// Roles and the names that have them.
fn roles(v: &Value) -> Option<Vec<(String, String)>> {
    let Value::Mapping(roles) = v else { return None };
    roles.iter().map(|(k, v)| Some((k.as_str()?.to_owned(), v.as_str()?.to_owned()))).collect()
}

/// The line, from 0, that names an entry, the first of its name after `times` others. The YAML reader tells no places, so this
/// looks for the text.
fn line_of(file: &str, (entry, name): (Entry, &str), times: usize) -> Option<usize> {
    let names =
        |l: &str| value_of(l, entry.key()).is_some_and(|v| v.split([',', '}']).next().map(unquoted) == Some(name));
    file.lines().enumerate().filter(|(_, l)| names(l)).nth(times).map(|(i, _)| i)
}

/// Where in the file the text of an entry's part stands: the place of its first character. Block texts only (`match: |`), at or
/// after the line, from 0, that names the entry.
fn block(file: &str, entry: usize, part: &str) -> Option<Pos> {
    let lines: Vec<&str> = file.lines().collect();
    let at = entry + lines[entry..].iter().position(|l| value_of(l, part).is_some_and(|v| v.starts_with('|')))?;
    let body = lines[at + 1..].iter().position(|l| !l.trim().is_empty())?;
    if body > 0 {
        return None;
    }
    let indent = lines[at + 1].chars().take_while(|c| *c == ' ').count();
    Some(Pos { line: at + 2, column: indent + 1 })
}

/// What a line gives a key.
fn value_of<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let l = line.trim_start().trim_start_matches("- ").trim_start().trim_start_matches('{').trim_start();
    l.strip_prefix(key)?.strip_prefix(':').map(str::trim)
}

fn unquoted(s: &str) -> &str {
    s.trim().trim_matches(['"', '\''])
}

/// Where the text of a rule's part stands in its file, as [`block`].
pub(super) fn place_of(file: &str, id: &str, part: &str) -> Option<Pos> {
    block(file, line_of(file, (Entry::Rule, id), 0)?, part)
}
