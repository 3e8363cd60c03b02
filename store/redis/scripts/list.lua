-- Finds tasks or grants in the order of their places, and at most as many as are asked for. It looks at no
-- more than 100 things, or 400 that it need not read, for which all others must wait; the answer says up to which
-- place, and whether there is more to look at. Of grants, which have keys of their own, it answers with the IDs alone.
--
-- ARGV: epoch, what the answer repeats, 'tasks' or 'grants', which: 'all', 'due', 'of', 'below', 'ref' or 'ended', and of what, of
-- 'ended' the first event that is meant and the first that is not any more; workload ('' for all), after ('' for
-- the beginning), how many; and, of 'due', where the round through all tasks is, which the answer says anew. A place is a task's ID, or that and what follows it in the member of a grant.
local kind, which, what, workload, after, want = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7], tonumber(ARGV[8])
local from = string.sub(after, 1, ID) -- the task of the place
local looks = which == 'ended' and 400 or 100
local out, reached, more = {}, after, false

if which == 'due' and settle(200) then return {'again', ARGV[2]} end

-- put_back looks at some 25 tasks, and gives each back what it lacks in the sets, if one of these or a part of it was deleted:
-- its members of the lists; an alarm, which rings at once; and if it has one and is due, since all that has rung is done, its
-- place among the due ones. It returns where the round goes on.
local function put_back(at)
  local found = redis.call('HSCAN', TASKS, at, 'COUNT', 25)
  for i = 1, #found[2], 2 do
    local id, list = found[2][i], {}
    local t = decode(read_task, found[2][i + 1], TASKS, id)
    if t then listed_task(list, id, t.above, t.ref) end
    local n = t and tonumber(redis.pcall('ZADD', LISTS, unpack(list))) or 0 -- what is due does not wait for lists that are none
    if redis.call('ZADD', ALARMS, 'NX', now, id) == 1 then
      n = 1
    elseif t and not t.over and now >= t.due then
      n = n + redis.call('ZADD', DUE, '0', id)
    end
    changed = changed or n > 0
  end
  return found[1]
end
local round = ARGV[9]
if which == 'due' and after == '' then round = put_back(round) end

-- is_before compares bytes: the language compares as the server's locale does.
local function is_before(a, b)
  for i = 1, #b do
    local x, y = string.byte(a, i) or -1, string.byte(b, i)
    if x ~= y then return x < y end
  end
  return false
end

-- members returns those of a set that begin with a prefix, and have so much after that, from one on; and whether there may
-- be more. What is longer or shorter is nobody's: it is named and taken away.
local function members(set, prefix, size, least, limit)
  local found, list = redis.call('ZRANGEBYLEX', set, least, '(' .. prefix .. '\255', 'LIMIT', 0, limit), {}
  for _, member in ipairs(found) do
    if #member == #prefix + size then
      list[#list + 1] = member
    else
      unreadable = unreadable or {set, member}
      redis.call('ZREM', set, member)
    end
  end
  return list, #found == limit
end

-- is_meant reports whether the last task of a path is of those that are asked for, where the index tells less.
local function is_meant(path)
  if which ~= 'below' then return true end
  for _, t in ipairs(path) do
    if t.id == what then return true end
  end
  return false
end

-- may_be reports whether it is worth while to find a task. Of those that have ended few are asked for, and of most
-- the record tells so before it is read: it has nothing that all events begin with which are meant.
local first_event, no_event = string.match(which == 'ended' and what or '', '^(%S+) (%S+)$')
local common = 0
while first_event and common < #first_event and string.byte(first_event, common + 1) == string.byte(no_event, common + 1) do
  common = common + 1
end
local function may_be(id)
  if which ~= 'ended' then return true end
  local raw = redis.call('HGET', TASKS, id)
  if not raw or not string.find(raw, string.sub(first_event, 1, common), 1, true) then return false end
  local t = load_task(id)
  return t and t.over and not is_before(t.over.event, first_event) and is_before(t.over.event, no_event)
end

-- tasks_below returns tasks of the tree that has the one that is asked for, from a place on: of the root, the
-- index has only those below it.
local function tasks_below(open)
  local top = find(what, '')
  if not top then return {}, false end
  local root = top[1].id
  local list, cut = members(LISTS, 'b' .. root, ID, open .. 'b' .. root .. from, looks)
  if is_before(root, from) or root == from and open == '(' then return list, cut end
  local at = 1
  while list[at] and is_before(string.sub(list[at], -ID), root) do at = at + 1 end
  if list[at] or not cut then table.insert(list, at, root) end
  return list, cut
end

-- candidates returns the tasks to look at, or members that end with them. open is '(' when what is after the
-- place is looked at, and '[' when the task of the place is.
local function candidates(open)
  if which == 'of' then
    if is_before(what, from) or what == from and open == '(' then return {}, false end
    return {what}, false
  end
  if which == 'due' then return members(DUE, '', ID, open .. from, looks) end
  if which == 'below' then return tasks_below(open) end
  local prefix = which == 'ref' and 'r' .. what or 't'
  return members(LISTS, prefix, ID, open .. prefix .. from, looks)
end

local function list_tasks()
  local list, cut = candidates('(')
  more = cut
  for _, member in ipairs(list) do
    if #out == want then
      more = true
      return
    end
    local id = string.sub(member, -ID)
    local path = may_be(id) and find(id, workload)
    if path and is_meant(path) then out[#out + 1] = task_reply(path) end
    reached = id
  end
end

-- list_grants adds what members name, and reports whether it could add all.
local function list_grants(list)
  for _, member in ipairs(list) do
    if #out == want then
      more = true
      return false
    end
    reached = string.sub(member, 2)
    local id, expires = string.sub(member, 2, ID + 1), struct.unpack('>I4', member, ID + 2) * 1000
    local path = not passed(expires + MARGIN) and find(id, workload)
    if path and is_meant(path) then out[#out + 1] = string.sub(member, -ID) end
  end
  return true
end

-- list_grants_of goes from task to task.
local function list_grants_of()
  local list, cut = candidates('[')
  more = cut
  for _, candidate in ipairs(list) do
    local id = string.sub(candidate, -ID)
    local path = find(id, workload)
    looks = looks - 1
    if path and is_meant(path) then
      local grants, rest = members(LISTS, 'g' .. id, 4 + ID, '(g' .. (id == from and after or id), math.max(0, looks))
      if not list_grants(grants) then return end
      looks = looks - #grants
      if rest then
        more = true
        return
      end
    end
    reached = id .. LAST
  end
end

if kind == 'tasks' then
  list_tasks()
elseif which == 'all' then
  local list
  list, more = members(LISTS, 'g', ID + 4 + ID, '(g' .. after, looks)
  list_grants(list)
else
  list_grants_of()
end
return {'ok', ARGV[2], now, out, reached, more and 1 or 0, round}
