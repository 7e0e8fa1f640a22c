//! What a closer look is to look at: where the values of a plan are in the float model and their codes in the quantized one.
//!
//! The passes name the codes of a value after it, and lowering keeps the names of what it does not merge, whatever the
//! target. A value whose codes have no place of their own any more is not looked at; how many are is told.

use super::Prepared;
use super::error::CompilerError;
use super::stages::{Log, Running, timed};
use crate::calibrate::data::Dataset;
use crate::infer;
use crate::ir::{Graph, Model, ValueId, validate};
use crate::passes::quantize::codes_names;
use crate::plan::scores::score_site;
use crate::plan::sites::Sites;
use crate::plan::{Activation, AttentionForm, AttentionPlan, QuantPlan, Role};
use crate::quant::QParams;
use crate::quant::lis::{LisFacts, LisPlan};
use crate::verify::closer::{
    Asked, AttentionLook, CloserLook, CodedAttention, CodedValue, Measured, Reading, ValueLook, WeightsForm, look,
};
use crate::verify::disagree::Disagreements;
use crate::verify::run::VerifyError;

/// Samples that are looked at, at most: thousands of elements of each value are in one.
const SAMPLES: usize = 8;

/// Values that are told at most.
const WORST: usize = 6;

/// Side of the pictures, in pixels.
const SIDE: u32 = 112;

/// Looks at the values of the plan and at its attentions, on a few of the samples. `float` is the model that the plan is
/// about, equalised. A look that fails is a note: the model is compiled without.
///
/// # Errors
/// If a sample cannot be made, or somebody asked to stop.
pub(super) fn look_closer(
    (float, quantized): (&Prepared, &Model),
    plan: &QuantPlan,
    (data, indices): (&Dataset, &[usize]),
    how: Running<'_>,
    log: &mut Log,
) -> Result<Option<CloserLook>, CompilerError> {
    let n = indices.len().min(SAMPLES);
    let few: Vec<usize> = (0..n).map(|i| indices[i * indices.len() / n]).collect();
    let (found, planned) = what((float, quantized), plan);
    let (values, activations): (Vec<_>, Vec<_>) = found.values.into_iter().unzip();
    let (attentions, outputs): (Vec<_>, Vec<_>) = found.attentions.into_iter().unzip();
    let asked = Asked { values, attentions };
    let done = how.steps("looking closer", few.len());
    let looked = timed(&mut log.timings, "look closer", || {
        let (f, q) = (validate::validate(&float.model)?, validate::validate(quantized)?);
        match look(f, q, (data, &few), &asked, how.threads, &done) {
            Ok(l) => Ok(Ok(l)),
            Err(VerifyError::Data(e)) => Err(CompilerError::from(VerifyError::Data(e))),
            Err(e) => Ok(Err(e)),
        }
    })?;
    let looked = match looked {
        Ok(l) => l,
        Err(e) => {
            log.notes.push(format!("there is no closer look at single values: {e}"));
            return Ok(None);
        }
    };
    let told = |((m, v), a): ((&Measured, &CodedValue), &&Activation)| {
        (m.elements() > 0).then(|| ValueLook {
            tensor: v.value.clone(),
            part: String::new(),
            role: a.role.name().to_owned(),
            levels: a.params.code().steps() as u64 + 1,
            scales: a.params.kind().to_owned(),
            sqnr_db: m.sqnr_db(),
            rounding_db: m.rounding_db(),
            step: v.reading.step(),
            reach: v.reading.reach(),
            clipped: m.clipped(),
            elements: m.elements(),
            bins: m.bins(&v.reading),
        })
    };
    let all = looked.values.iter().zip(&asked.values).zip(&activations);
    let mut worst: Vec<ValueLook> = all.filter_map(told).collect();
    let measured = worst.len() as u64;
    worst.sort_by(|a, b| a.sqnr_db.total_cmp(&b.sqnr_db));
    worst.truncate(WORST);
    let mut attentions = listed(float, plan);
    for (name, codes) in outputs.iter().zip(looked.attentions) {
        attentions.iter_mut().filter(|a| a.tensor == *name).for_each(|a| a.codes.clone_from(&codes));
    }
    Ok(Some(CloserLook { samples: (few.len() * data.batch()) as u64, planned, measured, worst, attentions }))
}

/// Values and attentions whose codes were found, each with what it is.
struct Found<'p> {
    values: Vec<(CodedValue, &'p Activation)>,
    attentions: Vec<(CodedAttention, String)>,
}

