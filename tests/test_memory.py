"Batches are split by what a training image keeps in memory, measured on the model that is trained."

from dataclasses import replace

import pytest
import torch

from nfig.core.presets import get_preset
from nfig.tokenizer.frvae import build_tokenizer
from nfig.train.loop import saved_bytes, split_batch
from nfig.train.tokenizer import fit_tokenizer
from nfig.train.transformer import fit_transformer
from nfig.transformer.model import NFIGTransformer

GiB = 2**30


def test_parts_fit_and_are_as_few_as_possible():
    assert split_batch(96, 0.54 * GiB, 0.06 * GiB, 70 * GiB) == (1, False)  # d16 on 80 GB
    assert split_batch(96, 1.2 * GiB, 0.13 * GiB, 70 * GiB) == (2, False)  # d24
    assert split_batch(128, 1.85 * GiB, 0.2 * GiB, 70 * GiB) == (4, False)  # d30
    assert split_batch(96, 5 * GiB, 0.5 * GiB, 70 * GiB) == (1, True)  # 14 at once are too few
    assert split_batch(6, 5 * GiB, None, 11 * GiB) == (3, False)
    with pytest.raises(ValueError, match='needs 0.50 GiB, and 0.25 are free'):
        split_batch(8, 5 * GiB, 0.5 * GiB, GiB / 4)


def test_what_a_layer_keeps():
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    assert saved_bytes(lambda: net(torch.ones(3, 4))) == 4 * 3 * (4 + 8)  # inputs, not weights


def test_a_transformer_that_does_not_fit_is_split_or_recomputed(capsys):
    e = get_preset('tiny')
    model = NFIGTransformer(e.transformer)
    cfg = replace(e.train, accumulate=0, batch_size=32)
    fixed = 16 * sum(p.numel() for p in model.parameters())
    found = [fit_transformer(cfg, model, room=fixed + mb * 2**20) for mb in (1000, 40, 10)]
    assert [c.recompute for c in found] == [False, False, True]
    assert [c.accumulate for c in found] == [1, 2, 1]
    assert 'GiB an image' in capsys.readouterr().err
    assert fit_transformer(cfg, model).accumulate == 1  # a processor's memory is not asked
    assert fit_transformer(replace(cfg, accumulate=8), model).accumulate == 8


def test_a_tokenizer_too():
    e = get_preset('tiny')
    model, cpu = build_tokenizer(e.tokenizer), torch.device('cpu')
    before = {k: v.clone() for k, v in model.state_dict().items()}
    cfg = replace(e.train_tokenizer, accumulate=0, batch_size=32)
    fixed = 16 * sum(p.numel() for p in model.parameters())
    wide, narrow = (fit_tokenizer(cfg, model, cpu, fixed + mb * 2**20) for mb in (1000, 8))
    assert wide.accumulate == 1 < narrow.accumulate
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())  # only measured
