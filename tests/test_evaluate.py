"Measuring: independent implementations, the field's protocol, kills, processes, memory, commands."

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import linalg

from nfig.core.io import require
from nfig.core.tensors import to_float
from nfig.data.sets import ImageData
from nfig.evaluate import generator, metrics
from nfig.evaluate.metrics import inception_score, precision_recall
from nfig.tokenizer.features import InceptionFeatures, Moments, frechet_distance
from nfig.evaluate.tokenizer import rfd_name
from studies import expected

root = Path(__file__).resolve().parent.parent

env = dict(os.environ, OMP_NUM_THREADS='1')


def test_against_independent_implementations():
    "FID, inception score, precision and recall of the same arrays, by torch-fidelity and scipy"
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
import json,os,re,sys,time
import torch
from torch import nn
from nfig.core.presets import presets
from nfig.core.distributed import destroy_distributed,init_distributed
from nfig.core.record import parse_share
from nfig.evaluate.generator import GeneratedImages,NpzImages,evaluate_samples
from nfig.tokenizer.frvae import build_tokenizer
from nfig.transformer.model import NFIGTransformer
from nfig.transformer.pipeline import NFIGPipeline
from nfig.use.evaluate import together

class Eyes(nn.Module):
    name = 'Eyes'
    def forward(self, x):
        time.sleep(float(os.environ.get('SLOW','0')))
        f = nn.functional.adaptive_avg_pool2d(x,4).flatten(1)
        return f,f[:,:5].softmax(1)

def run(what, n, work):
    torch.manual_seed(0)
    e = presets['tiny']
    if what=='drawn':
        pipe = NFIGPipeline(build_tokenizer(e.tokenizer), NFIGTransformer(e.transformer))
        images,size = GeneratedImages(pipe, n),10
    else:
        images,size = NpzImages(what),1000
    how = dict(folder=work, where='reference-'+work, n=n, size=size, neighbours=500)
    how |= dict(batch=size//10+9, shard=parse_share(), progress=False)
    m = together(lambda: evaluate_samples(images, NpzImages('real.npz'), Eyes(), **how))
    # not getrusage: what it counts begins with the process that started this one
    peak = re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1]
    return m and m|dict(memory=int(peak)/1024)

init_distributed('cpu')
pairs = (o.split(':') for o in sys.argv[2:])
found = [run(what, int(n), what+n+sys.argv[1]) for what,n in pairs]
if destroy_distributed():
    print(json.dumps(found))
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
    "Killed and started again, or by two processes: the numbers of one quiet run, in flat memory"
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


# The field's protocol under the field's names


class Toy(torch.nn.Module):
    "Sees patches, three classes, and a few places"

    name = 'Inception'

    def forward(self, x):
        f = torch.nn.functional.adaptive_avg_pool2d(x, 4).flatten(1)
        return f, f[:, :3].softmax(1), f[:, :6]


def pictures(n, seed):
    g = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8, generator=g)
    return ImageData(images, [0] * n, ['noise'], 32)


def test_protocol_takes_all_samples_and_10000_of_the_whole_reference(tmp_path, monkeypatch):
    "With 8 for 10,000 and 12 for 50,000: counts as in guided diffusion's evaluator"
    monkeypatch.setattr(generator, 'reference_neighbours', 8)
    monkeypatch.setattr(generator, 'field_count', 12)
    monkeypatch.setattr(metrics, 'field_count', 12)

    def measured(n, **more):
        how = dict(where=tmp_path, progress=False)
        return generator.evaluate_samples(
            pictures(12, 0), pictures(30, 1), Toy(), n=n, **how, **more
        )

    m = measured(12)
    assert m['neighbours'] == [8, 12] and m['reference_images'] == 30
    small = measured(10)
    assert small['neighbours'] == [8, 10] and small['reference_images'] == 10
    limited = measured(12, neighbours=5)
    assert limited['neighbours'] == [5, 5]


@pytest.mark.parametrize('flag', ['', '--neighbours 500'])
def test_neighbours_are_a_flag_and_all_samples_without_it(flag, monkeypatch, capsys):
    from nfig.use import evaluate

    told = {}
    monkeypatch.setattr(evaluate, 'generator_report', lambda **how: told.update(how) or {})
    evaluate.evaluate.main(f'generator fashion-mnist --device cpu {flag}'.split())
    assert (told['neighbours'], told['n']) == (500 if flag else None, 50_000)


def test_names_belong_to_their_protocol():
    plain = metrics.score_names('Inception', 50_000)
    assert list(plain.values()) == ['FID', 'sFID', 'IS', 'precision', 'recall']
    for other in (metrics.score_names('Inception', 10_000), metrics.score_names('Toy', 50_000)):
        assert not set(plain.values()) & set(other.values())
    assert (rfd_name('Inception', 50_000), rfd_name('Inception', 2000)) == ('rFID', 'rFID-2k')
    assert 'rFID' not in rfd_name('EffNetLite0', 50_000)


