#!lua flags=allow-oom
-- Reads a task, or a grant with its task.
--
-- ARGV: epoch, id.
local id = ARGV[2]
if not known then return {'epoch', id} end
local g = nil
local on = id
if string.sub(id, 1, 4) == 'gnt_' then
  g = grant(id)
  if not g then return {'not found', id} end
  on = g.task
end
local path = find(on, '')
if not path then return {'not found', id} end
return {'ok', id, now, version, task_reply(path), g and grant_reply(g) or {}}
