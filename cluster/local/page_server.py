"""Answer a browser on this machine, and nobody else, with pages that are made one at a time."""

import sys
import threading
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from capture.errors import CaptureError, ConfigError

HOST = "127.0.0.1"
"""Other machines cannot connect to it."""

Reader = Callable[[str], tuple[bytes | memoryview, str] | None]
"""Path without the first slash → content and media type; None if there is no such page."""


def page_server(read: Reader, first: str, port: int) -> "PageServer":
    """Return a server that is bound to a port of this machine; ``serve_forever`` answers.

    ``first``: the path that ``/`` leads to. ``port``: 0 for a free one. Raises ``ConfigError`` if
    the port cannot be used.
    """
    handler = partial(PageHandler, read=read, first=first, lock=threading.Lock())
    try:
        return PageServer((HOST, port), handler)
    except (OSError, OverflowError) as error:
        problem = f"got {port}, which cannot be used: {str(error).rstrip('.')}"
        raise ConfigError("--port", problem, "Choose another, or 0 for any that is free") from error


class PageServer(ThreadingHTTPServer):
    """Says nothing of a browser that leaves before it has its answer."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class PageHandler(BaseHTTPRequestHandler):
    """Answers GET and HEAD; any other method is refused by the base class."""

    timeout = 60
    """Seconds after which a connection that asks nothing is closed."""

    def __init__(self, *request, read: Reader, first: str, lock: threading.Lock) -> None:
        self.read, self.first, self.lock = read, first, lock
        super().__init__(*request)

    def do_HEAD(self) -> None:
        self.do_GET()  # ``send_bytes`` leaves the content out

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).removeprefix("/")
        if not self.is_asked_here():
            # A page of another site can point its own name to this machine and read what we send.
            self.send_text(HTTPStatus.FORBIDDEN, f"Open http://{HOST}:{self.port}/ instead.")
        elif not path:
            self.send_response(HTTPStatus.FOUND)
            self.send_header("Location", f"/{self.first}")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.send_page(path)

    def send_page(self, path: str) -> None:
        try:
            with self.lock:  # a page may measure a neuron, which uses all cores already
                found = self.read(path)
        except CaptureError as error:
            self.send_text(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
            return
        if found is None:
            self.send_text(HTTPStatus.NOT_FOUND, f"There is no page {path}.")
            return
        self.send_bytes(HTTPStatus.OK, *found)

    def send_text(self, status: HTTPStatus, words: str) -> None:
        self.send_bytes(status, words.encode(), "text/plain; charset=utf-8")

    def send_bytes(self, status: HTTPStatus, content: bytes | memoryview, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def is_asked_here(self) -> bool:
        """Return whether the address in the browser names this machine."""
        return self.headers.get("Host") in {f"{HOST}:{self.port}", f"localhost:{self.port}"}

    @property
    def port(self) -> int:
        assert isinstance(self.server, ThreadingHTTPServer)
        return self.server.server_port

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: the terminal shows the address."""
