//! `calotype watch`.

use calotype_engine::processing::JobState;
use calotype_protocol::JobId;

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

/// Follows it to its end; with `--json` one event a line.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    let client = args.remote.client()?;
    if args.remote.json {
        for event in client.events(&args.job)? {
            let line = serde_json::to_string(&event?).map_err(|error| Failure::Other(error.to_string()))?;
            say!("{line}");
        }
        return Ok(Exit::Ok);
    }
    let view = super::generate::follow(&client, &JobId(args.job.clone()), false)?;
    say!("{} {}", view.id, view.state.name());
    for image in view.result.iter().flat_map(|result| &result.images) {
        say!("{}/api/artifacts/{}", args.remote.server, image.artifact.0);
    }
    match (view.state, view.error) {
        (JobState::Failed, Some(error)) => Err(error.into()),
        (JobState::Failed, None) => Ok(Exit::Failed),
        (JobState::Cancelled, _) => Ok(Exit::Cancelled),
        _ => Ok(Exit::Ok),
    }
}
