"""Pages opened in headless Chromium, where it is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from pathlib import Path

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


def chromium(page: Path, *flags: str, width: int = 1280) -> subprocess.CompletedProcess:
    """Open a page; what its console says is in the standard error."""
    command = [*_command(page.parent, width), *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def chromium_until(done: threading.Event, address: str, *flags: str, folder: Path, width: int = 1280) -> str:
    """Keep an address open until something is done, for five minutes at most; return what its console says."""
    said = folder / "said.txt"
    with open(said, "w") as file:
        browser = subprocess.Popen([*_command(folder, width), *flags, address], stdout=file, stderr=file)
        done.wait(300)
        browser.terminate()
        browser.wait(60)
    return said.read_text(encoding="utf-8", errors="replace")


def _command(folder: Path, width: int) -> list[str]:
    """Chromium without a window, with a profile of its own in a folder."""
    usual = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--window-size={width},900"]
    return [str(CHROMIUM), *usual, f"--user-data-dir={folder / 'profile'}"]


def requests(log: Path) -> list[str]:
    """What was asked for over a network; Chromium's own look for updates is not the page's doing."""
    asked = sorted(set(re.findall(r'"url":"([^"]+)"', log.read_text(encoding="utf-8", errors="replace"))))
    local = ("file:", "data:", "chrome", "about:")
    others = [url for url in asked if not url.startswith(local)]
    return [url for url in others if "fonts." in url or not ("google" in url or "gvt1" in url)]
