"""Make docs/images/web.png: drive the running web page in headless chromium and take a screenshot of real verdicts.

    python tools/screenshots.py [--model FILE] [--output FILE] [--width PX]

Needs chromium and playwright (requirements-dev.txt). The two images come from scikit-learn's sample photographs
(china.jpg by danielbuechele and flower.jpg by vultilion, both CC BY 2.0): one is redrawn in patches of color, as a
stand-in for a generated image; the other is the photograph itself.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageEnhance, ImageFilter

ROOT = Path(__file__).resolve().parents[1]
MAX_BYTES = 300_000
_HEIGHT_PX = 800  # of the window; the screenshot is as high as the page
_PATIENCE_MS = 120_000


def main() -> int:
    """Write the screenshot and print its size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "pretrained.h5", metavar="FILE")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images" / "web.png", metavar="FILE")
    parser.add_argument("--width", type=int, default=1000, metavar="PX", help="of the window; 390: a phone")
    parser.add_argument("--dark", action="store_true", help="dark mode")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running_page(options.model) as url:
        screenshot = take_screenshot(url, make_samples(Path(folder)), options.width, options.dark)
    content = compress(screenshot)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_bytes(content)
    print(f"{options.output}: {len(content) / 1000:.0f} kB")
    return 0


def make_samples(folder: Path) -> list[Path]:
    """Write the two images and return their paths."""
    from sklearn.datasets import load_sample_images

    china, flower = (Image.fromarray(pixels) for pixels in load_sample_images().images)
    square = china.crop((107, 0, 534, 427)).resize((120, 120), Image.Resampling.LANCZOS)
    redrawn = square.resize((480, 480), Image.Resampling.BICUBIC).filter(ImageFilter.ModeFilter(5))
    ImageEnhance.Color(redrawn.filter(ImageFilter.SMOOTH)).enhance(1.8).save(folder / "temple.png")
    flower.save(folder / "flower.jpg", quality=92)
    return [folder / "temple.png", folder / "flower.jpg"]


@contextmanager
def running_page(model: Path) -> Iterator[str]:
    """Run `python -m fakereal web` on a free port and yield its URL."""
    command = [sys.executable, "-m", "fakereal", "web", "--model", str(model), "--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        told = ""
        for line in process.stderr:
            told += line
            if found := re.search(r"http://[\d.]+:\d+/", line):
                yield found[0]
                return
        raise SystemExit(f"the server did not start:\n{told}")
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()


def take_screenshot(url: str, images: list[Path], width_px: int, dark: bool) -> bytes:
    """Check the images on the page, with the re-saved copies, and return a PNG of the whole page."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        try:
            page = browser.new_page(
                viewport={"width": width_px, "height": _HEIGHT_PX}, color_scheme="dark" if dark else "light"
            )
            page.goto(url)
            page.get_by_role("checkbox").check()
            page.set_input_files("#files", images)
            page.locator("#status", has_text=re.compile("^Done")).wait_for(timeout=_PATIENCE_MS)
            return page.screenshot(full_page=True)
        finally:
            browser.close()


def compress(png: bytes) -> bytes:
    """Return a PNG of at most MAX_BYTES, with as many bits per color as fit.

    Raises:
        SystemExit: even 4 bits do not fit.
    """
    image = Image.open(io.BytesIO(png)).convert("RGB")
    for bits in (8, 7, 6, 5, 4):
        content = io.BytesIO()
        # The upper bits also fill the lower ones, so that white stays white.
        image.point([value >> (8 - bits) << (8 - bits) | value >> bits for value in range(256)] * 3).save(
            content, "PNG", optimize=True
        )
        if len(content.getvalue()) <= MAX_BYTES:
            return content.getvalue()
    raise SystemExit(f"expected at most {MAX_BYTES / 1000:.0f} kB, got {len(content.getvalue()) / 1000:.0f} kB")


if __name__ == "__main__":
    sys.exit(main())
