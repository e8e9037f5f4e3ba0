//! The states of a step and the legal moves between them; a job's state is derived from its step's. Pure.
//!
//! ```text
//!  ready ──claim──▶ claiming ──▶ preparing ──▶ running ──result──▶ finishing ──▶ ending ──▶ ended
//!   ▲ ▲                                        │  ▲ ▲                             ▲
//!   │ └──────────────── requeue ◀──────────────┤  │ └─ resuming ◀─┐               │ any state,
//!   │                                          ▼  │               │               │ by `End`
//!   └──── withdrawing ◀── paused ◀───────── pausing ──▶ suspended ─┘
//! ```
//! A paused step holds no place in its worker: one that a client paused stays `paused` until the client resumes it, one
//! that the scheduler paused is `suspended` and goes on as soon as there is a place and memory again.

use std::fmt;

use super::JobState;

/// What a client asked of a step that cannot obey at once, because its claim is on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Wish {
    /// Nothing: it goes on.
    GoOn,
    /// It is held once the claim has settled.
    Pause,
    /// It ends once the claim has settled.
    Cancel,
}

/// Who asked for a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum PausedBy {
    /// A client: the step stays paused until it is resumed.
    Client,
    /// The scheduler, for a more urgent step: it goes on as soon as it can.
    Scheduler,
}

/// Where a paused step's work so far is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kept {
    /// Nowhere: it has not begun, or begins anew.
    Nowhere,
    /// In its worker, which holds its latents.
    InWorker,
}

/// What follows once a worker has dropped a paused run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum AfterWithdrawal {
    /// It stays paused.
    StaysPaused,
    /// It waits to be run anew.
    IsReady,
}

/// Where a step stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum StepState {
    /// Waits in its lane.
    Ready,
    /// A worker was chosen and leases were granted; the claim is being journaled.
    Claiming(Wish),
    /// The claim is journaled; its inputs are being read and its work is being built.
    Preparing(Wish),
    /// `run` went down to the worker.
    Running,
    /// `pause` went down.
    Pausing(PausedBy),
    /// Paused by a client. Holds no place.
    Paused(Kept),
    /// Paused inside its worker, and waits in a lane to go on there. Holds no place.
    Suspended,
    /// `resume` went down.
    Resuming,
    /// `cancel` went down.
    Cancelling,
    /// A paused run is being dropped from its worker to make room.
    Withdrawing(AfterWithdrawal),
    /// The worker is done; outputs are being encoded and stored.
    Finishing,
    /// Its end is being journaled.
    Ending,
    /// Its end is in the journal.
    Ended,
}

/// What can happen to a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Move {
    /// It was chosen for a worker.
    Claim,
    /// The claim is in the journal.
    Claimed,
    /// `run` goes down.
    Run,
    /// A client wants it held.
    Pause,
    /// The scheduler needs its place.
    Preempt,
    /// The worker said `paused`.
    IsPaused,
    /// A client wants it to go on.
    Resume,
    /// There is room for a suspended step again: `resume` goes down.
    GoOn,
    /// The worker said `resumed`.
    IsResumed,
    /// A client wants it to end, and it is in a worker or on the way into one.
    Cancel,
    /// A paused run makes room for others.
    Withdraw,
    /// The worker dropped a run that was being withdrawn.
    IsWithdrawn,
    /// It goes back to its lane: the worker died, the attempt failed, or the claim could not be journaled.
    Requeue,
    /// The worker delivered.
    Deliver,
    /// It ends: its end is being journaled.
    End,
    /// Its end is in the journal.
    EndIsJournaled,
}

/// A move that this state does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a step that is {state} cannot {step}")]
pub(crate) struct IllegalMove {
    /// The move.
    step: Move,
    /// Where it was tried.
    state: StepState,
}

