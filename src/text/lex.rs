//! The lexer that the graph text and the rule language share.
//!
//! It knows ONNX's textual syntax plus the marks patterns use (`$ ~ | ? *`). Identifiers are ASCII letters, digits and
//! `_`, not starting with a digit; every other name is written between double quotes. `#` starts a comment that ends
//! with the line. Numbers carry their sign; `inf` and `nan` are lexed as identifiers and become numbers where a number
//! is wanted ([`Cursor::number`]), so a value may still be called `inf`.

use std::fmt;

use crate::ir::show::{ident_part, ident_start, quote};

/// Where a token stands. Lines and columns count from 1; columns count characters, not bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Byte offsets into the source.
    pub start: usize,
    pub end: usize,
    pub line: usize,
    pub column: usize,
}

/// One token. Integers and floats keep their text, so that whoever knows the wanted type does the conversion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tok<'s> {
    Ident(&'s str),
    /// An optionally signed run of digits.
    Int(&'s str),
    /// A number with a point or an exponent, or a signed `inf` or `nan`.
    Float(&'s str),
    /// A quoted string with its escapes resolved. Bytes, because ONNX strings need not be UTF-8.
    Str(Vec<u8>),
    /// One of the marks `( ) [ ] < > { } , = : . ; @ * $ ~ | ? =>`.
    Mark(&'static str),
    End,
}

impl fmt::Display for Tok<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Tok::Ident(s) | Tok::Int(s) | Tok::Float(s) => write!(f, "`{s}`"),
            Tok::Str(b) => f.write_str(&quote(b)),
            Tok::Mark(m) => write!(f, "`{m}`"),
            Tok::End => f.write_str("the end of the text"),
        }
    }
}

/// What is wrong with a text, and where.
///
/// The message shows as `line:column: message`, followed by the line in question with a caret under the spot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: {message}\n{excerpt}")]
pub struct ParseError {
    pub line: usize,
    pub column: usize,
    pub message: String,
    /// The source line and, below it, a caret.
    pub excerpt: String,
}

impl ParseError {
    /// An error about the spot `at` of `src`.
    pub fn at(src: &str, at: Span, message: impl Into<String>) -> ParseError {
        let text = src.lines().nth(at.line.saturating_sub(1)).unwrap_or("");
        let gutter = " ".repeat(at.line.to_string().len());
        // Tabs stay tabs, so that the caret lands under its character whatever the width of a tab.
        let pad: String =
            text.chars().take(at.column.saturating_sub(1)).map(|c| if c == '\t' { c } else { ' ' }).collect();
        let width = src.get(at.start..at.end).map_or(1, |s| s.lines().next().unwrap_or("").chars().count().max(1));
        ParseError {
            line: at.line,
            column: at.column,
            message: message.into(),
            excerpt: format!("{} | {text}\n{gutter} | {pad}{}", at.line, "^".repeat(width)),
        }
    }
}

const MARKS: [&str; 19] =
    ["=>", "(", ")", "[", "]", "<", ">", "{", "}", ",", "=", ":", ".", ";", "@", "*", "$", "~", "|"];

/// Cuts a text into tokens; the last one is [`Tok::End`].
///
/// # Errors
/// A character that starts no token, a string that does not end, an unknown escape.
pub fn lex(src: &str) -> Result<Vec<(Tok<'_>, Span)>, ParseError> {
    let mut lexer = Lexer { src, pos: 0, line: 1, line_start: 0, counted: (0, 0) };
    let mut out = Vec::new();
    loop {
        let (tok, span) = lexer.next()?;
        let end = tok == Tok::End;
        out.push((tok, span));
        if end {
            return Ok(out);
        }
    }
}

struct Lexer<'s> {
    src: &'s str,
    pos: usize,
    line: usize,
    line_start: usize,
    /// A place in the current line and how many characters stand before it.
    counted: (usize, usize),
}

impl<'s> Lexer<'s> {
    fn byte(&self, ahead: usize) -> Option<u8> {
        self.src.as_bytes().get(self.pos + ahead).copied()
    }

