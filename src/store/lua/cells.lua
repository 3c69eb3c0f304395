-- Takes cells from a bucket (GCRA), or gives some back. ARGV: interval, depth (microseconds), cells wanted.
-- Returns the cells granted and how long until the bucket is full.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local interval, depth, want = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local full = tonumber(redis.call('GET', KEYS[1]) or '0')
local debt = math.min(math.max(full - now, 0), depth)
local granted = 0
if want > 0 then
  granted = math.min(want, math.floor((depth - debt) / interval))
  debt = debt + granted * interval
else
  debt = math.max(debt + want * interval, 0)
end
if want ~= 0 then
  if debt > 0 then
    redis.call('SET', KEYS[1], string.format('%.0f', now + debt), 'PX', math.floor(debt / 1000) + 1000)
  else
    redis.call('DEL', KEYS[1])
  end
end
return {granted, debt}
