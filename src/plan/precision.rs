//! Parts of a model at other precisions than the recipe's.
//!
//! A plan is data, and so is one whose parts are of different precisions: decisions of one plan are taken over, replaced by
//! narrower or wider ones, or left out. Folds and equalisations stay what they are, so that every part still fits to every
//! other.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::parts::Part;
use super::sites::{Sites, trace_back};
use super::{Activation, Layer, QuantPlan, Readers, Role};
use crate::ir::Graph;
use crate::quant::{Code, QParams};

/// How precise a part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Precision {
    /// Weights in 4 bits, values as the recipe has them.
    #[serde(rename = "4-bit")]
    Narrow,
    /// As the recipe has it.
    #[serde(rename = "recipe")]
    Recipe,
    /// Values in 16 bits wherever no product reads them; weights as the recipe has them.
    #[serde(rename = "16-bit")]
    Wide,
    #[serde(rename = "float")]
    Float,
}

impl Precision {
    /// The least one first.
    pub const ALL: [Precision; 4] = [Precision::Narrow, Precision::Recipe, Precision::Wide, Precision::Float];

    /// The one of this name.
    pub fn named(name: &str) -> Option<Precision> {
        Precision::ALL.into_iter().find(|p| p.name() == name)
    }

    /// What reports and messages call it.
    pub fn name(self) -> &'static str {
        match self {
            Precision::Narrow => "4-bit",
            Precision::Recipe => "recipe",
            Precision::Wide => "16-bit",
            Precision::Float => "float",
        }
    }
}

/// What a part has, for readers: what it is follows from the other lists of the plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chosen {
    pub part: String,
    pub precision: Precision,
    /// Bits of its weights, such as `4`, `8`, `4 and 8` or `float`; `-` if it has none.
    pub weights: String,
    /// Bits of its values.
    pub values: String,
    pub reason: String,
}

impl QuantPlan {
    /// The plan with parts at other precisions. `narrow` has the layers' plans for [`Precision::Narrow`].
    pub fn with_parts_at(&self, g: &Graph, sites: &Sites, narrow: &[Layer], parts: &[(&Part, Precision)]) -> QuantPlan {
        let at = |p: Precision| Part::union(parts.iter().filter(|(_, q)| *q == p).map(|(part, _)| *part));
        let mut plan = self.clone();
        let few = at(Precision::Narrow).layers;
        for l in plan.layers.iter_mut().filter(|l| few.contains(&l.output)) {
            narrow.iter().find(|n| n.output == l.output).into_iter().for_each(|n| l.clone_from(n));
        }
        let wide = at(Precision::Wide).activations;
        if !wide.is_empty() {
            let split = |a: Activation| if wide.contains(&a.value) { self.widened(g, sites, a) } else { vec![a] };
            plan.activations = plan.activations.into_iter().flat_map(split).collect();
        }
        let left = at(Precision::Float);
        if left.is_empty() { plan } else { plan.without(g, sites, &left) }
    }

    /// A decision with codes of 16 bits for the readers that take them: all but products, whose kernels are of 8 bits, and
    /// GELU, which is a table of 256 values.
    fn widened(&self, g: &Graph, sites: &Sites, a: Activation) -> Vec<Activation> {
        let known = g.find(&a.value).and_then(|v| Some((v, sites.sites.get(&v)?)));
        let Some((v, site)) = known else { return vec![a] };
        let bytes = matches!(a.params.code(), Code::U8 | Code::S8);
        let folded = self.folds.iter().any(|f| f.value == a.value);
        if !bytes || folded || matches!(a.role, Role::Scores | Role::Probs | Role::GeluInput) {
            return vec![a];
        }
        let products = site.contracted || sites.linears.iter().any(|l| trace_back(g, l.x) == v);
        let wide = |readers| Activation {
            readers,
            params: wide(&a),
            reason: format!("in 16 bits for the sake of accuracy; else {}", a.reason),
            ..a.clone()
        };
        match a.readers {
            Readers::Contracting => vec![a],
            Readers::Elementwise => vec![wide(Readers::Elementwise)],
            Readers::All if !products => vec![wide(Readers::All)],
            Readers::All if !site.elementwise => vec![a],
            Readers::All => {
                let elementwise = wide(Readers::Elementwise);
                vec![Activation { readers: Readers::Contracting, ..a }, elementwise]
            }
        }
    }

    /// Bytes of a part's weights, as they are in this plan or in `narrow`, or in float.
    pub fn weight_bytes(&self, g: &Graph, sites: &Sites, narrow: &[Layer], part: &Part, at: Precision) -> f64 {
        let elements = |output: &str| {
            let l = sites.linears.iter().find(|l| g.name_of(l.out) == output);
            l.and_then(|l| g.constant(l.weight)).map_or(0.0, |t| t.len() as f64)
        };
        let planned = if at == Precision::Narrow { narrow } else { &self.layers };
        let each = |l: &Layer| match at {
            Precision::Float => 4.0,
            _ => f64::from(bits(l.weight)) / 8.0,
        };
        let of_part = planned.iter().filter(|l| part.layers.contains(&l.output));
        of_part.map(|l| elements(&l.output) * each(l)).sum()
    }

