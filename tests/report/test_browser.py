"""The page in a real browser: it sorts, its images load, nothing complains, nothing overflows."""

import json
import re
import shutil
import subprocess

import pytest

from espnet_ext.bin.asr_compare import main

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")

# clicks on a column's title and says what a reader would see
PROBE = """
<script>
addEventListener('load', async () => {
  const found = {errors: window.errors, orders: []};
  const table = document.querySelector('table');
  const names = () => [...table.tBodies[0].rows].map(row => row.cells[COLUMN].textContent);
  found.orders.push(names());
  for (let i = 0; i < 2; i++) {
    table.tHead.rows[0].cells[COLUMN].querySelector('button').click();
    found.orders.push(names());
  }
  found.sorted = table.tHead.rows[0].cells[COLUMN].getAttribute('aria-sort');
  found.images = [...document.images].map(image => image.naturalWidth);
  found.width = [document.documentElement.scrollWidth, innerWidth];
  const out = document.createElement('pre');
  out.id = 'found';
  out.textContent = JSON.stringify(found);
  document.body.append(out);
});
</script>
"""
CATCH = (
    "<script>window.errors = []; addEventListener('error', e => errors.push(e.message));</script>"
)


@pytest.fixture(scope="module")
def page(eight_runs):
    expdir = shutil.copytree(eight_runs, eight_runs.parent / "browser")
    shutil.rmtree(next(expdir.glob("*_branchformer_gqa_*")))  # a row without numbers
    output = eight_runs.parent / "browser_comparison"
    main(["--expdir", str(expdir), "--output", str(output)])
    return output / "report.html"


def browse(page, width, tmp_path, column=1):
    text = page.read_text().replace("<head>", f"<head>{CATCH}")
    probed = tmp_path / "probed.html"
    probed.write_text(text.replace("</body>", PROBE.replace("COLUMN", str(column)) + "</body>"))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=3000", "--dump-dom"]
    run = subprocess.run(
        [*command, f"file://{probed}"], capture_output=True, text=True, timeout=240
    )
    found = re.search('<pre id="found">(.*?)</pre>', run.stdout)
    assert found, run.stderr
    assert "CONSOLE" not in run.stderr, run.stderr
    return json.loads(found[1].replace("&amp;", "&"))


@pytest.mark.parametrize("width", [1280, 400])
def test_page_sorts_and_loads_in_a_browser(page, tmp_path, width):
    found = browse(page, width, tmp_path)
    assert found["errors"] == []
    assert len(found["images"]) == 3 and min(found["images"]) > 300
    given, up, down = found["orders"]
    assert len(given) == 10 and given.count("missing") == 1
    numbers = sorted(float(n) for n in given if n != "missing")
    assert [float(n) for n in up[:-1]] == numbers and up[-1] == "missing"
    assert [float(n) for n in down[:-1]] == numbers[::-1] and down[-1] == "missing"
    assert found["sorted"] == "descending"
    content, window = found["width"]
    assert content <= window  # wide tables scroll by themselves
