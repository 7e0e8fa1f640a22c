//! Feeds the program inputs that somebody damaged, each in a process of its own with limits of time and memory.
//!
//! `fuzz [--seconds N] [--cases N] [--seed S] [--target NAME] [--jobs N] [--keep DIR] PROGRAM`. Targets: `bytes` and
//! `structure` of models, `recipe`, `rules`, `plan`, `statistics`, `arrays`, `pictures`; all in turn without `--target`. A
//! case is a seed file (of `testdata`, or a model written here as text) with one to eight changes; which, follows from the
//! seed and the case's number alone.
//!
//! A case passes if the program ends within 10 s of processor time and 1 GB, with status 0 or 2, or with status 1 and one error
//! that names what it is about; one that goes past a limit runs again. Cases that fail are kept, with the command that shows
//! them. `--cases` ends the round before the time is over.

#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fqvit_opt::ir::validate::validate;
use fqvit_opt::onnx::encode;
use fqvit_opt::text::parse_model;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

mod pictures;
mod statistics;
mod texts;
mod wire;

type Rng = ChaCha8Rng;
type Failure = Box<dyn Error + Send + Sync>;

const TIME: Duration = Duration::from_secs(10);
const MEMORY_KB: u64 = 1_000_000;
const TARGETS: [&str; 8] = ["bytes", "structure", "recipe", "rules", "plan", "statistics", "arrays", "pictures"];

fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let mut round = Round { seed: 1, time: Duration::from_secs(60), cases: u64::MAX, jobs: 2 };
    let (mut target, mut keep) = (None, PathBuf::from("target/fuzz"));
    let mut program = None;
    while let Some(a) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{a} wants a value"));
        match a.as_str() {
            "--seconds" => round.time = Duration::from_secs(value()?.parse()?),
            "--cases" => round.cases = value()?.parse()?,
            "--seed" => round.seed = value()?.parse()?,
            "--target" => target = Some(value()?),
            "--jobs" => round.jobs = value()?.parse()?,
            "--keep" => keep = value()?.into(),
            _ => program = Some(PathBuf::from(a)),
        }
    }
    const USAGE: &str =
        "usage: fuzz [--seconds N] [--cases N] [--seed S] [--target NAME] [--jobs N] [--keep DIR] PROGRAM";
    let program = program.ok_or(USAGE)?;
    let targets: Vec<&str> = TARGETS.into_iter().filter(|t| target.as_deref().is_none_or(|x| x == *t)).collect();
    // Cases run in folders of their own.
    let program = program.canonicalize()?;
    if targets.is_empty() {
        return Err(format!("the targets are {}", TARGETS.join(", ")).into());
    }
    fs::create_dir_all(&keep)?;
    let work = tempfile::tempdir()?;
    let seeds = Seeds::new(&program, work.path())?;
    let tally = run_all(&program, &seeds, &targets, round, work.path(), &keep)?;
    println!("{tally}");
    if tally.ends_with(" 0 failures") { Ok(()) } else { Err("some cases failed".into()) }
}

/// How much is tried: cases from the first on, until there were so many or the time is over.
#[derive(Clone, Copy)]
struct Round {
    seed: u64,
    time: Duration,
    cases: u64,
    jobs: usize,
}

