"""A headless Chromium, driven through its DevTools protocol, for tests of pages in a real browser."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import websocket  # of the package websocket-client
from patience import PATIENCE, until

NAMES = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell")
# For pages, a machine without a mouse has one; the numbers are Blink's HoverType and PointerType.
MOUSE = "--blink-settings=primaryHoverType=2,availableHoverTypes=2,primaryPointerType=4,availablePointerTypes=4"
OFFLINE = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}


def find() -> str | None:
    """The program, if this machine has one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """A page without network; what it complains of, and all that it asks for, is noted.

    Attributes:
        problems: exceptions, and what the console got as error or warning.
        requests: addresses, the page's own first.
    """

    def __init__(self, socket: websocket.WebSocket) -> None:
        self._socket, self._session, self._calls = socket, "", 0
        self.problems: list[str] = []
        self.requests: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        self._call("Network.emulateNetworkConditions", **OFFLINE)

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask for something and note what happens until the answer comes."""
        self._calls += 1
        asked = {"id": self._calls, "method": method, "params": parameters}
        self._socket.send(json.dumps(asked | ({"sessionId": self._session} if self._session else {})))
        while True:
            said = json.loads(self._socket.recv())
            if said.get("id") == self._calls:
                assert "error" not in said, f"{method}: {said['error']}"
                return said["result"]
            self._note(said.get("method"), said.get("params"))

    def _note(self, event: str, what: Any) -> None:
        complaint = {
            "Runtime.exceptionThrown": True,
            "Runtime.consoleAPICalled": what.get("type") in ("error", "warning", "assert"),
            "Log.entryAdded": what.get("entry", {}).get("level") in ("error", "warning"),
        }
        if complaint.get(event):
            self.problems.append(json.dumps(what)[:500])
        if event == "Network.requestWillBeSent":
            self.requests.append(what["request"]["url"])

    def open(self, path: Path, width: int, height: int, touch: bool = False) -> None:
        """Load a file in a window of that size in CSS pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": touch}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        self._call("Emulation.setTouchEmulationEnabled", enabled=touch)
        self._call("Page.navigate", url=path.resolve().as_uri())
        self.until("document.readyState === 'complete' && location.protocol === 'file:'")

    def ask(self, script: str) -> Any:
        """The value of an expression in the page."""
        said = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in said, said["exceptionDetails"]
        return said["result"].get("value")

    def until(self, script: str) -> None:
        """Wait for an expression to become true."""
        until(lambda: self.ask(script), script, every=0.02)

    def middle(self, selector: str) -> dict[str, float]:
        """The middle of an element, scrolled into view."""
        return self.ask(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center', inline: 'nearest'}); const r = e.getBoundingClientRect();"
            " return {x: r.x + r.width / 2, y: r.y + r.height / 2}; })()"
        )

    def point(self, selector: str) -> None:
        """Move the pointer to an element."""
        self._call("Input.dispatchMouseEvent", type="mouseMoved", **self.middle(selector))

    def click(self, selector: str) -> None:
        """Press and release the mouse's button on an element."""
        at = self.middle(selector) | {"button": "left", "clickCount": 1}
        for what in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=what, **at)

    def tap(self, selector: str) -> None:
        """Touch an element with a finger."""
        self._call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[self.middle(selector)])
        self._call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def press(self, key: str, code: int, text: str = "") -> None:
        """Press and release a key, by its name and its Windows code."""
        for what in ("keyDown", "keyUp"):
            typed = {"text": text} if text and what == "keyDown" else {}
            self._call("Input.dispatchKeyEvent", type=what, key=key, code=key, windowsVirtualKeyCode=code, **typed)


@contextmanager
def browser(program: str, folder: Path) -> Iterator[Page]:
    """Start a browser with an empty profile in a folder; it ends with the block."""
    place = folder / "DevToolsActivePort"
    flags = [MOUSE, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    flags += ["--disable-background-networking", "--remote-debugging-port=0", f"--user-data-dir={folder}"]
    with (folder / "log").open("wb") as log:
        running = subprocess.Popen([program, *flags, "about:blank"], stdout=log, stderr=log)
    try:
        end = time.monotonic() + PATIENCE
        while not (place.is_file() and len(place.read_text().split()) == 2):
            said = (folder / "log").read_text(errors="replace")[-2000:]
            assert running.poll() is None and time.monotonic() < end, f"{program} does not start: {said}"
            time.sleep(0.05)
        port, name = place.read_text().split()
        address = f"ws://127.0.0.1:{port}{name}"
        with closing(websocket.create_connection(address, timeout=PATIENCE, suppress_origin=True)) as socket:
            yield Page(socket)
    finally:
        running.terminate()
        running.wait(PATIENCE)
