-- Reads tasks in the order of their IDs, and at most as many as are asked for. It looks at no more
-- than 100, for which all others must wait; the answer says up to which, and whether there is more to
-- look at.
--
-- ARGV: epoch, 'list', after ('' for the beginning), how many, workload ('' for all), '1' for what is
-- due.
local MOST = 100
local after, want, workload, set = ARGV[3], tonumber(ARGV[4]), ARGV[5], IDS
if ARGV[6] == '1' then
  set = DUE
  if settle(200) then return {'again', 'list'} end
end
local ids = redis.call('ZRANGEBYLEX', set, after == '' and '-' or '(' .. after, '+', 'LIMIT', 0, MOST)
local out, reached, more = {}, after, #ids == MOST
for _, id in ipairs(ids) do
  if #out == want then
    more = true
    break
  end
  reached = id
  local path = find(id, workload)
  if path then out[#out + 1] = task_reply(path) end
end
return {'ok', 'list', now, out, reached, more and 1 or 0}
