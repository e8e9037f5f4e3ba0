//! Disks that are full, deleted or not writable.

use std::fs;

use rusqlite::ffi;

use super::*;
use crate::error::{Code, Error};
use crate::store::folder::Space;
use crate::store::writer::Durable;

fn sqlite(code: i32) -> StoreError {
    rusqlite::Error::SqliteFailure(ffi::Error::new(code), None).into()
}

fn io(errno: rustix::io::Errno) -> StoreError {
    std::io::Error::from(errno).into()
}

#[test]
fn a_fault_is_known_by_its_code_and_told_with_advice() {
    use rustix::io::Errno;
    for (error, fault, code) in [
        (sqlite(ffi::SQLITE_FULL), Fault::Full, Code::StoreFull),
        (io(Errno::NOSPC), Fault::Full, Code::StoreFull),
        (io(Errno::DQUOT), Fault::Full, Code::StoreFull),
        (sqlite(ffi::SQLITE_READONLY), Fault::ReadOnly, Code::StoreFailed),
        (
            sqlite(ffi::SQLITE_READONLY_DBMOVED),
            Fault::Gone,
            Code::StoreFailed,
        ),
        (io(Errno::ROFS), Fault::ReadOnly, Code::StoreFailed),
        (io(Errno::ACCESS), Fault::ReadOnly, Code::StoreFailed),
        (sqlite(ffi::SQLITE_IOERR_WRITE), Fault::Broken, Code::StoreFailed),
        (sqlite(ffi::SQLITE_CORRUPT), Fault::Broken, Code::StoreFailed),
        (
            sqlite(ffi::SQLITE_CONSTRAINT),
            Fault::NotTheDisk,
            Code::StoreFailed,
        ),
        (
            StoreError::Strange("a row".into()),
            Fault::NotTheDisk,
            Code::Internal,
        ),
    ] {
        assert_eq!(error.fault(), fault, "{error:?}");
        let told = Error::from(error.at(Path::new("/data")));
        assert_eq!(told.code, code, "{told}");
        if code == Code::StoreFull {
            assert!(told.advice.unwrap().contains("/data"));
        }
    }
}

#[tokio::test]
async fn nothing_is_promised_in_a_data_directory_that_was_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    store.insert(new("job_1", None, "")).await.unwrap();
    let mut health = store.watch_health();
    fs::remove_dir_all(dir.path()).unwrap();
    assert!(store.insert(new("job_2", None, "")).await.unwrap_err().is_gone());
    assert!(store.finish("job_1", cancelled()).await.unwrap_err().is_gone());
    assert!(store.artifacts().put(b"x".to_vec()).await.unwrap_err().is_gone());
    let told = health
        .wait_for(|health| *health != StoreHealth::Open)
        .await
        .unwrap();
    assert!(matches!(&*told, StoreHealth::Failed { message } if message.contains("deleted or replaced")));
}

#[tokio::test]
async fn a_replaced_data_directory_is_not_written_and_the_old_one_is_used_again_when_it_is_back() {
    let parent = tempfile::tempdir().unwrap();
    let (dir, aside) = (parent.path().join("data"), parent.path().join("aside"));
    let store = Store::open(&dir).unwrap();
    fs::rename(&dir, &aside).unwrap();
    fs::create_dir(&dir).unwrap();
    for name in ["journal.sqlite", "journal.sqlite-wal"] {
        fs::write(dir.join(name), b"another's").unwrap();
    }
    assert!(store.insert(new("job_1", None, "")).await.unwrap_err().is_gone());
    assert_eq!(fs::read(dir.join("journal.sqlite")).unwrap(), b"another's");
    let others = parent.path().join("others");
    fs::rename(&dir, &others).unwrap();
    fs::rename(&aside, &dir).unwrap();
    store.insert(new("job_1", None, "")).await.unwrap();
    assert_eq!(store.health(), StoreHealth::Open);
    // Gone again when it closes: SQLite would delete the other's log by its name.
    fs::rename(&dir, &aside).unwrap();
    fs::rename(&others, &dir).unwrap();
    drop(store);
    assert_eq!(fs::read(dir.join("journal.sqlite-wal")).unwrap(), b"another's");
    fs::rename(&dir, &others).unwrap();
    fs::rename(&aside, &dir).unwrap();
    let store = Store::open(&dir).unwrap();
    assert_eq!(store.unfinished().await.unwrap().len(), 1);
}

#[tokio::test]
async fn an_end_on_a_full_disk_takes_the_reserve_and_nothing_new_is_accepted_until_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let reserve = dir.path().join("reserve");
    let is_full = {
        let reserve = reserve.clone();
        move |_: &rusqlite::Connection| match reserve.exists() {
            true => Err(sqlite(ffi::SQLITE_FULL)),
            false => Ok(()),
        }
    };
    let writer = &store.owned.writer;
    let claim = writer.submit(Durable::No, Space::Keeps, is_full.clone()).await;
    assert!(
        claim.unwrap_err().is_full() && reserve.exists(),
        "a claim takes no reserve"
    );
    assert!(matches!(store.health(), StoreHealth::Full { .. }));
    writer.submit(Durable::Yes, Space::Frees, is_full).await.unwrap();
    assert!(!reserve.exists());
    assert!(
        matches!(store.health(), StoreHealth::Full { .. }),
        "nothing new is accepted"
    );
    let refused = store.insert(new("job_1", None, "")).await.unwrap_err();
    assert!(refused.is_full(), "{refused}");
    assert!(store.artifacts().put(b"x".to_vec()).await.unwrap_err().is_full());
    store.owned.folder.has_room();
    assert!(reserve.exists());
    store.insert(new("job_1", None, "")).await.unwrap();
    store.artifacts().put(b"x".to_vec()).await.unwrap();
    assert_eq!(store.health(), StoreHealth::Open);
}

