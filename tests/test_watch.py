"""The served page: of now while the sweep runs, for this machine alone, and never in the way."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hdsweep.cli_watch import Watched, page_of
from hdsweep.planned import PlannedSearch, PlannedSweep
from hdsweep.store import Store
from tests.conftest import Run, interruptible
from tests.reported import Arm, finish, report_on, trial_of

GROUPS, METRICS, ITEMS = ("A", "B"), ("auroc",), 40
ARMS = (Arm("baseline", 0.5), Arm("strong", 2.0))
HALF = (ARMS[0], Arm("strong", 2.0, ends={2: "", 3: ""}))

Answer = tuple[int, dict[str, str], bytes]


def half(root: Path) -> Store:
    """A sweep with four of six trials."""
    return report_on(root, HALF, groups=GROUPS, metrics=METRICS, items=ITEMS)


def run_one(store: Store, seed: int) -> None:
    finish(store, ARMS[1], seed, GROUPS, METRICS, ITEMS)


def ask(
    port: int, path: str = "/", method: str = "GET", host: str | None = None, to: str = "127.0.0.1"
) -> Answer:
    connection = http.client.HTTPConnection(to, port, timeout=60)
    try:
        connection.request(method, path, headers={"Host": host or f"127.0.0.1:{port}"})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def state(port: int) -> dict[str, object]:
    return json.loads(ask(port, "/state")[2])  # type: ignore[no-any-return]


def wait_for(port: int, holds: Callable[[dict[str, object]], bool]) -> dict[str, object]:
    """The first state that holds; a page takes seconds on a busy machine."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if holds(found := state(port)):
            return found
        time.sleep(0.1)
    raise AssertionError(f"still {found}")


