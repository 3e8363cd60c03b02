-- Reads a named record, or writes it if it still is at a version. It belongs to the deployment and to
-- no epoch, and works in any.
--
-- KEYS: after the shard's, the record's.
-- ARGV: '', name, and for a write: the version that it must be at, and what is to be written.
local key = KEYS[NKEYS + 1]
local has = redis.call('HMGET', key, 'version', 'value')
local at, value = has[1] or '0', has[2] or ''
local swapped = 0
if ARGV[3] and ARGV[3] == at then
  at, value, swapped, changed = string.format('%.0f', at + 1), ARGV[4], 1, true
  redis.call('HSET', key, 'version', at, 'value', value)
  value = ''
end
return {'ok', ARGV[2], now, tonumber(at), value, swapped}
