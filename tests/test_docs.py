"""The site: it builds, its links lead somewhere, its pages open without errors of our making; and
the package is one that an index would take."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from browser import play, site

root = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location('docs', root / '.ci' / 'docs.py')
docs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(docs)


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    "The project without its history, with a built site in _docs/"
    to = tmp_path_factory.mktemp('project')
    skip = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', '_proc')
    for o in ('nbs', 'nfig', '.ci', 'results'):
        shutil.copytree(root / o, to / o, ignore=skip, symlinks=True)
    for o in (
        'settings.ini',
        '_quarto.yml',
        'setup.py',
        'README.md',
        'MANIFEST.in',
        'LICENSE',
        'CHANGELOG.md',
        'constraints.txt',
    ):
        shutil.copy(root / o, to / o)
    built = subprocess.run(
        [sys.executable, '.ci/docs.py'], cwd=to, capture_output=True, text=True, timeout=600
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return to


def pages(project):
    return sorted(p for p in (project / '_docs').rglob('*.html') if 'site_libs' not in p.parts)


def test_every_notebook_has_a_page_and_a_copy_for_colab(project):
    names = {p.name for p in docs.lessons()}
    assert len(pages(project)) == len(names) + 1  # and the modules
    assert {p.name for p in (project / '_docs' / 'colab').iterdir()} == names
    first = json.loads((project / '_docs' / 'colab' / '11_frequency.ipynb').read_text())['cells'][
        0
    ]['source']
    assert 'git clone' in first and '{' not in first


def test_pages_show_code_and_instruments(project):
    page = (project / '_docs' / '1_bands' / 'resample.html').read_text()
    assert (
        'id="upsample_matrix"' in page and 'linalg' in page
    )  # what is exported can be read, and linked to
    explore = (project / '_docs' / 'explore.html').read_text()
    assert explore.count('class="nfig-instrument"') == 4 and 'widget-view' not in explore
    lesson = (project / '_docs' / '8_use' / 'widgets.html').read_text()
    assert "'instruments/page.js'" in explore and "'../instruments/page.js'" in lesson


def test_broken_links_are_found(tmp_path):
    (tmp_path / 'sub').mkdir()
    (tmp_path / 'a.html').write_text(
        '<h1 id="x"></h1><a href="b.html#y">1</a><a href="b.html#z">2</a><a href="#x">3</a>'
        '<a href="#q">4</a><img src="no.png"><a href="https://b.org/c">5</a>'
        '<a href="https://us.org/n/b.html">6</a><a href="https://us.org/n/gone.html">7</a>'
        '<a href="sub/">8</a>'
    )
    (tmp_path / 'b.html').write_text('<p id="y">')
    found = docs.broken_links(tmp_path, 'https://us.org/n')
    assert [o.split(': ')[1] for o in found] == [
        'b.html#z',
        '#q',
        'no.png',
        'https://us.org/n/gone.html',
        'sub/',
    ]


def test_import_graph():
    g = dict(a=[], b=['a'], c=['a', 'b'])
    assert docs.layers(g) == [['a'], ['b'], ['c']] and docs.direct(g) == dict(
        a=[], b=['a'], c=['b']
    )
    with pytest.raises(ValueError, match='import each other: a, b'):
        docs.layers(dict(a=['b'], b=['a']))
    assert 'bands.frequency' in docs.graph()['tokenizer.quantizer'] and docs.layers(docs.graph())


@pytest.mark.needs('chromium')
def test_pages_open_without_errors(project, tmp_path):
    """Nothing outside of the site is asked for.

    Formulas are set, and an instrument starts on a click
    """
    with site(project / '_docs') as (url, windows):
        page, wrong, outside = windows.new_page(), [], set()
        windows.route(
            lambda o: not o.startswith((url, 'data:', 'blob:')),
            lambda r: (outside.add(r.request.url), r.abort()),
        )
        page.on(
            'console',
            lambda m: wrong.append(f'{page.url}: {m.text}') if m.type == 'error' else None,
        )
        page.on('pageerror', lambda e: wrong.append(f'{page.url}: {e}'))
        # a small laptop's: code is not cut off
        page.set_viewport_size(dict(width=1280, height=800))
        cut = "p => p.filter(e => e.scrollWidth > e.clientWidth + 2).length"
        wide = []
        for p in pages(project):
            name = p.relative_to(project / '_docs').as_posix()
            page.goto(f'{url}/{name}')
            if page.locator('main .sourceCode pre').evaluate_all(cut):
                wide.append(name)
        assert not outside and not wrong and not wide

        page.goto(f'{url}/1_bands/frequency.html')
        page.locator('.katex').first.wait_for()
        page.goto(f'{url}/8_use/widgets.html')
        play(page, 'grow')
        assert not outside and not wrong


# The package


@pytest.fixture(scope='module')
def dist(project):
    "A source archive and a wheel"
    built = subprocess.run(
        [sys.executable, '-m', 'build', '--no-isolation', '-q', '.'],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert built.returncode == 0, built.stderr
    return project / 'dist'


def test_an_index_would_take_it(dist):
    res = subprocess.run(
        [sys.executable, '-m', 'twine', 'check', '--strict', *map(str, dist.iterdir())],
        capture_output=True,
        text=True,
    )
    assert res.returncode == 0, res.stdout + res.stderr


def test_wheel_holds_the_package_and_nothing_else(dist):
    import zipfile

    names = [
        n for n in zipfile.ZipFile(next(dist.glob('*.whl'))).namelist() if '.dist-info/' not in n
    ]
    extra = [
        n
        for n in names
        if not n.startswith(('nfig/assets/', 'nfig/use/static/'))
        and not (n.startswith('nfig/') and n.endswith('.py') and n.count('/') <= 2)
    ]
    assert {'nfig/use/static/widget.js', 'nfig/use/static/fourier.js'} <= set(names)
    stubs = {n[:-1] for n in extra if n.endswith('.pyi')}
    assert (
        stubs == {n for n in names if n.endswith('.py') and n != 'nfig/_modidx.py'}
        and 'nfig/py.typed' in extra
        and len(extra) == len(stubs) + 1
    )


client = '''
import torch
from nfig.core.config import TokenizerConfig, TransformerConfig
from nfig.core.presets import get_preset
from nfig.core.tensors import to_float
from nfig.data.sources import load_data
from nfig.use.explorers import BandExplorer,photos
from nfig.bands.frequency import band_masks,decompose,radius
from nfig.transformer.pipeline import NFIGPipeline
from nfig.tokenizer.codebook import Codebook
from nfig.tokenizer.quantizer import ResidualQuantizer
from nfig.bands.show import show_images
from nfig.tokenizer.frvae import FRVAE
import nfig
face: NFIGPipeline = nfig.NFIGPipeline.from_pretrained('fashion-mnist')
pipe: NFIGPipeline = NFIGPipeline.from_pretrained('fashion-mnist')
show_images(pipe(['Sneaker', 'Bag'], n=4, seed=0)).savefig('a.png')
half = pipe.partials('Sneaker')[2] + pipe.to(None, torch.bfloat16).decode_latent(torch.zeros(1))
bands = decompose(half, band_masks((1, 2, 4), 8)), radius(8, None), TransformerConfig(width=None)
tokenizer: FRVAE = FRVAE.from_pretrained('x')
tokenizer.save_pretrained('y')
sides: int = get_preset('tiny', tokenizer=dict(width=8)).tokenizer.side
stages = [s.tokens for s in ResidualQuantizer(Codebook(8, 4), (1, 2, 4)).encode(half)]
picture = BandExplorer(photos()['cat']).component(1, 2)
'''
wrong = '''
TokenizerConfig(witdh=3)
BandExplorer(half).componnent(1, 2)
radius('eight')
nfig.NFIGPipelin
'''


def test_a_type_checker_reads_the_package(dist, tmp_path):
    """No false alarm in correct use, an alarm for each mistake.

    What is installed elsewhere is not followed, which saves its half minute
    """
    import zipfile

    zipfile.ZipFile(next(dist.glob('*.whl'))).extractall(tmp_path)
    others = 'torch fastcore matplotlib PIL numpy huggingface_hub ipywidgets traitlets tqdm'.split()
    (tmp_path / 'mypy.ini').write_text(
        '[mypy]\n[mypy-nfig.*]\nignore_errors = True\n'
        f'[{",".join(f"mypy-{name}.*" for name in others)}]\nfollow_imports = skip\n'
    )
    (tmp_path / 'client.py').write_text(client + wrong)
    res = subprocess.run(
        [sys.executable, '-m', 'mypy', 'client.py'],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != 'PYTHONPATH'},
        capture_output=True,
        text=True,
        timeout=600,
    )
    errors = [line for line in res.stdout.splitlines() if ': error:' in line]
    assert [int(e.split(':')[1]) - client.count('\n') for e in errors] == [2, 3, 4, 5], (
        res.stdout + res.stderr
    )


def test_citation_file():
    "The fields that the Citation File Format 1.2.0 asks for, and the version that is released"
    cff = yaml.safe_load((root / 'CITATION.cff').read_text(encoding='utf-8'))
    assert {'cff-version', 'message', 'title', 'authors'} <= set(cff) and cff[
        'cff-version'
    ] == '1.2.0'
    assert cff['version'] == docs.settings().version
    for work in (cff, *cff.get('references', [])):
        assert work['title'] and all('name' in a or 'family-names' in a for a in work['authors'])
