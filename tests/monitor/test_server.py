"""The page's server: what it answers, to whom, and that nothing else of the machine can be read through it."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gipo_mc.errors import ConfigError
from gipo_mc.monitor.follow import followers
from gipo_mc.monitor.server import MonitorServer, is_loopback
from tests.monitor.folders import append, rows, run


@contextmanager
def serving(*runs: Path, host: str = "127.0.0.1") -> Iterator[MonitorServer]:
    with MonitorServer(followers(runs), host, 0, 0.05) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(server: MonitorServer, path: str = "/", method: str = "GET", **headers: str) -> tuple[int, dict[str, str], str]:
    """(status, headers, body) of one request, as it is written."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    given = {"Host": f"127.0.0.1:{server.server_port}"} | {name.replace("_", "-"): v for name, v in headers.items()}
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in given.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, body


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("runs") / "gi")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[MonitorServer]:
    with serving(folder) as found:
        yield found


def test_the_page_and_its_parts(server: MonitorServer) -> None:
    status, headers, page = ask(server)
    assert status == 200 and "step 40 of 80" in page and "<svg" in page and "prompts with" in page
    assert "default-src 'none'" in headers["content-security-policy"] and headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin" and "access-control-allow-origin" not in headers
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "") and "https://" not in page
    assert ask(server, "/monitor.css")[0] == ask(server, "/monitor.js")[0] == 200
    status, headers, body = ask(server, "/", "HEAD")
    assert status == 200 and not body and int(headers["content-length"]) > 1000


def test_what_has_not_changed_is_not_sent_again(tmp_path: Path) -> None:
    path = run(tmp_path / "gi")
    with serving(path) as server:
        _, headers, _ = ask(server, "/state")
        tag = headers["etag"]
        assert ask(server, "/state", If_None_Match=tag)[0] == 304
        append(path / "metrics.jsonl", rows(41, 41))
        threading.Event().wait(0.1)
        status, headers, state = ask(server, "/state", If_None_Match=tag)
        assert status == 200 and headers["etag"] != tag and "step 41 of 80" in state


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "", "127.0.0.1:{port}.evil.example"]
)
def test_a_name_that_was_rebound_here_is_refused(server: MonitorServer, host: str) -> None:
    status, _, body = ask(server, Host=host.format(port=server.server_port))
    assert status == 421 and "step 40" not in body
    assert ask(server, Host=f"localhost:{server.server_port}")[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/config.yaml",
        "/../../etc/passwd",
        "//etc/passwd",
        "/%2e%2e/run_status.json",
        "/state/",
        "/monitor.css/../x",
        "/\\x",
    ],
)
def test_no_file_can_be_asked_for(server: MonitorServer, path: str) -> None:
    status, _, body = ask(server, path)
    assert status == 404 and body == "There is nothing here."


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "BREW"])
def test_only_get(server: MonitorServer, method: str) -> None:
    status, headers, _ = ask(server, "/", method)
    assert status == 405 and headers["allow"] == "GET, HEAD"


def test_what_is_no_request_harms_nothing(server: MonitorServer) -> None:
    for raw in (
        b"\x16\x03\x01\x02\x00",
        b"GET http://[ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET / HTTP/9\r\n\r\n",
        b"",
    ):
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as connection:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
    assert ask(server)[0] == 200


def test_beyond_loopback_a_token_is_needed(folder: Path) -> None:
    assert is_loopback("127.0.0.1") and is_loopback("::1") and is_loopback("localhost")
    assert not is_loopback("0.0.0.0") and not is_loopback("192.168.1.2") and not is_loopback("node1")
    with serving(folder, host="0.0.0.0") as server:
        assert len(server.token) > 20 and server.url.endswith(f"/?token={server.token}")
        for path in ("/", "/state", "/monitor.js", "/?token=wrong", "/?token="):
            status, _, body = ask(server, path)
            assert status == 403 and "step 40" not in body and server.token not in body
        status, headers, _ = ask(server, f"/?token={server.token}")
        assert status == 303 and headers["location"] == "/"
        assert "HttpOnly" in headers["set-cookie"] and "SameSite=Strict" in headers["set-cookie"]
        cookie = headers["set-cookie"].partition(";")[0]
        assert ask(server, Cookie=cookie)[0] == 200 and ask(server, Cookie=cookie + "x")[0] == 403
        assert ask(server, "/state", Cookie="a=b; \x7f")[0] == 403


def test_a_port_that_is_taken_is_one_sentence(server: MonitorServer, folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on 127\.0\.0\.1:\d+: .*Give another --port"):
        MonitorServer(followers([folder]), "127.0.0.1", server.server_port, 1.0)
    with pytest.raises(ConfigError, match="cannot listen"):
        MonitorServer(followers([folder]), "no.such.host.invalid", 0, 1.0)


def test_text_of_others_is_text(tmp_path: Path) -> None:
    evil = '</p></section><script>alert(1)</script><img src=x onerror="alert(1)">'
    path = run(tmp_path / "gi")
    odd = {"step": 41, "reward/mean": 1.0, f"reward/domain/{evil}": 1.0, "group/0/reward": 1.0, "group/1/reward": 0.0}
    append(path / "metrics.jsonl", [odd])
    append(path / "warnings.jsonl", [{"step": 41, "text": evil}])
    more = {"group_probs": [0.0, 1.0], "length": 90}
    append(
        path / "samples.jsonl", [{"step": 41, "prompt": evil, "response": evil, "domain": evil, "reward": 9.0} | more]
    )
    with serving(path) as server:
        for address in ("/", "/state"):
            _, _, body = ask(server, address)
            assert "<script>alert" not in body and "<img" not in body and body.count("&lt;script&gt;alert(1)") >= 4
