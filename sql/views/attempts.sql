-- What did every attempt to collect a target come to?
CREATE VIEW attempts AS
SELECT * FROM stored_attempts;
