"""Screenshots of the page for the docs: ``python -m tests.view.shots ADDRESS docs/images``.

ADDRESS is what ``iclkit view`` prints. Needs what the browser tests need.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.browser import look, start

QUERY = "still no parcel and nobody can tell me why"
TOP = "window.scrollTo(0, document.querySelector(arguments[0]).getBoundingClientRect().top + scrollY - 16)"
SHOTS = {
    "picks": ("body", 1200, 1280, "light"),
    "map": ("#map", 1200, 890, "light"),
    "pool": ("#pool", 1200, 760, "light"),
}


def ready(browser: Any, script: str) -> None:
    end = time.monotonic() + 60
    while not browser.execute_script(script):
        assert time.monotonic() < end, script
        time.sleep(0.1)


def main(address: str, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as profile:
        browser = start(Path(profile))
        look(browser, width=1200)
        browser.get(address)
        ready(browser, "return document.documentElement.dataset.ready")
        browser.find_element("css selector", "#query textarea").send_keys(QUERY)
        for _ in range(2):  # the second time says how long it takes once fitted
            browser.find_element("id", "go").click()
            ready(browser, "return document.querySelector('.picks li') && !document.querySelector('#go').disabled")
        for name, (part, width, height, theme) in SHOTS.items():
            look(browser, width=width, height=height, theme=theme)
            time.sleep(0.5)  # the map is drawn when the browser has measured its place
            browser.execute_script(TOP, part)
            time.sleep(0.2)
            browser.save_screenshot(str(folder / f"view-{name}.png"))
        browser.quit()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
