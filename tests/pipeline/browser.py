"""A real browser on the pages of a site, and the graph of its links."""

import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

HEIGHT = 900


def open_browser(width: int):
    """Chromium without a window; the test is skipped where it is not installed."""
    selenium = pytest.importorskip("selenium.webdriver")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no Chromium with its driver: install Debian's chromium and chromium-driver")
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    browser = selenium.Chrome(options, selenium.ChromeService(driver))
    browser.set_page_load_timeout(60)
    set_width(browser, width)
    return browser


def set_width(browser, width: int) -> None:
    """Show the page as wide as that: a headless window has at least 500 pixels, a phone fewer."""
    metrics = {"width": width, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


class Links(HTMLParser):
    """The targets of a page's links and pictures."""

    def __init__(self, path: Path):
        super().__init__()
        self.targets: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("href", "src") and value:
                self.targets.append(value)


def local_targets(page: Path) -> set[Path]:
    """The files of the same site that a page links to."""
    targets = set()
    for target in Links(page).targets:
        path = target.split("#")[0].split("?")[0]
        if path and ":" not in path:
            targets.add((page.parent / path).resolve())
    return targets
