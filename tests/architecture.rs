//! Reads the source and fails where a module names one that it may not know. `docs/architecture.md` tells why.
//!
//! Code under `#[cfg(test)]` is exempt: a test may put models together from text, whatever it tests.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Each module of the crate and the modules it may name, itself left out. A module knows only what stands above it.
const ROOMS: &[(&str, &[&str])] = &[
    ("budget", &[]),
    ("file", &[]),
    ("yaml", &[]),
    ("ir", &["budget"]),
    ("text", &["ir"]),
    ("infer", &["budget", "ir"]),
    ("rewrite", &["ir"]),
    ("onnx", &["budget", "file", "ir"]),
    ("pattern", &["file", "yaml", "ir", "text", "infer", "rewrite"]),
    ("quant", &["budget", "ir", "rewrite"]),
    ("plan", &["yaml", "ir", "infer", "pattern", "quant"]),
    ("passes", &["budget", "ir", "infer", "rewrite", "onnx", "pattern", "quant", "plan"]),
    ("runtime", &["budget", "ir", "onnx", "quant"]),
    ("calibrate", &["budget", "file", "ir", "onnx", "quant", "runtime"]),
    ("verify", &["file", "ir", "infer", "onnx", "quant", "plan", "runtime", "calibrate"]),
    ("recipe", &["file", "yaml", "ir", "quant", "plan", "verify"]),
    (
        "compile",
        &[
            "budget",
            "file",
            "ir",
            "text",
            "infer",
            "rewrite",
            "onnx",
            "pattern",
            "quant",
            "plan",
            "recipe",
            "passes",
            "runtime",
            "calibrate",
            "verify",
        ],
    ),
];

/// What wires everything together and talks to people: these may know every module, and they alone print.
const TOP: &[&str] = &["lib", "main", "cli"];

/// The one module that names tract.
const TRACT: &str = "runtime";

/// The one module that names the YAML crate.
const YAML: &str = "yaml";

const PRINTING: &[&str] = &["println!", "eprintln!", "print!", "eprint!", "dbg!", "io::stdout", "io::stderr"];

/// What changes a graph past a `Patch`: for the front ends while they build one, and for `rewrite`. `infer` writes down the
/// types it has proved; the context of the passes sweeps and widens; one file of `quant` builds models of its own to test
/// with.
const MUTATORS: &[&str] = &[
    ".add_value(",
    ".value_mut(",
    ".add_node(",
    ".node_mut(",
    ".set_operand(",
    ".set_capture(",
    ".erase_node(",
    ".erase_value(",
    ".take_name(",
    ".rename(",
    " sweep(&mut",
    "widen_graph(",
    "write_types(",
    ".set_inferred(",
    ".add_output(",
    ".set_outputs(",
    ".add_declared(",
    ".undeclare(",
    ".erase_unread(",
    ".ir_version = ",
    ".opsets = ",
    ".opsets.push(",
    ".graph = ",
];
const MUTATING: &[&str] = &[
    "ir/",
    "text/",
    "onnx/",
    "rewrite/",
    "infer/mod.rs",
    "passes/context.rs",
    "passes/widen_floats.rs",
    "quant/lis/standalone.rs",
];

/// One source file without comments and tests.
struct File {
    /// Below `src`, with `/`.
    path: String,
    room: String,
    /// Line number and text.
    lines: Vec<(usize, String)>,
}

impl File {
    fn new(path: &str, text: &str) -> File {
        let room = path.split('/').next().unwrap_or(path).trim_end_matches(".rs").to_owned();
        File { path: path.to_owned(), room, lines: code(text) }
    }

    /// Names of this module's way down from the crate: `quant/lis/emit.rs` is three deep.
    fn depth(&self) -> usize {
        let parts = self.path.split('/').count();
        parts - usize::from(self.path.ends_with("/mod.rs"))
    }
}

