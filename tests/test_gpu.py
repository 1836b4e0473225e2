"What only a GPU can show. Skipped without one; `bench/h100.sh` runs it."

from copy import copy

import numpy as np
import pytest
import torch

from nfig.bands.frequency import precise
from nfig.core.presets import get_preset
from nfig.fast.faster import fast_tokenizer, faster
from nfig.transformer.pipeline import NFIGPipeline
from nfig.use.sample import sample_set
from nfig.tokenizer.frvae import build_tokenizer
from nfig.transformer.model import NFIGTransformer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')


def tokens(pipe, labels, **kw):
    return torch.cat(
        [
            torch.cat([s.tokens.clone() for s in walk], 1)
            for walk in pipe.batches(labels, 1, 0, 64, **kw)
        ]
    )


@pytest.fixture(scope='module')
def pipe():
    return NFIGPipeline.from_pretrained('fashion-mnist').to('cuda')


@pytest.fixture(scope='module')
def exact(pipe):
    return faster(pipe, torch.float32)


def test_recorded_stages_give_the_plain_tokens(pipe, exact):
    """Float32, greedy: two batches through the same recordings, then another batch size, then
    without guidance"""
    for labels in ([1, 2, 3], [4, 5, 6], [7]):
        same = (tokens(exact, labels, top_k=1) == tokens(pipe, labels, top_k=1)).float().mean()
        assert same > 0.99, (
            f'{same:.3f} of the tokens agree for {labels}'
        )  # sums are formed in another order; a tie may fall the other way
    assert (
        tokens(exact, [1, 2], top_k=1, cfg_scale=0.0)
        == tokens(pipe, [1, 2], top_k=1, cfg_scale=0.0)
    ).float().mean() > 0.99


def test_replay_gives_the_same_images_twice(exact):
    a = exact([1, 2, 3], seed=5)
    b = exact([1, 2, 3], seed=5)
    assert torch.equal(a, b) and not torch.equal(a, exact([1, 2, 3], seed=6))


def test_a_second_stream_changes_no_picture(exact):
    "Seven batches, the last one filled, three times: with and without, bit by bit"
    serial = copy(exact)
    serial.second = None
    labels = list(range(10)) * 10
    for seed in range(3):
        a, b = (p(labels, seed=seed, batch_size=16) for p in (exact, serial))
        assert exact.second is not None and torch.equal(a, b)


def test_enlargements_in_one_kernel(pipe):
    "The numbers of two kernels"
    f = torch.randn(4, 16, 8, 8, device='cuda')
    joined, plain = (fast_tokenizer(pipe.tokenizer, torch.float32, on) for on in (True, False))
    with torch.no_grad(), precise(f):
        a, b = (tok.decode_latent(f) for tok in (joined, plain))
    torch.testing.assert_close(a, b, atol=1e-4, rtol=0.0)


def test_bfloat16_draws(pipe):
    x = faster(pipe)(list(range(10)))
    assert torch.isfinite(x).all() and x.shape[0] == 10


def test_sample_set(exact, tmp_path):
    images = np.load(
        sample_set(exact, tmp_path / 'a', n=40, batch_size=16, part=32, progress=False)
    )['arr_0']
    assert images.shape[0] == 40 and images.dtype == np.uint8


def test_training_step_in_pieces_equals_the_mask():
    torch.manual_seed(0)
    t = NFIGTransformer(get_preset('tiny').transformer).cuda().eval()
    c = t.config
    for b in t.blocks:
        torch.nn.init.normal_(b.ada[1].weight, std=0.3)
    cut = t.chunks
    labels = torch.zeros(2, dtype=torch.int64, device='cuda')
    x = torch.randn(2, t.ends[-1] - t.ends[0], c.latent_dim, device='cuda')

    def grads(pieces):
        t.chunks = pieces
        t.zero_grad()
        t(labels, x).square().mean().backward()
        return [p.grad.clone() for p in t.blocks.parameters()]

    for a, b in zip(grads(()), grads(cut)):
        assert torch.allclose(a, b, atol=1e-4)
