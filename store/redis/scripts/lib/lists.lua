-- What List goes through: one sorted set of equal scores, and so in the order of its members:
--
--   t task                  each task
--   b root task             each task below another one
--   r ref task              each task that is something in another system; ref is a digest of what
--   g task expiry grant     each grant; the expiry is a second, in four bytes
--
-- A member goes with its task; those of grants go before, some time after the grant has.
local LAST = string.rep('\255', 4) .. string.rep('z', ID) -- is after all grants of a task

-- root_of is the root of a task's tree.
local function root_of(t) return t.above ~= '' and string.sub(t.above, 1, ID) or t.id end

-- listed_task adds a task's members, and their scores, to a list of those that are to be written.
local function listed_task(list, id, above, ref)
  local n = #list
  list[n + 1], list[n + 2] = '0', 't' .. id
  if above ~= '' then list[n + 3], list[n + 4], n = '0', 'b' .. string.sub(above, 1, ID) .. id, n + 2 end
  if ref ~= '' then list[n + 3], list[n + 4] = '0', 'r' .. ref .. id end
end

-- listed_grant is a grant's member.
local function listed_grant(task, expires, id) return 'g' .. task .. struct.pack('>I4', expires / 1000) .. id end

-- unlist takes a task off, as far as its record tells.
local function unlist(id, t)
  if not t then
    redis.call('ZREM', LISTS, 't' .. id)
  elseif t.ref ~= '' then
    redis.call('ZREM', LISTS, 't' .. id, 'b' .. root_of(t) .. id, 'r' .. t.ref .. id)
  else
    redis.call('ZREM', LISTS, 't' .. id, 'b' .. root_of(t) .. id)
  end
end

-- unlist_grants takes those of a task off that have gone, or all of them: at most limit. It returns how many.
local function unlist_grants(task, all, limit)
  local second = math.floor((now - MARGIN) / 1000) + 1 -- the first that has not gone
  local till = all and LAST or struct.pack('>I4', second)
  local members = redis.call('ZRANGEBYLEX', LISTS, '(g' .. task, '(g' .. task .. till, 'LIMIT', 0, limit)
  if #members > 0 then
    in_parts('ZREM', LISTS, members)
    changed = true
  end
  return #members
end
