//! Which step runs next, and where. Pure: no clock, no I/O; `dispatch::core` carries the decisions out.
//!
//! ```text
//!  steps with equal demands ──▶ lanes (fair between classes and clients) ──▶ decide ──▶ Start, Load, Evict, Wake, …
//!                                                                              │
//!                                                       placement: one demand against every worker of the fleet
//! ```

mod choice;
mod decide;
mod demand;
mod estimates;
mod eviction;
mod fleet;
mod flows;
mod in_worker;
mod lanes;
mod model_table;
mod placement;
mod reason;
mod reservation;
mod serves;
#[cfg(test)]
pub(crate) mod tests;
mod waits;
mod worker;

pub(crate) use choice::Copies;
pub(crate) use decide::{Decision, Pass, Victim, World};
pub(crate) use demand::{Demand, DemandId, Demands};
pub(crate) use estimates::Estimates;
pub(crate) use fleet::{DeviceId, DeviceMemory, Fleet, WorkerId};
pub(crate) use lanes::{Ask, Head, LaneKey, Lanes};
pub(crate) use placement::{Asked, Placement, place};
pub(crate) use reason::{Refusal, WaitReason};
pub(crate) use reservation::{unreserve, unreserve_unwanted};
pub(crate) use serves::{Derived, DerivedTable, Serves};
pub(crate) use waits::Waits;
pub(crate) use worker::{
    MoveKind, PendingMove, ProcessState, Readiness, ResidentModel, Uses, Worker, WorkerSpec,
};
