//! The language and the matcher on small programs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::driver::find_within;
use super::*;
use crate::ir::{AttrValue, Model, validate};
use crate::passes::{ApplyRules, Pass};
use crate::plan::apart::unfed;
use crate::text::{Elide, parse_model, print_graph};

fn model(opset: i64, graph: &str) -> Model {
    parse_model(&format!("<ir_version: 8, opset_import: [\"\" : {opset}]>\n{graph}")).unwrap()
}

/// A rule that only recognises, or also rewrites.
fn rule(matches: &str, conditions: &str, replace: &str) -> Rule {
    let indent = |t: &str| t.lines().map(|l| format!("    {}\n", l.trim())).collect::<String>();
    let mut text = format!("- id: t\n  summary: a test\n  match: |\n{}", indent(matches));
    if !conditions.is_empty() {
        text += &format!("  where: [{conditions}]\n");
    }
    text += &match replace {
        "" => "  stands_for: {what: t, roles: {}}\n".to_owned(),
        r => format!("  replace: |\n{}", indent(r)),
    };
    let mut set = RuleSet::default();
    set.add_text("t.yaml", &text).unwrap();
    set.get("t").unwrap().clone()
}

fn hits(m: &Model, r: &Rule) -> Hits {
    find(&Facts::new(m), r, &mut BTreeSet::new())
}

fn count(matches: &str, graph: &str) -> usize {
    hits(&model(17, graph), &rule(matches, "", "")).matches.len()
}

#[test]
fn a_name_used_twice_is_one_value() {
    let square = "y = Mul (x, x)";
    assert_eq!(count(square, "g (float[2] a, float[2] b) => (y) { y = Mul (a, a) }"), 1);
    assert_eq!(count(square, "g (float[2] a, float[2] b) => (y) { y = Mul (a, b) }"), 0);
    // Through Identity it is still the same value; and equal constants are.
    assert_eq!(count(square, "g (float[2] a) => (y) { b = Identity (a) y = Mul (a, b) }"), 1);
    let sum = "y = Add (Mul (x, $c), $c)";
    let two = |v: &str| {
        format!("g (float[2] a) => (y) <float c = {{3.0}}, float d = {{{v}}}> {{ m = Mul (a, c) y = Add (m, d) }}")
    };
    assert_eq!((count(sum, &two("3.0")), count(sum, &two("3.5"))), (1, 0));
}

#[test]
fn an_earlier_choice_is_taken_back_when_a_later_sibling_fails() {
    // The first order of the Add binds p to Exp(a); only the other order lets the Sub agree.
    let r = "s = Add~ (p, q)\ny = Mul (s, Sub (p, q))";
    for sub in ["Sub (u, v)", "Sub (v, u)"] {
        let g = format!("g (float[2] a) => (y) {{ u = Exp (a) v = Log (a) s = Add (u, v) d = {sub} y = Mul (s, d) }}");
        assert_eq!(count(r, &g), 1, "{sub}");
    }
    // The same through alternatives: the first one fits on its own but leaves x wrong for the second input.
    let r = "t = Neg (x) | Neg (Exp (x))\ny = Add (t, Log (x))";
    assert_eq!(count(r, "g (float[2] a) => (y) { e = Exp (a) n = Neg (e) l = Log (a) y = Add (n, l) }"), 1);
    assert_eq!(count(r, "g (float[2] a) => (y) { n = Neg (a) l = Log (a) y = Add (n, l) }"), 1);
}

#[test]
fn a_precondition_makes_the_search_try_the_other_way() {
    let m = model(17, "g (float[2] a) => (y) <float[2] v = {1.0, 2.0}, float s = {3.0}> { y = Add (v, s) }");
    let h = hits(&m, &rule("y = Add~ ($c, $v)", "scalar: c", ""));
    assert_eq!(h.matches.len(), 1);
    assert_eq!(h.matches[0].value("c"), m.graph.find("s"));
    let h = hits(&m, &rule("y = Add~ ($c, $v)", "scalar: [c, v]", ""));
    assert!(h.matches.is_empty() && h.refused.len() == 1);
}

#[test]
fn bindings_of_a_failed_alternative_are_gone() {
    let r = rule("y = Add (Mul (x, $c), Exp (x)) | Add (z, w)", "", "");
    let m = model(17, "g (float[2] a) => (y) <float k = {2.0}> { p = Mul (a, k) q = Log (a) y = Add (p, q) }");
    let h = hits(&m, &r);
    let names: Vec<&str> = h.matches[0].bindings.keys().map(String::as_str).collect();
    assert_eq!(names, ["z", "w", "y"]);
}

