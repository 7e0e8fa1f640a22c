//! What products cost in 8 bits and in float, and which of them are worth it.
//!
//! A product in codes is faster than in float, but its input has to be made into codes first, and codes cost accuracy. With
//! costs in a recipe (`linear-only: true` and `costs:`), the planner gives codes only to layers that save time by them, and to
//! the queries and keys of attentions whose product does. The figures are nanoseconds on one thread and come from a measurement,
//! see `passes/recipes/cpu.yaml`; only their ratios matter.

use std::collections::BTreeSet;

use super::recipe::Costs;
use super::sites::{Linear, Sites, trace_back};
use crate::ir::{Dim, Graph, ValueId};
use crate::pattern::Attention;

/// What is worth codes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Worth {
    /// Which of the linear layers.
    pub layers: Vec<bool>,
    /// Queries and keys whose product is.
    pub operands: BTreeSet<ValueId>,
}

impl Worth {
    /// Without costs, every layer and no product.
    pub fn of(g: &Graph, sites: &Sites, costs: Option<&Costs>) -> Worth {
        let Some(c) = costs else {
            return Worth { layers: vec![true; sites.linears.len()], operands: BTreeSet::new() };
        };
        let layers = sites.linears.iter().map(|l| c.layer_saves(outputs(g, sites, l)) > 0.0).collect();
        let coded = |v: &ValueId| sites.sites.contains_key(v);
        let operands = sites
            .attentions
            .iter()
            .filter_map(|a| operands_saving(g, a, c))
            .filter(|both| both.iter().all(coded))
            .flatten()
            .collect();
        Worth { layers, operands }
    }
}

impl Costs {
    /// Nanoseconds saved per input element by a layer that makes so many outputs of it.
    fn layer_saves(&self, outputs: f64) -> f64 {
        outputs * (self.layer_float - self.layer_codes) - self.quantize
    }

    /// Nanoseconds saved per head by a product of `n` queries and `m` keys of `d` channels. Their codes come with the layer that
    /// makes them.
    fn product_saves(&self, n: f64, m: f64, d: f64) -> f64 {
        n * m * d * (self.product_float - self.product_codes) + (n + m) * d * (self.move_float - self.move_codes)
    }
}

/// Multiplications for each element of what a layer reads, over all layers that read it.
fn outputs(g: &Graph, sites: &Sites, l: &Linear) -> f64 {
    let x = trace_back(g, l.x);
    let of = |l: &Linear| {
        let dims = g.constant(l.weight).map(|t| t.dims.clone()).unwrap_or_default();
        let inputs = dims.get(l.in_axis).copied().unwrap_or(1).max(1);
        let all: i64 = dims.iter().product();
        // A kernel that does not overlap meets each element once.
        (all / inputs) as f64 / if l.is_conv { dims.iter().skip(2).product::<i64>().max(1) as f64 } else { 1.0 }
    };
    sites.linears.iter().filter(|o| trace_back(g, o.x) == x).map(of).sum()
}

/// Queries and keys of an attention, if their product saves time in codes.
fn operands_saving(g: &Graph, a: &Attention, costs: &Costs) -> Option<[ValueId; 2]> {
    let p = a.product?;
    let known = |v: ValueId, from_end: usize| match g.shape(v)?.iter().rev().nth(from_end)? {
        Dim::Known(n) => Some(*n as f64),
        _ => None,
    };
    let (d, n, m) = (known(p.q, 0)?, known(p.q, 1)?, known(p.k, 0)?);
    (costs.product_saves(n, m, d) > 0.0).then(|| [trace_back(g, p.q), trace_back(g, p.k)])
}

#[cfg(test)]
mod tests {
    use super::*;

    const COSTS: Costs = Costs {
        layer_float: 0.02,
        layer_codes: 0.008,
        product_float: 0.03,
        product_codes: 0.024,
        quantize: 0.3,
        move_float: 0.6,
        move_codes: 0.3,
    };

    #[test]
    fn narrow_layers_are_not_worth_their_codes() {
        assert!(COSTS.layer_saves(192.0) > 0.0);
        assert!(COSTS.layer_saves(10.0) < 0.0);
    }

    #[test]
    fn products_are_worth_it_where_codes_multiply_faster() {
        assert!(COSTS.product_saves(197.0, 197.0, 64.0) > 0.0);
        let slow = Costs { product_codes: 0.04, ..COSTS };
        assert!(slow.product_saves(197.0, 197.0, 64.0) < 0.0);
    }
}
