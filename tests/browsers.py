"""A real browser for tests: Debian's chromium, or any other that selenium finds, without a head."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

AXE = Path(__file__).parent / "vendor" / "axe-core" / "axe.min.js"
# What axe calls serious keeps somebody from reading or doing something.
FAULTS = ("serious", "critical")


class Browser:
    """One window, and what tests do in it."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver, self.address = driver, address
        self.seen = ""  # the document that was looked at last

    def open(self, path: str) -> None:
        """Go to a page of ours."""
        self.driver.get(self.address + path)
        self.seen = self.one("html").id

    def all(self, selector: str) -> list[Any]:
        """The elements that a CSS selector finds."""
        found: list[Any] = self.driver.find_elements("css selector", selector)
        return found

    def one(self, selector: str) -> Any:
        """The first of them."""
        return self.driver.find_element("css selector", selector)

    def run(self, script: str, *values: Any) -> Any:
        """What a script gives."""
        return self.driver.execute_script(script, *values)

    def follow(self, selector: str) -> None:
        """Click what leads to another page of ours, and wait until that is there."""
        before = self.one("html").id
        self.one(selector).click()
        self._waiting().until(
            lambda _: self.one("html").id != before
            and self.run("return document.readyState") == "complete"
        )
        self.seen = self.one("html").id

    def press(self, *keys: str) -> None:
        """Press keys where the focus is."""
        from selenium.webdriver import ActionChains

        chain = ActionChains(self.driver)
        for key in keys:
            chain = chain.send_keys(key)
        chain.perform()

    def press_with_shift(self, key: str) -> None:
        """Press a key while shift is held."""
        from selenium.webdriver import ActionChains, Keys

        ActionChains(self.driver).key_down(Keys.SHIFT).send_keys(key).key_up(Keys.SHIFT).perform()

    def text(self) -> str:
        """All that can be read."""
        return str(self.one("body").text)

    def until_it_reads(self, words: str) -> None:
        """Wait for a page on which this can be read."""
        self._waiting().until(lambda _: words in self.text())

    def _waiting(self) -> Any:
        from selenium.common import WebDriverException
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, 60, ignored_exceptions=[WebDriverException])

    def until_said(self) -> str:
        """What the page says that comes after an act; what this one says was said before."""

        def told(_: object) -> Any:
            document = self.one("html").id
            return document != self.seen and self.all(".said, [role=alert]")

        (said, *_) = self._waiting().until(told)
        self.seen = self.one("html").id
        return str(said.text)

    def use(self, scheme: str = "light", width: int = 1280, height: int = 900) -> None:
        """Light or dark, and how wide the window is."""
        self.driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
        )
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )

    def picture(self, path: Path) -> None:
        """Keep the whole page as a PNG."""
        import base64

        size = self.driver.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
        shot = self.driver.execute_cdp_cmd(
            "Page.captureScreenshot",
            {"captureBeyondViewport": True, "clip": {
                "x": 0, "y": 0, "scale": 1, "width": size["width"],
                "height": min(size["height"], 4000)}},
        )  # fmt: skip
        path.write_bytes(base64.b64decode(shot["data"]))

    def complaints(self) -> list[str]:
        """What the browser has complained of: scripts that failed, what the policy refused."""
        return [one["message"] for one in self.driver.get_log("browser")]

    def faults(self) -> list[str]:
        """What axe finds on this page that is serious, each with where it is."""
        # By the protocol of debuggers: the page's own policy lets no foreign script in.
        self.driver.execute_cdp_cmd("Runtime.evaluate", {"expression": AXE.read_text("utf-8")})
        answer = self.driver.execute_cdp_cmd(
            "Runtime.evaluate",
            {"expression": "axe.run().then((found) => JSON.stringify(found.violations))",
             "awaitPromise": True},
        )["result"]["value"]  # fmt: skip
        return [
            f"{one['id']}: {one['help']}: " + ", ".join(
                node["html"][:160] for node in one["nodes"][:3])
            for one in json.loads(answer) if one["impact"] in FAULTS
        ]  # fmt: skip


@contextmanager
def browsing(address: str) -> Iterator[Browser]:
    """A browser for the block; skips the test where there is none."""
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver_path = shutil.which("chromedriver")
    if chromium is None or driver_path is None:
        pytest.skip("no browser: `apt-get install chromium chromium-driver`")
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    for one in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                "--force-color-profile=srgb", "--hide-scrollbars"):  # fmt: skip
        options.add_argument(one)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = selenium.Chrome(options=options, service=selenium.ChromeService(driver_path))
    try:
        driver.set_page_load_timeout(60)
        yield Browser(driver, address)
    finally:
        driver.quit()
