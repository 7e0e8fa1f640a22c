//! The syntax of match and replacement texts. Words and marks are those of the graph text form.
//!
//! ```text
//! text   = { target { "," target } "=" expr }
//! target = NAME | "_"
//! expr   = item { "|" item }
//! item   = call | NAME [ "?" ] | "$" NAME [ "?" ] | NUMBER | "_" | "(" expr ")"
//! call   = ( OP | "[" OP { "," OP } "]" | "*" ) [ "~" ] [ "?" ] [ "<" attr { "," attr } ">" ] "(" [ expr { "," expr } ] [ "..." ] ")"
//! attr   = NAME "=" ( NUMBER | TEXT | "[" NUMBERS "]" | "$" NAME )
//! ```

use crate::text::lex::{Cursor, Tok};

use super::place::{Pos, RuleFault};

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
    /// `?` after the operator: it may be missing, its first input then stands in its place.
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

/// How deep calls and groups may be nested. The deepest rule shipped has 6.
const DEEPEST: usize = 64;
/// Bindings of one text.
const MOST_LINES: usize = 500;

/// Reads a match or replacement text.
///
/// # Errors
/// If the text is not of the rule language; the place is named.
pub fn parse(text: &str) -> Result<Vec<Line>, RuleFault> {
    let mut c = Cursor::new(text)?;
    let mut lines = Vec::new();
    while *c.peek() != Tok::End {
        if lines.len() == MOST_LINES {
            return Err(RuleFault::new(
                c.span().into(),
                format!("a text has {MOST_LINES} bindings at most; split the rule"),
            ));
        }
        lines.push(line(&mut c)?);
    }
    if lines.is_empty() {
        return Err(RuleFault::new(Pos { line: 1, column: 1 }, "there is no binding here: write `y = Op (x)`"));
    }
    Ok(lines)
}

fn word(c: &mut Cursor<'_>, what: &str) -> Result<(String, Pos), RuleFault> {
    let (w, at) = c.ident(what)?;
    Ok((w.to_owned(), at.into()))
}

fn line(c: &mut Cursor<'_>) -> Result<Line, RuleFault> {
    let mut targets = Vec::new();
    loop {
        let (w, pos) = word(c, "the name of a value")?;
        targets.push(((w != "_").then_some(w), pos));
        if !c.eat(",") {
            break;
        }
    }
    c.expect("=", "after the name")?;
    Ok(Line { targets, expr: expr(c, DEEPEST)? })
}

/// `room`: how much deeper it may go.
fn expr(c: &mut Cursor<'_>, room: usize) -> Result<Expr, RuleFault> {
    let Some(room) = room.checked_sub(1) else {
        let message = format!("calls and groups are nested deeper than {DEEPEST}; give an inner one a line of its own");
        return Err(RuleFault::new(c.span().into(), message));
    };
    let first = item(c, room)?;
    if !c.is("|") {
        return Ok(first);
    }
    let mut all = vec![first];
    while c.eat("|") {
        all.push(item(c, room)?);
    }
    Ok(Expr::Alternatives(all))
}

/// True if a call starts here: operators, their decorations, then `(` or `<`.
fn at_call(c: &Cursor<'_>) -> bool {
    let mark = |i: usize, m: &str| matches!(c.peek_at(i), Tok::Mark(x) if *x == m);
    let mut i = match c.peek() {
        Tok::Mark("[") => return true,
        Tok::Mark("*") => 1,
        Tok::Ident(_) => {
            let mut i = 1;
            while mark(i, ".") {
                i += 2;
            }
            i
        }
        _ => return false,
    };
    while mark(i, "~") || mark(i, "?") {
        i += 1;
    }
    mark(i, "(") || mark(i, "<")
}

fn item(c: &mut Cursor<'_>, room: usize) -> Result<Expr, RuleFault> {
    if at_call(c) {
        return Ok(Expr::Call(call(c, room)?));
    }
    let pos = c.span().into();
    if c.eat("(") {
        let e = expr(c, room)?;
        c.expect(")", "to close the group")?;
        return Ok(e);
    }
    if c.eat("$") {
        let (name, _) = word(c, "the name of a constant")?;
        return Ok(Expr::Constant { name, optional: c.eat("?"), pos });
    }
    if matches!(c.peek(), Tok::Int(_) | Tok::Float(_)) {
        return Ok(Expr::Number { value: number(c)?, pos });
    }
    let (name, pos) = word(c, "a value or an operator")?;
    Ok(if name == "_" { Expr::Any(pos) } else { Expr::Name { name, optional: c.eat("?"), pos } })
}

