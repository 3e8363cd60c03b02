-- What all scripts share. It stands in front of each of them.
--
-- KEYS are the keys of one shard, the same for every script, so that each of them is declared and
-- in one hash slot. ARGV[1] is the epoch that the caller knows; a script that meets another one, or
-- none, answers "epoch" and does nothing.
local META, TASKS, GRANTS, IDEMPOTENT = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local IDS, DUE, ALARMS, LIVE = KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local FEED, DENIALS, LOCKS = KEYS[9], KEYS[10], KEYS[11]

local MARGIN = 30000        -- broker.Margin, in milliseconds as all times here
local DENIAL_LIFE = 930000  -- broker.MaxTokenLife + broker.Margin
local MAX_DEPTH = 8         -- broker.MaxDepth
local MIN_LIFE = 2000       -- broker.MinTokenLife

local meta = redis.call('HMGET', META, 'epoch', 'last', 'number', 'version')
local epoch, number, version = tonumber(meta[1]), tonumber(meta[3]) or 0, tonumber(meta[4]) or 0
local known = epoch ~= nil and meta[1] == ARGV[1]

-- now is the shard's time. It is written down by every call, so that no later one goes behind it,
-- on this server or on the one that takes over.
local now = tonumber(meta[2]) or 0
if known then
  local t = redis.call('TIME')
  local ms = t[1] * 1000 + math.floor(t[2] / 1000)
  if ms > now then
    now = ms
    redis.call('HSET', META, 'last', now)
  end
end

-- decode returns a record, or nil for one that is missing or that nobody can read: it is not alive.
local function decode(raw, version)
  if not raw then return nil end
  local ok, rec = pcall(cmsgpack.unpack, raw)
  if not ok or type(rec) ~= 'table' or rec.v ~= version then return nil end
  return rec
end

local TASK_VERSION, GRANT_VERSION = 1, 2

local function save_task(t) redis.call('HSET', TASKS, t.id, cmsgpack.pack(t)) end
local function save_grant(g) redis.call('HSET', GRANTS, g.id, cmsgpack.pack(g)) end

-- due is when a task ends by itself if nothing else happens.
local function due(t) return math.min(t.lease_end, t.deadline) end

-- gone is when a task's record goes away.
local function gone(t)
  if t.receipt then return t.gone end
  return math.max(due(t), t.last_exp) + MARGIN
end

local tasks = {} -- read by this call
local function task(id)
  local t = tasks[id]
  if t == nil then
    t = decode(redis.call('HGET', TASKS, id), TASK_VERSION)
    if t and (t.id ~= id or now >= gone(t)) then t = nil end
    tasks[id] = t or false
  end
  return t or nil
end

local function grant(id)
  local g = decode(redis.call('HGET', GRANTS, id), GRANT_VERSION)
  if g and g.id == id and g.epoch == epoch and now < g.expires + MARGIN then return g end
  return nil
end

-- find returns the records from the root down to a task of a workload, or of any when that is ''.
-- A path with a gap is no path.
local function find(id, workload)
  local t = task(id)
  if not t or (workload ~= '' and t.workload ~= workload) then return nil end
  local path = {}
  for i, above in ipairs(t.path) do
    path[i] = task(above)
    if not path[i] then return nil end
  end
  return path
end

-- fate returns how and when the last task of a path ends if nothing else happens. It has ended when
-- now has reached that moment. This is broker.Task.AsOf; the earliest end on the path decides.
local function own_fate(t)
  if t.receipt then return t.state, t.cause, t.ended end
  if t.deadline > t.lease_end then return 'lapsed', 'lease', t.lease_end end
  return 'expired', 'deadline', t.deadline
end

