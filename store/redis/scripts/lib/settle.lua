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
  redis.call('ZREM', IDS, id)
  redis.call('ZREM', DUE, id)
  redis.call('ZREM', ALARMS, id)
end

-- settle does what has come due, at most limit of it, and reports whether there may be more.
local function settle(limit)
  local ids = redis.call('ZRANGEBYSCORE', ALARMS, '-inf', now, 'LIMIT', 0, limit)
  if #ids == 0 then return false end

  local function ring(id)
    local t = load_task(id)
    if not t or now >= gone(t) then
      drop(id)
    elseif t.over then
      redis.call('ZADD', ALARMS, gone(t), id)
    elseif now < t.due then
      redis.call('ZADD', ALARMS, t.due, id) -- a heartbeat moved it
    else
      retire(t)
      redis.call('ZADD', DUE, 0, id)
      redis.call('ZADD', ALARMS, gone(t), id)
    end
  end

  for _, id in ipairs(ids) do ring(id) end
  return #ids == limit
end
