//! The program and files: what is read stays, what is written is whole, and what was there before is not lost.

#![cfg(all(feature = "cli", feature = "tract", unix))]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use fqvit_opt::ir::validate::validate;
use fqvit_opt::onnx::{self, External, SaveOptions};
use tempfile::TempDir;

fn digits(name: &str) -> String {
    let p = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/digits").join(name);
    p.to_str().expect("a plain path").to_owned()
}

/// A folder with the digits in it: `m.onnx`, and `far.onnx` whose weights lie in `far.onnx.data`.
struct Place(TempDir);

/// What every compilation is given. The plainest recipe: files are the same for all.
const DATA: [&str; 8] = ["--recipe", "minmax-w8a8", "--calibrate", "c.npz", "--samples", "8", "--quiet", "--no-verify"];

impl Place {
    fn new() -> Place {
        let p = Place(tempfile::tempdir().expect("a temporary folder"));
        fs::copy(digits("digits_vit.onnx"), p.at("m.onnx")).expect("writable");
        fs::copy(digits("digits_calib.npz"), p.at("c.npz")).expect("writable");
        let m = onnx::load(&p.at("m.onnx")).expect("the digits").model;
        let far = SaveOptions { external: External::Always { location: "far.onnx.data".into() } };
        onnx::save(validate(&m).expect("valid"), &p.at("far.onnx"), &far).expect("writable");
        p
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut c = Command::new(env!("CARGO_BIN_EXE_fqvit-opt"));
        c.current_dir(self.0.path()).env("COLUMNS", "120").args(args).stdin(Stdio::null());
        c
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("it runs")
    }

    /// Compiles with the plainest recipe, unless the arguments name one.
    fn compile(&self, args: &[&str]) -> Output {
        self.run(&[args, &DATA[if args.contains(&"--recipe") { 2 } else { 0 }..]].concat())
    }

    /// Every file below the folder, with its bytes.
    fn all(&self) -> Vec<(PathBuf, Vec<u8>)> {
        fn walk(dir: &Path, into: &mut Vec<(PathBuf, Vec<u8>)>) {
            for e in fs::read_dir(dir).expect("readable").map(|e| e.expect("an entry").path()) {
                match e.is_dir() && !e.is_symlink() {
                    true => walk(&e, into),
                    false => into.push((e.clone(), fs::read(&e).unwrap_or_default())),
                }
            }
        }
        let mut v = Vec::new();
        walk(self.0.path(), &mut v);
        v.sort();
        v
    }

    /// One error with these words, and no file changed.
    #[track_caller]
    fn refused(&self, args: &[&str], words: &[&str]) {
        let before = self.all();
        let o = self.run(args);
        let err = String::from_utf8_lossy(&o.stderr);
        assert_eq!(o.status.code(), Some(1), "{args:?}: {err}");
        assert_eq!(err.matches("error:").count(), 1, "{args:?}: {err}");
        for w in words {
            assert!(err.contains(w), "{args:?}: no `{w}` in: {err}");
        }
        assert!(self.all() == before, "{args:?} changed a file: {err}");
    }

    fn names(&self) -> Vec<String> {
        let mut v: Vec<String> = fs::read_dir(self.0.path())
            .expect("readable")
            .map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        v.sort();
        v
    }
}

#[track_caller]
fn done(o: &Output) {
    assert!(matches!(o.status.code(), Some(0 | 2)), "{:?}: {}", o.status, String::from_utf8_lossy(&o.stderr));
}

/// A model that can be loaded where nothing else is.
#[track_caller]
fn stands_alone(path: &Path) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let to = dir.path().join("moved.onnx");
    fs::copy(path, &to).expect("copied");
    let l = onnx::load(&to).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(l.files.len(), 1);
    let bytes = fs::read(&to).expect("there");
    assert!(!bytes.windows(13).any(|w| w == b"far.onnx.data"), "it names the input's data");
}

