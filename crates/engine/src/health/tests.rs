use std::collections::BTreeMap;

use super::*;
use crate::error::{Code, Domain, Error};

const NOW_MS: u64 = 1_000_000;

fn worker(name: &str, device: &str, health: WorkerHealth) -> WorkerFacts {
    WorkerFacts {
        name: name.into(),
        device: device.into(),
        health,
        beat_age_ms: (health == WorkerHealth::Ready).then_some(800),
        engine: (health == WorkerHealth::Ready).then(|| "rten".into()),
        last_exit: None,
    }
}

fn memory_of(device: &str) -> MemoryFacts {
    MemoryFacts {
        device: device.into(),
        budget_bytes: 100,
        leased_bytes: 60,
        worker_used_bytes: 50,
        free_bytes: Some(40),
        read_age_ms: Some(200),
    }
}

/// A server that has nothing wrong.
fn sound() -> HealthFacts {
    HealthFacts {
        now_ms: NOW_MS,
        dispatching: true,
        draining: false,
        was_ready: true,
        workers: vec![worker("cpu0-native", "cpu0", WorkerHealth::Ready)],
        memory: vec![memory_of("cpu0")],
        models: ModelCounts {
            usable: BTreeMap::from([("model", 1), ("lora", 2)]),
            unusable: BTreeMap::new(),
        },
        load_failures: 0,
        jobs_live: 3,
        journal: Tried::Passed { at_ms: NOW_MS - 300 },
        encoding: Tried::Passed { at_ms: NOW_MS - 4000 },
        runs: RunFacts {
            succeeded_at_ms: Some(NOW_MS - 7000),
            failure: None,
            failures_in_a_row: 0,
        },
    }
}

/// The links that are not healthy, the status and the detail of each such link.
fn verdict(facts: &HealthFacts) -> (Vec<Domain>, Status, String) {
    let chain = chain(facts);
    let status = status(facts, &chain);
    let broken: Vec<&DomainHealth> = chain.iter().filter(|link| !link.healthy).collect();
    let details: Vec<&str> = broken.iter().map(|link| link.detail.as_str()).collect();
    (
        broken.iter().map(|link| link.domain).collect(),
        status,
        details.join(" | "),
    )
}

fn detail(facts: &HealthFacts, domain: Domain) -> String {
    let chain = chain(facts);
    chain
        .into_iter()
        .find(|link| link.domain == domain)
        .unwrap()
        .detail
}

#[test]
fn a_sound_server_is_ok_in_the_order_of_the_chain_with_the_age_of_each_try() {
    let facts = sound();
    assert_eq!(verdict(&facts), (vec![], Status::Ok, String::new()));
    let ages: Vec<(Domain, Option<u64>)> = chain(&facts)
        .into_iter()
        .map(|link| (link.domain, link.tried_ms_ago))
        .collect();
    assert_eq!(
        ages,
        [
            (Domain::Device, Some(800)),
            (Domain::Memory, Some(200)),
            (Domain::Model, None),
            (Domain::Processing, Some(300)),
            (Domain::Inference, Some(7000)),
            (Domain::Postprocessing, Some(4000)),
        ]
    );
}

#[test]
fn every_link_can_be_ill() {
    type Ill = fn(&mut HealthFacts);
    let ills: [(Domain, Ill); 6] = [
        (Domain::Device, |facts| {
            facts.workers[0].beat_age_ms = Some(BEAT_WITHIN_MS + 1)
        }),
        (Domain::Memory, |facts| facts.memory[0].free_bytes = Some(9)),
        (Domain::Model, |facts| {
            facts.models.usable.remove("model");
        }),
        (Domain::Processing, |facts| {
            facts.journal = Tried::Failed {
                at_ms: NOW_MS,
                why: "disk full".into(),
            };
        }),
        (Domain::Inference, |facts| {
            facts.runs.failures_in_a_row = FAILURES_IN_A_ROW
        }),
        (Domain::Postprocessing, |facts| {
            facts.encoding = Tried::Failed {
                at_ms: NOW_MS,
                why: "no codec".into(),
            };
        }),
    ];
    for (domain, ill) in ills {
        let mut facts = sound();
        ill(&mut facts);
        let (broken, status, _) = verdict(&facts);
        assert_eq!((broken, status), (vec![domain], Status::Degraded));
    }
}

#[test]
fn what_was_never_tried_is_not_called_sound() {
    let mut facts = sound();
    facts.journal = Tried::Never;
    facts.encoding = Tried::Never;
    let (broken, status, _) = verdict(&facts);
    assert_eq!(
        (broken, status),
        (vec![Domain::Processing, Domain::Postprocessing], Status::Degraded)
    );
}

#[test]
fn inference_says_that_no_run_was_tried_until_one_has_ended() {
    let mut facts = sound();
    facts.runs = RunFacts::default();
    assert_eq!(verdict(&facts).1, Status::Ok);
    let said = detail(&facts, Domain::Inference);
    assert!(said.contains("no run has succeeded since the start"), "{said}");
    facts.runs.succeeded(NOW_MS - 5000);
    let said = detail(&facts, Domain::Inference);
    assert!(said.contains("ended 5 s ago"), "{said}");
}

