//! The renderings against files in `src/verify/golden`; `FQVIT_BLESS=1` rewrites them.

use super::super::metrics::{Accuracy, Top5};
use super::super::thresholds::Thresholds;
use super::*;

fn tensor(name: &str, sqnr_db: f64) -> TensorMetrics {
    TensorMetrics {
        tensor: name.to_string(),
        samples: 16,
        sqnr_db,
        cosine: 0.98,
        max_abs_error: 0.012_345,
        ..Default::default()
    }
}

fn judged(logits: &TensorMetrics) -> Judged {
    let level = |level: &str, sqnr_db| Level {
        level: level.into(),
        outputs: vec![TensorMetrics { accuracy: None, sqnr_db, ..logits.clone() }],
    };
    Judged {
        runtime: "onnxruntime".into(),
        version: "1.31.1".into(),
        samples: 16,
        levels: vec![level("basic", 13.8), level("all", 9.75)],
        threads: 1,
        rounds: 25,
        float_ms: 33.1,
        quantized_ms: 21.25,
        ratio: 0.642,
    }
}

fn report() -> Report {
    let logits = TensorMetrics {
        kind: Kind::Classes { axis: 1 },
        samples: 400,
        top1_agreement: Some(0.9375),
        accuracy: Some(Accuracy {
            samples: 16,
            top1_float: 0.8125,
            top1_quantized: 0.75,
            top5: Some(Top5 { float: 1.0, quantized: 0.9375 }),
        }),
        ..tensor("logits", 13.842)
    };
    let classes = TensorMetrics { kind: Kind::Labels, equal: Some(0.975), ..tensor("class", -3.0) };
    let boxes = TensorMetrics { kind: Kind::Detections, matched: Some(0.9), ..tensor("boxes", 21.5) };
    let t = Thresholds { sqnr_db: Some(10.0), agreement: Some(0.99), ..Thresholds::default() };
    Report {
        version: VERSION,
        tool: "fqvit-opt 0.1.0".into(),
        float: ModelFile { name: "vit.onnx".into(), bytes: 22_900_000 },
        quantized: ModelFile { name: "vit.q.onnx".into(), bytes: 6_100_000 },
        recipe: "fq-vit".into(),
        data: DataReport {
            calibration: "synthetic: made from seed 0, no data was given".into(),
            calibration_samples: 56,
            verification: "synthetic: the samples held back".into(),
            verification_samples: 8,
            synthetic: true,
        },
        checks: [t.check(&[logits.clone(), classes.clone(), boxes.clone()]), judged(&logits).check(&t)].concat(),
        judged: Some(judged(&logits)),
        outputs: vec![logits, classes, boxes],
        speed: Some(Speed {
            runtime: "tract".into(),
            instructions: "avx2".into(),
            threads: 1,
            rounds: 25,
            float_ms: 39.6,
            quantized_ms: 14.204,
            ratio: 0.3587,
        }),
        blocks: vec![
            tensor("/embed/Add_output_0", 999.0),
            tensor("/blocks.0/<attn>/Add_output_0", 24.5),
            tensor("/blocks.1/Add_output_0", 8.25),
            tensor("/blocks.2/Add_output_0", -3.5),
        ],
        coverage: Coverage {
            covered: 11,
            total: 12,
            by_op: [("MatMul", 8, 8), ("Conv", 1, 1), ("Add", 2, 3)]
                .map(|(op, covered, total)| (op.to_string(), OpCoverage { covered, total }))
                .into_iter()
                .collect(),
            between: [("LayerNormalization".to_string(), 25), ("Softmax".to_string(), 2)].into_iter().collect(),
        },
        channels: vec![
            Channels {
                tensor: "/blocks.0/<attn>/Add_output_0".into(),
                part: "block 0 attention".into(),
                reach: vec![0.5, 40.0, 1.0, 0.25, 9.0, 0.0],
                factors: vec![1, 64, 2, 1, 16, 1],
            },
            Channels { tensor: "fc1".into(), part: String::new(), reach: vec![3.0, 1.0], factors: vec![] },
        ],
        islands: vec![Island {
            node: "/head/Add".into(),
            op: "Add".into(),
            reason:
                "its result is an output of the model, which stays float, and a longer reason wraps & keeps <its> text"
                    .into(),
        }],
        decisions: [("residual: ptf, zero point per channel", 24), ("attention: log-int-softmax, 4 bits", 12)]
            .map(|(k, n)| (k.to_string(), n))
            .into_iter()
            .collect(),
        passes: vec![],
        timings: vec![
            Timing { stage: "calibrate".into(), seconds: 12.34 },
            Timing { stage: "verify".into(), seconds: 3.0 },
        ],
        notes: vec!["3 samples do not fill a batch of 4 and are dropped".into()],
    }
}