/// The lines that are neither comments nor under `#[cfg(test)]`. Relies on rustfmt: a block closes at the indentation of
/// its first line.
fn code(text: &str) -> Vec<(usize, String)> {
    let mut out = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((i, line)) = lines.next() {
        let bare = line.trim_start();
        if bare.starts_with("#[cfg(test)]") || bare.starts_with("#[cfg(all(test") {
            let closing = format!("{}}}", &line[..line.len() - bare.len()]);
            let mut head = true;
            for (_, skipped) in lines.by_ref() {
                if head && skipped.trim_start().starts_with("#[") {
                    continue;
                }
                if skipped.trim_end_matches(';') == closing || (head && skipped.ends_with(';')) {
                    break;
                }
                head = false;
            }
        } else if !bare.starts_with("//") {
            out.push((i + 1, line.split(" // ").next().unwrap_or(line).to_owned()));
        }
    }
    out
}

/// Every module the code names through `crate::` (or through the crate's own name, as the program does).
fn named(file: &File) -> Vec<(usize, String)> {
    let (mut text, mut starts) = (String::new(), Vec::new());
    for (n, line) in &file.lines {
        starts.push((text.len(), *n));
        text.push_str(line);
        text.push('\n');
    }
    let line_of = |at: usize| starts[starts.partition_point(|(s, _)| *s <= at) - 1].1;
    let mut out = Vec::new();
    for root in ["crate::", "fqvit_opt::"] {
        for (at, _) in text.match_indices(root) {
            let before = text[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$') {
                continue;
            }
            let rest = &text[at + root.len()..];
            let mut found = |offset: usize, rest: &str| {
                let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                if !name.is_empty() {
                    out.push((line_of(at + root.len() + offset), name));
                }
            };
            let Some(group) = rest.strip_prefix('{') else {
                found(0, rest);
                continue;
            };
            // `crate::{a, b::{c, d}}`: the names at the first level.
            let (mut level, mut expects) = (0, true);
            for (i, c) in group.char_indices() {
                match c {
                    '}' if level == 0 => break,
                    '{' => level += 1,
                    '}' => level -= 1,
                    ',' if level == 0 => expects = true,
                    c if expects && !c.is_whitespace() => {
                        found(i + 1, &group[i..]);
                        expects = false;
                    }
                    _ => {}
                }
            }
        }
    }
    out
}

/// Everything in these files that breaks the order.
fn faults(files: &[File]) -> Vec<String> {
    let allowed: BTreeMap<&str, &[&str]> = ROOMS.iter().copied().collect();
    let mut out = Vec::new();
    for f in files {
        let at = |line: usize| format!("src/{}:{line}", f.path);
        let top = TOP.contains(&f.room.as_str());
        if !top && !allowed.contains_key(f.room.as_str()) {
            out.push(format!("{}: module `{}` has no place in the order yet", at(1), f.room));
            continue;
        }
        for (line, name) in named(f) {
            let ours = allowed.contains_key(name.as_str()) || TOP.contains(&name.as_str());
            if !top && ours && name != f.room && !allowed[f.room.as_str()].contains(&name.as_str()) {
                out.push(format!("{}: `{}` may not know `{name}`", at(line), f.room));
            }
        }
        for (line, text) in &f.lines {
            // A `use` at the left margin is in the file's own module, so the number of `super`s tells where it leads.
            let supers = text.strip_prefix("use ").map_or(0, |u| u.matches("super::").count());
            if !top && supers >= f.depth() {
                out.push(format!("{}: `super` leads out of `{}`; write `crate::`", at(*line), f.room));
            }
            if f.room != TRACT && (text.contains("tract_") || text.contains("tract::")) {
                out.push(format!("{}: only `{TRACT}` names tract", at(*line)));
            }
            if f.room != YAML && text.contains("yaml_serde") {
                out.push(format!("{}: only `{YAML}` names the YAML crate", at(*line)));
            }
            let may_mutate = MUTATING.iter().any(|m| f.path.starts_with(m));
            if !may_mutate && MUTATORS.iter().any(|m| text.contains(m)) {
                out.push(format!("{}: a graph changes only through a `Patch`", at(*line)));
            }
            if !top && PRINTING.iter().any(|p| text.contains(p)) {
                out.push(format!("{}: the library prints nothing", at(*line)));
            }
        }
    }
    out
}

