//! `calotype cancel`, `pause` and `resume`.

use calotype_engine::processing::JobView;

use super::Remote;
use crate::client::escaped;
use crate::console::say;
use crate::exit_code::{Exit, Failure};

/// Which job.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Its name, `job_…`.
    job: String,
    #[command(flatten)]
    pub remote: Remote,
}

/// What is done to it, as the last part of the route.
#[derive(Debug, Clone, Copy)]
pub enum Deed {
    /// End it.
    Cancel,
    /// Hold it at its next step.
    Pause,
    /// Let it go on.
    Resume,
}

/// Asks for the deed, and says where the job stands now.
pub fn run(args: &Args, deed: Deed) -> Result<Exit, Failure> {
    let deed = match deed {
        Deed::Cancel => "cancel",
        Deed::Pause => "pause",
        Deed::Resume => "resume",
    };
    let path = format!("/api/jobs/{}/{deed}", escaped(&args.job));
    let view: JobView = args.remote.client()?.act(&path)?;
    if args.remote.json {
        super::print_json(&view)?;
    } else {
        let reason = view
            .reason
            .map(|reason| format!(": {reason}"))
            .unwrap_or_default();
        say!("{} {}{reason}", view.id, view.state.name());
    }
    Ok(Exit::Ok)
}