/// What there is to look at, and how many values the plan quantizes.
fn what<'p>((float, quantized): (&Prepared, &Model), plan: &'p QuantPlan) -> (Found<'p>, u64) {
    let (f, q) = (&float.model.graph, &quantized.graph);
    let types = infer::shapes(quantized);
    let dtype = |v: ValueId| types.dtype(v).or_else(|| q.value(v).ty.as_ref().map(|t| t.dtype));
    // Codes of a value may have moved to the other container of 8 bits, with the zero point.
    let read = |name: &str, p: &QParams| -> Option<QParams> {
        let v = q.find(name).filter(|v| q.constant(*v).is_none() && f.find(name).is_none())?;
        let other = p.clone().recoded();
        match dtype(v) {
            Some(t) if t == p.code().dtype() => Some(p.clone()),
            Some(t) if t == other.code().dtype() => Some(other),
            _ => None,
        }
    };
    // What lies far below the largest score of a row has no weight and is clipped on purpose: attention has a look of its own.
    let is_value = |a: &&Activation| {
        !matches!(a.role, Role::Scores | Role::Probs) && f.find(&a.value).is_some_and(|v| f.constant(v).is_none())
    };
    let planned: Vec<&Activation> = plan.activations.iter().filter(is_value).collect();
    let value = |a: &&'p Activation| {
        let (params, codes) = codes_names(a).into_iter().find_map(|n| Some((read(&n, &a.params)?, n)))?;
        let fold = plan.folds.iter().find(|x| x.value == a.value);
        let reading = Reading {
            params,
            folded: fold.map(|_| folded_axis(f, &float.sites, f.find(&a.value))),
            factors: fold.map_or(Vec::new(), |x| x.factors.clone()),
            offsets: fold.map_or(Vec::new(), |x| x.offsets.clone()),
            floor: a.floor,
        };
        Some((CodedValue { value: a.value.clone(), codes, reading }, *a))
    };
    let values = planned.iter().filter_map(value).collect();
    let attentions =
        plan.attentions.iter().filter_map(|a| Some((coded(float, q, plan, a)?, a.output.clone()))).collect();
    (Found { values, attentions }, planned.len() as u64)
}

/// The axis of a fold's channels: the one that the layers contract.
fn folded_axis(g: &Graph, sites: &Sites, v: Option<ValueId>) -> i64 {
    let layer = sites.linears.iter().find(|l| Some(l.x) == v && l.is_conv);
    let rank = layer.and_then(|l| g.constant(l.weight)).map_or(2, |w| w.dims.len());
    // Channels of a Conv stand before the axes it slides over.
    1 - rank as i64
}

/// Where an attention's score codes are, and what is made of them; `None` where weights have no codes.
fn coded(float: &Prepared, q: &Graph, plan: &QuantPlan, a: &AttentionPlan) -> Option<CodedAttention> {
    let AttentionForm::Lis { spec } = &a.form else { return None };
    let g = &float.model.graph;
    let at = float.sites.attentions.iter().find(|x| g.name_of(x.out) == a.output)?;
    let site = score_site(g, at).ok()?;
    let scores = &plan.activation(g.name_of(site.value), true)?.params;
    let scales = (0..scores.channels()).map(|h| scores.scale(h) * site.factor).collect();
    // Which code a key gets does not depend on how many there are.
    let lis = LisPlan::new(spec, &LisFacts::of_weights(scales, Some(1)), &a.output).ok()?;
    // Both forms begin with the largest code of each row, of those that a mask keeps.
    let max = q.node(q.producer_is(q.find(&format!("{}/max", a.output))?, "ReduceMax")?).input(0)?;
    let kept =
        q.producer_is(max, "Where").map(|n| q.node(n)).filter(|_| q.name_of(max) == format!("{}/kept", a.output));
    let (codes, mask) = match kept {
        Some(n) => (n.input(1)?, Some(q.name_of(n.input(0)?).to_owned())),
        None => (max, None),
    };
    Some(CodedAttention { codes: q.name_of(codes).to_owned(), mask, plan: lis })
}

/// Every attention and Softmax, with its form.
fn listed(float: &Prepared, plan: &QuantPlan) -> Vec<AttentionLook> {
    let g = &float.model.graph;
    let look =
        |tensor: &str, form| AttentionLook { tensor: tensor.to_owned(), part: String::new(), form, codes: vec![] };
    let form = |output: &str| match plan.attentions.iter().find(|a| a.output == output).map(|a| &a.form) {
        Some(AttentionForm::Lis { .. }) => WeightsForm::Lis,
        Some(AttentionForm::Uniform { .. }) => WeightsForm::Uniform,
        None => WeightsForm::Float,
    };
    let recognised = float.sites.attentions.iter().map(|a| look(g.name_of(a.out), form(g.name_of(a.out))));
    let others = float.sites.softmaxes.iter().filter_map(|n| g.node(*n).out());
    recognised.chain(others.map(|v| look(g.name_of(v), WeightsForm::Float))).collect()
}