def test_limited_neighbours_do_not_count_as_the_protocol():
    "FID of all samples keeps its name; precision of a part of them does not"
    rows = dict(progress=False)
    a, b = (generator.measure_set(pictures(12, k), Toy(), **rows) for k in (0, 1))
    few = generator.measure_set(pictures(12, 1), Toy(), neighbours=6, **rows)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(metrics, 'field_count', 12)
        full, part = (generator.compare_sets(a, o, 'Inception', 32) for o in (b, few))
    assert {'FID', 'sFID', 'precision', 'recall'} <= set(full)
    assert {'FID', 'sFID', 'precision-6', 'recall-6'} <= set(part) and 'precision' not in part


def test_sfid_is_the_distance_of_spatial_features():
    a, b = pictures(40, 0), pictures(40, 1)
    m = generator.compare_sets(
        *(generator.measure_set(o, Toy(), progress=False) for o in (a, b)), 'Inception', 32
    )
    f, g = (Moments(6).add(Toy()(to_float(o.images))[2]) for o in (a, b))
    assert m['sFID-40'] == pytest.approx(frechet_distance(f, g), rel=1e-5)


def test_a_generator_may_be_measured_with_fast_kernels(tmp_path, monkeypatch):
    "The same images are compared, the report says how they were drawn, and files cannot be sped up"
    from nfig.use import evaluate

    drawn = []

    def compare(images, *args, **how):
        drawn.append(images.__getitems__(range(12))[0])
        return {}

    monkeypatch.setattr(evaluate, 'evaluate_samples', compare)
    monkeypatch.setattr(evaluate, 'build_extractor', lambda *a: torch.nn.Identity())
    images = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / 'real.npz', arr_0=images)
    args = dict(data=tmp_path / 'real.npz', n=12, device='cpu')
    for fast in ('', 'fp32'):
        evaluate.generator_report('fashion-mnist', **args, fast=fast)
    plain, quick = drawn
    same = (plain.int() - quick.int()).abs().flatten(1).amax(1) <= 1
    assert same.sum() >= 10  # a token may fall the other way where two codes are equally near
    with pytest.raises(ValueError, match='no model that draws'):
        evaluate.generator_report(tmp_path / 'real.npz', **args, fast='fp32')


def test_there_is_one_psnr():
    "The log's, the evaluation's and the figures' PSNR are one function"
    defined = [
        p.name
        for p in (root / 'nfig').rglob('*.py')
        if re.search(r'^ *def psnr\(', p.read_text(), re.M)
    ]
    assert defined == ['tensors.py']
    by_hand = [
        p.name
        for p in (root / 'nfig').rglob('*.py')
        if re.search(r'log10\(4|4/.*log10', p.read_text())
    ]
    assert by_hand == ['tensors.py']


# What the commands of the docs print

rows = {r['command']: r for r in json.loads((root / 'results' / 'expected.json').read_text())}


@pytest.mark.parametrize('command', expected.commands)
def test_commands_print_what_is_expected(command):
    found = expected.numbers(expected.run(command), expected.commands[command][1])
    assert not expected.off(rows[command], found), (
        'see studies/expected.py: `--write` after a bundled model changed'
    )


def test_a_number_that_is_off_is_named():
    row = dict(command='c', within=0.01, prints=dict(psnr=20.0, each=[1.0, 2.0]))
    assert expected.off(row, dict(psnr=20.1, each=[1.0, 2.0])) == []
    assert 'psnr is 20.3' in expected.off(row, dict(psnr=20.3, each=[1.0, 2.0]))[0]
    assert 'each' in expected.off(row, dict(psnr=20.0, each=[1.0, 2.1]))[0]


def test_every_command_of_the_docs_on_a_bundled_model_is_expected():
    "In code blocks of README and lessons: whoever types it can compare"
    texts = [
        (root / 'README.md').read_text(),
        *(
            ''.join(c['source'])
            for p in (root / 'nbs').rglob('*.ipynb')
            if '_proc' not in p.parts
            for c in json.loads(p.read_text())['cells']
            if c['cell_type'] == 'markdown'
        ),
    ]
    blocks = [b for t in texts for b in re.findall(r'```(?:sh|bash)?\n(.*?)```', t, re.S)]
    bundled = '|'.join(
        p.name for p in (root / 'nfig' / 'assets').iterdir() if (p / 'tokenizer').is_dir()
    )
    told = [
        line.split(' #')[0].strip()
        for b in blocks
        for line in b.splitlines()
        if re.match(rf'(nfig_evaluate \w+|nfig_paper \w+) ({bundled})\b', line.strip())
    ]
    assert not {re.sub(r' --out \S+', '', t) for t in told} - set(rows)
