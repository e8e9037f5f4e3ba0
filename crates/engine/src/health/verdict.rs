//! Whether each of the six links can do its part, and the word for all of them. Pure: knows only the facts, each of which
//! was tried or read.

use super::facts::{
    HealthFacts, MemoryFacts, ModelCounts, RunFacts, RunFailure, Tried, WorkerFacts, WorkerHealth,
};
use super::view::DomainHealth;
use crate::error::Domain;

/// A ready worker beats every second; one that has not for so long does nothing useful.
pub const BEAT_WITHIN_MS: u64 = 10_000;
/// A driver that has not answered for so long no longer shows what is free.
pub const READ_WITHIN_MS: u64 = 10_000;
/// So many failed runs without one that succeeded are no accident of one request.
pub const FAILURES_IN_A_ROW: u32 = 3;

/// The server's state in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Every link does its part, on every device.
    Ok,
    /// The workers are being started for the first time.
    Starting,
    /// A link cannot do its part, or a device has lost all its workers.
    Degraded,
    /// The server finishes what runs and takes nothing new.
    Draining,
}

impl Status {
    /// The word on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Starting => "starting",
            Self::Degraded => "degraded",
            Self::Draining => "draining",
        }
    }
}

/// The six links in the order in which they start.
pub fn chain(facts: &HealthFacts) -> Vec<DomainHealth> {
    vec![
        device(facts),
        memory(facts),
        model(facts),
        processing(facts),
        inference(facts),
        postprocessing(facts),
    ]
}

/// The one word for these facts and the chain that came of them.
pub fn status(facts: &HealthFacts, chain: &[DomainHealth]) -> Status {
    if facts.draining {
        return Status::Draining;
    }
    let mut broken = chain.iter().filter(|link| !link.healthy).peekable();
    let lost = facts.offline_devices();
    if broken.peek().is_none() && lost.is_empty() {
        return Status::Ok;
    }
    let waits_for_workers = broken.all(|link| matches!(link.domain, Domain::Device | Domain::Inference));
    let comes_up =
        facts.dispatching && !facts.was_ready && facts.workers.iter().all(|worker| !worker.has_failed());
    if waits_for_workers && comes_up {
        Status::Starting
    } else {
        Status::Degraded
    }
}

fn link(domain: Domain, healthy: bool, detail: String) -> DomainHealth {
    DomainHealth {
        domain,
        healthy,
        detail,
        tried_ms_ago: None,
    }
}

fn device(facts: &HealthFacts) -> DomainHealth {
    let of = |wanted: WorkerHealth| facts.workers.iter().filter(move |worker| worker.health == wanted);
    let is_silent = |worker: &&WorkerFacts| worker.beat_age_ms.is_some_and(|age_ms| age_ms > BEAT_WITHIN_MS);
    let silent: Vec<&str> = of(WorkerHealth::Ready)
        .filter(is_silent)
        .map(|worker| worker.name.as_str())
        .collect();
    let ready = of(WorkerHealth::Ready).count() - silent.len();
    let mut detail = format!("{ready} of {} workers ready", facts.workers.len());
    let asleep = of(WorkerHealth::Asleep).count();
    if asleep > 0 {
        detail += &format!(", {asleep} asleep until they are needed");
    }
    let starting = of(WorkerHealth::Starting).count();
    if starting > 0 {
        detail += &format!(", {starting} starting");
    }
    if !silent.is_empty() {
        let seconds = BEAT_WITHIN_MS / 1000;
        detail += &format!("; without a heartbeat for {seconds} s: {}", silent.join(", "));
    }
    for worker in &facts.workers {
        if let (WorkerHealth::Gone | WorkerHealth::Starting, Some(why)) = (worker.health, &worker.last_exit) {
            detail += &format!("; {} ended: {why}", worker.name);
        }
    }
    let beats = of(WorkerHealth::Ready).filter(|worker| !is_silent(worker));
    DomainHealth {
        tried_ms_ago: beats.filter_map(|worker| worker.beat_age_ms).min(),
        ..link(Domain::Device, ready > 0, detail)
    }
}

