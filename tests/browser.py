"""A headless Chromium, driven through its own protocol; no package is needed for it."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from tornado.httpclient import AsyncHTTPClient
from tornado.websocket import WebSocketClientConnection, websocket_connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def chromium() -> str | None:
    """Where one is installed."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


PLACE = """
function (text) {
  const look = root => {
    for (const one of root.querySelectorAll("*")) {
      const found = one.shadowRoot && look(one.shadowRoot);
      if (found) return found;
      if (one.childElementCount == 0 && one.textContent.trim() == text) {
        const { x, y, width, height } = one.getBoundingClientRect();
        if (width && height) return [x + width / 2, y + height / 2];
      }
    }
  };
  return look(document);
}
"""
"""Finds the middle of what has a text; Bokeh puts everything into shadow roots."""


class Browser:
    """One page of a headless browser.

    Attributes
    ----------
    problems : list of str
        Errors that the page wrote to its console, and exceptions that nothing caught.
    """

    def __init__(self, width: int = 1280, height: int = 800) -> None:
        self.size = (width, height)
        self.problems: list[str] = []
        self._number = 0
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._socket: WebSocketClientConnection
        self._reading: asyncio.Task[None]

    async def __aenter__(self) -> Browser:
        path = chromium()
        assert path is not None
        profile = Path(self._profile.name)
        width, height = self.size
        self._process = subprocess.Popen(
            [
                path,
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
                "--disable-dev-shm-usage",
                "--remote-debugging-port=0",
                "--mute-audio",
                f"--user-data-dir={profile}",
                f"--window-size={width},{height}",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(profile)},
        )
        file = profile / "DevToolsActivePort"
        for _ in range(300):
            if file.exists() and file.read_text().count("\n"):
                break
            await asyncio.sleep(0.1)
        port = file.read_text().split("\n")[0]
        answer = await AsyncHTTPClient().fetch(f"http://127.0.0.1:{port}/json")
        page = next(one for one in json.loads(answer.body) if one["type"] == "page")
        self._socket = await websocket_connect(
            page["webSocketDebuggerUrl"], max_message_size=1 << 28
        )
        self._reading = asyncio.ensure_future(self._read())
        for domain in ("Page", "Runtime", "Log"):
            await self.do(f"{domain}.enable")
        await self.do(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._socket.close()
        await asyncio.gather(self._reading, return_exceptions=True)
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._profile.cleanup()

    async def _read(self) -> None:
        while (text := await self._socket.read_message()) is not None:
            message = json.loads(text)
            if "id" in message:
                self._answers.pop(message["id"]).set_result(message)
            elif message["method"] == "Runtime.exceptionThrown":
                self.problems.append(json.dumps(message["params"]["exceptionDetails"])[:1000])
            elif message["method"] == "Log.entryAdded":
                entry = message["params"]["entry"]
                if entry["level"] == "error":
                    self.problems.append(f"{entry['text']} {entry.get('url', '')}")

    async def do(self, method: str, **params: Any) -> Any:
        """One command of the protocol."""
        self._number += 1
        answer = self._answers[self._number] = asyncio.get_running_loop().create_future()
        text = json.dumps({"id": self._number, "method": method, "params": params})
        await self._socket.write_message(text)
        result = await asyncio.wait_for(answer, 20)
        assert "error" not in result, (method, result["error"])
        return result["result"]

    async def theme(self, dark: bool) -> None:
        """Which theme the browser asks pages for."""
        value = "dark" if dark else "light"
        feature = {"name": "prefers-color-scheme", "value": value}
        await self.do("Emulation.setEmulatedMedia", features=[feature])

    async def go(self, url: str) -> None:
        await self.do("Page.navigate", url=url)

    async def js(self, code: str) -> Any:
        """The value of an expression on the page."""
        result = await self.do("Runtime.evaluate", expression=code, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    async def until(self, code: str, seconds: float = 20) -> Any:
        """Wait until an expression is true."""
        end = asyncio.get_running_loop().time() + seconds
        while not (found := await self.js(code)):
            if asyncio.get_running_loop().time() > end:
                raise AssertionError(f"not so after {seconds} s: {code}; {self.problems}")
            await asyncio.sleep(0.1)
        return found

    async def click(self, text: str) -> None:
        """Click on what has exactly this text, when it is there."""
        x, y = await self.until(f"({PLACE})({json.dumps(text)})")
        for kind in ("mousePressed", "mouseReleased"):
            await self.do(
                "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1
            )

    async def screenshot(self, file: Path) -> None:
        """What is to be seen, as PNG."""
        shot = await self.do("Page.captureScreenshot", format="png")
        file.write_bytes(base64.b64decode(shot["data"]))
