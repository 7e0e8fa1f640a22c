use super::{Context, Numerics, Outcome, Pass, PassError};

/// # What it does
/// Removes nodes and initializers that nothing reads.
///
/// # When it fires
/// On nodes none of whose outputs reaches a graph output, and on initializers without a reader. Graph inputs stay, read
/// or not: they are part of how the model is called.
///
/// # Why it is correct
/// Operators have no effect besides their outputs.
///
/// # Numerics
/// Bit-exact.
///
/// # Before / after
/// ```text
/// s = Shape (x)
/// y = Relu (x)                 y = Relu (x)
/// ```
///
/// # Source
/// Dead code elimination.
pub struct Dead;

impl Pass for Dead {
    fn id(&self) -> &'static str {
        "dead"
    }

    fn summary(&self) -> &'static str {
        "Removes nodes whose outputs nothing reads."
    }

    fn numerics(&self) -> Numerics {
        Numerics::BitExact
    }

    fn run(&self, model: &mut Context) -> Result<Outcome, PassError> {
        let values = model.graph.initializers().len();
        let gone = model.sweep();
        Ok(Outcome { changes: gone + (values - model.graph.initializers().len()), notes: Vec::new() })
    }
}
