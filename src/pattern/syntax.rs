//! The syntax of match and replacement texts: words to a tree.
//!
//! ```text
//! text   = { target { "," target } "=" expr }
//! target = NAME | "_"
//! expr   = item { "|" item }
//! item   = call | NAME [ "?" ] | "$" NAME [ "?" ] | NUMBER | "_" | "(" expr ")"
//! call   = ( OP { "/" OP } | "*" ) [ "~" ] [ "?" ] [ "<" attr { "," attr } ">" ] "(" [ expr { "," expr } ] [ "..." ] ")"
//! attr   = NAME "=" ( NUMBER | TEXT | "[" NUMBERS "]" | "$" NAME )
//! ```

use super::lex::{Fault, Pos, Token, words};

/// One binding: `targets = expr`.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// `None` is `_`.
    pub targets: Vec<(Option<String>, Pos)>,
    pub expr: Expr,
}

/// What a value must look like (or, in a replacement, be).
#[derive(Clone, Debug, PartialEq)]
pub enum Expr {
    Alternatives(Vec<Expr>),
    Call(Call),
    Name { name: String, optional: bool, pos: Pos },
    Constant { name: String, optional: bool, pos: Pos },
    Number { value: f64, pos: Pos },
    Any(Pos),
}

impl Expr {
    pub fn pos(&self) -> Pos {
        match self {
            Expr::Alternatives(v) => v.first().map_or(Pos { line: 1, column: 1 }, Expr::pos),
            Expr::Call(c) => c.pos,
            Expr::Name { pos, .. } | Expr::Constant { pos, .. } | Expr::Number { pos, .. } | Expr::Any(pos) => *pos,
        }
    }
}

/// An operator and what goes in.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// Any of these operators; empty for `*`.
    pub ops: Vec<String>,
    /// `~`: the two inputs may come in either order.
    pub commutes: bool,
    /// `?` behind the operator: it may be missing, its first input then stands in its place.
    pub skippable: bool,
    pub attrs: Vec<(String, Attribute, Pos)>,
    pub args: Vec<Expr>,
    /// `...`: any further inputs.
    pub rest: bool,
    pub pos: Pos,
}

/// What an attribute must be.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    Int(i64),
    Float(f64),
    Text(String),
    Ints(Vec<i64>),
    Floats(Vec<f64>),
    /// `$name`: whatever it is, under this name.
    Bind(String),
}

/// Reads a match or replacement text.
pub fn parse(text: &str) -> Result<Vec<Line>, Fault> {
    let words = words(text)?;
    let mut p = Parser { words: &words, at: 0 };
    let mut lines = Vec::new();
    while *p.peek() != Token::End {
        lines.push(p.line()?);
    }
    if lines.is_empty() {
        return Err(Fault::new(Pos { line: 1, column: 1 }, "there is no binding here: write `y = Op (x)`"));
    }
    Ok(lines)
}

struct Parser<'a> {
    words: &'a [(Token, Pos)],
    at: usize,
}

