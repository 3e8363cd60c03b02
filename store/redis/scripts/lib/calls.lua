-- Many calls in one run. They share what it costs to set a script up, to read how far the shard is, and
-- to write that and what has changed.
--
-- ARGV: epoch, how many calls, and of each: how many keys and arguments it has, and those arguments, of
-- which the first is what its answer repeats. KEYS: after the shard's, those of each call.
local calls = tonumber(ARGV[2])

-- make_calls runs main for each call, and returns an answer for each, and after them the record that
-- nobody can read, if there is one. main is given where in ARGV the call's arguments begin and end, and
-- where in KEYS its keys do. A call that fails does so alone.
local function make_calls(main)
  local answers, at, key = {}, 3, NKEYS
  for i = 1, calls do
    local keys, args = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
    local first, last = at + 2, at + 1 + args
    if not known then
      answers[i] = {'epoch', ARGV[first]}
    else
      local ok, answer = pcall(main, first, last, key + 1, key + keys)
      if not ok then answer = {'failed', ARGV[first], type(answer) == 'table' and answer.err or tostring(answer)} end
      answers[i] = answer
    end
    at, key = last + 1, key + keys
  end
  if unreadable then answers[calls + 1], unreadable = unreadable, nil end
  return answers
end