#[test]
fn an_output_never_needs_the_files_of_its_input() {
    let p = Place::new();
    fs::create_dir(p.at("out")).expect("writable");
    for recipe in ["none", "fq-vit", "linear-w8a8"] {
        for out in ["out.onnx", "out/out.onnx"] {
            let o = p.compile(&["far.onnx", "-o", out, "--recipe", recipe, "--json", "r.json"]);
            done(&o);
            stands_alone(&p.at(out));
            let report: serde_json::Value =
                serde_json::from_slice(&fs::read(p.at("r.json")).expect("a report")).expect("JSON");
            let size = |n: &str| fs::metadata(p.at(n)).expect("there").len();
            assert_eq!(report["quantized"]["bytes"], size(out), "{recipe}");
            assert_eq!(report["float"]["bytes"], size("far.onnx") + size("far.onnx.data"), "{recipe}");
        }
    }
    assert_eq!(p.names(), ["c.npz", "far.onnx", "far.onnx.data", "m.onnx", "out", "out.onnx", "r.json"]);
    // The same weights, wherever they lay.
    done(&p.compile(&["m.onnx", "-o", "near.onnx"]));
    done(&p.compile(&["far.onnx", "-o", "out.onnx"]));
    assert!(fs::read(p.at("near.onnx")).expect("there") == fs::read(p.at("out.onnx")).expect("there"));
}

#[test]
fn no_output_may_be_a_file_that_is_read() {
    let p = Place::new();
    fs::create_dir_all(p.at("own/rules")).expect("writable");
    fs::create_dir_all(p.at("own/recipes")).expect("writable");
    fs::create_dir(p.at("sub")).expect("writable");
    fs::write(p.at("own/rules/r.yaml"), "[]\n").expect("writable");
    fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("passes/recipes/fq-vit.yaml"), p.at("recipe.yaml"))
        .expect("copied");
    done(&p.compile(&["far.onnx", "-o", "o.onnx", "--plan", "plan.yaml", "--stats", "stats"]));
    fs::copy(p.at("c.npz"), p.at("v.npz")).expect("copied");
    symlink("far.onnx.data", p.at("soft")).expect("writable");
    fs::hard_link(p.at("far.onnx.data"), p.at("hard")).expect("writable");
    symlink(".", p.at("here")).expect("writable");

    let base = ["far.onnx", "-o", "new.onnx", "--calibrate", "c.npz", "--verify", "v.npz", "--quiet"];
    let given = ["--plan", "plan.yaml", "--recipe", "recipe.yaml", "--passes-dir", "own"];
    let with = |more: &[&str], words: &[&str]| p.refused(&[&base[..], &given, more].concat(), words);
    for (victim, whose) in [
        ("far.onnx", "MODEL"),
        ("far.onnx.data", "the data file of MODEL"),
        ("soft", "the data file of MODEL"),
        ("hard", "the data file of MODEL"),
        ("sub/../here/far.onnx.data", "the data file of MODEL"),
        ("c.npz", "--calibrate"),
        ("v.npz", "--verify"),
        ("plan.yaml", "--plan"),
        ("recipe.yaml", "--recipe"),
        ("own/rules/r.yaml", "--passes-dir"),
        ("new.onnx", "-o"),
        ("./sub/../new.onnx", "-o"),
        ("new.onnx.data", "the data file of -o"),
    ] {
        for flag in ["--json", "--html"] {
            with(&[flag, victim], &[flag, whose, "the same file", "another name"]);
        }
    }
    for victim in ["far.onnx", "far.onnx.data", "soft", "hard", "c.npz", "v.npz", "plan.yaml", "here/recipe.yaml"] {
        let args = ["far.onnx", "-o", victim, "--calibrate", "c.npz", "--verify", "v.npz", "--quiet"];
        p.refused(&[&args[..], &given].concat(), &["-o and", "the same file"]);
    }
    p.refused(&[&base[..], &["--stats", "sub/../x", "--json", "x"]].concat(), &["--stats", "--json", "same file"]);
    // The other commands.
    for (args, word) in [
        (vec!["calibrate", "far.onnx", "--stats", "far.onnx.data", "--calibrate", "c.npz"], "the data file of MODEL"),
        (vec!["calibrate", "far.onnx", "--stats", "stats", "--join", "stats", "plan.yaml"], "--join"),
        (vec!["plan", "far.onnx", "--plan", "hard", "--calibrate", "c.npz"], "the data file of MODEL"),
        (vec!["plan", "far.onnx", "--plan", "stats", "--stats", "stats"], "--stats"),
        (vec!["sensitivity", "far.onnx", "--json", "soft", "--calibrate", "c.npz"], "the data file of MODEL"),
        (
            vec!["verify", "m.onnx", "far.onnx", "--outputs", "hard", "--data", "c.npz"],
            "the data file of the quantized",
        ),
        (vec!["verify", "far.onnx", "m.onnx", "--json", "hard", "--data", "c.npz"], "the data file of the float"),
        (vec!["verify", "m.onnx", "far.onnx", "--outputs", "x", "--html", "x", "--data", "c.npz"], "--outputs"),
    ] {
        p.refused(&args, &["same file", word]);
    }
}

