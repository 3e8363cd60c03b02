#!lua flags=allow-oom
-- Reads what a data set says of itself, or writes it. It is the only script that works without a
-- known epoch.
--
-- ARGV: '' and then 'read'; 'renew', the epoch that was read ('' for none), one that the new one
-- must be above, the number of shards; 'join', the epoch of the first shard, the number of shards;
-- or 'done', the epoch.
local function state()
  local m = redis.call('HMGET', META, 'epoch', 'shards', 'opening')
  return {'ok', 'open', m[1] or '', m[2] or '', m[3] or ''}
end

local verb = ARGV[2]
local has = redis.call('HGET', META, 'epoch') or ''
if verb == 'renew' and has == ARGV[3] then
  -- Tokens of the older epoch are dead everywhere from here on.
  local t = redis.call('TIME')
  local new = math.max(t[1] * 1000 + math.floor(t[2] / 1000), tonumber(ARGV[4]) + 1)
  redis.call('HSET', META, 'epoch', string.format('%.0f', new), 'shards', ARGV[5], 'opening', '1')
elseif verb == 'join' then
  if (tonumber(has) or 0) < tonumber(ARGV[3]) then
    redis.call('HSET', META, 'epoch', ARGV[3], 'shards', ARGV[4])
  end
elseif verb == 'done' and has == ARGV[3] then
  redis.call('HDEL', META, 'opening')
end
return state()
