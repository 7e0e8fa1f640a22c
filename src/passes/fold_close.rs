use super::fold_constants::fold;
use super::{Context, Numerics, Outcome, Pass, PassError};
use crate::infer;

/// # What it does
/// Replaces what does not depend on the model's inputs by its value, also where runtimes differ in its last bit.
///
/// # When it fires
/// As `fold-constants`, and on Exp, Log, Pow, Sigmoid, Tanh, Erf, Softmax, sums and other reductions, LayerNormalization,
/// BatchNormalization, MatMul and Gemm of constants. The same limits of size hold.
///
/// # Why it is correct
/// The value is computed in double precision and rounded once, so it is at least as near to the exact one as any
/// runtime's.
///
/// # Numerics
/// Close: the last bit of a constant may be another one than the runtime would have found.
///
/// # Before / after
/// ```text
/// e = Exp (logit_scale)            <float e = {14.3}>
/// y = Mul (similarity, e)          y = Mul (similarity, e)
/// ```
///
/// # Source
/// The temperature of CLIP and of cosine attention, the position network of Swin V2, the buckets of T5 and DeBERTa,
/// standardised weights.
pub struct FoldClose;

impl Pass for FoldClose {
    fn id(&self) -> &'static str {
        "fold-close"
    }

    fn summary(&self) -> &'static str {
        "Folds constants also where runtimes may differ in the last bit."
    }

    fn numerics(&self) -> Numerics {
        Numerics::Close { rel: 1e-4 }
    }

    fn run(&self, model: &mut Context) -> Result<Outcome, PassError> {
        let map = infer::approximate_constants(model);
        fold(self.id(), model, &map)
    }
}
