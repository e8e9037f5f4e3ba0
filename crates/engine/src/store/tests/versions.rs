//! Journals of other versions.

use super::*;

#[tokio::test]
async fn a_journal_of_the_first_version_is_taken_over_and_one_of_a_later_version_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let connection = rusqlite::Connection::open(dir.path().join("journal.sqlite")).unwrap();
    connection
        .execute_batch(include_str!("../migrations/1.sql"))
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

/// What the program before version 3 wrote.
fn version_2(dir: &Path, given: &ArtifactHash, made: &ArtifactHash) {
    let connection = rusqlite::Connection::open(dir.join("journal.sqlite")).unwrap();
    connection
        .execute_batch(concat!(
            "PRAGMA journal_mode = WAL;",
            include_str!("../migrations/1.sql"),
            include_str!("../migrations/2.sql"),
            "PRAGMA user_version = 2; INSERT INTO facts VALUES ('next_event', 1073741825);"
        ))
        .unwrap();
    let mut plan = plan();
    plan.init_image = Some(given.clone());
    let insert = "INSERT INTO jobs (id, state, class, priority, key, key_digest, plan, result, created_at_ms, finished_at_ms)
                  VALUES (?1, ?2, '\"interactive\"', 3, ?3, 'd', ?4, ?5, 7, ?6)";
    let plan = serde_json::to_string(&plan).unwrap();
    let result = serde_json::to_string(&succeeded(made, 9).result).unwrap();
    connection
        .execute(
            insert,
            (
                "job_1",
                "\"running\"",
                Some("k"),
                &plan,
                None::<&str>,
                None::<i64>,
            ),
        )
        .unwrap();
    connection
        .execute(
            insert,
            (
                "job_2",
                "\"succeeded\"",
                None::<&str>,
                &plan,
                Some(&result),
                Some(9),
            ),
        )
        .unwrap();
}

#[tokio::test]
async fn a_version_2_journal_is_carried_over_with_the_artifacts_of_its_jobs() {
    let dir = tempfile::tempdir().unwrap();
    let artifacts = Artifacts::open(&dir.path().join("artifacts")).unwrap();
    let given = artifacts.put(b"given".to_vec()).await.unwrap();
    let made = artifacts.put(b"made".to_vec()).await.unwrap();
    version_2(dir.path(), &given, &made);
    let store = Store::open(dir.path()).unwrap();
    let (first, digest) = store.by_key("k").await.unwrap().unwrap();
    assert_eq!(
        (first.state, first.client.as_str(), digest.as_str()),
        (JobState::Queued, "", "d")
    );
    assert_eq!(store.reserve_event_ids(1).await.unwrap(), 1_073_741_825);
    store.delete(&"job_2".into()).await.unwrap();
    store
        .sweep_as(crate::store::sweep::Manner::Gently, u64::MAX >> 1)
        .await
        .unwrap();
    assert_eq!(artifacts.read(&made).await.unwrap(), None, "its job is gone");
    assert!(
        artifacts.read(&given).await.unwrap().is_some(),
        "job_1 still needs it"
    );
}

#[tokio::test]
async fn a_version_3_journal_is_carried_over_and_knows_what_its_jobs_refer_to() {
    let dir = tempfile::tempdir().unwrap();
    let artifacts = Artifacts::open(&dir.path().join("artifacts")).unwrap();
    let given = artifacts.put(b"given".to_vec()).await.unwrap();
    let made = artifacts.put(b"made".to_vec()).await.unwrap();
    version_2(dir.path(), &given, &made);
    let connection = rusqlite::Connection::open(dir.path().join("journal.sqlite")).unwrap();
    connection
        .execute_batch(concat!(
            include_str!("../migrations/3.sql"),
            include_str!("../migrations/fill_refs.sql"),
            "PRAGMA user_version = 3;"
        ))
        .unwrap();
    drop(connection);
    let report = crate::store::rescue::check(dir.path()).unwrap();
    assert_eq!((report.problems.len(), report.artifacts), (0, 2));
    let store = Store::open(dir.path()).unwrap();
    let sweep = async |manner| store.sweep_as(manner, u64::MAX >> 1).await.unwrap();
    store.delete(&"job_2".into()).await.unwrap();
    let mut again = new("job_3", None, "d");
    again.plan.init_image = Some(made.clone());
    store.insert(again).await.unwrap();
    sweep(crate::store::sweep::Manner::Gently).await;
    assert!(
        artifacts.read(&made).await.unwrap().is_some(),
        "it was loose, and job_3 refers to it"
    );
    store.finish("job_3", cancelled()).await.unwrap();
    store.delete(&"job_3".into()).await.unwrap();
    sweep(crate::store::sweep::Manner::AtOnce).await;
    assert_eq!(
        artifacts.read(&made).await.unwrap(),
        None,
        "nobody refers to it any more"
    );
    assert!(artifacts.read(&given).await.unwrap().is_some(), "job_1 does");
}

#[tokio::test]
async fn an_older_program_refuses_a_journal_of_this_version_by_name() {
    // It reads the version of the file first, and knows fewer.
    let dir = tempfile::tempdir().unwrap();
    drop(Store::open(dir.path()).unwrap());
    let connection = rusqlite::Connection::open(dir.path().join("journal.sqlite")).unwrap();
    let version: i64 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .unwrap();
    assert!(
        version > 2,
        "versions up to 2 know no marks and no lists of artifacts"
    );
    let refusal = StoreError::TooNew {
        file: dir.path().join("journal.sqlite"),
        found: usize::try_from(version).unwrap(),
        known: 2,
    };
    assert!(
        refusal
            .to_string()
            .contains("journal.sqlite has version 4, this program knows up to 2")
    );
}
