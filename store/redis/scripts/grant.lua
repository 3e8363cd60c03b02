-- Begins a task, issues grants in one, or both; or writes nothing. It does not work when memory is
-- full: nothing new begins then. The order of the checks is the contract's.
--
-- KEYS: one for each grant that is asked for, one for the delegation of a join, and then those that 'declare'
-- named.
-- Arguments: task, workload, control, quota of tasks, of grants, of children, number of grants, and of each:
-- audience, life, not after (0 for none), what else is to be kept; then, of a begin: parent ('' for a
-- root), lease, deadline, idempotency key, digest, what else is to be kept, what it is in another system
-- ('' for nothing), and with presence the first lease ('' without); and of a join: whose the parent is, and when the delegation is over.
--
-- What is new is answered in few words, since the caller knows the rest.
local ELSEWHERE = string.rep('-', ID) -- the ID of what cannot be in this shard

-- Whoever adds work does a part of what has come due: more of it than can be added. Who needs it done hears of a failure.
if known and clock[2] % 8 < #counts then pcall(settle, math.max(32, 4 * #counts)) end

local function refuse_dead(id, path)
  local state, cause, moment = fate(path)
  if now >= moment then return {'ended', id, path[#path].id, state, cause, moment} end
end

-- A call that has been made already is known by its key or by the IDs that it brings. The IDs of its
-- grants are those of the first time, so their keys may have to be declared yet.
local function replay(id, workload, made, ids, key, last_key, raws)
  local path = find(made, workload)
  if not path then return {'not found', id} end
  local dead = refuse_dead(id, path)
  if dead then return dead end
  local declared, grants = {}, {}
  for i = key, last_key do declared[string.sub(KEYS[i], -ID)] = i end
  for i = 1, #ids, ID do
    local at = declared[string.sub(ids, i, i + ID - 1)]
    if not at then return {'declare', id, ids} end
    local g = grant(KEYS[at], raws[at - key + 1])
    if g and not passed(g.expires) then grants[#grants + 1] = grant_reply(g) end
  end
  return {'replayed', id, now, version, task_reply(path), grants}
end

local function over_limit(id, what, n, limit)
  limit = tonumber(limit)
  if limit > 0 and n > limit then return {'quota', id, what, limit} end
end

-- over_quota says which quota is exceeded; the arguments have them from q on.
local function over_quota(id, u, begin, above, asks, q)
  return begin and over_limit(id, 'live tasks', u.tasks + 1, args[q])
    or begin and above and over_limit(id, 'live children', above.children + 1, args[q + 2])
    or asks > 0 and over_limit(id, 'live grants', u.grants + asks, args[q + 1])
end

-- count_grant counts a grant in a usage until it expires.
local function count_grant(u, expires)
  local second = expires / 1000
  local lo, hi = 0, #u.buckets / 8 -- lo becomes the first bucket that is not before the second
  if hi > 0 and struct.unpack('>I4', u.buckets, hi * 8 - 7) < second then lo = hi end -- as when all live as long
  while lo < hi do
    local mid = math.floor((lo + hi) / 2)
    if struct.unpack('>I4', u.buckets, mid * 8 + 1) < second then lo = mid + 1 else hi = mid end
  end
  local n, rest = 0, lo * 8 + 1
  if rest <= #u.buckets and struct.unpack('>I4', u.buckets, rest) == second then
    n, rest = struct.unpack('>I4', u.buckets, rest + 4), rest + 8
  end
  u.buckets = string.sub(u.buckets, 1, lo * 8) .. struct.pack('>I4I4', second, n + 1) .. string.sub(u.buckets, rest)
  u.grants = u.grants + 1
end

-- earlier returns the answer to a call that has been made already, or that is about something else than
-- it says; and nothing to a new one. The begin's arguments stand from b on.
local function earlier(id, workload, asks, begin, b, key, last_key, raws)
  if begin then
    local request = args[b + 3]
    local made = request ~= '' and redis.call('HGET', REQUESTS, request)
    made = made and task(made) or task(id)
    if made and made.begun == 0 then -- it is known by its end alone
      return {'ended', id, made.id, made.over.state, made.over.cause, made.over.ended}
    end
    if made then
      if made.workload ~= workload or made.digest ~= args[b + 4] then return {'mismatch', id} end
      return replay(id, workload, made.id, made.first, key, last_key, raws)
    end
  end
  local there = ''
  for i = 1, asks do
    local g = raws[i] and grant(KEYS[key + i - 1], raws[i])
    if g and g.task ~= id then return {'mismatch', id} end
    if g then there = there .. g.id end
  end
  if there ~= '' then
    if #there < asks * ID then return {'mismatch', id} end
    return replay(id, workload, id, there, key, last_key, raws)
  end
end

-- is_used reports whether a task has joined by the delegation of a key, other than one that was never handed
-- out. What cannot be read counts as used, and so does what is no string, of which MGET says that there is nothing.
local function is_used(key, raw)
  raw = raw or redis.pcall('GET', key)
  if not raw then return false end
  local j = decode(read_join, raw, key, '')
  if not j then return true end
  if passed(j.till) then return false end
  local t = task(j.task)
  return not (t and t.over and (t.over.cause == 'audit' or t.over.cause == 'signing'))
end

-- add_audiences adds those of the grants that are new to a list, and returns it.
local function add_audiences(audiences, asks)
  for i = 1, asks do
    local audience, new = args[4 + 4 * i], true
    for _, known_audience in ipairs(audiences) do new = new and known_audience ~= audience end
    if new then audiences[#audiences + 1] = audience end
  end
  return audiences
end

-- write_grants writes the grants with their expiries, after what is to go into the lists with them. It returns their
-- IDs. Their keys are new: nobody else can have drawn these IDs.
local function write_grants(id, expiries, issued, key, listed)
  local ids = ''
  for i, expires in ipairs(expiries) do
    local grant_id, n = string.sub(KEYS[key + i - 1], -ID), #listed
    ids = ids .. grant_id
    listed[n + 1], listed[n + 2] = '0', listed_grant(id, expires, grant_id)
  end
  in_parts('ZADD', LISTS, listed)
  for i, expires in ipairs(expiries) do
    save_grant(KEYS[key + i - 1], id, args[4 + 4 * i], args[7 + 4 * i], issued, expires, number, false)
  end
  return ids
end

-- write_begun writes the task that begins, with its grants; its other arguments stand from b on. The record comes last:
-- without it nothing of all that is anything, and the alarm takes it away. It returns the path above.
local function write_begun(id, workload, above, deadline, expiries, issued, last_exp, key, b)
  if load_task(id) then drop(id) end -- it is gone, and nobody has come by to take it away
  local ancestors = above and above.above .. above.id or ''
  local lease, request, ref = tonumber(args[b + 1]), args[b + 3], args[b + 6]
  local alone = b + 7 <= #args and args[b + 7] ~= '' -- with presence, and without a stream yet
  local until_first = alone and tonumber(args[b + 7]) or lease
  local listed = {}
  listed_task(listed, id, ancestors, ref)
  redis.call('ZADD', ALARMS, math.min(now + until_first, deadline), id)
  local ids = write_grants(id, expiries, issued, key, listed)
  if request ~= '' then redis.call('HSET', REQUESTS, request, id) end
  local fields = {TASK_VERSION, workload, args[b + 5], now, lease, until_first, deadline - now, ancestors,
    request, args[b + 4], ids, add_audiences({}, above and 0 or #expiries), last_exp / 1000, #expiries, 0, 0, false, 1, ref}
  if alone then fields[20], fields[21], fields[22] = '', 0, '' end
  if b + 9 <= #args then save_join(KEYS[key + #expiries], tonumber(args[b + 9]), id) end
  redis.call('HSET', TASKS, id, cmsgpack.pack(fields))
  tasks[id] = nil -- a later call of this run finds it
  return ancestors
end

local function main(key, last_key)
  local id, workload, control = args[1], args[2], args[3]
  local asks = args[7]
  local b = 8 + 4 * asks -- where the begin stands
  local begin = b <= #args
  local raws = {}
  if key <= last_key then raws = redis.call('MGET', unpack(KEYS, key, last_key)) end -- some 40: a begin's tokens, and a replay's
  local answer = earlier(id, workload, asks, begin, b, key, last_key, raws)
  if answer then return answer end

  local path = {}
  local on, whose = id, workload -- the task that must be alive ('' for a root), and the workload that has it
  if begin then on = args[b] end
  local join = b + 9 <= #args
  if join then
    whose = args[b + 8]
    if on == '' or whose == '' then return {'not found', id} end -- '' would be anybody's
  end
  if on ~= '' then
    path = find(on, whose)
    if not path then return {'not found', id} end
    local dead = refuse_dead(id, path)
    if dead then return dead end
  end
  for i = key, key + asks - 1 do
    if string.sub(KEYS[i], -ID) == ELSEWHERE then return {'not found', id} end
    for j = key, i - 1 do
      if KEYS[j] == KEYS[i] then return {'mismatch', id} end
    end
  end
  if join and is_used(KEYS[key + asks], raws[asks + 1]) then return {'used', id} end
  local above = path[#path] -- the parent of a begin; the task itself otherwise
  if begin and #path >= MAX_DEPTH then return {'deep', id} end
  if version > control then return {'behind', id, version} end

  local u = usage(workload)
  if over_quota(id, u, begin, above, asks, 4) then
    if settle(200) then return {'again', id} end
    local refusal = over_quota(id, u, begin, above, asks, 4)
    if refusal then return refusal end
  end

  local deadline = above and above.deadline or math.huge
  if begin then deadline = math.min(deadline, now + tonumber(args[b + 2])) end
  local issued = now - now % 1000
  local expiries, last_exp = {}, 0
  for i = 1, asks do
    local expires = math.min(issued + tonumber(args[5 + 4 * i]), deadline)
    local not_after = tonumber(args[6 + 4 * i])
    if not_after ~= 0 then expires = math.min(expires, not_after) end
    expires = expires - expires % 1000
    if expires - issued < MIN_LIFE then return {'short', id} end
    expiries[i], last_exp = expires, math.max(last_exp, expires)
  end

  -- From here on everything is written, and then counted: what fails half way does not count.
  local ancestors
  if begin then
    ancestors = write_begun(id, workload, above, deadline, expiries, issued, last_exp, key, b)
    u.tasks = u.tasks + 1
    if above then above.children = above.children + 1 end
  elseif asks > 0 then
    write_grants(id, expiries, issued, key, {})
  end
  for _, expires in ipairs(expiries) do count_grant(u, expires) end
  if asks > 0 or begin then used[workload], changed = u, true end
  if above then add_audiences(path[1].audiences, asks) end
  for _, t in ipairs(path) do
    t.grants, t.last_exp = t.grants + asks, math.max(t.last_exp, last_exp)
    if begin then t.below = t.below + 1 end
    save(t)
  end
  if not begin then return {'issued', id, now, version, number, expiries, task_reply(path)} end
  return {'begun', id, now, version, number, expiries, deadline, ancestors}
end