    /// The span of a piece of the current line. Asked with growing `start`, so that long lines are counted once.
    fn span(&mut self, start: usize, end: usize) -> Span {
        let (from, before) = if self.counted.0 <= start { self.counted } else { (self.line_start, 0) };
        let chars = before + self.src[from..start].chars().count();
        self.counted = (start, chars);
        // Tokens never span lines except for strings, whose start is on the line they are reported at.
        Span { start, end, line: self.line, column: chars + 1 }
    }

    fn take(&mut self, keep: impl Fn(u8) -> bool) {
        while self.byte(0).is_some_and(&keep) {
            self.pos += 1;
        }
    }

    fn next(&mut self) -> Result<(Tok<'s>, Span), ParseError> {
        self.skip_blank();
        let start = self.pos;
        let Some(b) = self.byte(0) else { return Ok((Tok::End, self.span(start, start))) };
        let sign = usize::from(b == b'-' || b == b'+');
        let tok = if ident_start(b) {
            self.take(ident_part);
            Tok::Ident(&self.src[start..self.pos])
        } else if self.byte(sign).is_some_and(|c| c.is_ascii_digit()) {
            self.pos += sign;
            self.number(start)
        } else if sign == 1 && self.byte(1).is_some_and(ident_start) {
            self.pos += 1;
            self.take(ident_part);
            let text = &self.src[start..self.pos];
            if !matches!(&text[1..], "inf" | "nan") {
                let span = self.span(start, self.pos);
                return Err(ParseError::at(self.src, span, format!("`{text}` is no number")));
            }
            Tok::Float(text)
        } else if b == b'"' {
            let span = self.span(start, start + 1);
            let s = self.string(span)?;
            return Ok((Tok::Str(s), Span { end: self.pos, ..span }));
        } else if b == b'?' {
            self.pos += 1;
            Tok::Mark("?")
        } else if let Some(m) = MARKS.iter().find(|m| self.src[start..].starts_with(**m)) {
            self.pos += m.len();
            Tok::Mark(m)
        } else {
            let c = self.src[start..].chars().next().unwrap_or('\0');
            let span = self.span(start, start + c.len_utf8());
            let hint = if matches!(c, '/' | '\\' | '-' | '%') || !c.is_ascii() {
                "; a name with such characters is written between double quotes"
            } else {
                ""
            };
            return Err(ParseError::at(self.src, span, format!("unexpected character `{}`{hint}", c.escape_debug())));
        };
        Ok((tok, self.span(start, self.pos)))
    }

    fn skip_blank(&mut self) {
        while let Some(b) = self.byte(0) {
            match b {
                b'\n' => {
                    self.pos += 1;
                    self.line += 1;
                    self.line_start = self.pos;
                    self.counted = (self.pos, 0);
                }
                b' ' | b'\t' | b'\r' => self.pos += 1,
                b'#' => self.take(|b| b != b'\n'),
                _ => return,
            }
        }
    }

    fn number(&mut self, start: usize) -> Tok<'s> {
        self.take(|b| b.is_ascii_digit());
        let mut float = false;
        if self.byte(0) == Some(b'.') {
            float = true;
            self.pos += 1;
            self.take(|b| b.is_ascii_digit());
        }
        if matches!(self.byte(0), Some(b'e' | b'E')) {
            let sign = usize::from(matches!(self.byte(1), Some(b'+' | b'-')));
            if self.byte(1 + sign).is_some_and(|b| b.is_ascii_digit()) {
                float = true;
                self.pos += 1 + sign;
                self.take(|b| b.is_ascii_digit());
            }
        }
        let text = &self.src[start..self.pos];
        if float { Tok::Float(text) } else { Tok::Int(text) }
    }

    fn string(&mut self, open: Span) -> Result<Vec<u8>, ParseError> {
        let mut out = Vec::new();
        self.pos += 1;
        loop {
            let at = self.pos;
            let Some(b) = self.byte(0) else {
                return Err(ParseError::at(self.src, open, "this string does not end"));
            };
            self.pos += 1;
            match b {
                b'"' => return Ok(out),
                b'\n' => return Err(ParseError::at(self.src, open, "this string does not end on its line")),
                b'\\' => {
                    let hex = self.src.get(self.pos + 1..self.pos + 3).and_then(|h| u8::from_str_radix(h, 16).ok());
                    match (self.byte(0), hex) {
                        (Some(b'n'), _) => out.push(b'\n'),
                        (Some(b't'), _) => out.push(b'\t'),
                        (Some(c @ (b'"' | b'\\')), _) => out.push(c),
                        (Some(b'x'), Some(v)) => {
                            out.push(v);
                            self.pos += 2;
                        }
                        _ => {
                            let span = self.span(at, at + 1);
                            let message = "unknown escape; known are \\\" \\\\ \\n \\t and \\xNN";
                            return Err(ParseError::at(self.src, span, message));
                        }
                    }
                    self.pos += 1;
                }
                b => out.push(b),
            }
        }
    }
}

