//! The renderings against files in `src/verify/golden`; `FQVIT_BLESS=1` rewrites them.

use super::super::closer::{AttentionLook, Bins, CodeShare, ValueLook, WeightsForm};
use super::super::disagree::{Disagreement, Score};
use super::super::judge::Baseline;
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
        baseline: Some(Baseline {
            bytes: 6_050_000,
            calibration_samples: 48,
            outputs: vec![TensorMetrics {
                sqnr_db: -2.9,
                top1_agreement: Some(0.005),
                accuracy: None,
                ..logits.clone()
            }],
            ms: 23.2,
            ratio: 0.7,
        }),
    }
}

fn closer() -> CloserLook {
    let value = |tensor: &str, sqnr_db, float: &[u64], quantized: &[u64]| ValueLook {
        tensor: tensor.into(),
        part: "block 1 MLP".into(),
        role: "gelu-output".into(),
        levels: 256,
        scales: "one scale".into(),
        sqnr_db,
        rounding_db: 31.25,
        step: [0.5, 0.5],
        reach: [-2.25, 1.75],
        clipped: 0.0123,
        elements: float.iter().sum(),
        bins: Bins { from: -3.25, width: 1.0, float: float.into(), quantized: quantized.into(), open: [true, false] },
    };
    let attention = |tensor: &str, form, counts: &[u64]| AttentionLook {
        tensor: tensor.into(),
        part: String::new(),
        form,
        codes: counts
            .iter()
            .enumerate()
            .map(|(i, n)| CodeShare {
                count: *n,
                weight: if i == 3 { [0.0; 2] } else { [0.5f64.powi(i as i32), 0.5f64.powf(i as f64 / 2.0)] },
                attention: if i == 0 { 0.75 } else { 0.125 },
            })
            .collect(),
    };
    CloserLook {
        samples: 8,
        planned: 12,
        measured: 11,
        worst: vec![
            value("/blocks.1/<mlp>/Mul_output_0", 8.25, &[1, 1000, 40, 0, 3, 7], &[0, 1002, 39, 2, 9, 0]),
            ValueLook {
                step: [0.01, 2.0],
                clipped: 0.0,
                part: String::new(),
                ..value("fc1", 12.5, &[4, 5, 6, 5], &[4, 6, 5, 5])
            },
        ],
        attentions: vec![
            attention("/blocks.0/<attn>/y", WeightsForm::Lis, &[10, 20, 30, 40]),
            attention("/blocks.1/<attn>/y", WeightsForm::Lis, &[100, 0, 0, 0]),
            attention("/blocks.2/y", WeightsForm::Uniform, &[]),
            attention("/blocks.3/<attn>/y", WeightsForm::Float, &[]),
        ],
    }
}

