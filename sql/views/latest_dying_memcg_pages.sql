-- Which pages, of which files, are charged to dying memory cgroups on each target, in the newest run of each audit?
CREATE VIEW latest_dying_memcg_pages AS
SELECT dying_memcg_pages.*
FROM dying_memcg_pages
SEMI JOIN latest_runs USING (run_id);
