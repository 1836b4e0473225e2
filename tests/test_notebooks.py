"""Every notebook runs from its first cell to its last, each in a process of its own.

A fresh process is what a reader has: no seed, default dtype or module patch is left over from
another notebook, and a notebook that is killed takes nothing else with it. It is forked from a
server that has imported PyTorch and nothing of ours, which saves the seconds of that import for
each. Cells flagged with one of `tst_flags` (settings.ini) are skipped."""

import json
import multiprocessing
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from nbdev.config import get_config

root = Path(__file__).resolve().parent.parent
skip_flags = get_config(path=root).tst_flags.split()
processes = multiprocessing.get_context('forkserver')
# nothing of ours; what ours needs besides costs each notebook a second
processes.set_forkserver_preload(
    [
        'torch',
        'matplotlib.pyplot',
        'nbdev.test',
        'IPython',
        'fastcore.test',
        'pydantic.dataclasses',
        'torch.distributed.checkpoint.state_dict',
        'torch.distributed.fsdp',
    ]
)


def child(path, out, err):
    "In the new process: run a notebook as nbdev_test does; what it prints goes to two files"
    for name, fd in ((out, 1), (err, 2)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
    sys.stdout, sys.stderr = (os.fdopen(fd, 'w', buffering=1, closefd=False) for fd in (1, 2))
    os.chdir(root)
    import nbdev
    from nbdev.test import test_nb

    nbdev.nbdev_export = lambda *args, **kwargs: (
        None
    )  # the last cell's: other workers are reading the modules; test_package compares them
    ok, _ = test_nb(Path(path), skip_flags=skip_flags, basepath=str(root))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(not ok)


def notebooks():
    """Notebooks in reading order.

    Those of a name or folder that starts with _ or . are not part of the book
    """
    found = [p.relative_to(root / 'nbs') for p in (root / 'nbs').rglob('*.ipynb')]
    return sorted(str(p) for p in found if not any(part[0] in '_.' for part in p.parts))


def run(path, folder):
    "Run the notebook at `path`; its status and what it printed"
    out, err = folder / 'out.txt', folder / 'err.txt'
    p = processes.Process(target=child, args=(str(path), str(out), str(err)))
    p.start()
    p.join(600)
    if p.exitcode is None:
        p.kill()
        p.join()
    return SimpleNamespace(
        returncode=p.exitcode,
        stdout=out.read_text() if out.exists() else '',
        stderr=err.read_text() if err.exists() else '',
    )


@pytest.mark.parametrize('name', notebooks())
def test_notebook(name, tmp_path):
    res = run(root / 'nbs' / name, tmp_path)
    assert res.returncode == 0, f"{name} failed\n{res.stdout[-3000:]}\n{res.stderr[-9000:]}"


def write_nb(path, *sources):
    "A notebook of code cells"
    cells = [
        dict(cell_type='code', id=f'c{i}', metadata={}, outputs=[], execution_count=None, source=s)
        for i, s in enumerate(sources)
    ]
    meta = dict(kernelspec=dict(name='python3', display_name='python3', language='python'))
    path.write_text(json.dumps(dict(cells=cells, metadata=meta, nbformat=4, nbformat_minor=5)))
    return path


def test_a_failing_notebook_fails(tmp_path):
    res = run(write_nb(tmp_path / 'a.ipynb', 'x = 1', 'assert x==2, "x is not two"'), tmp_path)
    assert res.returncode == 1 and 'x is not two' in res.stderr
