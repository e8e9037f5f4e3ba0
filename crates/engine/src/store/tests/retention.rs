//! Which finished jobs are deleted.

use std::time::Duration;

use super::*;

const HOUR_MS: u64 = 3_600_000;
const NOW_MS: u64 = 1000 * HOUR_MS;

/// Jobs 0 to 4, of which job 0 is oldest: they ended 5, 4, 3, 2 and 1 hours ago, with a picture of 1000 bytes each; and
/// one that waits.
async fn five(dir: &Path) -> Store {
    let store = Store::open(dir).unwrap();
    store.insert(new("waiting", None, "")).await.unwrap();
    for number in 0..5_u8 {
        let hash = store.artifacts().put(vec![number; 1000]).await.unwrap();
        let name = format!("job_{number}");
        store.insert(new(&name, None, "")).await.unwrap();
        let ended_ms = NOW_MS - u64::from(5 - number) * HOUR_MS;
        store.finish(&name, succeeded(&hash, ended_ms)).await.unwrap();
    }
    store
}

async fn left(store: &Store) -> Vec<String> {
    let all = JobFilter {
        limit: 100,
        ..JobFilter::default()
    };
    let jobs = store.jobs(all).await.unwrap();
    jobs.into_iter().rev().map(|job| job.id.0).collect()
}

#[tokio::test]
async fn each_limit_deletes_the_oldest_finished_jobs_and_no_others() {
    let cases = [
        (Retention::ALL, 0),
        (
            Retention {
                max_jobs: Some(3),
                ..Retention::ALL
            },
            2,
        ),
        (
            Retention {
                max_age: Some(Duration::from_secs(9000)),
                ..Retention::ALL
            },
            3,
        ),
        (
            Retention {
                max_bytes: Some(1500),
                ..Retention::ALL
            },
            4,
        ),
        (
            Retention {
                max_jobs: Some(0),
                max_age: Some(Duration::ZERO),
                max_bytes: Some(0),
            },
            5,
        ),
    ];
    for (retention, deleted) in cases {
        let dir = tempfile::tempdir().unwrap();
        let store = five(dir.path()).await;
        assert_eq!(
            store.prune(&retention, NOW_MS).await.unwrap(),
            deleted,
            "{retention:?}"
        );
        let expected: Vec<String> = std::iter::once("waiting".to_owned())
            .chain((deleted..5).map(|number| format!("job_{number}")))
            .collect();
        assert_eq!(left(&store).await, expected, "{retention:?}");
        assert_eq!(store.prune(&retention, NOW_MS).await.unwrap(), 0, "{retention:?}");
    }
}

#[tokio::test]
async fn what_ended_or_was_fetched_within_the_hour_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = five(dir.path()).await;
    let nothing = Retention {
        max_jobs: Some(0),
        ..Retention::ALL
    };
    store
        .artifacts()
        .fetch(&ArtifactHash::of(&[0; 1000]))
        .await
        .unwrap();
    let before_the_hour_is_over = NOW_MS - 1;
    assert_eq!(store.prune(&nothing, before_the_hour_is_over).await.unwrap(), 3);
    assert_eq!(left(&store).await, ["waiting", "job_0", "job_4"]);
}

#[tokio::test]
async fn the_artifacts_of_pruned_jobs_go_into_the_trash() {
    let dir = tempfile::tempdir().unwrap();
    let store = five(dir.path()).await;
    let two = Retention {
        max_jobs: Some(2),
        ..Retention::ALL
    };
    store.prune(&two, NOW_MS).await.unwrap();
    let swept = store
        .sweep_as(crate::store::sweep::Manner::Gently, u64::MAX >> 1)
        .await
        .unwrap();
    assert_eq!(swept.removed, 3);
    assert_eq!(contents(&dir.path().join("trash")).len(), 3);
}

#[tokio::test]
async fn the_task_that_tidies_up_ends_with_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let task = tokio::spawn(keep_tidy(store.downgrade(), Retention::default()));
    drop(store);
    task.await.unwrap();
    assert!(Store::open(dir.path()).is_ok(), "the folder is given back");
}