fn run_all(
    program: &Path,
    seeds: &Seeds,
    targets: &[&str],
    Round { seed, time, cases, jobs }: Round,
    work: &Path,
    keep: &Path,
) -> Result<String, Failure> {
    let start = Instant::now();
    let next = AtomicU64::new(0);
    let (failed, longest, largest) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicU64::new(0));
    // Cases of each target, and how many of them were refused.
    let tallies: Mutex<BTreeMap<&str, (usize, usize)>> = Mutex::default();
    let trouble: Mutex<Option<Failure>> = Mutex::new(None);
    std::thread::scope(|scope| {
        for job in 0..jobs.max(1) {
            let (next, failed, longest, largest, tallies, trouble) =
                (&next, &failed, &longest, &largest, &tallies, &trouble);
            scope.spawn(move || {
                let dir = work.join(format!("job{job}"));
                while start.elapsed() < time {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= cases {
                        return;
                    }
                    let target = targets[(n % targets.len() as u64) as usize];
                    let mut rng = Rng::seed_from_u64(seed);
                    rng.set_stream(n);
                    let one = fs::create_dir_all(&dir)
                        .map_err(Failure::from)
                        .and_then(|()| seeds.case(target, &mut rng, &dir))
                        .and_then(|args| Ok((run_surely(program, &args, &dir)?, args)));
                    match one {
                        Ok((end, args)) => {
                            if let Ok(mut t) = tallies.lock() {
                                let (done, refused) = t.entry(target).or_default();
                                (*done, *refused) = (*done + 1, *refused + usize::from(end.status == Some(1)));
                            }
                            longest.fetch_max(end.time.as_millis() as u64, Ordering::Relaxed);
                            largest.fetch_max(end.peak_kb, Ordering::Relaxed);
                            if let Some(why) = end.fault() {
                                failed.fetch_add(1, Ordering::Relaxed);
                                let name = format!("{target}-{seed}-{n}");
                                let kept = keep.join(&name);
                                let _ = fs::remove_dir_all(&kept);
                                let _ = fs::rename(&dir, &kept);
                                println!("{name}: {why}\n  in {}: {}", kept.display(), args.join(" "));
                            } else {
                                let _ = fs::remove_dir_all(&dir);
                            }
                        }
                        Err(e) => {
                            trouble.lock().map(|mut t| t.get_or_insert(e).to_string()).ok();
                            return;
                        }
                    }
                }
            });
        }
    });
    if let Some(e) = trouble.into_inner().ok().flatten() {
        return Err(e);
    }
    let tallies = tallies.into_inner().unwrap_or_default();
    for (target, (done, refused)) in &tallies {
        println!("{target}: {done} cases, {:.0} % accepted", (done - refused) as f64 / *done as f64 * 100.0);
    }
    Ok(format!(
        "{} cases in {} s, {} refused with an error, longest {:.1} s, largest {} MB: {} failures",
        tallies.values().map(|t| t.0).sum::<usize>(),
        start.elapsed().as_secs(),
        tallies.values().map(|t| t.1).sum::<usize>(),
        longest.into_inner() as f64 / 1e3,
        largest.into_inner() / 1000,
        failed.into_inner()
    ))
}

// ---- running --------------------------------------------------------------------------------------------------------

/// How the program ended.
struct End {
    /// `None`: killed, by a signal or by us.
    status: Option<i32>,
    /// On processors.
    time: Duration,
    peak_kb: u64,
    errors: String,
}

impl End {
    /// The limit it went past.
    fn excess(&self) -> Option<String> {
        if self.time > TIME {
            return Some(format!("took more than {} s", TIME.as_secs()));
        }
        (self.peak_kb > MEMORY_KB).then(|| format!("took {} MB", self.peak_kb / 1000))
    }

    /// What is wrong with it.
    fn fault(&self) -> Option<String> {
        if let Some(why) = self.excess() {
            return Some(why);
        }
        let first = self.errors.lines().next().unwrap_or_default();
        match self.status {
            Some(0 | 2) => None,
            Some(1) if self.errors.contains("has a fault") => Some(first.to_owned()),
            Some(1) if self.errors.contains("panicked") => Some(first.to_owned()),
            Some(1) if self.errors.matches("error: ").count() >= 1 => None,
            Some(1) => Some(format!("no error told: {first}")),
            other => Some(format!("ended with {other:?}: {first}")),
        }
    }
}

/// Once in some ten thousand runs the kernel says gigabytes of a process that ends within a tenth of a second and has never
/// had a thirtieth of that. So what goes past a limit runs once more, and only that run counts.
fn run_surely(program: &Path, args: &[String], dir: &Path) -> Result<End, Failure> {
    let end = run(program, args, dir)?;
    if end.excess().is_none() { Ok(end) } else { run(program, args, dir) }
}