#[test]
fn numbers_are_compared_relatively_and_in_the_precision_of_their_type() {
    let g = |t: &str, v: &str| format!("g ({t}[2] x) => (y) <{t} c = {{{v}}}> {{ y = Mul (x, c) }}");
    let half = "y = Mul (x, 0.70710678)";
    assert_eq!(count(half, &g("float", "0.70710677")), 1);
    assert_eq!(count(half, &g("float", "0.7072")), 0);
    assert_eq!(count(half, &g("float16", "0.7070312")), 1);
    assert_eq!(count("y = Mul (x, 0.000001)", &g("float", "0.0")), 0);
    assert_eq!(count("y = Mul (x, 0.0)", &g("float", "0.0")), 1);
    assert_eq!(count("y = Mul (x, 1.0)", &g("float[1]", "1.0").replace("float[1][2]", "float[2]")), 1);
}

#[test]
fn attributes_have_defaults_and_constant_input_forms() {
    let r = rule("y = ReduceMean <axes = [-1], keepdims = 1> (x)", "", "");
    let n = |opset, g: &str| hits(&model(opset, g), &r).matches.len();
    assert_eq!(n(17, "g (float[2,3] x) => (y) { y = ReduceMean <axes = [-1]> (x) }"), 1);
    assert_eq!(n(17, "g (float[2,3] x) => (y) { y = ReduceMean <axes = [1], keepdims = 1> (x) }"), 1);
    assert_eq!(n(17, "g (float[2,3] x) => (y) { y = ReduceMean <axes = [0]> (x) }"), 0);
    assert_eq!(n(17, "g (float[2,3] x) => (y) { y = ReduceMean <axes = [-1], keepdims = 0> (x) }"), 0);
    assert_eq!(n(18, "g (float[2,3] x) => (y) <int64[1] a = {-1}> { y = ReduceMean (x, a) }"), 1);
    assert_eq!(n(18, "g (float[2,3] x, int64[1] a) => (y) { y = ReduceMean (x, a) }"), 0);
    // Without a rank nobody knows whether axis 1 is the last.
    assert_eq!(n(17, "g (float x) => (y) { z = com.acme.F (x) y = ReduceMean <axes = [1]> (z) }"), 0);
    let soft = rule("y = Softmax <axis = -1> (x)", "", "");
    let s = |opset, rank: &str| hits(&model(opset, &format!("g (float{rank} x) => (y) {{ y = Softmax (x) }}")), &soft);
    assert_eq!(
        (s(13, "[2,3,4]").matches.len(), s(12, "[2,3,4]").matches.len(), s(12, "[2,3]").matches.len()),
        (1, 0, 1)
    );
}

#[test]
fn attributes_can_be_bound_and_handed_on() {
    let r = rule("y = Transpose <perm = $p> (Exp (x))", "", "y = Exp (Transpose <perm = $p> (x))");
    let mut m = model(17, "g (float[2,3] a) => (y) { e = Exp (a) y = Transpose <perm = [1, 0]> (e) }");
    let h = hits(&m, &r);
    assert_eq!(h.matches[0].bindings.get("p"), Some(&Bound::Attr(AttrValue::Ints([1i64, 0][..].into()))));
    let patch = r.patch(&Facts::new(&m), &h.matches[0]).unwrap().unwrap();
    patch.commit(&mut m).unwrap();
    crate::rewrite::sweep(&mut m);
    let g = print_graph(&m.graph, Elide::Full);
    assert!(g.contains("Transpose <perm = [1, 0]> (a)") && g.contains("Exp (y_transpose)"), "{g}");
}

