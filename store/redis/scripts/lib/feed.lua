-- The feed: a stream whose IDs are the shard's own numbers.

-- trim takes away the oldest entries that have passed, at most limit. It looks at one first, since
-- mostly none has.
local function trim(limit)
  for _, count in ipairs({1, limit - 1}) do
    for _, entry in ipairs(redis.call('XRANGE', FEED, '-', '+', 'COUNT', count)) do
      if now < tonumber(entry[2][6]) then return end
      redis.call('XDEL', FEED, entry[1])
    end
  end
end

-- announce gives the next change its number, and writes it to the feed. audiences are separated by
-- spaces; nil stands for everybody. A change of the control list that verifiers need not hear of has the kind ''.
local function announce(kind, target, audiences, till)
  number, changed = number + 1, true
  local id = string.format('%.0f-0', number)
  if audiences then
    redis.call('XADD', FEED, id, 'kind', kind, 'target', target, 'until', till, 'audiences', audiences)
  else
    redis.call('XADD', FEED, id, 'kind', kind, 'target', target, 'until', till)
  end
  if number % 16 == 0 then trim(32) end -- twice as fast as it grows
end
