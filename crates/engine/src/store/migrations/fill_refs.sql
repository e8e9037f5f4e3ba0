-- Every text of 64 hexadecimal digits in a job is taken for an artifact: one kept too long does no harm.
INSERT OR IGNORE INTO artifact_refs (hash, job)
SELECT found.value, jobs.sequence
FROM jobs, json_tree(CASE WHEN json_valid(jobs.plan) THEN jobs.plan ELSE '{}' END) AS found
WHERE found.type = 'text' AND length(found.value) = 64 AND found.value NOT GLOB '*[^0-9a-f]*';
INSERT OR IGNORE INTO artifact_refs (hash, job)
SELECT found.value, jobs.sequence
FROM jobs, json_tree(CASE WHEN json_valid(jobs.result) THEN jobs.result ELSE '{}' END) AS found
WHERE found.type = 'text' AND length(found.value) = 64 AND found.value NOT GLOB '*[^0-9a-f]*';
