//! `calotype generate`: submit, follow, fetch. Without `--server` the server is started in this process, so that there
//! is one way for both.

mod picture;

use std::path::PathBuf;

use calotype_engine::EventKind;
use calotype_engine::inference::GenerateRequest;
use calotype_engine::processing::{ImageView, JobState, JobView};
use calotype_protocol::JobId;
use calotype_server::ServerConfig;
use tokio::sync::oneshot;

use picture::PictureArgs;

use crate::client::{Client, escaped};
use crate::console::JobBar;
use crate::console::say;
use crate::exit_code::{Exit, Failure};
use crate::local::{self, Drain, EngineArgs};

/// What to draw, and how.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    calotype generate \"a red apple on the beach, 3d\"\n  \
    calotype generate \"a robot, pixel art\" --lora pixel --preset quality\n  \
    calotype generate \"a lemon\" --init apple.png --strength 0.7 --preset quality\n  \
    calotype generate \"a red hat\" --init me.png --mask hat.png --mask-area masked --mask-blur 4\n  \
    calotype generate \"a house\" --model sdxl --control canny-sdxl=house.png,canny,0.8 --hires 1.5")]
pub struct Args {
    #[command(flatten)]
    picture: PictureArgs,
    /// Who goes first on a server: critical, interactive, batch or background.
    #[arg(long, value_name = "CLASS")]
    class: Option<String>,
    /// Larger goes first within the class.
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    priority: Option<i32>,
    /// Use this server instead of starting one.
    #[arg(long, value_name = "URL", env = "CALOTYPE_SERVER")]
    server: Option<String>,
    /// Its API key.
    #[arg(long, value_name = "KEY", env = "CALOTYPE_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Print the finished job as JSON, and no progress.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

/// Makes the pictures.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    local::log("warn");
    let request = args.picture.request()?;
    let runtime = local::runtime()?;
    if let Some(url) = &args.server {
        let client = Client::new(url, args.api_key.clone())?;
        return draw(args, &request, &client, runtime.handle());
    }
    let folder = tempfile::tempdir().map_err(|error| Failure::File {
        what: "make a temporary folder".into(),
        reason: error.to_string(),
    })?;
    let config = args.engine.config(folder.path())?;
    let server_config = ServerConfig {
        listen: ([127, 0, 0, 1], 0).into(),
        client_name: Some("local".into()),
        ..ServerConfig::default()
    };
    let (listening, address) = oneshot::channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let server = runtime.spawn(local::serve(
        config,
        server_config,
        move |address| {
            let _ = listening.send(address);
        },
        async {
            let _ = stopped.await;
        },
        Drain::AtOnce,
    ));
    let Ok(address) = address.blocking_recv() else {
        // It never listened: its own error is the answer.
        let ended = runtime
            .block_on(server)
            .map_err(|error| Failure::Other(error.to_string()))?;
        return ended.and(Err(Failure::Other("the server ended before it listened".into())));
    };
    let client = Client::new(&format!("http://{address}"), None)?;
    let drawn = draw(args, &request, &client, runtime.handle());
    let _ = stop.send(());
    let _ = runtime.block_on(server);
    drawn
}

fn draw(
    args: &Args,
    request: &GenerateRequest,
    client: &Client,
    runtime: &tokio::runtime::Handle,
) -> Result<Exit, Failure> {
    let submitted = client.submit(request, args.class.as_deref(), args.priority)?;
    for warning in &submitted.warnings {
        eprintln!("warning: {} (field `{}`)", warning.message, warning.field);
    }
    let job = submitted.job.id;
    runtime.spawn(cancel_on_interrupt(client.clone(), job.clone()));
    let view = follow(client, &job, args.json)?;
    match view.state {
        JobState::Succeeded => {}
        JobState::Cancelled => {
            if !args.json {
                eprintln!("cancelled");
            }
            return Ok(Exit::Cancelled);
        }
        JobState::Failed => {
            return Err(match view.error {
                Some(error) => error.into(),
                None => Failure::Other(format!("job {job} failed")),
            });
        }
        other => {
            return Err(Failure::Other(format!(
                "the stream of job {job} ended while it was {}",
                other.name()
            )));
        }
    }
    let images = view
        .result
        .as_ref()
        .map(|result| result.images.as_slice())
        .unwrap_or_default();
    let mut files = Vec::new();
    for (index, image) in images.iter().enumerate() {
        let path = path_of(args, image, index);
        let bytes = client.artifact(&image.artifact.0)?;
        std::fs::write(&path, bytes).map_err(|error| Failure::File {
            what: format!("write {}", path.display()),
            reason: error.to_string(),
        })?;
        files.push(path);
    }
    if args.json {
        super::print_json(&serde_json::json!({ "job": view, "files": files }))?;
    } else {
        let ms = view
            .finished_at_ms
            .unwrap_or(view.created_at_ms)
            .saturating_sub(view.created_at_ms);
        let engine = view
            .result
            .as_ref()
            .map(|result| result.engine.as_str())
            .unwrap_or_default();
        for (path, image) in files.iter().zip(images) {
            say!(
                "{} (seed {}, {:.2} s, {engine})",
                path.display(),
                image.seed,
                ms as f64 / 1e3
            );
        }
    }
    Ok(Exit::Ok)
}

