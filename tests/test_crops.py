"Training squares: as sharp as the photographs, new each epoch, no setting that does nothing"

import io
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from nfig.core.presets import get_preset
from nfig.data.images import crop_ways, cut_square, decode, draw_views
from nfig.data.sets import ImageData, loader
from nfig.data.shards import StreamData
from nfig.data.sources import from_arrays, load_data, square
from nfig.data.tokens import FreshTokens, TokenCache, cache_tokens, cached_batches, plan_for
from nfig.tokenizer.frvae import build_tokenizer
from nfig.train.run import Run
from nfig.train.tokenizer import TokenizerTask, train_tokenizer
from nfig.train.transformer import TransformerTask, train_nfig
from PIL import Image
from skimage import data as photographs

size = 64
names = 'astronaut', 'cat', 'coffee', 'rocket', 'chelsea', 'retina'
quiet = dict(log_every=1, save_every=4, preview_every=100, progress=False, device='cpu')
cpu = torch.device('cpu')


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "A folder of six photographs, larger than the training squares"
    folder = tmp_path_factory.mktemp('photos')
    (folder / 'photo').mkdir()
    for name in names:
        Image.fromarray(getattr(photographs, name)()).save(folder / 'photo' / f'{name}.png')
    return folder


@pytest.fixture(scope='module')
def tok():
    torch.manual_seed(0)
    return build_tokenizer(get_preset('tiny').tokenizer).eval()


@pytest.fixture(scope='module')
def roomy():
    "A hundred pictures of 40 pixels, as squares of 32"
    small = load_data('fashion-mnist-5k').subset(range(0, 5000, 50))
    return from_arrays(square(small.images, 40)[:, 0], small.labels, small.classes, 32)


def upper_third(x):
    "Mean power in the upper third of the frequencies up to the side's half, borders windowed away"
    n = x.shape[-1]
    window = torch.hann_window(n)[:, None] * torch.hann_window(n)
    x = (x - x.mean((2, 3), keepdim=True)) * window
    power = torch.fft.fft2(x).abs().square().mean((0, 1))
    f = torch.fft.fftfreq(n) * n
    radius = (f[:, None] ** 2 + f**2).sqrt()
    return power[(radius > n / 3) & (radius <= n / 2)].mean()


def batches_of(way, data, tok, n=16):
    "What a tokenizer's trainer is shown in n steps"
    cfg = replace(get_preset('tiny').train_tokenizer, crop=way, flip=False, batch_size=len(data))
    task = TokenizerTask(tok, data, cfg, cpu, 0)
    return torch.cat([task.batch(k) for k in range(n)])


@pytest.mark.parametrize('way', [w for w in crop_ways if w != 'center'])
def test_squares_are_as_sharp_as_the_photographs(photos, way):
    "At least 0.6 of the plain power in the upper third; cut from small pictures it was 0.25"
    torch.manual_seed(0)
    tok = build_tokenizer(
        get_preset('tiny', tokenizer=dict(image_size=size, scales=(1, 2, 4, 8, 16))).tokenizer
    )
    data = load_data(photos, size)
    plain, cut = [upper_third(batches_of(w, data, tok, n)) for w, n in (('center', 1), (way, 16))]
    assert cut > 0.6 * plain


def test_presets_of_the_paper_and_var_cut_at_random():
    for name in ('nfig_d16', 'xqgan_d16', 'var_d16', 'raster_d16'):
        e = get_preset(name)
        assert e.train_tokenizer.crop == 'xqgan' and e.train.crop == 'var', name
        assert e.train.views == 0 or e.train.views >= 8, name


@pytest.mark.parametrize('view', [(1.0, 0.5, 0.5), (1.125, 0, 1), (1.25, 1, 0)])
@pytest.mark.parametrize('shape', [(300, 200), (70, 64), (64, 64), (66, 200), (20, 40)])
def test_a_picture_is_enlarged_only_if_it_is_smaller(view, shape, monkeypatch):
    asked = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image,
        'resize',
        lambda im, to, how, box: asked.append(box) or resize(im, to, how, box=box),
    )
    assert cut_square(Image.new('RGB', shape), size, view).size == (size, size)
    sides = [right - left for left, _, right, _ in asked]
    assert all(side >= size - 1e-6 or min(shape) < size for side in sides)


