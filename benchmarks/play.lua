-- Plays prepared requests, each once: wrk ... -s play.lua URL -- FILE
local requests, played = {}, 0

function init(args)
   local file = assert(io.open(args[1], "rb"))
   for length in function() return file:read("*l") end do
      requests[#requests + 1] = file:read(tonumber(length))
   end
   file:close()
   prepared = #requests
end

function request()
   asked, played = played + 1, played + 1
   -- Past the end nothing is sent, and "asked" tells that the run does not count.
   return requests[played] or ""
end

local threads = {}

function setup(thread)
   threads[#threads + 1] = thread
end

function done(summary, latency, _)
   local errors = summary.errors
   local failed = errors.connect + errors.read + errors.write + errors.timeout
   local exhausted = threads[1]:get("asked") > threads[1]:get("prepared")
   io.write(string.format(
      '\n{"answered": %d, "refused": %d, "failed": %d, "seconds": %f,'
         .. ' "p50": %f, "p99": %f, "exhausted": %s}\n',
      summary.requests, errors.status, failed, summary.duration / 1e6,
      latency:percentile(50) / 1e6, latency:percentile(99) / 1e6,
      tostring(exhausted)
   ))
end