/// A reading position in a token list: what a recursive-descent parser needs and no more.
#[derive(Clone, Debug)]
pub struct Cursor<'s> {
    src: &'s str,
    toks: Vec<(Tok<'s>, Span)>,
    at: usize,
}

impl<'s> Cursor<'s> {
    /// Lexes the whole text.
    ///
    /// # Errors
    /// Those of [`lex`].
    pub fn new(src: &'s str) -> Result<Cursor<'s>, ParseError> {
        Ok(Cursor { src, toks: lex(src)?, at: 0 })
    }

    /// The text being read.
    pub fn source(&self) -> &'s str {
        self.src
    }

    /// The token `n` places ahead; the end of the text repeats for ever.
    pub fn peek_at(&self, n: usize) -> &Tok<'s> {
        &self.toks[(self.at + n).min(self.toks.len() - 1)].0
    }

    /// The next token, which stays where it is.
    pub fn peek(&self) -> &Tok<'s> {
        self.peek_at(0)
    }

    /// Where the next token stands.
    pub fn span(&self) -> Span {
        self.toks[self.at].1
    }

    /// Takes the next token.
    pub fn advance(&mut self) -> (Tok<'s>, Span) {
        let t = self.toks[self.at].clone();
        self.at = (self.at + 1).min(self.toks.len() - 1);
        t
    }

    /// True if the next token is this mark.
    pub fn is(&self, mark: &str) -> bool {
        matches!(self.peek(), Tok::Mark(m) if *m == mark)
    }

    /// Takes the mark if it is next.
    pub fn eat(&mut self, mark: &str) -> bool {
        let hit = self.is(mark);
        if hit {
            self.advance();
        }
        hit
    }

    /// An error about the next token: `expected ..., found ...`.
    pub fn expected(&self, what: &str) -> ParseError {
        self.error(format!("expected {what}, found {}", self.peek()))
    }

    /// An error about the next token.
    pub fn error(&self, message: impl Into<String>) -> ParseError {
        ParseError::at(self.src, self.span(), message)
    }

    /// An error about an earlier spot.
    pub fn error_at(&self, at: Span, message: impl Into<String>) -> ParseError {
        ParseError::at(self.src, at, message)
    }

    /// Takes the mark, or says what it was wanted for: `expect(")", "after the inputs")`.
    ///
    /// # Errors
    /// If another token is next.
    pub fn expect(&mut self, mark: &str, place: &str) -> Result<Span, ParseError> {
        if self.is(mark) { Ok(self.advance().1) } else { Err(self.expected(&format!("`{mark}` {place}"))) }
    }

    /// Takes an identifier.
    ///
    /// # Errors
    /// If another token is next; `what` says what the identifier would have been.
    pub fn ident(&mut self, what: &str) -> Result<(&'s str, Span), ParseError> {
        match *self.peek() {
            Tok::Ident(s) => Ok((s, self.advance().1)),
            _ => Err(self.expected(what)),
        }
    }

    /// Takes a name: an identifier or a quoted string.
    ///
    /// # Errors
    /// If another token is next, or if the quoted string is not UTF-8.
    pub fn name(&mut self, what: &str) -> Result<(String, Span), ParseError> {
        match self.peek().clone() {
            Tok::Ident(s) => Ok((s.to_owned(), self.advance().1)),
            Tok::Str(b) => match String::from_utf8(b) {
                Ok(s) => Ok((s, self.advance().1)),
                Err(_) => Err(self.error("a name must be UTF-8")),
            },
            _ => Err(self.expected(what)),
        }
    }

    /// Takes a number as its text: an integer, a float, `inf` or `nan`. See [`is_float_text`].
    ///
    /// # Errors
    /// If another token is next.
    pub fn number(&mut self, what: &str) -> Result<(&'s str, Span), ParseError> {
        match *self.peek() {
            Tok::Int(s) | Tok::Float(s) | Tok::Ident(s @ ("inf" | "nan")) => Ok((s, self.advance().1)),
            _ => Err(self.expected(what)),
        }
    }

    /// True if a number is next.
    pub fn at_number(&self) -> bool {
        matches!(self.peek(), Tok::Int(_) | Tok::Float(_) | Tok::Ident("inf" | "nan"))
    }

    /// Takes an integer.
    ///
    /// # Errors
    /// If another token is next, or if it does not fit 64 bits.
    pub fn int(&mut self, what: &str) -> Result<i64, ParseError> {
        match *self.peek() {
            Tok::Int(s) => {
                let v = s.parse().map_err(|_| self.error(format!("`{s}` does not fit a 64-bit integer")))?;
                self.advance();
                Ok(v)
            }
            _ => Err(self.expected(what)),
        }
    }

    /// Takes items separated by commas up to and with the closing mark; a comma before it is allowed. An item
    /// may take nothing, as the omitted one in `(a, , b)`.
    ///
    /// # Errors
    /// Those of `item`, or a missing separator.
    pub fn list<T>(
        &mut self,
        close: &'static str,
        mut item: impl FnMut(&mut Cursor<'s>) -> Result<T, ParseError>,
    ) -> Result<Vec<T>, ParseError> {
        let mut out = Vec::new();
        while !self.eat(close) {
            out.push(item(self)?);
            if !self.eat(",") && !self.is(close) {
                return Err(self.expected(&format!("`,` or `{close}`")));
            }
        }
        Ok(out)
    }
}

