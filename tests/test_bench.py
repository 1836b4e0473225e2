"The benchmark as a command: what it prints and what it keeps. No test asserts a time."

import json
import subprocess
import sys
from pathlib import Path

from bench.gpu import in_a_process

root = Path(__file__).resolve().parent.parent


def run(tmp_path, *args):
    "`python -m bench.generate` in a process of its own"
    return subprocess.run(
        [sys.executable, '-m', 'bench.generate', '--out', str(tmp_path / 'results'), *args],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_table_and_json(tmp_path):
    p = run(
        tmp_path,
        '--preset',
        'tiny',
        '--repeats',
        '2',
        '--full',
        '--threads',
        '1',
        '--batches',
        '1,2',
    )
    assert p.returncode == 0, p.stderr
    saved = json.loads((tmp_path / 'results' / 'bench_cpu.json').read_text())
    assert (saved['preset'], saved['threads']) == ('tiny', 1) and '--full' in saved['command']
    assert set(saved['peak']) == {'fp32', 'bf16'} and saved['date'] and saved['torch']
    rows = {(r['part'], r['dtype'], r['batch']): r for r in saved['rows']}
    assert len(rows) == len(saved['rows']) >= 22 and {b for _, _, b in rows if b < 3} == {1, 2}
    for (part, dtype, batch), r in rows.items():
        assert r['gflop'] > 0 and r['memory_gib'] >= 0 and len(r['times']) >= 2, r
        assert f'{part:<22}{dtype:<6}{batch:>5}' in p.stdout
        assert (
            abs(r['gflop'] / rows[part, 'fp32', batch]['gflop'] - 1) < 0.05
        )  # the work does not depend on the precision, but for how attention goes backward


def test_unknown_preset_is_named(tmp_path):
    p = run(tmp_path, '--preset', 'tinny')
    assert (
        p.returncode != 0
        and "Did you mean 'tiny'?" in p.stderr
        and not (tmp_path / 'results').exists()
    )


def test_a_row_that_fails_or_hangs_costs_itself(tmp_path):
    "bench.gpu: what was measured is kept, what went wrong and what there was no time for is named"
    hangs = in_a_process('tiny', 'waiting', 600, 'cpu', 1, limit=3)
    assert hangs['failed'] == 'stopped after 3 s' and hangs['took'] < 60
    rows = ['nonsense:1', 'waiting:0']
    command = [sys.executable, '-m', 'bench.gpu', '--preset', 'tiny', '--device', 'cpu']
    command += ['--rows', ' '.join(rows), '--repeats', '1', '--out', str(tmp_path)]
    p = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600)
    assert p.returncode == 0, p.stderr
    saved = json.loads((tmp_path / 'bench_gpu_trial.json').read_text())
    failed, measured = saved['rows']
    assert "unknown row 'nonsense'" in failed['failed'] and saved['left_out'] == []
    assert measured['kind'] == 'waiting' and measured['images_per_second'] and saved['cpu']
    command[command.index('--repeats') : command.index('--repeats')] = ['--budget', '0']
    p = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600)
    assert p.returncode == 0, p.stderr
    saved = json.loads((tmp_path / 'bench_gpu_trial.json').read_text())
    assert saved['rows'] == [] and saved['left_out'] == rows
