//! Rule files as plain structures.

use crate::yaml::{self, Value};

use super::condition::Condition;
use super::fragments::{Entry, Piece, is_name};
use super::place::Pos;

/// One rule as written.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RawRule {
    pub id: String,
    pub summary: String,
    /// The match with its fragments, what it is held to, and the roles of its names.
    pub matches: Piece,
    pub replace: Option<String>,
    /// What the rule stands for; its roles are those of `matches`.
    pub stands_for: Option<String>,
}

/// What is wrong with a file: the rule, if one is known, the place, if one is known, and the message.
pub(super) struct Wrong {
    pub rule: Option<String>,
    pub pos: Option<Pos>,
    pub message: String,
}

/// Reads a file: a list of rules, and of fragments that the rules after them use.
pub(super) fn read(text: &str) -> Result<Vec<RawRule>, Wrong> {
    let root: Value = yaml::from_str(text).map_err(|e| Wrong {
        rule: None,
        pos: e.location().map(|l| Pos { line: l.line(), column: l.column() }),
        message: e.to_string(),
    })?;
    let Value::Sequence(items) = root else {
        return Err(Wrong { rule: None, pos: None, message: "a rule file is a list: `- id: ...`".to_owned() });
    };
    let (mut fragments, mut rules) = (Vec::new(), Vec::new());
    for (i, item) in items.iter().enumerate() {
        match item.get("fragment") {
            Some(_) => fragments.push(fragment(i, item, &fragments)?),
            None => rules.push(rule(i, item, &fragments)?),
        }
    }
    Ok(rules)
}

/// One entry of a file, whose faults are told with its name.
struct Written<'a> {
    index: usize,
    item: &'a Value,
    entry: Entry,
    name: Option<String>,
}

impl<'a> Written<'a> {
    fn new(index: usize, item: &'a Value, entry: Entry, keys: &[&str]) -> Result<Written<'a>, Wrong> {
        let name = item.get(entry.key()).and_then(Value::as_str).map(str::to_owned);
        let part = Written { index, item, entry, name };
        let Value::Mapping(map) = item else {
            return Err(part.wrong(format!("entry {} is no mapping with `id`, `summary` and `match`", index + 1)));
        };
        match map.keys().find(|key| !key.as_str().is_some_and(|k| keys.contains(&k))) {
            None => Ok(part),
            Some(key) => {
                let what = if entry == Entry::Rule { "rule" } else { "fragment" };
                Err(part.wrong(format!("{key:?} is no part of a {what}; the parts are {}", keys.join(", "))))
            }
        }
    }

    fn wrong(&self, message: String) -> Wrong {
        let (rule, fragment) = match self.entry {
            Entry::Rule => (self.name.clone(), None),
            Entry::Fragment => (None, self.name.as_ref()),
        };
        let message = fragment.map_or(message.clone(), |f| format!("fragment `{f}`: {message}"));
        Wrong { rule, pos: None, message }
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
}

fn fragment(index: usize, item: &Value, known: &[(String, Piece)]) -> Result<(String, Piece), Wrong> {
    let part = Written::new(index, item, Entry::Fragment, &["fragment", "match", "where", "roles"])?;
    let name = part.needed("fragment")?;
    if !is_name(&name) {
        return Err(part.wrong("the name of a fragment is made of letters, digits and `-`".to_owned()));
    }
    if known.iter().any(|(n, _)| *n == name) {
        return Err(part.wrong("this fragment is defined twice in one file".to_owned()));
    }
    let roles = match item.get("roles") {
        None => Vec::new(),
        Some(r) => roles(r).ok_or_else(|| part.wrong("`roles` is `{role: name of the match, ...}`".to_owned()))?,
    };
    let own = (part.conditions()?, roles);
    let piece = Piece::new((Entry::Fragment, &name), &part.needed("match")?, own, known).map_err(|m| part.wrong(m))?;
    Ok((name, piece))
}

fn rule(index: usize, item: &Value, fragments: &[(String, Piece)]) -> Result<RawRule, Wrong> {
    let part = Written::new(index, item, Entry::Rule, &["id", "summary", "match", "where", "replace", "stands_for"])?;
    let id = part.needed("id")?;
    let (stands_for, roles) = match item.get("stands_for") {
        None => (None, Vec::new()),
        Some(s) => stands_for(s).map(|(what, roles)| (Some(what), roles)).map_err(|m| part.wrong(m))?,
    };
    let own = (part.conditions()?, roles);
    let summary = part.needed("summary")?;
    let matches = Piece::new((Entry::Rule, &id), &part.needed("match")?, own, fragments).map_err(|m| part.wrong(m))?;
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

/// Where in the file the text of an entry's part stands: the place of its first character. Block texts only (`match: |`);
/// the YAML reader tells no places, so this looks for the line that names the entry and the part's line after it.
pub(super) fn place_of(file: &str, (entry, name): (Entry, &str), part: &str) -> Option<Pos> {
    let key = |l: &str, k: &str| {
        let l = l.trim_start().trim_start_matches("- ").trim_start();
        l.strip_prefix(k)?.strip_prefix(':').map(|v| v.trim().trim_matches(['"', '\'']).to_owned())
    };
    let lines: Vec<&str> = file.lines().collect();
    let rule = lines.iter().position(|l| key(l, entry.key()).as_deref() == Some(name))?;
    let at = rule + lines[rule..].iter().position(|l| key(l, part).is_some_and(|v| v.starts_with('|')))?;
    let body = lines[at + 1..].iter().position(|l| !l.trim().is_empty())?;
    if body > 0 {
        return None;
    }
    let indent = lines[at + 1].chars().take_while(|c| *c == ' ').count();
    Some(Pos { line: at + 2, column: indent + 1 })
}