impl StepState {
    /// Every state, for tables and tests.
    #[cfg(test)]
    pub(crate) const ALL: [Self; 20] = [
        Self::Ready,
        Self::Claiming(Wish::GoOn),
        Self::Claiming(Wish::Pause),
        Self::Claiming(Wish::Cancel),
        Self::Preparing(Wish::GoOn),
        Self::Preparing(Wish::Pause),
        Self::Preparing(Wish::Cancel),
        Self::Running,
        Self::Pausing(PausedBy::Client),
        Self::Pausing(PausedBy::Scheduler),
        Self::Paused(Kept::Nowhere),
        Self::Paused(Kept::InWorker),
        Self::Suspended,
        Self::Resuming,
        Self::Cancelling,
        Self::Withdrawing(AfterWithdrawal::StaysPaused),
        Self::Withdrawing(AfterWithdrawal::IsReady),
        Self::Finishing,
        Self::Ending,
        Self::Ended,
    ];

    /// The state after `step`, or why there is none.
    pub(crate) fn on(self, step: Move) -> Result<Self, IllegalMove> {
        use StepState as S;
        let next = match (self, step) {
            (S::Ready, Move::Claim) => S::Claiming(Wish::GoOn),
            (S::Claiming(wish), Move::Claimed) => S::Preparing(wish),
            (S::Preparing(Wish::GoOn), Move::Run) => S::Running,

            (S::Ready, Move::Pause) => S::Paused(Kept::Nowhere),
            (S::Claiming(Wish::GoOn | Wish::Pause), Move::Pause) => S::Claiming(Wish::Pause),
            (S::Preparing(Wish::GoOn | Wish::Pause), Move::Pause) => S::Preparing(Wish::Pause),
            (S::Running | S::Resuming | S::Pausing(_), Move::Pause) => S::Pausing(PausedBy::Client),
            (S::Suspended, Move::Pause) => S::Paused(Kept::InWorker),
            (S::Withdrawing(_), Move::Pause) => S::Withdrawing(AfterWithdrawal::StaysPaused),
            (S::Paused(kept), Move::Pause) => S::Paused(kept),
            (S::Running | S::Resuming, Move::Preempt) => S::Pausing(PausedBy::Scheduler),
            (S::Pausing(PausedBy::Client), Move::IsPaused) => S::Paused(Kept::InWorker),
            (S::Pausing(PausedBy::Scheduler), Move::IsPaused) => S::Suspended,

            (S::Claiming(Wish::GoOn | Wish::Pause), Move::Resume) => S::Claiming(Wish::GoOn),
            (S::Preparing(Wish::GoOn | Wish::Pause), Move::Resume) => S::Preparing(Wish::GoOn),
            (S::Pausing(PausedBy::Client), Move::Resume) => S::Resuming,
            (S::Paused(Kept::Nowhere), Move::Resume) => S::Ready,
            (S::Paused(Kept::InWorker), Move::Resume) => S::Suspended,
            (S::Withdrawing(_), Move::Resume) => S::Withdrawing(AfterWithdrawal::IsReady),
            (
                S::Ready | S::Running | S::Suspended | S::Resuming | S::Pausing(PausedBy::Scheduler),
                Move::Resume,
            ) => self,
            (S::Suspended, Move::GoOn) => S::Resuming,
            (S::Resuming, Move::IsResumed) => S::Running,

            (S::Claiming(_), Move::Cancel) => S::Claiming(Wish::Cancel),
            (S::Preparing(_), Move::Cancel) => S::Preparing(Wish::Cancel),
            (
                S::Running
                | S::Pausing(_)
                | S::Paused(Kept::InWorker)
                | S::Suspended
                | S::Resuming
                | S::Withdrawing(_)
                | S::Cancelling,
                Move::Cancel,
            ) => S::Cancelling,

            (S::Paused(Kept::InWorker), Move::Withdraw) => S::Withdrawing(AfterWithdrawal::StaysPaused),
            (S::Suspended, Move::Withdraw) => S::Withdrawing(AfterWithdrawal::IsReady),
            (S::Withdrawing(after), Move::IsWithdrawn) => after.into(),

            // What a client asked for before the worker died still holds.
            (S::Claiming(Wish::Pause) | S::Preparing(Wish::Pause), Move::Requeue) => S::Paused(Kept::Nowhere),
            (S::Pausing(PausedBy::Client) | S::Paused(Kept::InWorker), Move::Requeue) => {
                S::Paused(Kept::Nowhere)
            }
            (S::Withdrawing(after), Move::Requeue) => after.into(),
            (
                S::Claiming(Wish::GoOn)
                | S::Preparing(Wish::GoOn)
                | S::Running
                | S::Pausing(PausedBy::Scheduler)
                | S::Suspended
                | S::Resuming,
                Move::Requeue,
            ) => S::Ready,

            (
                S::Running
                | S::Pausing(_)
                | S::Resuming
                | S::Suspended
                | S::Paused(Kept::InWorker)
                | S::Withdrawing(_)
                | S::Cancelling,
                Move::Deliver,
            ) => S::Finishing,
            (
                S::Ready
                | S::Claiming(_)
                | S::Preparing(_)
                | S::Running
                | S::Pausing(_)
                | S::Paused(_)
                | S::Suspended
                | S::Resuming
                | S::Cancelling
                | S::Withdrawing(_)
                | S::Finishing,
                Move::End,
            ) => S::Ending,
            (S::Ending, Move::EndIsJournaled) => S::Ended,
            (
                S::Ready
                | S::Claiming(_)
                | S::Preparing(_)
                | S::Running
                | S::Pausing(_)
                | S::Paused(_)
                | S::Suspended
                | S::Resuming
                | S::Cancelling
                | S::Withdrawing(_)
                | S::Finishing
                | S::Ending
                | S::Ended,
                _,
            ) => return Err(IllegalMove { step, state: self }),
        };
        Ok(next)
    }