impl Parser<'_> {
    fn peek(&self) -> &Token {
        &self.words[self.at].0
    }

    fn peek_at(&self, ahead: usize) -> &Token {
        &self.words[(self.at + ahead).min(self.words.len() - 1)].0
    }

    fn pos(&self) -> Pos {
        self.words[self.at].1
    }

    fn take(&mut self) -> (Token, Pos) {
        let w = self.words[self.at].clone();
        self.at = (self.at + 1).min(self.words.len() - 1);
        w
    }

    fn eat(&mut self, mark: char) -> bool {
        let hit = *self.peek() == Token::Mark(mark);
        if hit {
            self.take();
        }
        hit
    }

    fn want(&mut self, mark: char, after: &str) -> Result<(), Fault> {
        if self.eat(mark) {
            return Ok(());
        }
        Err(Fault::new(self.pos(), format!("expected `{mark}` {after}, found {}", self.peek())))
    }

    fn line(&mut self) -> Result<Line, Fault> {
        let mut targets = Vec::new();
        loop {
            match self.take() {
                (Token::Word(w), pos) => targets.push(((w != "_").then_some(w), pos)),
                (t, pos) => return Err(Fault::new(pos, format!("expected the name of a value, found {t}"))),
            }
            if !self.eat(',') {
                break;
            }
        }
        self.want('=', "after the name")?;
        Ok(Line { targets, expr: self.expr()? })
    }

    fn expr(&mut self) -> Result<Expr, Fault> {
        let first = self.item()?;
        if *self.peek() != Token::Mark('|') {
            return Ok(first);
        }
        let mut all = vec![first];
        while self.eat('|') {
            all.push(self.item()?);
        }
        Ok(Expr::Alternatives(all))
    }

    /// True if a call starts here: an operator, its decorations, then `(` or `<`.
    fn at_call(&self) -> bool {
        let mut i = match self.peek() {
            Token::Mark('*') => 1,
            Token::Word(_) => {
                let mut i = 1;
                while *self.peek_at(i) == Token::Mark('/') {
                    i += 2;
                }
                i
            }
            _ => return false,
        };
        while matches!(self.peek_at(i), Token::Mark('~' | '?')) {
            i += 1;
        }
        matches!(self.peek_at(i), Token::Mark('(' | '<'))
    }

    fn item(&mut self) -> Result<Expr, Fault> {
        if self.at_call() {
            return Ok(Expr::Call(self.call()?));
        }
        let (token, pos) = self.take();
        Ok(match token {
            Token::Mark('(') => {
                let e = self.expr()?;
                self.want(')', "to close the group")?;
                e
            }
            Token::Word(w) if w == "_" => Expr::Any(pos),
            Token::Word(name) => Expr::Name { name, optional: self.eat('?'), pos },
            Token::Constant(name) => Expr::Constant { name, optional: self.eat('?'), pos },
            Token::Int(v) => Expr::Number { value: v as f64, pos },
            Token::Float(value) => Expr::Number { value, pos },
            t => return Err(Fault::new(pos, format!("expected a value or an operator, found {t}"))),
        })
    }

    fn call(&mut self) -> Result<Call, Fault> {
        let pos = self.pos();
        let mut ops = Vec::new();
        if !self.eat('*') {
            loop {
                match self.take() {
                    (Token::Word(w), _) => ops.push(w),
                    (t, pos) => return Err(Fault::new(pos, format!("expected an operator, found {t}"))),
                }
                if !self.eat('/') {
                    break;
                }
            }
        }
        let (mut commutes, mut skippable) = (false, false);
        loop {
            if self.eat('~') {
                commutes = true;
            } else if self.eat('?') {
                skippable = true;
            } else {
                break;
            }
        }
        let mut attrs = Vec::new();
        if self.eat('<') {
            while !self.eat('>') {
                attrs.push(self.attribute()?);
                if *self.peek() != Token::Mark('>') {
                    self.want(',', "between attributes")?;
                }
            }
        }
        self.want('(', "before the inputs")?;
        let (mut args, mut rest) = (Vec::new(), false);
        while !self.eat(')') {
            if *self.peek() == Token::Rest {
                self.take();
                rest = true;
                self.want(')', "after `...`")?;
                break;
            }
            args.push(self.expr()?);
            if *self.peek() != Token::Mark(')') {
                self.want(',', "between inputs")?;
            }
        }
        Ok(Call { ops, commutes, skippable, attrs, args, rest, pos })
    }

    fn attribute(&mut self) -> Result<(String, Attribute, Pos), Fault> {
        let (name, pos) = match self.take() {
            (Token::Word(w), pos) => (w, pos),
            (t, pos) => return Err(Fault::new(pos, format!("expected the name of an attribute, found {t}"))),
        };
        self.want('=', "after the attribute's name")?;
        let value = match self.take() {
            (Token::Int(v), _) => Attribute::Int(v),
            (Token::Float(v), _) => Attribute::Float(v),
            (Token::Text(v), _) => Attribute::Text(v),
            (Token::Constant(v), _) => Attribute::Bind(v),
            (Token::Mark('['), _) => self.list()?,
            (t, pos) => {
                return Err(Fault::new(pos, format!("expected a number, a text, a list or `$name`, found {t}")));
            }
        };
        Ok((name, value, pos))
    }

    fn list(&mut self) -> Result<Attribute, Fault> {
        let (mut ints, mut floats) = (Vec::new(), Vec::new());
        while !self.eat(']') {
            match self.take() {
                (Token::Int(v), _) => {
                    ints.push(v);
                    floats.push(v as f64);
                }
                (Token::Float(v), _) => floats.push(v),
                (t, pos) => return Err(Fault::new(pos, format!("expected a number, found {t}"))),
            }
            if *self.peek() != Token::Mark(']') {
                self.want(',', "between numbers")?;
            }
        }
        Ok(if ints.len() == floats.len() { Attribute::Ints(ints) } else { Attribute::Floats(floats) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_form() {
        let lines = parse(
            "a, _ = Split <axis = -1, num_outputs = 2> (x, ...)\n\
             s = Mul~? (a, $scale) | Reshape/Squeeze (a, _)\n\
             y = *(s, b?, $c?, (Pow (x, 2.0) | x)) # done",
        )
        .unwrap();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0].targets[1].0, None);
        let Expr::Alternatives(alts) = &lines[1].expr else { panic!("{:?}", lines[1]) };
        let Expr::Call(mul) = &alts[0] else { panic!() };
        assert!(mul.commutes && mul.skippable);
        let Expr::Call(view) = &alts[1] else { panic!() };
        assert_eq!(view.ops, ["Reshape", "Squeeze"]);
        let Expr::Call(any) = &lines[2].expr else { panic!() };
        assert!(any.ops.is_empty() && any.args.len() == 4);
        assert!(matches!(&any.args[1], Expr::Name { optional: true, .. }));
    }

    #[test]
    fn faults_name_the_place_and_what_was_expected() {
        let f = parse("y = Add (x, b\nz = Mul (y, y)").unwrap_err();
        assert_eq!((f.pos.line, f.pos.column), (2, 1));
        assert!(f.message.contains("`,`"), "{f}");
        assert!(parse("").is_err());
        assert!(parse("y = Op <a = (1)> (x)").is_err());
        assert!(parse("y Add (x)").is_err());
    }
}
