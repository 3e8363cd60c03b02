-- Every script but open begins with this, after its keys and the domain's constants. ARGV[1] is the
-- epoch that the caller knows, and ARGV[2] what the answer repeats, so that nobody takes it for the
-- answer to something else. Times are milliseconds since 1970.
local meta = redis.call('HMGET', META, 'epoch', 'last', 'number', 'version')
local epoch, last = tonumber(meta[1]), tonumber(meta[2]) or 0
local number, version = tonumber(meta[3]) or 0, tonumber(meta[4]) or 0
local was_number, was_version = number, version
local known = epoch and meta[1] == ARGV[1]

local clock = redis.call('TIME')
local now = math.max(last, clock[1] * 1000 + math.floor(clock[2] / 1000))

-- What is to be written down in the end: with changed, that something was written; with elapsed, that
-- time alone has ended something. A later call, on this server or on the one that takes over, must
-- not find itself before either. A read that nothing depends on writes nothing.
local changed, elapsed = false, false

-- passed reports whether a moment has been reached.
local function passed(moment)
  if now < moment then return false end
  elapsed = true
  return true
end

local unreadable = nil -- the key and the ID of the first record that is

-- decode returns what read makes of a record, or nil for one that is missing, or that nobody can read:
-- it is not alive.
local function decode(read, raw, key, id)
  if not raw then return nil end
  local ok, record = pcall(read, raw)
  if ok then return record end
  unreadable = unreadable or {key, id}
  return nil
end

-- in_parts gives a command many values, so many at once as the language can unpack.
local function in_parts(command, key, values)
  for i = 1, #values, 1000 do redis.call(command, key, unpack(values, i, math.min(i + 999, #values))) end
end

local writers = {} -- what writes the records that have changed

-- finish writes all that has changed and how far the shard is, and returns the answer.
local function finish(answer)
  for _, write in ipairs(writers) do write() end
  if version ~= was_version then
    redis.call('HSET', META, 'last', now, 'number', number, 'version', version)
  elseif number ~= was_number then
    redis.call('HSET', META, 'last', now, 'number', number)
  elseif now > last and (changed or elapsed) then
    redis.call('HSET', META, 'last', now)
  end
  return cmsgpack.pack(unreadable and {answer, unreadable} or answer)
end
