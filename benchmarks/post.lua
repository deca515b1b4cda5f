-- wrk's side of the load driver (benchmarks/load.py): one POST with a fixed body, and one line of JSON at the end.
-- Body and credentials come through the environment, so that nothing has to be quoted into this file.

wrk.method = "POST"
wrk.body = os.getenv("BENCH_BODY") or "{}"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = os.getenv("BENCH_AUTHORIZATION")

-- All times that wrk hands over are microseconds. `errors.status` counts answers above 399, so a 429 is an error.
function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    'BENCH {"requests": %d, "errors": %d, "seconds": %.6f, "p50_us": %d, "p90_us": %d, "p99_us": %d, "max_us": %d}\n',
    summary.requests,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    summary.duration / 1e6,
    latency:percentile(50), latency:percentile(90), latency:percentile(99), latency.max
  ))
end
