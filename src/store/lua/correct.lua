-- Corrects a sum by hand. ARGV: part, 'by' or 'to', amount, expires (seconds). Returns the sum.
local now = tonumber(redis.call('TIME')[1])
local fields = redis.call('HGETALL', KEYS[1])
local total, mine, ends = 0, 0, tonumber(ARGV[4])
for j = 1, #fields, 2 do
  local value, expires = string.match(fields[j + 1], '^(-?%d+):(%d+)$')
  if tonumber(expires) > now then
    total = total + tonumber(value)
    ends = math.max(ends, tonumber(expires))
    if fields[j] == ARGV[1] then
      mine = tonumber(value)
    end
  end
end
local by = tonumber(ARGV[3])
if ARGV[2] == 'to' then
  by = by - total
end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f:%s', mine + by, ARGV[4]))
redis.call('EXPIREAT', KEYS[1], ends)
return total + by
