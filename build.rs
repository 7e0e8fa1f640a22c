//! Compiles `proto/onnx.proto` with protox (no `protoc` needed) into two files of `OUT_DIR`: the message types, and a
//! table of every message's fields, which the unknown-field detector walks files with.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// Number, name, and for a message its full type name.
type Field = (i32, String, Option<String>);

const TYPE_MESSAGE: i32 = 11;

/// The doc comment of each pass, by the pass's name: it is the user's help as well.
fn pass_help(dir: &Path, into: &mut Vec<(String, String)>) -> Result<(), Box<dyn std::error::Error>> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            pass_help(&path, into)?;
            continue;
        }
        let text = fs::read_to_string(&path)?;
        // The name is what `id` returns, or the constant that it does.
        let quoted = |after: &str| {
            let (_, rest) = text.split_once(after)?;
            let (_, rest) = rest.trim_start().split_once('"').filter(|(before, _)| before.is_empty())?;
            rest.split_once('"').map(|(name, _)| name.to_owned())
        };
        let Some(name) = quoted("fn id(&self) -> &'static str {").or_else(|| quoted("const ID: &str =")) else {
            continue;
        };
        // The comment before the type, or else the one at the head of the file.
        let blocks = |mark: &str| -> Vec<String> {
            let mut all = vec![String::new()];
            for line in text.lines() {
                match line.strip_prefix(mark) {
                    Some(l) => {
                        *all.last_mut().expect("never empty") += &format!("{}\n", l.strip_prefix(' ').unwrap_or(l))
                    }
                    None if !all.last().is_some_and(String::is_empty) => all.push(String::new()),
                    None => {}
                }
            }
            all
        };
        let tells = |b: &String| b.contains("What it does");
        let found = blocks("///").into_iter().find(tells).or_else(|| blocks("//!").into_iter().find(tells));
        into.extend(found.map(|text| (name, text.trim().to_owned())));
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/onnx.proto");
    println!("cargo:rerun-if-changed=build.rs");
    let files = protox::compile(["proto/onnx.proto"], ["proto"])?;

    // Messages by full name; nested ones are put on the list as they are met.
    let mut messages: Vec<(String, Vec<Field>)> = Vec::new();
    for file in &files.file {
        let prefix = format!(".{}", file.package());
        let mut todo: Vec<_> = file.message_type.iter().map(|m| (prefix.clone(), m)).collect();
        while let Some((outer, m)) = todo.pop() {
            let name = format!("{outer}.{}", m.name());
            let mut fields: Vec<_> = m
                .field
                .iter()
                .map(|f| {
                    let inner = (f.r#type == Some(TYPE_MESSAGE)).then(|| f.type_name().to_owned());
                    (f.number(), f.name().to_owned(), inner)
                })
                .collect();
            fields.sort();
            todo.extend(m.nested_type.iter().map(|n| (name.clone(), n)));
            messages.push((name, fields));
        }
    }
    messages.sort();
    let index = |name: &str| messages.iter().position(|(n, _)| n == name);
    let mut table = String::from("static MESSAGES: &[Message] = &[\n");
    for (name, fields) in &messages {
        writeln!(table, "    Message {{ name: {:?}, fields: &[", name.trim_start_matches('.'))?;
        for (number, field, inner) in fields {
            let inner = inner.as_deref().map(|n| index(n).expect("message types are in the file"));
            writeln!(table, "        Field {{ number: {number}, name: {field:?}, message: {inner:?} }},")?;
        }
        table.push_str("    ] },\n");
    }
    table.push_str("];\n");
    fs::write(PathBuf::from(env::var("OUT_DIR")?).join("schema.rs"), table)?;

    println!("cargo:rerun-if-changed=src/passes");
    let mut help = Vec::new();
    pass_help(Path::new("src/passes"), &mut help)?;
    help.sort();
    fs::write(
        PathBuf::from(env::var("OUT_DIR")?).join("pass_help.rs"),
        format!("static HELP: &[(&str, &str)] = &{help:?};"),
    )?;

    let mut config = prost_build::Config::new();
    config.bytes(["."]).compile_fds(files)?;
    Ok(())
}
