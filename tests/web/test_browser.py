"""The page of `overlayctl web` in a headless Chromium: what a person sees and does.  Run by `make test-web`.

Screenshots are left in build/web.
"""

import base64
import itertools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from lab import Lab, ping
from lab.cluster import Pair
from lab.patience import until
from lab.processes import ROOT, environment
from lab.web import Web, serving

UNPACKED = ROOT / "build" / "clients" / "chromium"
SCREENSHOTS = ROOT / "build" / "web"
PROGRAM = UNPACKED / "usr/lib/chromium/chromium-headless-shell"
LIBRARIES = ":".join(sorted({str(path.parent) for path in UNPACKED.glob("usr/lib/*-linux-gnu/**/*.so*")}))
PIPES = 'exec "$@" 3<&"$FROM" 4>&"$TO"'  # where Chromium expects the ends of --remote-debugging-pipe


class Browser:
    """A tab, driven by the DevTools protocol: JSON texts, each ended by a NUL."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read = write, read
        self._numbers = itertools.count(1)
        self._rest = b""
        self.complaints: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Page"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._call(method, self._session, **parameters)

    def _call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                piece = os.read(self._read, 1 << 16)
                assert piece, "the browser has ended"
                self._rest += piece
            text, _, self._rest = self._rest.partition(b"\0")
            answer = json.loads(text)
            if answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.complaints.append(json.dumps(answer["params"]))
            if answer.get("id") == number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def js(self, expression: str) -> Any:
        """What an expression of the page's script gives."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def text(self, selector: str = "body") -> str:
        return str(self.js(f"document.querySelector({selector!r})?.innerText ?? ''"))

    def shoot(self, name: str, width: int, height: int, *, dark: bool = False) -> None:
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        (SCREENSHOTS / f"{name}.png").write_bytes(base64.b64decode(data))


@contextmanager
def browsing(web: Web) -> Iterator[Browser]:
    (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
    profile = tempfile.mkdtemp()
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    argv = [str(PROGRAM), *options, "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
    env = environment(web.node.prefix) | {"FROM": str(theirs_in), "TO": str(theirs_out), "HOME": profile}
    command = web.node.command(["env", f"LD_LIBRARY_PATH={LIBRARIES}", "bash", "-c", PIPES, "bash", *argv])
    program = subprocess.Popen(command, env=env, pass_fds=(theirs_in, theirs_out), stderr=subprocess.DEVNULL)
    try:
        for end in (theirs_in, theirs_out):
            os.close(end)
        yield Browser(ours_out, ours_in)
    finally:
        program.kill()
        program.wait()
        for end in (ours_in, ours_out):
            os.close(end)
        shutil.rmtree(profile, ignore_errors=True)


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with Lab() as lab:
        yield Pair(lab)


@pytest.fixture(scope="module")
def browser(pair: Pair) -> Iterator[Browser]:
    pair.alpha.introduce(pair.beta, name="<img src=x onerror=document.title='bad'>")
    pair.alpha.request("register_dns", name="db", ip=pair.db_address)
    with serving(pair.alpha.node) as web, browsing(web) as browser:
        browser.call("Page.navigate", url=web.address)
        until(lambda: "all is well" in browser.text("#verdict"), lambda: f"{browser.text()}\n{browser.complaints}")
        yield browser


def test_the_node_is_shown(pair: Pair, browser: Browser) -> None:
    until(lambda: "all is as it should be" in browser.text("#findings") or "hint" in browser.text("#findings"))
    assert "10.200.1.1" in browser.text("#node")
    assert "onerror=" in browser.text("#peers"), "a name is text"
    assert browser.js("document.title") == "overlayd"
    assert "direct" in browser.text("#peers") and "new" in browser.text("#peers"), "nothing was sent yet"
    ping(pair.web, pair.db_address)
    until(lambda: "answers" in browser.text("#peers"), lambda: browser.text("#peers"))
    assert f"pid:{pair.web.pid}" in browser.text("#services") and pair.web_address in browser.text("#services")
    assert "1 of 61" in browser.text("#pools") and pair.db_address in browser.text("#names")
    browser.shoot("node", 1400, 1000)
    browser.shoot("narrow", 420, 1400)
    assert browser.complaints == []


def walk(browser: Browser, a: str, b: str) -> str:
    """Fill in the form, send it, and wait for the way."""
    fields = "document.querySelector('#why').elements"
    browser.js("document.getElementById('way').replaceChildren()")
    browser.js(f"{fields}.a.value = {a!r}; {fields}.b.value = {b!r}; document.querySelector('#why').requestSubmit()")
    until(lambda: browser.text("#way"), lambda: browser.text("#walking"))
    return browser.text("#way")


def test_a_way_is_drawn_and_its_first_broken_hop_named(pair: Pair, browser: Browser) -> None:
    assert "all is well on this way" in walk(browser, str(pair.web.pid), "db")
    numbers = browser.js("[...document.querySelectorAll('#way li')].map((each) => each.dataset.number).join()")
    assert numbers.startswith("1,2,3,4")
    browser.shoot("way", 1400, 1000)
    said = walk(browser, str(pair.web.pid), "10.200.250.1")
    assert "broken at hop" in said and "remedy: " in said and "no peer has 10.200.250.1" in said
    browser.shoot("way-broken", 1400, 1000, dark=True)
    assert browser.complaints == []


def test_events_and_findings_come_by_themselves(pair: Pair, browser: Browser) -> None:
    node = pair.alpha.node
    pair.alpha.request("register_dns", name="fresh", ip=pair.web_address)
    until(lambda: "name fresh set" in browser.text("#events"))
    until(lambda: "fresh" in browser.text("#names"), "the tables follow")
    for command in ("link add lan type bridge", "address add 10.200.77.1/24 dev lan", "link set lan up"):
        node.run(["ip", *command.split()])
    until(lambda: "network-overlap" in browser.text("#findings"), lambda: browser.text("#events"))
    until(lambda: "1 finding" in browser.text("#verdict"))
    browser.shoot("finding", 1400, 1000)
    node.run(["ip", "link", "del", "lan"])
    until(lambda: "network-overlap" not in browser.text("#findings"))
    assert browser.complaints == []


def test_a_daemon_that_is_away_is_said_to_be_and_followed_when_it_is_back(pair: Pair, browser: Browser) -> None:
    pair.alpha.node.stop()
    until(lambda: "what is shown may be old" in browser.text("#away"))
    assert pair.web_address in browser.text("#services")
    pair.alpha.start()
    until(lambda: not browser.text("#away"))
    pair.alpha.request("register_dns", name="again", ip=pair.web_address)
    until(lambda: "name again set" in browser.text("#events"))


def test_without_the_token_it_shows_nothing(pair: Pair) -> None:
    with serving(pair.alpha.node) as web, browsing(web) as browser:
        browser.call("Page.navigate", url=web.address.partition("#")[0])
        until(lambda: "with all that follows the #" in browser.text("#away"))
        assert pair.web_address not in browser.text()
