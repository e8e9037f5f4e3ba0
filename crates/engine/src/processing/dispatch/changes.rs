//! Watches the files of models that could not be loaded: when they change, the models are tried again.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use calotype_protocol::ModelId;
use tokio::sync::mpsc;

use super::message::Internal;

/// The files are looked at so often.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// A file as it was found; `None` where there is none.
type Stamp = Option<(u64, Option<SystemTime>)>;

/// Tells the driver once any of these files has changed. Ends with it.
pub(super) fn watch(model: ModelId, files: Vec<PathBuf>, internal: mpsc::UnboundedSender<Internal>) {
    tokio::spawn(async move {
        let Some(before) = look(files.clone()).await else {
            return;
        };
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = internal.closed() => return,
            }
            match look(files.clone()).await {
                Some(now) if now != before => break,
                Some(_) => {}
                None => return,
            }
        }
        let _ = internal.send(Internal::FilesChanged { model });
    });
}

async fn look(files: Vec<PathBuf>) -> Option<Vec<Stamp>> {
    let stamp = |file: &PathBuf| {
        let facts = std::fs::metadata(file).ok()?;
        Some((facts.len(), facts.modified().ok()))
    };
    let looked = tokio::task::spawn_blocking(move || files.iter().map(stamp).collect());
    looked.await.ok()
}
