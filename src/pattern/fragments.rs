//! Named pieces of a match that several rules use, so that the forms of one shape do not repeat each other.
//!
//! All rule files share their fragments: those of the program, and those of a user's folder beside them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::condition::Condition;
use super::place::Pos;

/// The key that names an entry of a rule file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Rule,
    Fragment,
}

impl Entry {
    pub fn key(self) -> &'static str {
        match self {
            Entry::Rule => "id",
            Entry::Fragment => "fragment",
        }
    }
}

/// An entry of a rule file and where it stands, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    pub file: String,
    pub entry: Entry,
    /// The rule's id or the fragment's name.
    pub name: String,
    /// The line that names it, if it was found.
    pub line: Option<usize>,
    /// The first character of its match, if that is a block text.
    pub body: Option<Pos>,
}

impl Source {
    /// Where a place of the match text stands in the file.
    pub fn place(&self, in_text: Pos) -> Option<Pos> {
        let b = self.body?;
        Some(Pos { line: b.line + in_text.line - 1, column: b.column + in_text.column - 1 })
    }

    fn wrong(&self, pos: Option<Pos>, message: &str) -> Wrong {
        let pos = pos.or(self.line.map(|line| Pos { line, column: 1 }));
        Wrong::of(&self.file, (self.entry, Some(&self.name)), pos, message.to_owned())
    }

    fn shown(&self) -> String {
        self.line.map_or(self.file.clone(), |l| format!("{}:{l}", self.file))
    }
}

/// What is wrong with a file: the rule, if one is known, the place, if one is known, and the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    pub file: String,
    pub rule: Option<String>,
    pub pos: Option<Pos>,
    pub message: String,
}

impl Wrong {
    /// What is wrong with an entry, under its name where it has one.
    pub fn of(file: &str, (entry, name): (Entry, Option<&str>), pos: Option<Pos>, message: String) -> Wrong {
        let (rule, message) = match (entry, name) {
            (Entry::Fragment, Some(f)) => (None, format!("fragment `{f}`: {message}")),
            (_, name) => (name.map(str::to_owned), message),
        };
        Wrong { file: file.to_owned(), rule, pos, message }
    }
}

/// The match of a rule or a fragment as written, before its fragments are put in.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Written {
    pub source: Arc<Source>,
    pub text: String,
    pub conditions: Vec<Condition>,
    /// Role and name in the match.
    pub roles: Vec<(String, String)>,
}

impl Written {
    /// True if both say the same, wherever they stand.
    fn agrees(&self, other: &Written) -> bool {
        let same_text = self.text.trim_end() == other.text.trim_end();
        same_text && self.conditions == other.conditions && self.roles == other.roles
    }

    fn wrong(&self, line: usize, message: &str) -> Wrong {
        self.source.wrong(self.source.place(Pos { line: line + 1, column: 1 }), message)
    }
}

/// One line of an expanded match text, and where it was written.
#[derive(Clone, Debug, PartialEq)]
struct PieceLine {
    text: String,
    source: Arc<Source>,
    /// Line of that entry's own text, from 1.
    line: usize,
    /// The column that each character had there, from 1: other names may be shorter or longer.
    columns: Vec<usize>,
}

/// A match with its fragments put in, and what its names are held to and stand for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Piece {
    lines: Vec<PieceLine>,
    pub conditions: Vec<Condition>,
    /// Role and name in the match.
    pub roles: Vec<(String, String)>,
    /// Names that the lines of fragments bind.
    bound: BTreeSet<String>,
}

impl Piece {
    /// All lines, those of fragments in their places.
    pub fn text(&self) -> String {
        let lines: Vec<&str> = self.lines.iter().map(|l| l.text.as_str()).collect();
        lines.join("\n") + "\n"
    }

    /// The entry that wrote a place of [`Piece::text`], and the place in that entry's own match text.
    pub fn origin(&self, at: Pos) -> Option<(&Source, Pos)> {
        let l = self.lines.get(at.line.checked_sub(1)?)?;
        let column = l.columns.get(at.column.saturating_sub(1)).or(l.columns.last()).copied().unwrap_or(at.column);
        Some((&l.source, Pos { line: l.line, column }))
    }