fn golden(file: &str, text: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/verify/golden").join(file);
    if std::env::var_os("FQVIT_BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let want = std::fs::read_to_string(&path).unwrap();
    assert!(text == want, "{file} differs:\n{}", similar::TextDiff::from_lines(want.as_str(), text).unified_diff());
}

#[test]
fn json_is_as_agreed_and_reads_back() {
    let r = report();
    let text = r.to_json().unwrap();
    golden("report.json", &text);
    assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), r);
}

#[cfg(feature = "cli")]
#[test]
fn terminal_text_is_as_agreed() {
    golden("report.txt", &report().to_terminal(100, true));
    golden("summary.txt", &report().to_terminal(100, false));
    let narrow = report().to_terminal(60, true);
    let table = narrow.lines().filter(|l| l.contains('\u{2500}'));
    assert!(table.into_iter().all(|l| l.chars().count() <= 60), "{narrow}");
}

#[test]
fn html_is_whole_and_escaped() {
    let r = report();
    let h = r.to_html();
    golden("report.html", &h);
    for outside in ["http", "<script", "src=", "href=", "@import", "url("] {
        assert!(!h.contains(outside), "{outside}");
    }
    assert!(h.contains("&lt;attn&gt;") && !h.contains("<attn>") && h.contains("wraps &amp; keeps"));
    assert_eq!(h.matches("class=\"bar").count(), r.blocks.len());
    for tag in ["table", "tr", "th", "td", "div", "dl", "dt", "dd", "ul", "li", "p", "code", "details", "main"] {
        let open = h.matches(&format!("<{tag}>")).count() + h.matches(&format!("<{tag} ")).count();
        assert_eq!(open, h.matches(&format!("</{tag}>")).count(), "{tag}");
    }
    let bars: Vec<f64> = h.split("width:").filter_map(|s| s.split_once("%\"></div>")?.0.parse::<f64>().ok()).collect();
    assert_eq!(bars.len(), r.blocks.len());
    assert!(bars.iter().all(|x| (0.0..=100.0).contains(x)), "{bars:?}");
}

#[test]
fn the_worst_come_first_and_a_failed_check_fails() {
    let r = report();
    let worst = |n| r.worst(n).iter().map(|m| m.sqnr_db).collect::<Vec<_>>();
    assert_eq!(worst(2), [-3.5, 8.25]);
    assert_eq!(worst(9), [-3.5, 8.25, 24.5], "the exact one is not among the worst");
    assert_eq!(
        r.checks.iter().map(|c| c.pass).collect::<Vec<_>>(),
        [true, false, true, false, true, false, false, false]
    );
    assert!(!r.passes());
    assert!(Report { checks: vec![], ..r }.passes());
}

#[test]
fn an_empty_report_renders() {
    let empty = Report {
        outputs: vec![],
        blocks: vec![],
        coverage: Coverage::default(),
        islands: vec![],
        channels: vec![],
        decisions: IndexMap::new(),
        passes: vec![],
        speed: None,
        judged: None,
        timings: vec![],
        checks: vec![],
        notes: vec![],
        data: DataReport { synthetic: false, ..report().data },
        ..report()
    };
    let h = empty.to_html();
    assert!(!h.contains("<table") && !h.contains("class=\"bar") && !h.contains("class=\"warn\""));
    // Nothing but failures to measure: the chart has no scale of its own.
    let none = Channels { tensor: "x".into(), part: String::new(), reach: vec![0.0; 3], factors: vec![] };
    let dead = Report { channels: vec![none], ..report() };
    assert!(!dead.to_html().contains("NaN") && !dead.to_html().contains("<rect"));
    let bad = Report { blocks: vec![tensor("a", -EXACT_DB), tensor("b", EXACT_DB)], ..report() };
    assert!(!bad.to_html().contains("NaN") && !bad.to_html().contains("inf"));
}

#[test]
fn numbers_read_well() {
    let cases = [
        (0.0, "0"),
        (0.012_345, "0.01235"),
        (12.345_6, "12.35"),
        (-585.0, "-585.0"),
        (123_456.0, "1.235e5"),
        (1e-7, "1.000e-7"),
    ];
    for (x, text) in cases {
        assert_eq!(number(x), text);
    }
}
