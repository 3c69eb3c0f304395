-- Holds parts of sums together or not at all. ARGV, five per key: part, base, wanted, cap or '-', expires (seconds).
-- Returns 1 or 0, then per key what may be added and the sum of the other parts.
local now = tonumber(redis.call('TIME')[1])
local answer, ends = {1}, {}
for i, key in ipairs(KEYS) do
  local at = (i - 1) * 5
  local part, base, want, cap = ARGV[at + 1], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), ARGV[at + 4]
  local fields = redis.call('HGETALL', key)
  local others = 0
  ends[i] = tonumber(ARGV[at + 5])
  for j = 1, #fields, 2 do
    local value, expires = string.match(fields[j + 1], '^(-?%d+):(%d+)$')
    expires = tonumber(expires)
    if expires <= now then
      redis.call('HDEL', key, fields[j])
    elseif fields[j] ~= part then
      others = others + tonumber(value)
      ends[i] = math.max(ends[i], expires)
    end
  end
  local granted = want
  if cap ~= '-' then
    granted = math.max(0, math.min(want, tonumber(cap) - others - base))
  end
  if want > 0 and granted < 1 then
    answer[1] = 0
  end
  answer[#answer + 1] = granted
  answer[#answer + 1] = others
end
if answer[1] == 1 then
  for i, key in ipairs(KEYS) do
    local at = (i - 1) * 5
    local value = tonumber(ARGV[at + 2]) + answer[i * 2]
    redis.call('HSET', key, ARGV[at + 1], string.format('%.0f:%s', value, ARGV[at + 5]))
    redis.call('EXPIREAT', key, ends[i])
  end
end
return answer
