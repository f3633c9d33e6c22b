"""A TCP relay between proxy and server that makes bad weather: delay, silence, cuts.

A connection's role is learned from the name it gives itself (`nearside-link`, `nearside-lane`), so weather can be sent to the link alone.
"""

import socket
import threading
import time
import contextlib

CHUNK = 65536
NAMES = ("link", "lane", "watch", "rights", "names", "dedicated", "monitor")
ROLES = {f"nearside-{role}".encode(): role for role in NAMES}


class Weather:
    """What happens to the server's answers on connections of one role."""

    def __init__(self):
        self.delay = 0.0
        self.half_open = False
        self.flows = threading.Event()
        self.flows.set()


class Relay:
    """Listens on a port of its own and passes connections on to `target_port`."""

    def __init__(self, target_port):
        self.target_port = target_port
        self._weather = {role: Weather() for role in (*ROLES.values(), None)}
        self._pairs = []
        self.refused = None
        """A word: requests with it are answered by an error here, as a server would that does not know it."""
        self.greetings = {}
        """By role: bytes that the next connection of the role is sent before the server's first answer."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def delay(self, role, seconds):
        self._weather[role].delay = seconds

    def stall(self, role):
        """From now on answers stay in the relay; no FIN, no error, just silence."""
        self._weather[role].flows.clear()

    def resume(self, role):
        self._weather[role].flows.set()

    def half_open(self, role):
        """From now on the server's end of a connection is kept from the proxy: no FIN, just silence."""
        self._weather[role].half_open = True

    def cut(self, role):
        """Ends this role's connections; how many there were."""
        pairs = [pair for pair in list(self._pairs) if pair.role == role and pair.open]
        for pair in pairs:
            pair.cut()
        return len(pairs)

    def inject(self, role, data):
        """Sends the proxy bytes that the server has not said, on this role's connections; how many there were."""
        pairs = [pair for pair in list(self._pairs) if pair.role == role and pair.open]
        for pair in pairs:
            pair.inject(data)
        return len(pairs)

    def kill(self):
        self._listener.close()
        for weather in self._weather.values():
            weather.half_open = False
            weather.flows.set()
        for pair in list(self._pairs):
            pair.cut()

    def forget(self, pair):
        """Both of its directions have ended, and its sockets are closed."""
        self._pairs.remove(pair)

    def weather_of(self, role):
        return self._weather[role]

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._connect(client)

    def _connect(self, client):
        try:
            server = socket.create_connection(("127.0.0.1", self.target_port), 2)
        except OSError:
            client.close()
            return
        pair = Pair(self, client, server)
        self._pairs.append(pair)
        pair.start()


class Pair:
    """One relayed connection."""

    def __init__(self, relay, client, server):
        self.relay = relay
        self.role = None
        self.open = True
        self._client = client
        self._server = server
        self._pumps = 2
        self._lock = threading.Lock()
        for sock in (client, server):
            sock.settimeout(None)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def start(self):
        threading.Thread(target=self._pump_requests, daemon=True).start()
        threading.Thread(target=self._pump_answers, daemon=True).start()

    def cut(self):
        self.open = False
        for sock in (self._client, self._server):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def inject(self, data):
        with contextlib.suppress(OSError):
            self._client.sendall(data)

    def _pump_requests(self):
        self._pump(self._client, self._server, self._look_at_request)

    def _pump_answers(self):
        self._pump(self._server, self._client, self._endure_weather)

    def _pump(self, source, sink, look_at):
        """`look_at` may keep the data to itself by answering true."""
        try:
            while data := source.recv(CHUNK):
                if not look_at(data):
                    sink.sendall(data)
        except OSError:
            pass
        half_open = self.relay.weather_of(self.role).half_open
        if not half_open:
            self.cut()
        with self._lock:
            self._pumps -= 1
            over = self._pumps == 0 and not half_open
        if over:
            self._client.close()
            self._server.close()
            self.relay.forget(self)

    def _look_at_request(self, data):
        if self.role is None:
            self.role = next((role for mark, role in ROLES.items() if mark in data), None)
            if greeting := self.relay.greetings.pop(self.role, None):
                self.inject(greeting)
        refused = self.relay.refused is not None and self.relay.refused in data
        if refused:
            self._client.sendall(b"-ERR syntax error\r\n")
        return refused

    def _endure_weather(self, _):
        weather = self.relay.weather_of(self.role)
        if weather.delay:
            time.sleep(weather.delay)
        weather.flows.wait()
