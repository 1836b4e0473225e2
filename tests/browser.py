"""A real browser on a real server, for the tests of instruments and site.

`python tests/browser.py` plays the instruments and writes to results/browser_chromium.json how
long loading, an image and a move take, and how many bytes and how much memory."""

import atexit
import contextlib
import functools
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

root = Path(__file__).resolve().parent.parent
flags = [
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
]


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def server(folder, *args):  # a module and its arguments; {port} is filled in
    """Run `python -m ...` in `folder` until it listens.

    Yields (url, function that reads its log), and ends it with its kernels
    """
    port, log = free_port(), Path(folder) / 'server.log'
    own = {
        f'{k}_DIR': str(Path(folder) / k.lower())
        for k in ('JUPYTER_CONFIG', 'JUPYTER_DATA', 'JUPYTER_RUNTIME')
    }
    env = (
        os.environ
        | own
        | dict(IPYTHONDIR=str(Path(folder) / 'ipython'), PYTHONPATH=str(root), OMP_NUM_THREADS='1')
    )
    with open(log, 'w') as out:
        p = subprocess.Popen(
            [sys.executable, '-m', *[a.format(port=port) for a in args]],
            cwd=folder,
            env=env,
            stdout=out,
            stderr=out,
        )
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                socket.create_connection(('127.0.0.1', port), 1).close()
                break
            if p.poll() is not None:
                raise RuntimeError(f'the server ended: {log.read_text()[-3000:]}')
            time.sleep(0.1)
        yield f'http://127.0.0.1:{port}', log.read_text
    finally:
        p.terminate()
        try:
            p.wait(20)
        except subprocess.TimeoutExpired:
            p.kill()
            p.wait()


@functools.lru_cache
def chromium():
    "One headless Chromium for all tests of a process; it ends with it"
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))))
    p = sync_playwright().start()
    atexit.register(p.stop)
    return p.chromium.launch(executable_path=path, args=flags)


@contextlib.contextmanager
def browser():
    "Windows of their own: nothing is shared with those of another test"
    windows = chromium().new_context(viewport=dict(width=1300, height=1400))
    try:
        yield windows
    finally:
        windows.close()


def open_page(windows, url):  # a page that waits as long as a loaded machine may need
    windows.set_default_timeout(180_000)
    page = windows.new_page()
    page.goto(url)
    return page


def copy_notebook(folder):  # Bands and Grow of it, without stored results
    nb = json.loads((root / 'nbs' / 'explore.ipynb').read_text(encoding='utf-8'))
    others = "Instrument('tokenize'", "Instrument('mix'"
    nb['cells'] = [c for c in nb['cells'] if not any(o in ''.join(c['source']) for o in others)]
    for c in nb['cells']:
        if c['cell_type'] == 'code':
            c['outputs'] = []
    (Path(folder) / 'explore.ipynb').write_text(json.dumps(nb), encoding='utf-8')


@contextlib.contextmanager
def voila(folder):  # yields (page, log): the app, ready
    copy_notebook(folder)
    with (
        server(folder, 'voila', 'explore.ipynb', '--no-browser', '--port={port}') as (url, log),
        browser() as b,
    ):
        page = open_page(b, url)
        page.wait_for_function(ready, arg=2)
        yield page, log


@contextlib.contextmanager
def lab(folder):  # yields (page, log): the notebook in JupyterLab, all cells run
    copy_notebook(folder)
    with (
        server(
            folder,
            'jupyterlab',
            '--no-browser',
            '--allow-root',
            '--port={port}',
            '--IdentityProvider.token=',
            '--ServerApp.password=',
        ) as (url, log),
        browser() as b,
    ):
        page = open_page(b, f'{url}/lab/tree/explore.ipynb?reset')
        page.get_by_text('Python 3 (ipykernel) | Idle').wait_for()
        for _ in range(5):  # a click that comes too early is lost
            page.get_by_role('menuitem', name='Run', exact=True).click()
            page.get_by_role('menuitem', name='Run All Cells', exact=True).click()
            with contextlib.suppress(Exception):
                page.wait_for_function(ready, arg=2, timeout=60_000)
                break
        yield page, log


# so many instruments are there, and each has drawn something
ready = """wanted => {
  const cards = [...document.querySelectorAll('.nfig-card')]
  const drawn = card => [...card.querySelectorAll('canvas')].some(c => c.width !== 300)
  return cards.length >= wanted && cards.every(drawn)
}"""


def instrument(page, kind):  # the card of an instrument
    return page.get_by_role('region', name=kind.capitalize(), exact=True)


def said(card):  # the line in which an instrument says what happened
    return card.locator('.nfig-status')


def drawn(card):  # all its canvases, as data
    return card.locator('canvas').evaluate_all('l => l.map(c => c.toDataURL())')


def traceback_in(text):
    return re.findall(r'Traceback|\w*Error\b.*', text)


