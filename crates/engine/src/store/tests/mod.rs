//! Laws of the store.

use calotype_protocol::{JobId, Mode, Sampler, Schedule};

use super::*;
use crate::inference::{MaskTreatment, OutputFormat, Plan};
use crate::processing::{Class, ImageView, JobResult, JobState, Promise};
use crate::store::writer::{Durable, Writer};

fn plan() -> Plan {
    Plan {
        model: "m".into(),
        vae: None,
        text_encoders: Vec::new(),
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
        control: Vec::new(),
        refiner: None,
        hires: None,
        variation: None,
        mask_treatment: MaskTreatment::default(),
        embeddings: Vec::new(),
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
        promise: Promise::Kept,
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
    store.requeue(&id, 1, Held::No).await.unwrap();
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

type Step = fn(&rusqlite::Connection) -> Result<(), StoreError>;

/// Operations that are certain to be committed together: they wait behind one that is held.
async fn together(work: Vec<Step>) -> (Vec<Result<(), StoreError>>, Vec<i64>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.sqlite");
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection
        .execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE numbers (number INTEGER UNIQUE)")
        .unwrap();
    let writer = Writer::start(connection).unwrap();
    let (go, held) = std::sync::mpsc::channel::<()>();
    let (begun, has_begun) = std::sync::mpsc::channel();
    let first = writer.submit(Durable::No, move |_| {
        begun.send(()).unwrap();
        held.recv().unwrap();
        Ok(())
    });
    has_begun.recv().unwrap(); // alone in its batch: the others come in the next
    let answers: Vec<_> = work
        .into_iter()
        .map(|work| writer.submit(Durable::Yes, work))
        .collect();
    go.send(()).unwrap();
    first.await.unwrap();
    let mut told = Vec::new();
    for answer in answers {
        told.push(answer.await);
    }
    drop(writer);
    let connection = rusqlite::Connection::open(&path).unwrap();
    let mut query = connection
        .prepare("SELECT number FROM numbers ORDER BY number")
        .unwrap();
    let numbers = query
        .query_map([], |row| row.get(0))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    (told, numbers)
}

fn add(connection: &rusqlite::Connection, sql: &str) -> Result<(), StoreError> {
    Ok(connection.execute_batch(sql)?)
}

#[tokio::test]
async fn half_an_operation_is_taken_back_and_its_batch_is_kept() {
    let (told, numbers) = together(vec![
        |connection| add(connection, "INSERT INTO numbers VALUES (1)"),
        |connection| {
            add(
                connection,
                "INSERT INTO numbers VALUES (2); INSERT INTO numbers VALUES (1)",
            )
        },
        |connection| add(connection, "INSERT INTO numbers VALUES (3)"),
    ])
    .await;
    assert!(
        matches!(told[..], [Ok(()), Err(StoreError::Database(_)), Ok(())]),
        "{told:?}"
    );
    assert_eq!(numbers, [1, 3]);
}

#[tokio::test]
async fn what_is_told_as_failed_is_not_on_disk_when_sqlite_gives_a_transaction_up() {
    let (told, numbers) = together(vec![
        |connection| add(connection, "INSERT INTO numbers VALUES (1)"),
        |connection| add(connection, "ROLLBACK"), // as SQLite does by itself on a full disk
        |connection| add(connection, "INSERT INTO numbers VALUES (3)"),
    ])
    .await;
    assert!(told.iter().all(Result::is_err), "{told:?}");
    assert!(matches!(told[2], Err(StoreError::NotCommitted(_))), "{told:?}");
    assert!(numbers.is_empty(), "{numbers:?}");
}

#[test]
fn a_dropped_writer_has_written_what_was_queued() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.sqlite");
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection
        .execute_batch("CREATE TABLE numbers (number INTEGER)")
        .unwrap();
    let writer = Writer::start(connection).unwrap();
    for _ in 0..2000 {
        drop(writer.submit(Durable::No, |connection| {
            add(connection, "INSERT INTO numbers VALUES (1)")
        }));
    }
    drop(writer);
    let connection = rusqlite::Connection::open(&path).unwrap();
    let count: i64 = connection
        .query_row("SELECT count(*) FROM numbers", [], |row| row.get(0))
        .unwrap();
    assert_eq!(count, 2000);
}

#[tokio::test]
async fn a_journal_of_the_first_version_is_taken_over_and_one_of_a_later_version_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let connection = rusqlite::Connection::open(dir.path().join("journal.sqlite")).unwrap();
    connection
        .execute_batch(include_str!("migrations/1.sql"))
        .unwrap();
    connection.pragma_update(None, "user_version", 1).unwrap();
    drop(connection);
    Store::open(dir.path())
        .unwrap()
        .insert(new("job_1", None, "d"))
        .await
        .unwrap();
    let connection = rusqlite::Connection::open(dir.path().join("journal.sqlite")).unwrap();
    connection.pragma_update(None, "user_version", 1000).unwrap();
    drop(connection);
    assert!(matches!(
        Store::open(dir.path()),
        Err(StoreError::TooNew { found: 1000, .. })
    ));
}