#[test]
fn several_outputs_optional_inputs_and_the_rest() {
    let r = "a, _, c = Split <axis = 0> (x, ...)\ny = Add (a, c)";
    let g = |sum: &str| {
        format!("g (float[3] v) => (y) <int64[3] s = {{1, 1, 1}}> {{ p, q, r = Split (v, s) y = Add ({sum}) }}")
    };
    assert_eq!((count(r, &g("p, r")), count(r, &g("p, q")), count(r, &g("r, p"))), (1, 0, 0));
    let r = rule("y = LayerNormalization (x, g, b?)", "", "");
    for (inputs, bound) in [("x, g", false), ("x, g, b", true)] {
        let graph = format!(
            "g (float[2] x) => (y) <float[2] g = {{1.0, 1.0}}, float[2] b = {{0.0, 0.0}}> {{ y = LayerNormalization ({inputs}) }}"
        );
        let h = hits(&model(17, &graph), &r);
        assert_eq!((h.matches.len(), h.matches[0].value("b").is_some()), (1, bound));
    }
    assert_eq!(count("y = [Add, Sub] (_, b)", "g (float[2] v) => (y) { y = Sub (v, v) }"), 1);
    assert_eq!(count("y = Neg (*(x, ...))", "g (float[2] v) => (y) { a = Add (v, v) y = Neg (a) }"), 1);
    assert_eq!(count("y = Exp (Cast? (Neg (x)))", "g (float[2] v) => (y) { a = Neg (v) y = Exp (a) }"), 1);
    assert_eq!(
        count("y = Exp (Neg (x))", "g (float[2] v) => (y) { a = Neg (v) c = Cast <to = 1> (a) y = Exp (c) }"),
        0
    );
    // A computed value is no constant, whatever its name; one computed from constants alone is.
    let c = "y = Mul (x, $c)";
    assert_eq!(count(c, "g (float[2] v) => (y) { k = Exp (v) y = Mul (v, k) }"), 0);
    assert_eq!(count(c, "g (float[2] v) => (y) { k = Constant <value_float = 2.0> () y = Mul (v, k) }"), 1);
    assert_eq!(count(c, "g (float[2] v, float k = {2.0}) => (y) { y = Mul (v, k) }"), 0);
}

#[test]
fn the_longest_form_wins_and_its_nodes_are_taken_once() {
    let r = rule("n = Exp (x)\ny = Add~ (Mul~ (n, $g), $b) | Mul~ (n, $g)", "", "");
    let m = model(17, "g (float[2] a) => (y) <float k = {2.0}> { e = Exp (a) m = Mul (e, k) y = Add (k, m) }");
    let h = hits(&m, &r);
    assert_eq!((h.matches.len(), h.matches[0].nodes.len(), h.refused.len()), (1, 3, 0));
    assert_eq!(m.graph.node(h.matches[0].root).op.name, "Add");
}

#[test]
fn inner_values_are_private_unless_the_rule_shares_them() {
    let text = "e = Exp (x)\ny = Neg (e)";
    let m = model(17, "g (float[2] a) => (y, z) { e = Exp (a) y = Neg (e) z = Log (e) }");
    let h = hits(&m, &rule(text, "", ""));
    assert!(h.matches.is_empty());
    assert!(h.refused[0].1.to_string().contains("`e` is also read by Log"), "{}", h.refused[0].1);
    assert_eq!(hits(&m, &rule(text, "shared: e", "")).matches.len(), 1);
    let out = model(17, "g (float[2] a) => (y, e) { e = Exp (a) y = Neg (e) }");
    assert!(hits(&out, &rule(text, "", "")).refused[0].1.to_string().contains("output of the model"));
    // Reading a shape is no reading of numbers; it stops a rewrite all the same.
    let shape = model(17, "g (float[2] a) => (y, s) { e = Exp (a) y = Neg (e) s = Shape (e) }");
    assert_eq!(hits(&shape, &rule(text, "", "")).matches.len(), 1);
    assert_eq!(hits(&shape, &rule(text, "", "y = Log (x)")).refused.len(), 1);
}

#[test]
fn a_search_stops_at_its_budget() {
    let depth = 12;
    let mut text = "a0 = Add~ (x, x2)\n".to_owned();
    let mut graph = "g (float[2] v) => (y) { n0 = Add (v, v)".to_owned();
    for i in 1..depth {
        text += &format!("a{i} = Add~ (a{}, b{i})\n", i - 1);
        graph += &format!(" n{i} = Add (n{0}, n{0})", i - 1);
    }
    text += &format!("y = Neg (Sub (a{}, Exp (x)))", depth - 1);
    graph += &format!(" l = Log (v) s = Sub (n{}, l) y = Neg (s) }}", depth - 1);
    let m = model(17, &graph);
    let h = find_within(&Facts::new(&m), &rule(&text, "", ""), &mut BTreeSet::new(), 500);
    assert_eq!((h.matches.len(), h.too_long.len()), (0, 1));
}

