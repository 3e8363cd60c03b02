-- Reads some notes of one kind: about 200, for which all others must wait. The answer says where to go on, and
-- '0' at the end. A note that is up all the while comes at least once.
--
-- KEYS: after the shard's, the notes.
-- ARGV: '', kind and where to go on, where to go on ('0' for the beginning).
local notes, out = KEYS[NKEYS + 1], {}
local found = redis.call('HSCAN', notes, ARGV[3], 'COUNT', 200)
for i = 1, #found[2], 2 do
  local id = found[2][i]
  local n = decode(read_note, found[2][i + 1], notes, id)
  if n and now < n.till then out[#out + 1] = {id, n.till - now, n.text} end
end
return {'ok', ARGV[2], found[1], out}
