-- Extends the lease of each task that has not ended, and keeps its note if it has one; or binds a task to a
-- stream, or cuts its lease short because that is lost. This is broker.Beat.Apply.
--
-- ARGV: epoch, 'heartbeat', then of each beat: task, workload; or 'notes', and of each also: note ('' for
-- none); or 'streams', and of each also: stream ('' for none), how long the task has if that is lost ('' if it
-- is not).
local pulses, each = {}, ({heartbeat = 2, notes = 3, streams = 5})[ARGV[2]]

local function lose(t, stream, grace)
  if not t.stream or stream == '' or stream ~= t.stream then return end
  t.stream, t.lease_end = '', math.min(t.lease_end, now + grace)
  t.due = math.min(t.lease_end, t.deadline)
  redis.call('ZADD', ALARMS, t.due, t.id)
  save(t)
end

local function extend(t, note, stream)
  if t.stream and stream ~= '' then t.stream = stream end
  if t.stream ~= '' then t.lease_end = now + t.lease end
  t.due = math.min(t.lease_end, t.deadline)
  if note ~= '' then t.note, t.noted = note, now end
  save(t)
end

for i = 3, #ARGV, each do
  local id = ARGV[i]
  local note, stream, grace = each > 2 and ARGV[i + 2] or '', each > 3 and ARGV[i + 3] or '', each > 3 and ARGV[i + 4] or ''
  local path = find(id, ARGV[i + 1])
  if path then
    local _, _, moment = fate(path)
    if now < moment then
      if grace ~= '' then lose(path[#path], stream, tonumber(grace)) else extend(path[#path], note, stream) end
    end
    pulses[#pulses + 1] = {id, task_reply(path)}
  else
    pulses[#pulses + 1] = {id}
  end
end
return {'ok', ARGV[2], now, pulses}