#[test]
fn predicates_accept_and_refuse() {
    let m = model(
        17,
        "g (float[2,4] x, float[n,4] z) => (y)
         <float[4] v = {1.0, 2.0, 3.0, 4.0}, float[1] one = {-1.0}, float[3] zero = {0.0, 0.0, 0.0}, bool[2] t = {1, 1},
          float[2] low = {-65504.0, -60.0}, float root = {2.0}>
         { a = Add (x, v) y = com.acme.F (a, z, one, zero, t, v, low, root) }",
    );
    let text = "y = com.acme.F (a, z, $one, $zero, $t, $v, $low, $root)";
    for (condition, holds) in [
        ("scalar: one", true),
        ("scalar: [one, v]", false),
        ("vector: v", true),
        ("vector: one", false),
        ("positive: v", true),
        ("positive: one", false),
        ("all_true: t", true),
        ("all_true: zero", false),
        ("all_zero: zero", true),
        ("all_zero: v", false),
        ("binary: zero", true),
        ("binary: v", false),
        ("hides: low", true),
        ("hides: [low, one]", false),
        ("at_most: {one: -0.5}", true),
        ("at_most: {v: 3}", false),
        ("approx: {one: -1.00001}", true),
        ("approx: {one: -1.01}", false),
        ("approx: {one: -1.01, within: 0.1}", true),
        ("rank: {a: 2}", true),
        ("rank: {a: 3}", false),
        ("same_shape: [a, a]", true),
        ("same_shape: [a, z]", false),
        ("same_rank: [a, z]", true),
        ("same_rank: [a, v]", false),
        ("same_last_size: [a, z, v]", true),
        ("same_last_size: [a, zero]", false),
        ("computed: [a, y]", true),
        ("computed: v", false),
        ("size_power: {root: 0.5, of: a}", true),
        ("size_power: {root: 1, of: a}", false),
        ("size_power: {root: 0.5, of: y}", false),
        ("one_constant: [a, v, y]", true),
        ("one_constant: [one, v, y]", false),
        ("dtype: {a: float, t: bool}", true),
        ("dtype: {t: float}", false),
        ("dtype: {y: float}", false),
        ("opset: {min: 13}", true),
        ("opset: {min: 18}", false),
        ("opset: {max: 16}", false),
    ] {
        let h = hits(&m, &rule(text, condition, ""));
        assert_eq!((h.matches.len(), h.refused.len()), if holds { (1, 0) } else { (0, 1) }, "{condition}");
    }
    let tested = ["last_axis", "shared", "weighs"];
    for name in PREDICATES {
        let here = include_str!("tests.rs").contains(&format!("(\"{name}: "));
        assert!(here || tested.contains(name), "no test for the predicate `{name}`");
    }
    let weighs = |rest: &str| {
        let m = model(
            17,
            &format!(
                "g (float[2,3] x, float[3,2] v) => (y) <float[3,2] c = {{1, 2, 3, 4, 5, 6}}> {{ w = Softmax (x) {rest} }}"
            ),
        );
        hits(&m, &rule("w = Softmax (x)", "weighs: w", "")).matches.len()
    };
    assert_eq!(weighs("y = MatMul (w, v)"), 1);
    assert_eq!(weighs("r = Relu (w) n = Add (r, r) y = MatMul (n, v)"), 1);
    assert_eq!(weighs("y = MatMul (w, c)"), 0);
    assert_eq!(weighs("n = Gelu (w) y = MatMul (n, v)"), 0);
    let soft = |graph: &str| hits(&model(13, graph), &rule("y = Softmax (x)", "last_axis: y", ""));
    assert_eq!(soft("g (float[2,3] x) => (y) { y = Softmax (x) }").matches.len(), 1);
    assert_eq!(soft("g (float[2,3] x) => (y) { y = Softmax <axis = 1> (x) }").matches.len(), 1);
    assert_eq!(soft("g (float[2,3] x) => (y) { y = Softmax <axis = 0> (x) }").refused.len(), 1);
    let unknown = soft("g (float x) => (y) { z = com.acme.F (x) y = Softmax <axis = 1> (z) }");
    assert!(unknown.refused[0].1.to_string().contains("rank is unknown"));
}

