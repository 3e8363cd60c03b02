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
-- lost. The feed's numbers go on, also when only the feed is left, or all but the feed: it takes none twice. What of the
-- control list has gone is not missed any more.
local function begin(epoch, shards, deployment)
  local number, newest = tonumber(redis.call('HGET', META, 'number')) or 0, 0
  local feed = redis.pcall('XINFO', 'STREAM', FEED)
  for i = 1, #feed, 2 do
    if feed[i] == 'last-generated-id' then newest = tonumber(string.match(feed[i + 1], '^%d+')) end
  end
  if newest < number then redis.call('XADD', FEED, string.format('%.0f-0', number), 'kind', '', 'target', '', 'until', now) end
  for field, key in pairs({locked = LOCKS, denied = DENIALS}) do
    if redis.call('TYPE', key).ok == 'none' then redis.call('HDEL', META, field) end
  end
  redis.call('UNLINK', TASKS, REQUESTS, LISTS, DUE, ALARMS, USAGE)
  redis.call('HSET', META, 'epoch', epoch, 'shards', shards, 'deployment', deployment, 'number', math.max(number, newest))
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
