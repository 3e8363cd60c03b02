-- What comes due. No answer depends on whether it has been done, but for the list of what is due and
-- the quotas of tasks: whoever needs those has it all done first.

-- drop takes a task's record away.
local function drop(id)
  local t = load_task(id)
  if t then
    if not t.over then retire(t) end
    give_up_key(t)
    used[t.workload] = usage(t.workload) -- the grants that it had have expired
  end
  tasks[id], dirty[id] = false, nil
  changed = true
  redis.call('HDEL', TASKS, id)
  unlist(id, t)
  redis.call('ZREM', DUE, id)
  redis.call('ZREM', ALARMS, id)
end

-- What one run may still do of it, for which all others must wait: so many tasks, and grants that go off the lists.
local rings, grants = 400, 1000

-- settle does what has come due, at most limit of it, and reports whether there may be more. A task that is
-- alive comes due whenever its lease would have passed without a heartbeat, and so, some time after they have
-- gone, its grants go off the lists.
local function settle(limit)
  if grants == 0 then rings = 0 end
  limit = math.min(limit, rings)
  local ids = redis.call('ZRANGEBYSCORE', ALARMS, '-inf', now, 'LIMIT', 0, math.max(1, limit))
  if #ids == 0 then return false end
  if limit == 0 then return true end
  rings = rings - #ids

  local function ring(id)
    local t = load_task(id)
    local is_gone, again = not t or now >= gone(t), nil
    grants = grants - unlist_grants(id, is_gone, grants)
    if grants == 0 then again = now end -- for the rest
    if is_gone then
      drop(id)
    elseif t.over then
      again = again or gone(t)
    elseif now < t.due then
      again = again or t.due -- a heartbeat moved it
    else
      usage(t.workload) -- before anything is written, since it may fail
      if redis.call('ZADD', DUE, '0', id) == 1 then count_out(t) end
      again = again or gone(t)
    end
    if again then redis.call('ZADD', ALARMS, again, id) end
  end

  for _, id in ipairs(ids) do ring(id) end
  return #ids == limit
end
