"""Winograd's way gives the numbers of the plain way.

Against VAR's own code, in every mode that inference runs in.
"""

import time
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import replace

import pytest
import torch

import nfig.fast.faster as faster
import nfig.fast.winograd as winograd
from nfig.core.presets import get_preset
from nfig.tokenizer.frvae import build_tokenizer
from nfig.transformer.model import NFIGTransformer
from nfig.transformer.pipeline import NFIGPipeline
from nfig.fast.faster import GraphedTransformer
from nfig.fast.packed import FastTransformer
from nfig.fast.winograd import FastResBlock, fast
from test_var_parity import close, golden, grids, part, same_tokens, scales, vqvae


def everywhere(x, channels):
    "`suits` for networks that are too small to gain"
    return not torch.is_grad_enabled() and x.shape[-1] % 4 == 0 and x.shape[-2] % 4 == 0


def blocks(model):
    return [m for m in model.modules() if isinstance(m, FastResBlock)]


@torch.no_grad()
def test_golden(vqvae, monkeypatch):
    monkeypatch.setattr(winograd, 'suits', everywhere)
    g = golden('vqvae')
    quick = fast(vqvae)
    tokens = quick.encode(g['in.img'])
    close(quick.latent(g['in.img']), g['out.f'], 1e-4)
    same_tokens(tokens, grids('vqvae', 'out.idx'))
    close(quick.decode(tokens), g['out.rec'], 1e-4)
    assert (
        all('kernels' in vars(m) for m in blocks(quick)) and len(blocks(quick)) > 10
    )  # it was Winograd who did it


@pytest.fixture(scope='module')
def wide():
    torch.manual_seed(0)
    return build_tokenizer(
        get_preset('small', tokenizer=dict(width=64, multipliers=(1, 2, 2))).tokenizer
    ).eval()


def test_modes_agree(wide):
    """Training code, no_grad and inference mode in turn on one copy.

    The shared memory must serve all of them
    """
    x = torch.rand(3, 3, 32, 32) * 2 - 1
    quick = fast(wide)
    want = wide.latent(x)
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad, torch.inference_mode):
        with mode():
            got = quick.latent(x)
        assert (got - want).abs().max() < 1e-5 and got.requires_grad == (mode is torch.enable_grad)


@torch.no_grad()
def test_company_changes_nothing(wide):
    "An image alone and in a batch, and the input itself is left as it was"
    x = torch.rand(70, 3, 32, 32) * 2 - 1
    before = x.clone()
    quick = fast(wide)
    f = quick.latent(x)
    assert torch.equal(x, before)
    for i in (0, 40, 69):
        close(quick.latent(x[i : i + 1]), f[i : i + 1], 1e-5)


def test_weights_are_shared_and_the_original_is_untouched(wide):
    before = {k: v.clone() for k, v in wide.state_dict().items()}
    quick = fast(wide)
    assert (
        {id(p) for p in quick.parameters()} == {id(p) for p in wide.parameters()}
        and not blocks(wide)
        and blocks(quick)
    )
    assert list(wide.state_dict()) == list(before) and all(
        torch.equal(v, before[k]) for k, v in wide.state_dict().items()
    )


@torch.no_grad()
def test_other_precisions_take_the_plain_way(wide):
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    quick = fast(deepcopy(wide.encoder).to(torch.bfloat16))
    assert torch.isfinite(quick(x.bfloat16())).all() and not any(
        'kernels' in vars(m) for m in blocks(quick)
    )
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.isfinite(fast(wide).latent(x).float()).all()


def test_plain_products_where_packed_ones_are_slower(monkeypatch):
    "A machine on which the packed operator loses the race gets plain layers, and the same numbers"
    import nfig.fast.packed as packed

    quick = packed.packed_linear

    def slow(*args):
        time.sleep(0.2)
        return quick(*args)

    w, b, x = torch.randn(1024, 512), torch.randn(1024), torch.randn(3, 512)
    if not packed.can_pack(w):
        pytest.skip('no packed operators here')
    packed.packing_pays.cache_clear()
    monkeypatch.setattr(packed, 'packed_linear', slow)
    layer = packed.PackedLinear(w, b)
    packed.packing_pays.cache_clear()
    assert layer.way is packed.plain_linear
    torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, w, b))


