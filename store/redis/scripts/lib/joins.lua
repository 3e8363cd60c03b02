-- The delegations that tasks have joined by, each in a key of its own that Redis takes away when the delegation
-- is over. As of a grant, the moment in the record decides, and the key outlives it: the server's clock may go
-- back, and the store's time does not.
local JOIN_VERSION = 1

local function read_join(raw)
  local f = cmsgpack.unpack(raw)
  assert(f[1] == JOIN_VERSION and f[2] > 0 and #f[3] == ID)
  return {till = f[2], task = f[3]}
end

-- save_join keeps that a task has joined by the delegation of a key, while others could.
local function save_join(key, till, id)
  if now < till then redis.call('SET', key, cmsgpack.pack({JOIN_VERSION, till, id}), 'PXAT', till + MARGIN) end
end
