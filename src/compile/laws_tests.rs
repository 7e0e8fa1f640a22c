//! The laws of the house on random graphs: import and export, patches, passes, and what is inferred on the way.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use bytes::Bytes;
use proptest::prelude::*;

use super::each::verify_each;
use super::{Journal, prepare};
use crate::infer;
use crate::ir::validate::{validate, validate_since};
use crate::ir::{AttrValue, Attrs, Model, NodeId, Origin, ValueId};
use crate::onnx;
use crate::pattern::RuleSet;
use crate::recipe::Prepare;
use crate::rewrite::{Patch, Ref};
use crate::runtime::Array;
use crate::text::{Elide, parse_model, print_model};

static RULES: LazyLock<RuleSet> = LazyLock::new(|| RuleSet::embedded().expect("shipped rules"));

/// What a graph is made of: each line reads values that earlier lines made, all of them float[batch,3,4].
const FORMS: [&str; 20] = [
    "O = Relu (A)",
    "O = Neg (A)",
    "O = Identity (A)",
    "O = Add (A, B)",
    "O = Sub (A, B)",
    "O = Mul (A, row)",
    "O = Add (row, A)",
    "O = Div (A, two)",
    "O = MatMul (A, w)",
    "O = Softmax <axis = -1> (A)",
    "O_t = Transpose <perm = [0, 2, 1]> (A)\nO_n = Tanh (O_t)\nO = Transpose <perm = [0, 2, 1]> (O_n)",
    "O_s = Shape (A)\nO = Reshape (A, O_s)",
    "O_f = Reshape (A, flat)\nO_r = Relu (O_f)\nO_s = Shape (A)\nO = Reshape (O_r, O_s)",
    "O_u = Unsqueeze (A, one)\nO = Squeeze (O_u, one)",
    "O_c = Concat <axis = 1> (A, B)\nO = Slice (O_c, zero, three, one)",
    "O_d = Cast <to = 11> (A)\nO = Cast <to = 1> (O_d)",
    "O_k = Constant <value = float[4] {1.0, 0.0, 1.0, 0.5}> ()\nO = Mul (O_k, A)",
    "O_t = Transpose <perm = [0, 2, 1]> (A)\nO_m = MatMul (B, O_t)\nO_z = Mul (O_m, half)\nO_p = Softmax <axis = -1> (O_z)\nO = MatMul (O_p, A)",
    "O_m = ReduceMean <axes = [-1]> (A)\nO_d = Sub (A, O_m)\nO_q = Pow (O_d, two)\nO_v = ReduceMean <axes = [-1]> (O_q)\nO_e = Add (O_v, small)\nO_r = Sqrt (O_e)\nO_n = Div (O_d, O_r)\nO_g = Mul (O_n, row)\nO = Add (O_g, row)",
    "O_d = Div (A, root)\nO_e = Erf (O_d)\nO_a = Add (O_e, unit)\nO_m = Mul (A, O_a)\nO = Mul (O_m, half)",
];