def test_never_a_precision_that_is_imitated(monkeypatch):
    "A processor without bfloat16: float32 with a word, bfloat16 only for who insists"
    pipe = NFIGPipeline.from_pretrained('fashion-mnist')
    monkeypatch.setattr(faster, 'native_bf16', lambda device: False)
    with pytest.warns(UserWarning, match='no instructions for bfloat16'):
        quick = faster.faster(pipe, torch.bfloat16)
    assert quick.choices['dtype'] == 'float32' and 'float32' in repr(quick)
    insisted = faster.faster(pipe, torch.bfloat16, anyway=True)
    assert insisted.choices['dtype'] == 'bfloat16'
    with pytest.warns(UserWarning, match='threads'):
        monkeypatch.setattr(torch, 'get_num_threads', lambda: 999)
        faster.check_threads()


def test_a_last_smaller_batch_is_filled():
    "The transformer sees one batch size only, and the images are those of full batches"
    pipe = NFIGPipeline.from_pretrained('fashion-mnist')
    labels, sizes = [1, 2, 3, 4, 5], []
    want = pipe(labels, batch_size=2, top_k=1)
    new_cache = pipe.transformer.new_cache
    pipe.transformer.new_cache = lambda batch: sizes.append(batch) or new_cache(batch)
    for pads, seen in ((False, [4, 4, 2]), (True, [4, 4, 4])):
        pipe.pads = pads
        sizes.clear()
        got = pipe(labels, batch_size=2, top_k=1)
        assert sizes == seen
        torch.testing.assert_close(got, want, atol=1e-4, rtol=0.0)
    sizes.clear()
    assert pipe([1], batch_size=64).shape[0] == 1 and sizes == [
        2
    ]  # a call of its own is not filled


class Repeated:
    "Stands for a recording: a stage runs twice when it is made, and again at each use"

    pool = None

    def __init__(self, fn, pool=None):
        fn()
        fn()
        self.fn = fn

    def __call__(self):
        return self.fn()


def voiced(config):
    "A new transformer whose blocks and head have something to say"
    torch.manual_seed(0)
    t = NFIGTransformer(config).eval()
    for layer in (*(b.ada[1] for b in t.blocks), t.head):
        torch.nn.init.normal_(layer.weight, std=0.3)
    return t


def drawn(pipe, transformer, **settings):
    "The tokens of two batches, whose images are of five classes"
    other = copy(pipe)
    other.transformer = transformer
    walks = other.batches(list(range(5)), 1, 0, 3, **settings)
    return torch.cat([torch.cat([s.tokens.clone() for s in w], 1) for w in walks])


@pytest.mark.parametrize('sees', [0, 1, 2])
def test_a_cache_that_forgets(sees):
    "Packed, recorded, in previews, guided to the end or not: the tokens of the plain model"
    e = get_preset('tiny', transformer=dict(sees=sees))
    plain = voiced(e.transformer)
    pipe = NFIGPipeline(build_tokenizer(e.tokenizer), plain)
    packed = FastTransformer(plain)
    recorded = GraphedTransformer(packed, Repeated)
    whole = voiced(replace(e.transformer, sees=None))
    assert (drawn(pipe, plain) != drawn(pipe, whole)).any()
    for settings in ({}, dict(stages=2), dict(schedule='coarse'), dict(cfg_scale=0.0), {}):
        want = drawn(pipe, plain, **settings)
        for t in (packed, recorded):
            assert torch.equal(drawn(pipe, t, **settings), want)
    c = plain.config
    reads = [None] + [torch.randn(3, s * s, c.latent_dim) for s in c.scales[1:]]
    labels = torch.tensor([0, 1, c.classes])
    with torch.no_grad():
        want = plain(labels, torch.cat(reads[1:], 1))  # by the mask, all stages at once
        for t in (plain, packed, recorded, recorded):
            cond, cache = t.embed_class(labels), t.new_cache(3)
            got = [t.stage(i, cond, x, cache).clone() for i, x in enumerate(reads)]
            close(torch.cat(got, 1), want, 1e-5)
    everything = voiced(replace(e.transformer, sees=9))
    assert torch.equal(drawn(pipe, everything), drawn(pipe, whole))