/// Gives items and classes their own names, and with `pictures` what the models saw of them.
pub(super) fn illustrate(d: &mut Disagreements, data: &Dataset, pictures: bool) {
    for x in &mut d.worst {
        x.name = data.item(x.sample, x.item);
        // A picture that cannot be made is no reason to fail: the models ran on it.
        x.picture = if pictures { data.thumbnail(x.sample, x.item, SIDE).ok().flatten() } else { None };
    }
    let told = d.worst.iter().flat_map(|x| {
        let label = x.label.and_then(|l| usize::try_from(l).ok());
        x.float.iter().chain(&x.quantized).map(|s| s.class).chain(label)
    });
    d.names = told.filter_map(|c| Some((c, data.class_name(c)?.to_owned()))).collect();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::data::DataOptions;
    use crate::calibrate::data::split_holdout;
    use crate::compile::compiler::{Compiled, Compiler};
    use crate::compile::inputs;
    use crate::plan::Target;
    use crate::rewrite::stem;
    use crate::runtime::{Session, SessionOptions};

    const SAMPLED: usize = 24;

    fn digits(file: &str) -> std::path::PathBuf {
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/digits").join(file)
    }

    fn data() -> DataOptions {
        DataOptions { calibrate: Some(digits("digits_calib.npz")), samples: Some(SAMPLED), ..DataOptions::default() }
    }

    fn compiled(target: Target) -> Compiled {
        let c = Compiler::load(digits("digits_vit.onnx")).unwrap().calibrate(data()).target(target).bench(false);
        c.look_closer(true).run().unwrap()
    }

    /// Counts of the codes that the graph itself makes, read where each target has them.
    fn counted(c: &Compiled, target: Target, attention: &AttentionLook) -> Vec<u64> {
        let of = stem(&attention.tensor);
        let tap = match target {
            Target::Qdq => format!("{of}/code"),
            Target::Integer => format!("{of}/clipped"),
        };
        let options = SessionOptions { taps: vec![tap], outputs: false, ..SessionOptions::default() };
        let session = Session::of(validate::validate(&c.model).unwrap(), &options).unwrap();
        let set = Dataset::open(&data(), &inputs(&c.model.graph).unwrap()).unwrap();
        let last = attention.codes.len() - 1;
        let mut counts = vec![0; last + 1];
        for i in split_holdout(set.len()).1 {
            let s = set.sample(i).unwrap();
            let seen = session.tapped(&s.inputs).unwrap();
            for x in seen.value(0).unwrap().0.iter() {
                // Stored codes count down to 0, which is nothing.
                let code = if target == Target::Qdq { last - *x as usize } else { (*x as usize).min(last) };
                counts[code] += 1;
            }
        }
        counts
    }

    /// In both targets every planned value is found, close to the float model's, and codes are those of the graph.
    #[test]
    fn what_is_told_is_what_the_graph_computes() {
        for target in [Target::Qdq, Target::Integer] {
            let c = compiled(target);
            let look = c.report.closer.as_ref().unwrap();
            assert_eq!((look.samples, look.measured), (3, look.planned), "{target:?}");
            assert!(look.worst.len() == WORST && look.worst.is_sorted_by(|a, b| a.sqnr_db <= b.sqnr_db));
            for v in &look.worst {
                assert!(v.sqnr_db > 12.0 && v.rounding_db > 20.0, "{target:?}: {v:?}");
                assert!((0.0..0.05).contains(&v.clipped) && !v.part.is_empty(), "{target:?}: {v:?}");
                let all = |counts: &[u64]| counts.iter().sum::<u64>();
                assert_eq!((all(&v.bins.float), all(&v.bins.quantized)), (v.elements, v.elements));
            }
            assert_eq!(look.attentions.len(), 4);
            for a in &look.attentions {
                let told: Vec<u64> = a.codes.iter().map(|c| c.count).collect();
                assert_eq!((a.form, told), (WeightsForm::Lis, counted(&c, target, a)), "{target:?} {}", a.tensor);
                let attention: f64 = a.codes.iter().map(|c| c.attention).sum();
                assert!((attention - 1.0).abs() < 1e-9, "{attention}");
            }
        }
    }

    /// A page that nobody asked for costs nothing; disagreements are counted all the same, and have names.
    #[test]
    fn nobody_looks_unasked() {
        let c = Compiler::load(digits("digits_vit.onnx")).unwrap().calibrate(data()).bench(false).run().unwrap();
        assert!(c.report.closer.is_none() && c.report.timings.iter().all(|t| t.stage != "look closer"));
        assert_eq!(c.report.disagreements.unwrap().samples, 3);
        let set = Dataset::open(&data(), &inputs(&c.model.graph).unwrap()).unwrap();
        let item = |sample| Disagreements {
            output: String::new(),
            samples: 1,
            count: 1,
            worst: vec![crate::verify::disagree::Disagreement {
                sample,
                item: 0,
                name: String::new(),
                label: None,
                float: vec![],
                quantized: vec![],
                picture: None,
            }],
            names: Default::default(),
        };
        let mut d = item(1);
        illustrate(&mut d, &set, true);
        let name = set.sample(1).unwrap().name;
        assert_eq!(d.worst[0].name, name);
        assert!(d.worst[0].picture.as_ref().is_some_and(|p| p.starts_with("data:image/png;base64,")));
        illustrate(&mut d, &set, false);
        assert_eq!(d.worst[0].picture, None);
    }
}
