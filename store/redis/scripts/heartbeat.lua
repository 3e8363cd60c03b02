-- Extends the lease of each task that has not ended, and keeps its note if it has one.
--
-- ARGV: epoch, 'heartbeat', then of each beat: task, workload; or 'notes', and of each also: note ('' for
-- none).
local pulses, each = {}, ARGV[2] == 'notes' and 3 or 2
for i = 3, #ARGV, each do
  local id = ARGV[i]
  local path = find(id, ARGV[i + 1])
  if path then
    local _, _, moment = fate(path)
    if now < moment then
      local t = path[#path]
      t.lease_end = now + t.lease
      t.due = math.min(t.lease_end, t.deadline)
      if each == 3 and ARGV[i + 2] ~= '' then t.note, t.noted = ARGV[i + 2], now end
      save(t)
    end
    pulses[#pulses + 1] = {id, task_reply(path)}
  else
    pulses[#pulses + 1] = {id}
  end
end
return {'ok', ARGV[2], now, pulses}
