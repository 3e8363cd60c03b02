-- Extends the lease of each task that has not ended, and keeps its note if it has one; or binds a task to a
-- stream, or cuts its lease short because that is lost; or gives it another holder. This is broker.Beat.Apply.
--
-- ARGV: epoch, a word that says how many there are of each beat, and those: task, workload; holder ('' for
-- whoever it is); note ('' for none); stream ('' for none); what is with that: 'attach', how long the task has since
-- it is lost, or '' for nothing; how long it has at most without a stream if the caller adopts it ('' if not).
local pulses, each = {}, ({heartbeat = 2, holders = 3, notes = 4, streams = 5, moves = 6, adoptions = 7})[ARGV[2]]

-- renew makes the lease what a beat makes it, and reports whether the beat was about nothing else.
local function renew(t, stream, move, first)
  if first ~= '' then
    t.holder, t.lease_end = t.holder + 1, now + t.lease
    if t.stream then t.stream, t.lease_end = '', math.min(t.lease_end, now + tonumber(first)) end
  elseif move ~= '' and move ~= 'attach' then
    if t.stream and stream ~= '' and stream == t.stream then
      t.stream, t.lease_end = '', math.min(t.lease_end, now + tonumber(move))
    end
    return true
  else
    if t.stream and stream ~= '' and move ~= '' then t.stream = stream end
    if not t.stream or stream ~= '' and stream == t.stream then t.lease_end = now + t.lease end
  end
end

local function beat(t, holder, note, stream, move, first)
  if holder ~= '' and tonumber(holder) ~= t.holder then return end
  local due = t.due
  local lost = renew(t, stream, move, first)
  if note ~= '' and not lost then t.note, t.noted = note, now end
  t.due = math.min(t.lease_end, t.deadline)
  if t.due < due then redis.call('ZADD', ALARMS, t.due, t.id) end
  save(t)
end

for i = 3, #ARGV, each do
  local id = ARGV[i]
  local path = find(id, ARGV[i + 1])
  if path then
    local _, _, moment = fate(path)
    if now < moment then
      beat(path[#path], each > 2 and ARGV[i + 2] or '', each > 3 and ARGV[i + 3] or '', each > 4 and ARGV[i + 4] or '',
        each > 5 and ARGV[i + 5] or '', each > 6 and ARGV[i + 6] or '')
    end
    pulses[#pulses + 1] = {id, task_reply(path)}
  else
    pulses[#pulses + 1] = {id}
  end
end
return {'ok', ARGV[2], now, pulses}
