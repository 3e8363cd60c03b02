-- Many calls in one run. They share what it costs to set a script up, to read how far the shard is, and
-- to write that and what has changed.
--
-- ARGV: epoch, and two MessagePack arrays in one: how many keys each call has, and the arguments of each, of
-- which the first is what its answer repeats. KEYS: after the shard's, those of each call.
local counts, calls = cmsgpack.unpack(ARGV[2])
local args = nil -- of the call that is being made

-- make_calls runs main for each call, and returns an answer for each, and after them the record that
-- nobody can read, if there is one. main is given where in KEYS the call's keys begin and end. A call that
-- fails does so alone.
local function make_calls(main)
  local answers, key = {}, NKEYS
  for i, keys in ipairs(counts) do
    args = calls[i]
    if not known then
      answers[i] = {'epoch', args[1]}
    else
      local ok, answer = pcall(main, key + 1, key + keys)
      if not ok then answer = {'failed', args[1], type(answer) == 'table' and answer.err or tostring(answer)} end
      answers[i] = answer
    end
    key = key + keys
  end
  if unreadable then answers[#counts + 1], unreadable = unreadable, nil end
  return answers
end