    /// Whether it waits in a lane.
    pub(crate) fn is_waiting(self) -> bool {
        matches!(self, Self::Ready | Self::Suspended)
    }

    /// Whether it takes one of its worker's places.
    pub(crate) fn holds_place(self) -> bool {
        matches!(
            self,
            Self::Claiming(_)
                | Self::Preparing(_)
                | Self::Running
                | Self::Pausing(_)
                | Self::Resuming
                | Self::Cancelling
        )
    }

    /// Whether the worker was told of it, so that its lines are expected.
    pub(crate) fn is_in_worker(self) -> bool {
        matches!(
            self,
            Self::Running
                | Self::Pausing(_)
                | Self::Paused(Kept::InWorker)
                | Self::Suspended
                | Self::Resuming
                | Self::Cancelling
                | Self::Withdrawing(_)
        )
    }

    /// Whether a client holds it, so that it does not run after a restart either.
    pub(crate) fn is_held(self) -> bool {
        matches!(
            self,
            Self::Claiming(Wish::Pause)
                | Self::Preparing(Wish::Pause)
                | Self::Pausing(PausedBy::Client)
                | Self::Paused(_)
                | Self::Withdrawing(AfterWithdrawal::StaysPaused)
        )
    }

    /// The job's state as clients see it. `end` is how it ended, `loads` whether a model is being loaded for it.
    pub(crate) fn shown(self, end: JobState, loads: bool) -> JobState {
        match self {
            Self::Ready if loads => JobState::Loading,
            Self::Ready | Self::Suspended => JobState::Queued,
            Self::Withdrawing(AfterWithdrawal::IsReady) => JobState::Queued,
            Self::Claiming(Wish::Pause) | Self::Preparing(Wish::Pause) => JobState::Pausing,
            Self::Pausing(PausedBy::Client) => JobState::Pausing,
            Self::Claiming(_)
            | Self::Preparing(_)
            | Self::Running
            | Self::Pausing(PausedBy::Scheduler)
            | Self::Resuming
            | Self::Cancelling => JobState::Running,
            Self::Paused(_) | Self::Withdrawing(AfterWithdrawal::StaysPaused) => JobState::Paused,
            Self::Finishing | Self::Ending => JobState::Finishing,
            Self::Ended => end,
        }
    }
}

impl From<AfterWithdrawal> for StepState {
    fn from(after: AfterWithdrawal) -> Self {
        match after {
            AfterWithdrawal::StaysPaused => Self::Paused(Kept::Nowhere),
            AfterWithdrawal::IsReady => Self::Ready,
        }
    }
}

