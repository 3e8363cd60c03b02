#!lua flags=allow-oom
-- Reads the feed from a number on, and the control list if it is not the one that the caller has. It
-- is also who takes away what has passed when nothing else happens.
--
-- ARGV: epoch, number, version of the caller's control list (-1 for none), how many entries.
if not known then return {'epoch', 'watch'} end
settle(100)
trim_feed(100)
local limit = tonumber(ARGV[4])
local entries = {}
local reached = number
for i, entry in ipairs(redis.call('XRANGE', FEED, '(' .. ARGV[2] .. '-0', '+', 'COUNT', limit)) do
  local f = entry[2]
  local n = tonumber(string.match(entry[1], '^%d+'))
  if i == limit then reached = n end
  entries[i] = {n, f[2], f[4], tonumber(f[6]), f[8] and 1 or 0, f[8] or ''}
end
local out = {'ok', 'watch', now, number, reached, version, entries}
if version ~= tonumber(ARGV[3]) then
  local locks, denials = {}, {}
  for _, raw in ipairs(redis.call('HVALS', LOCKS)) do
    local l = decode(raw, 3)
    if not l then return {'broken', 'watch', LOCKS} end
    if not l.lifted then locks[#locks + 1] = {l.locked.number, l.static, l.locked.at, l.expires} end
  end
  local raws = redis.call('ZRANGE', DENIALS, 0, -1, 'WITHSCORES')
  for i = 1, #raws, 2 do
    local d = decode(raws[i], 4)
    if not d then return {'broken', 'watch', DENIALS} end
    denials[#denials + 1] = {d.number, d.kind, d.target, tonumber(raws[i + 1]), 0, ''}
  end
  out[8], out[9] = locks, denials
end
return out
