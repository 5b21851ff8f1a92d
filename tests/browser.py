"""A real browser for pages, or a skip that says what is missing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
         "--disable-background-networking", "--disable-component-update", "--disable-sync")  # fmt: skip


def start(profile: Path) -> Any:
    """Chromium with a fresh profile and no network of its own, driven by selenium."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium: pip install iclkit[browser]")
    from selenium.webdriver.chrome.service import Service

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=Service(driver))


def look(browser: Any, *, width: int = 1280, height: int = 1000, theme: str = "light") -> None:
    """Set the window's size and the theme that the system asks for; nothing glides, so that clicks hit."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    wanted = {"prefers-color-scheme": theme, "prefers-reduced-motion": "reduce"}
    features = [{"name": name, "value": value} for name, value in wanted.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


CONTRAST = """
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const rgb = (c) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data]; };
const light = ([r, g, b]) => { const f = [r, g, b].map(v => { v /= 255; return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; }); return .2126 * f[0] + .7152 * f[1] + .0722 * f[2]; };
const behind = (el) => { for (let e = el; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c[3] === 255) return c; } return [255, 255, 255, 255]; };
const bad = [];
for (const el of document.querySelectorAll("body *")) {
  if (![...el.childNodes].some(n => n.nodeType === 3 && n.data.trim()) || !el.getClientRects().length || el.closest("script, style, :disabled")) continue;
  const style = getComputedStyle(el), front = rgb(el.closest("svg") ? style.fill : style.color);
  const [a, b] = [light(front), light(behind(el))].sort((x, y) => y - x), ratio = (a + .05) / (b + .05);
  if (ratio < 4.5) bad.push(`${el.tagName}.${el.getAttribute("class")} ${ratio.toFixed(2)}`);
}
return [...new Set(bad)];
"""  # noqa: E501
"""Texts that stand out too little from their ground (WCAG AA: 4.5 to 1)."""

UNNAMED = """
return [...document.querySelectorAll("select, input, textarea, button, a, [role=region], [tabindex='0']")].filter(e =>
  e.checkVisibility() && !(e.labels?.length || e.textContent.trim() || e.getAttribute("aria-label"))).map(e => e.outerHTML.slice(0, 90));
"""  # noqa: E501
"""Controls without a name."""
