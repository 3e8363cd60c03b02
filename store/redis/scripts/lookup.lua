-- Reads a task, or a grant with its task.
--
-- KEYS: after the shard's, the one of the grant if it is one.
-- ARGV: epoch, id.
local id, key, g = ARGV[2], KEYS[NKEYS + 1], nil
local on = id
if key then
  g = grant(key, redis.call('GET', key))
  if not g then return {'not found', id} end
  passed(g.expires) -- is written down
  on = g.task
end
local path = find(on, '')
if not path then return {'not found', id} end
return {'ok', id, now, version, task_reply(path), g and grant_reply(g) or {}}
