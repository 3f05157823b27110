"""Chromium without a screen, driven over the WebDriver protocol by the standard library alone."""

import base64
import contextlib
import json
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars",
)  # fmt: skip
SECONDS = 60


def missing() -> list[str]:
    """Return the programs that a browser test needs and this machine does not have."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


class Browser:
    """One window; every method is one command of the protocol."""

    def __init__(self, address: str, session: str) -> None:
        self._address = f"{address}/session/{session}"

    def ask(self, command: str, **body: Any) -> Any:
        """Send a command and return its value; without a body it is a question (GET)."""
        return _ask(f"{self._address}/{command}", body if body else None)

    def open(self, page: Path) -> None:
        """Load a file."""
        self.ask("url", url=page.absolute().as_uri())

    def run(self, script: str) -> Any:
        """Run JavaScript in the page and return what it returns."""
        return self.ask("execute/sync", script=script, args=[])

    def devtools(self, command: str, **parameters: Any) -> Any:
        """Send a command of the DevTools protocol."""
        return self.ask("goog/cdp/execute", cmd=command, params=parameters)

    def size(self, width: int, height: int = 900) -> None:
        """Show the page as a screen of so many CSS pixels would."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    def scheme(self, name: str) -> None:
        """Prefer `light` or `dark` colours."""
        self.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def console(self) -> list[str]:
        """Return what the page complained of since the last question."""
        return [str(entry["message"]) for entry in self.ask("se/log", type="browser")]

    def requests(self) -> list[str]:
        """Return the addresses outside the browser that were asked for since the last question."""
        events = [json.loads(entry["message"])["message"] for entry in self.ask("se/log", type="performance")]
        asked = [
            event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
        ]
        return [address for address in asked if not address.startswith(("chrome", "data:", "about:"))]

    def picture(self, path: Path, *, whole: bool = True) -> None:
        """Write what is seen, or the whole page, as PNG."""
        shot = self.devtools("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def printed(self) -> bytes:
        """Return the page as PDF."""
        return base64.b64decode(self.ask("print", background=True))


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Start the driver on a free port and a window with a new, empty profile; end both."""
    driver = subprocess.Popen(
        ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert driver.stdout is not None
        found = next(
            match for line in driver.stdout if (match := re.search(r"started successfully on port (\d+)", line))
        )
        address = f"http://127.0.0.1:{found[1]}"
        options = {"binary": shutil.which("chromium"), "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        session = _ask(f"{address}/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        window = Browser(address, session)
        try:
            tab = window.ask("window/new", type="tab")["handle"]  # the first one is busy with the browser's own page
            window.ask("window", handle=tab)
            yield window
        finally:
            _ask(f"{address}/session/{session}", None, "DELETE")
    finally:
        driver.terminate()
        driver.communicate(timeout=SECONDS)


def _ask(address: str, body: dict[str, Any] | None, method: str | None = None) -> Any:
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, content, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=SECONDS) as answer:
            return json.loads(answer.read())["value"]
    except urllib.error.HTTPError as error:
        raise RuntimeError(error.read().decode()) from None
