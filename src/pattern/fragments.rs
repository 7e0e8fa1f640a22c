//! Named pieces of a match that several rules of a file use, so that the forms of one shape do not repeat each other.

use std::collections::BTreeSet;

use super::condition::Condition;

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

/// Where one line of an expanded match text was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    pub entry: Entry,
    /// The rule's id or the fragment's name.
    pub name: String,
    /// Line of that entry's own text, from 1.
    pub line: usize,
}

/// A match, and what its names are held to and stand for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Piece {
    lines: Vec<(String, Origin)>,
    pub conditions: Vec<Condition>,
    /// Role and name in the match.
    pub roles: Vec<(String, String)>,
    /// Fragments it is made of.
    used: BTreeSet<String>,
}

impl Piece {
    /// The text of `entry`, in which a line `use NAME` stands for the lines of a fragment; conditions and roles of fragments
    /// come before its own.
    ///
    /// # Errors
    /// If `known` has no such fragment, or one is used twice, whose names would then be bound twice.
    pub fn new(
        (entry, name): (Entry, &str),
        text: &str,
        own: (Vec<Condition>, Vec<(String, String)>),
        known: &[(String, Piece)],
    ) -> Result<Piece, String> {
        let mut piece = Piece::default();
        for (i, line) in text.lines().enumerate() {
            match used(line) {
                None => {
                    let origin = Origin { entry, name: name.to_owned(), line: i + 1 };
                    piece.lines.push((line.to_owned(), origin));
                }
                Some(fragment) => piece.take(fragment, known)?,
            }
        }
        piece.conditions.extend(own.0);
        piece.roles.extend(own.1);
        Ok(piece)
    }

    fn take(&mut self, fragment: &str, known: &[(String, Piece)]) -> Result<(), String> {
        let Some((_, f)) = known.iter().find(|(n, _)| n == fragment) else {
            let names: Vec<&str> = known.iter().map(|(n, _)| n.as_str()).collect();
            let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            return Err(format!("`use {fragment}`: this file has no such fragment above; those it has: {known}"));
        };
        let inner = f.used.iter().map(String::as_str);
        if let Some(twice) = inner.chain([fragment]).find(|n| self.used.contains(*n)) {
            return Err(format!("`use {fragment}`: the names of fragment `{twice}` would be bound twice"));
        }
        self.lines.extend(f.lines.iter().cloned());
        self.conditions.extend(f.conditions.iter().cloned());
        self.roles.extend(f.roles.iter().cloned());
        self.used.extend(f.used.iter().cloned());
        self.used.insert(fragment.to_owned());
        Ok(())
    }

    /// All lines, those of fragments in their places.
    pub fn text(&self) -> String {
        let lines: Vec<&str> = self.lines.iter().map(|(l, _)| l.as_str()).collect();
        lines.join("\n") + "\n"
    }

    /// Where a line of [`Piece::text`], counted from 1, was written.
    pub fn origin(&self, line: usize) -> Option<&Origin> {
        self.lines.get(line.checked_sub(1)?).map(|(_, o)| o)
    }
}

/// True for names that rules and fragments may have: letters, digits and `-`.
pub(super) fn is_name(s: &str) -> bool {
    !s.is_empty() && s.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

/// The fragment that a line `use NAME` names.
fn used(line: &str) -> Option<&str> {
    let name = line.trim().strip_prefix("use ")?.trim();
    is_name(name).then_some(name)
}
