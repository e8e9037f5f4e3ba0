//! Which step runs next, and where. Pure: no clock, no I/O; `dispatch::core` carries the decisions out.
//!
//! ```text
//!  steps with equal demands ──▶ lanes (fair between classes and clients) ──▶ decide ──▶ Start, Load, Evict, Wake, …
//!                                                                              │
//!                                                       placement: one demand against every worker of the fleet
//! ```

mod decide;
mod demand;
mod estimates;
mod fleet;
mod lanes;
mod placement;
mod reason;
#[cfg(test)]
mod tests;

pub(crate) use decide::{Decision, DerivedTable, Pass, Victim, Waits, World, unreserve, unreserve_unwanted};
pub(crate) use demand::{Demand, DemandId, Demands};
pub(crate) use estimates::Estimates;
pub(crate) use fleet::{
    DeviceId, DeviceMemory, Fleet, MoveKind, PendingMove, ProcessState, Readiness, ResidentModel, Uses,
    Worker, WorkerId, WorkerSpec,
};
pub(crate) use lanes::{Ask, Head, LaneKey, Lanes};
pub(crate) use placement::{Asked, Derived, Placement, Serves, place};
pub(crate) use reason::{Refusal, WaitReason};
