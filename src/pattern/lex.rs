//! The words of the rule language.

use std::fmt;

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

/// What is wrong with a rule's text, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{pos}: {message}")]
pub struct Fault {
    pub pos: Pos,
    pub message: String,
}

impl Fault {
    pub(super) fn new(pos: Pos, message: impl Into<String>) -> Fault {
        Fault { pos, message: message.into() }
    }
}

/// One word.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    /// A name or operator; dots are part of it (`com.microsoft.Gelu`).
    Word(String),
    /// `$name`.
    Constant(String),
    Int(i64),
    Float(f64),
    Text(String),
    /// One of `= | ~ ? < > ( ) [ ] , / *`.
    Mark(char),
    /// `...`
    Rest,
    End,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Token::Word(w) => write!(f, "`{w}`"),
            Token::Constant(w) => write!(f, "`${w}`"),
            Token::Int(v) => write!(f, "`{v}`"),
            Token::Float(v) => write!(f, "`{v}`"),
            Token::Text(v) => write!(f, "{v:?}"),
            Token::Mark(c) => write!(f, "`{c}`"),
            Token::Rest => f.write_str("`...`"),
            Token::End => f.write_str("the end of the text"),
        }
    }
}

/// Splits a rule's text into words. `#` starts a comment that runs to the end of its line.
pub(super) fn words(text: &str) -> Result<Vec<(Token, Pos)>, Fault> {
    let mut out = Vec::new();
    let mut last = Pos { line: 1, column: 1 };
    for (i, line) in text.lines().enumerate() {
        let chars: Vec<char> = line.chars().collect();
        let mut at = 0;
        while at < chars.len() {
            let pos = Pos { line: i + 1, column: at + 1 };
            let c = chars[at];
            let next = chars.get(at + 1).copied().unwrap_or(' ');
            if c == '#' {
                break;
            }
            if c.is_whitespace() {
                at += 1;
                continue;
            }
            let (token, width) = match c {
                '.' if chars[at..].starts_with(&['.', '.', '.']) => (Token::Rest, 3),
                '=' | '|' | '~' | '?' | '<' | '>' | '(' | ')' | '[' | ']' | ',' | '/' | '*' => (Token::Mark(c), 1),
                '$' => {
                    let n = run(&chars[at + 1..], |c| c.is_alphanumeric() || c == '_');
                    if n == 0 {
                        return Err(Fault::new(pos, "`$` wants a name behind it: `$c` is a constant called c"));
                    }
                    (Token::Constant(chars[at + 1..at + 1 + n].iter().collect()), n + 1)
                }
                '"' => match chars[at + 1..].iter().position(|c| *c == '"') {
                    Some(n) => (Token::Text(chars[at + 1..at + 1 + n].iter().collect()), n + 2),
                    None => return Err(Fault::new(pos, "this text has no closing quote")),
                },
                _ if c.is_ascii_digit() || (matches!(c, '-' | '+' | '.') && next.is_ascii_alphanumeric()) => {
                    number(&chars[at..]).map_err(|m| Fault::new(pos, m))?
                }
                _ if c.is_alphabetic() || c == '_' => {
                    let n = run(&chars[at..], |c| c.is_alphanumeric() || c == '_' || c == '.');
                    (Token::Word(chars[at..at + n].iter().collect()), n)
                }
                _ => return Err(Fault::new(pos, format!("`{c}` means nothing in a rule"))),
            };
            out.push((token, pos));
            at += width;
            last = Pos { line: i + 1, column: at + 1 };
        }
    }
    out.push((Token::End, last));
    Ok(out)
}

fn run(chars: &[char], belongs: impl Fn(char) -> bool) -> usize {
    chars.iter().take_while(|c| belongs(**c)).count()
}

fn number(chars: &[char]) -> Result<(Token, usize), String> {
    let mut n = usize::from(matches!(chars[0], '-' | '+'));
    if chars[n].is_alphabetic() {
        n += run(&chars[n..], char::is_alphanumeric);
    } else {
        n += run(&chars[n..], |c| c.is_ascii_digit() || c == '.');
        if matches!(chars.get(n), Some('e' | 'E')) {
            let sign = usize::from(matches!(chars.get(n + 1), Some('-' | '+')));
            let digits = run(&chars[(n + 1 + sign).min(chars.len())..], |c| c.is_ascii_digit());
            if digits > 0 {
                n += 1 + sign + digits;
            }
        }
    }
    let text: String = chars[..n].iter().collect();
    if let Ok(v) = text.parse::<i64>() {
        return Ok((Token::Int(v), n));
    }
    match text.parse::<f64>() {
        Ok(v) => Ok((Token::Float(v), n)),
        Err(_) => Err(format!("`{text}` is not a number")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_places() {
        let w = words("y = Add~ (x, $eps, 1e-5)  # why\nz = com.x.Op <a = [-1], s = \"none\"> (-inf, ...)").unwrap();
        assert!(w.contains(&(Token::Constant("eps".into()), Pos { line: 1, column: 14 })));
        assert!(w.contains(&(Token::Float(1e-5), Pos { line: 1, column: 20 })));
        assert!(w.contains(&(Token::Word("com.x.Op".into()), Pos { line: 2, column: 5 })));
        assert!(w.iter().any(|(t, _)| *t == Token::Int(-1)));
        assert!(w.iter().any(|(t, _)| *t == Token::Float(f64::NEG_INFINITY)));
        assert!(w.iter().any(|(t, _)| *t == Token::Text("none".into())));
        assert!(w.iter().any(|(t, _)| *t == Token::Rest));
    }

    #[test]
    fn faults_say_where() {
        assert_eq!(words("y = Add(x,\n  &)").unwrap_err().pos, Pos { line: 2, column: 3 });
        assert!(words("y = $").is_err());
        assert!(words("y = \"abc").is_err());
        assert!(words("1.2.3").is_err());
    }
}
