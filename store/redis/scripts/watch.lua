-- Reads the feed from a number on, and the control list if it is not the one that the caller has. It
-- is also who takes away what has passed when nothing else happens.
--
-- ARGV: epoch, 'watch', number, version of the caller's control list (-1 for none), how many entries.
trim(100)
if now - last >= 1000 then changed = true end -- so that what is written down is never far behind
local limit = tonumber(ARGV[5])
local entries = {}
local reached = number
for i, entry in ipairs(redis.call('XRANGE', FEED, '(' .. ARGV[3] .. '-0', '+', 'COUNT', limit)) do
  local f = entry[2]
  local n = tonumber(string.match(entry[1], '^%d+'))
  if i == limit then reached = n end
  entries[i] = {n, f[2], f[4], tonumber(f[6]), f[8] and 1 or 0, f[8] or ''}
end
local out = {'ok', 'watch', now, number, reached, version, entries}
if version ~= tonumber(ARGV[4]) then
  local locks, denials = {}, {}
  local raws = redis.call('HGETALL', LOCKS)
  for i = 1, #raws, 2 do
    local l = decode(read_lock, raws[i + 1], LOCKS, raws[i])
    if not l then return {'broken', 'watch', LOCKS, raws[i]} end
    if not l.lifted then locks[#locks + 1] = {l.locked.number, l.static, l.locked.at, l.expires} end
  end
  raws = redis.call('ZRANGE', DENIALS, 0, -1, 'WITHSCORES')
  for i = 1, #raws, 2 do
    local d = decode(read_denial, raws[i], DENIALS, raws[i])
    if not d then return {'broken', 'watch', DENIALS, raws[i]} end
    denials[#denials + 1] = {d[4], d[2], d[3], tonumber(raws[i + 1]), 0, ''}
  end
  out[8], out[9] = locks, denials
end
return out
