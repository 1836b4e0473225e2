"""Training, generation and measuring on CUDA tensors that hold no numbers: what would fail on a
GPU, and where the host would wait for it.

A tensor of the processor that meets one of the GPU raises an error, as it would there. What
makes the host wait is compared with the list below. Kernels, recordings of kernels and the
memory they take are not seen: that is `test_gpu.py`, on a GPU."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

here = Path(__file__).resolve().parent / 'fakecuda'
pinned = re.search(r'^torch==(\S+)', (here.parent.parent / 'constraints.txt').read_text(), re.M)[1]

pytestmark = [
    pytest.mark.skipif(not shutil.which('g++'), reason='needs g++'),
    pytest.mark.skipif(
        torch.version.cuda is not None, reason='a PyTorch with CUDA has a device of its own'
    ),
    pytest.mark.skipif(
        torch.__version__.split('+')[0] != pinned, reason=f'uses the insides of PyTorch {pinned}'
    ),
]

# the most waits of each function and kind, in a step of two parts or for a batch of images, and why
finite = {'check_finite copy cuda to cpu': 1}  # a step must not go on with infinite numbers
draws = {'uniforms copy cpu to cuda': 1}  # an image's random numbers, once for all its stages
anything = None  # every tenth step, or not in a loop

allowed = dict(
    tokenizer_small=finite,
    tokenizer_energy=finite,
    tokenizer_dropout=finite,
    tokenizer_256=finite,
    tokenizer_dino=finite,
    refresh=anything,
    preview={},
    decoder_beside={'uniforms copy cpu to cuda': 2},  # as `draws`, for two batches
    norms_compiled={},
    measures=anything,
    token_cache={},
    transformer_small=finite,
    transformer_256=finite,
    transformer_raster=finite,
    **{
        f'generate_{k}': draws
        for k in (
            'plain',
            'constant',
            'coarse',
            'top_p',
            'greedy',
            'unguided',
            'last',
            'exit',
            '256',
        )
    },
)


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    "name of a case -> what became of it; one process runs them all"
    guard = tmp_path_factory.mktemp('guard') / 'guard.so'
    include = Path(torch.__file__).parent / 'include'
    build = [
        'g++',
        '-O1',
        '-shared',
        '-fPIC',
        '-std=c++20',
        f'-I{include}',
        str(here / 'guard.cpp'),
        '-o',
        str(guard),
    ]
    made = subprocess.run(build, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-2000:]
    env = os.environ | dict(FAKE_CUDA_GUARD=str(guard), OMP_NUM_THREADS='1')
    p = subprocess.run(
        [sys.executable, str(here / 'cases.py')],
        capture_output=True,
        text=True,
        env=env,
        timeout=600,
    )
    assert p.returncode == 0, p.stderr[-3000:]
    return {r['name']: r for r in map(json.loads, p.stdout.splitlines())}


def test_all_cases_are_listed(results):
    assert set(results) == set(allowed) | {'sees_a_mismatch', 'sees_waits'}


@pytest.mark.parametrize('name', allowed)
def test_runs(results, name):
    assert results[name]['wrong'] is None


@pytest.mark.parametrize('name', [n for n, a in allowed.items() if a is not anything])
def test_waits(results, name):
    "No function waits for the GPU, but for those that have to"
    waits = {k.partition('.')[2]: n for k, n in results[name]['waits'].items()}
    more = {k: n for k, n in waits.items() if n > allowed[name].get(k, 0)}
    assert not more, f'{name} waits for the GPU in {more}'


def test_it_can_fail(results):
    "A mismatch is seen, and so is every kind of wait"
    assert 'two devices' in results['sees_a_mismatch']['wrong']
    kinds = {k.split(' ', 1)[1] for k in results['sees_waits']['waits']}
    assert kinds == {
        'item',
        'bincount',
        'nonzero',
        'boolean index',
        'copy cpu to cuda',
        'copy cuda to cpu',
    }