#[tokio::test]
async fn a_full_disk_takes_the_oldest_trash_before_the_reserve() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let trash = dir.path().join("trash");
    fs::create_dir(&trash).unwrap();
    for (name, age_s) in [("old", 9000), ("young", 60)] {
        let file = fs::File::create(trash.join(name)).unwrap();
        file.set_len(9 << 20).unwrap();
        let at = std::time::SystemTime::now() - std::time::Duration::from_secs(age_s);
        file.set_modified(at).unwrap();
    }
    let old = trash.join("old");
    let is_full = move |_: &rusqlite::Connection| match old.exists() {
        true => Err(sqlite(ffi::SQLITE_FULL)),
        false => Ok(()),
    };
    let writer = &store.owned.writer;
    writer.submit(Durable::Yes, Space::Takes, is_full).await.unwrap();
    assert!(trash.join("young").exists() && dir.path().join("reserve").exists());
}

#[tokio::test]
async fn a_probe_writes_and_is_asked_at_most_twice_a_second() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let before = contents(&dir.path().join("artifacts"));
    assert_eq!(store.probe().await, StoreHealth::Open);
    assert_eq!(store.probe().await, StoreHealth::Open);
    let probes = store
        .read(|connection| {
            let sql = "SELECT value FROM facts WHERE name = 'probes'";
            Ok(connection.query_row(sql, [], |row| row.get::<_, i64>(0))?)
        })
        .await
        .unwrap();
    assert_eq!(probes, 1);
    assert_eq!(
        contents(&dir.path().join("artifacts")),
        before,
        "its file is gone"
    );
}

/// A small file system of its own; gone with this.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn small(mebibytes: u32) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={mebibytes}m");
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(dir.path())
            .status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Self(dir));
        }
        eprintln!("SKIPPED: no file system can be mounted here, so no disk can be filled");
        None
    }

    /// Takes all that is left.
    fn fill(&self) {
        let mut ballast = fs::File::create(self.0.path().join("ballast")).unwrap();
        for piece in [1 << 16, 1] {
            while std::io::Write::write_all(&mut ballast, &vec![1; piece]).is_ok() {}
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn on_a_really_full_disk_jobs_end_and_deleting_one_makes_room_for_new_ones() {
    let Some(disk) = Mounted::small(16) else { return };
    let dir = disk.0.path().join("data");
    let store = Store::open(&dir).unwrap();
    let picture = store.artifacts().put(vec![7; 1 << 20]).await.unwrap();
    for name in ["job_1", "job_2"] {
        store.insert(new(name, None, "")).await.unwrap();
    }
    store.finish("job_1", succeeded(&picture, 9)).await.unwrap();
    disk.fill();
    let mut accepted = 0;
    let refused = loop {
        match store.insert(new(&format!("job_more_{accepted}"), None, "")).await {
            Ok(_) => accepted += 1,
            Err(error) => break error,
        }
        assert!(accepted < 10_000, "the disk does not fill");
    };
    assert!(refused.is_full(), "{refused}");
    assert!(matches!(store.probe().await, StoreHealth::Full { .. }));
    store.finish("job_2", cancelled()).await.unwrap();
    store.delete(&"job_1".into()).await.unwrap();
    assert_eq!(store.artifacts().read(&picture).await.unwrap(), None);
    assert!(dir.join("reserve").exists(), "there is room for it again");
    store.insert(new("job_3", None, "")).await.unwrap();
    drop(store);
    fs::remove_file(disk.0.path().join("ballast")).unwrap();
    let store = Store::open(&dir).unwrap();
    assert_eq!(store.state("job_2").await, JobState::Cancelled);
    assert_eq!(store.state("job_3").await, JobState::Queued);
    assert_eq!(store.unfinished().await.unwrap().len(), accepted + 1);
}

#[tokio::test]
async fn a_store_opens_on_a_full_disk_by_its_reserve() {
    let Some(disk) = Mounted::small(16) else { return };
    let dir = disk.0.path().join("data");
    let store = Store::open(&dir).unwrap();
    store.insert(new("job_1", None, "")).await.unwrap();
    store.finish("job_1", cancelled()).await.unwrap();
    drop(store);
    disk.fill();
    let store = Store::open(&dir).unwrap();
    assert!(store.insert(new("job_2", None, "")).await.unwrap_err().is_full());
    store.delete(&"job_1".into()).await.unwrap();
    assert!(store.job(&"job_1".into()).await.unwrap().is_none());
}
