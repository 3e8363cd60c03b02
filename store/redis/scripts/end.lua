-- Ends one task or one grant. It works when memory is full: an end must.
--
-- KEYS: after the shard's, the one of the grant if it is one.
-- ARGV: epoch, id, workload ('' for any), state, cause, reason, event, '1' if only when due, and
-- the position of the other shards: what stands before this one's number, and what after; and the
-- deadline of a task that is known to have begun ('' for none).
local id, workload, state, cause, reason, event = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]

local function position() return ARGV[9] .. string.format('%.0f', number) .. ARGV[10] end

local function answer(first, path, o, as_state, g)
  local t = path[#path]
  return {'ok', id, now, first, task_reply(path),
    {o.event, as_state, o.cause, o.reason, o.ended, g and 0 or t.grants, g and 0 or t.below, o.feed}, g and grant_reply(g) or {}}
end

local key = KEYS[NKEYS + 1]
if key then
  local g = grant(key, redis.call('GET', key))
  local path = g and find(g.task, workload)
  if not path then return {'not found', id} end
  if g.over then return answer(0, path, g.over, 'revoked', g) end
  announce('grant', id, g.audience, g.expires + MARGIN)
  g.over = {cause = cause, ended = now, event = event, reason = reason, feed = position()}
  save_grant(key, g.task, g.audience, g.static, g.issued, g.expires, g.number, {cause, now, event, reason, g.over.feed})
  return answer(1, path, g.over, 'revoked', g)
end

local final = state ~= '' and state ~= 'active'

local path = find(id, workload)
if not path then
  if ARGV[11] == '' then return {'not found', id} end
  -- It is not in this data set, or is without those above it: what is left is a record that only says
  -- so.
  local deadline, old = tonumber(ARGV[11]), load_task(id)
  local there = old and now < gone(old)
  if workload == '' then return {'nobody', id} end
  if there and old.workload ~= workload or now >= deadline + MARGIN then return {'not found', id} end
  if not final then return {'invalid', id} end
  if old then
    if not old.over then retire(old) end
    give_up_key(old)
  end
  local last = math.min(deadline, now + DENIAL_LIFE - MARGIN) -- when its last token can have expired
  announce('task', id, nil, last + MARGIN)
  local t = {id = id, workload = workload, static = ARGV[12], begun = 0, lease = 0, lease_end = 0, deadline = deadline, due = 0,
    above = '', request = '', digest = '', first = '', audiences = {}, last_exp = 0, grants = 0, below = 0, children = 0}
  t.over = {state = state, cause = cause, ended = now, closed = last, event = event, reason = reason, feed = position()}
  redis.call('ZADD', IDS, 0, id)
  redis.call('ZADD', ALARMS, gone(t), id)
  save(t)
  return answer(1, {t}, t.over, state)
end
local t = path[#path]
if t.over then return answer(0, path, t.over, t.over.state) end
if ARGV[8] == '1' and now < t.due then return {'active', id, now, 0, task_reply(path)} end
local as_state, as_cause, ended = fate(path)
if now < ended then
  if not final then return {'invalid', id} end
  as_state, as_cause, ended = state, cause, now
end

retire(t)
local covered = false -- by the entry of a task above that was ended by a write
for i = 1, #path - 1 do covered = covered or path[i].over ~= nil end
if t.last_exp > 0 and now < t.last_exp + MARGIN and not covered then
  table.sort(path[1].audiences)
  announce('task', id, table.concat(path[1].audiences, ' '), t.last_exp + MARGIN)
end
if as_cause == 'audit' or as_cause == 'signing' then give_up_key(t) end -- it was never handed out
t.over = {state = as_state, cause = as_cause, ended = ended, closed = now, event = event, reason = reason, feed = position()}
redis.call('ZADD', ALARMS, gone(t), id)
save(t)
return answer(1, path, t.over, as_state)
