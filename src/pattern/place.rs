//! Places in a rule's text, and what is wrong there.

use std::fmt;

use crate::text::{ParseError, Span};

/// A place in a rule's text: line and column, both counted from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pos {
    pub line: usize,
    pub column: usize,
}

impl fmt::Display for Pos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

impl From<Span> for Pos {
    fn from(s: Span) -> Pos {
        Pos { line: s.line, column: s.column }
    }
}

/// What is wrong with a rule's text, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{pos}: {message}")]
pub struct RuleFault {
    pub pos: Pos,
    pub message: String,
}

impl RuleFault {
    pub(super) fn new(pos: Pos, message: impl Into<String>) -> RuleFault {
        RuleFault { pos, message: message.into() }
    }
}

impl From<ParseError> for RuleFault {
    fn from(e: ParseError) -> RuleFault {
        RuleFault { pos: Pos { line: e.line, column: e.column }, message: e.message }
    }
}
