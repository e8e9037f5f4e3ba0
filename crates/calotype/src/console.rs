//! Everything that is drawn for a person: progress on a terminal, plain lines in a pipe, errors with their advice.

use std::io::IsTerminal;

use calotype_engine::EventKind;
use calotype_engine::processing::JobState;
use calotype_protocol::Phase;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::exit_code::Failure;

/// Prints a line for the caller. One that has stopped reading (`| head`) is no reason to fail.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}
pub(crate) use say;

/// Says why a command failed.
pub fn failure(failure: &Failure, json: bool) {
    if json {
        let envelope = match failure {
            Failure::Refused(error) => serde_json::json!({ "error": error }),
            other => serde_json::json!({ "error": { "code": "INTERNAL", "message": other.to_string() } }),
        };
        say!("{envelope}");
        return;
    }
    match failure {
        Failure::Refused(error) => {
            let field = error
                .field
                .as_ref()
                .map(|field| format!(" (field `{field}`)"))
                .unwrap_or_default();
            eprintln!("error: {}{field}", error.message);
            if let Some(advice) = &error.advice {
                eprintln!("help: {advice}");
            }
        }
        Failure::Unreachable { .. } => {
            eprintln!("error: {failure}");
            eprintln!("help: start one with `calotype serve`, or give its address with --server URL");
        }
        Failure::File { .. } | Failure::Other(_) => eprintln!("error: {failure}"),
    }
}

/// The progress of one job.
pub struct JobBar {
    bar: ProgressBar,
    plain: bool,
    phase: Option<Phase>,
}

impl JobBar {
    /// A bar on a terminal, lines in a pipe, nothing when `quiet`.
    pub fn new(quiet: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = ProgressBar::with_draw_target(
            Some(0),
            if terminal && !quiet {
                ProgressDrawTarget::stderr()
            } else {
                ProgressDrawTarget::hidden()
            },
        );
        if let Ok(style) = ProgressStyle::with_template("{msg:<10} [{bar:32}] {pos}/{len} {elapsed_precise}")
        {
            bar.set_style(style.progress_chars("=> "));
        }
        Self {
            bar,
            plain: !terminal && !quiet,
            phase: None,
        }
    }

    /// Shows an event.
    pub fn show(&mut self, event: &EventKind) {
        match event {
            EventKind::Progress { progress, .. } => {
                // Both at once: between them the bar would show more done than there is.
                self.bar.update(|state| {
                    state.set_len(u64::from(progress.total));
                    state.set_pos(u64::from(progress.done));
                });
                self.bar
                    .set_message(format!("{:?}", progress.phase).to_lowercase());
                if self.plain && (self.phase != Some(progress.phase) || progress.phase == Phase::Denoise) {
                    let phase = format!("{:?}", progress.phase).to_lowercase();
                    eprintln!(
                        "{phase} {}/{} ({:.0} ms)",
                        progress.done, progress.total, progress.step_ms
                    );
                }
                self.phase = Some(progress.phase);
            }
            EventKind::Job { state, reason, .. } if !state.is_final() => {
                self.bar.set_message(state.name());
                if self.plain && *state != JobState::Finishing {
                    match reason {
                        Some(reason) => eprintln!("{}: {reason}", state.name()),
                        None => eprintln!("{}", state.name()),
                    }
                }
            }
            EventKind::Gap { .. } => {
                if self.plain {
                    eprintln!("some events were missed; the job as it stands follows");
                }
            }
            EventKind::Job { .. } | EventKind::Preview { .. } | EventKind::Segment { .. } => {}
            EventKind::Worker {
                worker,
                state,
                reason,
            } => {
                if self.plain {
                    eprintln!(
                        "worker {worker} {state}{}",
                        reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default()
                    );
                }
            }
        }
    }

    /// Takes the bar away.
    pub fn finish(self) {
        self.bar.finish_and_clear();
    }
}

/// The progress of an installation.
pub struct PackageBar {
    bar: ProgressBar,
    plain: bool,
}

impl PackageBar {
    /// A bar on a terminal, a line a package in a pipe.
    pub fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = ProgressBar::with_draw_target(
            Some(0),
            if terminal {
                ProgressDrawTarget::stderr()
            } else {
                ProgressDrawTarget::hidden()
            },
        );
        if let Ok(style) = ProgressStyle::with_template("[{bar:32}] {pos}/{len} {elapsed_precise} {msg}") {
            bar.set_style(style.progress_chars("=> "));
        }
        // The large ones take minutes: the clock goes on meanwhile.
        bar.enable_steady_tick(std::time::Duration::from_millis(500));
        Self {
            bar,
            plain: !terminal,
        }
    }

    /// Shows a package; `most` is how many there will be at the most.
    pub fn show(&self, name: &str, done: usize, most: usize) {
        self.bar.update(|state| {
            state.set_len(most as u64);
            state.set_pos(done as u64);
        });
        self.bar.set_message(name.to_owned());
        if self.plain {
            eprintln!("{done}/{most} {name}");
        }
    }

    /// Takes the bar away.
    pub fn finish(self) {
        self.bar.finish_and_clear();
    }
}

/// Bytes for people.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{bytes} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}