#[test]
fn failures_in_a_row_make_inference_ill_and_one_success_mends_it() {
    let mut facts = sound();
    let lost = Error::new(Code::WorkerFailed, "the kernel failed");
    for failures in 1..=FAILURES_IN_A_ROW {
        assert_eq!(verdict(&facts).1, Status::Ok, "after {} failures", failures - 1);
        facts.runs.failed(NOW_MS - 1000, &lost);
    }
    let (broken, _, why) = verdict(&facts);
    assert_eq!(broken, [Domain::Inference]);
    assert!(
        why.contains("the kernel failed") && why.contains("1 s ago"),
        "{why}"
    );
    facts.runs.succeeded(NOW_MS);
    assert_eq!(verdict(&facts).1, Status::Ok);
    // The last failure stays told.
    assert!(detail(&facts, Domain::Inference).contains("the kernel failed"));
}

#[test]
fn what_no_worker_did_wrong_says_nothing_of_inference() {
    let mut runs = RunFacts::default();
    for code in [
        Code::DoesNotFit,
        Code::ModelUnusable,
        Code::StoreFailed,
        Code::Cancelled,
    ] {
        runs.failed(NOW_MS, &Error::new(code, "not the worker"));
    }
    assert_eq!(runs, RunFacts::default());
}

#[test]
fn workers_that_start_for_the_first_time_are_starting_and_those_that_fail_are_not() {
    let mut facts = sound();
    facts.was_ready = false;
    facts.workers = vec![
        worker("cpu0-native", "cpu0", WorkerHealth::Starting),
        worker("cpu0-python", "cpu0", WorkerHealth::Asleep),
    ];
    let (broken, status, _) = verdict(&facts);
    assert_eq!(
        (broken, status),
        (vec![Domain::Device, Domain::Inference], Status::Starting)
    );
    facts.workers[0].last_exit = Some("torch finds 1 devices".into());
    let (_, status, why) = verdict(&facts);
    assert_eq!(status, Status::Degraded);
    assert!(why.contains("torch finds 1 devices"), "{why}");
    // A full disk is no start.
    facts.workers[0].last_exit = None;
    facts.journal = Tried::Failed {
        at_ms: NOW_MS,
        why: "disk full".into(),
    };
    assert_eq!(verdict(&facts).1, Status::Degraded);
}

#[test]
fn a_device_without_workers_degrades_the_server_while_the_others_still_do_their_part() {
    let mut facts = sound();
    let mut gone = worker("cuda1-python", "cuda1", WorkerHealth::Gone);
    gone.last_exit = Some("killed by signal 9".into());
    facts.workers.push(gone);
    let (broken, status, _) = verdict(&facts);
    assert_eq!((broken, status), (vec![], Status::Degraded));
    let said = detail(&facts, Domain::Device);
    assert!(
        said.contains("1 of 2 workers ready") && said.contains("killed by signal 9"),
        "{said}"
    );
}

#[test]
fn a_drain_goes_before_everything_else() {
    let mut facts = sound();
    facts.draining = true;
    assert_eq!(verdict(&facts).1, Status::Draining);
    facts.dispatching = false;
    assert_eq!(verdict(&facts).1, Status::Draining);
}

#[test]
fn a_dispatcher_that_has_ended_is_never_ok() {
    let mut facts = sound();
    facts.dispatching = false;
    let (broken, status, _) = verdict(&facts);
    assert!(broken.contains(&Domain::Memory) && broken.contains(&Domain::Processing));
    assert_eq!(status, Status::Degraded);
}

#[test]
fn memory_is_sound_only_while_the_driver_can_give_what_the_leases_promise() {
    for (leased, used, free, sound_so) in [
        (60, 50, Some(10), true),
        (60, 50, Some(9), false),
        // Workers hold more than their leases, as caching allocators do: nothing more is promised.
        (60, 90, Some(0), true),
        (101, 101, Some(1000), false),
        (0, 0, Some(0), true),
        // No driver is asked: that is said, and is no illness.
        (60, 0, None, true),
    ] {
        let mut facts = sound();
        facts.memory[0] = MemoryFacts {
            leased_bytes: leased,
            worker_used_bytes: used,
            free_bytes: free,
            read_age_ms: free.map(|_| 200),
            ..memory_of("cpu0")
        };
        let (broken, ..) = verdict(&facts);
        assert_eq!(broken.is_empty(), sound_so, "{leased} {used} {free:?}");
    }
    let mut facts = sound();
    facts.memory.push(MemoryFacts {
        free_bytes: None,
        read_age_ms: None,
        ..memory_of("xpu0")
    });
    assert!(detail(&facts, Domain::Memory).contains("no driver tells what is free on xpu0"));
}

#[test]
fn a_driver_that_hangs_is_told() {
    let mut facts = sound();
    facts.memory[0].read_age_ms = Some(READ_WITHIN_MS + 2000);
    let (broken, _, why) = verdict(&facts);
    assert_eq!(broken, [Domain::Memory]);
    assert!(why.contains("has not answered for 12 s"), "{why}");
}

#[test]
fn models_are_counted_by_kind_and_loras_are_no_models() {
    let mut facts = sound();
    facts.models.unusable = BTreeMap::from([("controlnet", 1)]);
    assert_eq!(
        detail(&facts, Domain::Model),
        "usable by kind: 2 lora, 1 model; with a problem: 1 controlnet"
    );
    facts.models.usable = BTreeMap::from([("lora", 2)]);
    assert_eq!(verdict(&facts).0, [Domain::Model]);
}

#[test]
fn a_runtime_of_a_worker_that_is_gone_is_not_ready() {
    let mut facts = sound();
    facts.workers[0].health = WorkerHealth::Gone;
    let (broken, ..) = verdict(&facts);
    assert_eq!(broken, [Domain::Device, Domain::Inference]);
    assert!(detail(&facts, Domain::Inference).contains("no runtime is ready"));
}
