"""The instruments in a real browser: on a static page, in JupyterLab and in Voila. What they
compute is what Python computes; keys and clicks move them; nothing is fetched before a click."""

import json
from pathlib import Path

import pytest
import torch
from browser import drawn, instrument, lab, play, said, site, traceback_in, voila, write_site
from conftest import required
from PIL import Image

from nfig.bands.frequency import apply_masks, band_masks, bin_counts, energy_edges, power_spectrum
from nfig.bands.show import unfold
from nfig.core.tensors import to_float
from nfig.data.sources import load_data
from nfig.transformer.names import label_ids
from nfig.transformer.pipeline import NFIGPipeline, generate_stages
from nfig.transformer.sampling import uniforms
from nfig.use.widgets import npm_files

root = Path(__file__).resolve().parent.parent
needs_chromium = pytest.mark.needs('chromium')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A site with a page of instruments.

    Without a network and without a stored runtime there is none
    """
    try:
        npm_files('onnxruntime-web')
    except OSError as e:
        (pytest.fail if 'chromium' in required() else pytest.skip)(str(e))
    to = tmp_path_factory.mktemp('site')
    write_site(to)
    return to


@pytest.fixture(scope='module')
def page(folder):
    "The page, its errors, and what it asked for"
    with site(folder) as (url, windows):
        page = windows.new_page()
        page.asked, page.wrong = [], []
        page.on('request', lambda r: page.asked.append(r.url.removeprefix(url)))
        page.on('pageerror', lambda e: page.wrong.append(str(e)))
        page.goto(url)
        yield page


@pytest.fixture(scope='module')
def pipe():
    return NFIGPipeline.from_pretrained('fashion-mnist')


def numbers(x):
    return x.flatten().tolist()


# What is computed


@needs_chromium
def test_nothing_is_fetched_before_a_click(page):
    page.wait_for_timeout(200)
    assert page.asked == ['/'] or page.asked == ['/', 'data:,']
    for figure in page.locator('figure').all():
        assert figure.locator('img').get_attribute('alt')
        assert figure.locator('button').is_visible()


@needs_chromium
@pytest.mark.parametrize('side', [16, 12])
def test_waves_are_those_of_python(page, side):
    "Bands of every division, their numbers and their pictures; a side of 12 takes the slow way"
    x = torch.rand(3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    scales = (1, 2, 3, 5, 8)
    found = page.evaluate(
        """async ([planes, side, scales]) => {
          const F = await import('/instruments/fourier.js')
          const picture = {h: side, w: side, planes: planes.map(p => Float32Array.from(p))}
          const spectrum = F.spectra(picture)
          const power = F.power(spectrum, side, side)
          const found = {}
          for (const division of ['paper', 'area', 'nyquist', 'energy']) {
            const bands = F.bandOf(scales, side, side, division, power)
            const masks = [1, 3].map(i => bands.map(b => b === i ? 1 : 0))
            const parts = spectrum.map(s => F.filterTwice(s, ...masks, side, side))
            found[division] = {bands: [...bands], parts: parts.map(both => both.map(p => [...p])),
                               ...F.perBand(scales, bands, power)}
          }
          return found
        }""",
        [[numbers(p) for p in x], side, scales],
    )
    for division, got in found.items():
        fitted = energy_edges(x[None], scales) if division == 'energy' else None
        way = 'paper' if division == 'energy' else division
        masks = band_masks(scales, side, side, way, fitted)
        whole = torch.fft.ifftshift(unfold(masks, side), dim=(-2, -1))
        assert got['bands'] == numbers(whole.int().argmax(0)), division
        assert got['waves'] == bin_counts(masks, side).tolist(), division
        parts = torch.tensor(got['parts']).view(3, 2, side, side).transpose(0, 1)
        wanted = apply_masks(x[None], masks[[1, 3]])[:, 0]
        assert (parts - wanted).abs().max() < 1e-5, division
        p = power_spectrum(x).mean(0)
        p[side // 2, side // 2] = 0
        share = (unfold(masks, side) * p).sum((1, 2)) / p.sum()
        assert (torch.tensor(got['energy']) - share).abs().max() < 1e-5, division


@needs_chromium
def test_uniforms_are_those_of_torch(page):
    "Bit by bit, beyond the first 624 words"
    got = page.evaluate(
        "import('/instruments/model.js').then("
        "M => [0, 7, 123456].map(s => [...M.uniforms(s, 1300)]))"
    )
    assert torch.equal(torch.tensor(got), uniforms([0, 7, 123456], 1300))


grow_in_page = """async ([labels, sample, wanted]) => {
  const M = await import('/instruments/model.js')
  const bytes = async answer => new Uint8Array(await answer.arrayBuffer())
  const file = async path => bytes(await fetch('/instruments/' + path))
  const model = await M.openModel({file}, 'fashion-mnist')
  const found = []
  for (const [i, label] of labels.entries()) {
    const growth = new M.Growth(model, label, i, {...model.manifest.sample, ...sample})
    await growth.grow()
    const {planes} = await model.decode(growth.stages.at(-1).fHat)
    const tokens = growth.stages.map(s => [...s.tokens])
    found.push({tokens, picture: planes.map(p => [...p])})
  }
  return found
}"""


def in_python(pipe, labels, **sample):
    ids, q = label_ids(labels, pipe.classes), pipe.tokenizer.quantizer
    settings = pipe.settings(**sample)
    return [*generate_stages(pipe.transformer, q, ids, settings, range(len(labels)))]


@needs_chromium
def test_the_page_draws_what_python_draws(page, pipe):
    "Class by class with the same seeds: the same tokens, pictures, and votes of the nearest images"
    labels = list(range(10))
    found = page.evaluate(grow_in_page, [labels, {}, None])
    stages = in_python(pipe, labels)
    for i, st in enumerate(stages):
        assert [f['tokens'][i] for f in found] == st.tokens.tolist(), f'stage {i + 1}'
    wanted = pipe.decode_latent(stages[-1].f_hat)
    pictures = torch.tensor([f['picture'] for f in found]).view_as(wanted)
    assert (pictures - wanted).abs().max() < 1e-3
    data = load_data('fashion-mnist-5k')
    real = to_float(data.__getitems__(list(range(len(data))))[0]).flatten(1)

    def votes(x):
        near = torch.cdist(x.flatten(1), real).topk(5, largest=False).indices
        return data.labels[near].mode(1).values

    assert torch.equal(votes(pictures), votes(wanted))
    assert (votes(pictures) == torch.arange(10)).float().mean() > 0.6


@needs_chromium
@pytest.mark.parametrize(
    'sample', [dict(top_k=1), dict(cfg_scale=0.0, top_k=40, top_p=0.9, temperature=0.8)]
)
def test_settings_of_the_sampler(page, pipe, sample):
    found = page.evaluate(grow_in_page, [[8, 9], sample, None])
    for i, st in enumerate(in_python(pipe, [8, 9], **sample)):
        assert [f['tokens'][i] for f in found] == st.tokens.tolist(), f'stage {i + 1}'


@needs_chromium
def test_tokens_of_a_picture(page, pipe):
    "Encoder and quantiser of the page against Python's, for NFIG's target; VAR's differs"
    x = load_data('fashion-mnist-5k', 32)[9][0]
    image = to_float(x).expand(3, -1, -1)
    found = page.evaluate(
        """async planes => {
          const M = await import('/instruments/model.js')
          const bytes = async answer => new Uint8Array(await answer.arrayBuffer())
          const file = async path => bytes(await fetch('/instruments/' + path))
          const model = await M.openModel({file}, 'fashion-mnist')
          const latent = await model.latent({planes: planes.map(p => Float32Array.from(p))})
          const encode = target => model.quantizer.encode(latent, target)
          return ['band', 'full'].map(t => encode(t).map(s => [...s.tokens]))
        }""",
        [numbers(p) for p in image],
    )
    assert found[0] == [t[0].tolist() for t in pipe.tokenizer.encode(image[None])]
    assert found[1] != found[0]


# How it plays


@needs_chromium
def test_bands(page, tmp_path):
    card = play(page, 'bands')
    lower, upper = card.get_by_role('slider').all()
    plane, part, so_far, wave = range(4)
    before = drawn(card)
    upper.focus()
    page.keyboard.press('ArrowRight')
    after = drawn(card)
    assert [a != b for a, b in zip(before, after)] == [True, True, True, False]
    assert 'bands 3 to 7' in card.locator('canvas').nth(part).get_attribute('aria-label')

    card.locator('canvas').nth(plane).click(position=dict(x=20, y=30))
    assert drawn(card)[wave] != after[wave] and drawn(card)[so_far] == after[so_far]
    card.locator('canvas').nth(plane).focus()
    before = card.locator('figcaption').nth(wave).inner_text()
    page.keyboard.press('ArrowLeft')
    assert card.locator('figcaption').nth(wave).inner_text() != before

    lower.fill('9')  # the lower end takes the upper one along
    assert upper.input_value() == '9'
    card.get_by_label('division').select_option('paper')
    card.get_by_label('scales').select_option('paper')
    assert upper.get_attribute('max') == '10'
    card.get_by_role('button', name='only band 1', exact=True).click()
    assert 'band 1' in card.locator('figcaption').nth(part).inner_text()

    (tmp_path / 'words.txt').write_text('no picture')
    card.locator('input[type=file]').set_input_files(tmp_path / 'words.txt')
    card.get_by_text('words.txt cannot be read').wait_for()
    Image.radial_gradient('L').resize((80, 60)).save(tmp_path / 'mine.png')
    before = drawn(card)
    card.locator('input[type=file]').set_input_files(tmp_path / 'mine.png')
    card.get_by_text('does not leave this machine').wait_for()
    assert card.get_by_label('picture').input_value() == 'mine.png' and drawn(card) != before

    card.get_by_role('button', name='Reset').click()
    page.wait_for_function(
        "c => c.querySelector('select').value === 'cat'", arg=card.element_handle()
    )
    card.get_by_role('button', name='Play').click()
    page.wait_for_timeout(100)
    assert card.get_by_role('button', name='Pause').is_visible()
    card.get_by_role('button', name='Pause').click()


def settled(page, card, act):
    "Do something, and wait until the instrument says that it is done"
    before = said(card).inner_text()
    card.locator('.nfig-status').evaluate("node => { node.textContent = '' }")
    act()
    page.wait_for_function(
        "c => /in this page/.test(c.querySelector('.nfig-status').textContent)",
        arg=card.element_handle(),
    )
    return before


def tokens(card):
    return card.locator('canvas.nfig-tokens').evaluate_all("l => l.map(c => c.ariaLabel)")


def thumbs(card):
    return card.locator('.nfig-thumb canvas').evaluate_all('l => l.map(c => c.toDataURL())')


@needs_chromium
def test_grow(page):
    card = play(page, 'grow')
    old = tokens(card), thumbs(card)
    settled(page, card, lambda: card.get_by_label('class').select_option('Bag'))
    assert old[1][-1] != thumbs(card)[-1]
    old = tokens(card), thumbs(card)

    card.locator('.nfig-thumb').nth(2).click()  # looking around draws nothing anew
    assert 'after stage 3' in card.locator('canvas').first.get_attribute('aria-label')
    assert (tokens(card), thumbs(card)) == old

    card.locator('canvas.nfig-tokens').nth(2).click(position=dict(x=3, y=3))
    chosen = card.locator('.nfig-codes button')
    assert chosen.count() == 8 and 'Stage 3, row 1, column 1' in card.inner_text()
    other = card.locator('.nfig-codes button[aria-pressed=false]').first
    code = other.get_attribute('aria-label').split()[1].rstrip(',')
    settled(page, card, other.click)
    new = tokens(card), thumbs(card)
    assert new[0][2].split(': ')[1].split()[0] == code
    assert [a == b for a, b in zip(old[0], new[0])] == [True, True, False, True, True, True]
    assert [a == b for a, b in zip(old[1], new[1])] == [True, True, False, False, False, False]

    card.get_by_label('keep the tokens of later stages').uncheck()
    settled(page, card, card.get_by_role('button', name='Draw this stage anew').click)
    newest = tokens(card)
    assert newest[:2] == new[0][:2] and newest[2:] != new[0][2:]
    settled(page, card, card.get_by_role('button', name='Reset').click)


@needs_chromium
def test_tokenize(page):
    card = play(page, 'tokenize')
    before = drawn(card)
    card.get_by_label('stages').fill('2')
    changed = [a != b for a, b in zip(before, drawn(card))]
    assert changed == [False, *[True] * 8]  # all but the original
    decibels = card.locator('.nfig-table td').all_inner_texts()
    assert len(decibels) == 18 and float(decibels[11]) > float(decibels[6])
    settled(page, card, lambda: card.get_by_label('tokenizer').select_option('emoji'))


@needs_chromium
def test_mix(page):
    card = play(page, 'mix')
    before = drawn(card)
    card.get_by_label('first picture up to band').fill('2')
    page.wait_for_timeout(100)
    assert all(a != b for a, b in zip(before, drawn(card)))
    card.get_by_label('mix', exact=True).select_option('tokens')
    card.locator('canvas.nfig-crisp').nth(2).wait_for()
    assert card.get_by_label('first picture up to band').get_attribute('max') == '6'


def narrow(page):
    "As wide as a phone: nothing is wider, once canvases were told"
    page.set_viewport_size(dict(width=360, height=800))
    page.wait_for_function('document.documentElement.scrollWidth <= 360', timeout=60_000)


@needs_chromium
def test_posters_fit_a_phone(folder):
    "The pictures that stand where an instrument is not open yet"
    with site(folder) as (url, windows):
        page = windows.new_page()
        page.goto(url)
        narrow(page)


@needs_chromium
def test_nothing_went_wrong_and_phones_fit(page):
    "After all of the above: no error, every canvas speaks, and no part is wider than a phone"
    assert page.wrong == []
    labels = page.locator('canvas').evaluate_all(
        "all => all.map(c => c.getAttribute('aria-label'))"
    )
    assert labels and all(labels)
    narrow(page)


# In a notebook


@needs_chromium
def test_app(tmp_path):
    with voila(tmp_path) as (page, log):
        moves(page)
        assert not traceback_in(log()) and not traceback_in(page.inner_text('body'))


@needs_chromium
def test_notebook_in_jupyterlab(tmp_path):
    with lab(tmp_path) as (page, log):
        moves(page)
        wrong = '[data-mime-type="application/vnd.jupyter.{}"]'
        assert not page.locator(f"{wrong.format('stderr')}, {wrong.format('error')}").count()
        assert not [line for line in traceback_in(log()) if 'Traceback' in line]


def moves(page):
    "Bands follow a key, and Grow draws another image: the kernel's files have arrived"
    bands, grow = instrument(page, 'bands'), instrument(page, 'grow')
    before = drawn(bands)
    bands.get_by_role('slider').last.focus()
    page.keyboard.press('ArrowRight')
    assert drawn(bands) != before
    done = "c => /in this page/.test(c.querySelector('.nfig-status').textContent)"
    page.wait_for_function(done, arg=grow.element_handle())
    old = thumbs(grow)
    settled(page, grow, grow.get_by_role('button', name='Another').click)
    assert thumbs(grow) != old


@pytest.mark.parametrize('path', sorted((root / 'nbs').rglob('*.ipynb')), ids=lambda p: p.stem)
def test_no_widget_state_is_stored(path):
    "Stored state is large and of no use without a kernel: run with `store_widget_state=False`"
    assert 'widgets' not in json.loads(path.read_text(encoding='utf-8'))['metadata']
