"""A headless Chromium, driven by the Chrome DevTools Protocol over a pipe: no driver to install, no port to find.

    with opened(folder) as browser:
        tab = browser.tab(url, width=390, height=844, dark=True)
        tab.click("#send"); tab.until("document.title === 'done'"); tab.picture(path)

Chromium reads commands from file descriptor 3 and writes answers and events to 4, each a JSON object ended by a zero byte
(`--remote-debugging-pipe`). Methods and their parameters: https://chromedevtools.github.io/devtools-protocol/
"""

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
FLAGS = (
    "--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip
KEYS = {"Enter": (13, "\r"), "Escape": (27, ""), "Tab": (9, "\t")}
SHIFT = 8
WAIT_S = 30.0


def program() -> str | None:
    """Path of the browser on this machine, None without one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextlib.contextmanager
def opened(folder: Path) -> Iterator["Browser"]:
    """A browser whose profile lies in `folder`; it is ended with all its processes."""
    from_us, to_browser = os.pipe()
    from_browser, to_us = os.pipe()
    words = [str(program()), *FLAGS, f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen(
        ["bash", "-c", f'exec "$@" 3<&{from_us} 4>&{to_us}', "bash", *words],
        pass_fds=(from_us, to_us), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    os.close(from_us)
    os.close(to_us)
    try:
        yield Browser(from_browser, to_browser)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(from_browser)
        os.close(to_browser)


class Browser:
    """The pipe's two ends, and what came through it that was no answer."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing, self._rest, self._count = reading, writing, b"", 0
        self._context = ""
        self.events: list[dict[str, Any]] = []

    def ask(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """The result of one command."""
        self._count += 1
        command = {"id": self._count, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self._writing, json.dumps(command).encode() + b"\0")
        while True:
            message = self._message(method)
            if message.get("id") == self._count:
                assert "error" not in message, f"{method}: {message['error']}"
                return dict(message["result"])
            self.events.append(message)

    def _message(self, waiting_for: str) -> dict[str, Any]:
        while b"\0" not in self._rest:
            assert select.select([self._reading], [], [], WAIT_S)[0], f"no answer to {waiting_for}"
            more = os.read(self._reading, 2**16)
            assert more, f"the browser ended during {waiting_for}"
            self._rest += more
        raw, self._rest = self._rest.split(b"\0", 1)
        return dict(json.loads(raw))

    def tab(self, url: str, width: int = 1280, height: int = 800, dark: bool = False) -> "Tab":
        """A new tab of a person of its own (storage, cookies), at `url`; the tab before is closed."""
        if self._context:
            self.ask("Target.disposeBrowserContext", browserContextId=self._context)
        self._context = self.ask("Target.createBrowserContext")["browserContextId"]
        target = self.ask("Target.createTarget", url="about:blank", browserContextId=self._context)["targetId"]
        tab = Tab(self, self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        for domain in ("Page", "Runtime", "Log"):
            tab.ask(f"{domain}.enable")
        tab.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        tab.ask("Emulation.setEmulatedMedia", features=[scheme])
        tab.ask("Emulation.setFocusEmulationEnabled", enabled=True)
        tab.go(url)
        return tab


class Tab:
    """One page, used as a person does: by mouse and keyboard."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.ask(method, self._session, **params)

    def go(self, url: str) -> None:
        self.ask("Page.navigate", url=url)
        self.until(f"document.readyState === 'complete' && location.href.startsWith({json.dumps(url)})")

    def js(self, expression: str) -> Any:
        """The value of an expression, awaited where it is a promise."""
        options = {"awaitPromise": True, "returnByValue": True, "userGesture": True, "allowUnsafeEvalBlockedByCSP": False}
        found = self.ask("Runtime.evaluate", expression=expression, **options)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, expression: str, timeout_s: float = 15) -> None:
        """Wait until the expression is true."""
        deadline = time.monotonic() + timeout_s
        while not self.js(f"Boolean({expression})"):
            assert time.monotonic() < deadline, f"never: {expression}\n{self.js('document.body.innerText')}"
            time.sleep(0.02)

    def text(self, selector: str) -> str:
        """Text of all that match and are shown, as a person sees it, a line each."""
        shown = f"[...document.querySelectorAll({json.dumps(selector)})].filter(e => e.checkVisibility())"
        return str(self.js(f"{shown}.map(e => e.innerText).join('\\n')"))

    def click(self, selector: str) -> None:
        """Press where the first that matches is seen; it must not be covered."""
        place = self.js(
            f"""(() => {{ const it = document.querySelector({json.dumps(selector)}); it.scrollIntoView({{block: "nearest"}});
            const box = it.getBoundingClientRect(), x = box.x + box.width / 2, y = box.y + box.height / 2;
            return it.contains(document.elementFromPoint(x, y)) ? [x, y] : null; }})()"""
        )
        assert place, f"{selector} can not be pressed"
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def write(self, text: str) -> None:
        """Type text where the focus is."""
        self.ask("Input.insertText", text=text)

    def press(self, key: str, modifiers: int = 0) -> None:
        code, text = KEYS[key]
        shared = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        self.ask("Input.dispatchKeyEvent", type="keyDown", text=text, **shared)
        self.ask("Input.dispatchKeyEvent", type="keyUp", **shared)

    def picture(self, path: Path) -> None:
        """A PNG of what is seen."""
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"]))

    def complaints(self) -> list[str]:
        """What the browser found wrong: faults of the page's code, and what its policy refused."""
        self.js("0")  # events that are older come before this answer
        own = [event for event in self._browser.events if event.get("sessionId") == self._session]
        thrown = [str(event["params"]["exceptionDetails"]) for event in own if event["method"] == "Runtime.exceptionThrown"]
        logged = [event["params"]["entry"] for event in own if event["method"] == "Log.entryAdded"]
        return thrown + [entry["text"] for entry in logged if entry["source"] != "network"]