    /// For each line of [`Piece::text`] the fragment it comes from, `None` for the rule's own, and its line there.
    pub fn written(&self) -> Vec<(Option<String>, usize)> {
        let of = |l: &PieceLine| ((l.source.entry == Entry::Fragment).then(|| l.source.name.clone()), l.line);
        self.lines.iter().map(of).collect()
    }

    fn size(&self) -> usize {
        self.lines.len() + self.conditions.len() + self.roles.len()
    }

    fn own(&mut self, text: &str, source: &Arc<Source>, line: usize) {
        let columns = (1..=text.chars().count()).collect();
        self.lines.push(PieceLine { text: text.to_owned(), source: Arc::clone(source), line, columns });
    }

    /// Takes in a fragment's piece, whose names are `given` others.
    fn take(&mut self, fragment: &str, mut f: Piece, given: &[(String, String)]) -> Result<(), String> {
        f.substitute(given).map_err(|m| format!("`use {fragment}`: {m}"))?;
        for name in f.lines.iter().flat_map(|l| targets(&l.text)) {
            if !self.bound.insert(name.clone()) {
                let remedy = format!("give it another name: `use {fragment} ({name} = ...)`");
                return Err(format!("`use {fragment}`: fragments would bind `{name}` twice; {remedy}"));
            }
        }
        self.lines.append(&mut f.lines);
        self.conditions.append(&mut f.conditions);
        self.roles.append(&mut f.roles);
        Ok(())
    }

    fn substitute(&mut self, given: &[(String, String)]) -> Result<(), String> {
        let mut met = BTreeSet::new();
        for l in &mut self.lines {
            (l.text, l.columns) = renamed(&l.text, &l.columns, given, &mut met);
        }
        let mut other = |name: &mut String| {
            if let Some((old, new)) = given.iter().find(|(old, _)| old == name) {
                met.insert(old.clone());
                name.clone_from(new);
            }
        };
        self.conditions.iter_mut().for_each(|c| c.substitute(&mut other));
        self.roles.iter_mut().for_each(|(_, name)| other(name));
        match given.iter().find(|(old, _)| !met.contains(old)) {
            Some((old, _)) => Err(format!("the fragment has no name `{old}`")),
            None => Ok(()),
        }
    }
}

/// The fragments that rule files may use, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Fragments(BTreeMap<String, Written>);

/// How deep fragments may use fragments, and how many lines, conditions and roles a rule may have with all of them put in.
const DEEPEST: usize = 32;
const MOST: usize = 500;

/// What is being put together: a stack of fragments, none of which may use one below it, and those that are done.
#[derive(Default)]
struct Building {
    within: Vec<String>,
    done: BTreeMap<String, Piece>,
}

impl Fragments {
    /// Adds a fragment; one that says the same as a known one of its name is no other.
    ///
    /// # Errors
    /// If the name is taken by a fragment that says something else.
    pub fn add(&mut self, new: Written) -> Result<(), Wrong> {
        let name = new.source.name.clone();
        match self.0.get(&name) {
            Some(old) if !old.agrees(&new) => {
                let message =
                    format!("it is defined differently at {}; give one of them another name", old.source.shown());
                Err(new.source.wrong(None, &message))
            }
            Some(_) => Ok(()),
            None => {
                self.0.insert(name, new);
                Ok(())
            }
        }
    }

    /// The match of a rule with all fragments put in; conditions and roles of fragments come before its own.
    ///
    /// # Errors
    /// As [`Fragments::piece`].
    pub fn of_rule(&self, rule: &Written) -> Result<Piece, Wrong> {
        self.piece(rule, &mut Building::default())
    }

