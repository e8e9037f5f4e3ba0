//! `calotype cancel`.

use calotype_engine::processing::JobView;

use super::Remote;
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

/// Asks for the end, and says where the job stands now.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    let view: JobView = args
        .remote
        .client()?
        .act(&format!("/api/jobs/{}/cancel", args.job))?;
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
