#!lua
-- Begins a task, issues grants in one, or both; or writes nothing. It has no allow-oom: when memory
-- is full, nothing new begins. The order of the checks is the contract's.
--
-- ARGV: epoch, task, workload, control, quota of tasks, of grants, of children, number of grants,
-- and of each: id, audience, life, not after (0 for none), what else is to be kept; then, of a
-- begin: parent ('' for a root), lease, deadline, idempotency key, digest, what else is to be kept.
local id, workload, control = ARGV[2], ARGV[3], tonumber(ARGV[4])
local quota = {tasks = tonumber(ARGV[5]), grants = tonumber(ARGV[6]), children = tonumber(ARGV[7])}
if not known then return {'epoch', id} end
settle(50)

local asks = {}
local at = 9
for i = 1, tonumber(ARGV[8]) do
  asks[i] = {id = ARGV[at], audience = ARGV[at + 1], life = tonumber(ARGV[at + 2]),
    not_after = tonumber(ARGV[at + 3]), static = ARGV[at + 4]}
  at = at + 5
end
local begin = nil
if ARGV[at] then
  begin = {parent = ARGV[at], lease = tonumber(ARGV[at + 1]), deadline = tonumber(ARGV[at + 2]),
    key = ARGV[at + 3], digest = ARGV[at + 4], static = ARGV[at + 5]}
end

-- alive returns the path to a task of the workload that has not ended, or nil and a refusal.
local function alive(on)
  local path = find(on, workload)
  if not path then return nil, {'not found', id} end
  local state, cause, moment = fate(path)
  if now >= moment then return nil, {'ended', id, on, state, cause, moment} end
  return path
end

local function answer(path, grants, replayed)
  local out = {}
  for i, g in ipairs(grants) do out[i] = grant_reply(g) end
  return {'ok', id, now, version, replayed, task_reply(path), out}
end

-- A call that has been made already is known by its key or by the IDs that it brings.
local function replay(on, ids)
  local path, refusal = alive(on)
  if not path then return refusal end
  local grants = {}
  for _, gid in ipairs(ids) do
    local g = grant(gid)
    if g and now < g.expires then grants[#grants + 1] = g end
  end
  return answer(path, grants, 1)
end

if begin then
  local made = nil
  if begin.key ~= '' then
    local before = redis.call('HGET', IDEMPOTENT, workload .. '\0' .. begin.key)
    made = before and task(before)
  end
  made = made or task(id)
  if made then
    if made.workload ~= workload or made.digest ~= begin.digest then return {'mismatch', id} end
    return replay(made.id, made.first)
  end
end
local there = {}
for _, ask in ipairs(asks) do
  local g = grant(ask.id)
  if g and g.task ~= id then return {'mismatch', id} end
  if g then there[#there + 1] = ask.id end
end
if #there > 0 then
  if #there < #asks then return {'mismatch', id} end
  return replay(id, there)
end

local above, refusal = {}, nil
if not begin or begin.parent ~= '' then
  above, refusal = alive(begin and begin.parent or id)
  if not above then return refusal end
end
local asked = {}
for _, ask in ipairs(asks) do
  if string.sub(ask.id, 5, 6) ~= string.sub(id, 5, 6) then return {'not found', id} end
  if asked[ask.id] then return {'mismatch', id} end
  asked[ask.id] = true
end
if begin and #above >= MAX_DEPTH then return {'deep', id} end
if version > control then return {'behind', id, version} end

local function over(n, limit) return limit > 0 and n > limit end
if begin and over(live_count('t', workload) + 1, quota.tasks) then
  return {'quota', id, 'live tasks', quota.tasks}
end
if begin and #above > 0 and over(live_count('c', begin.parent) + 1, quota.children) then
  return {'quota', id, 'live children', quota.children}
end
if #asks > 0 and over(live_count('g', workload) + #asks, quota.grants) then
  return {'quota', id, 'live grants', quota.grants}
end

local path = above
if begin then
  local t = {v = TASK_VERSION, id = id, workload = workload, static = begin.static, begun = now,
    lease = begin.lease, lease_end = now + begin.lease, deadline = now + begin.deadline, path = {},
    key = begin.key, digest = begin.digest, first = {}, last_exp = 0, grants = 0, below = 0}
  path = {}
  for i, a in ipairs(above) do path[i], t.path[i] = a, a.id end
  t.path[#t.path + 1], path[#path + 1] = id, t
  if #above > 0 then t.deadline = math.min(t.deadline, above[#above].deadline) else t.audiences = {} end
  for i, ask in ipairs(asks) do t.first[i] = ask.id end
end

local last = path[#path]
local issued = now - now % 1000
local grants = {}
for i, ask in ipairs(asks) do
  local expires = math.min(issued + ask.life, last.deadline)
  if ask.not_after ~= 0 then expires = math.min(expires, ask.not_after) end
  expires = expires - expires % 1000
  if expires - issued < MIN_LIFE then return {'short', id} end
  grants[i] = {v = GRANT_VERSION, id = ask.id, task = id, workload = workload, audience = ask.audience,
    static = ask.static, issued = issued, expires = expires, epoch = epoch, number = number}
end

-- From here on everything is written.
if begin then
  for _, a in ipairs(above) do a.below = a.below + 1 end
  redis.call('ZADD', IDS, 0, id)
  redis.call('ZADD', ALARMS, due(last), id)
  count(last, 'ZADD')
  if begin.key ~= '' then redis.call('HSET', IDEMPOTENT, workload .. '\0' .. begin.key, id) end
end
local audiences = {}
for _, audience in ipairs(path[1].audiences) do audiences[audience] = true end
for _, g in ipairs(grants) do
  save_grant(g)
  redis.call('ZADD', ALARMS, g.expires + MARGIN, g.id)
  redis.call('ZADD', LIVE, 0, live_member('g', workload, g.expires, g.id))
  if not audiences[g.audience] then
    audiences[g.audience] = true
    table.insert(path[1].audiences, g.audience)
  end
  for _, t in ipairs(path) do
    t.grants = t.grants + 1
    t.last_exp = math.max(t.last_exp, g.expires)
  end
end
for _, t in ipairs(path) do save_task(t) end
return answer(path, grants, 0)
