-- The feed: a stream whose IDs are the shard's own numbers.

-- trim takes away the oldest entries that have passed, at most limit. It looks at one first, since
-- mostly none has.
local function trim(limit)
  for _, count in ipairs({1, limit - 1}) do
    for _, entry in ipairs(redis.call('XRANGE', FEED, '-', '+', 'COUNT', count)) do
      local till = tonumber(entry[2][6])
      if not till or not (till <= now) then return end -- what is no moment has not passed
      redis.call('XDEL', FEED, entry[1])
    end
  end
end

-- feed_number is the number of the newest entry that there ever was, and nil when there is no feed.
local function feed_number()
  local info = redis.pcall('XINFO', 'STREAM', FEED)
  if info.err and not string.find(info.err, 'no such key') then error(info) end
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then return tonumber(string.match(info[i + 1], '^%d+')) end
  end
end

-- announce gives the next change its number, and writes it to the feed. audiences are separated by
-- spaces; nil stands for everybody. A change of the control list that verifiers need not hear of has the kind ''.
local function announce(kind, target, audiences, till)
  if number % 16 == 15 then trim(32) end -- twice as fast as it grows; before, since it may fail
  local entry = {'kind', kind, 'target', target, 'until', till}
  if audiences then entry[7], entry[8] = 'audiences', audiences end
  local function add(n)
    local id = string.format('%.0f-0', n)
    if number == 0 then return redis.pcall('XADD', FEED, id, unpack(entry)) end
    return redis.pcall('XADD', FEED, 'NOMKSTREAM', id, unpack(entry)) or
      {err = 'the feed has gone, and nothing can be announced until somebody has followed it and a new epoch begins'}
  end
  local n = number + 1
  local added = add(n)
  if added.err and string.find(added.err, 'equal or smaller') then -- what came after an entry could not be written
    n = feed_number() + 1
    added = add(n)
  end
  if added.err then error(added) end
  number, changed = n, true
end
