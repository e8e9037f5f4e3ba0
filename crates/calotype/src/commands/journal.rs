//! `calotype journal`: looks at the journal of a data directory, saves what can be read of it, and copies it.

use std::path::PathBuf;

use calotype_engine::store::rescue::{self, Loss, Report};
use clap::Subcommand;

use crate::console::{bytes, say};
use crate::exit_code::{Exit, Failure};
use crate::places;

/// What to do with the journal.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The journal is DATA/journal.sqlite: every accepted job, and how it ended. While a server runs, its newest part is in
DATA/journal.sqlite-wal; a server that is stopped folds it in, so that journal.sqlite alone is whole. The pictures are plain
files in DATA/artifacts. DATA/journal.mark says which journal made them and how far it had come; a journal that is not that
one, or has not come as far, is refused at the start of a server, and nothing is changed.

Back up:       calotype journal backup FILE, then copy DATA/artifacts (in this order; the server may run)
Restore:       with no server running, remove DATA/journal.sqlite-wal and DATA/journal.sqlite-shm, put the copy in place of
               DATA/journal.sqlite, then `calotype journal recover --accept-loss` (it is older than the mark, as it must be)
Refused start: calotype journal check, then put the right file back or `calotype journal recover`

Exit codes: 0 sound or done; 1 damaged, refused or failed; 2 wrong options")]
pub struct Args {
    #[command(subcommand)]
    deed: Deed,
    /// The data directory of the server.
    #[arg(long, global = true, value_name = "DIR", env = "CALOTYPE_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Print JSON for programs.
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
enum Deed {
    /// Read the whole journal and say what is wrong with it; changes nothing, and a server may run.
    Check,
    /// Make a damaged journal fit to be served: what can be read goes into a new one, the old files are kept as
    /// journal.sqlite.broken-TIME. No server may run. A sound journal is left as it is.
    Recover {
        /// Go on although jobs are lost that the journal is known to have had; without this, say what would be lost and
        /// change nothing.
        #[arg(long)]
        accept_loss: bool,
    },
    /// Copy the journal into one new file, as it is at one moment, and read the copy again; a server may run.
    Backup {
        /// The file to make.
        target: PathBuf,
    },
}

/// Does it.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    let dir = args.data_dir.clone().unwrap_or_else(places::data_dir);
    if !dir.is_dir() {
        return Err(Failure::File {
            what: format!("read the data directory {}", dir.display()),
            reason: "there is no such folder; name the server's with --data-dir".into(),
        });
    }
    let failed = |error| Failure::from(calotype_engine::Error::from(error));
    match &args.deed {
        Deed::Check => {
            let report = rescue::check(&dir).map_err(failed)?;
            if args.json {
                super::print_json(&report)?;
            } else {
                show(&report);
            }
            Ok(if report.sound { Exit::Ok } else { Exit::Internal })
        }
        Deed::Recover { accept_loss } => {
            let loss = if *accept_loss {
                Loss::Accepted
            } else {
                Loss::Refused
            };
            let recovered = rescue::recover(&dir, loss).map_err(failed)?;
            if args.json {
                super::print_json(&recovered)?;
                return Ok(Exit::Ok);
            }
            if !recovered.changed {
                say!(
                    "the journal is sound, with {} jobs; nothing was changed",
                    recovered.jobs
                );
                return Ok(Exit::Ok);
            }
            say!("a new journal with {} jobs was made", recovered.jobs);
            for lost in recovered.lost {
                say!("lost    {lost}");
            }
            for kept in recovered.kept {
                say!("kept    {}", kept.display());
            }
            Ok(Exit::Ok)
        }
        Deed::Backup { target } => {
            let copy = rescue::backup(&dir, target).map_err(failed)?;
            if args.json {
                super::print_json(&copy)?;
            } else {
                say!(
                    "copied {} jobs to {} ({}); now copy {}",
                    copy.jobs,
                    copy.target.display(),
                    bytes(copy.bytes),
                    dir.join("artifacts").display()
                );
            }
            Ok(Exit::Ok)
        }
    }
}

fn show(report: &Report) {
    let verdict = if report.sound { "sound  " } else { "damaged" };
    let version = report
        .version
        .map(|version| format!(", version {version}"))
        .unwrap_or_default();
    say!("{verdict} {}{version}", report.journal.display());
    for problem in &report.problems {
        say!("        {problem}");
    }
    if !report.sound {
        say!(
            "        `calotype journal recover` makes a new one of what can be read, and says what would be lost"
        );
    }
    if let Some(holder) = &report.in_use_by {
        say!("in use  by {holder}");
    }
    say!(
        "size    {} and {} of log",
        bytes(report.journal_bytes),
        bytes(report.log_bytes)
    );
    let jobs: Vec<String> = report
        .jobs
        .iter()
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    say!(
        "jobs    {}",
        if jobs.is_empty() {
            "none".into()
        } else {
            jobs.join(", ")
        }
    );
    say!(
        "files   {} artifacts of jobs, {} of them missing",
        report.artifacts,
        report.artifacts_missing.len()
    );
    for hash in report.artifacts_missing.iter().take(10) {
        say!("        {hash} is missing");
    }
    say!(
        "trash   {} files, {}",
        report.trash_files,
        bytes(report.trash_bytes)
    );
}
