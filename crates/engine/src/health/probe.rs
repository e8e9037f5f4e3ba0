//! Something that is tried when somebody asks, at most once in a while, by one at a time: a thousand askers cost one try, and
//! a try that hangs is told as that.

use std::sync::Arc;
use std::time::{Duration, Instant};

use calotype_imaging::{DecodeLimits, Format, Rgb, decode_rgb, encode};
use tokio::sync::watch;

use super::Tried;
use crate::clock::now_ms;

/// A journal that can be tried.
pub trait JournalProbe: Send + Sync + 'static {
    /// Writes something that a restart would find, or says why that failed.
    fn probe(&self) -> impl Future<Output = Result<(), String>> + Send;
}

/// The latest try of one thing. Cheap to clone; all clones are the same.
#[derive(Debug, Clone)]
pub struct Probe {
    state: Arc<watch::Sender<State>>,
    every: Duration,
    patience: Duration,
}

#[derive(Debug, Clone, Default)]
struct State {
    tried: Tried,
    ended: Option<Instant>,
    /// The try that is under way.
    began: Option<Instant>,
}

impl Probe {
    /// A result is told again for `every`; an asker waits for a new one for `patience`.
    pub fn new(every: Duration, patience: Duration) -> Self {
        Self {
            state: Arc::new(watch::Sender::new(State::default())),
            every,
            patience,
        }
    }

    /// What came of the latest try, which is made now where the one before is too old.
    pub async fn tried<F>(&self, attempt: impl FnOnce() -> F) -> Tried
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        let mut starts = false;
        self.state.send_if_modified(|state| {
            let is_old = state.ended.is_none_or(|ended| ended.elapsed() >= self.every);
            starts = is_old && state.began.is_none();
            if starts {
                state.began = Some(Instant::now());
            }
            false
        });
        if starts {
            self.start(attempt());
        }
        let mut news = self.state.subscribe();
        let ended = news.wait_for(|state| state.began.is_none());
        match tokio::time::timeout(self.patience, ended).await {
            Ok(Ok(state)) => state.tried.clone(),
            Ok(Err(_)) | Err(_) => self.overdue(),
        }
    }

    /// In a task of its own: an asker that leaves must not take the try with it.
    fn start(&self, attempt: impl Future<Output = Result<(), String>> + Send + 'static) {
        let attempt = tokio::spawn(attempt);
        let state = Arc::clone(&self.state);
        tokio::spawn(async move {
            let outcome = attempt.await.unwrap_or_else(|error| Err(error.to_string()));
            let at_ms = now_ms();
            state.send_modify(|state| {
                *state = State {
                    tried: match outcome {
                        Ok(()) => Tried::Passed { at_ms },
                        Err(why) => Tried::Failed { at_ms, why },
                    },
                    ended: Some(Instant::now()),
                    began: None,
                };
            });
        });
    }

    /// The try that is under way has not ended in time.
    fn overdue(&self) -> Tried {
        let state = self.state.borrow();
        match state.began {
            Some(began) => Tried::Failed {
                at_ms: now_ms(),
                why: format!("no answer for {} ms", began.elapsed().as_millis()),
            },
            None => state.tried.clone(),
        }
    }
}

/// Encodes a small picture in every format and decodes it again.
pub(crate) async fn encodes() -> Result<(), String> {
    let tried = tokio::task::spawn_blocking(|| {
        [Format::Png, Format::Jpeg, Format::Webp]
            .into_iter()
            .try_for_each(encode_one)
    });
    tried.await.map_err(|error| error.to_string())?
}

fn encode_one(format: Format) -> Result<(), String> {
    const EDGE: u32 = 16;
    let failed = |error: calotype_imaging::ImageError| format!("{format:?}: {error}");
    let pixels = (0..EDGE * EDGE).flat_map(|place| [place, place / EDGE * 16, 128].map(|value| value as u8));
    let picture = Rgb::new(EDGE, EDGE, pixels.collect()).map_err(failed)?;
    let file = encode(&picture, format, 90, None).map_err(failed)?;
    let again = decode_rgb(&file, &DecodeLimits::default()).map_err(failed)?;
    let is_lossless = match format {
        Format::Png | Format::Webp => true,
        Format::Jpeg => false,
    };
    let is_same = if is_lossless {
        again == picture
    } else {
        (again.width, again.height) == (EDGE, EDGE)
    };
    if is_same {
        Ok(())
    } else {
        Err(format!("{format:?}: the picture came back changed"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_picture_goes_through_every_format_and_back() {
        encodes().await.unwrap();
    }

    #[tokio::test]
    async fn many_askers_cost_one_try() {
        let probe = Probe::new(Duration::from_secs(3600), Duration::from_secs(20));
        let tries = Arc::new(AtomicU32::new(0));
        for _ in 0..50 {
            let tries = Arc::clone(&tries);
            let tried = probe.tried(async move || {
                tries.fetch_add(1, Ordering::SeqCst);
                Ok(())
            });
            assert!(matches!(tried.await, Tried::Passed { .. }));
        }
        assert_eq!(tries.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_failure_is_told_and_the_next_try_can_pass() {
        let probe = Probe::new(Duration::ZERO, Duration::from_secs(20));
        let failed = probe.tried(async || Err("the disk is full".to_owned())).await;
        assert!(matches!(failed, Tried::Failed { why, .. } if why == "the disk is full"));
        assert!(matches!(probe.tried(async || Ok(())).await, Tried::Passed { .. }));
    }

    #[tokio::test]
    async fn a_try_that_hangs_is_told_as_that_and_is_not_made_twice() {
        let probe = Probe::new(Duration::ZERO, Duration::from_millis(1));
        let (answer, asked) = tokio::sync::oneshot::channel::<()>();
        let hung = probe.tried(async move || {
            let _ = asked.await;
            Ok(())
        });
        assert!(matches!(hung.await, Tried::Failed { why, .. } if why.contains("no answer")));
        let second = probe.tried(async || Err("made twice".to_owned())).await;
        assert!(matches!(second, Tried::Failed { why, .. } if why.contains("no answer")));
        answer.send(()).unwrap();
        let mut news = probe.state.subscribe();
        news.wait_for(|state| state.began.is_none()).await.unwrap();
        assert!(matches!(probe.state.borrow().tried, Tried::Passed { .. }));
    }

    #[tokio::test]
    async fn a_try_that_panics_is_a_failure() {
        let probe = Probe::new(Duration::ZERO, Duration::from_secs(20));
        let tried = probe.tried(async || panic!("no codec")).await;
        assert!(matches!(tried, Tried::Failed { .. }));
    }
}