fn number(c: &mut Cursor<'_>) -> Result<f64, RuleFault> {
    let pos = c.span().into();
    let (text, _) = c.number("a number")?;
    text.parse().map_err(|_| RuleFault::new(pos, format!("`{text}` is not a number")))
}

/// An operator; the dots of a domain are part of it.
fn operator(c: &mut Cursor<'_>) -> Result<String, RuleFault> {
    let mut op = word(c, "an operator")?.0;
    while c.eat(".") {
        op = format!("{op}.{}", word(c, "the rest of the operator's name")?.0);
    }
    Ok(op)
}

fn call(c: &mut Cursor<'_>, room: usize) -> Result<Call, RuleFault> {
    let pos = c.span().into();
    let mut ops = Vec::new();
    if c.eat("[") {
        loop {
            ops.push(operator(c)?);
            if c.eat("]") {
                break;
            }
            c.expect(",", "between operators")?;
        }
    } else if !c.eat("*") {
        ops.push(operator(c)?);
    }
    let (mut commutes, mut skippable) = (false, false);
    loop {
        if c.eat("~") {
            commutes = true;
        } else if c.eat("?") {
            skippable = true;
        } else {
            break;
        }
    }
    let mut attrs = Vec::new();
    if c.eat("<") {
        while !c.eat(">") {
            attrs.push(attribute(c)?);
            if !c.is(">") {
                c.expect(",", "between attributes")?;
            }
        }
    }
    c.expect("(", "before the inputs")?;
    let (mut args, mut rest) = (Vec::new(), false);
    while !c.eat(")") {
        if c.eat(".") {
            c.expect(".", "in `...`")?;
            c.expect(".", "in `...`")?;
            rest = true;
            c.expect(")", "after `...`")?;
            break;
        }
        args.push(expr(c, room)?);
        if !c.is(")") {
            c.expect(",", "between inputs")?;
        }
    }
    Ok(Call { ops, commutes, skippable, attrs, args, rest, pos })
}

fn attribute(c: &mut Cursor<'_>) -> Result<(String, Attribute, Pos), RuleFault> {
    let (name, pos) = word(c, "the name of an attribute")?;
    c.expect("=", "after the attribute's name")?;
    let value = if c.eat("$") {
        Attribute::Bind(word(c, "the name of a constant or attribute")?.0)
    } else if c.eat("[") {
        let (mut values, mut whole) = (Vec::new(), true);
        while !c.eat("]") {
            whole &= matches!(c.peek(), Tok::Int(_));
            values.push(number(c)?);
            if !c.is("]") {
                c.expect(",", "between numbers")?;
            }
        }
        if whole { Attribute::Ints(values.iter().map(|v| *v as i64).collect()) } else { Attribute::Floats(values) }
    } else {
        match c.peek().clone() {
            Tok::Int(_) => Attribute::Int(c.int("a number")?),
            Tok::Float(_) => Attribute::Float(number(c)?),
            Tok::Str(bytes) => {
                c.advance();
                let text = String::from_utf8(bytes);
                Attribute::Text(text.map_err(|_| RuleFault::new(pos, "this text is not UTF-8"))?)
            }
            _ => return Err(c.expected("a number, a text, a list or `$name`").into()),
        }
    };
    Ok((name, value, pos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_form() {
        let lines = parse(
            "a, _ = Split <axis = -1, num_outputs = 2> (x, ...)\n\
             s = Mul~? (a, $scale) | [Reshape, Squeeze] (a, _)\n\
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
    fn nesting_has_an_end() {
        let nested = |n: usize| format!("y = {}x{}", "Exp (".repeat(n), ")".repeat(n));
        assert!(parse(&nested(60)).is_ok());
        for n in [100, 10_000, 100_000] {
            let f = parse(&nested(n)).unwrap_err();
            assert!(f.pos.line == 1 && f.message.contains("64"), "{f}");
            let groups = format!("y = {}x{}", "(".repeat(n), ")".repeat(n));
            assert!(parse(&groups).unwrap_err().message.contains("64"));
        }
        let lines: String = (0..10_000).map(|i| format!("a{i} = Exp (x)\n")).collect();
        assert!(parse(&lines).unwrap_err().message.contains("500"));
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
