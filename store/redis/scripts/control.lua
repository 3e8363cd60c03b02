-- Writes a denial by a property, a lock or the lifting of one to this shard. The first shard decides
-- when it is, and whether it is the first time; the others do as it did.
--
-- ARGV: epoch, kind, shard and target in one, target (a lock's ID, a kid, a selector), expiry of a lock, what else is to be
-- kept of a lock, event, reason, cause; and, from the first shard: its moment and '1' if the lock
-- has been lifted there.
local kind, id, event, reason, cause = string.match(ARGV[2], '^%S+'), ARGV[3], ARGV[6], ARGV[7], ARGV[8]
local first_shard = ARGV[9] == ''
local at = first_shard and now or tonumber(ARGV[9])

if missing() then return {'epoch', ARGV[2]} end -- a new epoch begins when somebody follows the feed

local function answer(first, r, lifted)
  return {'ok', ARGV[2], now, first, r.number, r.at, r.event, r.reason, r.cause, lifted and 1 or 0}
end

local function made() return {number = number, at = at, event = event, reason = reason, cause = cause} end

-- change_control announces a change of the list. Locks that have expired, and denials that have passed, go with it: before
-- anything is written, since a key that has become something else must not leave an entry in the feed without its number.
local function change_control(what, target, till)
  redis.call('ZREMRANGEBYSCORE', DENIALS, '-inf', now)
  for _, raw in ipairs(redis.call('HVALS', LOCKS)) do
    local l = decode(read_lock, raw, LOCKS, '')
    if l and now >= l.expires then redis.call('HDEL', LOCKS, l.id) end
  end
  announce(what, target, nil, till)
  version = number
end

if kind == 'lock' or kind == 'lift' then
  local l = decode(read_lock, redis.call('HGET', LOCKS, id), LOCKS, id)
  if l and passed(l.expires) then l = nil end
  if kind == 'lift' then
    if not l then
      if first_shard then return {'not found', ARGV[2]} end
      return answer(0, made())
    end
    if l.lifted then return answer(0, l.lifted) end
    change_control('', '', now)
    l.lifted = made()
    redis.call('HSET', LOCKS, id, cmsgpack.pack(l))
    return answer(1, l.lifted)
  end
  if l then return answer(0, l.locked, l.lifted) end
  if first_shard and now >= tonumber(ARGV[4]) then return {'expired', ARGV[2]} end
  if ARGV[10] == '1' then return answer(0, made(), true) end
  change_control('', '', now)
  l = {v = LOCK_VERSION, id = id, static = ARGV[5], expires = tonumber(ARGV[4]), locked = made()}
  redis.call('HSET', LOCKS, id, cmsgpack.pack(l))
  keep(1, 'locked', l.expires)
  return answer(1, l.locked)
end

if kind == 'key' then
  announce(kind, id, nil, at + DENIAL_LIFE)
else
  change_control(kind, id, at + DENIAL_LIFE)
  redis.call('ZADD', DENIALS, at + DENIAL_LIFE, cmsgpack.pack({DENIAL_VERSION, kind, id, number}))
  keep(2, 'denied', at + DENIAL_LIFE)
end
return answer(1, made())