    /// Puts each fragment together once, whether a rule uses it or not.
    ///
    /// # Errors
    /// As [`Fragments::piece`].
    pub fn check(&self) -> Result<(), Wrong> {
        let mut b = Building::default();
        self.0.values().try_for_each(|f| {
            b.within = vec![f.source.name.clone()];
            self.piece(f, &mut b).map(|_| ())
        })
    }

    /// The text of an entry, in which a line `use NAME` stands for the lines of a fragment.
    ///
    /// # Errors
    /// If there is no such fragment, one uses itself, or a name would be bound twice.
    fn piece(&self, entry: &Written, b: &mut Building) -> Result<Piece, Wrong> {
        let mut piece = Piece::default();
        for (i, line) in entry.text.lines().enumerate() {
            let wrong = |message: &str| entry.wrong(i, message);
            match used(line).map_err(|m| wrong(&m))? {
                None => piece.own(line, &entry.source, i + 1),
                Some((name, given)) => {
                    let inner = self.inner(name, &b.within).map_err(|m| wrong(&m))?;
                    let inner = match b.done.get(name) {
                        Some(done) => done.clone(),
                        None => {
                            b.within.push(name.to_owned());
                            let made = self.piece(inner, b)?;
                            b.within.pop();
                            b.done.entry(name.to_owned()).or_insert(made).clone()
                        }
                    };
                    piece.take(name, inner, &given).map_err(|m| wrong(&m))?;
                }
            }
            if piece.size() > MOST {
                return Err(wrong(&format!("with its fragments this has more than {MOST} lines and conditions")));
            }
        }
        piece.conditions.extend(entry.conditions.iter().cloned());
        piece.roles.extend(entry.roles.iter().cloned());
        Ok(piece)
    }

    fn inner(&self, name: &str, within: &[String]) -> Result<&Written, String> {
        if let Some(at) = within.iter().position(|n| n == name) {
            let circle: Vec<&str> = within[at..].iter().map(String::as_str).chain([name]).collect();
            return Err(format!("`use {name}`: the fragment uses itself: {}", circle.join(" -> ")));
        }
        if within.len() >= DEEPEST {
            return Err(format!("`use {name}`: fragments use each other more than {DEEPEST} deep"));
        }
        self.0.get(name).ok_or_else(|| {
            let names: Vec<&str> = self.0.keys().map(String::as_str).collect();
            let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            format!("`use {name}`: there is no such fragment; there are {known}")
        })
    }
}