#[test]
fn pictures_of_the_calibration_folder_are_not_overwritten() {
    let p = Place::new();
    fs::create_dir(p.at("photos")).expect("writable");
    for n in ["a.png", "b.png"] {
        image(&p.at("photos").join(n));
    }
    fs::write(p.at("photos/labels.txt"), "a.png 1\n").expect("writable");
    for victim in ["photos/a.png", "photos/labels.txt"] {
        p.refused(
            &["m.onnx", "-o", "o.onnx", "--calibrate", "photos", "--html", victim, "-q"],
            &["--html and --calibrate", "the same file"],
        );
        p.refused(
            &["m.onnx", "-o", victim, "--calibrate", "c.npz", "--verify", "photos", "-q"],
            &["-o and --verify", "the same file"],
        );
    }
    // A new name in that folder is nobody's.
    let args = ["m.onnx", "-o", "photos/o.onnx", "--calibrate", "photos", "--resize", "8", "-q", "--no-verify"];
    done(&p.run(&[&args[..], &DATA[..2]].concat()));
}

fn image(path: &Path) {
    image::GrayImage::from_fn(8, 8, |x, y| image::Luma([(x * 30 + y) as u8])).save(path).expect("writable");
}

#[test]
fn the_layout_of_a_cache_is_read() {
    let p = Place::new();
    fs::create_dir_all(p.at("blobs")).expect("writable");
    fs::create_dir_all(p.at("snapshots/1")).expect("writable");
    fs::rename(p.at("far.onnx"), p.at("blobs/aa")).expect("moved");
    fs::rename(p.at("far.onnx.data"), p.at("blobs/bb")).expect("moved");
    symlink("../../blobs/aa", p.at("snapshots/1/model.onnx")).expect("writable");
    symlink("../../blobs/bb", p.at("snapshots/1/far.onnx.data")).expect("writable");
    done(&p.compile(&["snapshots/1/model.onnx", "-o", "o.onnx"]));
    stands_alone(&p.at("o.onnx"));
    let same = ["snapshots/1/model.onnx", "--calibrate", "c.npz", "-q"];
    p.refused(&[&same[..], &["-o", "blobs/bb"]].concat(), &["the data file of MODEL", "same file"]);
    p.refused(&[&same[..], &["-o", "blobs/aa"]].concat(), &["MODEL", "same file"]);
}

