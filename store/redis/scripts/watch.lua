-- Reads the feed from a number on, and the control list if it is not the one that the caller has. It
-- is also who takes away what has passed when nothing else happens.
--
-- ARGV: epoch, 'watch' and the shard, number, version of the caller's control list (-1 for none), how many entries;
-- and an entry that the caller has read: its number and its mark ('' for none). Another one under that
-- number says that the data are older ones which have grown since.
local function mark(entry) return tostring(entry[2][4]) .. ' ' .. tostring(entry[2][6]) end

-- is_entry reports whether the fields are those of an entry.
local function is_entry(f)
  local till = tonumber(f[6])
  return f[1] == 'kind' and f[3] == 'target' and f[5] == 'until' and till and till % 1 == 0 and till < HUGE and (not f[7] or f[7] == 'audiences')
end

local gone = missing()
if gone then return {'older', ARGV[2], gone} end
if ARGV[7] ~= '' then
  local read = redis.call('XRANGE', FEED, ARGV[6] .. '-0', ARGV[6] .. '-0')[1]
  if read and mark(read) ~= ARGV[7] then return {'older', ARGV[2]} end
end
trim(100)
if now - last >= 1000 then changed = true end -- so that what is written down is never far behind
local limit = tonumber(ARGV[5])
local entries = {}
local reached, last_read = number, nil
for i, entry in ipairs(redis.call('XRANGE', FEED, '(' .. ARGV[3] .. '-0', '+', 'COUNT', limit)) do
  local f = entry[2]
  if not is_entry(f) then return {'broken', ARGV[2], FEED, entry[1]} end
  local n = tonumber(string.match(entry[1], '^%d+'))
  if i == limit then reached = n end
  if n <= reached then last_read = entry end
  entries[i] = {n, f[2], f[4], tonumber(f[6]), f[8] and 1 or 0, f[8] or ''}
end
local out = {'ok', ARGV[2], now, number, reached, version, last_read and mark(last_read) or '', entries}
if version ~= tonumber(ARGV[4]) then
  local locks, denials = {}, {}
  local raws = redis.call('HGETALL', LOCKS)
  for i = 1, #raws, 2 do
    local l = decode(read_lock, raws[i + 1], LOCKS, raws[i])
    if not l then return {'broken', ARGV[2], LOCKS, raws[i]} end
    if not l.lifted then locks[#locks + 1] = {l.locked.number, l.static, l.locked.at, l.expires} end
  end
  raws = redis.call('ZRANGE', DENIALS, 0, -1, 'WITHSCORES')
  for i = 1, #raws, 2 do
    local d = decode(read_denial, raws[i], DENIALS, raws[i])
    if not d then return {'broken', ARGV[2], DENIALS, raws[i]} end
    denials[#denials + 1] = {d[4], d[2], d[3], tonumber(raws[i + 1]), 0, ''}
  end
  out[9], out[10] = locks, denials
end
return out
