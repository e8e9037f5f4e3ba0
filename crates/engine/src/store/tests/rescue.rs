//! Looking at a journal, saving it, copying it.

use std::fs;

use super::*;
use crate::store::rescue::{Loss, backup, check, recover};

async fn filled(dir: &Path, jobs: usize) -> Store {
    let store = Store::open(dir).unwrap();
    let jobs = (0..jobs)
        .map(|number| new(&format!("job_{number}"), None, ""))
        .collect();
    store.insert_many(jobs).await.unwrap();
    store
}

#[tokio::test]
async fn a_check_counts_and_changes_nothing_also_beside_a_server() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path(), 3).await;
    let picture = store.artifacts().put(b"picture".to_vec()).await.unwrap();
    store.finish("job_0", succeeded(&picture, 9)).await.unwrap();
    fs::remove_file(store.artifacts().path(&picture)).unwrap();
    let beside = check(dir.path()).unwrap();
    assert!(beside.sound, "{:?}", beside.problems);
    assert!(
        beside
            .in_use_by
            .unwrap()
            .contains(&std::process::id().to_string())
    );
    drop(store);
    let before = contents(dir.path());
    let report = check(dir.path()).unwrap();
    assert!(
        report.sound && report.in_use_by.is_none(),
        "{:?}",
        report.problems
    );
    assert_eq!((report.jobs["queued"], report.jobs["succeeded"]), (2, 1));
    assert_eq!((report.artifacts, report.artifacts_missing), (1, vec![picture.0]));
    assert_eq!(contents(dir.path()), before);
}

#[tokio::test]
async fn a_check_of_a_journal_that_lost_its_log_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path(), 3).await;
    let killed = as_killed(dir.path());
    drop(store);
    fs::remove_file(killed.path().join("journal.sqlite-wal")).unwrap();
    let report = check(killed.path()).unwrap();
    assert!(
        !report.sound && report.problems[0].contains("journal.sqlite"),
        "{report:?}"
    );
}

#[tokio::test]
async fn a_journal_without_its_log_is_recovered_only_when_the_loss_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    drop(filled(dir.path(), 3).await);
    let store = filled_more(dir.path()).await;
    let killed = as_killed(dir.path());
    drop(store);
    let dir = killed.path();
    fs::remove_file(dir.join("journal.sqlite-wal")).unwrap();
    let before = contents(dir);
    let refused = recover(dir, Loss::Refused).unwrap_err().to_string();
    assert!(
        refused.contains("3 jobs") && refused.contains("--accept-loss"),
        "{refused}"
    );
    assert_eq!(contents(dir), before);
    let recovered = recover(dir, Loss::Accepted).unwrap();
    assert!(recovered.changed && !recovered.lost.is_empty());
    assert_eq!((recovered.jobs, recovered.kept.len()), (3, 1));
    assert!(
        recovered.kept[0]
            .display()
            .to_string()
            .contains("journal.sqlite.broken-")
    );
    let store = Store::open(dir).unwrap();
    assert_eq!(store.unfinished().await.unwrap().len(), 3);
    drop(store);
    assert!(
        !recover(dir, Loss::Refused).unwrap().changed,
        "a sound journal is left alone"
    );
}

async fn filled_more(dir: &Path) -> Store {
    let store = Store::open(dir).unwrap();
    store.insert(new("job_more", None, "")).await.unwrap();
    store
}

#[tokio::test]
async fn a_journal_that_is_gone_begins_anew_when_the_loss_is_accepted_and_the_artifacts_stay() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path(), 3).await;
    let picture = store.artifacts().put(b"picture".to_vec()).await.unwrap();
    drop(store);
    fs::remove_file(dir.path().join("journal.sqlite")).unwrap();
    assert!(recover(dir.path(), Loss::Refused).is_err());
    assert_eq!(recover(dir.path(), Loss::Accepted).unwrap().jobs, 0);
    let store = Store::open(dir.path()).unwrap();
    store
        .sweep_as(crate::store::sweep::Manner::AtOnce, u64::MAX >> 1)
        .await
        .unwrap();
    assert!(store.artifacts().read(&picture).await.unwrap().is_some());
}

#[tokio::test]
async fn what_is_readable_of_a_damaged_file_is_saved() {
    let dir = tempfile::tempdir().unwrap();
    drop(filled(dir.path(), 2000).await);
    let path = dir.path().join("journal.sqlite");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 4096].fill(0x5A);
    fs::write(&path, bytes).unwrap();
    let report = check(dir.path()).unwrap();
    assert!(
        !report.sound && report.problems[0].contains("damaged"),
        "{:?}",
        report.problems
    );
    let recovered = recover(dir.path(), Loss::Accepted).unwrap();
    assert!((1500..=2000).contains(&recovered.jobs), "{}", recovered.jobs);
    assert!(check(dir.path()).unwrap().sound);
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.unfinished().await.unwrap().len() as u64, recovered.jobs);
}

#[tokio::test]
async fn a_backup_beside_a_server_is_a_whole_journal_and_overwrites_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path(), 3).await;
    let elsewhere = tempfile::tempdir().unwrap();
    let target = elsewhere.path().join("journal.sqlite");
    let copied = backup(dir.path(), &target).unwrap();
    assert_eq!(copied.jobs, 3);
    store.insert(new("job_more", None, "")).await.unwrap();
    assert!(
        backup(dir.path(), &target)
            .unwrap_err()
            .to_string()
            .contains("exists already")
    );
    drop(store);
    let alone = elsewhere.path().join("alone.sqlite");
    assert_eq!(backup(dir.path(), &alone).unwrap().jobs, 4);
    let restored = Store::open(elsewhere.path()).unwrap();
    assert_eq!(restored.unfinished().await.unwrap().len(), 3);
}
