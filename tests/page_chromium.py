#!/usr/bin/env python3
"""Lays the report's page out in headless Chromium, at three widths and in both themes.

At none of the widths may anything but tables in their own scrolling box reach over the edge, in neither theme may text be too
faint to read, no image may be broken, and the console must stay empty. The program makes the pages, from the digits.

Usage: page_chromium.py fqvit-opt
Exit status 0 and a line that says so where there is no Chromium.
"""
import html
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
DIGITS = ROOT / "testdata" / "digits"
WIDTHS = (390, 820, 1280)

#: What the digits are called; some names are as long as those of ImageNet.
NAMES = ("zero", "one", "two, as most people write it", "three", "four", "five", "six", "seven", "eight", "nine or g")

#: Runs in the page that holds the report in a frame of one width; the result becomes the title.
LOOK = """
const frame = document.getElementById("page");
frame.onload = () => {
  const d = frame.contentDocument, w = d.documentElement.clientWidth;
  const all = [...d.querySelectorAll("main *")];
  const over = all.filter(e => !e.closest(".wide") && e.getBoundingClientRect().right > w + 1);
  const rgb = c => c.match(/[\\d.]+/g).map(Number);
  const light = c => c.slice(0, 3).map(x => (x /= 255) <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4)
    .reduce((a, x, i) => a + x * [.2126, .7152, .0722][i], 0);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const faint = all.filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())).filter(e => {
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))];
    return (Math.max(a, b) + .05) / (Math.min(a, b) + .05) < 4.5;
  });
  const name = e => `${e.tagName}.${e.className.baseVal ?? e.className} ${e.textContent.trim().slice(0, 30)}`;
  const images = [...d.images];
  document.title = JSON.stringify({
    wide: d.documentElement.scrollWidth - w,
    over: over.slice(0, 5).map(name),
    faint: faint.slice(0, 5).map(name),
    broken: images.filter(i => !i.naturalWidth).length,
    images: images.length,
    plots: d.querySelectorAll("svg.bins").length,
    dark: light(rgb(getComputedStyle(d.body).backgroundColor)) < .2,
  });
};
"""


def chromium():
    """The browser's program, or None."""
    return next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)


def seen(browser, page, width, dark, folder):
    """What a page looks like at a width; and what its console said."""
    frame = f'<iframe id="page" style="width:{width}px;height:60000px;border:0" srcdoc="{html.escape(page)}"></iframe>'
    file = folder / "frame.html"
    file.write_text(f"<!doctype html><meta charset=utf-8><body>{frame}<script>{LOOK}</script></body>", encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--hide-scrollbars", "--enable-logging=stderr", "--virtual-time-budget=5000"]
    # Headless Chromium has no theme of the system; it takes this for one.
    flags += ["--force-dark-mode"] if dark else []
    done = subprocess.run([browser, *flags, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=120)
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    if not title:
        sys.exit(f"Chromium laid nothing out: {done.stderr[-2000:]}")
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(title[1])), console


def made(program, folder):
    """Pages of the kinds there are: models that disagree on some samples, a missed threshold, no data, a comparison."""
    digits, calib, held = (str(DIGITS / n) for n in ("digits_vit.onnx", "digits_calib.npz", "digits_eval.npz"))
    out = str(folder / "q.onnx")
    names = folder / "names.txt"
    names.write_text("\n".join(NAMES), encoding="utf-8")
    beside = ["--judge", "onnxruntime", "--python", sys.executable, "--baseline", "--class-names", str(names)]
    runs = {
        "compiled": [digits, "-o", out, "--calibrate", calib, "--verify", held, *beside],
        "integer": [digits, "-o", str(folder / "i.onnx"), "--calibrate", calib, "--target", "integer", "--min-sqnr", "90"],
        "made up": [digits, "-o", str(folder / "s.onnx"), "--samples", "16", "--recipe", "linear-w8a8"],
        "compared": ["verify", digits, out, "--calibrate", held],
    }
    for name, run in runs.items():
        page = folder / f"{name}.html"
        done = subprocess.run([program, *run, "--html", str(page), "--quiet"], capture_output=True, text=True)
        if done.returncode not in (0, 2):
            sys.exit(f"{' '.join(run)}: {done.stderr}")
        yield name, page.read_text(encoding="utf-8")


def main():
    browser = chromium()
    if not browser:
        print("no Chromium here: the page was not laid out")
        return
    faults = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for kind, page in made(sys.argv[1], folder):
            for width in WIDTHS:
                for dark in (False, True):
                    found, console = seen(browser, page, width, dark, folder)
                    where = f"{kind}, {width} px, {'dark' if dark else 'light'}"
                    bad = {k: found[k] for k in ("wide", "over", "faint", "broken") if found[k]}
                    if bad or console or found["dark"] != dark:
                        faults.append(f"{where}: {bad} {console} {'' if found['dark'] == dark else 'another theme'}")
            plots, images = {"compiled": (6, 1), "integer": (6, 0), "compared": (0, 1)}.get(kind, (0, 0))
            wanted = ("Beside the default of onnxruntime", *(n for n in NAMES if n in page)) if kind == "compiled" else ()
            if not all(w in page for w in wanted) or (kind == "compiled" and len(wanted) < 2):
                faults.append(f"{kind}: the page lacks the other runtime's own result, or names of classes")
            if found["plots"] < plots or found["images"] < images:
                faults.append(f"{kind}: {found['plots']} histograms and {found['images']} pictures")
    if faults:
        sys.exit("\n".join(faults))
    print(f"pages fit {', '.join(map(str, WIDTHS))} px in both themes")


if __name__ == "__main__":
    main()
