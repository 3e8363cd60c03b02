#!lua flags=allow-oom
-- Reads tasks in the order of their IDs, and at most as many as are asked for. It looks at no more
-- than 500; the answer says up to which, and whether there is more to look at.
--
-- ARGV: epoch, after ('' for the beginning), how many, workload ('' for all), '1' for what is due.
local MOST = 500
if not known then return {'epoch', 'list'} end
local want = tonumber(ARGV[3])
local set = IDS
if ARGV[5] == '1' then
  set = DUE
  if settle(100) then return {'again', 'list'} end
end
local from = ARGV[2] == '' and '-' or '(' .. ARGV[2]
local ids = redis.call('ZRANGEBYLEX', set, from, '+', 'LIMIT', 0, MOST)
local out = {}
local last, more = ARGV[2], #ids == MOST
for i, id in ipairs(ids) do
  if #out == want then
    more = true
    break
  end
  last = id
  local path = find(id, ARGV[4])
  if path then out[#out + 1] = task_reply(path) end
end
return {'ok', 'list', now, out, last, more and 1 or 0}
