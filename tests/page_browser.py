"""A real browser for the tests of the page: the distribution's chromium, driven through its own chromedriver."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def missing() -> str | None:
    """What is not installed of a browser and its driver."""
    if shutil.which("chromedriver") is None:
        return "no chromedriver is installed (Debian: chromium-driver): the page is not tried in a browser"
    if not any(map(shutil.which, BROWSERS)):
        return "no chromium is installed: the page is not tried in a browser"
    return None


class Browser:
    """A session of the WebDriver protocol, as far as the tests need it."""

    def __init__(self, address: str, profile: str) -> None:
        self._address = address
        binary = next(filter(None, map(shutil.which, BROWSERS)))
        options = {"binary": binary, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        found = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._address += f"/session/{found['sessionId']}"

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if method != "POST" else json.dumps(body or {}).encode()
        request = urllib.request.Request(
            self._address + path, data, {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from None

    def command(self, name: str, **arguments: Any) -> Any:
        """A command of the DevTools."""
        return self._call("POST", "/goog/cdp/execute", {"cmd": name, "params": arguments})

    def open(self, path: Path, width: int, height: int = 900) -> None:
        """Open a file in a window of that size, as a phone has it where it is narrow."""
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self._call("POST", "/url", {"url": "about:blank"})
        self._call("POST", "/url", {"url": path.as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        """What `return ...` gives in the page."""
        return self._call("POST", "/execute/sync", {"script": script, "args": arguments})

    def until(self, script: str, *arguments: Any) -> None:
        """Wait for `script` to return something true: what a page does after an event takes a moment."""
        for _ in range(200):
            if self.run(script, *arguments):
                return
            time.sleep(0.05)
        raise AssertionError(f"it never came true: {script}")

    def press(self, *keys: str) -> None:
        """Press keys, one after the other: characters, or WebDriver's codes for others."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._call("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def errors(self) -> list[str]:
        """What the page complained of since it was asked last."""
        return [entry["message"] for entry in self._call("POST", "/se/log", {"type": "browser"})]

    def screenshot(self, path: Path) -> None:
        """What is seen, as a PNG."""
        path.write_bytes(base64.b64decode(self._call("GET", "/screenshot")))

    def close(self) -> None:
        """End the session."""
        self._call("DELETE", "")


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A browser with a fresh profile."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
            for _ in range(200):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                time.sleep(0.05)
            session = Browser(f"http://127.0.0.1:{port}", profile)
            try:
                yield session
            finally:
                session.close()
    finally:
        driver.terminate()
        driver.wait(10)