/// True if the text of a number token means a float: it has a point or an exponent, or is not finite.
pub fn is_float_text(s: &str) -> bool {
    s.contains(['.', 'e', 'E', 'i', 'n'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(src: &str) -> Vec<String> {
        lex(src).unwrap().into_iter().map(|(t, _)| t.to_string()).collect()
    }

    #[test]
    fn a_pattern_line_is_cut_into_its_marks() {
        let got = kinds("d = Sub~ (x, $c) | Add <axes=[-1], k?=1> (x, 2.0)");
        let want = "`d` `=` `Sub` `~` `(` `x` `,` `$` `c` `)` `|` `Add` `<` `axes` `=` `[` `-1` `]` `,` `k` `?` `=` `1` \
                    `>` `(` `x` `,` `2.0` `)` the end of the text";
        assert_eq!(got.join(" "), want);
    }

    #[test]
    fn numbers_keep_sign_point_and_exponent() {
        let toks: Vec<_> = lex("1 -2 +3 1.5 -1e-5 2E3 -inf 3.").unwrap().into_iter().map(|t| t.0).collect();
        use Tok::*;
        assert_eq!(
            toks,
            [
                Int("1"),
                Int("-2"),
                Int("+3"),
                Float("1.5"),
                Float("-1e-5"),
                Float("2E3"),
                Float("-inf"),
                Float("3."),
                End
            ]
        );
    }

    #[test]
    fn spans_count_lines_and_characters() {
        let toks = lex("a # note\n  \"é\" b").unwrap();
        let at: Vec<_> = toks.iter().map(|(_, s)| (s.line, s.column)).collect();
        assert_eq!(at, [(1, 1), (2, 3), (2, 7), (2, 8)]);
    }

    #[test]
    fn quoting_and_reading_any_bytes_gives_them_back() {
        let all: Vec<u8> = (0..=255).collect();
        let text = quote(&all);
        assert_eq!(lex(&text).unwrap()[0].0, Tok::Str(all));
    }

    #[test]
    fn an_error_points_at_its_spot() {
        let e = lex("x = y\n\tz = a/b").unwrap_err();
        assert_eq!((e.line, e.column), (2, 7));
        assert!(e.to_string().ends_with("2 | \tz = a/b\n  | \t     ^"), "{e}");
    }

    #[test]
    fn an_open_string_is_reported_where_it_starts() {
        let e = lex("a \"bc\nd").unwrap_err();
        assert_eq!((e.line, e.column), (1, 3));
    }
}