#[tokio::test]
async fn a_second_engine_is_kept_out() {
    let dir = tempfile::tempdir().unwrap();
    let _store = Store::open(dir.path()).unwrap();
    let refused = Store::open(dir.path()).err().unwrap().to_string();
    assert!(refused.contains(&dir.path().display().to_string()), "{refused}");
    assert!(refused.contains(&std::process::id().to_string()), "{refused}");
}

#[tokio::test]
async fn the_folder_is_given_back_after_the_last_write() {
    let dir = tempfile::tempdir().unwrap();
    let id = JobId::from("job_1");
    for _ in 0..20 {
        let store = Store::open(dir.path()).unwrap();
        let _ = store.insert(new("job_1", Some("k"), "d")).await.unwrap();
        tokio::select! {
            biased;
            _ = store.claim(&id, 1, "cpu0", 8) => {}
            () = std::future::ready(()) => {} // the claim is queued, and nobody waits for it
        }
        drop(store);
        let store = Store::open(dir.path()).unwrap();
        let left = store.job(&id).await.unwrap().unwrap();
        assert_eq!(
            (left.state, left.attempts),
            (JobState::Queued, 1),
            "the claim came before the restart"
        );
    }
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
    store.pause(&"job_0".into()).await.unwrap();
    let counts = store.counts().await.unwrap();
    let expected = [
        (JobState::Queued, 3),
        (JobState::Paused, 1),
        (JobState::Cancelled, 1),
    ];
    assert_eq!(counts, std::collections::HashMap::from(expected));
}

#[tokio::test]
async fn a_held_job_is_still_held_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let id = JobId::from("job_1");
    {
        let store = Store::open(dir.path()).unwrap();
        store.insert(new("job_1", None, "d")).await.unwrap();
        store.pause(&id).await.unwrap();
    }
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.unfinished().await.unwrap()[0].state, JobState::Paused);
    store.unpause(&id).await.unwrap();
    assert_eq!(store.unfinished().await.unwrap()[0].state, JobState::Queued);
}

#[tokio::test]
async fn what_a_job_was_given_and_what_it_made_is_referred_to() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let [init, mask, made, loose] = [b"1", b"2", b"3", b"4"].map(|bytes| ArtifactHash::of(bytes));
    let mut job = new("job_1", None, "d");
    (job.plan.init_image, job.plan.mask) = (Some(init.clone()), Some(mask.clone()));
    store.insert(job).await.unwrap();
    let image = ImageView {
        artifact: made.clone(),
        media_type: "image/png".into(),
        size_bytes: 1,
        width: 8,
        height: 8,
        seed: u64::MAX,
    };
    let result = JobResult {
        images: vec![image],
        ..JobResult::default()
    };
    let finish = Finish {
        state: JobState::Succeeded,
        result: Some(result.clone()),
        ..cancelled()
    };
    store.finish(&"job_1".into(), finish).await.unwrap();
    assert_eq!(
        store.job(&"job_1".into()).await.unwrap().unwrap().result,
        Some(result)
    );
    let kept = store.referenced_artifacts().await.unwrap();
    assert_eq!(kept, std::collections::HashSet::from([init, mask, made]));
    assert!(!kept.contains(&loose));
}

