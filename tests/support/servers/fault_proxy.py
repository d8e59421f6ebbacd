"""A proxy between an S3 client and its server that injects faults and counts bytes.

Each request is passed on unchanged or suffers a randomly drawn fault of a network or a store. Some
faults occur before the server has seen the request and some after it has carried it out, because a
client cannot tell these apart.
"""

import http.client
import random
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, cast
from urllib.parse import unquote, urlsplit

Fault = Literal["500", "503", "dropped", "lost answer", "truncated", "stalled", "web page"]
FAULTS: tuple[Fault, ...] = (
    *("500", "503", "dropped", "lost answer", "truncated", "stalled", "web page"),
)
PAGE = b"<html>Please log in</html>"
"""What a captive portal answers to any request, with status 200."""
PER_HOP = {"connection", "keep-alive", "transfer-encoding", "expect"}
ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>by the proxy</Message></Error>"


@dataclass
class FaultInjector:
    """Which faults occur, and counts of what has passed; shared by all connections."""

    server_port: int
    rate: float = 0.0
    """Probability that a request suffers a fault."""
    seed: int = 0
    stall_seconds: float = 1.0
    kinds: tuple[Fault, ...] = FAULTS
    faults: Counter[Fault] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    """Number of requests by method."""
    fetched: Counter[str] = field(default_factory=Counter)
    """Bytes of the responses to GET, by path."""
    delay_seconds: float = 0.0
    """How long each request takes at least."""
    under_way: int = 0
    most_at_once: int = 0
    """Most requests that were under way at the same time."""
    away: bool = False
    """If True, every connection is dropped, as if the server were down."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.ending = threading.Event()

    def draw_fault(self, method: str) -> Fault | None:
        with self.lock:
            self.requests[method] += 1
            if self.away:
                return "dropped"
            if self.random.random() >= self.rate:
                return None
            fault = self.random.choice(self.kinds)
            self.faults[fault] += 1
            return fault

    @contextmanager
    def counted_as_under_way(self) -> Iterator[None]:
        with self.lock:
            self.under_way += 1
            self.most_at_once = max(self.most_at_once, self.under_way)
        self.ending.wait(self.delay_seconds)
        try:
            yield
        finally:
            with self.lock:
                self.under_way -= 1

    def count_fetched(self, path: str, num_bytes: int) -> None:
        with self.lock:
            self.fetched[unquote(urlsplit(path).path)] += num_bytes


class Proxy(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, injector: FaultInjector) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.injector = injector

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address) -> None:
        """Ignore clients that have disconnected; the faults cause that."""


class Handler(BaseHTTPRequestHandler):
    """One client's connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self.handle_request()

    do_PUT = do_POST = do_HEAD = do_DELETE = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass

    @property
    def injector(self) -> FaultInjector:
        return cast(Proxy, self.server).injector

    def handle_request(self) -> None:
        injector = self.injector
        with injector.counted_as_under_way():
            self.answer_one(injector)

    def answer_one(self, injector: FaultInjector) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = injector.draw_fault(self.command)
        match fault:
            case "500":
                self.answer(500, {}, ERROR.format("InternalError").encode())
            case "503":
                self.answer(503, {}, ERROR.format("SlowDown").encode())
            case "web page":
                self.answer(200, {"Content-Type": "text/html"}, PAGE)
            case "dropped":
                self.hang_up()
            case "stalled":
                injector.ending.wait(injector.stall_seconds)
                self.hang_up()
            case _:
                self.pass_on(body, fault)

    def pass_on(self, body: bytes, fault: Fault | None) -> None:
        """Pass the request to the server, and return its response, a part of it, or nothing."""
        status, headers, data = self.forward(body)
        if fault == "lost answer":
            self.hang_up()
            return
        if self.command == "GET":
            self.injector.count_fetched(self.path, len(data))
        if fault == "truncated" and len(data) > 1:
            self.answer(status, headers, data[: len(data) // 2], claimed=len(data))
            self.hang_up()
        else:
            self.answer(status, headers, data)

    def forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        server = http.client.HTTPConnection("127.0.0.1", self.injector.server_port)
        forwarded = {k: v for k, v in self.headers.items() if k.lower() not in PER_HOP}
        server.request(self.command, self.path, body or None, forwarded)
        answer = server.getresponse()
        data = answer.read()
        headers = {k: v for k, v in answer.getheaders() if k.lower() not in PER_HOP}
        server.close()
        return answer.status, headers, data

    def answer(
        self, status: int, headers: dict[str, str], data: bytes, claimed: int | None = None
    ) -> None:
        self.send_response_only(status)
        length = str(len(data) if claimed is None else claimed)
        own = {k: v for k, v in headers.items() if k.lower() != "content-length"}
        if self.command == "HEAD":
            length = next((v for k, v in headers.items() if k.lower() == "content-length"), "0")
        for name, value in (own | {"Content-Length": length}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def proxied(injector: FaultInjector) -> Iterator[Proxy]:
    """Run a proxy until the end of the block."""
    with Proxy(injector) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            injector.ending.set()
            proxy.shutdown()
            thread.join(5)
