-- Ends one task or one grant. It works when memory is full: an end must.
--
-- KEYS: the one of the grant if it is one.
-- Arguments: id, workload ('' for any), state, cause, reason, event, '1' if only when due, and the position
-- of the other shards: what stands before this one's number, and what after; and the deadline of a
-- task that is known to have begun ('' for none), and what is kept of such a one; and, if that matters, who
-- holds the task.
local function answer(id, first, path, o, as_state, g)
  local t = path[#path]
  local all = not g and path[1].begun == 0 and 1 or 0 -- it is known by its end alone
  local audiences = g and {g.audience} or path[1].audiences
  return {'ok', id, now, first, task_reply(path),
    {o.event, as_state, o.cause, o.reason, o.ended, g and 0 or t.grants, g and 0 or t.below, o.feed}, g and grant_reply(g) or {}, all, audiences}
end

local function is_final(state) return state ~= '' and state ~= 'active' end

-- position is where in all feeds the newest change of this shard is.
local function position(before, after) return before .. string.format('%.0f', number) .. after end

local function end_grant(key, id, workload, cause, reason, event, before, after)
  local g = grant(key, redis.call('GET', key))
  local path = g and find(g.task, workload)
  if not path then return {'not found', id} end
  if g.over then return answer(id, 0, path, g.over, 'revoked', g) end
  announce('grant', id, g.audience, g.expires + MARGIN)
  g.over = {cause = cause, ended = now, event = event, reason = reason, feed = position(before, after)}
  save_grant(key, g.task, g.audience, g.static, g.issued, g.expires, g.number, {cause, now, event, reason, g.over.feed})
  return answer(id, 1, path, g.over, 'revoked', g)
end

-- end_lost ends a task that is not in this data set, or is without those above it: what is left is a
-- record that only says so.
local function end_lost(id, workload, state, cause, reason, event, before, after, deadline, static)
  local old = load_task(id)
  local there = old and now < gone(old)
  if workload == '' then return {'nobody', id} end
  if there and old.workload ~= workload or now >= deadline + MARGIN then return {'not found', id} end
  if not is_final(state) then return {'invalid', id} end
  local last = math.min(deadline, now + DENIAL_LIFE - MARGIN) -- when its last token can have expired
  announce('task', id, nil, last + MARGIN)
  local t = {id = id, workload = workload, static = static, begun = 0, lease = 0, lease_end = 0, deadline = deadline, due = 0,
    above = '', request = '', digest = '', first = '', audiences = {}, last_exp = 0, grants = 0, below = 0,
    children = old and old.children or 0, -- each is taken off when it is looked at again
    holder = 0, ref = ''}
  t.over = {state = state, cause = cause, ended = now, closed = last, event = event, reason = reason, feed = position(before, after)}
  save(t) -- before anything else may fail: the entry says that it is over
  if old then
    if not old.over then retire(old) end
    give_up_key(old)
    unlist(id, old)
  end
  redis.call('ZADD', LISTS, '0', 't' .. id)
  redis.call('ZADD', ALARMS, gone(t), id)
  return answer(id, 1, {t}, t.over, state)
end

local function end_task(path, state, cause, reason, event, if_due, before, after, holder)
  local t = path[#path]
  if t.over then return answer(t.id, 0, path, t.over, t.over.state) end
  if if_due == '1' and now < t.due then return {'active', t.id, now, 0, task_reply(path)} end
  local as_state, as_cause, ended = fate(path)
  if now < ended then
    if holder and tonumber(holder) ~= t.holder then return {'adopted', t.id} end
    if not is_final(state) then return {'invalid', t.id} end
    as_state, as_cause, ended = state, cause, now
  end

  local covered = false -- by the entry of a task above that was ended by a write
  for i = 1, #path - 1 do covered = covered or path[i].over ~= nil end
  if t.last_exp > 0 and now < t.last_exp + MARGIN and not covered then
    table.sort(path[1].audiences)
    announce('task', t.id, table.concat(path[1].audiences, ' '), t.last_exp + MARGIN)
  end
  t.over = {state = as_state, cause = as_cause, ended = ended, closed = now, event = event, reason = reason, feed = position(before, after)}
  save(t) -- before anything else may fail: the entry says that it is over, and so must the answer to whoever asks next
  retire(t)
  if as_cause == 'audit' or as_cause == 'signing' then give_up_key(t) end -- it was never handed out
  -- Its alarm rings when it would have been due, and is then put off to when the record goes away.
  if t.due > gone(t) + 60000 then redis.call('ZADD', ALARMS, gone(t), t.id) end
  return answer(t.id, 1, path, t.over, as_state)
end

local function main(key, last_key)
  local id, workload, state, cause, reason, event, if_due, before, after, deadline, static, holder = unpack(args)
  if key == last_key then return end_grant(KEYS[key], id, workload, cause, reason, event, before, after) end
  local path = find(id, workload)
  if path then return end_task(path, state, cause, reason, event, if_due, before, after, holder) end
  if deadline == '' then return {'not found', id} end
  return end_lost(id, workload, state, cause, reason, event, before, after, tonumber(deadline), static)
end
