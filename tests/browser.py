"""Look at a page in headless Chromium."""

import shutil
import subprocess
from pathlib import Path

#: The browser of this machine, None when there is none.
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
#: Counts the pictures that the browser could show, when the page is complete.
COUNT_PICTURES = """<script>addEventListener("load", () => {
  const shown = [...document.images].filter(image => image.complete && image.naturalWidth > 100);
  document.title = `${shown.length} of ${document.images.length} pictures, ${document.body.scrollWidth} wide`;
});</script>"""


def look_at(page: str, folder: Path) -> tuple[str, Path]:
    """Give the document as the browser has it, and a picture of it."""
    copy, picture = folder / "copy.html", folder / "page.png"
    copy.write_text(page.replace("</body>", COUNT_PICTURES + "</body>"))
    settings = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1200,2400"]
    settings += [f"--user-data-dir={folder / 'browser'}", "--virtual-time-budget=5000"]
    results = []
    for action in ("--dump-dom", f"--screenshot={picture}"):
        command = [CHROMIUM, *settings, action, copy.as_uri()]
        results.append(subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout)
    return results[0], picture
