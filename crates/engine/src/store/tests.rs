//! Laws of the store.

use calotype_protocol::{JobId, Mode, Sampler, Schedule};

use super::*;
use crate::inference::{OutputFormat, Plan};
use crate::processing::{Class, JobState};

fn plan() -> Plan {
    Plan {
        model: "m".into(),
        preset: None,
        mode: Mode::TextToImage,
        prompt: "a red apple".into(),
        negative_prompt: String::new(),
        width: 256,
        height: 256,
        steps: 4,
        guidance: 1.0,
        sampler: Sampler::Lcm,
        schedule: Schedule::Default,
        seeds: vec![u64::MAX],
        loras: Vec::new(),
        init_image: None,
        mask: None,
        strength: 1.0,
        clip_skip: 0,
        preview_every: 0,
        format: OutputFormat::Png,
        quality: 90,
        latent_channels: 4,
        latent_factor: 8,
    }
}

fn new(id: &str, key: Option<&str>, digest: &str) -> NewJob {
    NewJob {
        id: id.into(),
        class: Class::Interactive,
        priority: 3,
        key: key.map(str::to_owned),
        key_digest: digest.into(),
        plan: plan(),
        created_at_ms: 7,
    }
}

fn cancelled() -> Finish {
    Finish {
        state: JobState::Cancelled,
        result: None,
        error: None,
        finished_at_ms: 9,
    }
}

#[tokio::test]
async fn an_accepted_job_survives_a_reopened_store_and_a_claimed_one_waits_again() {
    let dir = tempfile::tempdir().unwrap();
    let id = JobId::from("job_1");
    {
        let store = Store::open(dir.path()).unwrap();
        store.insert(new("job_1", None, "d")).await.unwrap();
        store.claim(&id, 1, "cpu0", 8).await.unwrap();
        assert_eq!(store.job(&id).await.unwrap().unwrap().state, JobState::Running);
    }
    let store = Store::open(dir.path()).unwrap();
    let left = store.unfinished().await.unwrap();
    assert_eq!(
        (left.len(), left[0].state, left[0].attempts),
        (1, JobState::Queued, 1)
    );
    assert_eq!(left[0].plan, plan());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_key_gives_one_job_however_many_ask_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let asked: Vec<_> = (0..32)
        .map(|number| {
            let store = store.clone();
            tokio::spawn(async move {
                store
                    .insert(new(&format!("job_{number}"), Some("k"), "d"))
                    .await
                    .unwrap()
            })
        })
        .collect();
    let mut fresh = 0;
    for answer in asked {
        fresh += usize::from(matches!(answer.await.unwrap(), Inserted::New { .. }));
    }
    assert_eq!(fresh, 1);
    assert!(matches!(
        store.insert(new("job_x", Some("k"), "other")).await.unwrap(),
        Inserted::KeyReused
    ));
    assert_eq!(store.unfinished().await.unwrap().len(), 1);
}

#[tokio::test]
async fn the_first_end_stays() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let id = JobId::from("job_1");
    store.insert(new("job_1", None, "d")).await.unwrap();
    store.delete(&id).await.unwrap();
    assert!(
        store.job(&id).await.unwrap().is_some(),
        "a job that has not ended is not deleted"
    );
    assert_eq!(store.finish(&id, cancelled()).await.unwrap(), Finished::Now);
    let again = Finish {
        state: JobState::Failed,
        ..cancelled()
    };
    assert_eq!(store.finish(&id, again).await.unwrap(), Finished::Already);
    store.requeue(&id, 1).await.unwrap();
    assert_eq!(store.job(&id).await.unwrap().unwrap().state, JobState::Cancelled);
    assert!(store.unfinished().await.unwrap().is_empty());
    store.delete(&id).await.unwrap();
    assert!(store.job(&id).await.unwrap().is_none());
}

#[tokio::test]
async fn one_bad_operation_does_not_spoil_its_neighbours() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let (first, twin, second) = tokio::join!(
        store.insert(new("job_1", None, "d")),
        store.insert(new("job_1", None, "d")),
        store.insert(new("job_2", None, "d")),
    );
    assert!(first.is_ok() && twin.is_err() && second.is_ok());
    assert_eq!(store.unfinished().await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_second_engine_is_kept_out() {
    let dir = tempfile::tempdir().unwrap();
    let _store = Store::open(dir.path()).unwrap();
    assert!(matches!(Store::open(dir.path()), Err(StoreError::InUse(_))));
}

#[tokio::test]
async fn event_numbers_grow_over_a_restart_and_peaks_keep_their_highest() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.reserve_event_ids(100).await.unwrap(), 1);
        store.record_peak("a", 50).await.unwrap();
        store.record_peak("a", 20).await.unwrap();
    }
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.reserve_event_ids(100).await.unwrap(), 101);
    assert_eq!(store.peaks().await.unwrap(), [("a".to_owned(), 50)]);
}

#[tokio::test]
async fn pages_go_from_the_newest_to_the_oldest() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    for number in 0..5 {
        store
            .insert(new(&format!("job_{number}"), None, "d"))
            .await
            .unwrap();
    }
    store.finish(&"job_3".into(), cancelled()).await.unwrap();
    let page = store
        .jobs(JobFilter {
            limit: 2,
            ..JobFilter::default()
        })
        .await
        .unwrap();
    let ids: Vec<&str> = page.iter().map(|job| job.id.as_str()).collect();
    assert_eq!(ids, ["job_4", "job_3"]);
    let next = JobFilter {
        before_sequence: Some(page[1].sequence),
        limit: 9,
        ..JobFilter::default()
    };
    assert_eq!(store.jobs(next).await.unwrap().len(), 3);
    let ended = JobFilter {
        state: Some(JobState::Cancelled),
        limit: 9,
        ..JobFilter::default()
    };
    assert_eq!(store.jobs(ended).await.unwrap().len(), 1);
}

#[tokio::test]
async fn equal_bytes_are_kept_once_and_a_sweep_keeps_what_is_referred_to() {
    let dir = tempfile::tempdir().unwrap();
    let artifacts = Artifacts::open(dir.path()).unwrap();
    let kept = artifacts.put(b"kept".to_vec()).await.unwrap();
    assert_eq!(artifacts.put(b"kept".to_vec()).await.unwrap(), kept);
    let loose = artifacts.put(b"loose".to_vec()).await.unwrap();
    std::fs::write(artifacts.path(&kept).with_extension("1.tmp"), b"torn").unwrap();
    let keep = std::collections::HashSet::from([kept.clone()]);
    let hour = std::time::Duration::from_secs(3600);
    assert_eq!(
        artifacts.sweep(&keep, hour).await.unwrap().removed,
        1,
        "only the torn one: the other is young"
    );
    assert_eq!(
        artifacts
            .sweep(&keep, std::time::Duration::ZERO)
            .await
            .unwrap()
            .removed,
        1
    );
    assert_eq!(
        artifacts.read(&kept).await.unwrap().as_deref(),
        Some(&b"kept"[..])
    );
    assert_eq!(artifacts.read(&loose).await.unwrap(), None);
}

#[test]
fn only_a_hash_is_an_address() {
    let hash = ArtifactHash::of(b"x");
    assert_eq!(ArtifactHash::parse(&hash.0), Some(hash));
    for text in ["", "../../etc/passwd", &"A".repeat(64), &"0".repeat(63)] {
        assert_eq!(ArtifactHash::parse(text), None);
    }
}
