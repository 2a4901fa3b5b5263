-- Is the waste of a target with this lazy_basis a lower bound?
-- On basis `online` charged objects were not read, so lazy_bytes is an upper bound. On any other basis it is expected.
CREATE MACRO _is_lower_bound(lazy_basis) AS
coalesce(lazy_basis = 'online', false);
