CREATE TABLE jobs (
    sequence       INTEGER PRIMARY KEY AUTOINCREMENT,
    id             TEXT NOT NULL UNIQUE,
    state          TEXT NOT NULL,
    class          TEXT NOT NULL,
    priority       INTEGER NOT NULL,
    key            TEXT UNIQUE,
    key_digest     TEXT NOT NULL,
    plan           TEXT NOT NULL,
    attempts       INTEGER NOT NULL DEFAULT 0,
    crashes        INTEGER NOT NULL DEFAULT 0,
    worker         TEXT,
    result         TEXT,
    error          TEXT,
    created_at_ms  INTEGER NOT NULL,
    started_at_ms  INTEGER,
    finished_at_ms INTEGER
) STRICT;
CREATE INDEX jobs_by_state ON jobs (state, sequence);
CREATE TABLE peaks (shape TEXT PRIMARY KEY, highest_bytes INTEGER NOT NULL, last_bytes INTEGER NOT NULL, times INTEGER NOT NULL) STRICT;
CREATE TABLE facts (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