impl fmt::Display for StepState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ready => "ready",
            Self::Claiming(_) => "claiming",
            Self::Preparing(_) => "preparing",
            Self::Running => "running",
            Self::Pausing(_) => "pausing",
            Self::Paused(_) => "paused",
            Self::Suspended => "suspended",
            Self::Resuming => "resuming",
            Self::Cancelling => "cancelling",
            Self::Withdrawing(_) => "withdrawing",
            Self::Finishing => "finishing",
            Self::Ending => "ending",
            Self::Ended => "ended",
        })
    }
}

impl fmt::Display for Move {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Claim => "be claimed",
            Self::Claimed => "have its claim journaled",
            Self::Run => "be run",
            Self::Pause => "be paused",
            Self::Preempt => "be preempted",
            Self::IsPaused => "be paused by its worker",
            Self::Resume => "be resumed",
            Self::GoOn => "go on",
            Self::IsResumed => "be resumed by its worker",
            Self::Cancel => "be cancelled in its worker",
            Self::Withdraw => "be withdrawn",
            Self::IsWithdrawn => "be withdrawn by its worker",
            Self::Requeue => "be requeued",
            Self::Deliver => "deliver",
            Self::End => "end",
            Self::EndIsJournaled => "have its end journaled",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MOVES: [Move; 16] = [
        Move::Claim,
        Move::Claimed,
        Move::Run,
        Move::Pause,
        Move::Preempt,
        Move::IsPaused,
        Move::Resume,
        Move::GoOn,
        Move::IsResumed,
        Move::Cancel,
        Move::Withdraw,
        Move::IsWithdrawn,
        Move::Requeue,
        Move::Deliver,
        Move::End,
        Move::EndIsJournaled,
    ];

    #[test]
    fn a_step_without_trouble_passes_from_ready_to_ended() {
        let moves = [
            Move::Claim,
            Move::Claimed,
            Move::Run,
            Move::Deliver,
            Move::End,
            Move::EndIsJournaled,
        ];
        let end = moves
            .into_iter()
            .try_fold(StepState::Ready, |state, step| state.on(step));
        assert_eq!(end, Ok(StepState::Ended));
    }

    #[test]
    fn an_end_is_final_and_every_other_state_can_end() {
        for state in StepState::ALL {
            let ends = state.on(Move::End).is_ok();
            assert_eq!(
                ends,
                !matches!(state, StepState::Ending | StepState::Ended),
                "{state}"
            );
            assert!(MOVES.iter().all(|step| StepState::Ended.on(*step).is_err()));
        }
    }

    #[test]
    fn a_pause_that_a_client_was_promised_survives_the_death_of_the_worker() {
        for state in StepState::ALL.into_iter().filter(|state| state.is_held()) {
            if let Ok(next) = state.on(Move::Requeue) {
                assert_eq!(next, StepState::Paused(Kept::Nowhere), "{state}");
            }
        }
    }

    #[test]
    fn a_step_that_waits_or_is_paused_holds_no_place() {
        for state in StepState::ALL {
            if state.is_waiting() || matches!(state, StepState::Paused(_)) {
                assert!(!state.holds_place(), "{state}");
            }
        }
        assert!(StepState::Running.holds_place());
    }

    proptest! {
        /// Whatever is asked in whatever order, a cancel is final: from it on the step can only deliver or end.
        #[test]
        fn a_cancel_is_never_taken_back(steps in prop::collection::vec(prop::sample::select(&MOVES[..]), 0..60)) {
            let mut state = StepState::Ready;
            let mut cancelled = false;
            for step in steps {
                if let Ok(next) = state.on(step) {
                    cancelled |= step == Move::Cancel;
                    if cancelled {
                        prop_assert!(
                            matches!(
                                next,
                                StepState::Claiming(Wish::Cancel)
                                    | StepState::Preparing(Wish::Cancel)
                                    | StepState::Cancelling
                                    | StepState::Finishing
                                    | StepState::Ending
                                    | StepState::Ended
                            ),
                            "{state} became {next}"
                        );
                    }
                    state = next;
                }
            }
        }
    }
}