fn run(program: &Path, args: &[String], dir: &Path) -> Result<End, Failure> {
    let errors = dir.join("stderr");
    let start = Instant::now();
    let mut child = Command::new(program)
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(&errors)?)
        .spawn()?;
    let (mut time, mut peak_kb) = (Duration::ZERO, 0);
    let end = loop {
        if let Some(end) = child.try_wait()? {
            break end.code();
        }
        let (used, high) = taken(child.id());
        (time, peak_kb) = (time.max(used), peak_kb.max(high));
        if time > TIME + Duration::from_secs(2) || start.elapsed() > 10 * TIME || peak_kb > 2 * MEMORY_KB {
            time = if start.elapsed() > 10 * TIME { start.elapsed() } else { time };
            child.kill()?;
            child.wait()?;
            break None;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Ok(End { status: end, time, peak_kb, errors: fs::read_to_string(&errors).unwrap_or_default() })
}

/// Time on processors, which a loaded machine does not change, and the most memory so far, of a process.
fn taken(id: u32) -> (Duration, u64) {
    let read = |what: &str| fs::read_to_string(format!("/proc/{id}/{what}")).unwrap_or_default();
    let high = read("status").lines().find_map(|l| l.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
    let hundredths: u64 = read("stat").rsplit_once(')').map_or(0, |(_, rest)| {
        rest.split_ascii_whitespace().skip(11).take(2).filter_map(|x| x.parse::<u64>().ok()).sum()
    });
    (Duration::from_millis(hundredths * 10), high.unwrap_or(0))
}

// ---- seeds and cases ------------------------------------------------------------------------------------------------

struct Seeds {
    models: Vec<Vec<u8>>,
    digits: PathBuf,
    recipes: Vec<String>,
    rules: Vec<String>,
    plan: String,
    /// Its long lists, which lie beside it.
    lists: Vec<u8>,
    statistics: statistics::Seed,
    arrays: Vec<Vec<u8>>,
    pictures: Vec<Vec<u8>>,
}

/// Models that hold what the shipped ones do not: branches, loops, computed shapes, convolutions with everything.
const TEXTS: [&str; 4] = [
    r#"<ir_version: 8, opset_import: ["" : 17]>
    g (float[1,3,8,8] x) => (float[1,4,10] y)
    <float[8,3,4,4] w = {384 * 0.02}, float[8] b = {8 * 0.0}, float[8,10] h = {80 * 0.1}, int64[3] s = {1, 8, 4},
     float[8] gamma = {8 * 1.0}, float[8] beta = {8 * 0.0}, float k = {0.5}>
    {
        c = Conv <strides = [4, 4], pads = [0, 0, 0, 0], group = 1, dilations = [1, 1]> (x, w, b)
        r = Reshape (c, s)
        t = Transpose <perm = [0, 2, 1]> (r)
        n = LayerNormalization <axis = -1, epsilon = 0.00001> (t, gamma, beta)
        u = Transpose <perm = [0, 2, 1]> (n)
        p = MatMul (n, u)
        m = Mul (p, k)
        a = Softmax <axis = -1> (m)
        o = MatMul (a, n)
        z = Add (o, t)
        y = MatMul (z, h)
    }"#,
    r#"<ir_version: 8, opset_import: ["" : 13]>
    g (float[batch,4,16] x) => (float[batch,4,16] y)
    <float[16,16] w = {256 * 0.05}, int64 one = {1}, int64 two = {2}, int64[1] back = {-1}, int64[1] first = {0},
     int64[1] last = {9223372036854775807}, int64[1] axis = {1}, int64[2] split = {8, 8}>
    {
        s = Shape (x)
        b = Gather <axis = 0> (s, one)
        l = Unsqueeze (b, first)
        d = Concat <axis = 0> (first, l, back)
        q = Reshape (x, d)
        lo, hi = Split <axis = 2> (q, split)
        j = Concat <axis = 2> (hi, lo)
        c = Slice (j, first, last, axis)
        f = MatMul (c, w)
        e = Relu (f)
        y = Add (e, x)
    }"#,
    r#"<ir_version: 8, opset_import: ["" : 17]>
    g (float[1,6] x) => (float[1,6] y)
    <int64[2] n = {1, 6}, float[6,6] w = {36 * 0.1}, int64[2] reps = {1, 2}, int64[4] pads = {0, 1, 0, 1}, float zero = {0},
     int64 a = {0}, int64 z = {6}, int64 st = {1}>
    {
        e = ConstantOfShape <value: tensor = float[1] {2}> (n)
        r = Range (a, z, st)
        rf = Cast <to = 1> (r)
        m = Mul (e, rf)
        t = Tile (m, reps)
        p = Pad <mode = "constant"> (m, pads, zero)
        i = Gather <axis = 1> (t, r)
        k = MatMul (i, w)
        h = Gather <axis = 1> (p, r)
        s = Add (k, x)
        y = Mul (s, h)
    }"#,
    r#"<ir_version: 8, opset_import: ["" : 17]>
    g (float[1,5,8] x) => (float[1,1,8] y)
    <float[8,24] w = {192 * 0.03}, float[24] b = {24 * 0.0}, int64[5] s = {1, 5, 3, 2, 4}, int64[3] f = {1, 5, 8},
     int64 zero = {0}, int64 one = {1}, int64 two = {2}, float k = {0.5}>
    {
        q1 = MatMul (x, w)
        q2 = Add (q1, b)
        q3 = Reshape (q2, s)
        q4 = Transpose <perm = [2, 0, 3, 1, 4]> (q3)
        q = Gather <axis = 0> (q4, zero)
        key = Gather <axis = 0> (q4, one)
        v = Gather <axis = 0> (q4, two)
        kt = Transpose <perm = [0, 1, 3, 2]> (key)
        sc = MatMul (q, kt)
        sm = Mul (sc, k)
        at = Softmax <axis = -1> (sm)
        o = MatMul (at, v)
        ot = Transpose <perm = [0, 2, 1, 3]> (o)
        r = Reshape (ot, f)
        e = ReduceMean <axes = [1], keepdims = 1> (r)
        y = Erf (e)
    }"#,
];

/// Files of a folder with this ending, by name.
fn files(dir: &Path, ending: &str) -> Result<Vec<PathBuf>, Failure> {
    let mut v: Vec<PathBuf> = fs::read_dir(dir)?.filter_map(|e| Some(e.ok()?.path())).collect();
    v.retain(|p| p.extension().is_some_and(|e| e == ending));
    v.sort();
    Ok(v)
}

impl Seeds {
    fn new(program: &Path, work: &Path) -> Result<Seeds, Failure> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let digits = root.join("testdata/digits");
        let mut models = Vec::new();
        for text in TEXTS {
            // A number of equal elements is written `{192 * 0.02}` here.
            let m = parse_model(&repeated(text))?;
            models.push(encode(validate(&m)?));
        }
        models.push(fs::read(digits.join("digits_vit.onnx"))?);
        for f in files(&root.join("fuzz"), "onnx")? {
            models.push(fs::read(f)?);
        }
        let (plan, statistics) = (work.join("seed.plan.yaml"), work.join("seed.stats"));
        let args = ["plan", "digits_vit.onnx", "--samples", "4", "--quiet", "--plan"];
        let made = Command::new(program)
            .current_dir(&digits)
            .args(args)
            .arg(&plan)
            .arg("--stats")
            .arg(&statistics)
            .output()?;
        if !made.status.success() {
            return Err(String::from_utf8_lossy(&made.stderr).into_owned().into());
        }
        let read = |paths: Vec<PathBuf>| paths.iter().map(fs::read_to_string).collect::<Result<Vec<_>, _>>();
        let mut pictures = Vec::new();
        for ending in ["png", "jpg", "jpeg"] {
            for f in files(&root.join("testdata/images"), ending)? {
                pictures.push(fs::read(f)?);
            }
        }
        pictures.retain(|p| p.len() < 100_000);
        pictures.extend(pictures::of_other_kinds(&pictures[0])?);
        Ok(Seeds {
            models,
            recipes: read(files(&root.join("passes/recipes"), "yaml")?)?,
            rules: read(files(&root.join("passes/rules"), "yaml")?)?,
            lists: fs::read(plan.with_extension("weights.npz"))?,
            plan: fs::read_to_string(plan)?,
            statistics: statistics::Seed::of(&fs::read(statistics)?)
                .ok_or("the layout of statistics files has changed")?,
            arrays: vec![fs::read(digits.join("digits_calib.npz"))?, npy("<f4", "(2, 1, 8, 8)", 512)],
            pictures,
            digits: digits.join("digits_vit.onnx"),
        })
    }

    /// Writes a case into `dir`; returns the program's arguments.
    fn case(&self, target: &str, rng: &mut Rng, dir: &Path) -> Result<Vec<String>, Failure> {
        let put = |name: &str, bytes: &[u8]| fs::write(dir.join(name), bytes);
        let words = |s: &str| s.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let digits = self.digits.display().to_string();
        let model = |m: &str, more: &str| words(&format!("{m} -o out.onnx --quiet --samples 2 --threads 1{more}"));
        let of_digits = |more: &str| model(&digits, more);
        Ok(match target {
            "bytes" => {
                let mut b = pick(rng, &self.models).clone();
                damage(rng, &mut b);
                put("m.onnx", &b)?;
                if rng.random() { words("inspect m.onnx") } else { model("m.onnx", "") }
            }
            "structure" => {
                let seed = pick(rng, &self.models);
                let mut m = wire::Message::parse(seed, "Model").ok_or("a seed is no model")?;
                for _ in 0..few(rng) {
                    wire::mutate(&mut m, rng);
                }
                put("m.onnx", &m.bytes())?;
                match rng.random_range(0..4) {
                    0 => words("inspect m.onnx"),
                    1 => model("m.onnx", " --recipe linear-w8a8"),
                    2 => model("m.onnx", " --verify-each"),
                    _ => model("m.onnx", ""),
                }
            }
            "recipe" => {
                let text = pick(rng, &self.recipes).clone();
                put("r.yaml", texts::mutate(rng, text).as_bytes())?;
                of_digits(" --recipe r.yaml")
            }
            "rules" => {
                fs::create_dir_all(dir.join("p/rules"))?;
                let text = pick(rng, &self.rules).clone();
                put("p/rules/r.yaml", texts::mutate(rng, text).as_bytes())?;
                words(&format!("inspect {digits} --passes-dir p"))
            }
            "plan" => {
                put("p.yaml", texts::mutate(rng, self.plan.clone()).as_bytes())?;
                let mut lists = self.lists.clone();
                if rng.random_ratio(1, 8) {
                    damage(rng, &mut lists);
                }
                put("p.weights.npz", &lists)?;
                of_digits(" --plan p.yaml")
            }
            "statistics" => {
                put("s.stats", &self.statistics.damaged(rng))?;
                put("other.stats", &self.statistics.of_other_data())?;
                match rng.random_range(0..4) {
                    0 => words(&format!("calibrate {digits} --join other.stats s.stats --stats out.stats --quiet")),
                    1 => words(&format!("plan {digits} --stats s.stats --plan out.yaml --quiet")),
                    _ => of_digits(" --stats s.stats"),
                }
            }
            "arrays" => {
                let mut b = pick(rng, &self.arrays).clone();
                let name = if b.starts_with(b"PK") { "a.npz" } else { "a.npy" };
                if rng.random() && name == "a.npy" {
                    let sizes: Vec<String> = (0..rng.random_range(0..6)).map(|_| number(rng).to_string()).collect();
                    let kind = *pick(rng, &["<f4", ">f8", "<f2", "|u1", "<i8", "|b1", "<u4", "<c8", "|O"]);
                    b = npy(kind, &format!("({},)", sizes.join(", ")), rng.random_range(0..4096));
                } else {
                    damage(rng, &mut b);
                }
                put(name, &b)?;
                of_digits(&format!(" --calibrate {name}"))
            }
            _ => {
                fs::create_dir_all(dir.join("i"))?;
                // Beside one that is whole: of one alone, no sample would be left for verification.
                put("i/a.png", &pictures::damaged(rng, &self.pictures))?;
                put("i/b.png", &self.pictures[0])?;
                let more = *pick(rng, &pictures::FLAGS);
                if rng.random_range(0..4) == 0 {
                    of_digits(&format!(" --calibrate i{more}"))
                } else {
                    words(&format!("calibrate {digits} --calibrate i --stats out.stats --quiet{more}"))
                }
            }
        })
    }
}

fn repeated(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        let (inner, tail) = after.split_once('}').unwrap_or((after, ""));
        let list = inner.split_once(" * ").and_then(|(n, x)| Some(vec![x; n.parse().ok()?].join(", ")));
        out += before;
        match list {
            Some(l) => out += &format!("{{{l}}}"),
            None => {
                out.push('{');
                rest = after;
                continue;
            }
        }
        rest = tail;
    }
    out + rest
}

