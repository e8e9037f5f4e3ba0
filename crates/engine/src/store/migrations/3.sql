-- Who submitted a job.
ALTER TABLE jobs ADD COLUMN client TEXT NOT NULL DEFAULT '';
-- Which artifacts a job was given or made: what a sweep may take is known without reading every job.
CREATE TABLE artifact_refs (hash TEXT NOT NULL, job INTEGER NOT NULL, PRIMARY KEY (hash, job)) STRICT, WITHOUT ROWID;
CREATE INDEX artifact_refs_by_job ON artifact_refs (job);
-- Artifacts whose last job was deleted. Files that stand in neither table are somebody else's.
CREATE TABLE loose (hash TEXT PRIMARY KEY, since_ms INTEGER NOT NULL) STRICT, WITHOUT ROWID;
-- The oldest finished jobs, for those who keep only so many.
CREATE INDEX jobs_finished ON jobs (finished_at_ms) WHERE finished_at_ms IS NOT NULL;
