//! `calotype jobs`.

use calotype_engine::JobPage;

use super::Remote;
use crate::client::escaped;
use crate::console::say;
use crate::exit_code::{Exit, Failure};

/// Which jobs.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only those in this state, for instance `queued` or `failed`.
    #[arg(long)]
    state: Option<String>,
    /// At most so many, newest first.
    #[arg(long, default_value_t = 50)]
    limit: usize,
    #[command(flatten)]
    pub remote: Remote,
}

/// Lists them.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    let mut path = format!("/api/jobs?limit={}", args.limit);
    if let Some(state) = &args.state {
        path.push_str(&format!("&state={}", escaped(state)));
    }
    let page: JobPage = args.remote.client()?.get(&path)?;
    if args.remote.json {
        super::print_json(&page)?;
        return Ok(Exit::Ok);
    }
    for job in page.jobs {
        let why = job
            .error
            .map(|error| error.message)
            .or(job.reason)
            .unwrap_or_default();
        let prompt: String = job.plan.prompt.chars().take(40).collect();
        say!("{}  {:<10} {prompt:<40} {why}", job.id, job.state.name());
    }
    Ok(Exit::Ok)
}
