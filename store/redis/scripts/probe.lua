-- Tries each command that a script may call, and returns the names of those that the user may not use:
-- on keys of its own, which are not there afterwards.
--
-- KEYS: after the shard's, one for a hash, a sorted set, a stream and a string.
local hash, zset, stream, text = KEYS[NKEYS + 1], KEYS[NKEYS + 2], KEYS[NKEYS + 3], KEYS[NKEYS + 4]
local denied = {}
for _, command in ipairs({
  {'DEL', hash, zset, stream, text}, {'TIME'},
  {'HSET', hash, 'a', '1'}, {'HGET', hash, 'a'}, {'HMGET', hash, 'a'}, {'HGETALL', hash}, {'HVALS', hash}, {'HSCAN', hash, '0'}, {'HDEL', hash, 'a'},
  {'ZADD', zset, '0', 'a'}, {'ZRANGE', zset, '0', '-1'}, {'ZRANGEBYSCORE', zset, '-inf', '0'}, {'ZRANGEBYLEX', zset, '-', '+'},
  {'ZREM', zset, 'a'}, {'ZREMRANGEBYSCORE', zset, '-inf', '0'},
  {'XADD', stream, '1-0', 'a', '1'}, {'XRANGE', stream, '-', '+'}, {'XINFO', 'STREAM', stream}, {'XDEL', stream, '1-0'},
  {'SET', text, '1', 'PXAT', '9999999999999'}, {'GET', text}, {'MGET', text}, {'PEXPIREAT', text, '9999999999999'}, {'TYPE', text}, {'UNLINK', text},
  {'DEL', hash, zset, stream, text},
}) do
  local result = redis.pcall(unpack(command))
  local err = type(result) == 'table' and result.err
  if err and (string.find(err, 'executing the script') or string.find(err, 'NOPERM')) then
    denied[#denied + 1] = command[1]
  elseif err and not string.find(err, 'no such key') then -- as when the one before was refused
    return redis.error_reply(err)
  end
end
return cmsgpack.pack({'ok', 'probe', denied})
