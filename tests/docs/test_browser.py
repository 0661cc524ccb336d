"""The built site in a headless Chromium: no error, every picture to be seen, nothing wider than a telephone."""

import functools
import http.server
import json
import queue
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

TELEPHONE, SCREEN = 390, 1280
VIEWS = [
    *((page, TELEPHONE) for page in ("index.html", "commands/score-vcf.html", "reference.html", "models.html")),
    ("streaming.html", TELEPHONE), ("streaming.html", SCREEN),
]  # fmt: skip
# A page of the same origin looks into each of the pages, at one width, and posts what it sees.
PROBE = """<!doctype html><title>probe</title><link rel="icon" href="data:,"><script>
const frame = document.createElement("iframe");
frame.style.cssText = "height:900px;border:0";
document.documentElement.append(frame);
function look(page, width) {
  const inner = frame.contentDocument;
  const pictures = [...inner.images].map(image => {
    const box = image.getBoundingClientRect();
    return {name: image.getAttribute("src"), loaded: image.complete && image.naturalWidth > 0,
            left: box.left, right: box.right, height: box.height};
  });
  const wide = [...inner.querySelectorAll("article *")].filter(one => {
    const scrolls = one.closest(".md-typeset__scrollwrap, pre, .highlight");
    return !scrolls && one.getBoundingClientRect().right > width + 1;
  }).map(one => one.outerHTML.slice(0, 120));
  return {page, width, scroll: inner.documentElement.scrollWidth, title: inner.title, pictures, wide,
          text: inner.querySelector("article").innerText.length};
}
(async () => {
  const found = [];
  for (const [page, width] of VIEWS) {
    frame.style.width = `${width}px`;
    const loaded = new Promise(done => frame.onload = done);
    frame.src = `${page}?${width}`;
    await loaded;
    await new Promise(done => setTimeout(done, 300));
    found.push(look(page, width));
  }
  fetch("found", {method: "POST", body: JSON.stringify(found)});
})().catch(error => fetch("found", {method: "POST", body: JSON.stringify(String(error))}));
</script>"""
found: queue.Queue[object] = queue.Queue()


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves the site, and takes what the probe found."""

    def log_message(self, format: str, *args: object) -> None: ...

    def do_POST(self) -> None:
        found.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()


@pytest.fixture
def address(built_site: Path, tmp_path: Path) -> Iterator[str]:
    """Where the site and the probe are served."""
    folder = tmp_path / "site"
    shutil.copytree(built_site, folder)
    (folder / "probe.html").write_text(PROBE.replace("of VIEWS", f"of {json.dumps(VIEWS)}"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_site_in_a_browser(address, tmp_path):
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next((path for name in names if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no Chromium here")
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0",
             "--window-size=1400,1000", f"--user-data-dir={tmp_path / 'profile'}", f"{address}/probe.html"],
            stdout=subprocess.DEVNULL, stderr=log,
        )  # fmt: skip
        try:
            seen = found.get(timeout=120)
        finally:
            process.terminate()
            process.wait(timeout=30)
    said = re.findall(r".*CONSOLE.*", (tmp_path / "log").read_text(errors="replace"))
    assert not said and isinstance(seen, list), (said, seen)
    assert [(one["page"], one["width"]) for one in seen] == VIEWS
    for one in seen:
        where = f"{one['page']} at {one['width']} px"
        assert one["scroll"] <= one["width"] and not one["wide"], f"{where}: {one['scroll']} px wide, {one['wide']}"
        assert one["text"] > 500 and "lrgenome" in one["title"], where
        for picture in one["pictures"]:
            assert picture["loaded"] and picture["height"] > 20, f"{where}: {picture}"
            assert 0 <= picture["left"] < picture["right"] <= one["width"], f"{where}: {picture}"
    drawings = {picture["name"] for one in seen if one["page"] == "streaming.html" for picture in one["pictures"]}
    assert drawings == {"sweeps.svg", "boundary.svg"}