class Served:
    """``hdsweep watch`` in a process of its own."""

    def __init__(self, store: Path, *options: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hdsweep.cli", "watch", "--store", str(store), "--every", "1",
             *map(str, options)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        assert self.url, self.process.stderr and self.process.stderr.read()
        self.port = int(self.url.rstrip("/").rpartition(":")[2])

    def end(self) -> tuple[int, str]:
        self.process.send_signal(signal.SIGINT)
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, err


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    started = []

    def start(store: Path, *options: object) -> Served:
        started.append(Served(store, *options))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
        one.process.communicate()


@pytest.mark.slow
def test_a_page_follows_its_sweep_until_the_last_trial_and_then_asks_no_more(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    store = half(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    served = serve(tmp_path)
    assert served.url == f"http://127.0.0.1:{served.port}/"
    first = wait_for(served.port, lambda found: bool(found["version"]))
    assert first["unfinished"] is True
    status, headers, html = ask(served.port)
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert f'data-version="{first["version"]}" data-refresh="1.0"'.encode() in html
    assert b"4 of 6 planned trials are ok." in html
    assert {
        p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()
    } == before  # it only reads

    run_one(store, 2)
    second = wait_for(served.port, lambda found: found["version"] != first["version"])
    assert b"5 of 6 planned trials are ok." in ask(served.port)[2]
    run_one(store, 3)
    last = wait_for(served.port, lambda found: found["version"] != second["version"])
    assert last["unfinished"] is False
    html = ask(served.port)[2]
    assert b"6 of 6 planned trials are ok." in html
    assert b"data-refresh=" not in html
    assert b"connect-src" not in html

    status_of_end, err = served.end()
    assert status_of_end == 0, err
    assert "Traceback" not in err


def test_only_this_machine_is_answered_and_only_what_there_is(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    half(tmp_path)
    port = serve(tmp_path).port
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=10)
    assert ask(port, host=f"localhost:{port}")[0] == 200
    for other in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}"):
        status, _, content = ask(port, host=other)
        assert (status, content) == (421, b"this is not that host\n"), other
        assert ask(port, "/state", host=other)[0] == 421
    for path in (
        "/store.json",
        "/../store.json",
        "/%2e%2e/store.json",
        "/trials/",
        "/x",
    ):
        assert ask(port, path)[0] == 404, path
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert ask(port, method=method)[0] == 501, method
    status, headers, content = ask(port, method="HEAD")
    assert (status, content) == (200, b"")
    assert int(headers["Content-Length"]) > 0
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"] == "frame-ancestors 'none'"
    assert "Access-Control-Allow-Origin" not in headers


def test_what_cannot_be_served_is_one_message(hdsweep: Run, tmp_path: Path) -> None:
    half(tmp_path / "results")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = hdsweep("watch", "--port", port)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: cannot serve at 127.0.0.1:{port}: Address already in use; "
        "name another --port, or none for any that is free\n"
    )
    done = hdsweep("watch", "looked_ta")
    assert done.returncode == 2
    assert "no sweep 'looked_ta'; did you mean 'looked_at'?" in done.stderr
    done = hdsweep("watch", "--host", "nowhere.invalid")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "nowhere.invalid" in done.stderr


def test_an_address_that_others_reach_is_served_when_told_and_warned_of(
    tmp_path: Path, serve: Callable[..., Served]
) -> None:
    half(tmp_path)
    served = serve(tmp_path, "--host", "0.0.0.0")
    assert ask(served.port, to="127.0.0.2", host="any.name")[0] == 200
    _, err = served.end()
    assert "warning: 0.0.0.0 is open to other machines" in err


def watched(store: Store, every: float = 5) -> Watched:
    return Watched(store, "looked_at", every, lambda *given: page_of(store, *given))


def test_the_last_page_stays_with_a_note_while_a_new_one_cannot_be_written(tmp_path: Path) -> None:
    store = half(tmp_path)
    page = watched(store)
    page.look()
    good = page.seen
    assert good.note == ""
    path = store.trial_dir(trial_of(ARMS[0], 1).id) / "record.json"
    whole = path.read_bytes()
    path.write_bytes(b"<b>damaged</b>")
    page.look()
    assert (page.seen.html, page.seen.version) == (good.html, good.version)
    assert "not up to date" in page.seen.note
    assert "not a trial record" in page.seen.note
    shown = page.seen.page().decode()
    assert "This page is not up to date" in shown  # for browsers that run no script
    assert json.loads(page.seen.state())["note"] == page.seen.note
    path.write_bytes(whole)
    page.look()
    assert page.seen.note == ""
    assert page.seen.html.replace(page.seen.version, good.version) == good.html

    plan = store.log_of("looked_at").with_name("plan.json")
    whole = plan.read_bytes()
    was = plan.stat()
    plan.write_bytes(b"{")
    page.look()
    assert "not a plan" in page.seen.note
    plan.write_bytes(whole)
    os.utime(plan, ns=(was.st_atime_ns, was.st_mtime_ns))  # as if nothing had been
    page.look()
    assert page.seen.note == ""


def test_a_page_is_written_when_something_changed_and_not_before(tmp_path: Path) -> None:
    store = half(tmp_path)
    made = []

    def write(sweep: PlannedSweep, refresh_s: float | None, version: str) -> str:
        made.append((refresh_s, version))
        return f"page {len(made)}"

    page = Watched(store, "looked_at", 5, write)
    page.look()
    page.look()
    assert len(made) == 1
    run_one(store, 2)
    page.look()
    page.look()
    run_one(store, 3)
    page.look()
    page.look()
    assert [refresh for refresh, _ in made] == [5, 5, None]
    assert len({version for _, version in made}) == 3
    assert (page.seen.html, page.seen.unfinished) == ("page 3", False)


def test_a_sweep_that_is_to_draw_or_choose_more_is_not_finished(tmp_path: Path) -> None:
    store = report_on(tmp_path, ARMS, groups=GROUPS, metrics=METRICS, items=ITEMS)
    page = watched(store)
    page.look()
    assert not page.seen.unfinished
    planned = store.sweep()
    search = PlannedSearch(
        "0" * 20, "baseline", {}, 1, ("auroc",), maximize=(True,), aggregate="mean", sampler="tpe"
    )
    store.put_sweep(replace(planned, searches=(search,)), b"")
    page.look()
    assert page.seen.unfinished
    store.put_sweep(replace(planned, confirm=(9,)), b"")
    page.look()
    assert page.seen.unfinished
