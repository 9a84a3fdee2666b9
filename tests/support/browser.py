"""A real headless Chromium for tests of our pages, driven over the W3C WebDriver protocol with the standard library.

tests/conftest.py makes the fixture ``browser`` known to all.
"""

import base64
import json
import os
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element's id, W3C WebDriver, section 12
_ARGUMENTS = [
    "--headless=new",
    "--no-sandbox",  # Chromium's own sandbox does not start for root, which containers run tests as
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
]


class Browser:
    """One browser window. Selectors are CSS; a script is a function body that may ``return`` JSON."""

    ENTER, SPACE, BACKSPACE = "\ue007", " ", "\ue003"  # W3C WebDriver, section 17.4.2

    def __init__(self, driver: str, binary: str, profile: Path) -> None:
        self._driver = driver
        # A proxy of the environment is not for talking to ourselves.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        options = {"binary": binary, "args": [*_ARGUMENTS, f"--user-data-dir={profile}"]}
        wanted = {
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
            "timeouts": {"script": 120_000, "pageLoad": 120_000},  # milliseconds; a busy machine is no failure
        }
        session = self._call("POST", "", {"capabilities": {"alwaysMatch": wanted}})
        self._driver += f"/{session['sessionId']}"

    def _call(self, method: str, command: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._driver + command, data, {"Content-Type": "application/json"}, method=method
        )
        try:
            with self._opener.open(request, timeout=200) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            with error:
                raise RuntimeError(f"{command}: {json.load(error)['value']['message']}") from None

    def open(self, page: Path) -> None:
        """Load a local page; what the console says before is forgotten."""
        self._call("POST", "/url", {"url": page.resolve().as_uri()})

    def script(self, body: str, *arguments: object) -> Any:
        return self._call("POST", "/execute/sync", {"script": body, "args": list(arguments)})

    def _element(self, selector: str) -> str:
        found = self._call("POST", "/element", {"using": "css selector", "value": selector})
        return f"/element/{found[_ELEMENT]}"

    def click(self, selector: str) -> None:
        """Click as a user does: scrolled into view, refused when something covers it."""
        self._call("POST", self._element(selector) + "/click", {})

    def type(self, selector: str, text: str) -> None:
        """Send keys to an element; `ENTER` and `SPACE` press a button, `BACKSPACE` deletes."""
        self._call("POST", self._element(selector) + "/value", {"text": text})

    def devtools(self, command: str, parameters: dict[str, Any]) -> Any:
        """A command of the Chrome DevTools protocol."""
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def resize(self, width: int, height: int) -> None:
        """The viewport in CSS pixels; a phone is narrower than a real window may be."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.devtools("Emulation.setDeviceMetricsOverride", size)

    def prefer(self, scheme: str) -> None:
        """``light`` or ``dark``, as the system's setting."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.devtools("Emulation.setEmulatedMedia", {"features": features})

    def screenshot(self, path: Path) -> None:
        """The viewport as PNG."""
        path.write_bytes(base64.b64decode(self._call("GET", "/screenshot")))

    def console(self) -> list[str]:
        """What the page logged since the last call: script errors and refused loads among it."""
        return [entry["message"] for entry in self._call("POST", "/se/log", {"type": "browser"})]

    def close(self) -> None:
        self._call("DELETE", "")


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """The session's one browser. Without one the test skips, but not in CI, where that would hide a broken page."""
    driver = shutil.which("chromedriver")
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if driver is None or binary is None:
        message = "needs chromium and chromedriver on the PATH"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    with subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        ports = (re.search(r"started successfully on port (\d+)", line) for line in process.stdout)
        port = next((found[1] for found in ports if found), None)
        try:
            assert port is not None, f"chromedriver ended with status {process.wait(10)} and named no port"
            window = Browser(f"http://127.0.0.1:{port}/session", binary, tmp_path_factory.mktemp("chromium"))
            yield window
            window.close()
        finally:
            process.terminate()


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """The browser at 1280 x 900 in the light scheme; fails the test whose page logs an error."""
    chromium.resize(1280, 900)
    chromium.prefer("light")
    chromium.console()
    yield chromium
    assert chromium.console() == []
