-- Reads what a data set says of itself, or writes it. It works without a known epoch.
--
-- ARGV: '', 'open', and then 'read'; 'renew', the epoch that was read ('' for none), one that the new
-- one must be above, the number of shards, the deployment; 'join', the epoch of the first shard, the
-- number of shards, the deployment; or 'done', the epoch.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local verb, given = ARGV[3], ARGV[4]
local has = redis.call('HGET', META, 'epoch') or ''
if verb == 'renew' and has == given then
  -- Tokens of the older epoch are dead everywhere from here on.
  local new = math.max(now, tonumber(ARGV[5]) + 1)
  redis.call('HSET', META, 'epoch', string.format('%.0f', new), 'shards', ARGV[6], 'deployment', ARGV[7], 'opening', '1')
elseif verb == 'join' then
  if (tonumber(has) or 0) < tonumber(given) then
    redis.call('HSET', META, 'epoch', given, 'shards', ARGV[5], 'deployment', ARGV[6])
  end
elseif verb == 'done' and has == given then
  redis.call('HDEL', META, 'opening')
end
local m = redis.call('HMGET', META, 'epoch', 'shards', 'opening', 'deployment', 'last')
return {'ok', 'open', m[1] or '', m[2] or '', m[3] or '', m[4] or '', now, tonumber(m[5]) or 0}
