-- The records of the control list. There are few, so they have names in them.
local LOCK_VERSION, DENIAL_VERSION = 3, 4

local function read_lock(raw)
  local l = cmsgpack.unpack(raw)
  assert(l.v == LOCK_VERSION and #(l.id .. l.static) > 0 and l.expires + l.locked.number + l.locked.at > 0)
  return l
end

local function read_denial(raw)
  local d = cmsgpack.unpack(raw)
  assert(d[1] == DENIAL_VERSION and #(d[2] .. d[3]) > 0 and d[4] > 0)
  return d
end
