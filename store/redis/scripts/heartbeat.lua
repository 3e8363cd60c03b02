#!lua flags=allow-oom
-- Extends the lease of each task that has not ended.
--
-- ARGV: epoch, then of each beat: task, workload.
if not known then return {'epoch', 'heartbeat'} end
local pulses = {}
for i = 2, #ARGV, 2 do
  local id = ARGV[i]
  local path = find(id, ARGV[i + 1])
  if path then
    local _, _, moment = fate(path)
    if now < moment then
      local t = path[#path]
      count(t, 'ZREM')
      t.lease_end = now + t.lease
      count(t, 'ZADD')
      save_task(t)
    end
    pulses[#pulses + 1] = {id, task_reply(path)}
  else
    pulses[#pulses + 1] = {id}
  end
end
return {'ok', 'heartbeat', now, pulses}
