-- How did each attempt to collect a target end?
CREATE VIEW attempts AS
SELECT * FROM _stored_attempts;