#[test]
fn pipes_and_standard_streams_are_files_too() {
    let p = Place::new();
    let model = fs::read(p.at("m.onnx")).expect("the digits");
    let piped = |args: &[&str], bytes: &[u8]| -> Output {
        let mut c = p.command(args);
        c.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = c.spawn().expect("it runs");
        let mut to = child.stdin.take().expect("piped");
        let bytes = bytes.to_vec();
        let feed = std::thread::spawn(move || to.write_all(&bytes));
        let o = child.wait_with_output().expect("it ends");
        let _ = feed.join();
        o
    };
    let o = piped(&["inspect", "-"], &model);
    assert!(o.status.success(), "{}", String::from_utf8_lossy(&o.stderr));
    assert!(String::from_utf8_lossy(&o.stdout).contains("opset 17"));
    let o = piped(&["inspect", "/dev/stdin"], &model);
    assert!(o.status.success(), "{}", String::from_utf8_lossy(&o.stderr));

    // In and out through pipes: the same model as through files, and words on standard error.
    done(&p.compile(&["m.onnx", "-o", "file.onnx"]));
    let o = piped(&[&["-", "-o", "-"], &DATA[..]].concat(), &model);
    done(&o);
    assert!(o.stdout == fs::read(p.at("file.onnx")).expect("there"), "other bytes through the pipe");
    assert!(String::from_utf8_lossy(&o.stderr).contains("minmax-w8a8"));
    assert!(!p.at("-").exists());

    // Data through a pipe.
    let npz = fs::read(p.at("c.npz")).expect("data");
    let args = ["m.onnx", "-o", "piped.onnx", "--calibrate", "-", "--samples", "8", "--quiet", "--no-verify"];
    done(&piped(&[&args[..], &DATA[..2]].concat(), &npz));
    assert!(fs::read(p.at("piped.onnx")).expect("there") == fs::read(p.at("file.onnx")).expect("there"));

    // What cannot be: one stream for two things, streams for files that are read again, data of a model without a folder.
    let refused = |args: &[&str], words: &[&str]| {
        let o = piped(args, &model);
        let e = String::from_utf8_lossy(&o.stderr).into_owned();
        assert_eq!(o.status.code(), Some(1), "{args:?}: {e}");
        assert!(o.stdout.is_empty() && words.iter().all(|w| e.contains(w)), "{args:?}: {e}");
    };
    refused(&["-", "-o", "o", "--calibrate", "-"], &["MODEL", "--calibrate", "standard input"]);
    refused(&["m.onnx", "-o", "-", "--json", "-"], &["-o", "--json", "standard output"]);
    refused(&["m.onnx", "-o", "o", "--stats", "-"], &["--stats", "./-"]);
    let far = fs::read(p.at("far.onnx")).expect("there");
    let o = piped(&["inspect", "-"], &far);
    let e = String::from_utf8_lossy(&o.stderr).into_owned();
    assert!(o.status.code() == Some(1) && e.contains("through a pipe") && e.contains("by its path"), "{e}");
    let o = piped(&["inspect", "-"], b"");
    assert!(String::from_utf8_lossy(&o.stderr).contains("standard input is empty"));
}

#[test]
fn protected_targets_are_left_alone_and_modes_kept() {
    let p = Place::new();
    let mode = |n: &str, m: u32| fs::set_permissions(p.at(n), PermissionsExt::from_mode(m)).expect("changed");
    for n in ["o.onnx", "r.json", "r.html", "plan.yaml"] {
        fs::write(p.at(n), "old").expect("writable");
    }
    mode("o.onnx", 0o444);
    p.refused(&["m.onnx", "-o", "o.onnx", "--calibrate", "c.npz"], &["o.onnx", "may not be written to", "chmod u+w"]);
    mode("o.onnx", 0o600);
    mode("r.json", 0o400);
    p.refused(&["m.onnx", "-o", "o.onnx", "--calibrate", "c.npz", "--json", "r.json"], &["r.json", "chmod u+w"]);
    mode("r.json", 0o640);
    done(&p.compile(&["m.onnx", "-o", "o.onnx", "--json", "r.json", "--html", "r.html"]));
    let now = |n: &str| fs::metadata(p.at(n)).expect("there").permissions().mode() & 0o7777;
    assert_eq!((now("o.onnx"), now("r.json")), (0o600, 0o640));
    assert_ne!(fs::read(p.at("o.onnx")).expect("there"), b"old");
}