fn disagreements() -> Disagreements {
    let score = |class, share| Score { class, score: 10.0 * share, share };
    Disagreements {
        output: "logits".into(),
        samples: 400,
        count: 25,
        worst: vec![
            Disagreement {
                sample: 3,
                item: 0,
                name: "birds/<robin>.jpg".into(),
                label: Some(15),
                float: vec![score(15, 0.5), score(11, 0.25), score(2, 0.125)],
                quantized: vec![score(11, 0.375), score(15, 0.25), score(2, 0.25)],
                picture: None,
            },
            Disagreement {
                sample: 9,
                item: 1,
                name: "/home/ada/photos/cat.png".into(),
                label: None,
                float: vec![score(1, 0.75)],
                quantized: vec![score(0, 0.6)],
                picture: None,
            },
        ],
        names: [(15, "robin, <Erithacus>".to_owned()), (11, "goldfinch".to_owned())].into(),
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
        closer: Some(closer()),
        disagreements: Some(disagreements()),
        parts: Vec::new(),
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
    let mut r = report();
    r.data.synthetic = false;
    if let Some(d) = &mut r.disagreements {
        d.worst[0].picture = Some("data:image/png;base64,AAAA".into());
    }
    let h = r.to_html();
    golden("report.html", &h);
    for outside in ["http", "<script", "href=", "@import", "url(", "/home"] {
        assert!(!h.contains(outside), "{outside}");
    }
    assert_eq!((h.matches("src=").count(), h.matches("src=\"data:image/png;base64,AAAA\"").count()), (1, 1));
    assert!(h.contains("alt=\"birds/&lt;robin&gt;.jpg\"") && h.contains(">cat.png<"));
    assert!(h.contains("&lt;attn&gt;") && !h.contains("<attn>") && h.contains("wraps &amp; keeps"));
    let chart = h.split("<table class=\"chart\">").nth(1).and_then(|s| s.split("</table>").next()).unwrap();
    assert_eq!(chart.matches("class=\"bar").count(), r.blocks.len());
    for tag in [
        "figure",
        "figcaption",
        "svg",
        "caption",
        "table",
        "tr",
        "th",
        "td",
        "div",
        "dl",
        "dt",
        "dd",
        "ul",
        "li",
        "p",
        "code",
        "details",
        "main",
    ] {
        let open = h.matches(&format!("<{tag}>")).count() + h.matches(&format!("<{tag} ")).count();
        assert_eq!(open, h.matches(&format!("</{tag}>")).count(), "{tag}");
    }
    let bars: Vec<f64> = h.split("width:").filter_map(|s| s.split_once("%\"></div>")?.0.parse::<f64>().ok()).collect();
    // Blocks, two for each of four codes, and one for each class of two answers.
    assert_eq!(bars.len(), r.blocks.len() + 8 + 6 + 2);
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
        closer: None,
        disagreements: None,
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
    let dead = Report { channels: vec![none], closer: None, ..report() };
    assert!(!dead.to_html().contains("NaN") && !dead.to_html().contains("<rect"));
    let bad = Report { blocks: vec![tensor("a", -EXACT_DB), tensor("b", EXACT_DB)], ..report() };
    assert!(!bad.to_html().contains("NaN") && !bad.to_html().contains("inf"));
}

/// Figures that cannot be drawn leave no picture, and no number that is none.
#[test]
fn a_closer_look_at_nothing_renders() {
    let mut c = closer();
    c.worst[0].bins = Bins::default();
    c.worst[1].bins.width = 0.0;
    c.attentions.retain(|a| a.codes.is_empty());
    let agreed = Disagreements { count: 0, worst: vec![], ..disagreements() };
    let data = DataReport { synthetic: false, ..report().data };
    let h = Report { closer: Some(c), disagreements: Some(agreed), data, ..report() }.to_html();
    assert!(!h.contains("NaN") && !h.contains("inf\"") && !h.contains("<path") && h.contains("Nowhere"));
    assert!(h.contains("1 of 2 attentions have a Softmax") && h.contains("1 kept in float"));
    // Made-up samples have no classes to disagree on.
    let made_up = report().to_html();
    assert!(!made_up.contains("disagree") && made_up.contains("class=\"warn\""));
}

/// What is drawn is what was counted: heights are counts as shares of the largest.
#[test]
fn histograms_are_drawn_to_scale() {
    let h = report().to_html();
    let paths: Vec<&str> = h.split(" d=\"").skip(1).filter_map(|s| s.split('"').next()).collect();
    assert_eq!(paths.len(), 4);
    assert_eq!(paths[2], "M0 100H0V33.3H1V16.7H2V0.0H3V16.7H4V100Z");
    assert_eq!(paths[3], "M0 100H0V33.3H1V0.0H2V16.7H4V100");
    // Counts of 1 and 1000 are drawn as logarithms.
    assert_eq!(h.matches("counts, logarithmic").count(), 1);
    assert!(paths[0].starts_with("M0 100H0V87.3H1V0.0H2V"), "{}", paths[0]);
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

#[test]
fn precisions_of_parts_are_told() {
    let r = Report {
        parts: vec![
            Chosen {
                part: "block 0 <mlp>".into(),
                precision: Precision::Narrow,
                weights: "4".into(),
                values: "8".into(),
                reason: "alone it leaves: 4-bit 20.10 dB, recipe 31.00 dB".into(),
            },
            Chosen {
                part: "head".into(),
                precision: Precision::Recipe,
                weights: "8".into(),
                values: "8 and 16".into(),
                reason: "alone it leaves: 4-bit 18.10 dB, recipe exact".into(),
            },
        ],
        ..report()
    };
    let page = r.to_html();
    assert!(page.contains("4-bit: 1, as the recipe: 1") && page.contains("block 0 &lt;mlp&gt;"), "{page}");
    assert!(!report().to_html().contains("<h2>Parts</h2>"));
    #[cfg(feature = "cli")]
    assert!(r.to_terminal(120, true).contains("bits of values"));
}