def test_a_square_may_lie_anywhere_in_the_picture():
    "Before, the middle square was taken first, and what lies beside it was never seen"
    wide = Image.new('RGB', (300, 100), 'red')
    wide.paste('blue', (0, 0, 80, 100))
    wide.paste('lime', (220, 0, 300, 100))
    for turned in (False, True):
        im = wide.transpose(Image.Transpose.ROTATE_270) if turned else wide
        for at, colour in {0.0: [0, 0, 255], 0.5: [255, 0, 0], 1.0: [0, 255, 0]}.items():
            view = (1.125, 0.5, at) if turned else (1.125, at, 0.5)
            assert np.asarray(cut_square(im, size, view))[32, 32].tolist() == colour


def test_a_photograph_is_decoded_large_enough_to_cut_from():
    "A JPEG may be decoded smaller, but not as small as the square: nothing could be cut then"
    im = Image.fromarray(photographs.astronaut())  # 512 pixels, eight squares
    files = io.BytesIO(), io.BytesIO()
    im.save(files[0], 'PNG')
    im.save(files[1], 'JPEG', quality=95)
    views = torch.tensor([[1.25, 0.0, 1.0], [1.125, 1.0, 0.0]])
    plain, drafted = (decode(f.getvalue(), size, views).float() for f in files)
    assert (plain - drafted).abs().mean() < 3


def test_a_stream_is_cut_at_random_too():
    "The squares of step 5 are those that were drawn for it"
    pictures = [torch.randint(256, (3, 40, 56), dtype=torch.uint8) for _ in range(8)]
    files = [png(Image.fromarray(p.permute(1, 2, 0).numpy())) for p in pictures]
    data = StreamData(lambda seed, epoch: ((f, 0, 'picture') for f in files), 8, 32)
    x, _ = next(data.stream(4, seed=3, start_step=5, workers=1, crop='var'))
    views = draw_views('var', 4, (3, 5))
    assert torch.equal(x, torch.stack([decode(f, 32, v) for f, v in zip(files[4:], views)]))
    assert (x.float() - torch.stack([decode(f, 32) for f in files[4:]])).abs().mean() > 10


def test_squares_of_a_step_depend_on_seed_and_step_only(photos):
    data = load_data(photos, size)
    assert not data.lazy
    eager = list(islice(loader(data, 3, 5, crop='xqgan', workers=0), 6))
    lazy = ImageData(data.images, data.labels, data.classes, size, data.names)
    late = list(islice(loader(lazy, 3, 5, 2, crop='xqgan', workers=2), 4))
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(eager[2:], late))
    seen = torch.stack([x for x, _ in eager])
    assert len(seen.flatten(0, 1).flatten(1).unique(dim=0)) == 18  # no square twice in three epochs


@pytest.mark.parametrize('kind', ['set', 'stream'])
def test_no_room_for_a_crop_is_an_error(kind, tmp_path, tok):
    small = load_data('fashion-mnist-5k').subset(range(64))
    if kind == 'stream':
        pixels = [
            (Image.fromarray(np.zeros((32, 32, 3), np.uint8)), None, str(i)) for i in range(64)
        ]
        small = StreamData(lambda seed, epoch: ((png(im), y, n) for im, y, n in pixels), 64, 32)
    e = get_preset('tiny', train_tokenizer=dict(crop='var', steps=1))
    with pytest.raises(ValueError, match='a shorter side of 32'):
        train_tokenizer(e, small, tmp_path / 'run', **quiet)


def png(im):
    "The bytes of a PNG"
    buffer = io.BytesIO()
    im.save(buffer, 'PNG')
    return buffer.getvalue()


def test_settings_that_would_be_ignored_are_errors(roomy, tok, tmp_path):
    e = get_preset('tiny', train=dict(crop='var', steps=1))
    small = load_data('fashion-mnist-5k').subset(range(64))
    with pytest.raises(ValueError, match='a shorter side of 32'):
        train_nfig(e, tok, small, tmp_path / 'a', **quiet)
    with pytest.raises(ValueError, match='would be equal'):
        train_nfig(
            get_preset('tiny', train=dict(views=2, steps=1)), tok, small, tmp_path / 'b', **quiet
        )
    plan = plan_for(tok, roomy, views=2, crop='var', flips=True, amp=False)
    cache_tokens(tmp_path / 'tokens', tok, roomy, plan, progress=False, workers=0)
    cache = TokenCache(tmp_path / 'tokens', tok)
    for asked in (
        dict(views=8, crop='var'),
        dict(views=2, crop='xqgan'),
        dict(views=2, crop='var', flip=False),
        {},
    ):
        e = get_preset('tiny', train=dict(steps=1) | asked)
        with pytest.raises(ValueError, match='in the cache, .* asked for'):
            train_nfig(e, tok, cache, tmp_path / 'd', **quiet)
    e = get_preset('tiny', train=dict(steps=2, views=2, crop='var'))
    train_nfig(e, tok, cache, tmp_path / 'e', **quiet)


