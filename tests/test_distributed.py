"""One process and two: the same run. Processors connected by Gloo; GPUs take the same path through
NCCL. One start of `torchrun` does all that goes well, one each what does not, since most of the
time goes into starting."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from nfig.core.presets import get_preset
from nfig.data.sources import from_arrays, load_data, square
from nfig.transformer.pipeline import NFIGPipeline
from nfig.tokenizer.frvae import FRVAE
from nfig.train.transformer import TransformerTask, train_nfig
from nfig.train.tokenizer import train_tokenizer
from nfig.train.run import Run


def torchrun(folder, program, *args, n=2):
    "A program run by `n` processes"
    (folder / 'program.py').write_text(program)
    return subprocess.run(
        [
            sys.executable,
            '-m',
            'torch.distributed.run',
            '--standalone',
            '--nproc-per-node',
            str(n),
            'program.py',
            *args,
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env=dict(os.environ, OMP_NUM_THREADS='1'),
    )


# What goes well

every = dict(log_every=1, save_every=4, preview_every=8, progress=False, device='cpu')
short = dict(steps=8, batch_size=16, warmup=0.5, lr=1e-3, amp=False)
fitted = get_preset(
    'tiny',
    tokenizer=dict(gains=True, division='energy'),
    train_tokenizer=short | dict(accumulate=2, crop='xqgan'),
)  # flips, crops, parts, gains, fitted bands
gan = dict(gan=0.5, gan_start=0.2, lecam=0.1, accumulate=2, stage_dropout=0.3)
critical = get_preset('tiny', train_tokenizer=short | gan)
halved = get_preset('tiny', train_tokenizer=short | gan | dict(amp=True, steps=2))
drawn = get_preset(
    'tiny', train=short | dict(accumulate=2), transformer=dict(label_drop=0.0, drop_path=0.0)
)  # noise falls differently on shares


def pictures():
    "Four hundred of 40 pixels, as squares of 32: room for crops"
    small = load_data('fashion-mnist-5k').subset(range(400))
    return from_arrays(square(small.images, 40)[:, 0], small.labels, small.classes, 32)


program = '''
import os, signal, sys

sys.path.insert(0, sys.argv[1])
from test_distributed import *
import nfig.core.tensors
from nfig.core.distributed import destroy_distributed, init_distributed, mean_over, world

init_distributed('cpu')
data = pictures()


def refusal(e):
    try:
        train_tokenizer(e, data, 'refused', **every)
    except ValueError as e:
        return str(e)


train_tokenizer(fitted, data, 'fitted2', **every)
for stop in (4, None):
    train_tokenizer(critical, data, 'critical2', stop_after=stop, **every)
train_tokenizer(critical, data, 'whole2', **every)
native = nfig.core.tensors.native_bf16
nfig.core.tensors.native_bf16 = lambda device: True
train_tokenizer(halved, data, 'half2', **every)
nfig.core.tensors.native_bf16 = native
train_tokenizer(critical, data, 'critical', stop_after=4, **every)
tok = FRVAE.from_pretrained('critical2/tokenizer')
train_nfig(drawn, tok, data, 'copies', val=data, **every)
train_nfig(drawn, tok, data, 'shards', val=data, shard=True, stop_after=4, **every)
train_nfig(drawn, tok, data, 'shards1', shard=True, stop_after=4, **every)
train_nfig(drawn, tok, data, 'shards', val=data, shard=True, **every)
if world()[0]:
    print(
        'REFUSED',
        refusal(
            replace(
                fitted, train_tokenizer=replace(fitted.train_tokenizer, batch_size=18, accumulate=5)
            )
        ),
    )
else:
    refusal(
        replace(
            fitted, train_tokenizer=replace(fitted.train_tokenizer, batch_size=18, accumulate=5)
        )
    )
step = TransformerTask.step


def warned(self, k):
    if k == 2 and world()[0]:
        os.kill(os.getpid(), signal.SIGUSR1)  # only one of them gets the signal
    return step(self, k)


TransformerTask.step = warned
try:
    train_nfig(drawn, tok, data, 'warned', **every)
except SystemExit as e:
    print('CODE', e.code)
'''


@pytest.fixture(scope='module')
def two(tmp_path_factory):
    "What two processes leave behind"
    folder = tmp_path_factory.mktemp('two')
    res = torchrun(folder, program, str(Path(__file__).parent))
    assert res.returncode == 0, res.stderr[-3000:]
    return folder, res.stdout + res.stderr


@pytest.fixture(scope='module')
def data():
    return pictures()


def log(folder):
    return Run(folder).metrics()


def same(a, b, eps=1e-5):
    assert len(a) == len(b)
    for m, n in zip(a, b):
        assert set(m) == set(n)
        for k in set(m) - {'images_per_second', 'seconds', 'psnr'}:
            assert torch.allclose(
                torch.tensor(m[k], dtype=torch.float64),
                torch.tensor(n[k], dtype=torch.float64),
                rtol=eps,
                atol=eps,
            ), (m['step'], k, m[k], n[k])


def near(a, b):  # where a gradient is next to nothing, AdamW follows its rounding
    return (
        sum((v - w).square().sum() for v, w in zip(a.parameters(), b.parameters()))
        / sum(v.square().sum() for v in a.parameters())
        < 1e-5
    )


def test_tokenizer_by_two_is_that_of_one(two, data):
    """The log of two processes is that of one, number by number.

    Codebook statistics and fitted bands included
    """
    folder, _ = two
    tok = train_tokenizer(fitted, data, folder / 'fitted1', **every)
    other = FRVAE.from_pretrained(folder / 'fitted2' / 'tokenizer')
    same(log(folder / 'fitted1'), log(folder / 'fitted2'))
    assert tok.config.edges == pytest.approx(other.config.edges) and near(tok, other)
    starts = [
        json.loads((folder / f'fitted{n}' / 'starts.jsonl').read_text())['processes']
        for n in (1, 2)
    ]
    assert starts == [1, 2] and len(list((folder / 'fitted2' / 'samples').iterdir())) == 1


def test_critic_by_two_is_that_of_one_and_resumes_by_either(two, data):
    "Critic, adaptive weight, LeCam and stage dropout, with a batch in two parts"
    folder, _ = two
    tok = train_tokenizer(critical, data, folder / 'alone', **every)
    alone, whole = log(folder / 'alone'), log(folder / 'whole2')
    same(alone[:2], whole[:2], eps=2e-4)  # the critic starts with step 2
    same(alone, whole, eps=2e-2)  # AdamW's first steps follow the rounding of small gradients
    assert {'gan_weight', 'critic', 'logit_real'} <= set(log(folder / 'alone')[-1])
    assert near(tok, FRVAE.from_pretrained(folder / 'whole2' / 'tokenizer'))
    same(log(folder / 'whole2'), log(folder / 'critical2'))
    train_tokenizer(critical, data, folder / 'critical', **every)
    same(log(folder / 'whole2'), log(folder / 'critical'), eps=2e-2)


def test_half_precision_by_two_is_that_of_one(two, data, monkeypatch):
    "bfloat16, in which every product is rounded: the same numbers to its three digits"
    monkeypatch.setattr('nfig.core.tensors.native_bf16', lambda device: True)
    folder, _ = two
    train_tokenizer(halved, data, folder / 'half1', **every)
    one, other = log(folder / 'half1'), log(folder / 'half2')
    assert 'critic' in one[0]
    same(one, other, eps=2e-2)


@pytest.mark.parametrize('way', ['copies', 'shards'])
def test_transformer_by_two_is_that_of_one(two, data, way):
    folder, _ = two
    if not (folder / 'one').exists():
        train_nfig(
            drawn,
            FRVAE.from_pretrained(folder / 'critical2' / 'tokenizer'),
            data,
            folder / 'one',
            val=data,
            **every,
        )
    same(log(folder / 'one'), log(folder / way))
    a, b = (NFIGPipeline.from_pretrained(folder / o / 'pipeline').transformer for o in ('one', way))
    assert near(a, b)


def test_shards_of_two_resumed_by_one(two, data):
    folder, _ = two
    train_nfig(
        drawn,
        FRVAE.from_pretrained(folder / 'critical2' / 'tokenizer'),
        data,
        folder / 'shards1',
        **every,
    )
    same([m for m in log(folder / 'shards') if 'loss' in m], log(folder / 'shards1'))


def test_batch_that_cannot_be_shared(two):
    assert 'cannot be split into 10 equal parts (2 processes, accumulate 5)' in two[1]


def test_signal_to_one_of_two(two):
    folder, said = two
    assert (
        said.count('CODE 75') == 2
        and 'asked to stop: saved after step 3; the same command continues from there' in said
    )
    assert [p.stem for p in Run(folder / 'warned').checkpoints()] == ['step_00000003']


# What does not

dies = '''
import os, signal, sys, torch
from nfig.core.command import friendly
from nfig.core.distributed import init_distributed, mean_over, world
from nfig.train.loop import fit
from nfig.train.run import Run


class Task:
    def step(self, k):
        if k == 3 and world()[0] == 1:
            raise (
                ValueError('picture 17 is a sonata')
                if sys.argv[1] == 'raises'
                else os.kill(os.getpid(), signal.SIGKILL)
            )
        return dict(loss=mean_over(torch.ones(())))

    def state(self):
        return {}


@friendly
def main():
    init_distributed('cpu')
    fit(Task(), Run('run'), total=100_000, batch_size=1, log_every=10, save_every=2, progress=False)


main()
'''


@pytest.mark.parametrize(
    'how,named', [('raises', 'ValueError: picture 17 is a sonata'), ('is killed', 'SIGKILL')]
)
def test_a_process_that_dies_ends_the_run(tmp_path, how, named):
    "In seconds, with the process and its error named"
    began = time.monotonic()
    res = torchrun(tmp_path, dies, 'raises' if how == 'raises' else 'killed')
    assert res.returncode and time.monotonic() - began < 120, res.stderr[-3000:]
    assert named in res.stderr and '(local_rank: 1)' in res.stderr, res.stderr[-5000:]
    assert [p.stem for p in Run(tmp_path / 'run').checkpoints()] == ['step_00000002']
