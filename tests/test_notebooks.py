"""Every notebook runs from its first cell to its last, each in a process of its own.

A fresh process is what a reader has: no seed, default dtype or module patch is left over from another notebook, and a
notebook that is killed takes nothing else with it. Cells flagged with one of `tst_flags` (settings.ini) are skipped."""
import json,subprocess,sys
from pathlib import Path

import pytest
from nbdev.config import get_config

root = Path(__file__).resolve().parent.parent
skip_flags = get_config(path=root).tst_flags.split()
one = """import sys
from pathlib import Path
from nbdev.test import test_nb
ok,_ = test_nb(Path(sys.argv[1]), skip_flags=sys.argv[3:], basepath=sys.argv[2])
sys.exit(not ok)"""

def notebooks():
    "Notebooks in reading order; those of a name or folder that starts with _ or . are not part of the book"
    found = [p.relative_to(root/'nbs') for p in (root/'nbs').rglob('*.ipynb')]
    return sorted(str(p) for p in found if not any(part[0] in '_.' for part in p.parts))

def run(path):
    "Run the notebook at `path` as nbdev_test does"
    return subprocess.run([sys.executable, '-c', one, str(path), str(root), *skip_flags], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=600)

@pytest.mark.parametrize('name', notebooks())
def test_notebook(name):
    res = run(root/'nbs'/name)
    assert res.returncode==0, f"{name} failed\n{res.stdout[-3000:]}\n{res.stderr[-9000:]}"

def write_nb(path, *sources):
    "A notebook of code cells"
    cells = [dict(cell_type='code', id=f'c{i}', metadata={}, outputs=[], execution_count=None, source=s) for i,s in enumerate(sources)]
    meta = dict(kernelspec=dict(name='python3', display_name='python3', language='python'))
    path.write_text(json.dumps(dict(cells=cells, metadata=meta, nbformat=4, nbformat_minor=5)))
    return path

def test_a_failing_notebook_fails(tmp_path):
    res = run(write_nb(tmp_path/'a.ipynb', 'x = 1', 'assert x==2, "x is not two"'))
    assert res.returncode==1 and 'x is not two' in res.stderr

@pytest.mark.parametrize('flag', skip_flags)
def test_flagged_cells_are_skipped(tmp_path, flag):
    assert run(write_nb(tmp_path/'a.ipynb', f'#|{flag}\nraise ValueError()', 'assert True')).returncode==0
