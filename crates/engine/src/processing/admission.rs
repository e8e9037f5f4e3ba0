//! How much may wait: a bound by count and by bytes. A ticket is held from before the journal until the job's end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::error::{Code, Error};

/// Time after which a full queue is worth another try, before any job has shown how long one takes.
const FIRST_RETRY_MS: u64 = 1000;

/// Counts what waits and runs.
#[derive(Debug)]
pub(crate) struct Gate {
    most_jobs: usize,
    most_bytes: u64,
    jobs: AtomicUsize,
    bytes: AtomicU64,
    recent_job_ms: AtomicU64,
}

/// A place in the queue; given back on drop.
#[derive(Debug)]
pub(crate) struct Ticket {
    gate: Arc<Gate>,
    bytes: u64,
}

impl Gate {
    pub(crate) fn new(most_jobs: usize, most_bytes: u64) -> Self {
        Self {
            most_jobs,
            most_bytes,
            jobs: AtomicUsize::new(0),
            bytes: AtomicU64::new(0),
            recent_job_ms: AtomicU64::new(FIRST_RETRY_MS),
        }
    }

    /// A place for a new request, or `QUEUE_FULL` with the numbers.
    pub(crate) fn enter(self: &Arc<Self>, bytes: u64) -> Result<Ticket, Error> {
        // Taken first and looked at afterwards: two that come together cannot both slip under the bound.
        let ticket = self.readmit(bytes);
        let (jobs, held_bytes) = (
            self.jobs.load(Ordering::SeqCst),
            self.bytes.load(Ordering::SeqCst),
        );
        let what = if jobs > self.most_jobs {
            format!("the queue holds {} jobs, the most it may", jobs - 1)
        } else if held_bytes > self.most_bytes {
            format!(
                "the waiting requests would hold {held_bytes} bytes, {} are allowed",
                self.most_bytes
            )
        } else {
            return Ok(ticket);
        };
        Err(Error::new(Code::QueueFull, what)
            .advice("try again later, or raise the limit of the queue")
            .retry_after_ms(self.recent_job_ms.load(Ordering::Relaxed).max(1)))
    }

    /// A place for a job that was accepted before a restart: it was promised, so no bound applies.
    pub(crate) fn readmit(self: &Arc<Self>, bytes: u64) -> Ticket {
        self.jobs.fetch_add(1, Ordering::SeqCst);
        self.bytes.fetch_add(bytes, Ordering::SeqCst);
        Ticket {
            gate: Arc::clone(self),
            bytes,
        }
    }

    /// Takes in how long a job took, to tell the next refused client when to come back.
    pub(crate) fn took(&self, job_ms: u64) {
        let before = self.recent_job_ms.load(Ordering::Relaxed);
        self.recent_job_ms
            .store((before * 7 + job_ms) / 8, Ordering::Relaxed);
    }
}

impl Ticket {
    /// The same place, holding fewer bytes from now on.
    pub(crate) fn shrunk_to(mut self, bytes: u64) -> Self {
        let spare = self.bytes.saturating_sub(bytes);
        self.gate.bytes.fetch_sub(spare, Ordering::SeqCst);
        self.bytes -= spare;
        self
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.gate.jobs.fetch_sub(1, Ordering::SeqCst);
        self.gate.bytes.fetch_sub(self.bytes, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_refuses_by_count_and_by_bytes_and_keeps_nothing_of_the_refused() {
        let gate = Arc::new(Gate::new(2, 100));
        let first = gate.enter(60).unwrap();
        let error = gate.enter(41).unwrap_err();
        assert_eq!(
            (error.code, error.retry_after_ms),
            (Code::QueueFull, Some(FIRST_RETRY_MS))
        );
        let _second = gate.enter(40).unwrap();
        assert_eq!(gate.enter(0).unwrap_err().code, Code::QueueFull);
        drop(first);
        gate.enter(60).unwrap();
    }

    #[test]
    fn what_was_promised_before_a_restart_is_always_let_in() {
        let gate = Arc::new(Gate::new(0, 0));
        let _ticket = gate.readmit(10);
        assert!(gate.enter(0).is_err());
    }
}
