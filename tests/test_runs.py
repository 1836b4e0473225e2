"A run that went wrong goes on, two never share a folder, held-out images say which state is best."

import json
import re
import subprocess
import sys
import threading
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import nn

import nfig.train.tokenizer as trainer
from nfig.core.config import TokenizerTraining, TransformerTraining
from nfig.core.presets import get_preset
from nfig.data.sources import load_data
from nfig.train.loop import advice, fit
from nfig.train.run import Checkpoints, Run
from nfig.train.status import status
from nfig.train.tokenizer import TokenizerTask, last_layer, train_tokenizer

tiny = get_preset('tiny', train_tokenizer=dict(steps=12, batch_size=16, amp=False))
every = dict(log_every=2, save_every=2, preview_every=6, progress=False)
golden = Path(__file__).parent / 'fixtures' / 'tiny_tokenizer_curve.json'


@pytest.fixture(scope='module')
def data():
    return load_data('fashion-mnist-5k')


def test_the_advice_names_settings_that_exist():
    "Before, it advised what the folder then refused"
    named = re.findall(r'--set train\.(\w+)=', advice)
    for config in (TokenizerTraining, TransformerTraining):
        assert set(named) <= {f.name for f in fields(config)} and len(named) == 3
    assert '--lr' in advice


def test_a_run_goes_on_with_another_rate_clip_and_precision(data, tmp_path):
    "Before, each of them was 'other settings'"
    train_tokenizer(tiny, data, tmp_path, stop_after=4, **every)
    calmer = replace(tiny.train_tokenizer, lr=1e-4, clip=0.5, amp=True, skip=2)
    train_tokenizer(replace(tiny, train_tokenizer=calmer), data, tmp_path, **every)
    start = json.loads((tmp_path / 'starts.jsonl').read_text().splitlines()[-1])
    assert set(start['changed']) == {f'train.{n}' for n in ('lr', 'clip', 'amp', 'skip')}
    assert start['changed']['train.lr'] == [tiny.train_tokenizer.lr, 1e-4] and start['step'] == 4
    log = Run(tmp_path).metrics()
    assert [m['changed']['train.lr'] for m in log if 'changed' in m] == [1e-4]
    assert max(m['lr'] for m in log if m['step'] > 4 and 'lr' in m) <= 1e-4


def poisoned(step, at):
    "A step of the task that meets pictures which are not numbers"

    def run(self, k):
        batch = TokenizerTask.batch
        if k in at:
            self.batch = lambda k: batch(self, k) * float('nan')
        try:
            return step(self, k)
        finally:
            self.__dict__.pop('batch', None)

    return run


def test_a_bad_batch_is_left_out_and_leaves_no_trace(data, tmp_path, monkeypatch):
    monkeypatch.setattr(TokenizerTask, 'step', poisoned(TokenizerTask.step, {5}))
    skipping = replace(tiny, train_tokenizer=replace(tiny.train_tokenizer, skip=1))
    tok = train_tokenizer(skipping, data, tmp_path / 'run', **every)
    log = Run(tmp_path / 'run').metrics()
    assert [(m['step'], m['skipped']) for m in log if 'skipped' in m] == [(6, 1)]
    assert all(v.isfinite().all() for v in tok.state_dict().values())
    trained = Run(tmp_path / 'run').latest()['task']['model']
    assert all(v.isfinite().all() for v in trained.values())  # running statistics among them
    with pytest.raises(FloatingPointError, match='step 5: pixel'):
        train_tokenizer(tiny, data, tmp_path / 'other', **every)


def test_too_many_bad_batches_in_a_row_end_the_run(data, tmp_path, monkeypatch):
    monkeypatch.setattr(TokenizerTask, 'step', poisoned(TokenizerTask.step, {3, 4, 5}))
    skipping = replace(tiny, train_tokenizer=replace(tiny.train_tokenizer, skip=2))
    with pytest.raises(FloatingPointError, match='step 5'):
        train_tokenizer(skipping, data, tmp_path, **every)


second = """
import sys
from nfig.train.run import Run
try:
    Run(sys.argv[1], dict(train=dict(lr=1)))
except ValueError as e:
    print(e)
"""


def test_a_second_run_in_a_folder_says_who_holds_it_and_ends(tmp_path):
    "Before, both wrote there in turns"
    command = [sys.executable, '-c', second, str(tmp_path)]
    with Run(tmp_path, dict(train=dict(lr=1))):
        said = subprocess.run(command, capture_output=True, text=True).stdout
    assert f'{tmp_path} is in use' in said and 'is training in it' in said
    assert not (tmp_path / 'running.json').exists()


