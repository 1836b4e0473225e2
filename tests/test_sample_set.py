"A set of samples whose making is killed, and started again."

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

root = Path(__file__).resolve().parent.parent

program = """
import sys
from nfig.use.sample import sample_set
from nfig.transformer.pipeline import NFIGPipeline
pipe = NFIGPipeline.from_pretrained('fashion-mnist').to('cpu')
sample_set(pipe, sys.argv[1], n=int(sys.argv[2]), batch_size=24, part=24, progress=False)
"""


def command(out, n):
    return [sys.executable, '-c', program, str(out), str(n)]


@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='needs a signal that cannot be caught')
def test_killed_and_resumed_gives_the_same_file(tmp_path):
    "SIGKILL after the first part: it is not made again, and the file is that of a quiet run"
    p = subprocess.Popen(
        command(tmp_path / 'a.npz', 72),
        cwd=root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    first = tmp_path / 'a.parts' / 'part_00000000.npy'
    late = time.time() + 120
    while not first.exists() and p.poll() is None and time.time() < late:
        time.sleep(0.02)
    p.send_signal(signal.SIGKILL)
    p.wait()
    assert first.exists() and not (tmp_path / 'a.npz').exists()
    made = first.stat().st_mtime_ns
    images = np.load(first)
    other = subprocess.run(
        command(tmp_path / 'a.npz', 73), cwd=root, capture_output=True, text=True, timeout=300
    )
    assert (
        other.returncode != 0
        and 'n: 72 there, 73 now' in other.stderr
        and first.stat().st_mtime_ns == made
    )
    subprocess.run(
        command(tmp_path / 'a.npz', 72), cwd=root, check=True, capture_output=True, timeout=300
    )
    got = np.load(tmp_path / 'a.npz')['arr_0']
    about = json.loads((tmp_path / 'a.json').read_text())
    assert (
        got.shape == (72, 32, 32, 3)
        and np.array_equal(got[:24], images)
        and about['recipe']['n'] == 72
    )
    from nfig.transformer.pipeline import NFIGPipeline
    from nfig.core.tensors import to_bytes

    pipe = NFIGPipeline.from_pretrained('fashion-mnist').to(
        'cpu'
    )  # as the program does: channels last
    assert np.array_equal(got[48:72], to_bytes(pipe([j % 10 for j in range(48, 72)], seed=48)))
    assert not list(tmp_path.glob('*.parts'))
