"""A cache as many are: it keeps replies of reads for a time and asks nobody. What `nearside verify` must find out.

`python ttl_cache.py PORT UPSTREAM_PORT SECONDS`
"""

import asyncio
import sys
import time

KEPT = {b"GET", b"MGET", b"HGET", b"HMGET", b"HGETALL", b"HVALS", b"GETRANGE", b"LRANGE"}


async def read_request(reader):
    """The bytes of one request, and its first word."""
    line = await reader.readline()
    if not line:
        return None, None
    frame, words = [line], []
    for _ in range(int(line[1:])):
        header = await reader.readline()
        body = await reader.readexactly(int(header[1:]) + 2)
        frame += [header, body]
        words.append(body[:-2])
    return b"".join(frame), words[0].upper()


async def read_reply(reader):
    """The bytes of one reply."""
    line = await reader.readline()
    kind, number = line[:1], line[1:-2]
    if kind in b"$=" and int(number) >= 0:
        return line + await reader.readexactly(int(number) + 2)
    parts = {b"*": 1, b"~": 1, b"%": 2}.get(kind, 0) * max(int(number), 0) if kind in b"*~%" else 0
    return line + b"".join([await read_reply(reader) for _ in range(parts)])


class Cache:
    """Replies by protocol and request, each with the time at which it is forgotten."""

    def __init__(self, upstream_port, seconds):
        self.upstream_port = upstream_port
        self.seconds = seconds
        self.replies = {}

    async def serve(self, reader, writer):
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.upstream_port)
        protocol = 2
        while True:
            frame, word = await read_request(reader)
            if frame is None:
                break
            kept, until = self.replies.get((protocol, frame), (None, 0.0))
            if until < time.monotonic():
                up_writer.write(frame)
                kept = await read_reply(up_reader)
                if word in KEPT:
                    self.replies[protocol, frame] = (kept, time.monotonic() + self.seconds)
                if word == b"HELLO":
                    protocol = 3
            writer.write(kept)
        up_writer.close()
        writer.close()


async def main(port, upstream_port, seconds):
    cache = Cache(upstream_port, seconds)
    async with await asyncio.start_server(cache.serve, "127.0.0.1", port) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
