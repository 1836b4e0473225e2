"A set of samples whose making is killed, and started again."

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from nfig.core.tensors import to_bytes
from nfig.transformer.pipeline import NFIGPipeline
from nfig.use.sample import sample_set

root = Path(__file__).resolve().parent.parent

program = """
import sys
from nfig.use.sample import sample_set
from nfig.transformer.pipeline import NFIGPipeline
pipe = NFIGPipeline.from_pretrained('fashion-mnist').to('cpu')
sample_set(pipe, sys.argv[1], n=36, batch_size=12, part=12, progress=False)
"""


def command(out):
    return [sys.executable, '-c', program, str(out)]


@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='needs a signal that cannot be caught')
def test_killed_and_resumed_gives_the_same_file(tmp_path):
    "SIGKILL after the first part: it is not made again, and the file is that of a quiet run"
    path = tmp_path / 'a.npz'
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    p = subprocess.Popen(command(path), cwd=root, **quiet)
    first = tmp_path / 'a.parts' / 'part_00000000.npy'
    late = time.time() + 120
    while not first.exists() and p.poll() is None and time.time() < late:
        time.sleep(0.02)
    p.send_signal(signal.SIGKILL)
    p.wait()
    assert first.exists() and not path.exists()
    made, images = first.stat().st_mtime_ns, np.load(first)
    pipe = NFIGPipeline.from_pretrained('fashion-mnist').to('cpu')
    with pytest.raises(ValueError, match='n: 36 there, 37 now'):
        sample_set(pipe, path, n=37, batch_size=12, part=12, progress=False)
    assert first.stat().st_mtime_ns == made
    subprocess.run(command(path), cwd=root, check=True, capture_output=True, timeout=300)
    got, about = np.load(path)['arr_0'], json.loads((tmp_path / 'a.json').read_text())
    assert got.shape == (36, 32, 32, 3) and about['recipe']['n'] == 36
    assert np.array_equal(got[:12], images)
    assert np.array_equal(got[24:], to_bytes(pipe([j % 10 for j in range(24, 36)], seed=24)))
    assert not list(tmp_path.glob('*.parts'))
