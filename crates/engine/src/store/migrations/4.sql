-- A job that waits or runs changes no index but `jobs_unfinished`; the ends are listed by state, with what a retention asks.
DROP INDEX jobs_by_state;
DROP INDEX jobs_finished;
CREATE INDEX jobs_ended ON jobs (state, sequence, finished_at_ms) WHERE finished_at_ms IS NOT NULL;
-- What a job refers to is read from the job itself.
DROP INDEX artifact_refs_by_job;