local function fate(path)
  local state, cause, at = own_fate(path[#path])
  for i = 1, #path - 1 do
    local _, _, moment = own_fate(path[i])
    if moment < at then state, cause, at = 'canceled', 'parent', moment end
  end
  return state, cause, at
end

local function task_reply(path)
  local t = path[#path]
  local state, cause, at = fate(path)
  return {t.id, t.workload, t.static, t.begun, t.lease, t.lease_end, t.deadline,
    table.concat(t.path, ' '), state, cause, at}
end

local function grant_reply(g)
  return {g.id, g.task, g.workload, g.audience, g.static, g.issued, g.expires, g.epoch, g.number,
    g.revoked and 1 or 0}
end

-- The live set is sorted by text alone: what counts, of whom, and until when. Its length from now
-- on is an exact count, without a counter that could drift.
local function live_member(kind, owner, at, id)
  return kind .. '\0' .. owner .. '\0' .. string.format('%015.0f', at) .. '\0' .. id
end

local function live_count(kind, owner)
  local prefix = kind .. '\0' .. owner .. '\0'
  return redis.call('ZLEXCOUNT', LIVE, '(' .. prefix .. string.format('%015.0f', now) .. '\1', '[' .. prefix .. '\255')
end

-- count puts a task among those that count, or takes it out again.
local function count(t, command)
  local members = {live_member('t', t.workload, due(t), t.id)}
  if #t.path > 1 then members[2] = live_member('c', t.path[#t.path - 1], due(t), t.id) end
  for _, member in ipairs(members) do
    if command == 'ZADD' then redis.call('ZADD', LIVE, 0, member) else redis.call('ZREM', LIVE, member) end
  end
end

-- announce gives the next change its number, and writes it to the feed. audiences is nil for
-- everybody. A change of the control list that verifiers need not hear of has the kind ''.
local function announce(kind, target, audiences, till)
  number = redis.call('HINCRBY', META, 'number', 1)
  local fields = {'kind', kind, 'target', target, 'until', string.format('%.0f', till)}
  if audiences then
    fields[7], fields[8] = 'audiences', table.concat(audiences, ' ')
  end
  redis.call('XADD', FEED, string.format('%.0f-0', number), unpack(fields))
  return number
end

local function change_control()
  version = number
  redis.call('HSET', META, 'version', version)
end

-- give_up_key makes room for a request that may be repeated.
local function give_up_key(t)
  if t.key == '' then return end
  local field = t.workload .. '\0' .. t.key
  if redis.call('HGET', IDEMPOTENT, field) == t.id then redis.call('HDEL', IDEMPOTENT, field) end
end

local function drop_task(id, t)
  redis.call('HDEL', TASKS, id)
  redis.call('ZREM', IDS, id)
  redis.call('ZREM', DUE, id)
  redis.call('ZREM', ALARMS, id)
  if not t then return end
  count(t, 'ZREM')
  give_up_key(t)
end

local function task_alarm(id)
  local t = decode(redis.call('HGET', TASKS, id), TASK_VERSION)
  if not t or now >= gone(t) then
    drop_task(id, t)
  elseif t.receipt then
    redis.call('ZADD', ALARMS, gone(t), id)
  elseif now < due(t) then
    redis.call('ZADD', ALARMS, due(t), id) -- a heartbeat moved it
  else
    redis.call('ZADD', DUE, 0, id)
    redis.call('ZADD', ALARMS, gone(t), id)
  end
end

local function grant_alarm(id)
  local g = decode(redis.call('HGET', GRANTS, id), GRANT_VERSION)
  redis.call('HDEL', GRANTS, id)
  redis.call('ZREM', ALARMS, id)
  if g then redis.call('ZREM', LIVE, live_member('g', g.workload, g.expires, id)) end
end

-- settle does what has come due, at most limit of it, and reports whether there is more. No answer
-- depends on it but the list of what is due: every other reads the moments themselves.
local function settle(limit)
  local ids = redis.call('ZRANGEBYSCORE', ALARMS, '-inf', now, 'LIMIT', 0, limit)
  for _, id in ipairs(ids) do
    if string.sub(id, 1, 4) == 'gnt_' then grant_alarm(id) else task_alarm(id) end
  end
  return #ids == limit
end

-- trim_feed takes away the oldest entries that have passed, at most limit.
local function trim_feed(limit)
  for _, entry in ipairs(redis.call('XRANGE', FEED, '-', '+', 'COUNT', limit)) do
    if now < tonumber(entry[2][6]) then return end
    redis.call('XDEL', FEED, entry[1])
  end
end
