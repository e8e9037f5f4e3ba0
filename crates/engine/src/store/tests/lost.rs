//! A journal that is damaged, lost or exchanged is never served quietly, and no artifact is deleted for it.

use std::fs;

use super::*;

const JOBS: u64 = 12;

/// Twelve jobs with a picture each.
async fn fill(dir: &Path) -> Store {
    let store = Store::open(dir).unwrap();
    for number in 0..JOBS {
        add(&store, number).await;
    }
    store
}

async fn add(store: &Store, number: u64) {
    let picture = format!("picture {number}").into_bytes();
    let hash = store.artifacts().put(picture).await.unwrap();
    let name = format!("job_{number}");
    store.insert(new(&name, None, "")).await.unwrap();
    store.finish(&name, succeeded(&hash, 9)).await.unwrap();
}

fn pictures(dir: &Path) -> usize {
    contents(&dir.join("artifacts")).len()
}

type Damage = (&'static str, fn(&Path));

const DAMAGES: &[Damage] = &[
    ("journal gone", |dir| {
        fs::remove_file(dir.join("journal.sqlite")).unwrap()
    }),
    ("journal of 0 bytes", |dir| {
        fs::write(dir.join("journal.sqlite"), b"").unwrap()
    }),
    ("journal garbage", |dir| {
        fs::write(dir.join("journal.sqlite"), vec![0x5A; 9000]).unwrap()
    }),
    ("journal cut to half", |dir| cut(&dir.join("journal.sqlite"))),
    ("journal of another directory", |dir| {
        let other = tempfile::tempdir().unwrap();
        drop(Store::open(other.path()).unwrap());
        fs::copy(other.path().join("journal.sqlite"), dir.join("journal.sqlite")).unwrap();
        let _ = fs::remove_file(dir.join("journal.sqlite-wal"));
    }),
    ("log gone", |dir| {
        let _ = fs::remove_file(dir.join("journal.sqlite-wal"));
    }),
    ("log garbage", |dir| {
        fs::write(dir.join("journal.sqlite-wal"), vec![0x5A; 90_000]).unwrap()
    }),
    ("log of 0 bytes", |dir| {
        fs::write(dir.join("journal.sqlite-wal"), b"").unwrap()
    }),
    ("log cut to half", |dir| cut(&dir.join("journal.sqlite-wal"))),
    ("log with a hole", |dir| {
        let path = dir.join("journal.sqlite-wal");
        let mut bytes = fs::read(&path).unwrap_or_default();
        if let Some(middle) = bytes.len().checked_div(2).filter(|middle| *middle > 0) {
            bytes[middle..middle + 100].fill(0);
            fs::write(&path, bytes).unwrap();
        }
    }),
    ("mark garbage", |dir| {
        fs::write(dir.join("journal.mark"), b"?").unwrap()
    }),
];

fn cut(path: &Path) {
    if let Ok(facts) = fs::metadata(path) {
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_len(facts.len() / 2).unwrap();
    }
}

/// Refused with nothing changed, or taken whole; returns whether it was refused.
async fn refused_or_whole(name: &str, dir: &Path) -> bool {
    let before = contents(dir);
    let is_refused = match Store::open(dir) {
        Err(error) => {
            assert!(matches!(error, StoreError::Unsound { .. }), "{name}: {error}");
            assert!(error.to_string().contains("journal.sqlite"), "{name}: {error}");
            let advice = crate::error::Error::from(error).advice.unwrap();
            assert!(advice.contains("calotype journal recover"), "{name}: {advice}");
            let after = contents(dir);
            let changed: Vec<_> = before
                .iter()
                .filter(|(path, bytes)| after.get(*path) != Some(*bytes))
                .map(|(path, _)| path)
                .chain(after.keys().filter(|path| !before.contains_key(*path)))
                .collect();
            assert!(changed.is_empty(), "{name}: {changed:?}");
            true
        }
        Ok(store) => {
            let all = JobFilter {
                limit: 100,
                ..JobFilter::default()
            };
            assert_eq!(store.jobs(all).await.unwrap().len() as u64, JOBS, "{name}");
            store
                .sweep_as(crate::store::sweep::Manner::AtOnce, u64::MAX >> 1)
                .await
                .unwrap();
            false
        }
    };
    assert_eq!(pictures(dir) as u64, JOBS, "{name}: no picture is deleted");
    is_refused
}

#[tokio::test]
async fn after_a_kill_a_damaged_journal_is_refused_untouched_or_taken_whole() {
    let dir = tempfile::tempdir().unwrap();
    let store = fill(dir.path()).await;
    let killed = as_killed(dir.path());
    drop(store);
    assert!(
        fs::metadata(killed.path().join("journal.sqlite-wal"))
            .unwrap()
            .len()
            > 0
    );
    for (name, damage) in DAMAGES {
        let copy = as_killed(killed.path());
        damage(copy.path());
        let is_refused = refused_or_whole(name, copy.path()).await;
        // Nothing was folded yet: the log has every page.
        assert_eq!(is_refused, *name != "journal cut to half", "{name}");
    }
    assert!(!refused_or_whole("no damage", killed.path()).await);
}

#[tokio::test]
async fn after_a_clean_stop_the_journal_alone_is_whole_and_damage_to_it_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(fill(dir.path()).await);
    assert!(
        !dir.path().join("journal.sqlite-wal").exists(),
        "the log is folded in"
    );
    for (name, damage) in DAMAGES {
        let copy = as_killed(dir.path());
        damage(copy.path());
        let of_the_log = name.starts_with("log");
        assert_eq!(refused_or_whole(name, copy.path()).await, !of_the_log, "{name}");
    }
    let alone = tempfile::tempdir().unwrap();
    copy_folder(&dir.path().join("artifacts"), &alone.path().join("artifacts"));
    fs::copy(
        dir.path().join("journal.sqlite"),
        alone.path().join("journal.sqlite"),
    )
    .unwrap();
    assert!(!refused_or_whole("a backup in a new place", alone.path()).await);
}

