"""Headless Chromium through chromedriver's WebDriver protocol, with nothing but the standard library."""

import base64
import json
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
    "--mute-audio",
]


class Browser:
    """One browser session with an empty profile; use as a context manager."""

    def __init__(self, *, width: int = 1280, height: int = 1000) -> None:
        chromedriver = shutil.which("chromedriver")
        assert chromedriver, "chromedriver is missing; run: apt-get install -y chromium chromium-driver"
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._driver = subprocess.Popen(
            [chromedriver, f"--port={port}", "--log-level=SEVERE"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._root = f"http://127.0.0.1:{port}"
        self._session = ""
        try:
            self._wait_until_ready()
            arguments = [*FLAGS, f"--user-data-dir={self._profile.name}", f"--window-size={width},{height}"]
            capabilities = {
                "browserName": "chrome",
                "goog:chromeOptions": {"args": arguments},
                "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
                "timeouts": {"script": 60_000, "pageLoad": 60_000},
            }
            answer = self._call("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
            self._session = f"/session/{answer['sessionId']}"
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the session and the driver, and delete the profile."""
        if self._session:
            self._call("DELETE", self._session)
            self._session = ""
        self._driver.terminate()
        self._driver.wait(timeout=20)
        self._profile.cleanup()

    def open(self, path: Path) -> None:
        """Load a page from the disk and wait until it is loaded."""
        self._call("POST", f"{self._session}/url", {"url": path.absolute().as_uri()})

    def run(self, script: str) -> Any:
        """Value of the body of an async function, such as `return await f()`."""
        body = (
            "const done = arguments[arguments.length - 1];"
            f"(async () => {{ {script} }})().then(v => done({{value: v}}), e => done({{error: String(e)}}));"
        )
        answer = self._call("POST", f"{self._session}/execute/async", {"script": body, "args": []})
        assert "error" not in answer, answer["error"]
        return answer.get("value")

    def console(self) -> list[dict[str, Any]]:
        """Console entries since the last call, of every level."""
        return self._call("POST", f"{self._session}/se/log", {"type": "browser"})

    def requests(self) -> list[str]:
        """Addresses requested since the last call."""
        entries = self._call("POST", f"{self._session}/se/log", {"type": "performance"})
        messages = [json.loads(entry["message"])["message"] for entry in entries]
        sent = [message for message in messages if message["method"] == "Network.requestWillBeSent"]
        return [message["params"]["request"]["url"] for message in sent]

    def emulate(self, *, width: int, height: int, dark: bool) -> None:
        """Give the page another size and colour scheme."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._command("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._command("Emulation.setEmulatedMedia", {"features": [scheme]})

    def screenshot(self, path: Path) -> None:
        """Save what is seen as a PNG."""
        path.write_bytes(base64.b64decode(self._call("GET", f"{self._session}/screenshot")))

    def _command(self, name: str, parameters: dict[str, Any]) -> Any:
        return self._call("POST", f"{self._session}/goog/cdp/execute", {"cmd": name, "params": parameters})

    def _wait_until_ready(self) -> None:
        for _ in range(200):
            try:
                if self._call("GET", "/status")["ready"]:
                    return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        raise TimeoutError("chromedriver did not answer within 20 s")

    def _call(self, method: str, path: str, content: dict[str, Any] | None = None) -> Any:
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self._root + path, data=data, method=method)
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{method} {path}: {error.read().decode(errors='replace')[:500]}") from error
