-- Puts notes of one kind up on the board, each in the place of the one with its ID. It belongs to the
-- deployment and to no epoch, and works in any.
--
-- KEYS: after the shard's, the notes, and when each passes.
-- ARGV: '', kind, and of each note: ID, life, text.
local notes, order = KEYS[NKEYS + 1], KEYS[NKEYS + 2]

local function take_down(ids)
  in_parts('HDEL', notes, ids)
  in_parts('ZREM', order, ids)
end

for i = 3, #ARGV, 3 do
  local till = now + tonumber(ARGV[i + 1])
  redis.call('HSET', notes, ARGV[i], cmsgpack.pack({NOTE_VERSION, till, ARGV[i + 2]}))
  redis.call('ZADD', order, till, ARGV[i])
end
take_down(redis.call('ZRANGEBYSCORE', order, '-inf', now, 'LIMIT', 0, 1000))
take_down(redis.call('ZRANGE', order, 0, -1 - MAX_NOTES)) -- those that would go first, and no more than have come
local last = redis.call('ZRANGE', order, -1, -1, 'WITHSCORES')
if last[2] then -- the keys go with the last note, also when nobody comes by
  redis.call('PEXPIREAT', notes, last[2])
  redis.call('PEXPIREAT', order, last[2])
end
return {'ok', ARGV[2]}
