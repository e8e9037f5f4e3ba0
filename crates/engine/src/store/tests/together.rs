//! Operations that are committed together.

use std::sync::Arc;

use super::*;
use crate::store::folder::{Folder, Space};
use crate::store::writer::{Durable, Writer};

fn start(connection: rusqlite::Connection, dir: &Path) -> Writer {
    Writer::start(connection, Arc::new(Folder::without_journal(dir)), None).unwrap()
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
    let writer = start(connection, dir.path());
    let (go, held) = std::sync::mpsc::channel::<()>();
    let (begun, has_begun) = std::sync::mpsc::channel();
    let first = writer.submit(Durable::No, Space::Keeps, move |_| {
        begun.send(()).unwrap();
        held.recv().unwrap();
        Ok(())
    });
    has_begun.recv().unwrap(); // alone in its batch: the others come in the next
    let answers: Vec<_> = work
        .into_iter()
        .map(|work| writer.submit(Durable::Yes, Space::Keeps, work))
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
    let writer = start(connection, dir.path());
    for _ in 0..2000 {
        drop(writer.submit(Durable::No, Space::Keeps, |connection| {
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
