"The benchmark as a command: what it prints and what it keeps. No test asserts a time."

import json

import pytest
import torch

from bench.generate import bench
from bench.gpu import bench_gpu, in_a_process


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