    /// What the weights and the values of a part have in this plan, for readers.
    pub fn bits_of(&self, part: &Part) -> (String, String) {
        let told = |all: BTreeSet<Option<u8>>| {
            let word = |b: &Option<u8>| b.map_or("float".to_owned(), |b| b.to_string());
            match all.iter().map(word).collect::<Vec<_>>() {
                none if none.is_empty() => "-".to_owned(),
                some => some.join(" and "),
            }
        };
        let layer = |name: &String| self.layers.iter().find(|l| l.output == *name).map(|l| bits(l.weight));
        let values = |name: &String| -> Vec<Option<u8>> {
            let of = self.activations.iter().filter(|a| a.value == *name);
            let all: Vec<_> = of.map(|a| Some(bits(a.params.code()))).collect();
            if all.is_empty() { vec![None] } else { all }
        };
        (told(part.layers.iter().map(layer).collect()), told(part.activations.iter().flat_map(values).collect()))
    }
}

/// Bits of a code in the file.
fn bits(c: Code) -> u8 {
    match c {
        Code::I4 => 4,
        Code::U16 | Code::I16 => 16,
        Code::I32 => 32,
        Code::U8 | Code::I8 | Code::S8 | Code::I7 | Code::I4in8 => 8,
    }
}

/// Codes of 16 bits for all that those of 8 bits reach, and half as much more: of 65536 there are enough.
fn wide(a: &Activation) -> QParams {
    let p = &a.params;
    let own = (0..p.channels()).map(|c| p.reach(c));
    let (lo, hi) = own.fold((0f32, 0f32), |(a, b), (lo, hi)| (a.min(lo), b.max(hi)));
    let room = (hi - lo) / 4.0;
    QParams::covering(Code::U16, if lo < 0.0 { lo - room } else { lo }, if hi > 0.0 { hi + room } else { hi })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::channel_map::tests::{Layout, sites_of};

    fn plan(activations: &str) -> QuantPlan {
        let layer = |y: &str| format!("- {{output: {y}, weight: i8, rounding: nearest, reason: i8}}\n");
        let layers: String = ["q", "k", "v", "y"].into_iter().map(layer).collect();
        let text = format!("version: 1\nrecipe: test\nmodel: ''\nlayers:\n{layers}activations:{activations}");
        QuantPlan::from_yaml(&text, "plan").unwrap()
    }

    fn part(name: &str, layers: &[&str], activations: &[&str]) -> Part {
        let set = |names: &[&str]| names.iter().map(|n| n.to_string()).collect();
        Part { name: name.into(), layers: set(layers), activations: set(activations), ..Part::default() }
    }

    #[test]
    fn parts_get_layers_of_another_plan_and_float_ones_none() {
        let m = Layout::heads(2, 3, [true, false]).model();
        let (g, sites) = (&m.graph, &sites_of(&m));
        let plan = plan(" []\n");
        let narrow: Vec<Layer> = plan.layers.iter().map(|l| Layer { weight: Code::I4, ..l.clone() }).collect();
        let (a, b) = (part("a", &["q", "k"], &[]), part("b", &["v"], &[]));
        let mixed = plan.with_parts_at(g, sites, &narrow, &[(&a, Precision::Narrow), (&b, Precision::Float)]);
        let told: Vec<_> = mixed.layers.iter().map(|l| (&*l.output, l.weight)).collect();
        assert_eq!(told, [("q", Code::I4), ("k", Code::I4), ("y", Code::I8)]);
        assert_eq!((mixed.bits_of(&a).0, mixed.bits_of(&b).0), ("4".to_owned(), "float".to_owned()));
        let both = part("both", &["q", "y"], &[]);
        assert_eq!(mixed.bits_of(&both), ("4 and 8".to_owned(), "-".to_owned()));
        // Six inputs and six outputs each.
        let bytes = |at| plan.weight_bytes(g, sites, &narrow, &a, at);
        assert_eq!([Precision::Narrow, Precision::Recipe, Precision::Float].map(bytes), [36.0, 72.0, 288.0]);
    }

    #[test]
    fn sixteen_bits_are_for_readers_that_are_no_products() {
        let m = Layout::heads(2, 3, [true, false]).model();
        let (g, sites) = (&m.graph, &sites_of(&m));
        let read = sites.linears.iter().map(|l| g.name_of(l.x)).next().unwrap();
        let params = "params: { kind: affine, code: u8, scale: 0.5, zero_point: 128 }";
        let one = |value: &str, readers: &str| {
            format!("- {{ value: {value}, role: residual, readers: {readers}, {params}, reason: x }}\n")
        };
        let p = plan(&format!("\n{}{}", one(read, "contracting"), one(read, "elementwise")));
        let all = part("all", &[], &[read]);
        let mixed = p.with_parts_at(g, sites, &[], &[(&all, Precision::Wide)]);
        let codes: Vec<_> = mixed.activations.iter().map(|a| (a.readers, a.params.code())).collect();
        assert_eq!(codes, [(Readers::Contracting, Code::U8), (Readers::Elementwise, Code::U16)]);
        mixed.check().unwrap();
        assert_eq!(mixed.bits_of(&all).1, "8 and 16");
        // A product alone reads it: nothing to gain.
        let p = plan(&format!("\n{}", one(read, "contracting")));
        assert_eq!(p.with_parts_at(g, sites, &[], &[(&all, Precision::Wide)]), p);
    }

    #[test]
    fn wide_codes_hold_what_the_narrow_ones_did() {
        let params = QParams::per_axis(Code::U8, -1, vec![0.1, 2.0], vec![10, 200]).unwrap();
        let a = Activation {
            value: "v".into(),
            role: Role::Residual,
            readers: Readers::All,
            params,
            floor: None,
            reason: String::new(),
        };
        let (lo, hi) = wide(&a).reach(0);
        // -400 and 110 are reached; a quarter of the range is added at each end.
        assert!((lo + 527.5).abs() < 0.1 && (hi - 237.5).abs() < 0.1, "{lo} {hi}");
    }
}
