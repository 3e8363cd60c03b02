-- What tasks and grants take up: quotas and idempotency keys.
--
-- The usage of a workload is a number of live tasks, a number of grants, and how many of those expire
-- in which second, in the order of the seconds: all of them four bytes. So grants are counted exactly
-- without a word about each of them. Live tasks count until settle finds that they are due.
local usages, used = {}, {} -- read, and to be written, by this call

local function read_usage(raw)
  local u = {buckets = string.sub(raw, 9)}
  u.tasks, u.grants = struct.unpack('>I4I4', raw)
  assert(#u.buckets % 8 == 0)
  return u
end

local function usage(workload)
  local u = usages[workload]
  if u then return u end
  u = decode(read_usage, redis.call('HGET', USAGE, workload), USAGE, workload) or {tasks = 0, grants = 0, buckets = ''}
  usages[workload] = u
  local at = 1
  while at <= #u.buckets do
    local second, n = struct.unpack('>I4I4', u.buckets, at)
    if not passed(second * 1000) then break end
    u.grants, at = u.grants - n, at + 8
  end
  if at > 1 then u.buckets = string.sub(u.buckets, at) end
  return u
end

local function count_task(workload, n)
  local u = usage(workload)
  u.tasks = math.max(0, u.tasks + n)
  used[workload] = u
end

local function save_usages()
  for workload, u in pairs(used) do
    changed = true
    if u.tasks == 0 and u.buckets == '' then
      redis.call('HDEL', USAGE, workload)
    else
      redis.call('HSET', USAGE, workload, struct.pack('>I4I4', u.tasks, u.grants) .. u.buckets)
    end
  end
end
writers[#writers + 1] = save_usages

-- count_out takes a task out of what counts.
local function count_out(t)
  count_task(t.workload, -1)
  local parent = t.above ~= '' and load_task(string.sub(t.above, -ID))
  if parent then
    parent.children = math.max(0, parent.children - 1)
    save(parent)
  end
end

-- retire does so with one that is over, unless it is among the due ones: those are out already.
local function retire(t)
  if now < t.due or redis.call('ZREM', DUE, t.id) == 0 then count_out(t) end
end

-- give_up_key makes room for a request that may be repeated.
local function give_up_key(t)
  if t.request ~= '' and redis.call('HGET', REQUESTS, t.request) == t.id then redis.call('HDEL', REQUESTS, t.request) end
end
