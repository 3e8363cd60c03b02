-- The records of the control list. There are few, so they have names in them.
--
-- The shard knows until when there must be a lock at least, and a denial, so that it is noticed when they have gone alone.
local kept = redis.call('HMGET', META, 'locked', 'denied')

-- keep notes that there is one until a moment.
local function keep(i, field, till)
  if till > (tonumber(kept[i]) or 0) then redis.call('HSET', META, field, till) end
end

-- missing is the key that has gone alone, of those that say what is denied.
local function missing()
  if (feed_number() or 0) < number then return FEED end
  for i, key in ipairs({LOCKS, DENIALS}) do
    if now < (tonumber(kept[i]) or 0) and redis.call('TYPE', key).ok == 'none' then return key end
  end
end

local LOCK_VERSION, DENIAL_VERSION = 3, 4

local function read_lock(raw)
  local l = cmsgpack.unpack(raw)
  assert(l.v == LOCK_VERSION and #(l.id .. l.static) > 0 and l.expires + l.locked.number + l.locked.at > 0)
  return l
end

local function read_denial(raw)
  local d = cmsgpack.unpack(raw)
  assert(d[1] == DENIAL_VERSION and #(d[2] .. d[3]) > 0 and d[4] > 0)
  return d
end