/// True for names that rules and fragments may have: letters, digits and `-`.
pub(super) fn is_name(s: &str) -> bool {
    !s.is_empty() && s.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

/// True for names of values.
fn is_ident(s: &str) -> bool {
    s.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && s.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// A fragment's names, and what takes their places where it is used.
type Given = Vec<(String, String)>;

/// The fragment that a line `use NAME (theirs = ours, ...)` names, and what its names become here.
fn used(line: &str) -> Result<Option<(&str, Given)>, String> {
    let line = line.split('#').next().unwrap_or_default().trim();
    let Some(rest) = line.strip_prefix("use ").map(str::trim) else { return Ok(None) };
    if rest.starts_with('=') || rest.starts_with(',') {
        return Ok(None);
    }
    let (name, given) = rest.split_once('(').map_or((rest, None), |(n, g)| (n.trim_end(), Some(g)));
    let form = || format!("`{line}` is not of the form `use NAME` or `use NAME (its name = name here, ...)`");
    if !is_name(name) {
        return Err(form());
    }
    let Some(given) = given else { return Ok(Some((name, Vec::new()))) };
    let mut names = Given::new();
    for pair in given.strip_suffix(')').ok_or_else(form)?.split(',') {
        let (old, new) = pair.split_once('=').map(|(o, n)| (o.trim(), n.trim())).ok_or_else(form)?;
        if !is_ident(old) || !(is_ident(new) || new.parse::<f64>().is_ok()) {
            return Err(form());
        }
        if names.iter().any(|(o, _)| o == old) {
            return Err(format!("`{line}` gives `{old}` two names"));
        }
        names.push((old.to_owned(), new.to_owned()));
    }
    Ok(Some((name, names)))
}

/// The names that a line of a match binds.
fn targets(line: &str) -> Vec<String> {
    let Some((left, _)) = line.split('#').next().and_then(|l| l.split_once('=')) else { return Vec::new() };
    let names: Vec<&str> = left.split(',').map(str::trim).collect();
    let names = if names.iter().all(|n| is_ident(n)) { names } else { Vec::new() };
    names.into_iter().filter(|n| *n != "_").map(str::to_owned).collect()
}

/// A line with the `given` names in place of its own, and the columns its characters came from. Operators, attributes and texts
/// are no names. Names that were replaced are added to `met`.
fn renamed(
    line: &str,
    columns: &[usize],
    given: &[(String, String)],
    met: &mut BTreeSet<String>,
) -> (String, Vec<usize>) {
    let chars: Vec<char> = line.chars().collect();
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let (mut text, mut from) = (String::new(), Vec::new());
    let (mut i, mut quoted, mut in_attributes) = (0, false, false);
    while i < chars.len() {
        let start = i;
        i += 1;
        let c = chars[start];
        if c == '#' && !quoted {
            i = chars.len();
        } else if c == '"' {
            quoted = !quoted;
        } else if !quoted && (c == '<' || c == '>') {
            in_attributes = c == '<';
        } else if part(c) {
            while i < chars.len() && part(chars[i]) {
                i += 1;
            }
        }
        let word: String = chars[start..i].iter().collect();
        let after = chars[i..].iter().find(|c| **c != ' ');
        let dotted = start > 0 && chars[start - 1] == '.' || chars.get(i) == Some(&'.');
        let no_name =
            quoted || dotted || matches!(after, Some('(' | '~' | '<')) || in_attributes && after == Some(&'=');
        match given.iter().find(|(old, _)| *old == word && !no_name) {
            Some((old, new)) => {
                met.insert(old.clone());
                text += new;
                from.extend(new.chars().map(|_| columns[start]));
            }
            None => {
                text += &word;
                from.extend(&columns[start..i]);
            }
        }
    }
    (text, from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_are_renamed() {
        let line = "y = Add~ (x, Pow <x = 1, axes = [x]> ($x)) | x? | x.Op (x) | Op <a = \"x\"> (x2) # x";
        let given = [("x".to_owned(), "long".to_owned()), ("y".to_owned(), "z".to_owned())];
        let columns: Vec<usize> = (1..=line.chars().count()).collect();
        let mut met = BTreeSet::new();
        let (text, from) = renamed(line, &columns, &given, &mut met);
        assert_eq!(
            text,
            "z = Add~ (long, Pow <x = 1, axes = [long]> ($long)) | long? | x.Op (long) | Op <a = \"x\"> (x2) # x"
        );
        assert_eq!((from.len(), from[text.find("Pow").unwrap()]), (text.len(), line.find("Pow").unwrap() + 1));
        assert_eq!(met.len(), 2);
        // Two names can change places.
        let swap = [("x".to_owned(), "y".to_owned()), ("y".to_owned(), "x".to_owned())];
        assert_eq!(renamed("y = Exp (x)", &[1; 11], &swap, &mut met).0, "x = Exp (y)");
    }

    #[test]
    fn a_use_has_one_form() {
        assert_eq!(used("use = Exp (x)"), Ok(None));
        assert_eq!(used("user = Exp (x)"), Ok(None));
        assert_eq!(used("  use a-b # why").unwrap().unwrap(), ("a-b", vec![]));
        let names = |p: &[(&str, &str)]| p.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect::<Vec<_>>();
        assert_eq!(used("use a (x = y, over = -1)").unwrap().unwrap(), ("a", names(&[("x", "y"), ("over", "-1")])));
        for bad in ["use a (x)", "use a (x = y", "use a b", "use a (x = Exp (y))", "use a ()"] {
            assert!(used(bad).unwrap_err().contains("not of the form"), "{bad}");
        }
        assert!(used("use a (x = y, x = z)").unwrap_err().contains("two names"));
    }
}