/// A model of these lines: which form, and what it reads.
fn model(lines: &[(usize, usize, usize)]) -> Model {
    let mut body = String::new();
    let name = |i: usize| if i == 0 { "x".to_owned() } else { format!("v{i}") };
    for (i, (form, a, b)) in lines.iter().enumerate() {
        // Words of one capital letter are places.
        let line = FORMS[form % FORMS.len()];
        let words = line.replace("(A", &format!("({}", name(a % (i + 1))));
        let words = words.replace(", A", &format!(", {}", name(a % (i + 1))));
        let words = words.replace("(B", &format!("({}", name(b % (i + 1))));
        let words = words.replace(", B", &format!(", {}", name(b % (i + 1))));
        body += &words.replace('O', &name(i + 1)).replace("C = ", "");
        body.push('\n');
    }
    let w: Vec<String> = (0..16).map(|i| format!("{:.2}", f64::from(i * 7 % 16) / 8.0 - 1.0)).collect();
    let (last, other) = (name(lines.len()), name(1 + lines[0].1 % lines.len()));
    let other = if other == last { String::new() } else { format!(", float[batch,3,4] {other}") };
    let text = format!(
        "<ir_version: 8, opset_import: [\"\" : 17]>
        g (float[batch,3,4] x) => (float[batch,3,4] {last}{other})
        <float[4,4] w = {{{}}}, float[4] row = {{0.5, -1.0, 2.0, 0.25}}, float two = {{2.0}}, float half = {{0.5}},
         float small = {{0.00001}}, float root = {{1.4142135}}, float unit = {{1.0}}, int64[2] flat = {{-1, 12}},
         int64[1] one = {{1}}, int64[1] zero = {{0}}, int64[1] three = {{3}}> {{\n{body}}}",
        w.join(", ")
    );
    parse_model(&text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

fn lines() -> impl Strategy<Value = Vec<(usize, usize, usize)>> {
    prop::collection::vec((0..FORMS.len(), any::<usize>(), any::<usize>()), 1..12)
}

fn full(m: &Model) -> String {
    print_model(m, Elide::Full)
}

/// What one walk over the whole model says of every value, next to what was kept and followed.
fn followed(m: &Model) -> Result<(), TestCaseError> {
    let (kept, whole) = (infer::shapes(m), infer::shapes_anew(m));
    for (v, value) in m.graph.values() {
        prop_assert_eq!(kept.ty(v), whole.ty(v), "{} in\n{}", value.name, full(m));
        let constant = |t: Option<&crate::ir::Tensor>| {
            t.map(|t| (t.dtype, t.dims.clone(), t.to_le_bytes().map(|b| b.into_owned())))
        };
        prop_assert_eq!(constant(kept.constant(v)), constant(whole.constant(v)), "{}", value.name);
    }
    Ok(())
}

/// A change at random: of what is there, or of what may not be there any more.
#[derive(Clone, Debug)]
enum Edit {
    Insert(usize),
    Succeed(usize, usize),
    Redirect(usize, usize),
    Reread(usize, usize, usize),
    Perm(usize),
    Erase(usize),
    Constant(usize),
}

fn edit() -> impl Strategy<Value = Vec<Edit>> {
    let n = any::<usize>;
    let one = prop_oneof![
        n().prop_map(Edit::Insert),
        (n(), n()).prop_map(|(a, b)| Edit::Succeed(a, b)),
        (n(), n()).prop_map(|(a, b)| Edit::Redirect(a, b)),
        (n(), n(), 0usize..3).prop_map(|(a, b, s)| Edit::Reread(a, b, s)),
        n().prop_map(Edit::Perm),
        n().prop_map(Edit::Erase),
        n().prop_map(Edit::Constant),
    ];
    prop::collection::vec(one, 1..4)
}

fn patch(m: &Model, edits: &[Edit]) -> Patch {
    let g = &m.graph;
    let values: Vec<ValueId> = g.values().map(|(v, _)| v).collect();
    let nodes: Vec<NodeId> = g.nodes().map(|(n, _)| n).collect();
    let (value, node) = (|i: &usize| values[i % values.len()], |i: &usize| nodes[i % nodes.len()]);
    let mut p = Patch::new("law").made_from(["somewhere".to_owned()]);
    for e in edits {
        match e {
            Edit::Insert(a) => {
                let new = p.node("Abs", "new", &[value(a).into()], Attrs::new());
                p.replace(value(a), new);
            }
            Edit::Succeed(a, b) => {
                let new = p.node("Neg", "new", &[value(b).into()], Attrs::new());
                p.succeed(value(a), new);
            }
            Edit::Redirect(a, b) => p.replace(value(a), value(b).into()),
            Edit::Reread(n, v, slot) => p.set_input(node(n), *slot, Some(value(v).into())),
            Edit::Perm(n) => p.set_attr(node(n), "perm", Some(AttrValue::Ints(vec![2, 1, 0].into()))),
            Edit::Erase(n) => p.erase(node(n)),
            Edit::Constant(a) => {
                let c: Ref = p.constant("c", crate::ir::Tensor::f32(&[4], &[1.0, 2.0, 3.0, 4.0]));
                let new = p.node("Add", "new", &[value(a).into(), c], Attrs::new());
                p.replace(value(a), new);
            }
        }
    }
    p
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_model_comes_back_from_its_file(lines in lines()) {
        let m = model(&lines);
        let bytes = onnx::encode(validate(&m).expect("a valid model"));
        let again = onnx::parse(Bytes::from(bytes.clone()), None, "m").expect("our own file").model;
        prop_assert_eq!(full(&again), full(&m));
        prop_assert_eq!(onnx::encode(validate(&again).expect("the same model")), bytes);
    }

    /// A refused patch leaves every byte; one that is taken leaves a valid graph, new nodes that tell where they come from, and
    /// nothing to be found out that a look at the whole would not have found.
    #[test]
    fn a_patch_is_taken_whole_or_not_at_all(lines in lines(), edits in prop::collection::vec(edit(), 1..6)) {
        let mut m = model(&lines);
        followed(&m)?;
        for edits in &edits {
            let (before, then) = (full(&m), m.graph.moment());
            let old: BTreeSet<NodeId> = m.graph.nodes().map(|(n, _)| n).collect();
            match patch(&m, edits).commit(&mut m) {
                Err(_) => prop_assert_eq!(full(&m), before),
                Ok(done) => {
                    // What an operator takes is not a patch's to know.
                    let structure = |e: crate::ir::Invalid| {
                        let (is, told) = (["nothing defines", "cycle", "does not know", "erased", "listed"], e.to_string());
                        is.iter().any(|w| told.contains(w)).then_some(told)
                    };
                    let (whole, since) = (validate(&m).map(|_| ()), validate_since(&m, then));
                    // Element types that untouched nodes alone tell show in the whole only.
                    prop_assert!(since.is_ok() || whole.is_err(), "{:?}", since);
                    let broken = whole.is_err();
                    prop_assert_eq!(whole.err().and_then(structure), None, "{:?}\n{}", edits, full(&m));
                    for n in done.nodes.iter().filter(|n| m.graph.try_node(**n).is_some()) {
                        let said = Origin::Made { by: "law".into(), from: vec!["somewhere".into()] };
                        prop_assert!(!old.contains(n) && m.graph.node(*n).origin == said);
                    }
                    if broken {
                        return Ok(());
                    }
                }
            }
            followed(&m)?;
        }
    }

    #[test]
    fn passes_keep_outputs_and_what_is_inferred(lines in lines()) {
        let m = model(&lines);
        let mut journal = Journal::keeping_models();
        let p = prepare(&m, &Prepare { opset: 20 }, &RULES, false, &mut journal)
            .map_err(|e| TestCaseError::fail(format!("{e}\n{}", full(&m))))?;
        let names = |m: &Model| m.graph.outputs().iter().map(|v| m.graph.name_of(*v).to_owned()).collect::<Vec<_>>();
        prop_assert_eq!(names(&p.model), names(&m));
        for step in journal.steps.iter().filter(|s| s.changes > 0) {
            let [_, after] = step.models.as_ref().expect("they are kept");
            prop_assert!(validate(after).is_ok(), "{}", step.pass);
            followed(after)?;
        }
        let x: Vec<f32> = (0..24u32).map(|i| (i.wrapping_mul(2654435761) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect();
        let inputs = [("x".to_owned(), Array::new(&[2, 3, 4], x).expect("24 elements"))];
        let moved = verify_each(&journal.steps, &inputs, 2).map_err(|e| TestCaseError::fail(format!("{e}\n{}", full(&m))))?;
        for step in moved {
            prop_assert!(step.kept, "{} moved {} by {:e}\n{}", step.pass, step.output, step.distance, full(&m));
        }
    }
}
