//! What is true of a job in the journal.

use super::*;

#[tokio::test]
async fn an_accepted_job_survives_a_reopened_store_and_a_claimed_one_waits_again() {
    let dir = tempfile::tempdir().unwrap();
    let id = JobId::from("job_1");
    {
        let store = Store::open(dir.path()).unwrap();
        store.insert(new("job_1", None, "d")).await.unwrap();
        store.write(vec![claim("job_1", 1)]).await.unwrap();
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
    store.finish("job_1", cancelled()).await.unwrap();
    let again = Finish {
        state: JobState::Failed,
        ..cancelled()
    };
    store.finish("job_1", again).await.unwrap();
    assert_eq!(store.state("job_1").await, JobState::Cancelled);
    store.write(vec![requeue("job_1", 1, Held::No)]).await.unwrap();
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
        drop(store.write(vec![claim("job_1", 1)])); // nobody waits for it
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
        for bytes in [50, 20] {
            let shape = "a".to_owned();
            store.write(vec![Write::Peak { shape, bytes }]).await.unwrap();
        }
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
    store.finish("job_3", cancelled()).await.unwrap();
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
    store.write(vec![hold("job_0", Held::Yes)]).await.unwrap();
    for (state, expected) in [
        (JobState::Queued, 3),
        (JobState::Paused, 1),
        (JobState::Failed, 0),
    ] {
        let of_state = JobFilter {
            state: Some(state),
            limit: 9,
            ..JobFilter::default()
        };
        assert_eq!(store.jobs(of_state).await.unwrap().len(), expected, "{state:?}");
    }
}

#[test]
fn lists_of_jobs_are_read_by_an_index() {
    let dir = tempfile::tempdir().unwrap();
    drop(Store::open(dir.path()).unwrap());
    let journal = rusqlite::Connection::open(dir.path().join("journal.sqlite")).unwrap();
    for (state, index) in [
        (JobState::Queued, "jobs_unfinished"),
        (JobState::Failed, "jobs_ended"),
    ] {
        let sql = format!(
            "EXPLAIN QUERY PLAN SELECT plan FROM jobs {}",
            journal::of_state(state)
        );
        let mut query = journal.prepare(&sql).unwrap();
        let steps = query.query_map(["x", "9", "9"], |row| row.get::<_, String>("detail"));
        let steps: Vec<String> = steps.unwrap().collect::<Result<_, _>>().unwrap();
        assert_eq!(steps.len(), 1, "nothing is sorted: {steps:?}");
        assert!(steps[0].contains(index), "{steps:?}");
    }
}

#[tokio::test]
async fn a_held_job_is_still_held_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = Store::open(dir.path()).unwrap();
        store.insert(new("job_1", None, "d")).await.unwrap();
        store.write(vec![hold("job_1", Held::Yes)]).await.unwrap();
    }
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.unfinished().await.unwrap()[0].state, JobState::Paused);
    store.write(vec![hold("job_1", Held::No)]).await.unwrap();
    assert_eq!(store.unfinished().await.unwrap()[0].state, JobState::Queued);
}

#[tokio::test]
async fn a_job_put_back_into_the_queue_and_held_is_held_by_one_write() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = Store::open(dir.path()).unwrap();
        store.insert(new("job_1", None, "d")).await.unwrap();
        let writes = vec![claim("job_1", 1), requeue("job_1", 1, Held::Yes)];
        store.write(writes).await.unwrap();
    }
    let store = Store::open(dir.path()).unwrap();
    let [job] = &store.unfinished().await.unwrap()[..] else {
        panic!("one job")
    };
    assert_eq!((job.state, job.crashes), (JobState::Paused, 1));
}

#[tokio::test]
async fn a_job_is_found_by_its_key_and_by_its_place_with_its_client() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    store.insert(new("job_1", Some("k"), "d")).await.unwrap();
    store.insert(new("job_2", None, "")).await.unwrap();
    let (record, digest) = store.by_key("k").await.unwrap().unwrap();
    assert_eq!(
        (record.id.as_str(), record.client.as_str(), digest.as_str()),
        ("job_1", "ada", "d")
    );
    assert!(store.by_key("other").await.unwrap().is_none());
    let found = store.by_sequences(&[2, 77, 1]).await.unwrap();
    let ids: Vec<&str> = found.iter().map(|job| job.id.as_str()).collect();
    assert_eq!(ids, ["job_2", "job_1"]);
}

#[tokio::test]
async fn many_jobs_are_written_in_one_transaction_or_none_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    store.insert(new("job_0", Some("k"), "d")).await.unwrap();
    let jobs = vec![
        new("job_1", None, ""),
        new("job_x", Some("k"), "d"),
        new("job_2", None, ""),
    ];
    let answers = store.insert_many(jobs).await.unwrap();
    assert!(matches!(
        &answers[..],
        [
            Inserted::New { sequence: 2 },
            Inserted::Existing(_),
            Inserted::New { sequence: 3 }
        ]
    ));
    let twins = vec![new("job_3", None, ""), new("job_3", None, "")];
    assert!(store.insert_many(twins).await.is_err());
    assert_eq!(store.unfinished().await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_deleted_lock_file_lets_nobody_in() {
    let dir = tempfile::tempdir().unwrap();
    let _store = Store::open(dir.path()).unwrap();
    std::fs::remove_file(dir.path().join("lock")).unwrap();
    assert!(matches!(Store::open(dir.path()), Err(StoreError::InUse { .. })));
}

#[tokio::test]
async fn scratch_folders_of_dead_workers_go_at_the_next_start_and_nothing_else_does() {
    let dir = tempfile::tempdir().unwrap();
    let scratch = dir.path().join("scratch/cpu0-native");
    for folder in ["worker-123/deep", "workers-notes"] {
        std::fs::create_dir_all(scratch.join(folder)).unwrap();
    }
    let _store = Store::open(dir.path()).unwrap();
    assert!(!scratch.join("worker-123").exists());
    assert!(scratch.join("workers-notes").exists());
}
