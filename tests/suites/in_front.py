"""A `redis-server` with nearside in front, for suites that start their servers themselves: it takes a server's own arguments, starts the real
one on another port and socket, and the proxy where the suite will look for it.

The real program is `NEARSIDE_SUITE_SERVER`, the proxy's log goes below `NEARSIDE_SUITE_LOGS`.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from processes import free_port, proxy_binary, wait_until, accepts

SERVER = os.environ["NEARSIDE_SUITE_SERVER"]
LOGS = Path(os.environ["NEARSIDE_SUITE_LOGS"])


def settings(argv):
    """What the configuration and the flags say of an address, the last word winning; the configuration may come from stdin."""
    found = {"port": "6379", "unixsocket": ""}
    lines, words = [], argv
    if argv and not argv[0].startswith("--"):
        text = sys.stdin.read() if argv[0] == "-" else Path(argv[0]).read_text()
        lines, words = text.splitlines(), argv[1:]
    pairs = [line.split(None, 1) for line in lines] + [(words[i][2:], " ".join(words[i + 1 : i + 2])) for i in range(len(words))]
    for pair in pairs:
        if len(pair) == 2 and pair[0] in found:
            found[pair[0]] = pair[1].strip().strip('"')
    return found, "\n".join(lines)


def child(argv, **options):
    return subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *map(str, argv)], **options)


def start_server(argv, text, inner):
    """The real one. What it says is held back until the proxy is there: suites wait for `Ready to accept connections`."""
    program = child([SERVER, *argv, *inner], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    program.stdin.write(text.encode())
    program.stdin.close()
    return program


def start_proxy(folder, outer, port):
    config = Path(folder) / "nearside.toml"
    lines = [f'upstream = "redis://127.0.0.1:{port}"']
    if outer["port"] != "0":
        lines += ["[[listen]]", f'address = "127.0.0.1:{outer["port"]}"']
    if outer["unixsocket"]:
        # as a server does: whatever is there makes room
        Path(outer["unixsocket"]).unlink(missing_ok=True)
        lines += ["[[listen]]", f'address = "unix:{outer["unixsocket"]}"']
    config.write_text("\n".join(lines) + "\n")
    with (LOGS / f"nearside-{os.getpid()}.log").open("ab") as log:
        return child([proxy_binary(), "--config", config], stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def there(outer):
    if outer["port"] != "0":
        return accepts(int(outer["port"]))
    return Path(outer["unixsocket"]).is_socket()


def pass_on(stream, ready):
    for line in stream:
        ready.wait()
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()


def main(argv):
    if "--sentinel" in argv or argv[:1] in (["--version"], ["-v"]):
        os.execv(SERVER, [SERVER, *argv])
    outer, text = settings(argv)
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        inner = ["--port", str(port), "--unixsocket", f"{folder}/server.sock"]
        server = start_server(argv, text, inner)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: server.send_signal(number))
        ready = threading.Event()
        threading.Thread(target=pass_on, args=(server.stdout, ready), daemon=True).start()
        wait_until(lambda: accepts(port) or server.poll() is not None, "the server on its port")
        proxy = start_proxy(folder, outer, port)
        try:
            wait_until(lambda: there(outer) or server.poll() is not None or proxy.poll() is not None, "the proxy on its port")
            if proxy.poll() is not None:
                server.kill()
            ready.set()
            return server.wait()
        finally:
            proxy.kill()
            proxy.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
