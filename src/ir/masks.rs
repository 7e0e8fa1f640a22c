//! Which numbers mask an attention score: the one definition for all code that looks for masks, measures around them or makes
//! them.
//!
//! Models mask a key with -100, -1e4, -65504, -1e9 or minus infinity. How low a number must be to count as a mask rather than
//! as a measurement depends on where it stands: only in the last sum before a Softmax is it known that lower numbers make no
//! difference.

/// A number at or below this that is added to a score, or replaces it, leaves it no weight: `e^-60` of the largest weight
/// vanishes in float32.
pub const HIDES: f32 = -60.0;

/// A number at or below this that replaces a score, or that a mask of zeros and ones is multiplied by, still masks the score
/// after multiplication by any positive factor of ordinary size.
pub const HIDES_SCALED: f32 = -1e3;

/// Scores at or below this are masks, not measurements. Products of queries and keys reach some hundreds before they are
/// scaled.
pub const HIDDEN_BELOW: f32 = -3000.0;

/// A constant at or below this belongs to a mask, wherever it stands. Clip bounds this far from 0 on either side leave scores
/// as they are.
pub const NEVER_MEASURED: f32 = -1e4;

/// Adding a number above this to a score keeps part of the score: float32 has steps of 1/4 there.
pub const DROWNED_BELOW: f32 = -3e6;

/// Replaces a score that is to get no weight.
pub const HIDDEN: f32 = -1e9;
