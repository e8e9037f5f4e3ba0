//! The states of one incarnation and the legal moves between them. Pure.

use std::fmt;

/// Where an incarnation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// No process yet.
    Idle,
    /// Started; `hello` is awaited.
    Starting,
    /// Welcomed; `ready` is awaited.
    Handshaking,
    /// Takes work.
    Ready,
    /// Was asked or told to leave; what it still says is taken.
    Stopping,
    /// Reaped. The end.
    Gone,
}

/// What can happen to an incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Move {
    /// The process runs.
    Spawned,
    /// `hello` came, of a version that we speak.
    Hello,
    /// `ready` came.
    Ready,
    /// A message about work came.
    Message,
    /// We want it to leave.
    Leave,
    /// It ended, or never began.
    Reaped,
}

/// A move that this state does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{step} is out of turn while {state}")]
pub(super) struct IllegalMove {
    /// The move.
    step: Move,
    /// Where it was tried.
    state: State,
}

impl State {
    /// The state after `step`, or why there is none.
    pub(super) fn on(self, step: Move) -> Result<State, IllegalMove> {
        match (self, step) {
            (State::Idle, Move::Spawned) => Ok(State::Starting),
            (State::Starting, Move::Hello) => Ok(State::Handshaking),
            (State::Handshaking, Move::Ready) => Ok(State::Ready),
            (State::Ready, Move::Message) => Ok(State::Ready),
            // A process that is told to leave may have written anything just before.
            (State::Stopping, Move::Hello | Move::Ready | Move::Message | Move::Leave) => Ok(State::Stopping),
            (State::Starting | State::Handshaking | State::Ready, Move::Leave) => Ok(State::Stopping),
            (
                State::Idle | State::Starting | State::Handshaking | State::Ready | State::Stopping,
                Move::Reaped,
            ) => Ok(State::Gone),
            (
                State::Idle
                | State::Starting
                | State::Handshaking
                | State::Ready
                | State::Stopping
                | State::Gone,
                _,
            ) => Err(IllegalMove { step, state: self }),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Idle => "idle",
            State::Starting => "hello is awaited",
            State::Handshaking => "ready is awaited",
            State::Ready => "ready",
            State::Stopping => "stopping",
            State::Gone => "gone",
        })
    }
}

impl fmt::Display for Move {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Move::Spawned => "a start",
            Move::Hello => "hello",
            Move::Ready => "ready",
            Move::Message => "a message about work",
            Move::Leave => "a request to leave",
            Move::Reaped => "the end",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MOVES: [Move; 6] = [
        Move::Spawned,
        Move::Hello,
        Move::Ready,
        Move::Message,
        Move::Leave,
        Move::Reaped,
    ];

    #[test]
    fn a_good_life_passes_every_state() {
        let mut state = State::Idle;
        let mut seen = Vec::new();
        for step in MOVES {
            state = state.on(step).unwrap();
            seen.push(state);
        }
        assert_eq!(
            seen,
            [
                State::Starting,
                State::Handshaking,
                State::Ready,
                State::Ready,
                State::Stopping,
                State::Gone
            ]
        );
    }

    #[test]
    fn a_second_hello_is_out_of_turn() {
        let error = State::Handshaking.on(Move::Hello).unwrap_err();
        assert_eq!(error.to_string(), "hello is out of turn while ready is awaited");
        assert!(State::Ready.on(Move::Ready).is_err());
        assert!(State::Starting.on(Move::Message).is_err());
    }

    fn rank(state: State) -> u8 {
        match state {
            State::Idle => 0,
            State::Starting => 1,
            State::Handshaking => 2,
            State::Ready => 3,
            State::Stopping => 4,
            State::Gone => 5,
        }
    }

    proptest! {
        #[test]
        fn a_life_never_goes_back_and_ends_at_gone(steps in prop::collection::vec(prop::sample::select(&MOVES[..]), 0..40)) {
            let mut state = State::Idle;
            for step in steps {
                match state.on(step) {
                    Ok(next) => {
                        prop_assert!(rank(next) >= rank(state));
                        prop_assert!(state != State::Gone);
                        prop_assert_eq!(next == State::Gone, step == Move::Reaped);
                        state = next;
                    }
                    Err(_) if state == State::Gone => {}
                    Err(_) => prop_assert!(step != Move::Reaped, "the end is always possible"),
                }
            }
        }
    }
}
