"The face: a light `import nfig` in which Python, tab completion and type checkers find the same."

import ast
import subprocess
import sys
from pathlib import Path

import nfig
import pytest

path = Path(nfig.__file__)


def python(code):
    res = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert res.returncode == 0, res.stderr
    return res.stdout


def test_asking_what_there_is_imports_nothing_heavy():
    heavy = {'torch', 'numpy', 'pydantic', 'matplotlib', 'fastcore'}
    code = f"import nfig, sys; dir(nfig); print(sorted({heavy} & {{*sys.modules}}))"
    assert python(code) == '[]\n'


def test_everything_can_be_had_in_any_order():
    assert set(nfig._homes) <= set(dir(nfig))
    code = "import nfig; print(all(getattr(nfig, name).__name__ == name for name in {}))"
    assert python(code.format(sorted(nfig._homes))) == 'True\n'
    assert python(code.format(sorted(nfig._homes, reverse=True))) == 'True\n'


def test_an_unknown_name_is_answered_with_what_there_is():
    with pytest.raises(AttributeError, match='NFIGPipeline'):
        getattr(nfig, 'Pipe' + 'line')


def seen_by_checkers():
    "{name: module} of the imports that only a type checker reads"
    block = next(n for n in ast.parse(path.read_text()).body if isinstance(n, ast.If))
    return {n.names[0].asname: n.module for n in block.body}


def test_type_checkers_see_the_same():
    assert seen_by_checkers() == nfig._homes