#[test]
fn the_nearest_miss_names_the_line_the_node_and_the_reason() {
    let set = RuleSet::embedded().unwrap();
    let m = model(
        20,
        "g (float[2] a) => (y) <float k = {1.702}>
         { s = Mul (a, k) t = Sigmoid (s) y = Mul (a, t) }",
    );
    let e = explain(&m, set.get("gelu-erf").unwrap());
    let near = e.near.as_ref().unwrap();
    assert!(e.matched.is_empty(), "{e}");
    assert_eq!((near.fragment.as_deref(), near.line), (Some("half"), 3), "{e}");
    assert_eq!(near.reason, "constant `k` is 1.702, not 0.5", "{e}");
    let m = model(
        20,
        "g (float[2] a) => (y) <float r = {1.5}, float one = {1.0}, float half = {0.5}>
         { d = Div (a, r) e = Erf (d) p = Add (e, one) q = Mul (a, p) y = Mul (q, half) }",
    );
    let e = explain(&m, set.get("gelu-erf").unwrap());
    let near = e.near.as_ref().unwrap();
    assert_eq!((near.matched, near.line), (5, 1), "{e}");
    assert!(near.reason.contains("`r` is 1.5, not 1.41421356"), "{e}");
    assert!(e.to_string().contains("Div (a, r)") || e.to_string().contains("in line 1"), "{e}");
}

fn load_fault(yaml: &str) -> String {
    RuleSet::default().add_text("r.yaml", yaml).unwrap_err().to_string()
}

#[test]
fn wrong_rules_are_refused_with_their_place() {
    let with = |rest: &str| {
        format!("# a comment\n- id: a\n  summary: s\n  match: |\n    e = Exp (x)\n    y = Neg (e)\n{rest}")
    };
    let ok = "  stands_for: {what: t, roles: {x: x}}\n";
    RuleSet::default().add_text("r.yaml", &with(ok)).unwrap();
    assert_eq!(
        load_fault(&with(ok).replace("Neg (e)", "Neg (e, e)")),
        "r.yaml:6:9: rule `a`: Neg takes at most 1 input(s), here are 2"
    );
    assert!(
        load_fault(&with(ok).replace("Exp (x)", "Expp (x)"))
            .starts_with("r.yaml:5:9: rule `a`: the standard has no operator `Expp`; did you mean Exp")
    );
    assert!(
        load_fault(&with("  replace: |\n    y = Exp (q)\n")).starts_with("r.yaml:8:14: rule `a`: `q` is neither bound")
    );
    assert!(load_fault(&with("  replace: |\n    z = Exp (x)\n")).contains("does not make `y`"));
    assert!(load_fault(&with("  replace: |\n    x = Exp (y)\n    y = x\n")).contains("outside"));
    assert!(load_fault(&with("  replace: |\n    y = Exp (x) | Neg (x)\n")).contains("one operator"));
    assert!(load_fault(&with("  replace: |\n    y = Neg~ (x)\n")).contains("without `~`"));
    assert!(load_fault(&with("  replace: |\n    y = LeakyRelu <alpha = $x> (x)\n")).contains("no constant"));
    assert!(load_fault(&with("  replace: |\n    y = Add (x, x | Ones (x))\n")).contains("not every match binds"));
    assert!(load_fault(&with("  replace: |\n    y = Add (x, Ones (x, x))\n")).contains("`Ones (x)`"));
    assert!(load_fault(&with("")).contains("needs `replace`"));
    assert!(load_fault(&with("  where: [ scaler: x ]\n")).contains("no predicate `scaler`; there are scalar"));
    assert!(load_fault(&with("  where: [ scalar: q ]\n")).contains("`q`, which the match does not bind"));
    assert!(load_fault(&with("  where: [ rank: x ]\n")).contains("{name: value}"));
    assert!(load_fault(&with("  when: x\n")).contains("no part of a rule"));
    assert!(load_fault(&with("  stands_for: {what: t, roles: {x: nobody}}\n")).contains("`nobody`"));
    assert!(load_fault("- id: [").starts_with("r.yaml:"));
    assert!(load_fault("id: a").contains("a list"));
    assert!(load_fault(&format!("{}{}", with(ok), with(ok))).contains("twice"));
    let maybe = with("  replace: |\n    y = Add (x, b)\n").replace("Neg (e)", "Neg (e) | Add (e, $b)");
    assert!(load_fault(&maybe).contains("write `b?`"));
}

