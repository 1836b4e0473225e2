"The benchmark as a command: what it prints and what it keeps. No test asserts a time."

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from bench import gpu
from bench.generate import bench
from bench.gpu import bench_gpu, in_a_process, measured
from nfig.fast.faster import extras
from nfig.train.tokenizer import TokenizerTask


@pytest.fixture
def threads():
    "PyTorch's threads, as they were before"
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_table_and_json(tmp_path, capsys, monkeypatch, threads):
    monkeypatch.setattr('sys.argv', ['generate.py', '--preset', 'tiny', '--full'])
    out = tmp_path / 'results'
    bench(preset='tiny', repeats=2, full=True, threads=1, batches='1,2', out=str(out))
    saved, said = json.loads((out / 'bench_cpu.json').read_text()), capsys.readouterr().out
    assert saved['command'] == 'python -m bench.generate --preset tiny --full'
    assert (saved['preset'], saved['threads']) == ('tiny', 1) and saved['date'] and saved['torch']
    assert set(saved['peak']) == {'fp32', 'bf16'}
    rows = {(r['part'], r['dtype'], r['batch']): r for r in saved['rows']}
    assert len(rows) == len(saved['rows']) >= 22 and {b for _, _, b in rows if b < 3} == {1, 2}
    for (part, dtype, batch), r in rows.items():
        assert r['gflop'] > 0 and r['memory_gib'] >= 0 and len(r['times']) >= 2, r
        assert f'{part:<22}{dtype:<6}{batch:>5}' in said
        # the work does not depend on the precision, but for how attention goes backward
        assert abs(r['gflop'] / rows[part, 'fp32', batch]['gflop'] - 1) < 0.05


def test_unknown_preset_is_named(tmp_path):
    with pytest.raises(ValueError, match="Did you mean 'tiny'?"):
        bench(preset='tinny', out=str(tmp_path / 'results'))
    assert not (tmp_path / 'results').exists()


def test_a_row_that_fails_or_hangs_costs_itself(tmp_path):
    "bench.gpu: what was measured is kept, what went wrong and what there was no time for is named"
    hangs = in_a_process('tiny', 'waiting', 600, 'cpu', 1, limit=1)
    assert hangs['failed'] == 'stopped after 1 s' and hangs['took'] < 60
    rows = ['nonsense:1', 'waiting:0']
    how = dict(preset='tiny', device='cpu', rows=' '.join(rows), repeats=1, out=str(tmp_path))
    bench_gpu(**how)
    saved = json.loads((tmp_path / 'bench_gpu_trial.json').read_text())
    failed, measured = saved['rows']
    assert "unknown row 'nonsense'" in failed['failed'] and saved['left_out'] == []
    assert measured['kind'] == 'waiting' and measured['images_per_second'] and saved['cpu']
    bench_gpu(**how, budget=0)
    saved = json.loads((tmp_path / 'bench_gpu_trial.json').read_text())
    assert saved['rows'] == [] and saved['left_out'] == rows


stand_in = '''#!/bin/bash
# in place of Python: notes what was asked for; growth hangs, the GPU's tests fail
echo "$(basename "$0") $*" >> "$(dirname "$0")/asked.txt"
case "$*" in
  *bench.scaling*) sleep 60 ;;
  *"-m pytest"*) exit 3 ;;
esac
'''


def test_a_step_that_fails_or_hangs_costs_a_lease_only_itself(tmp_path):
    for name in ('python', 'nfig_sample'):
        (tmp_path / name).write_text(stand_in)
        (tmp_path / name).chmod(0o755)
    how = dict(PY=f'{tmp_path}/python', DEVICE='cpu', SHARE='1', OUT=str(tmp_path))
    script = Path(__file__).parents[1] / 'bench' / 'h100.sh'
    r = subprocess.run(['bash', script], env=os.environ | how, capture_output=True, text=True)
    asked = (tmp_path / 'asked.txt').read_text().splitlines()
    wanted_first = ['python -m bench.gpu', 'python -m pytest', 'python -m bench.scaling']
    assert [a.startswith(w) for a, w in zip(asked, [*wanted_first, 'nfig_sample'])] == [True] * 4
    assert 'failed: tests (status 3)' in r.stdout and 'failed: growth (status 124)' in r.stdout
    assert (r.returncode, r.stdout.count('failed:')) == (1, 2), r.stderr


def test_parts_of_a_fast_decoder_are_measured_with_and_without(monkeypatch):
    "Each extra has a row that leaves it out, a series has four batches, a tokenizer can train"
    left_out, plain = [], gpu.faster_for

    def noted(pipe, dtype, device, without):
        left_out.append(without)
        return plain(pipe, dtype, device, without)

    monkeypatch.setattr(gpu, 'faster_for', noted)
    kinds = ['series', *(f'without-{name}' for name in extras)]
    rows = [measured('tiny', kind, 2, 'cpu', 1) for kind in kinds]
    assert left_out == [(), *((name,) for name in extras)]
    assert {(r['part'], r['batch']) for r in rows} == {('images', 8)}
    searching, step = set(), TokenizerTask.step

    def seen(task, k):
        searching.add(torch.backends.cudnn.benchmark)
        return step(task, k)

    monkeypatch.setattr(TokenizerTask, 'step', seen)
    for kind, on in dict(tokenizer=True, unsearched=False).items():
        searching.clear()
        r = measured('tiny', kind, 2, 'cpu', 1)
        assert r['part'] == 'tokenizer step' and r['gflop'] > 0 and searching == {on}
