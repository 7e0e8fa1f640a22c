use super::super::watches;
use super::*;
use crate::ir::Model;
use crate::plan::channel_map::tests::{Layout, sites_of};
use proptest::prelude::*;

fn recipe(equalise: &str) -> QuantRecipe {
    let text = format!(
        "{{ weights: {{ code: i8 }}, activations: {{ default: [{{ kind: affine, range: min-max }}] }},
           equalise: {equalise}, attention: {{ kind: uniform, scores: min-max }} }}"
    );
    crate::yaml::from_str(&text).expect("a sound recipe")
}

const BOTH: &str = "{ value: { strengths: [0.5, 1.0] }, query: { strengths: [0.5, 1.0] } }";

/// Statistics of everything the planner watches. Channel `c` of value `name` reaches `width(name, c)`.
fn stats_of(m: &Model, sites: &Sites, r: &QuantRecipe, width: impl Fn(&str, usize) -> f32) -> IndexMap<String, Stats> {
    let mut out = IndexMap::new();
    for (name, watch) in watches(m, sites, r) {
        let mut st = Stats::new(watch);
        for sample in 0..16u32 {
            let noise = |i: u32| ((i + sample * 997).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0;
            let x: Vec<f32> = (0..24 * 6u32).map(|i| noise(i) * width(&name, i as usize % 6)).collect();
            st.observe(&x, &[1, 24, 6], sample.into()).expect("finite");
        }
        out.insert(name, st);
    }
    out
}

fn layout() -> Model {
    Layout::heads(2, 3, [true, false]).model()
}

fn decided(r: &QuantRecipe, width: impl Fn(&str, usize) -> f32) -> (Vec<Equalisation>, IndexMap<String, Stats>) {
    let m = layout();
    let sites = sites_of(&m);
    let stats = stats_of(&m, &sites, r, width);
    let e = decide(&m.graph, &sites, &stats, r).expect("the statistics are there");
    let stats = divided(&m.graph, &sites, &stats, &e);
    let stats = stats.into_iter().map(|(name, s)| (name, s.into_owned())).collect();
    (e, stats)
}

/// Where channel `c` of the values goes in [`layout`]: heads are last on the way in and first on the way out.
const TO: [usize; 6] = [0, 3, 1, 4, 2, 5];

#[test]
fn one_wide_value_channel_is_found_and_evened_out() {
    let wide = |name: &str, c: usize| match name {
        "v" if c == 2 => 30.0,
        "r" if c == TO[2] => 20.0,
        _ => 1.0,
    };
    let (e, stats) = decided(&recipe("{ value: { strengths: [0.5, 1.0] }, query: { strengths: [] } }"), wide);
    let [values, queries] = &e[..] else { panic!("{e:?}") };
    assert_eq!((values.between, &values.divided[..], &values.multiplied[..]), (Between::ValuesProjection, "v", "y"));
    for (c, f) in values.factors.iter().enumerate() {
        assert!(if c == 2 { (4.0..=33.0).contains(f) } else { (0.9..1.1).contains(f) }, "{f} for channel {c}");
    }
    assert!(values.reason.contains("at the projection's output") && values.reason.contains("without"));
    // What codes are made for is that much narrower, at the layer and after the attention.
    assert!(stats["v"].range().1 <= 30.0 / 4.0);
    assert!(stats["r"].range().1 <= 20.0 / 4.0);
    assert_eq!(stats["o"], stats["r"]);
    // With no other way to choose from, queries and keys stay, and the plan says so.
    assert_eq!((queries.between, queries.factors.len()), (Between::QueriesKeys, 0));
    assert!(queries.reason.starts_with("no equalisation: "), "{}", queries.reason);
}

#[test]
fn a_wide_query_channel_moves_into_the_keys() {
    let wide = |name: &str, c: usize| match (name, c) {
        ("q", 1) => 12.0,
        ("k", 1) => 0.5,
        _ => 1.0,
    };
    let (e, stats) = decided(&recipe("{ query: { strengths: [0.5, 1.0] } }"), wide);
    let [queries] = &e[..] else { panic!("{e:?}") };
    assert_eq!((&queries.divided[..], &queries.multiplied[..]), ("q", "k"));
    assert!(queries.factors[1] > 2.0, "{:?}", queries.factors);
    assert!(stats["q"].range().1 < 6.0);
    let (lo, hi) = stats["k"].channel_range(1);
    assert!(hi > 0.9 && lo < -0.9, "the keys were multiplied: {lo}..{hi}");
}

#[test]
fn a_dead_channel_does_not_explode_the_layer() {
    let dead = |name: &str, c: usize| match name {
        "v" if c == 4 => 0.0,
        "r" if c == TO[4] => 0.0,
        "v" | "r" if c == 0 => 40.0,
        _ => 1.0,
    };
    let (e, _) = decided(&recipe("{ value: { strengths: [1.0] } }"), dead);
    assert!(!e[0].factors.is_empty());
    assert!(e[0].factors.iter().all(|f| *f >= 0.0999), "{:?}", e[0].factors);
}

#[test]
fn statistics_without_the_projections_input_are_refused() {
    let m = layout();
    let (sites, r) = (sites_of(&m), recipe(BOTH));
    let mut stats = stats_of(&m, &sites, &r, |_, _| 1.0);
    stats.shift_remove("r").expect("is watched");
    let e = decide(&m.graph, &sites, &stats, &r).unwrap_err().to_string();
    assert!(e.contains("`r`") && e.contains("fqvit-opt calibrate"), "{e}");
}

#[test]
fn a_recipe_that_does_not_ask_gets_nothing() {
    let (e, stats) = decided(&recipe("{}"), |_, _| 1.0);
    assert!(e.is_empty() && !stats.contains_key("r"));
}

proptest! {
    #[test]
    fn factors_of_full_strength_make_all_ranges_alike(widths in prop::collection::vec(0.5f32..8.0, 1..12)) {
        let rule = Strengths { strengths: vec![1.0], floor: 0.01 };
        let ranges: Vec<(f32, f32)> = widths.iter().map(|w| (-w, *w)).collect();
        let other: Vec<(f32, f32)> = widths.iter().rev().map(|w| (-w, *w)).collect();
        let even = |w: &mut dyn Iterator<Item = f32>| {
            let w: Vec<f32> = w.collect();
            w.iter().all(|x| (x / w[0] - 1.0).abs() < 1e-4)
        };
        let f = |way: Way, b| way.factors([&ranges, &other], b, &rule);
        let even_values = f(Way::First(1.0), Between::ValuesProjection);
        prop_assert!(even(&mut widths.iter().zip(&even_values).map(|(w, f)| w / f)));
        let keys = f(Way::Second(1.0), Between::QueriesKeys);
        prop_assert!(even(&mut widths.iter().rev().zip(&keys).map(|(w, f)| w * f)));
        // By halves, both sides come to the same ranges up to a factor for all.
        let both = f(Way::Both(1.0), Between::QueriesKeys);
        let q = widths.iter().zip(&both).map(|(w, f)| w / f);
        let k = widths.iter().rev().zip(&both).map(|(w, f)| w * f);
        prop_assert!(even(&mut q.zip(k).map(|(q, k)| q / k)));
    }
}