#[test]
fn a_fragment_brings_its_lines_conditions_and_roles() {
    let text = "- fragment: scaled
  match: |
    s = Mul~ (x, $c)
  where: [ positive: c ]
  roles: {by: c}
- fragment: turned
  match: |
    use scaled
    t = Neg (s)
- id: a
  summary: s
  match: |
    use turned
    y = Exp (t)
  stands_for: {what: t, roles: {x: x}}
- id: b
  summary: s
  match: |
    use scaled
    y = Log (s)
  stands_for: {what: t}
";
    let mut set = RuleSet::default();
    set.add_text("r.yaml", text).unwrap();
    let (a, b) = (set.get("a").unwrap(), set.get("b").unwrap());
    assert_eq!(a.match_text(), ["s = Mul~ (x, $c)", "t = Neg (s)", "y = Exp (t)"]);
    let roles = |r: &Rule| r.stands_for.as_ref().unwrap().roles.keys().cloned().collect::<Vec<_>>();
    assert_eq!((roles(a), roles(b)), (vec!["by".to_owned(), "x".into()], vec!["by".to_owned()]));
    let g = |c: &str| format!("g (float[2] a) => (y) <float c = {{{c}}}> {{ s = Mul (c, a) t = Neg (s) y = Exp (t) }}");
    let found = |c: &str| hits(&model(17, &g(c)), a).matches.len();
    assert_eq!((found("2.0"), found("-2.0")), (1, 0));

    // A fault is told where it was written.
    assert!(load_fault(&text.replace("Neg (s)", "Negg (s)")).starts_with("r.yaml:9:9: rule `a`: "));
    assert!(load_fault(&text.replace("Log (s)", "Logg (s)")).starts_with("r.yaml:20:9: rule `b`: "));
    let fault = load_fault(&text.replace("use scaled\n    t", "use scalde\n    t"));
    assert!(fault.starts_with("r.yaml:8:5: fragment `turned`: `use scalde`: there is no such fragment"), "{fault}");
    assert!(fault.ends_with("there are scaled, turned"), "{fault}");
    assert!(load_fault(&text.replace("y = Exp (t)", "use scaled\n    y = Exp (t)")).contains("bind `s` twice"));
    let fault = load_fault(&text.replace("fragment: turned", "fragment: scaled"));
    assert!(fault.starts_with("r.yaml:6:1: fragment `scaled`: it is defined differently at r.yaml:1;"), "{fault}");
    assert!(load_fault(&text.replace("roles: {by: c}", "summary: s")).contains("no part of a fragment"));
    assert!(load_fault(&text.replace("{by: c}", "{by: q}")).contains("`q`, which the match does not bind"));
}

#[test]
fn a_fragment_serves_twice_under_other_names() {
    let text = "- id: a
  summary: s
  match: |
    use by-constant (c = first, y = p)
    use by-constant (x = p, over = 1)
  stands_for: {what: t}
- fragment: by-constant
  match: |
    s = Softmax <axis = over> (x)
    use factor
  roles: {in: x}
- fragment: factor
  match: y = Mul~ (s, $c)
  where: [ positive: c, at_most: {c: 3}, dtype: {c: float}, size_power: {c: 1, of: s} ]
";
    let doubled = text.replace("(c = first, y = p)", "(c = first, y = p, s = q, over = -1)");
    let mut set = RuleSet::default();
    set.add_text("r.yaml", &doubled).unwrap();
    let lines =
        ["q = Softmax <axis = -1> (x)", "p = Mul~ (q, $first)", "s = Softmax <axis = 1> (p)", "y = Mul~ (s, $c)"];
    let a = set.get("a").unwrap();
    assert_eq!(a.match_text(), lines);
    let roles = a.stands_for.as_ref().unwrap();
    assert_eq!(roles.roles.get("in").map(String::as_str), Some("p"));
    let g = |c: &str, d: &str| {
        let g = "g (float[2,2] a) => (y) <float c = {C}, float d = {D}> { q = Softmax (a) p = Mul (c, q) s = Softmax (p) y = Mul (s, d) }";
        model(17, &g.replace('C', c).replace('D', d))
    };
    assert_eq!(hits(&g("2", "2"), a).matches.len(), 1);
    for (c, d) in [("-2", "2"), ("2", "-2"), ("4", "2"), ("2", "1.5")] {
        assert_eq!(hits(&g(c, d), a).matches.len(), 0, "{c} {d}");
    }
    // What `explain` tells is the fragment's line, with the names it has here.
    let e =
        explain(&model(17, "g (float[2,2] a) => (y) <float d = {2}> { s = Softmax <axis = 0> (a) y = Mul (s, d) }"), a);
    let near = e.near.as_ref().unwrap();
    assert_eq!(
        (near.fragment.as_deref(), near.line, near.line_text.as_str()),
        (Some("by-constant"), 1, lines[2]),
        "{e}"
    );
    assert!(e.to_string().contains("in line 1 of fragment `by-constant`"), "{e}");

    assert!(load_fault(text).starts_with("r.yaml:5:5: rule `a`: `use by-constant`: fragments would bind `s` twice"));
    let fault = load_fault(&doubled.replace("over = 1)", "axes = 1)"));
    assert!(fault.contains("r.yaml:5:5: rule `a`: `use by-constant`: the fragment has no name `axes`"), "{fault}");
    // The place is that of the file, although names here are longer.
    let longer = doubled.replace("s = Softmax <axis = over> (x)", "s = Add (x, Softmaxx <axis = over> (x))");
    let fault = load_fault(&longer.replace("(x = p", "(x = longer"));
    assert!(fault.starts_with("r.yaml:9:17: rule `a`: "), "{fault}");
}

