"""``ontogeny serve``: a read-only server for the browser on this machine."""

import http.client
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from report_run import report_run

from capture.errors import ConfigError, ShardError
from cluster.cli import main
from cluster.local.page_server import HOST, page_server

PAGES = {"report/index.html": (b"<p>first</p>", "text/html; charset=utf-8")}


def read(path: str) -> tuple[bytes, str] | None:
    if path == "report/damaged.html":
        raise ShardError("analysis/a.parquet", "is damaged", "Run it again")
    return PAGES.get(path)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with page_server(read, "report/index.html", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def ask(port: int, path: str, method: str = "GET", host: str | None = None):
    connection = http.client.HTTPConnection(HOST, port, timeout=60)
    headers = {"Host": host} if host else {}
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, answer.headers, content


def test_pages_are_answered_with_their_type(port: int) -> None:
    status, headers, content = ask(port, "/report/index.html?x=1")
    assert (status, content) == (200, b"<p>first</p>")
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_the_address_alone_leads_to_the_first_page(port: int) -> None:
    status, headers, _ = ask(port, "/")
    assert (status, headers["Location"]) == (302, "/report/index.html")


def test_the_head_of_a_page_has_no_content(port: int) -> None:
    status, headers, content = ask(port, "/report/index.html", "HEAD")
    assert (status, headers["Content-Length"], content) == (200, "12", b"")


@pytest.mark.parametrize("path", ["/none.html", "/..%2frun.json", "/report/%00", "/%e2%82%ac"])
def test_what_is_no_page_is_not_found(port: int, path: str) -> None:
    assert ask(port, path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_can_be_changed(port: int, method: str) -> None:
    assert ask(port, "/report/index.html", method)[0] == 501


def test_a_damaged_table_is_said_in_the_page(port: int) -> None:
    status, _, content = ask(port, "/report/damaged.html")
    assert (status, content) == (500, b"analysis/a.parquet: is damaged. Run it again.")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "x"])
def test_another_name_for_this_machine_is_refused(port: int, host: str) -> None:
    assert ask(port, "/report/index.html", host=host)[0] == 403


def test_a_browser_that_leaves_before_the_answer_prints_nothing(capsys) -> None:
    with page_server(read, "", 0) as server:
        for error, said in ((BrokenPipeError(), False), (KeyError("a mistake of ours"), True)):
            try:
                raise error
            except type(error):
                server.handle_error(None, (HOST, 1))
            assert bool(capsys.readouterr().err) == said


def test_localhost_is_a_name_of_this_machine(port: int) -> None:
    assert ask(port, "/report/index.html", host=f"localhost:{port}")[0] == 200


def test_a_port_that_is_in_use_or_none_is_refused(port: int) -> None:
    for bad in (port, 70_000):
        with pytest.raises(ConfigError, match=rf"--port: got {bad}, which cannot be used: .*or 0 "):
            page_server(read, "", bad)


def test_the_command_prints_its_address_until_it_is_stopped(tmp_path, monkeypatch, capsys) -> None:
    run = report_run(str(tmp_path / "run"), "attribute")

    def stop(server: ThreadingHTTPServer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", stop)
    assert main(["serve", run.uri, "--port", "0"]) == 130
    assert f"http://{HOST}:" in capsys.readouterr().out


def test_a_run_without_attributions_says_what_to_run(tmp_path: Path, capsys) -> None:
    run = report_run(str(tmp_path / "run"), "ablate")
    assert main(["serve", run.uri, "--port", "0"]) == 2
    assert f"ontogeny attribute {run.uri}" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["serve", "report"])
def test_a_place_without_tables_is_refused(command: str, tmp_path: Path, capsys) -> None:
    run = report_run(str(tmp_path / "run"), "attribute")
    assert main([command, run.uri, "--tables", f"{tmp_path}/none"]) == 2
    assert f"--tables: got {tmp_path}/none, which holds no tables" in capsys.readouterr().err
