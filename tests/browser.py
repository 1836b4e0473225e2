"""A real browser on a real server, for the tests of widgets and site.

`python tests/browser.py` moves the sliders of nbs/explore.ipynb and writes to results/widgets_cpu.json how long a move takes."""

import contextlib
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
flags = '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'.split()


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def server(folder, *args):  # a module and its arguments; {port} is filled in
    "Run `python -m ...` in `folder` until it listens; yields (url, function that reads its log), and ends it with its kernels"
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


@contextlib.contextmanager
def browser():
    "A headless Chromium's windows"
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))))
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=path, args=flags)
        try:
            yield b.new_context(viewport=dict(width=1300, height=1400))
        finally:
            b.close()


def open_page(windows, url):  # a page that waits as long as a loaded machine may need
    windows.set_default_timeout(180_000)
    page = windows.new_page()
    page.goto(url)
    return page


def copy_notebook(folder):  # a copy that may be changed, without stored results
    nb = json.loads((root / 'nbs' / 'explore.ipynb').read_text(encoding='utf-8'))
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
        page.wait_for_function("document.querySelectorAll('.widget-image').length>=13")
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
                page.wait_for_selector('.widget-image', timeout=30_000)
                break
        yield page, log


watch = """(view, left) => { window.t0 = null; window.took = null
  view.addEventListener('keydown', () => {window.t0 = window.t0 ?? performance.now()}, {capture:true, once:true})
  for (const im of view.querySelectorAll('img.widget-image')) im.addEventListener('load', () => {if (--left==0) window.took = performance.now()-window.t0}, {once:true}) }"""


def views(page):  # the explorers on a page: the innermost box that holds sliders and pictures
    return page.locator('.widget-vbox:has(> .widget-hbox .widget-image)')


def move(page, view, handle=-1, key='ArrowRight', pictures=3) -> float:  # seconds
    "Press a key on a slider of a view, wait until that many of its pictures are new; returns the time between"
    view.evaluate(watch, pictures)
    view.locator('.noUi-handle').nth(handle).focus()
    page.keyboard.press(key)
    page.wait_for_function('window.took!==null')
    return page.evaluate('window.took') / 1000


def sources(view):
    return view.locator('img.widget-image').evaluate_all('l => l.map(o => o.src)')


def traceback_in(text):
    return re.findall(r'Traceback|\w*Error\b.*', text)


def summary(seconds):
    return dict(
        moves=len(seconds),
        median=round(statistics.median(seconds), 4),
        longest=round(max(seconds), 4),
    )


def kernel_moves(n=40):
    "Seconds of a move of the band explorer, without a browser"
    from nfig.use.explorers import photos
    from nfig.use.widgets import BandView

    view, took = BandView(photos(256)), []
    for i in range(n):
        start = time.perf_counter()
        view.controls['window'].value = (1 + i % 4, 5 + i % 5)
        took.append(time.perf_counter() - start)
    return took


def main():
    import torch
    from nfig.core.record import machine

    torch.set_num_threads(1)
    took = dict(kernel=summary(kernel_moves()), browser={})
    for name, app in dict(Voila=voila, JupyterLab=lab).items():
        with tempfile.TemporaryDirectory() as d, app(d) as (page, _):
            view = views(page).first
            move(page, view)
            took['browser'][name] = summary(
                [move(page, view, key=k) for k in ['ArrowLeft', 'ArrowRight'] * 10]
            )
    info = dict(
        command='python tests/browser.py',
        date=datetime.now(timezone.utc).isoformat(timespec='seconds'),
        image='256x256, 9 bands',
        machine=machine(),
    )
    (root / 'results' / 'widgets_cpu.json').write_text(json.dumps(info | took, indent=1) + '\n')
    print(json.dumps(took))


if __name__ == '__main__':
    main()
