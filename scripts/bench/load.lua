-- Requests for wrk: the lines of the file $BODIES in turn, each thread beginning at another place; answers counted by status.

local bodies, threads = {}, {}
local next_thread = 0

function setup(thread)
    thread:set("number", next_thread)
    next_thread = next_thread + 1
    table.insert(threads, thread)
end

function init(args)
    granted, refused = 0, 0
    for line in io.lines(os.getenv("BODIES")) do
        table.insert(bodies, wrk.format("POST", os.getenv("TARGET") or "/auth", headers(), line))
    end
    at = math.floor(#bodies * (number or 0) / (tonumber(os.getenv("THREADS")) or 1))
end

function headers()
    return { ["Content-Type"] = os.getenv("CONTENT_TYPE") or "application/json" }
end

function request()
    at = at % #bodies + 1
    return bodies[at]
end

function response(status)
    if status == 200 then granted = granted + 1 else refused = refused + 1 end
end

function done(summary, latency)
    local granted, refused = 0, 0
    for _, thread in ipairs(threads) do
        granted = granted + thread:get("granted")
        refused = refused + thread:get("refused")
    end
    local errors = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
    io.write(string.format(
        '\n{"requests": %d, "seconds": %f, "granted": %d, "refused": %d, "errors": %d, "p50_us": %f, "p99_us": %f}\n',
        summary.requests, summary.duration / 1e6, granted, refused, errors,
        latency:percentile(50), latency:percentile(99)))
end
