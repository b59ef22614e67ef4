"""The command ``watch``: the page of a sweep, served to this machine while the sweep runs.

One thread looks at the store and writes the page, others hand out what was written last, so that
nobody waits for a report. Whoever can reach the port can read the results, so it is bound to this
machine unless told otherwise, and answers to no other name: a page from elsewhere that has its own
name resolve to 127.0.0.1 gets nothing.
"""

from __future__ import annotations

import hashlib
import http.server
import ipaddress
import json
import os
import socketserver
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from html import escape
from http import HTTPStatus
from typing import Annotated, Any, ClassVar
from urllib.parse import urlsplit

import typer
from rich.text import Text

from hdsweep import views
from hdsweep.errors import HdsweepError
from hdsweep.planned import PlannedSweep
from hdsweep.store import Store
from hdsweep.terminal import Console
from hdsweep.views import StoreOption

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_NOTE = '<div id="status" class="status" role="status" hidden></div>'
_WAITING = """\
<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:">
<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,"><title>hdsweep</title>
<p role="status">The records are being read; the page follows.</p></html>
"""

_REST = 4  # times as long as writing took; so a page takes a fifth of one core at most

Write = Callable[[PlannedSweep, float | None, str], str]
"""From a sweep, how often its page is to ask, and the version, to the page."""


