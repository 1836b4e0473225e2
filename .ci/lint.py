"""Style, held by ruff in notebooks and Python files alike, without an exception: `lint.py` formats
and checks, `lint.py check` changes nothing."""

import subprocess
import sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent


def ruff(*words):
    "Is all well? What is not, it prints"
    command = [sys.executable, '-m', 'ruff', *words, '.']
    return subprocess.run(command, cwd=root).returncode == 0


def main(change):
    "Format if asked to, then check; the exit status"
    neat = ruff('format', '--quiet', *([] if change else ['--check']))
    right = ruff('check', '--quiet', '--output-format', 'concise')
    if not neat:
        print('not formatted: run `make prepare`')
    return not (neat and right)


if __name__ == '__main__':
    sys.exit(main(change='check' not in sys.argv[1:]))
