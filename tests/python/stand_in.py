"""Stands between a proxy and a real server and answers some requests in the server's place: what a server says that has no COMMAND, is
loading, is busy or full. Everything else is the real server's, in order."""

import socket
import threading

from relay import ROLES
import contextlib


class StandIn:
    """`answer(words, role)` says what a request is answered: bytes; or `None`, and the server answers. `CLOSE` behind the bytes ends the
    connection."""

    CLOSE = b"\0close"

    def __init__(self, target_port):
        self.target_port = target_port
        self.answer = lambda words, role: None
        self.asked = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def kill(self):
        self._listener.close()

    def count(self, word):
        """Requests so far with this first word."""
        return sum(words[0].upper() == word for words in list(self.asked))

    def connections(self, role):
        """Handshakes so far of connections that call themselves so."""
        mark = f"nearside-{role}".encode()
        return sum(words[0].upper() == b"HELLO" and mark in words for words in list(self.asked))

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
                Passage(self, client, socket.create_connection(("127.0.0.1", self.target_port), 2)).start()
            except OSError:
                if self._listener.fileno() < 0:
                    return


class Passage:
    """One connection. `_due`: what the client is to be told in turn, the server's reply (`None`) or ours."""

    def __init__(self, stand_in, client, server):
        self._stand_in, self._client, self._server = stand_in, client, server
        self._due, self._lock, self._role = [], threading.Lock(), None
        for sock in (client, server):
            sock.settimeout(None)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def start(self):
        threading.Thread(target=self._until_closed, args=(self._client, self._request), daemon=True).start()
        threading.Thread(target=self._until_closed, args=(self._server, self._reply), daemon=True).start()

    def _until_closed(self, sock, work):
        try:
            with sock.makefile("rb") as file:
                while frame := read_frame(file):
                    work(frame)
        except (OSError, ValueError):
            pass
        for end in (self._client, self._server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _request(self, frame):
        raw, words = frame
        self._role = self._role or next((role for mark, role in ROLES.items() if mark in words), None)
        self._stand_in.asked.append(words)
        ours = self._stand_in.answer(words, self._role)
        with self._lock:
            self._due.append(ours)
            if ours is None:
                self._server.sendall(raw)
            self._tell()

    def _reply(self, frame):
        raw, value = frame
        pushed = raw[:1] == b">" or (isinstance(value, list) and value[:1] and value[0] in (b"message", b"pmessage"))
        with self._lock:
            self._client.sendall(raw)
            if not pushed and self._due:
                self._due.pop(0)
            self._tell()

    def _tell(self):
        while self._due and self._due[0] is not None:
            told = self._due.pop(0)
            self._client.sendall(told.removesuffix(StandIn.CLOSE))
            if told.endswith(StandIn.CLOSE):
                raise OSError("closed")


def read_frame(file):
    """A frame's bytes, and what they mean as far as it matters: bulk strings and lists of them. `None` at the end."""
    line = file.readline()
    if not line.endswith(b"\r\n"):
        return None
    kind, number = line[:1], line[1:-2]
    if kind in b"$=!" and int(number) >= 0:
        body = file.read(int(number) + 2)
        return line + body, body[:-2]
    if kind in b"*~>%" and int(number) > 0:
        parts = [read_frame(file) for _ in range(int(number) * (2 if kind == b"%" else 1))]
        return line + b"".join(raw for raw, _ in parts), [value for _, value in parts]
    return line, None