def watch(
    name: Annotated[
        str | None, typer.Argument(help="Name of a sweep; the latest by default.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 0,
    every: Annotated[float, typer.Option(min=1, help="Seconds from look to look.")] = 5,
    host: Annotated[
        str, typer.Option(help="Address to serve at; others than this machine's are open to all.")
    ] = "127.0.0.1",
    store: StoreOption = views.RESULTS,
) -> None:
    """Serve the page of a sweep at 127.0.0.1, and write it anew as its trials finish."""
    opened = Store(store)
    found = opened.sweep(name).name  # an unknown one is refused before anything is served
    watched = Watched(opened, found, every, lambda *given: page_of(opened, *given))
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    with serve(watched, host, port) as server:
        at = server.server_address[1]
        shown = f"[{host}]" if ":" in host else host
        if not _is_loopback(host):
            warned = f"{host} is open to other machines: whoever reaches it can read this sweep"
            console.print(Text.assemble(("warning: ", "yellow"), warned))
        views.write(f"http://{shown}:{at}/\n")
        console.print(Text(f"the page of {found}; Ctrl-C ends it"))
        try:
            threading.Thread(target=watched.keep_up, daemon=True).start()
            server.serve_forever()
        except KeyboardInterrupt:
            watched.ended.set()
            sys.stderr.write("\n")


def page_of(store: Store, sweep: PlannedSweep, refresh_s: float | None, version: str) -> str:
    """The page of a sweep as it is now."""
    from analysis import report
    from analysis.summary import summarize

    summary = summarize(store, sweep)
    return report.page_of(summary, store, refresh_s=refresh_s, version=version)


# --- the sweep, as it was last seen ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Seen:
    """What is handed out.

    Args:
        html: The page, the last one that could be written.
        version: Of the page; empty before there is one.
        unfinished: Whether trials are still to come.
        note: Why the page is not of now; empty where it is.
    """

    html: str = _WAITING
    version: str = ""
    unfinished: bool = True
    note: str = ""

    def page(self) -> bytes:
        """With the note, for browsers that run no scripts."""
        if not self.note:
            return self.html.encode()
        said = f'<div id="status" class="status" role="status">{escape(self.note)}</div>'
        return self.html.replace(_NOTE, said, 1).encode()

    def state(self) -> bytes:
        """What the page asks for again and again."""
        fields = {"version": self.version, "unfinished": self.unfinished, "note": self.note}
        return json.dumps(fields).encode()


class Watched:
    """A sweep whose page is written anew when something changed.

    Args:
        store: Where it is.
        name: Of the sweep.
        every: Seconds from look to look, and from question to question of the page.
        write: Writes the page.
    """

    def __init__(self, store: Store, name: str, every: float, write: Write) -> None:
        self.seen = Seen()
        self.ended = threading.Event()
        self._store = store
        self._name = name
        self._every = every
        self._write = write
        self._tried = ""  # version
        self._trouble = ""  # with that version

    def keep_up(self) -> None:
        """Look and write until ``ended`` is set."""
        while True:
            began_s = time.monotonic()
            self.look()
            took_s = time.monotonic() - began_s
            # Trials may finish faster than a page is written, and they need the processors more.
            if self.ended.wait(max(self._every, _REST * took_s)):
                return

    def look(self) -> None:
        """Write the page if what it is made of changed since it was tried last.

        A page that cannot be written leaves the last one in place, with a note.
        """
        try:
            sweep = self._store.sweep(self._name)
            version, unfinished = _version(self._store, sweep)
        except (HdsweepError, OSError) as error:
            self.seen = replace(self.seen, note=_outdated(error))
            return
        if version != self._tried:
            self._tried, self._trouble = version, ""
            try:
                html = self._write(sweep, self._every if unfinished else None, version)
                self.seen = Seen(html, version, unfinished)
            except Exception as error:  # whatever it is, the page stays and says so
                self._trouble = _outdated(error)
        self.seen = replace(self.seen, note=self._trouble)


def _outdated(error: Exception) -> str:
    kind = "" if isinstance(error, HdsweepError) else f"{type(error).__name__}: "
    return f"This page is not up to date: {kind}{error}"


def _version(store: Store, sweep: PlannedSweep) -> tuple[str, bool]:
    """Digest of what a page is made of, and whether more of it is to come."""
    digest = hashlib.sha256()
    skipped = sweep.skipped()
    open_trials = False
    for path in (store.log_of(sweep.name).with_name("plan.json"), store.log_of(sweep.name)):
        digest.update(_stamp(path))
    for trial_id in sweep.labels():
        if not trial_id:
            continue
        stamp = _stamp(store.trial_dir(trial_id) / "record.json")
        open_trials |= not stamp and trial_id not in skipped
        digest.update(trial_id.encode() + stamp)
    drawn = [cell.study for cell in sweep.cells if cell.part != "confirm"]
    to_draw = any(drawn.count(search.key) < search.trials for search in sweep.searches)
    chosen = {cell.arm for cell in sweep.cells if cell.part == "confirm"}
    to_choose = bool(sweep.confirm) and not sweep.unchosen and not {*sweep.arm_names()} <= chosen
    return digest.hexdigest()[:20], open_trials or to_draw or to_choose


def _stamp(path: os.PathLike[str]) -> bytes:
    """Changes when the file does; empty where there is none."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return b""
    return f"{found.st_mtime_ns} {found.st_size} {found.st_ino}".encode()


# --- the server -----------------------------------------------------------------------------------


def serve(watched: Watched, host: str, port: int) -> Server:
    """Bind a server.

    Raises:
        HdsweepError: The address is not this machine's, or the port is in use.
    """
    try:
        return Server(watched, host, port)
    except OSError as error:
        raise HdsweepError(
            f"cannot serve at {host}:{port}: {error.strerror}; "
            "name another --port, or none for any that is free"
        ) from None


class Server(http.server.ThreadingHTTPServer):
    """Hands out one page and its state, to those who ask this machine by its own name."""

    daemon_threads = True

    def __init__(self, watched: Watched, host: str, port: int) -> None:
        self.watched = watched
        if ":" in host:
            import socket

            self.address_family = socket.AF_INET6
        super().__init__((host, port), _Answer)
        self.names = _names(host, int(self.server_address[1]))

    def server_bind(self) -> None:
        """As the parent's, without asking a name server, which may take long."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that closes a connection early is no news; a bug of ours is."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def _names(host: str, port: int) -> frozenset[str] | None:
    """Values of the header Host that are answered; None for all."""
    if host in ("0.0.0.0", "::", ""):  # noqa: S104 - told explicitly, and warned of
        return None
    known = {"127.0.0.1", "localhost", "[::1]"} if _is_loopback(host) else set()
    known.add(f"[{host}]" if ":" in host else host)
    return frozenset(f"{name}:{port}" for name in known) | (known if port == 80 else frozenset())


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Answer(http.server.BaseHTTPRequestHandler):
    server: Server
    timeout = 30  # seconds; who says nothing for so long is gone
    server_version, sys_version = "hdsweep", ""
    protocol_version = "HTTP/1.1"
    _kinds: ClassVar = {"/": "text/html; charset=utf-8", "/state": "application/json"}

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        names = self.server.names
        if names is not None and self.headers.get("Host", "").lower() not in names:
            self._say(HTTPStatus.MISDIRECTED_REQUEST, "text/plain", b"this is not that host\n")
        elif path not in self._kinds:
            self._say(HTTPStatus.NOT_FOUND, "text/plain", b"there is / and /state\n")
        else:
            seen = self.server.watched.seen
            content = seen.page() if path == "/" else seen.state()
            self._say(HTTPStatus.OK, self._kinds[path], content)

    do_HEAD = do_GET  # noqa: N815 - the library's name

    def _say(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not of interest."""