class Slow:
    "Its state changes while a checkpoint is being written"

    def __init__(self):
        self.w = torch.zeros(300_000)

    def step(self, k):
        self.w += 1
        return dict(loss=1.0 / (k + 1))

    def state(self):
        return dict(w=self.w)

    def load(self, s):
        self.w = s['w']

    def preview(self, folder, k):
        return {}

    def finish(self, folder):
        pass


def test_checkpoints_in_the_background_hold_the_moment_they_were_asked_for(tmp_path):
    run = Run(tmp_path, keep=9)
    fit(Slow(), run, total=8, batch_size=1, save_every=2, progress=False)
    for path in Run(tmp_path).checkpoints():
        state = trainer.Run(tmp_path).saved and path
        step = int(path.stem[5:])
        from nfig.core.io import load_state

        assert load_state(state)['task']['w'].unique().tolist() == [step]


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    "Before, all processes waited for the disk of one"
    go, waited, save = threading.Event(), [], Checkpoints.save

    def slow(*args):
        waited.append(go.wait(3))
        save(*args)

    monkeypatch.setattr(Checkpoints, 'save', slow)
    run = Run(tmp_path)
    run.save(1, dict(w=torch.ones(2)))
    go.set()  # not before `save` has come back
    assert len(run.checkpoints()) == 1 and waited == [True]


def test_checkpoints_by_time(tmp_path):
    fit(Slow(), Run(tmp_path, keep=9), total=6, batch_size=1, save_minutes=1e-9, progress=False)
    assert len(Run(tmp_path).checkpoints()) == 6


class Quarters(nn.Module):
    "Features for a test: the colours of four quarters"

    name = 'quarters'

    def forward(self, x):
        return (nn.functional.adaptive_avg_pool2d(x, 2).flatten(1),)


def validated(folder, data, steps=24, **changes):
    "A short run of the tiny preset with held-out images"
    few = data.subset(list(range(0, 5000, 5)))
    held_out = data.subset(list(range(1, 5000, 50)))
    cfg = replace(tiny.train_tokenizer, steps=steps, flip=False, **changes)
    how = dict(log_every=4, save_every=0, preview_every=8, progress=False)
    train_tokenizer(replace(tiny, train_tokenizer=cfg), few, folder, val=held_out, **how)
    return Run(folder)


@pytest.fixture
def quarters(monkeypatch):
    monkeypatch.setattr(trainer, 'found_extractor', Quarters)


def test_the_best_checkpoint_is_that_of_held_out_images(data, tmp_path, quarters):
    run = validated(tmp_path, data)
    log = [m for m in run.metrics() if 'val_fd' in m]
    assert [m['step'] for m in log] == [8, 16, 24] and log[-1]['val_features'] == 'quarters'
    best = min(log, key=lambda m: m['val_fd'])
    assert run.saved.best().stem == f'step_{best["step"]:08d}'
    assert f'{log[-1]["val_psnr"]:.1f} dB' in status(tmp_path)


def test_a_distance_that_grows_again_leaves_the_earlier_checkpoint_the_best(
    data, tmp_path, quarters, monkeypatch
):
    "Before, the training loss chose, which only falls"
    distances = iter((3.0, 1.0, 2.0))
    monkeypatch.setattr(trainer, 'frechet_distance', lambda real, fake: next(distances))
    run = validated(tmp_path, data)
    assert run.saved.best().stem == 'step_00000016'


def curve(run):
    "What a run is compared by"
    log = run.metrics()
    return dict(
        pixel=[m['pixel'] for m in log if 'pixel' in m],
        val_psnr=[m['val_psnr'] for m in log if 'val_psnr' in m],
    )


def test_a_short_run_follows_the_golden_curve(data, tmp_path, quarters):
    "Written by `python tests/test_runs.py`; half the learning rate or no phi is far outside"
    want, got = json.loads(golden.read_text()), curve(validated(tmp_path, data))
    for name, values in want.items():
        assert got[name] == pytest.approx(values, rel=0.05), name
    slower = curve(validated(tmp_path / 'slower', data, lr=tiny.train_tokenizer.lr / 2))
    assert slower['pixel'] != pytest.approx(want['pixel'], rel=0.05)


if __name__ == '__main__':
    import tempfile

    trainer.found_extractor = Quarters
    with tempfile.TemporaryDirectory() as d:
        found = curve(validated(Path(d), load_data('fashion-mnist-5k')))
    golden.write_text(json.dumps(found, indent=1) + '\n')