#[tokio::test]
async fn equal_bytes_are_kept_once_and_a_sweep_keeps_what_is_referred_to() {
    let dir = tempfile::tempdir().unwrap();
    let artifacts = Artifacts::open(dir.path()).unwrap();
    let kept = artifacts.put(b"kept".to_vec()).await.unwrap();
    assert_eq!(artifacts.put(b"kept".to_vec()).await.unwrap(), kept);
    let loose = artifacts.put(b"loose".to_vec()).await.unwrap();
    std::fs::write(artifacts.path(&kept).with_extension("1.tmp"), b"torn").unwrap();
    std::fs::write(
        artifacts.path(&kept).with_file_name("notes.txt"),
        b"somebody else's",
    )
    .unwrap();
    std::fs::create_dir(dir.path().join("lost+found")).unwrap();
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

#[tokio::test]
async fn what_is_put_again_is_young_again() {
    let dir = tempfile::tempdir().unwrap();
    let artifacts = Artifacts::open(dir.path()).unwrap();
    let hash = artifacts.put(b"again".to_vec()).await.unwrap();
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(7200);
    let file = std::fs::File::options()
        .write(true)
        .open(artifacts.path(&hash))
        .unwrap();
    file.set_modified(long_ago).unwrap();
    artifacts.put(b"again".to_vec()).await.unwrap();
    let hour = std::time::Duration::from_secs(3600);
    assert_eq!(
        artifacts
            .sweep(&std::collections::HashSet::new(), hour)
            .await
            .unwrap(),
        Swept::default()
    );
}

#[tokio::test]
async fn an_address_leads_nowhere_out_of_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    let artifacts = Artifacts::open(&dir.path().join("artifacts")).unwrap();
    std::fs::write(dir.path().join("secret"), b"secret").unwrap();
    for text in ["../secret", "secret", dir.path().join("secret").to_str().unwrap()] {
        let hash = ArtifactHash(text.to_owned());
        assert_eq!(artifacts.read(&hash).await.unwrap(), None);
        assert!(artifacts.path(&hash).starts_with(dir.path().join("artifacts")));
        assert!(serde_json::from_value::<ArtifactHash>(text.into()).is_err());
    }
}

#[test]
fn only_a_hash_is_an_address() {
    let hash = ArtifactHash::of(b"x");
    assert_eq!(ArtifactHash::parse(&hash.0), Some(hash));
    for text in ["", "../../etc/passwd", &"A".repeat(64), &"0".repeat(63)] {
        assert_eq!(ArtifactHash::parse(text), None);
    }
}

#[tokio::test]
async fn a_job_put_back_into_the_queue_and_held_is_held_by_one_write() {
    let dir = tempfile::tempdir().unwrap();
    let id = JobId::from("job_1");
    {
        let store = Store::open(dir.path()).unwrap();
        store.insert(new("job_1", None, "d")).await.unwrap();
        store.claim(&id, 1, "cpu0", 1).await.unwrap();
        store.requeue(&id, 1, Held::Yes).await.unwrap();
    }
    let store = Store::open(dir.path()).unwrap();
    let [job] = &store.unfinished().await.unwrap()[..] else {
        panic!("one job")
    };
    assert_eq!((job.state, job.crashes), (JobState::Paused, 1));
}

#[tokio::test]
async fn an_artifact_that_is_about_to_be_referred_to_outlives_a_sweep() {
    let dir = tempfile::tempdir().unwrap();
    let artifacts = Artifacts::open(dir.path()).unwrap();
    let hour = std::time::Duration::from_secs(3600);
    let hash = artifacts.put(b"a picture".to_vec()).await.unwrap();
    let old = std::time::SystemTime::now() - 2 * hour;
    let file = std::fs::File::options()
        .write(true)
        .open(artifacts.path(&hash))
        .unwrap();
    file.set_modified(old).unwrap();
    assert_eq!(artifacts.renew(&hash).await.unwrap().unwrap(), b"a picture");
    let nothing = std::collections::HashSet::new();
    assert_eq!(artifacts.sweep(&nothing, hour).await.unwrap().removed, 0);
    file.set_modified(old).unwrap();
    assert_eq!(artifacts.sweep(&nothing, hour).await.unwrap().removed, 1);
    assert_eq!(artifacts.renew(&hash).await.unwrap(), None);
}
