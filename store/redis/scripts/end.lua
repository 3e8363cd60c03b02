#!lua flags=allow-oom
-- Ends one task or one grant. It has allow-oom: an end must work when memory is full.
--
-- ARGV: epoch, id, workload ('' for any), state, cause, reason, event, '1' if only when due, and
-- the position of the other shards: what stands before this one's number, and what after.
local id, workload, state, cause, reason, event = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
if not known then return {'epoch', id} end
settle(100)
trim_feed(100)

local function receipt(ended, grants, below)
  return {event = event, reason = reason, ended = ended, grants = grants, below = below,
    feed = ARGV[9] .. string.format('%.0f', number) .. ARGV[10]}
end

local function answer(first, path, r, as_state, as_cause, g)
  return {'ok', id, now, first, task_reply(path),
    {r.event, as_state, as_cause, r.reason, r.ended, r.grants, r.below, r.feed}, g and grant_reply(g) or {}}
end

if string.sub(id, 1, 4) == 'gnt_' then
  local g = grant(id)
  local path = g and find(g.task, workload)
  if not path then return {'not found', id} end
  local first = 0
  if not g.receipt then
    first = 1
    g.revoked = true
    announce('grant', id, {g.audience}, g.expires + MARGIN)
    g.receipt = receipt(now, 0, 0)
    g.receipt.cause = cause
    save_grant(g)
  end
  return answer(first, path, g.receipt, 'revoked', g.receipt.cause, g)
end

local path = find(id, workload)
if not path then return {'not found', id} end
local t = path[#path]
if t.receipt then return answer(0, path, t.receipt, t.state, t.cause) end
if ARGV[8] == '1' and now < due(t) then
  return {'active', id, now, 0, task_reply(path)}
end
local as_state, as_cause, ended = fate(path)
if now < ended then
  if state == '' or state == 'active' then return {'invalid', id} end
  as_state, as_cause, ended = state, cause, now
end

local covered = false -- by the entry of a task above that was ended by a write
for i = 1, #path - 1 do covered = covered or path[i].receipt ~= nil end
count(t, 'ZREM')
redis.call('ZREM', DUE, id)
t.state, t.cause, t.ended = as_state, as_cause, ended
t.gone = math.max(now, t.last_exp) + MARGIN
redis.call('ZADD', ALARMS, t.gone, id)
if t.last_exp > 0 and now < t.last_exp + MARGIN and not covered then
  local audiences = {}
  for i, audience in ipairs(path[1].audiences) do audiences[i] = audience end
  table.sort(audiences)
  announce('task', id, audiences, t.last_exp + MARGIN)
end
if as_cause == 'audit' or as_cause == 'signing' then give_up_key(t) end -- it was never handed out
t.receipt = receipt(ended, t.grants, t.below)
save_task(t)
return answer(1, path, t.receipt, as_state, as_cause)
