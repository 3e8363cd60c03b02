-- The notes of a board: until when each is up, and what it says.
local NOTE_VERSION = 1

local function read_note(raw)
  local f = cmsgpack.unpack(raw)
  assert(f[1] == NOTE_VERSION and f[2] > 0 and #f[3] >= 0)
  return {till = f[2], text = f[3]}
end
