//! Who holds how much memory of a device: leases in a ledger, sized by an estimate that measured peaks correct.

pub(crate) mod holding;
mod ledger;
mod peaks;

pub use ledger::{Ledger, Owner};
pub use peaks::{Peaks, WorkingSets};
