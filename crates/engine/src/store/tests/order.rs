//! The order on disk is the order of the calls.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn writes_end_on_disk_in_the_order_of_their_calls_however_they_are_awaited() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    store.insert(new("job_1", None, "")).await.unwrap();
    for round in 0..50_u32 {
        let mut receipts = Vec::new();
        for (write, is_awaited) in [
            (claim("job_1", 2 * round + 1), true),
            (requeue("job_1", round, Held::Yes), false),
            (hold("job_1", Held::No), true),
            (claim("job_1", 2 * round + 2), false),
            (hold("job_1", Held::Yes), true),
        ] {
            let receipt = store.write(vec![write]);
            if is_awaited {
                receipts.push(tokio::spawn(receipt));
            }
        }
        for receipt in receipts.into_iter().rev() {
            receipt.await.unwrap().unwrap();
        }
        let job = store.job(&"job_1".into()).await.unwrap().unwrap();
        assert_eq!(
            (job.state, job.attempts, job.crashes),
            (JobState::Paused, 2 * round + 2, round)
        );
    }
}

#[tokio::test]
async fn a_job_that_finished_stays_so_whatever_is_written_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    store.insert(new("job_1", None, "")).await.unwrap();
    let end = Write::Finish {
        job: "job_1".into(),
        finish: cancelled(),
    };
    let late = [
        claim("job_1", 9),
        requeue("job_1", 9, Held::No),
        requeue("job_1", 9, Held::Yes),
        hold("job_1", Held::Yes),
        hold("job_1", Held::No),
    ];
    let together = std::iter::once(end).chain(late.clone()).collect();
    store.write(together).await.unwrap();
    for write in late {
        store.write(vec![write]).await.unwrap();
    }
    let job = store.job(&"job_1".into()).await.unwrap().unwrap();
    assert_eq!(
        (job.state, job.attempts, job.crashes),
        (JobState::Cancelled, 0, 0)
    );
}

#[tokio::test]
async fn the_writes_of_one_call_stand_or_fall_together() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    store.insert(new("job_1", None, "")).await.unwrap();
    let no_end = Write::Finish {
        job: "job_1".into(),
        finish: Finish {
            state: JobState::Running,
            ..cancelled()
        },
    };
    let refused = store.write(vec![hold("job_1", Held::Yes), no_end]).await;
    assert!(matches!(refused, Err(StoreError::NotFinal(JobState::Running))));
    assert_eq!(store.state("job_1").await, JobState::Queued);
}

#[tokio::test]
async fn what_was_enqueued_and_forgotten_is_on_disk_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    store.insert(new("job_1", None, "")).await.unwrap();
    for attempt in 1..=500 {
        drop(store.write(vec![claim("job_1", attempt)]));
    }
    drop(store.write(vec![hold("job_1", Held::Yes)]));
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    let job = store.job(&"job_1".into()).await.unwrap().unwrap();
    assert_eq!((job.state, job.attempts), (JobState::Paused, 500));
}