/// Shows a job's progress until it ends.
pub fn follow(client: &Client, job: &JobId, quiet: bool) -> Result<JobView, Failure> {
    let mut bar = JobBar::new(quiet);
    let mut last = None;
    for event in client.events(job.as_str())? {
        let event = event?;
        bar.show(&event.kind);
        if let EventKind::Job { view: Some(view), .. } = event.kind {
            last = Some(*view);
        }
    }
    bar.finish();
    match last {
        Some(view) if view.state.is_final() => Ok(view),
        Some(_) | None => client.get(&format!("/api/jobs/{}", escaped(job.as_str()))),
    }
}

/// The first Ctrl-C cancels the job, the second one leaves.
async fn cancel_on_interrupt(client: Client, job: JobId) {
    if tokio::signal::ctrl_c().await.is_err() {
        return;
    }
    eprintln!("cancelling; once more leaves at once");
    let cancel =
        tokio::task::spawn_blocking(move || client.act::<JobView>(&format!("/api/jobs/{job}/cancel")));
    if tokio::signal::ctrl_c().await.is_ok() {
        std::process::exit(Exit::Cancelled as i32);
    }
    let _ = cancel.await;
}

/// Where image `index` goes: the output given, or a name from the prompt that is not taken yet.
fn path_of(args: &Args, image: &ImageView, index: usize) -> PathBuf {
    let numbered = |stem: &str, number: usize, extension: &str| match number {
        1 => format!("{stem}.{extension}"),
        number => format!("{stem}-{number}.{extension}"),
    };
    let by_type = match image.media_type.as_str() {
        "image/jpeg" => "jpg",
        "image/webp" => "webp",
        _ => "png",
    };
    if let Some(output) = &args.picture.output {
        let stem = output
            .file_stem()
            .and_then(|stem| stem.to_str())
            .unwrap_or("image");
        let extension = output
            .extension()
            .and_then(|extension| extension.to_str())
            .unwrap_or(by_type);
        return output.with_file_name(numbered(stem, index + 1, extension));
    }
    let stem = slug(&args.picture.prompt);
    (1..)
        .map(|number| PathBuf::from(numbered(&stem, number, by_type)))
        .find(|path| !path.exists())
        .unwrap_or_else(|| PathBuf::from(format!("{}.{by_type}", image.artifact.0)))
}

/// A file name from a prompt: lower-case words with hyphens, at most 60 characters.
fn slug(prompt: &str) -> String {
    let mut slug = String::new();
    for letter in prompt.chars().flat_map(char::to_lowercase) {
        if slug.chars().count() >= 60 {
            break;
        }
        if letter.is_alphanumeric() {
            slug.push(letter);
        } else if !slug.is_empty() && !slug.ends_with('-') {
            slug.push('-');
        }
    }
    let slug = slug.trim_end_matches('-');
    if slug.is_empty() {
        "image".to_owned()
    } else {
        slug.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_becomes_a_file_name() {
        assert_eq!(
            slug("a red apple on the beach, 3d"),
            "a-red-apple-on-the-beach-3d"
        );
        assert_eq!(slug("../../etc/passwd"), "etc-passwd");
        assert_eq!(slug("???"), "image");
        assert!(slug(&"long ".repeat(100)).chars().count() <= 60);
    }
}
