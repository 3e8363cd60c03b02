-- Reads what a data set says of itself, or writes it. It works without a known epoch.
--
-- ARGV: '', 'open', and then 'read'; 'renew', the epoch that was read ('' for none), one that the new
-- one must be above, the number of shards, the deployment; 'join', the epoch of the first shard, the
-- number of shards, the deployment; or 'done', the epoch.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local verb, given = ARGV[3], ARGV[4]
local has = redis.call('HGET', META, 'epoch') or ''

-- begin writes an epoch. Tasks of before are unknown in it: an end of theirs may be among what was
-- lost. The feed's numbers go on, also when only the feed is left: it takes none twice.
local function begin(epoch, shards, deployment)
  local number = redis.call('HGET', META, 'number')
  local feed = not number and redis.pcall('XINFO', 'STREAM', FEED) or {}
  for i = 1, #feed, 2 do
    if feed[i] == 'last-generated-id' then number = string.match(feed[i + 1], '^%d+') end
  end
  redis.call('UNLINK', TASKS, REQUESTS, LISTS, DUE, ALARMS, USAGE)
  redis.call('HSET', META, 'epoch', epoch, 'shards', shards, 'deployment', deployment, 'number', number or '0')
end

if verb == 'renew' and has == given then
  -- Tokens of the older epoch are dead everywhere from here on.
  local new = math.max(now, tonumber(ARGV[5]) + 1)
  begin(string.format('%.0f', new), ARGV[6], ARGV[7])
  redis.call('HSET', META, 'opening', '1')
elseif verb == 'join' then
  if (tonumber(has) or 0) < tonumber(given) then begin(given, ARGV[5], ARGV[6]) end
elseif verb == 'done' and has == given then
  redis.call('HDEL', META, 'opening')
end
local m = redis.call('HMGET', META, 'epoch', 'shards', 'opening', 'deployment', 'last')
return cmsgpack.pack({'ok', 'open', m[1] or '', m[2] or '', m[3] or '', m[4] or '', now, tonumber(m[5]) or 0})
