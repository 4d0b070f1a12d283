-- What wrk asks the services for, and its figures as one line of JSON: its own text rounds times to three digits.
-- Each thread of wrk has its own copy; the bench runs one.

local count = 0

function request()
   count = count + 1
   local kind = count % 4
   if kind == 0 then
      return wrk.format("GET", "/session/" .. math.random(1, 1000000))
   elseif kind == 1 then
      return wrk.format("GET", "/search/word" .. math.random(1, 1000))
   end
   return wrk.format("GET", "/orders")
end

function done(summary, latency, requests)
   local errors = summary.errors
   io.write(string.format(
      '\nfigures {"requests": %d, "microseconds": %d, "p50": %d, "p99": %d, "longest": %d, "failed": %d}\n',
      summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), latency.max,
      errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
