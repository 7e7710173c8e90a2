"""Pages opened in headless Chromium, where it is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


def chromium(page: Path, *flags: str, width: int = 1280) -> subprocess.CompletedProcess:
    """Open a page; what its console says is in the standard error."""
    usual = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--window-size={width},900"]
    profile = f"--user-data-dir={page.parent / 'profile'}"
    command = [str(CHROMIUM), *usual, profile, *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def requests(log: Path) -> list[str]:
    """What was asked for over a network; Chromium's own look for updates is not the page's doing."""
    asked = sorted(set(re.findall(r'"url":"([^"]+)"', log.read_text(encoding="utf-8", errors="replace"))))
    local = ("file:", "data:", "chrome", "about:")
    return [url for url in asked if not url.startswith(local) and "google" not in url and "gvt1" not in url]