#[test]
fn all_outputs_or_none() {
    let p = Place::new();
    fs::write(p.at("o.onnx"), "old").expect("writable");
    // The report has no room: /dev/full takes no byte. A link hides the device from the check at the beginning only if it
    // appears later, so a folder takes the report's name while the program works.
    let mut c = p.command(&["m.onnx", "-o", "o.onnx", "--calibrate", "c.npz", "--json", "r.json", "--plan", "p.yaml"]);
    let before = fs::read(p.at("o.onnx")).expect("there");
    c.stderr(Stdio::piped()).stdout(Stdio::piped());
    let child = c.spawn().expect("it runs");
    fs::create_dir(p.at("r.json")).or_else(|_| fs::create_dir_all(p.at("r.json/x"))).expect("writable");
    let o = child.wait_with_output().expect("it ends");
    let e = String::from_utf8_lossy(&o.stderr);
    assert_eq!(o.status.code(), Some(1), "{e}");
    assert!(e.contains("r.json"), "{e}");
    assert!(fs::read(p.at("o.onnx")).expect("there") == before, "the model was written: {e}");
    assert_eq!(p.names(), ["c.npz", "far.onnx", "far.onnx.data", "m.onnx", "o.onnx", "r.json"]);
    // Standard output fails when everything else is done: then the message says so.
    let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("there");
    let o =
        p.command(&["m.onnx", "-o", "o.onnx", "--recipe", "none", "--json", "-"]).stdout(full).output().expect("runs");
    let e = String::from_utf8_lossy(&o.stderr);
    assert!(o.status.code() == Some(1) && e.contains("these files were written: ") && e.contains("o.onnx"), "{e}");
    stands_alone(&p.at("o.onnx"));
}

/// Starts a compilation of many samples and waits until it says that it has begun to calibrate.
/// `ignored` is a signal that it is started to ignore, as `nohup` does.
fn begun(p: &Place, args: &[&str], ignored: Option<i32>) -> Child {
    let mut c = p.command(args);
    // SAFETY: signal(2) may be called between fork and exec.
    unsafe {
        c.pre_exec(move || {
            // Shells start what runs in the background with SIGINT ignored.
            for s in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGXCPU, libc::SIGUSR1] {
                libc::signal(s, if ignored == Some(s) { libc::SIG_IGN } else { libc::SIG_DFL });
            }
            Ok(())
        });
    }
    let mut child = c.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("it runs");
    let err = child.stderr.as_mut().expect("piped");
    let mut byte = [0];
    while err.read(&mut byte).expect("readable") == 1 && byte != *b"\n" {}
    child
}

fn signal(child: &Child, name: &str) {
    let done = Command::new("kill").args(["-s", name, &child.id().to_string()]).status();
    assert!(done.expect("kill runs").success());
}

#[test]
fn signals_end_the_program_and_leave_nothing() {
    let p = Place::new();
    fs::write(p.at("o.onnx"), "old").expect("writable");
    let args = ["m.onnx", "-o", "o.onnx", "--samples", "100000", "--stats", "s", "--json", "r.json"];
    let before = p.names();
    for (name, status) in [("INT", 130), ("TERM", 143), ("HUP", 129), ("QUIT", 131), ("XCPU", 152), ("USR1", 138)] {
        let mut child = begun(&p, &args, None);
        signal(&child, name);
        let mut err = String::new();
        child.stderr.take().expect("piped").read_to_string(&mut err).expect("text");
        assert_eq!(child.wait().expect("it ends").code(), Some(status), "{err}");
        assert!(err.contains(&format!("SIG{name}")) && err.contains("nothing was written"), "{err}");
        assert_eq!((p.names(), fs::read(p.at("o.onnx")).expect("there")), (before.clone(), b"old".to_vec()));
    }
    let mut child = begun(&p, &args, Some(libc::SIGHUP));
    signal(&child, "HUP");
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().expect("a state").is_none(), "a signal that was to be ignored ended it");
    signal(&child, "TERM");
    assert_eq!(child.wait().expect("it ends").code(), Some(143));
}

