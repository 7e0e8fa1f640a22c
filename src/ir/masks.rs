//! Which numbers hide a score of attention: the one definition for all who look for masks, measure past them or make them.
//!
//! Models hide a key by -100, -1e4, -65504, -1e9 or minus infinity. How far down a number must be to be told from a
//! measurement depends on what is known of it: nothing but the last sum in front of a Softmax is bounded from below by what
//! Softmax can tell apart.

/// Added to a score or put in its place, a number at or below this leaves it no weight: `e^-60` of the largest is less than
/// float32 has for a share of it.
pub const HIDES: f32 = -60.0;

/// Put in place of a score, or the factor of a mask of zeros and ones, a number at or below this hides whatever positive
/// number of ordinary size it is multiplied with after.
pub const HIDES_SCALED: f32 = -1e3;

/// Scores at or below this are masks, not measurements. Products of queries and keys reach some hundreds before their scale.
pub const HIDDEN_BELOW: f32 = -3000.0;

/// At or below this a constant is what a mask is made of, whatever it stands for; and bounds this far out on either side bound
/// no scores.
pub const NEVER_MEASURED: f32 = -1e4;

/// Added to a score, a number above this leaves something of the score: float32 has steps of 1/4 there.
pub const DROWNED_BELOW: f32 = -3e6;

/// Put in place of a score that is to get no weight.
pub const HIDDEN: f32 = -1e9;
