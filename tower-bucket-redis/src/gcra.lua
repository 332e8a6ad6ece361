-- One decision. KEYS[1]: the bucket. ARGV: the cost and the bucket's depth, in whole microseconds.
-- The bucket is the moment at which it is full again, in microseconds of the server's clock; none is full.
-- Returns how long to wait (0: it passes) and the debt, in microseconds.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local cost, depth = tonumber(ARGV[1]), tonumber(ARGV[2])
local stored = tonumber(redis.call('GET', KEYS[1]) or now)
-- Not before now; and not beyond the depth, where a clock was set back or a quota made smaller.
local full_at = math.min(math.max(stored, now), now + depth)
local next = full_at + cost
if next > now + depth then
    -- Kept, so that the wait that is told comes to an end.
    if stored > full_at then
        redis.call('SET', KEYS[1], string.format('%.0f', full_at), 'PX', math.ceil(depth / 1000))
    end
    return { next - now - depth, full_at - now }
end
-- Once it is full it need not be remembered.
redis.call('SET', KEYS[1], string.format('%.0f', next), 'PX', math.ceil((next - now) / 1000))
return { 0, next - now }