fn npy(kind: &str, shape: &str, data: usize) -> Vec<u8> {
    let head = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n");
    let mut v = b"\x93NUMPY\x01\x00".to_vec();
    v.extend((head.len() as u16).to_le_bytes());
    v.extend(head.as_bytes());
    v.resize(v.len() + data, 0);
    v
}

// ---- changes --------------------------------------------------------------------------------------------------------

fn pick<'a, T>(rng: &mut Rng, from: &'a [T]) -> &'a T {
    &from[rng.random_range(0..from.len())]
}

/// One to eight, most often one: of many changes, the first is refused and the rest is never seen.
fn few(rng: &mut Rng) -> usize {
    1 + (0..3).map(|_| rng.random_range(0..8)).min().unwrap_or(0)
}

/// Numbers at which something ends.
fn number(rng: &mut Rng) -> i64 {
    const ENDS: [i64; 28] = [
        0,
        1,
        -1,
        2,
        3,
        -2,
        7,
        8,
        16,
        64,
        127,
        128,
        255,
        256,
        -128,
        1000,
        32_767,
        65_536,
        1 << 20,
        1 << 31,
        (1 << 31) - 1,
        1 << 32,
        (1 << 32) + 16,
        1 << 40,
        1 << 60,
        1 << 62,
        i64::MAX,
        i64::MIN,
    ];
    if rng.random_range(0..4) == 0 { rng.random_range(-20..200) } else { *pick(rng, &ENDS) }
}

fn damage(rng: &mut Rng, b: &mut Vec<u8>) {
    for _ in 0..few(rng) {
        if b.is_empty() {
            return;
        }
        let at = rng.random_range(0..b.len());
        let len = rng.random_range(1..64).min(b.len() - at);
        match rng.random_range(0..7) {
            0 => b[at] ^= 1 << rng.random_range(0..8),
            1 => b[at] = rng.random(),
            2 => b.truncate(at),
            3 => drop(b.drain(at..at + len)),
            4 => {
                let piece = b[at..at + len].to_vec();
                let to = rng.random_range(0..b.len());
                b.splice(to..to, piece);
            }
            5 => b[at..at + len].fill(*pick(rng, &[0, 0xFF, 0x7F, 0x80])),
            _ => {
                let n = number(rng).to_le_bytes();
                let end = (at + 8).min(b.len());
                b[at..end].copy_from_slice(&n[..end - at]);
            }
        }
    }
}