def write_site(folder):  # a page with all instruments, each waiting for a click
    from nfig.use.widgets import BrowserFiles, Instrument, kinds

    BrowserFiles().write(Path(folder) / 'instruments')
    figures = '\n'.join(Instrument(kind).html() for kind in kinds)
    page = (
        '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    )
    style = '<link rel="icon" href="data:,"><style>body, figure { margin: 8px }</style>'
    (Path(folder) / 'index.html').write_text(page + style + figures, encoding='utf-8')


@contextlib.contextmanager
def site(folder):  # yields (url, windows): a static server for what `write_site` wrote
    files = 'http.server', '{port}', '--bind', '127.0.0.1', '--directory', str(folder)
    with tempfile.TemporaryDirectory() as d, server(d, *files) as (url, _), browser() as windows:
        windows.set_default_timeout(60_000)
        yield url, windows


def play(page, kind):  # press the button in the place of an instrument, and wait for a picture
    page.locator(f'[data-kind={kind}] > button').click()
    card = instrument(page, kind)
    card.locator('canvas').first.wait_for()
    done = "card => /in this page/.test(card.querySelector('.nfig-status').textContent)"
    shown = "card => card.querySelector('canvas').width !== 300"
    wait = done if kind in ('grow', 'tokenize') else shown
    page.wait_for_function(wait, arg=card.element_handle())
    return card


move_once = """(slider, step) => new Promise(done => {
  slider.value = Number(slider.value) + step
  const start = performance.now()
  slider.dispatchEvent(new Event('input'))
  const computed = performance.now() - start
  const painted = () => done([computed, performance.now() - start])
  requestAnimationFrame(() => requestAnimationFrame(painted))
})"""


def renderers():  # (bytes in memory, seconds on the processor) of each process that draws a page
    for p in Path('/proc').glob('[0-9]*'):
        with contextlib.suppress(OSError):
            if '--type=renderer' in (p / 'cmdline').read_text():
                pages = int((p / 'statm').read_text().split()[1])
                times = (p / 'stat').read_text().rpartition(')')[2].split()
                ticks = int(times[11]) + int(times[12])
                yield pages * os.sysconf('SC_PAGE_SIZE'), ticks / os.sysconf('SC_CLK_TCK')


def summary(seconds):
    return dict(
        times=len(seconds),
        median=round(statistics.median(seconds), 4),
        longest=round(max(seconds), 4),
    )


def measure(page):  # what results/browser_chromium.json holds
    bands = play(page, 'bands')
    slider = bands.locator('input[type=range]').nth(1)
    moves = [slider.evaluate(move_once, step) for step in [1, -1] * 10]
    mix = play(page, 'mix').locator('input[type=range]').first
    mixed = [mix.evaluate(move_once, step) for step in [1, -1] * 10]
    start, used = time.perf_counter(), max(cpu for _, cpu in renderers())
    grow = play(page, 'grow')
    loaded = time.perf_counter() - start
    loading = max(cpu for _, cpu in renderers()) - used
    seed = grow.locator('input[type=range]').first
    images, used = [], max(cpu for _, cpu in renderers())
    for _ in range(10):
        said(grow).evaluate("e => { e.textContent = '' }")  # two images may take equally long
        seed.focus()
        page.keyboard.press('ArrowRight')
        done = "card => /in this page/.test(card.querySelector('.nfig-status').textContent)"
        page.wait_for_function(done, arg=grow.element_handle())
        images.append(float(re.search(r'([.\d]+) s', said(grow).inner_text())[1]))
    sizes = "performance.getEntriesByType('resource').reduce((n, r) => n + r.decodedBodySize, 0)"
    used = (max(cpu for _, cpu in renderers()) - used) / len(images)
    stages = grow.locator('.nfig-stage').count()
    return dict(
        load=dict(
            seconds=round(loaded, 3),
            processor=round(loading, 3),
            bytes=page.evaluate(sizes),
            until='the first image',
        ),
        image=summary(images) | dict(stages=stages, processor=round(used, 3)),
        move=summary([m[0] / 1000 for m in moves]) | dict(picture='256x256, 9 bands'),
        frame=summary([m[1] / 1000 for m in moves]),
        mix=summary([m[0] / 1000 for m in mixed]) | dict(picture='two of 256x256'),
        memory=max(memory for memory, _ in renderers()),
    )


def main():
    from nfig.core.record import machine

    with tempfile.TemporaryDirectory() as d:
        write_site(d)
        with site(d) as (url, windows):
            page = open_page(windows, url)
            took = measure(page)
            version = f'Chromium {windows.browser.version}'
    info = dict(
        command='python tests/browser.py',
        date=datetime.now(timezone.utc).isoformat(timespec='seconds'),
        browser=f'{version}, headless, one thread',
        machine=machine(),
    )
    path = root / 'results' / 'browser_chromium.json'
    path.write_text(json.dumps(info | took, indent=1) + '\n')
    print(json.dumps(took))


if __name__ == '__main__':
    main()