#[test]
fn what_a_killed_program_left_is_removed_by_the_next() {
    let p = Place::new();
    // A program that holds its temporary file, and one that died.
    let held = p.at(".fqvit-opt-0-held.tmp");
    fs::write(&held, "").expect("writable");
    let mut child = p
        .command(&["m.onnx", "-o", "slow.onnx", "--calibrate", "/dev/stdin", "--stats", "s"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("it runs");
    std::thread::sleep(Duration::from_millis(200));
    child.kill().expect("killed");
    child.wait().expect("it ends");
    done(&p.run(&["m.onnx", "-o", "o.onnx", "--recipe", "none"]));
    let left: Vec<String> = p.names().into_iter().filter(|n| n.ends_with(".tmp")).collect();
    assert_eq!(left, [".fqvit-opt-0-held.tmp"], "young files of another boot stay");
    let old = std::time::SystemTime::now() - Duration::from_secs(3 * 86_400);
    fs::File::options().write(true).open(&held).and_then(|f| f.set_modified(old)).expect("changed");
    done(&p.run(&["m.onnx", "-o", "o.onnx", "--recipe", "none"]));
    assert!(!held.exists());
}

/// `large.onnx`: the digits and a table of 80 MB in `large.data`, which is mapped. What is looked up in it depends on the
/// input, so that nobody computes it beforehand.
fn large(p: &Place) {
    use fqvit_opt::ir::{AttrValue, Attrs, DType, Tensor};
    let mut m = onnx::load(&p.at("m.onnx")).expect("the digits").model;
    let mut patch = fqvit_opt::rewrite::Patch::new("test");
    let logits = m.graph.outputs()[0];
    let attr = |name: &str, n: i64| {
        let mut a = Attrs::new();
        a.set(name, AttrValue::Int(n));
        a
    };
    let table = patch.constant("table", Tensor::raw(DType::FLOAT, &[20 << 20], vec![0u8; 80 << 20]));
    let zero = patch.constant("zero", Tensor::scalar_f32(0.0));
    let mean = patch.node("ReduceMean", "mean", &[logits.into()], attr("keepdims", 0));
    let none = patch.node("Mul", "none", &[mean, zero], Attrs::new());
    let place = patch.node("Cast", "place", &[none], attr("to", 7));
    let found = patch.node("Gather", "found", &[table, place], attr("axis", 0));
    let y = patch.node("Add", "with_found", &[logits.into(), found], Attrs::new());
    patch.succeed(logits, y);
    patch.commit(&mut m).expect("a valid model");
    let far = SaveOptions { external: External::Always { location: "large.data".into() } };
    onnx::save(validate(&m).expect("valid"), &p.at("large.onnx"), &far).expect("writable");
}

fn cut(path: &Path) {
    fs::File::options().write(true).open(path).and_then(|f| f.set_len(4096)).expect("shortened");
}

#[test]
fn an_input_cut_short_under_the_program_is_an_error() {
    let p = Place::new();
    large(&p);
    fs::copy(p.at("large.data"), p.at("copy.data")).expect("copied");
    fs::write(p.at("o.onnx"), "old").expect("writable");
    let ended = |child: Child| {
        let o = child.wait_with_output().expect("it ends");
        (o.status, String::from_utf8_lossy(&o.stderr).into_owned())
    };
    // While it is written out: at some moment between its start and its end.
    for wait in [30, 100, 250] {
        let mut c = p.command(&["large.onnx", "-o", "o.onnx", "--recipe", "none"]);
        let child = c.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("it runs");
        std::thread::sleep(Duration::from_millis(wait));
        cut(&p.at("large.data"));
        let (status, err) = ended(child);
        fs::copy(p.at("copy.data"), p.at("large.data")).expect("put back");
        if status.success() {
            // It was done before, and has the whole model.
            stands_alone(&p.at("o.onnx"));
            fs::write(p.at("o.onnx"), "old").expect("writable");
        } else {
            assert!(status.code() == Some(1) && err.contains("large.data"), "{status:?} {err}");
            assert_eq!(fs::read(p.at("o.onnx")).expect("there"), b"old");
        }
    }
    // While the program waits for its data; then it reads the weights that are gone.
    let npz = fs::read(p.at("c.npz")).expect("data");
    let args = ["large.onnx", "-o", "o.onnx", "--recipe", "linear-w8a8", "--calibrate", "-", "--samples", "4", "-q"];
    let mut c = p.command(&args);
    let mut child = c.stdin(Stdio::piped()).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("it runs");
    std::thread::sleep(Duration::from_secs(4));
    cut(&p.at("large.data"));
    let mut to = child.stdin.take().expect("piped");
    let _ = to.write_all(&npz);
    drop(to);
    let (status, err) = ended(child);
    assert!(status.code() == Some(1) && err.contains("large.data") && err.contains("cut short"), "{status:?} {err}");
    assert_eq!(fs::read(p.at("o.onnx")).expect("there"), b"old");
    assert!(p.names().iter().all(|n| !n.ends_with(".tmp")), "{:?}", p.names());
}

#[test]
fn numbers_that_are_none_are_refused() {
    let p = Place::new();
    for (flag, values) in [
        ("--target-sqnr", &["nan", "inf", "-inf", "x"][..]),
        ("--min-sqnr", &["nan", "inf"]),
        ("--min-agreement", &["nan", "1.5", "-0.1", "inf"]),
        ("--mean", &["nan", "inf"]),
        ("--std", &["nan", "0", "-1", "inf"]),
        ("--threads", &["0", "-1", "1000000000"]),
        ("--samples", &["0", "-1", "nan"]),
        ("--crop", &["0", "-1"]),
        ("--resize", &["-1", "99999999999"]),
        ("--seed", &["-1", "1e3"]),
    ] {
        for v in values {
            p.refused(&["m.onnx", "-o", "o.onnx", "--calibrate", "c.npz", &format!("{flag}={v}")], &[flag]);
        }
    }
    for s in ["0/4", "5/4", "1/0", "2", "a/b", "-1/2", "1/99999999999"] {
        p.refused(&["calibrate", "m.onnx", "--stats", "s", "--calibrate", "c.npz", &format!("--shard={s}")], &["2/4"]);
    }
    p.refused(
        &["calibrate", "m.onnx", "--stats", "s", "--calibrate", "c.npz", "--samples", "3", "--shard", "4/4"],
        &["--shard 4/4", "3 samples"],
    );
}

#[test]
fn shards_join_once_and_wholly() {
    let p = Place::new();
    let shard = |to: &str, i: &str, more: &[&str]| {
        let args =
            ["calibrate", "m.onnx", "--stats", to, "--calibrate", "c.npz", "--samples", "12", "-q", "--shard", i];
        let recipe: &[&str] = if more.is_empty() { &DATA[..2] } else { more };
        done(&p.run(&[&args[..], recipe].concat()));
    };
    for i in 1..=3 {
        shard(&format!("s{i}"), &format!("{i}/3"), &[]);
    }
    shard("half", "1/2", &[]);
    shard("r16", "2/3", &["--recipe", "linear-w8a8"]);
    fs::copy(p.at("s1"), p.at("s1 again")).expect("copied");
    fn join<'a>(files: &[&'a str]) -> Vec<&'a str> {
        [&["calibrate", "m.onnx", "--stats", "all", "--join"], files].concat()
    }
    p.refused(&join(&["s1", "s1"]), &["s1", "part 1/3", "already"]);
    p.refused(&join(&["s1", "s1 again", "s2"]), &["s1 again", "part 1/3"]);
    p.refused(&join(&["s1"]), &["s1", "one file"]);
    p.refused(&join(&["s1", "half"]), &["half", "another division"]);
    p.refused(&join(&["s1", "r16"]), &["r16", "other values"]);
    let compile = ["m.onnx", "-o", "o.onnx", "-q", "--no-verify", "--recipe", "minmax-w8a8", "--stats"];
    p.refused(&[&compile[..], &["s1"]].concat(), &["s1 lacks 2 of 3 parts (2/3, 3/3)", "--join"]);
    done(&p.run(&join(&["s3", "s1"])));
    p.refused(&[&compile[..], &["all"]].concat(), &["2/3"]);
    fs::rename(p.at("all"), p.at("s13")).expect("moved");
    done(&p.run(&join(&["s2", "s13"])));
    done(&p.run(&[&compile[..], &["all"]].concat()));
    // The same bits as one run.
    let whole = ["calibrate", "m.onnx", "--stats", "whole", "--calibrate", "c.npz", "--samples", "12", "-q"];
    done(&p.run(&[&whole[..], &DATA[..2]].concat()));
    let plan = |stats: &str| {
        let to = format!("{stats}.yaml");
        done(&p.run(&[&["plan", "m.onnx", "--plan", &to, "--stats", stats, "-q"], &DATA[..2]].concat()));
        fs::read(p.at(&to)).expect("a plan")
    };
    assert!(plan("all") == plan("whole"));
}