class Queue:
    "A stand-in for a CUDA stream: it may read what it made, and what it waited for"

    def __init__(self):
        self.device, self.there, self.keeps = 'cuda', [], []

    def wait_stream(self, other):
        self.there += other.there

    def holds(self, tensors, t):
        return any(o is t for o in tensors)


@pytest.fixture
def queues(monkeypatch):
    "Two queues, and a list whose last one is in use"
    first, second = Queue(), Queue()
    now = [first]

    @contextmanager
    def using(queue):
        now.append(queue)
        yield
        now.pop()

    monkeypatch.setattr(torch.cuda, 'current_stream', lambda device: now[-1])
    monkeypatch.setattr(torch.cuda, 'stream', using)
    monkeypatch.setattr(torch.Tensor, 'record_stream', lambda t, queue: queue.keeps.append(t))
    return first, second, now


def test_two_queues_never_read_what_is_not_there(queues):
    "Every read waits for its write, memory is kept for who reads it, and the work does overlap"
    first, second, now = queues
    made, order = [], []

    def sums():
        for i in range(3):
            order.append(f'sum {i}')
            made.append(torch.full((2,), float(i)))
            first.there.append(made[-1])
            yield made[-1]

    def decode(x):
        order.append(f'picture {len(order) // 2}')
        assert now[-1] is second and second.holds(second.there, x)
        second.there.append(2 * x)
        return second.there[-1]

    done = faster.beside(decode, sums(), second)
    assert now == [first]
    assert all(first.holds(first.there, y) and first.holds(first.keeps, y) for y in done)
    assert all(second.holds(second.keeps, x) for x in made)
    assert [y[0].item() for y in done] == [0.0, 2.0, 4.0]
    # a batch is asked for when the decoder has been asked for the one before it
    assert order == ['sum 0', 'picture 0', 'sum 1', 'picture 1', 'sum 2', 'picture 2']


def test_extras_of_a_gpu_change_no_picture(queues, monkeypatch):
    "A second stream and a search, as on a GPU, and the pictures that there are without them"
    pipe = NFIGPipeline.from_pretrained('fashion-mnist')
    plain, quick = faster.faster(pipe), faster.faster(pipe)
    assert plain.second is None and 'beside' not in plain.choices
    quick.second, quick.choices = queues[1], dict(search=True)
    searched = []
    decode = type(quick.tokenizer).decode_latent

    def noted(self, f_hat):
        searched.append(torch.backends.cudnn.benchmark)
        return decode(self, f_hat)

    monkeypatch.setattr(type(quick.tokenizer), 'decode_latent', noted)
    pictures = [p([1, 2, 3, 4, 5], batch_size=2, seed=7) for p in (plain, quick)]
    assert torch.equal(*pictures) and searched == [False] * 3 + [True] * 3
    assert len(queues[1].keeps) == 3 and not torch.backends.cudnn.benchmark


def test_each_extra_can_be_left_out(monkeypatch):
    monkeypatch.setattr(faster, 'joined_pays', lambda device, dtype: False)
    cuda, half = torch.device('cuda'), torch.bfloat16
    assert faster.chosen_extras(cuda, half) == dict(search=True, joined=False, beside=True)
    monkeypatch.setattr(faster, 'joined_pays', lambda device, dtype: True)
    for name in faster.extras:
        used = faster.chosen_extras(cuda, half, [name])
        assert [k for k, on in used.items() if not on] == [name]
    pipe = NFIGPipeline.from_pretrained('fashion-mnist')
    with pytest.raises(ValueError, match="Did you mean 'beside'"):
        faster.faster(pipe, without=['besides'])
