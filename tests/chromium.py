"""Pages in a headless Chromium, where one is installed: a script is run in the page, and what it
returns comes back, with every error that the page met."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

__all__ = ["CHROMIUM", "drive", "screenshot"]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync --hide-scrollbars"
).split()
_WATCH = """<script>window.__met = [];
window.addEventListener("error", (e) => window.__met.push(String(e.message)));
const __error = console.error; console.error = (...x) => { window.__met.push(x.join(" ")); __error(...x); };
</script>"""


def _run(page: Path, folder: Path, width: int, *flags: str) -> str:
    assert CHROMIUM is not None
    profile = folder / "profile"
    shutil.rmtree(profile, ignore_errors=True)
    made = subprocess.run(
        [
            CHROMIUM,
            *_FLAGS,
            f"--user-data-dir={profile}",
            f"--window-size={width},1600",
            *flags,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return made.stdout


def drive(page: str, script: str, folder: Path, width: int = 1280) -> tuple[Any, list[str]]:
    """What the body of a function ``script`` returns in ``page``, and the errors that were met."""
    told = f"""<script>window.addEventListener("load", () => {{ let made;
try {{ made = (() => {{ {script} }})(); }} catch (e) {{ window.__met.push(String(e)); }}
const out = document.createElement("template"); out.id = "driven";
out.setAttribute("data-out", JSON.stringify([made ?? null, window.__met])); document.body.append(out); }});</script>"""
    text = page.replace("<head>", f"<head>{_WATCH}", 1).replace("</body>", f"{told}</body>", 1)
    file = folder / "driven.html"
    file.write_text(text, encoding="utf-8")
    dumped = _run(file, folder, width, "--virtual-time-budget=3000", "--dump-dom")
    found = re.search(r'id="driven" data-out="([^"]*)"', dumped)
    assert found is not None, dumped[-2000:]
    made, met = json.loads(html.unescape(found[1]))
    return made, met


def screenshot(page: str, folder: Path, width: int) -> bytes:
    """The page as a PNG of that width."""
    file, picture = folder / "shown.html", folder / f"{width}.png"
    file.write_text(page, encoding="utf-8")
    _run(file, folder, width, f"--screenshot={picture}")
    return picture.read_bytes()
