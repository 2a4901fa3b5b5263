-- Is held_bytes of each part of memcg_memory the sum of its bytes by the state of memcgs?
SELECT
    target,
    format('{} holds {} bytes, but {} + {} + {} by state', part, held_bytes, online_bytes, dying_bytes, left_bytes)
        AS reason
FROM memcg_memory
WHERE held_bytes <> online_bytes + dying_bytes + left_bytes;
