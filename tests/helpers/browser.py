"""A real browser without a window: opens a page at a given width and evaluates a script on it."""

import json
import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# A window is never narrower than some 500 pixels, so the page lies in a frame of the wanted width.
_HARNESS = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe id="frame" style="width:{width}px;height:{height}px;border:0;display:block"></iframe>
<pre id="result"></pre>
<script>
const frame = document.getElementById("frame");
frame.onload = () => {{
  const page = frame.contentDocument, view = frame.contentWindow;
  let found;
  try {{ found = ((page, view) => {{ {script} }})(page, view); }} catch (error) {{ found = {{error: String(error)}}; }}
  document.getElementById("result").textContent = JSON.stringify(found);
}};
frame.srcdoc = {content};
</script>"""


def find_browser() -> str:
    """The browser's command; skips the test where there is none, unless REQUIRE_BROWSER=1."""
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if not found and os.environ.get("REQUIRE_BROWSER") == "1":
        pytest.fail("no browser: apt-get install chromium")
    if not found:
        pytest.skip("needs a browser: apt-get install chromium")
    return found


def look(page: Path, script: str, folder: Path, width: int, height: int = 900, *, dark: bool = False) -> Any:
    """What `script` returns as JSON.

    Args:
        script: body of a function of `page` (the document) and `view` (its window).
        folder: for the browser's files.
        width: of the page, pixels.
        dark: whether the reader prefers dark pages.
    """
    content = json.dumps(page.read_text(encoding="utf-8")).replace("</", "<\\/")
    folder.mkdir(exist_ok=True)
    harness = folder / f"look-{width}.html"
    harness.write_text(_HARNESS.format(width=width, height=height, script=script, content=content), encoding="utf-8")
    command = [
        find_browser(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        f"--user-data-dir={folder / 'profile'}", f"--window-size={max(width, 600)},{height}",
        "--virtual-time-budget=10000", f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--dump-dom",
        harness.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    result = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
    assert result and result[1], f"the browser returned nothing: {done.stderr[-2000:]}"
    found = json.loads(unescape(result[1]))
    assert not (isinstance(found, dict) and "error" in found), found
    return found
