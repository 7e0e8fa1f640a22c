//! What pipelines require of a model, and ensure.

use super::Context;
use crate::ir::{DType, Def, Model, Op, ops};

/// Something that must hold of a model before a pipeline, or does after one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requirement {
    /// The operator set and the file's version are ones that this program knows.
    KnownOpset,
    /// Nothing in the model is quantized.
    NotQuantized,
    /// No operator is bound to one kind of processor.
    Portable,
    /// The model has an output.
    HasOutput,
    /// No input has a default.
    NoDefaults,
    /// No weight is float16 or bfloat16.
    NotNarrow,
    /// Every node leads to an output, and every weight has a reader.
    Tidy,
    /// A plan is at hand.
    Planned,
}

/// Why a pipeline cannot run, or did not do what it promises.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unmet {
    #[error(
        "the model's operator set is {found}; this program knows them up to {newest}: export the model at an older one"
    )]
    Opset { found: i64, newest: i64 },
    #[error(
        "the file's version (IR) is {found}; this program knows them up to {newest}: save the model in an older one"
    )]
    FileVersion { found: i64, newest: i64 },
    #[error("the model is quantized already (node `{node}` is a {op}); give the float model it was made from")]
    Quantized { node: String, op: String },
    #[error(
        "node `{node}` is a {op}: onnxruntime saved this model for one kind of processor (ORT_ENABLE_ALL); give the model it \
         was made from, or save it at ORT_ENABLE_EXTENDED"
    )]
    OneProcessor { node: String, op: String },
    #[error("the model has no output, so nothing of it can be compiled or measured; export it again")]
    NoOutput,
    #[error("input `{input}` has a default")]
    Default { input: String },
    #[error("weight `{value}` is in half precision")]
    Narrow { value: String },
    #[error("nothing reads `{what}`")]
    Unread { what: String },
    #[error("there is no plan to carry out")]
    NoPlan,
}

impl Requirement {
    /// Whether it holds.
    ///
    /// # Errors
    /// What is in the way.
    pub fn check(self, cx: &Context<'_>) -> Result<(), Unmet> {
        let g = &cx.graph;
        let fault = match self {
            Requirement::KnownOpset => {
                let (found, newest) = (cx.opset(), ops::newest_opset());
                let (version, last) = (cx.ir_version, ops::newest_file_version());
                let of_file = (version > last).then_some(Unmet::FileVersion { found: version, newest: last });
                (found > newest).then_some(Unmet::Opset { found, newest }).or(of_file)
            }
            Requirement::NotQuantized => g
                .nodes()
                .find(|(_, n)| works_on_codes(&n.op))
                .map(|(_, n)| Unmet::Quantized { node: g.label(n), op: n.op.to_string() }),
            Requirement::Portable => g
                .nodes()
                .find(|(_, n)| n.op.domain == "com.microsoft.nchwc")
                .map(|(_, n)| Unmet::OneProcessor { node: g.label(n), op: n.op.to_string() }),
            Requirement::HasOutput => g.outputs().is_empty().then_some(Unmet::NoOutput),
            Requirement::NoDefaults => g
                .inputs()
                .iter()
                .find(|v| matches!(g.value(**v).def, Def::InputWithDefault(_)) && !g.is_output(**v))
                .map(|v| Unmet::Default { input: g.name_of(*v).to_owned() }),
            Requirement::NotNarrow => g
                .initializers()
                .iter()
                .filter(|v| !g.is_output(**v))
                .find(|v| g.constant(**v).is_some_and(|t| matches!(t.dtype, DType::FLOAT16 | DType::BFLOAT16)))
                .map(|v| Unmet::Narrow { value: g.name_of(*v).to_owned() }),
            Requirement::Tidy => {
                let node = g.nodes().find(|(_, n)| n.outputs.iter().flatten().all(|v| g.use_count(*v) == 0));
                let weight =
                    g.initializers().iter().find(|v| matches!(g.value(**v).def, Def::Init(_)) && g.use_count(**v) == 0);
                let name = node.map(|(_, n)| g.label(n)).or_else(|| weight.map(|v| g.name_of(*v).to_owned()));
                name.map(|what| Unmet::Unread { what })
            }
            Requirement::Planned => cx.carried("").is_err().then_some(Unmet::NoPlan),
        };
        fault.map_or(Ok(()), Err)
    }
}

/// True for a model that was quantized before.
pub fn is_quantized(m: &Model) -> bool {
    m.graph.nodes().any(|(_, n)| works_on_codes(&n.op))
}

/// True for operators of a model that was quantized before.
fn works_on_codes(op: &Op) -> bool {
    const MARKS: [&str; 5] =
        ["QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"];
    op.name.starts_with("QLinear") || op.name.starts_with("QAttention") || MARKS.contains(&op.name.as_str())
}
