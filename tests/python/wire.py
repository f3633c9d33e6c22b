"""A small Redis client that shows the bytes' meaning and nothing else: no retries, no pool, no conversion.

The coherence tests need it for its speed and because it does exactly one thing per call; the bad-input tests for its raw sockets.
"""

import socket

TIMEOUT = 10.0


class ReplyError(Exception):
    """An error reply (`-ERR …`). It is returned as a value, inside arrays too, and raised only by `Connection.call`."""


class Closed(ConnectionError):
    """The other side has closed the connection."""


def encode(*words):
    """One command as a RESP array of bulks."""
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        data = word if isinstance(word, bytes) else str(word).encode()
        parts.append(b"$%d\r\n%s\r\n" % (len(data), data))
    return b"".join(parts)


class Connection:
    """One TCP connection: send commands, read replies in order."""

    def __init__(self, port, protocol=2, db=0, timeout=TIMEOUT):
        self.sock = socket.create_connection(("127.0.0.1", port), timeout)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray()
        self._at = 0
        if protocol == 3:
            self.call("HELLO", 3)
        if db:
            self.call("SELECT", db)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.sock.close()

    def send(self, *words):
        self.sock.sendall(encode(*words))

    def send_raw(self, data):
        self.sock.sendall(data)

    def call(self, *words):
        """One command, its reply; an error reply is raised."""
        self.send(*words)
        reply = self.read()
        if isinstance(reply, ReplyError):
            raise reply
        return reply

    def pipeline(self, commands):
        """Many commands in one write; the list of their replies, errors as values."""
        self.sock.sendall(b"".join(encode(*words) for words in commands))
        return [self.read() for _ in commands]

    def read(self):
        """The next reply: bytes, int, float, bool, None, list, dict, set or `ReplyError`."""
        reply = self._parse()
        if self._at == len(self._buffer):
            self._buffer.clear()
            self._at = 0
        return reply

    def read_to_end(self):
        """All bytes until the other side closes."""
        data = bytes(self._buffer[self._at:])
        while chunk := self._recv():
            data += chunk
        return data

    def _recv(self):
        try:
            return self.sock.recv(65536)
        except ConnectionResetError:
            return b""

    def _more(self):
        chunk = self._recv()
        if not chunk:
            raise Closed("closed by the other side")
        self._buffer += chunk

    def _line(self):
        while (end := self._buffer.find(b"\r\n", self._at)) < 0:
            self._more()
        line = bytes(self._buffer[self._at:end])
        self._at = end + 2
        return line

    def _bulk(self, length):
        end = self._at + length
        while len(self._buffer) < end + 2:
            self._more()
        data = bytes(self._buffer[self._at:end])
        self._at = end + 2
        return data

    def _parse(self):
        line = self._line()
        return _PARSERS[line[:1]](self, line[1:])

    def _items(self, count):
        return [self._parse() for _ in range(count)]

    def _parse_bulk(self, rest):
        length = int(rest)
        return None if length < 0 else self._bulk(length)

    def _parse_array(self, rest):
        count = int(rest)
        return None if count < 0 else self._items(count)

    def _parse_map(self, rest):
        items = self._items(2 * int(rest))
        return dict(zip(items[::2], items[1::2], strict=True))

    def _parse_attribute(self, rest):
        self._items(2 * int(rest))
        return self._parse()


_PARSERS = {
    b"+": lambda _, rest: rest,
    b"-": lambda _, rest: ReplyError(rest.decode()),
    b":": lambda _, rest: int(rest),
    b"(": lambda _, rest: int(rest),
    b",": lambda _, rest: float(rest),
    b"#": lambda _, rest: rest == b"t",
    b"_": lambda _, rest: None,
    b"$": Connection._parse_bulk,
    b"=": lambda conn, rest: conn._bulk(int(rest))[4:],
    b"*": Connection._parse_array,
    b"~": lambda conn, rest: set(conn._items(int(rest))),
    b">": Connection._parse_array,
    b"%": Connection._parse_map,
    b"|": Connection._parse_attribute,
}
