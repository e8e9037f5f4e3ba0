//! What a person does with a journal by hand: look at it, save what can be read, copy it. `calotype journal` prints these.

mod backup;
mod check;
mod recover;

pub use backup::{BackedUp, backup};
pub use check::{Report, check};
pub use recover::{Loss, Recovered, recover};