def test_every_epoch_takes_another_view(tok, roomy, tmp_path):
    plan = plan_for(tok, roomy, views=3, crop='xqgan', amp=False, shard=64)
    cache_tokens(tmp_path, tok, roomy, plan, progress=False, workers=0)
    cache = TokenCache(tmp_path, tok)
    epochs = []
    steps = cached_batches(cache, cache.labels, 50, seed=3)
    for _ in range(4):
        rows = torch.cat([next(steps)[0] for _ in range(2)])
        epochs.append({tuple(r) for r in rows.tolist()})
    assert not epochs[0] & epochs[1] and not epochs[1] & epochs[2]
    assert epochs[3] == epochs[0]  # three views


@pytest.mark.parametrize('views', [0, 2])
def test_a_transformer_on_random_squares_is_resumed_exactly(views, tok, roomy, tmp_path):
    e = get_preset('tiny', train=dict(steps=8, batch_size=20, views=views, crop='xqgan', amp=False))
    for folder, stops in dict(whole=(None,), parts=(4, None)).items():
        for stop in stops:
            train_nfig(e, tok, roomy, tmp_path / folder, stop_after=stop, workers=0, **quiet)
    found = [
        [m['loss'] for m in Run(tmp_path / f).metrics() if 'loss' in m] for f in ('whole', 'parts')
    ]
    assert found[0] == found[1] and len(found[0]) == 8
    assert (tmp_path / 'whole/tokens').exists() == (views > 0)


def test_fresh_tokens_differ_from_epoch_to_epoch(tok, roomy):
    steps = FreshTokens(tok, roomy, 'xqgan', amp=False, workers=0).batches(100)
    a, b = [{tuple(r) for r in next(steps)[0].tolist()} for _ in range(2)]
    assert len(a & b) < 5


# As fast as the machine allows
def test_workers_are_as_many_as_there_are_processors(monkeypatch):
    import os

    from nfig.data.sets import default_workers

    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(64)), raising=False)
    monkeypatch.delenv('LOCAL_WORLD_SIZE', raising=False)
    assert default_workers() == 16
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '8')  # torchrun's word for the processes of a node
    assert default_workers() == 7
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: {3}, raising=False)
    assert default_workers() == 0


class Loader:
    "Stands for torch's `DataLoader`, and remembers how it was called"

    calls = []

    def __init__(self, dataset, batch_sampler, **how):
        self.calls.append(how)
        self.dataset = dataset
        self.order = batch_sampler

    def __iter__(self):
        return map(self.dataset.__getitems__, self.order)


@pytest.fixture
def loads(monkeypatch):
    import nfig.data.sets as S

    monkeypatch.setattr(S, 'DataLoader', Loader)
    monkeypatch.setattr(S, 'default_workers', lambda: 5)
    Loader.calls.clear()
    return Loader.calls


def test_a_run_that_encodes_for_itself_decodes_in_workers(loads, photos, tok, tmp_path):
    data = load_data(photos, 32)
    lazy = ImageData(data.images, data.labels, data.classes, 32, data.names)
    e = get_preset('tiny', train=dict(steps=1, batch_size=4))
    train_nfig(e, tok, lazy, tmp_path / 'run', val=lazy, **quiet)
    assert [c['num_workers'] for c in loads] == [5, 5]  # the cache, and the held-out images
    loads.clear()
    task = TokenizerTask(tok, lazy, replace(get_preset('tiny').train_tokenizer, batch_size=4), cpu)
    task.batch(0)
    assert [c['num_workers'] for c in loads] == [5]


@pytest.mark.parametrize('gpu', [True, False])
def test_memory_is_pinned_where_there_is_a_gpu(loads, photos, gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpu)
    data = load_data(photos, 32)
    lazy = ImageData(data.images, data.labels, data.classes, 32, data.names)
    next(iter(loader(lazy, 2)))
    assert loads[0]['pin_memory'] == gpu


def test_the_task_takes_rows_from_either_source(tok, roomy):
    "`TransformerTask.rows` is the trainer's only door to tokens"
    assert callable(TransformerTask.rows)
