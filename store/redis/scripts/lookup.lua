-- Reads a task, or a grant with its task.
--
-- KEYS: the one of the grant if it is one.
-- Arguments: id.
local function main(key, last_key)
  local id, g = args[1], nil
  local on = id
  if key == last_key then
    g = grant(KEYS[key], redis.call('GET', KEYS[key]))
    if not g then return {'not found', id} end
    passed(g.expires) -- is written down
    on = g.task
  end
  local path = find(on, '')
  if not path then return {'not found', id} end
  return {'ok', id, now, version, task_reply(path), g and grant_reply(g) or {}}
end
