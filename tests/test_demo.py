"What the bundled checkpoint is expected to show: every class, varied, and nothing learnt by heart."

import pytest
import torch
from nfig.core.tensors import to_float
from nfig.data.sources import load_data
from nfig.transformer.pipeline import NFIGPipeline, bundled


@pytest.fixture(scope='module')
def pipe():
    return NFIGPipeline.from_pretrained('fashion-mnist')


@pytest.fixture(scope='module')
def data():
    return load_data('fashion-mnist-5k')


@pytest.fixture(scope='module')
def samples(pipe):
    return pipe(list(range(10)), n=8, seed=0)  # (80,3,32,32)


def flat(data):
    return torch.cat(
        [
            to_float(data.__getitems__(list(range(i, i + 1000)))[0])
            for i in range(0, len(data), 1000)
        ]
    ).flatten(1)


def test_the_nearest_real_images_are_of_the_class_asked_for(samples, data):
    near = torch.cdist(samples.flatten(1), flat(data)).topk(5, largest=False).indices  # (80,5)
    votes = data.labels[near].mode(1).values
    agree = (votes == torch.arange(10).repeat_interleave(8)).float().mean().item()
    assert agree > 0.6, (
        f'{agree:.0%} of the samples look like their class; guessing would give 10 %'
    )


def test_samples_of_a_class_differ(samples):
    for of_class in samples.flatten(1).unflatten(0, (10, 8)):
        d = torch.cdist(of_class, of_class)[~torch.eye(8, dtype=torch.bool)]
        assert d.min() > 1.0, 'two samples are (nearly) the same picture'


def test_samples_are_no_copies(samples, data):
    real = flat(data)
    some = real[::50]
    own = (
        torch.cdist(some, real).topk(2, largest=False).values[:, 1].median()
    )  # how close real images are to each other
    assert torch.cdist(samples.flatten(1), real).min(1).values.median() > 0.3 * own


def test_reconstructions_are_close(pipe, data):
    x = to_float(data.__getitems__(list(range(0, 5000, 50)))[0])
    psnr = 10 * torch.log10(4 / (pipe.reconstruct(x) - x).pow(2).mean())
    assert psnr > 20, f'{psnr:.1f} dB'


def test_history_is_bundled(pipe):
    from nfig.core.io import assets

    for name in bundled():
        for part in ('tokenizer', 'transformer'):
            for f in ('config.json', 'metrics.jsonl', 'starts.jsonl'):
                assert (assets / name / 'history' / f'{part}-{f}').is_file()
