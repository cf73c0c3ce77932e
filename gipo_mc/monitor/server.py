"""A small web server for the page that follows runs.

It answers GET and HEAD of four addresses, whose contents it makes itself: no name of a file is ever taken from a
request. By default it listens on loopback only, where other users of the machine can still reach it, as any port. A
web page elsewhere cannot read it: a request whose Host is not one of its own names (a name that was rebound to this
address) is refused, and no other origin is allowed to read an answer. Where it listens beyond loopback a token is
needed, once in the address and then as a cookie.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import socket
import sys
import threading
import time
from collections.abc import Sequence
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from urllib.parse import parse_qs, urlsplit

from gipo_mc.errors import ConfigError
from gipo_mc.monitor.follow import Follower
from gipo_mc.monitor.page import Page

LOOPBACK = "127.0.0.1"
#: Seconds after which a silent connection is closed.
_PATIENCE = 10.0
#: Cookies are of a host, whatever the port: each monitor has its own.
_COOKIE = "gipo_mc_monitor_{port}"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; style-src-attr 'unsafe-inline'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Does a server on this address answer this machine alone?"""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class MonitorServer(ThreadingHTTPServer):
    """The server. host: name or address to listen on; beyond loopback it makes a token. port: 0 for any that is free.
    every: seconds for which what was read is still shown. Raises ConfigError where it cannot listen there."""

    daemon_threads = True
    # A port that another program listens on is never shared; one that was just left may be taken.
    allow_reuse_port = False

    def __init__(self, followers: Sequence[Follower], host: str, port: int, every: float) -> None:
        self.token = "" if is_loopback(host) else secrets.token_urlsafe(24)
        self.host = host
        self._followers, self._every = followers, every
        self._page = Page(every)
        self._lock = threading.Lock()
        self._looked = -1e9
        self._made: tuple[tuple[int, ...], str, str] = ((), "", "")
        # Another start of the server has other tags: a page that stays open does not take old contents for new ones.
        self._tag = secrets.token_hex(4)
        try:
            self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError, UnicodeError) as error:
            raise ConfigError(
                f"The monitor cannot listen on {host}:{port}: {error}. Give another --port (0 takes any that is free) "
                "or --host."
            ) from error
        shown = f"[{host}]" if ":" in host else host
        self.names = {f"{name}:{self.server_port}" for name in ({shown} | _names_of(host))}

    def server_bind(self) -> None:
        """As HTTPServer's, which besides asks the network for its own name: that may take as long as it likes."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.host, self.server_address[1]

    @property
    def url(self) -> str:
        """What to open; with the token, where there is one."""
        host = socket.gethostname() if self._everywhere() else f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.server_port}/" + (f"?token={self.token}" if self.token else "")

    def _everywhere(self) -> bool:
        try:
            return ipaddress.ip_address(self.host).is_unspecified
        except ValueError:
            return False

    def knows(self, host: str) -> bool:
        """Is this Host one of the server's own names? Where it listens on all addresses it cannot know them; the token
        alone, which no other origin has, protects it there."""
        return self._everywhere() or host.lower() in self.names

    def allows(self, token: str) -> bool:
        return not self.token or hmac.compare_digest(token.encode(), self.token.encode())

    def state(self) -> tuple[str, str, str]:
        """(tag, whole page, the part that changes) as of at most `every` seconds ago."""
        with self._lock:
            if time.monotonic() - self._looked >= min(1.0, self._every):
                views = [follower.refresh() for follower in self._followers]
                self._looked = time.monotonic()
                key = tuple(view.revision for view in views)
                if key != self._made[0]:
                    self._made = (key, self._page.page(views), self._page.state(views))
            key, page, state = self._made
            return f'"{self._tag}-{"-".join(map(str, key))}"', page, state

    def style(self) -> str:
        return self._page.style()

    def script(self) -> str:
        return self._page.script()

    def handle_error(self, request: object, client_address: object) -> None:
        """A reader that went away is no event; anything else is shown by the base class."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def _names_of(host: str) -> set[str]:
    return {"localhost", "127.0.0.1", "[::1]"} if is_loopback(host) else set()


class _Handler(BaseHTTPRequestHandler):
    server: MonitorServer
    timeout = _PATIENCE
    server_version, sys_version = "gipo_mc", ""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def __getattr__(self, name: str) -> object:
        if name.startswith("do_"):  # every other method
            return lambda: self._send(HTTPStatus.METHOD_NOT_ALLOWED, "Only GET.", allow="GET, HEAD")
        raise AttributeError(name)

    def _answer(self) -> None:
        if not self.server.knows(self.headers.get("Host", "")):
            self._send(HTTPStatus.MISDIRECTED_REQUEST, "This is no name of the monitor: open the address it printed.")
            return
        try:
            address = urlsplit(self.path)
            given = parse_qs(address.query, max_num_fields=8).get("token", [""])[0]
        except ValueError:
            self._send(HTTPStatus.BAD_REQUEST, "No address.")
            return
        if self.server.token and given and self.server.allows(given) and address.path == "/":
            # The token leaves the address, and with it the browser's history.
            cookie = f"{self._name()}={self.server.token}; HttpOnly; SameSite=Strict; Path=/"
            self._send(HTTPStatus.SEE_OTHER, "", location="/", cookie=cookie)
            return
        if not self.server.allows(self._cookie()):
            self._send(HTTPStatus.FORBIDDEN, "A token is needed: open the address that the monitor printed.")
            return
        if address.path == "/monitor.css":
            self._send(HTTPStatus.OK, self.server.style(), "text/css")
        elif address.path == "/monitor.js":
            self._send(HTTPStatus.OK, self.server.script(), "text/javascript")
        elif address.path in ("/", "/state"):
            tag, page, state = self.server.state()
            if address.path == "/state" and self.headers.get("If-None-Match") == tag:
                self._send(HTTPStatus.NOT_MODIFIED, "", tag=tag)
            else:
                self._send(HTTPStatus.OK, page if address.path == "/" else state, "text/html", tag=tag)
        else:
            self._send(HTTPStatus.NOT_FOUND, "There is nothing here.")

    def _name(self) -> str:
        return _COOKIE.format(port=self.server.server_port)

    def _cookie(self) -> str:
        try:
            found = SimpleCookie(self.headers.get("Cookie", "")).get(self._name())
        except CookieError:
            return ""
        return found.value if found else ""

    def _send(self, status: HTTPStatus, text: str, kind: str = "text/plain", **more: str) -> None:
        data = text.encode("utf-8", "replace")
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        names = {"location": "Location", "cookie": "Set-Cookie", "tag": "ETag", "allow": "Allow"}
        for name, value in more.items():
            self.send_header(names[name], value)
        if status != HTTPStatus.NOT_MODIFIED:
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD" and status != HTTPStatus.NOT_MODIFIED:
            self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: one line a second would hide what matters."""
