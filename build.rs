//! Compiles `proto/onnx.proto` with protox (no `protoc` needed) into two files of `OUT_DIR`: the message types, and a
//! table of every message's fields, which the unknown-field detector walks files with.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::{env, fs};

/// Number, name, and for a message its full type name.
type Field = (i32, String, Option<String>);

const TYPE_MESSAGE: i32 = 11;

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

    let mut config = prost_build::Config::new();
    config.bytes(["."]).compile_fds(files)?;
    Ok(())
}
