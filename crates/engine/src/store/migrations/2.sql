-- A start reads what has not ended, however much has.
CREATE INDEX jobs_unfinished ON jobs (sequence) WHERE finished_at_ms IS NULL;
