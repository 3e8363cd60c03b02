-- The records of grants, each in a key of its own that Redis takes away when nobody may ask for it any
-- more. That is room, and not life: the moments in the record decide.
local GRANT_VERSION = 2

local function read_grant(raw)
  local f = cmsgpack.unpack(raw)
  local g = {
    task = f[2], audience = f[3], static = f[4], issued = f[5] * 1000, expires = f[6] * 1000, epoch = f[7], number = f[8],
  }
  local o = f[9]
  if o then
    g.over = {cause = o[1], ended = o[2], event = o[3], reason = o[4], feed = o[5]}
    assert(#g.over.cause + #g.over.event + #g.over.reason + #g.over.feed + g.over.ended > 0)
    assert(g.over.ended % 1 == 0 and g.over.ended < HUGE)
  end
  assert(f[1] == GRANT_VERSION and o ~= nil and #(g.task .. g.audience .. g.static) > 0 and g.epoch + g.number > 0)
  assert(f[5] % 1 + f[6] % 1 + g.epoch % 1 + g.number % 1 == 0 and g.issued + g.expires + g.epoch + g.number < HUGE)
  return g
end

-- grant makes something of what a grant's key has. One of an older epoch is dead.
local function grant(key, raw)
  local id = string.sub(key, -ID)
  local g = decode(read_grant, raw, key, id)
  if not g or g.epoch ~= epoch or passed(g.expires + MARGIN) then return nil end
  g.key, g.id = key, id
  return g
end

-- save_grant writes a grant; over is how it was revoked, or false.
local function save_grant(key, task, audience, static, issued, expires, at, over)
  changed = true
  redis.call('SET', key, cmsgpack.pack({GRANT_VERSION, task, audience, static, issued / 1000, expires / 1000, epoch, at, over}),
    'PXAT', expires + MARGIN)
end

local function grant_reply(g)
  return {g.id, g.task, g.audience, g.static, g.issued, g.expires, g.epoch, g.number, g.over and 1 or 0}
end
