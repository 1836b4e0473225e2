"""The tokenizer's trainer with everything switched on.

What is resumed, what is fitted, what is refused.
"""

from dataclasses import replace

import pytest
import torch
from nfig.core.presets import get_preset
from nfig.data.sources import from_arrays, load_data, square
from nfig.tokenizer.frvae import FRVAE, build_tokenizer
from nfig.train.tokenizer import TokenizerTask, train_tokenizer
from nfig.core.io import flatten
from nfig.train.run import Run

quiet = dict(log_every=4, save_every=4, preview_every=100, progress=False)


@pytest.fixture(scope='module')
def data():
    return load_data('fashion-mnist-5k')


def test_resume_is_bit_for_bit_with_critic_parts_crops_gains_and_fitted_bands(data, tmp_path):
    e = get_preset(
        'tiny',
        tokenizer=dict(division='energy', gains=True),
        train_tokenizer=dict(
            steps=20, batch_size=8, accumulate=2, crop='xqgan', gan=0.5, gan_start=0.2
        ),
    )
    some = square(data.images[:500], 40)[:, 0]  # room for crops
    data = from_arrays(some, data.labels[:500], data.classes, 32)
    train_tokenizer(e, data, tmp_path / 'whole', **quiet)
    train_tokenizer(e, data, tmp_path / 'parts', stop_after=10, **quiet)
    train_tokenizer(e, data, tmp_path / 'parts', **quiet)
    (a, sa), (b, sb) = (flatten(Run(tmp_path / o).latest()['task']) for o in ('whole', 'parts'))
    assert sa == sb and set(a) == set(b) and any(k.startswith('critic/') for k in a)
    assert not [k for k in a if not torch.equal(a[k], b[k])]
    logs = [
        [
            {k: v for k, v in m.items() if k not in ('seconds', 'images_per_second')}
            for m in Run(tmp_path / o).metrics()
            if m['step'] % 4 == 0
        ]
        for o in ('whole', 'parts')
    ]
    assert logs[0] == logs[1] and {'gan', 'gan_weight', 'critic', 'critic_grad_norm'} <= set(
        logs[0][-1]
    )


def test_energy_division_is_fitted_and_saved(data, tmp_path):
    e = get_preset(
        'tiny', tokenizer=dict(division='energy'), train_tokenizer=dict(steps=4, batch_size=16)
    )
    tok = train_tokenizer(e, data, tmp_path / 'run', **quiet)
    back = FRVAE.from_pretrained(tmp_path / 'run' / 'tokenizer')
    assert len(back.config.edges) == 4 and back.config.edges == tok.config.edges
    assert torch.equal(back.quantizer.target.low, tok.quantizer.target.low)


def test_explicit_edges_are_not_fitted(data):
    e = get_preset('tiny', tokenizer=dict(division='energy', edges=(1.0, 2.0, 4.0, 6.0)))
    task = TokenizerTask(build_tokenizer(e.tokenizer), data, e.train_tokenizer, torch.device('cpu'))
    task.step(0)
    assert task.model.config.edges == (1.0, 2.0, 4.0, 6.0)


def test_parts_of_a_batch_must_be_equal(data):
    e = get_preset('tiny')
    with pytest.raises(ValueError, match='divisor'):
        TokenizerTask(
            build_tokenizer(e.tokenizer),
            data,
            replace(e.train_tokenizer, accumulate=5),
            torch.device('cpu'),
        )


def test_gradient_of_the_parts_is_that_of_the_whole(data):
    "Without batch statistics (latent_norm) the mean over the parts is the gradient of the batch"

    def grads(n):
        e = get_preset(
            'tiny',
            tokenizer=dict(latent_norm=False),
            train_tokenizer=dict(accumulate=n, amp=False, flip=False),
        )
        torch.manual_seed(0)
        task = TokenizerTask(
            build_tokenizer(e.tokenizer), data, e.train_tokenizer, torch.device('cpu')
        )
        task.cfg = replace(task.cfg, clip=0.0)
        task.step(0)
        return [p.grad for p in task.model.parameters() if p.grad is not None]

    for a, b in zip(grads(1), grads(4)):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-4)