fn memory(facts: &HealthFacts) -> DomainHealth {
    let mut wrong = Vec::new();
    let (mut compared, mut unread, mut oldest_ms) = (0, Vec::new(), None);
    for memory in &facts.memory {
        let MemoryFacts {
            device,
            budget_bytes,
            leased_bytes,
            worker_used_bytes,
            free_bytes,
            read_age_ms,
        } = memory;
        if leased_bytes > budget_bytes {
            wrong.push(format!(
                "{device}: {leased_bytes} bytes are leased of a budget of {budget_bytes}"
            ));
        }
        let (Some(free_bytes), Some(age_ms)) = (free_bytes, read_age_ms) else {
            unread.push(device.as_str());
            continue;
        };
        compared += 1;
        oldest_ms = oldest_ms.max(Some(*age_ms));
        if *age_ms > READ_WITHIN_MS {
            wrong.push(format!(
                "{device}: the driver has not answered for {} s",
                age_ms / 1000
            ));
            continue;
        }
        // What workers hold of their leases is no longer free. The rest is promised and must still be there.
        let promised_bytes = leased_bytes.saturating_sub(*worker_used_bytes);
        if promised_bytes > *free_bytes {
            wrong.push(format!(
                "{device}: leases promise {promised_bytes} bytes more than the workers hold, the driver has {free_bytes} free"
            ));
        }
    }
    let healthy = facts.dispatching && wrong.is_empty();
    let mut detail = match (facts.dispatching, wrong.is_empty()) {
        (false, _) => "the dispatcher, which keeps the ledgers, has ended".to_owned(),
        (true, true) => {
            format!("leases of {compared} devices are within their budgets and what the drivers have free")
        }
        (true, false) => wrong.join("; "),
    };
    if !unread.is_empty() {
        detail += &format!("; no driver tells what is free on {}", unread.join(", "));
    }
    DomainHealth {
        tried_ms_ago: oldest_ms,
        ..link(Domain::Memory, healthy, detail)
    }
}

fn model(facts: &HealthFacts) -> DomainHealth {
    let ModelCounts { usable, unusable } = &facts.models;
    let makers = facts.models.usable_makers();
    let listed = |counts: &std::collections::BTreeMap<&'static str, usize>| {
        let parts = counts.iter().map(|(kind, count)| format!("{count} {kind}"));
        parts.collect::<Vec<_>>().join(", ")
    };
    let mut detail = if usable.is_empty() {
        "nothing in the model folders can be used".to_owned()
    } else {
        format!("usable by kind: {}", listed(usable))
    };
    if !unusable.is_empty() {
        detail += &format!("; with a problem: {}", listed(unusable));
    }
    if facts.load_failures > 0 {
        detail += &format!("; {} could not be loaded by a worker", facts.load_failures);
    }
    link(Domain::Model, makers > 0, detail)
}

fn processing(facts: &HealthFacts) -> DomainHealth {
    let (journal_works, journal) = match &facts.journal {
        Tried::Never => (false, "the journal has not been tried yet".to_owned()),
        Tried::Passed { .. } => (true, "the journal takes writes".to_owned()),
        Tried::Failed { why, .. } => (false, format!("the journal takes no writes: {why}")),
    };
    let detail = if facts.dispatching {
        format!("{} jobs live, {journal}", facts.jobs_live)
    } else {
        format!("the dispatcher has ended, {journal}")
    };
    DomainHealth {
        tried_ms_ago: facts.journal.age_ms(facts.now_ms),
        ..link(Domain::Processing, facts.dispatching && journal_works, detail)
    }
}

fn inference(facts: &HealthFacts) -> DomainHealth {
    let RunFacts {
        succeeded_at_ms,
        failure,
        failures_in_a_row,
    } = &facts.runs;
    let ready = || {
        facts
            .workers
            .iter()
            .filter(|worker| worker.health == WorkerHealth::Ready)
    };
    let mut runtimes: Vec<&str> = ready().filter_map(|worker| worker.engine.as_deref()).collect();
    runtimes.sort_unstable();
    runtimes.dedup();
    let mut detail = if runtimes.is_empty() {
        "no runtime is ready".to_owned()
    } else {
        format!("ready: {}", runtimes.join(", "))
    };
    let seconds_ago = |at_ms: u64| facts.now_ms.saturating_sub(at_ms) / 1000;
    detail += &match succeeded_at_ms {
        Some(at_ms) => format!(
            "; the last run that succeeded ended {} s ago",
            seconds_ago(*at_ms)
        ),
        None => "; no run has succeeded since the start".to_owned(),
    };
    if let Some(RunFailure { at_ms, why }) = failure {
        detail += &format!("; the last failure was {} s ago: {why}", seconds_ago(*at_ms));
    }
    let fails = *failures_in_a_row >= FAILURES_IN_A_ROW;
    if fails {
        detail += &format!("; {failures_in_a_row} runs failed since one succeeded");
    }
    let latest_ms = (*succeeded_at_ms).max(failure.as_ref().map(|failure| failure.at_ms));
    DomainHealth {
        tried_ms_ago: latest_ms.map(|at_ms| facts.now_ms.saturating_sub(at_ms)),
        ..link(Domain::Inference, !runtimes.is_empty() && !fails, detail)
    }
}

fn postprocessing(facts: &HealthFacts) -> DomainHealth {
    let (healthy, detail) = match &facts.encoding {
        Tried::Never => (false, "no picture has been encoded yet".to_owned()),
        Tried::Passed { .. } => (
            true,
            "a picture was encoded as png, jpeg and webp, and decoded again".to_owned(),
        ),
        Tried::Failed { why, .. } => (false, format!("a picture could not be encoded: {why}")),
    };
    DomainHealth {
        tried_ms_ago: facts.encoding.age_ms(facts.now_ms),
        ..link(Domain::Postprocessing, healthy, detail)
    }
}