#[tokio::test]
async fn a_log_that_grows_is_folded_while_the_server_works_and_readers_are_open() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let mut job = new("job_0", None, "");
    job.plan.prompt = "x".repeat(100_000);
    let mut before = 0;
    for number in 0..250 {
        job.id = format!("job_{number}").as_str().into();
        store.insert(job.clone()).await.unwrap();
        store.unfinished().await.unwrap();
        let log = fs::metadata(dir.path().join("journal.sqlite-wal")).unwrap().len();
        assert!(log < 9 << 20, "{log} bytes");
        assert!(log >= before, "written over, and not emptied");
        before = log;
    }
    assert!(before > 8 << 20, "25 MB were written, and folded");
    drop(store);
    assert!(
        !dir.path().join("journal.sqlite-wal").exists(),
        "folded whole at the end"
    );
}

#[tokio::test]
async fn an_older_copy_of_the_journal_is_refused_and_one_of_a_folder_before_marks_is_not() {
    let dir = tempfile::tempdir().unwrap();
    drop(fill(dir.path()).await);
    let old = fs::read(dir.path().join("journal.sqlite")).unwrap();
    let store = Store::open(dir.path()).unwrap();
    add(&store, JOBS).await;
    drop(store);
    fs::write(dir.path().join("journal.sqlite"), old).unwrap();
    let refused = Store::open(dir.path()).err().unwrap().to_string();
    assert!(refused.contains("lacks its last"), "{refused}");
    fs::remove_file(dir.path().join("journal.mark")).unwrap();
    assert!(Store::open(dir.path()).is_ok(), "nothing says that it is old");
}

#[tokio::test]
async fn a_journal_that_another_program_folded_is_taken_whole() {
    let dir = tempfile::tempdir().unwrap();
    let store = fill(dir.path()).await;
    let killed = as_killed(dir.path());
    drop(store);
    // As the program `sqlite3` does when it is left.
    let other = rusqlite::Connection::open(killed.path().join("journal.sqlite")).unwrap();
    let _: i64 = other
        .query_row("SELECT count(*) FROM jobs", [], |row| row.get(0))
        .unwrap();
    drop(other);
    assert!(!killed.path().join("journal.sqlite-wal").exists());
    assert!(!refused_or_whole("folded", killed.path()).await);
}
