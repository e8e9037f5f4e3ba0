//! Who holds how much memory of a device: leases in a ledger, sized by an estimate that measured peaks correct; and which
//! weights wait in the host's.

mod ledger;
pub(crate) mod memory_plan;
mod peaks;
mod view;
pub(crate) mod weight_cache;

pub use ledger::{Ledger, Owner};
pub use peaks::Peaks;
pub use view::{CacheView, LeaseView, MemoryView, SegmentView};