fn sources(dir: &Path, root: &Path, into: &mut Vec<File>) {
    let mut entries: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            sources(&path, root, into);
        } else if name.ends_with(".rs") && name != "tests.rs" && !name.ends_with("_tests.rs") {
            let below = path.strip_prefix(root).unwrap().to_string_lossy().replace('\\', "/");
            into.push(File::new(&below, &fs::read_to_string(&path).unwrap()));
        }
    }
}

fn all_sources() -> Vec<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &root, &mut files);
    files
}

#[test]
fn nobody_knows_a_module_above_its_own() {
    let mut files = all_sources();
    // The conformance tests of tract are a module that exists only under test.
    files.retain(|f| f.path != "runtime/conformance.rs");
    assert!(files.len() > 50, "only {} files were found", files.len());
    let faults = faults(&files);
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[test]
fn the_order_is_an_order() {
    for (i, (room, may)) in ROOMS.iter().enumerate() {
        for other in *may {
            assert!(ROOMS[..i].iter().any(|(r, _)| r == other), "`{room}` may know `{other}`, which is not above it");
        }
    }
}

#[test]
fn every_module_has_its_place_and_every_place_its_module() {
    let rooms: Vec<String> = all_sources().into_iter().map(|f| f.room).collect();
    for (room, _) in ROOMS {
        assert!(rooms.iter().any(|r| r == room), "there is no module `{room}` any more");
    }
}

#[test]
fn a_wrong_use_is_seen() {
    let see = |path: &str, text: &str| faults(&[File::new(path, text)]);
    let clean =
        "use crate::ir::Model;\n\nfn f() {}\n\n#[cfg(test)]\nmod tests {\n    use crate::text::parse_model;\n}\n";
    assert_eq!(see("rewrite/mod.rs", clean), Vec::<String>::new());
    assert_eq!(see("quant/lis/plan.rs", "use super::super::kernel;\n"), Vec::<String>::new());
    assert_eq!(see("cli/mod.rs", "println!(\"{}\", fqvit_opt::verify::report());\n"), Vec::<String>::new());

    let grouped = "use crate::{\n    ir::{Model, passes},\n    compile::prepare,\n};\n";
    assert_eq!(see("pattern/facts.rs", grouped), ["src/pattern/facts.rs:3: `pattern` may not know `compile`"]);
    for (path, text) in [
        ("ir/graph.rs", "use crate::rewrite::Patch;\n"),
        ("quant/ptf.rs", "fn f() {\n    crate::plan::VERSION\n}\n"),
        ("onnx/mod.rs", "#[cfg(test)]\nmod tests;\n\nuse crate::runtime::Session;\n"),
        ("plan/mod.rs", "use super::passes;\n"),
        ("verify/metrics.rs", "use tract_onnx::prelude::*;\n"),
        ("calibrate/run.rs", "    eprintln!(\"done\");\n"),
        ("cli/mod.rs", "use tract_core::plan;\n"),
        ("attic/mod.rs", "\n"),
        ("passes/dead.rs", "    m.graph.erase_node(id);\n"),
        ("compile.rs", "    m.ir_version = 10;\n"),
    ] {
        assert_eq!(see(path, text).len(), 1, "{path}: {text:?}");
    }
}

/// The paths of a `use` tree: `a::{b, c::{d, self}}` is `a::b`, `a::c::d` and `a::c`.
fn paths(tree: &str) -> Vec<String> {
    let tree = tree.trim();
    let Some((head, rest)) = tree.split_once('{') else {
        return vec![tree.split(" as ").next().unwrap_or(tree).trim_end_matches("::self").to_owned()];
    };
    let body = rest.rsplit_once('}').map_or(rest, |(b, _)| b);
    let (mut level, mut from, mut out) = (0, 0, Vec::new());
    for (i, c) in body.char_indices().chain([(body.len(), ',')]) {
        match c {
            '{' => level += 1,
            '}' => level -= 1,
            ',' if level == 0 => {
                let part = body[from..i].trim();
                out.extend(paths(part).into_iter().filter(|p| !p.is_empty()).map(|p| format!("{head}{p}")));
                from = i + 1;
            }
            _ => {}
        }
    }
    out.into_iter().map(|p| p.trim_end_matches("::self").to_owned()).collect()
}

/// The module a file is: `quant/lis/emit.rs` is `crate::quant::lis::emit`.
fn module(path: &str) -> String {
    let name = path.trim_end_matches(".rs").trim_end_matches("/mod").replace('/', "::");
    if name == "lib" { "crate".to_owned() } else { format!("crate::{name}") }
}

/// Which modules the paths of each name, in `use` lines and in code, as far as these are files. A module and those inside
/// it are one family: how they know each other is their own affair.
fn imports(files: &[File]) -> BTreeMap<String, Vec<String>> {
    let known: Vec<String> = files.iter().map(|f| module(&f.path)).collect();
    let family = |a: &str, b: &str| a.starts_with(&format!("{b}::")) || b.starts_with(&format!("{a}::"));
    let mut out = BTreeMap::new();
    for f in files {
        let own = module(&f.path);
        let text: String = f.lines.iter().map(|(_, l)| format!("{l}\n")).collect();
        let uses = ["\nuse ", "\npub use ", "\npub(crate) use ", "\npub(super) use "];
        let whole = format!("\n{text}");
        let trees = uses.iter().flat_map(|u| whole.split(u).skip(1)).flat_map(|part| {
            let tree = part.split(';').next().unwrap_or("").split_whitespace().collect::<Vec<_>>().join(" ");
            paths(&tree)
        });
        let mut named: Vec<String> = Vec::new();
        for path in trees.chain(in_code(&text)) {
            let mut at = own.clone();
            let mut rest = path.as_str();
            while let Some(r) = rest.strip_prefix("super::") {
                at = at.rsplit_once("::").map_or(String::new(), |(a, _)| a.to_owned());
                rest = r;
            }
            let whole = if rest.starts_with("crate") { rest.to_owned() } else { format!("{at}::{rest}") };
            let hit = known.iter().filter(|k| whole == **k || whole.starts_with(&format!("{k}::")));
            named.extend(hit.max_by_key(|k| k.len()).filter(|k| **k != own && !family(k, &own)).cloned());
        }
        named.sort();
        named.dedup();
        out.insert(own, named);
    }
    out
}

/// Paths in code that begin with `crate` or `super`; others need a `use` line.
fn in_code(text: &str) -> Vec<String> {
    let part = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let words = text.split(|c: char| !part(c)).filter(|w| w.contains("::"));
    words
        .filter(|w| w.starts_with("crate::") || w.starts_with("super::"))
        .map(|w| w.trim_end_matches(':').to_owned())
        .collect()
}

/// Modules that come back to themselves by following imports.
fn circles(imports: &BTreeMap<String, Vec<String>>) -> Vec<&str> {
    let reaches = |start: &str| {
        let (mut todo, mut seen) = (vec![start], Vec::new());
        while let Some(m) = todo.pop() {
            for next in imports.get(m).into_iter().flatten() {
                if next == start {
                    return true;
                }
                if !seen.contains(&next.as_str()) {
                    seen.push(next);
                    todo.push(next);
                }
            }
        }
        false
    };
    imports.keys().map(String::as_str).filter(|m| reaches(m)).collect()
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let imports = imports(&all_sources());
    assert!(
        imports["crate::passes::common"].contains(&"crate::infer".to_owned()),
        "{:?}",
        imports["crate::passes::common"]
    );
    assert_eq!(circles(&imports), Vec::<&str>::new());
    let two =
        [File::new("plan/a.rs", "use super::b::{self, f};\n"), File::new("plan/b.rs", "use crate::plan::{a::g, c};\n")];
    assert_eq!(circles(&self::imports(&two)), ["crate::plan::a", "crate::plan::b"]);
    let in_code = [
        File::new("plan/a.rs", "pub(super) use super::b::f;\n"),
        File::new("plan/b.rs", "fn f() {\n    g(super::a::h(1))\n}\n"),
    ];
    assert_eq!(circles(&self::imports(&in_code)), ["crate::plan::a", "crate::plan::b"]);
}