#[test]
fn damaged_and_contradicting_data_are_refused() {
    let p = Place::new();
    // One bit of a stored member.
    let mut npz = fs::read(p.at("c.npz")).expect("data");
    let middle = npz.len() / 2;
    npz[middle] ^= 1;
    fs::write(p.at("bad.npz"), npz).expect("writable");
    p.refused(&["m.onnx", "-o", "o.onnx", "--calibrate", "bad.npz", "-q"], &["bad.npz"]);
    // Labels of files elsewhere.
    fs::create_dir(p.at("photos")).expect("writable");
    image(&p.at("photos/a.png"));
    image(&p.at("outside.png"));
    let absolute = p.at("outside.png");
    for line in ["../outside.png 1", &format!("{} 1", absolute.display()), "a/../../outside.png 1"] {
        fs::write(p.at("photos/labels.txt"), format!("a.png 0\n{line}\n")).expect("writable");
        p.refused(
            &["m.onnx", "-o", "o.onnx", "--calibrate", "photos", "-q"],
            &["labels.txt, line 2", "no path inside the folder"],
        );
    }
    fs::write(p.at("photos/labels.txt"), "a.png 0\n./a.png 1\na.png 1\n").expect("writable");
    p.refused(&["m.onnx", "-o", "o.onnx", "--calibrate", "photos", "-q"], &["line 3", "line 1 already"]);
    // A plan that decides twice.
    done(&p.compile(&["m.onnx", "-o", "o.onnx", "--plan", "plan.yaml"]));
    let plan = fs::read_to_string(p.at("plan.yaml")).expect("a plan");
    let entry = plan.find("- value:").expect("an activation");
    let end = plan[entry + 1..].find("\n- value:").expect("another") + entry + 2;
    let twice = format!("{}{}{}", &plan[..entry], &plan[entry..end], &plan[entry..]);
    fs::write(p.at("twice.yaml"), twice).expect("writable");
    p.refused(
        &[&["m.onnx", "-o", "x.onnx", "--plan", "twice.yaml", "-q"], &DATA[..2]].concat(),
        &["twice.yaml", "twice"],
    );
}

#[test]
fn types_and_operators_that_the_operator_set_lacks_are_refused() {
    let p = Place::new();
    let args = ["m.onnx", "-o", "o.onnx", "--recipe", "w4a8-int4", "--calibrate", "c.npz", "--samples", "8", "-q"];
    p.refused(&[&args[..], &["--keep-opset"]].concat(), &["w4a8-int4", "int4", "opset 21", "opset 17", "w4a8`"]);
    // The plan of a raised model does not fit a kept one, and an edited one is held to the same.
    done(&p.compile(&["m.onnx", "-o", "w.onnx", "--recipe", "w4a8", "--plan", "w.yaml", "--keep-opset"]));
    let plan = fs::read_to_string(p.at("w.yaml")).expect("a plan").replace("i4in8", "i4");
    fs::write(p.at("w.yaml"), plan).expect("writable");
    let args = ["m.onnx", "-o", "x.onnx", "--recipe", "w4a8", "--plan", "w.yaml", "--keep-opset", "-q"];
    p.refused(&args, &["int4", "opset 21"]);
}