#[test]
fn files_share_their_fragments() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let halved = "- fragment: halved\n  match: |\n    h = Mul~ (x, 0.5)\n";
    write("b.yaml", halved);
    write(
        "a.yaml",
        "- id: own\n  summary: s\n  match: |\n    use halved\n    use scaled (s0 = h)\n    y = Exp (s1)\n  stands_for: {what: t}\n",
    );
    let mut set = RuleSet::embedded().unwrap();
    set.load_dir(dir.path()).unwrap();
    assert_eq!(set.get("own").unwrap().match_text()[0], "h = Mul~ (x, 0.5)");
    // The same once more is no other.
    write("c.yaml", halved);
    RuleSet::embedded().unwrap().load_dir(dir.path()).unwrap();

    let fault = |c: &str| {
        write("c.yaml", c);
        RuleSet::embedded().unwrap().load_dir(dir.path()).unwrap_err().to_string()
    };
    let other = fault(&format!("# mine\n{}", halved.replace("0.5", "0.25")));
    assert!(
        other.contains("c.yaml:2:1: fragment `halved`: it is defined differently at ") && other.contains("b.yaml:1;"),
        "{other}"
    );
    let shipped = fault("- fragment: scaled\n  match: |\n    s1 = Mul (s0, 2.0)\n");
    assert!(
        shipped.contains("c.yaml:1:1: fragment `scaled`: it is defined differently at rules/attention.yaml:"),
        "{shipped}"
    );
    let circle = fault("- fragment: p\n  match: |\n    use q\n- fragment: q\n  match: |\n    a = Exp (x)\n    use p\n");
    assert!(circle.contains("c.yaml:7:5: fragment `q`: `use p`: the fragment uses itself: p -> q -> p"), "{circle}");
    // A fault is told in the file of the fragment, whichever file uses it.
    let fault = fault(
        "- fragment: wrong\n  match: |\n    h = Expp (x)\n- {id: t, summary: s, match: \"use wrong\\ny = Neg (h)\", stands_for: {what: t}}\n",
    );
    assert!(fault.contains("c.yaml:3:9: rule `t`: the standard has no operator `Expp`"), "{fault}");
    // However often fragments double, a fault comes at once.
    let mut deep = "- fragment: f0\n  where: [scalar: x]\n".to_owned();
    for i in 1..31 {
        let j = i - 1;
        deep += &format!("- fragment: f{i}\n  match: |\n    use f{j}\n    use f{j}\n");
    }
    assert!(load_fault(&deep).contains("more than 500 lines and conditions"));
}

#[test]
fn a_folder_adds_and_overrides() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write(
        "b.yml",
        "- {id: gelu, summary: mine, match: 'y = Relu (x)', stands_for: {what: gelu, roles: {x: x, y: y}}}\n",
    );
    write("a.yaml", "- {id: extra, summary: new, match: 'y = Relu (x)', replace: 'y = Abs (x)'}\n");
    write("notes.txt", "no rule");
    let mut set = RuleSet::embedded().unwrap();
    let before = set.len();
    set.load_dir(dir.path()).unwrap();
    assert_eq!((set.len(), set.get("gelu").unwrap().summary.as_str()), (before + 1, "mine"));
    assert!(set.get("extra").unwrap().rewrites());
    assert!(set.get("nothing").unwrap_err().to_string().contains("layernorm-decomposed"));
    write("c.yaml", "- {id: bad, summary: s, match: 'y = Sofmax (x)', stands_for: {what: t, roles: {}}}\n");
    assert!(set.load_dir(dir.path()).unwrap_err().to_string().contains("c.yaml"));
    assert!(set.load_dir(&dir.path().join("missing")).is_err());
}

/// A fixture file: programs with what the rule must do on them.
fn fixtures(text: &str) -> Vec<(String, String)> {
    let parts = text.split("### ").skip(1);
    parts.filter_map(|p| p.split_once('\n')).map(|(head, body)| (head.trim().to_owned(), body.to_owned())).collect()
}

