"""The baseline of the paper's Table 5 goes through the same code.

Parts and processes of the trainer are in test_distributed.py.
"""

import json

from nfig.core.presets import get_preset
from nfig.data.sources import load_data
from nfig.transformer.pipeline import NFIGPipeline
from nfig.tokenizer.frvae import FRVAE
from nfig.train.transformer import train_nfig
from nfig.train.tokenizer import train_tokenizer


def test_raster_through_both_trainers(tmp_path):
    """Tokenizer and transformer of the raster baseline, trained, saved, loaded, sampled by the code
    that serves the bands"""
    e = get_preset('raster_tiny', train_tokenizer=dict(steps=4), train=dict(steps=6))
    quiet = dict(progress=False, device='cpu', preview_every=100)
    data = load_data('fashion-mnist-5k').subset(list(range(0, 5000, 100)))
    train_tokenizer(e, data, tmp_path / 'tok', **quiet)
    train_nfig(
        e,
        FRVAE.from_pretrained(tmp_path / 'tok' / 'tokenizer'),
        data,
        tmp_path / 'run',
        log_every=1,
        **quiet,
    )
    lines = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
    log = [json.loads(line) for line in lines]
    losses = [m['loss'] for m in log if 'loss' in m]
    assert losses[-1] < losses[0] and len(log[0]['stage_loss']) == 1
    pipe = NFIGPipeline.from_pretrained(tmp_path / 'run' / 'pipeline')
    assert pipe.transformer.config.order == 'raster'
    assert pipe([0, 1], seed=3).shape == (2, 3, 32, 32) and 'raster order, 64 steps' in pipe.card()
