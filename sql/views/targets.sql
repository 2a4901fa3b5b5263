-- Which kernel does each target of each run have, and how did its collection end?
CREATE VIEW targets AS
SELECT * FROM _stored_targets;
