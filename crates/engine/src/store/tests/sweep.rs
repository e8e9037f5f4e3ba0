//! What a sweep takes, and what it never takes.

use std::fs;
use std::time::{Duration, SystemTime};

use super::*;
use crate::store::folder::Space;
use crate::store::sweep::Manner;

const ALL: u64 = u64::MAX >> 1;

async fn finished(store: &Store, name: &str, picture: &[u8]) -> ArtifactHash {
    let hash = store.artifacts().put(picture.to_vec()).await.unwrap();
    store.insert(new(name, None, "")).await.unwrap();
    store.finish(name, succeeded(&hash, 9)).await.unwrap();
    hash
}

fn age(path: &Path, seconds: u64) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(seconds))
        .unwrap();
}

#[tokio::test]
async fn only_what_a_deleted_job_alone_referred_to_goes_into_the_trash() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let artifacts = store.artifacts();
    let alone = finished(&store, "job_1", b"alone").await;
    let shared = finished(&store, "job_2", b"shared").await;
    finished(&store, "job_3", b"shared").await;
    let kept = finished(&store, "job_4", b"kept").await;
    let unknown = artifacts.put(b"nobody's".to_vec()).await.unwrap();
    age(&artifacts.path(&unknown), 1 << 20);
    for job in ["job_1", "job_2"] {
        store.delete(&job.into()).await.unwrap();
    }
    let swept = store.sweep_as(Manner::Gently, ALL).await.unwrap();
    assert_eq!((swept.removed, swept.freed_bytes), (1, 0));
    assert_eq!(artifacts.read(&alone).await.unwrap(), None);
    assert_eq!(
        fs::read(dir.path().join("trash").join(&alone.0)).unwrap(),
        b"alone"
    );
    for hash in [shared, kept, unknown] {
        assert!(artifacts.read(&hash).await.unwrap().is_some());
    }
    assert_eq!(
        store.sweep_as(Manner::Gently, ALL).await.unwrap(),
        Swept::default()
    );
}

#[tokio::test]
async fn what_was_fetched_or_put_again_within_the_hour_stays() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let artifacts = store.artifacts();
    let fetched = finished(&store, "job_1", b"fetched").await;
    let renewed = finished(&store, "job_2", b"renewed").await;
    let again = finished(&store, "job_3", b"again").await;
    artifacts.fetch(&fetched).await.unwrap();
    for job in ["job_1", "job_2", "job_3"] {
        store.delete(&job.into()).await.unwrap();
    }
    let later = SystemTime::now() + Duration::from_millis(5);
    while SystemTime::now() < later {
        tokio::task::yield_now().await; // the journal counts milliseconds
    }
    artifacts.renew(&renewed).await.unwrap();
    artifacts.put(b"again".to_vec()).await.unwrap();
    assert_eq!(store.sweep_as(Manner::Gently, ALL).await.unwrap().removed, 0);
    // A job that refers to it again makes it nobody's to take.
    let mut job = new("job_4", None, "");
    job.plan.init_image = Some(again.clone());
    store.insert(job).await.unwrap();
    for hash in [&renewed, &again] {
        age(&artifacts.path(hash), 7200);
    }
    assert_eq!(store.sweep_as(Manner::Gently, ALL).await.unwrap().removed, 1);
    assert_eq!(artifacts.read(&renewed).await.unwrap(), None);
    assert!(artifacts.read(&again).await.unwrap().is_some());
}

#[tokio::test]
async fn nothing_is_moved_in_the_first_hour_because_fetches_are_not_remembered_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let hash = finished(&store, "job_1", b"picture").await;
    store.delete(&"job_1".into()).await.unwrap();
    assert_eq!(store.sweep().await.unwrap().removed, 0);
    assert!(store.artifacts().read(&hash).await.unwrap().is_some());
}

#[tokio::test]
async fn torn_writes_go_after_an_hour_and_files_of_others_stay() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let kept = store.artifacts().put(b"kept".to_vec()).await.unwrap();
    let path = store.artifacts().path(&kept);
    let (torn, young, notes) = (
        path.with_extension("1.tmp"),
        path.with_extension("2.tmp"),
        path.with_file_name("notes.txt"),
    );
    for file in [&torn, &young, &notes] {
        fs::write(file, b"some bytes").unwrap();
    }
    fs::create_dir(dir.path().join("artifacts/lost+found")).unwrap();
    age(&torn, 7200);
    age(&notes, 7200);
    let swept = store.sweep().await.unwrap();
    assert_eq!((swept.torn, swept.freed_bytes), (1, 10));
    assert!(!torn.exists() && young.exists() && notes.exists() && path.exists());
}

#[tokio::test]
async fn the_trash_is_emptied_after_a_week() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let trash = dir.path().join("trash");
    fs::create_dir(&trash).unwrap();
    for (name, days) in [("old", 8), ("young", 6)] {
        fs::write(trash.join(name), b"x").unwrap();
        age(&trash.join(name), days * 24 * 3600);
    }
    assert_eq!(store.sweep().await.unwrap().freed_bytes, 1);
    assert!(!trash.join("old").exists() && trash.join("young").exists());
}

#[tokio::test]
async fn on_a_full_disk_loose_artifacts_are_deleted_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let hash = finished(&store, "job_1", b"picture").await;
    store.artifacts().fetch(&hash).await.unwrap();
    store.owned.folder.make_room(Space::Frees);
    store.delete(&"job_1".into()).await.unwrap();
    assert_eq!(store.artifacts().read(&hash).await.unwrap(), None);
    assert!(!dir.path().join("trash").join(&hash.0).exists());
}