/// Every rule has programs on which it fires and programs on which it must not.
#[test]
fn every_rule_holds_to_its_fixtures() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/rules");
    let set = RuleSet::embedded().unwrap();
    assert!(set.len() >= 8);
    for r in set.iter() {
        let path = dir.join(format!("{}.txt", r.id));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
        for (i, (head, program)) in fixtures(&text).into_iter().enumerate() {
            let here = format!("{} program {}", r.id, i + 1);
            let mut m = parse_model(&program).unwrap_or_else(|e| panic!("{here}: {e}"));
            validate::validate(&m).unwrap_or_else(|e| panic!("{here}: {e}"));
            let e = explain(&m, r);
            if let Some(n) = head.strip_prefix("fires ") {
                *seen.entry("fires").or_default() += 1;
                assert_eq!(e.matched.len(), n.parse::<usize>().unwrap(), "{here}\n{e}");
                if r.rewrites() {
                    let only = set.filtered(|x| x.id == r.id);
                    // What is made of constants alone is computed before the model runs.
                    let count = |m: &Model| m.graph.node_count() - unfed(&m.graph).len();
                    let before = count(&m);
                    assert_eq!(ApplyRules::new(&only).run_on(&mut m).unwrap().changes, e.matched.len(), "{here}");
                    assert!(count(&m) < before, "{here}: a rewrite to something worse");
                    validate::validate(&m).unwrap_or_else(|e| panic!("{here}: {e}"));
                }
            } else if let Some(reason) = head.strip_prefix("quiet: ") {
                *seen.entry("quiet").or_default() += 1;
                assert!(e.matched.is_empty(), "{here}\n{e}");
                assert!(e.to_string().contains(reason), "{here}: expected `{reason}` in\n{e}");
            } else {
                panic!("{here}: `### {head}` is neither `fires N` nor `quiet: reason`");
            }
        }
        assert_eq!(seen.len(), 2, "{}: one program where it fires and one where it must not", r.id);
    }
}

/// The worked example of `docs/rules.md` does what the page says.
#[test]
fn the_documentation_tells_the_truth() {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/rules.md")).unwrap();
    let block = |mark: &str| {
        let start = page.find(&format!("```{mark}\n")).unwrap_or_else(|| panic!("no block `{mark}`")) + mark.len() + 4;
        page[start..start + page[start..].find("```").unwrap()].to_owned()
    };
    let mut fragments = RuleSet::embedded().unwrap();
    fragments.add_text("docs/rules.md", &block("yaml example-fragment")).unwrap();
    let twice = fragments.get("softmax-scaled-twice").unwrap();
    assert_eq!(twice.match_text()[2], "y = Mul~ (w, $gain) | Div (w, $gain) | w");
    let mut set = RuleSet::default();
    set.add_text("docs/rules.md", &block("yaml example-rule")).unwrap();
    let mut m = parse_model(&block("text example-before")).unwrap();
    ApplyRules::new(&set).run_on(&mut m).unwrap();
    assert_eq!(print_graph(&m.graph, Elide::Full), block("text example-after"));
    let miss = parse_model(&block("text example-miss")).unwrap();
    let told = explain(&miss, set.iter().next().unwrap()).to_string();
    assert_eq!(told, block("text example-explained"));
    for name in PREDICATES {
        assert!(page.contains(&format!("`{name}`")), "docs/rules.md does not mention `{name}`");
    }
}

/// A match that reaches through a Cast binds values of two types, which no operator takes together.
#[test]
fn operands_of_two_types_are_left_as_they_are() {
    let mut set = RuleSet::default();
    let text = "- id: t\n  summary: a test\n  match: y = Mul~ (Cast? (x), $gain)\n  replace: y = Div (x, gain)\n";
    set.add_text("t.yaml", text).unwrap();
    for (from, fires) in [("double", 0), ("float", 1)] {
        let mut m = model(
            17,
            &format!(
                "g ({from}[2,4] x) => (float[2,4] y) <float[4] gain = {{1, 2, 3, 4}}> {{ h = Cast <to = 1> (x) y = Mul (h, gain) }}"
            ),
        );
        let done = ApplyRules::new(&set).run_on(&mut m);
        let changes = done.as_ref().map_or(usize::MAX, |o| o.changes);
        assert!(fires == 0 && changes == 0 || fires == 1 && changes != 0, "{from}: {done:?}");
        validate::validate(&m).unwrap();
    }
}
