"""What the stand-ins of servers on loopback share: answers as a server that fails gives them."""

from __future__ import annotations

import socket
import struct
import time
from http.server import BaseHTTPRequestHandler
from typing import Any


class FailingHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 2**16  # headers and body in one packet: two of them wait for an acknowledgement

    def begin(self, length: int) -> None:
        """Headers that promise so many bytes."""
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def drip(self, pieces: int, pause: float) -> None:
        """A space now and then, of many more that were promised: no read of it ever takes long."""
        self.begin(10000 * pieces)
        for _ in range(pieces):
            self.wfile.write(b" ")
            self.wfile.flush()
            time.sleep(pause)

    def break_off(self, beginning: bytes) -> None:
        """A part of what was promised, and the end of the connection."""
        self.begin(1000)
        self.wfile.write(beginning)
        self.wfile.flush()
        self.die()

    def die(self) -> None:
        """As a process that is killed: the connection is reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass
