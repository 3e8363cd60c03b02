-- Extends the lease of each task that has not ended.
--
-- ARGV: epoch, 'heartbeat', then of each beat: task, workload.
local pulses = {}
for i = 3, #ARGV, 2 do
  local id = ARGV[i]
  local path = find(id, ARGV[i + 1])
  if path then
    local _, _, moment = fate(path)
    if now < moment then
      local t = path[#path]
      t.lease_end = now + t.lease
      t.due = math.min(t.lease_end, t.deadline)
      save(t)
    end
    pulses[#pulses + 1] = {id, task_reply(path)}
  else
    pulses[#pulses + 1] = {id}
  end
end
return {'ok', 'heartbeat', now, pulses}
