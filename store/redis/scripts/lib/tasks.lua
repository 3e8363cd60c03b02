-- The records of tasks. Each is a MessagePack array; what no script looks at is one string in it. IDs
-- stand without their prefix and shard.
local TASK_VERSION = 3

local function read_task(raw)
  local f = cmsgpack.unpack(raw)
  local t = {
    workload = f[2], static = f[3], begun = f[4], lease = f[5], lease_end = f[4] + f[6], deadline = f[4] + f[7],
    above = f[8], request = f[9], digest = f[10], first = f[11], audiences = f[12], last_exp = f[13] * 1000,
    grants = f[14], below = f[15], children = f[16], holder = f[18], ref = f[19], note = f[20], noted = f[21],
    stream = f[22], -- of a task with presence alone; '' for none
  }
  t.due = math.min(t.lease_end, t.deadline) -- when it ends by itself if nothing else happens
  local o = f[17]
  if o then
    t.over = {state = o[1], cause = o[2], ended = o[3], closed = o[4], event = o[5], reason = o[6], feed = o[7]}
    assert(#t.over.state + #t.over.cause + #t.over.event + #t.over.reason + #t.over.feed + t.over.ended + t.over.closed > 0)
    assert(t.over.ended % 1 + t.over.closed % 1 == 0 and t.over.ended + t.over.closed < HUGE)
  end
  assert(f[1] == TASK_VERSION and o ~= nil and #table.concat(t.audiences) >= 0 and t.lease + t.grants + t.below + t.children + t.holder >= 0)
  assert(t.begun % 1 + t.lease % 1 + f[6] % 1 + f[7] % 1 + f[13] % 1 + t.grants % 1 + t.below % 1 + t.children % 1 + t.holder % 1 == 0)
  assert(t.begun + t.lease + t.deadline + t.last_exp + t.grants + t.below + t.children + t.holder < HUGE)
  assert(not t.note or #t.note >= 0 and t.noted % 1 == 0 and t.noted < HUGE)
  assert(not t.stream or #t.stream >= 0)
  assert('' <= t.workload and '' <= t.static and '' <= t.above and '' <= t.request and '' <= t.digest and '' <= t.first and '' <= t.ref)
  return t
end

local tasks, dirty = {}, {} -- read, and to be written, by this call

local function load_task(id)
  local t = tasks[id]
  if t == nil then
    t = decode(read_task, redis.call('HGET', TASKS, id), TASKS, id) or false
    if t then t.id = id end
    tasks[id] = t
  end
  return t or nil
end

-- save has a task written when the script is done.
local function save(t) tasks[t.id], dirty[t.id] = t, t end

local function save_tasks()
  local fields = {}
  for id, t in pairs(dirty) do
    local o = t.over
    local f = {TASK_VERSION, t.workload, t.static, t.begun, t.lease, t.lease_end - t.begun,
      t.deadline - t.begun, t.above, t.request, t.digest, t.first, t.audiences, t.last_exp / 1000, t.grants, t.below,
      t.children, o and {o.state, o.cause, o.ended, o.closed, o.event, o.reason, o.feed} or false, t.holder, t.ref, t.note, t.noted}
    if t.stream then f[20], f[21], f[22] = t.note or '', t.noted or 0, t.stream end
    fields[#fields + 1] = id
    fields[#fields + 1] = cmsgpack.pack(f)
  end
  if #fields > 0 then
    changed = true
    in_parts('HSET', TASKS, fields)
  end
end
writers[#writers + 1] = save_tasks

-- gone is when a task's record goes away.
local function gone(t)
  return math.max(t.over and t.over.closed or t.due, t.last_exp) + MARGIN
end

local function task(id)
  local t = load_task(id)
  if t and not passed(gone(t)) then return t end
  return nil
end

-- find returns the records from the root down to a task of a workload, or of any when that is ''.
-- A path with a gap is no path.
local function find(id, workload)
  local t = task(id)
  if not t or (workload ~= '' and t.workload ~= workload) then return nil end
  local path = {}
  for i = 1, #t.above, ID do
    local above = task(string.sub(t.above, i, i + ID - 1))
    if not above then return nil end
    path[#path + 1] = above
  end
  path[#path + 1] = t
  return path
end

-- fate returns how and when the last task of a path ends if nothing else happens. It has ended when
-- now has reached that moment. This is broker.Task.AsOf; the earliest end on the path decides.
local function fate(path)
  local state, cause, at = nil, nil, math.huge
  for i = #path, 1, -1 do
    local t = path[i]
    local moment = t.over and t.over.ended or t.due
    if moment < at then
      at = moment
      if i < #path then
        state, cause = 'canceled', 'parent'
      elseif t.over then
        state, cause = t.over.state, t.over.cause
      elseif t.deadline > t.lease_end then
        state, cause = 'lapsed', t.stream == '' and 'presence' or 'lease'
      else
        state, cause = 'expired', 'deadline'
      end
    end
    if not t.over and now >= t.due then elapsed = true end
  end
  return state, cause, at
end

local function task_reply(path)
  local t = path[#path]
  local state, cause, at = fate(path)
  local note, noted = t.note, t.noted
  if t.stream then note, noted = note or '', noted or 0 end
  return {t.id, t.workload, t.static, t.begun, t.lease, t.lease_end, t.deadline, t.above, t.holder, state, cause, at, note, noted, t.stream}
end

