"Measuring sets: independent implementations, kills, several processes, and memory."

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from scipy import linalg

from nfig.core.io import require
from nfig.tokenizer.features import InceptionFeatures
from nfig.evaluate.metrics import Moments, frechet_distance, inception_score, precision_recall

env = dict(os.environ, OMP_NUM_THREADS='1')


def test_against_independent_implementations():
    "FID, inception score, precision and recall of the same arrays: torch-fidelity's, scipy's formula, and brute force"
    require('torch_fidelity')
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_prc import calculate_precision_recall_part

    g = torch.Generator().manual_seed(0)
    mix = torch.randn(64, 64, generator=g)
    a, b = (
        torch.randn(n, 64, generator=g) @ mix * s + m
        for n, s, m in ((600, 1.0, 0.0), (500, 0.9, 0.3))
    )
    ours = frechet_distance(*[Moments(64).add(f) for f in (a, b)])
    theirs = fid_statistics_to_metric(
        *[fid_features_to_statistics(f) for f in (a, b)], verbose=False
    )['frechet_inception_distance']
    (m, c), (n, d) = [
        (f.double().numpy().mean(0), np.cov(f.double().numpy(), rowvar=False)) for f in (a, b)
    ]
    scipys = ((m - n) ** 2).sum() + np.trace(c + d - 2 * linalg.sqrtm(c @ d).real)
    assert ours == pytest.approx(theirs, rel=1e-3) and ours == pytest.approx(scipys, rel=1e-6)
    logits = 2 * torch.randn(300, 50, generator=g)
    assert inception_score(logits.softmax(1), 10) == pytest.approx(
        isc_features_to_metric(logits, splits=10, shuffle=False)['inception_score_mean'], rel=1e-6
    )
    assert precision_recall(a[:200], b[:150]) == pytest.approx(
        calculate_precision_recall_part(b[:150], a[:200], 3)
    )


def test_missing_inception_is_a_sentence(tmp_path):
    with pytest.raises(
        FileNotFoundError, match='weights-inception-2015-12-05.*Nothing is downloaded'
    ):
        InceptionFeatures(tmp_path / 'none.pth')


program = '''
import json,os,sys,time,resource,torch
from torch import nn
from nfig.core.config import presets
from nfig.core.distributed import init_distributed,destroy_distributed
from nfig.use.evaluate import together
from nfig.transformer.pipeline import NFIGPipeline
from nfig.core.parts import parse_share
from nfig.evaluate.generator import GeneratedImages,NpzImages,evaluate_samples
from nfig.tokenizer.frvae import build_tokenizer
from nfig.transformer.model import NFIGTransformer
class Eyes(nn.Module):
    name = 'Eyes'
    def forward(self, x):
        time.sleep(float(os.environ.get('SLOW','0'))); f = nn.functional.adaptive_avg_pool2d(x,4).flatten(1); return f,f[:,:5].softmax(1)
def run(what, n, work):
    torch.manual_seed(0); e = presets['tiny']
    if what=='drawn': images,size = GeneratedImages(NFIGPipeline(build_tokenizer(e.tokenizer),NFIGTransformer(e.transformer)), n),10
    else: images,size = NpzImages(what),1000
    m = together(lambda: evaluate_samples(images, NpzImages('real.npz'), Eyes(), folder=work, n=n, where='reference-'+work, size=size, neighbours=500, batch=size//10+9, shard=parse_share(), progress=False))
    return m and m|dict(memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024)
init_distributed('cpu'); found = [run(what,int(n),what+n+sys.argv[1]) for what,n in (o.split(':') for o in sys.argv[2:])]
if destroy_distributed(): print(json.dumps(found))
'''


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A folder with the program, 60 real images, and files of many"
    d = tmp_path_factory.mktemp('sets')
    (d / 'program.py').write_text(program)
    for name, n in (('real', 60), ('2000', 2000), ('8000', 8000)):
        np.savez(
            d / f'{name}.npz',
            np.random.default_rng(n).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8),
        )
    return d


def measured(place, *args, n=1, **more):
    how = (
        [sys.executable]
        if n == 1
        else [
            sys.executable,
            '-m',
            'torch.distributed.run',
            '--standalone',
            '--nproc-per-node',
            str(n),
        ]
    )
    p = subprocess.run(
        [*how, 'program.py', *map(str, args)],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=300,
        env=env | more,
    )
    assert p.returncode == 0, p.stderr[-3000:]
    return json.loads(p.stdout.strip().splitlines()[-1])


def test_killed_shared_and_flat(place):
    "Killed in the middle and started again, or by two processes: the numbers are those of one quiet run, whose memory does not grow from n to 4n images"
    whole, few, many = measured(
        place,
        'whole',
        'drawn:60',
        *(f'{n}.npz:{n}' for n in (2000, 8000)),
        MALLOC_MMAP_THRESHOLD_='65536',
    )  # what glibc keeps for later is no use of ours
    assert (
        many['images'] == 8000 and many['memory'] - few['memory'] < 8
    )  # MB; the 6,000 images more are 18
    p = subprocess.Popen(
        [sys.executable, 'program.py', 'killed', 'drawn:60'],
        cwd=place,
        env=env | dict(SLOW='.5'),
        stderr=subprocess.DEVNULL,
    )
    folder = place / 'drawn60killed'
    while len(list(folder.glob('part_*.safetensors'))) < 2:
        time.sleep(0.05)
        assert p.poll() is None
    p.send_signal(signal.SIGKILL)
    p.wait()
    first = {f: f.stat().st_mtime_ns for f in folder.glob('part_*')}
    assert 2 <= len(first) < 6
    for m in (*measured(place, 'killed', 'drawn:60'), *measured(place, 'shared', 'drawn:60', n=2)):
        for k in ('FD-Eyes', 'IS-Eyes', 'precision-Eyes', 'recall-Eyes', 'psd_distance'):
            assert m[k] == pytest.approx(whole[k], rel=1e-6), k
    assert all(
        f.stat().st_mtime_ns == t for f, t in first.items()
    )  # parts that were there were not made again
