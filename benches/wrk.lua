-- SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
-- Prints wrk's figures as one line of JSON, with the percentile that it leaves out.
function done(summary, latency, requests)
	local e = summary.errors
	io.write(string.format(
		'{"requests": %d, "duration_us": %d, "errors": %d, "timeouts": %d, ' ..
			'"p50_us": %d, "p99_us": %d, "p999_us": %d}\n',
		summary.requests, summary.duration, e.connect + e.read + e.write + e.status, e.timeout,
		latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
end
