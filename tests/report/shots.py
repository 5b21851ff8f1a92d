"""Screenshots of a page for the docs: ``python -m tests.report.shots board.html docs/images``.

Writes board-light.png, -dark, -task, -query and -phone. Needs what the browser tests need.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from tests.browser import look, start

INCONCLUSIVE = """const d = document.querySelector("details.drill"); d.open = true;
const ready = () => d.querySelector("button.link") ? d.querySelector("button.link").click() : setTimeout(ready, 20);
ready();"""
TASK = "document.querySelector('#tasks section').scrollIntoView()"
SHOTS = {
    "light": (1200, 900, "light", ""),
    "dark": (1200, 900, "dark", ""),
    "task": (1200, 1000, "light", TASK),
    "query": (1000, 900, "light", INCONCLUSIVE),
    "phone": (390, 844, "light", ""),
}


def main(page: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        browser = start(Path(profile))
        for name, (width, height, theme, script) in SHOTS.items():
            look(browser, width=width, height=height, theme=theme)
            browser.get(page.resolve().as_uri())
            browser.execute_script(script)
            time.sleep(0.5)  # figures are drawn when the browser has measured their places
            browser.save_screenshot(str(folder / f"board-{name}.png"))
        browser.quit()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
