"""Style, held by ruff in notebooks and Python files alike: `lint.py` formats and checks, `lint.py
check` changes nothing.

Findings that were there when the rule came are counted for each file in `lint_left.json`. A
count may only shrink: `lint.py` lowers it, and more findings than it allows are an error. The
list ends empty, and then goes."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

root = Path(__file__).resolve().parent.parent
left = Path(__file__).with_name('lint_left.json')
ruff = [sys.executable, '-m', 'ruff']


def findings():
    "What ruff says about the whole project, a dictionary each"
    command = [*ruff, 'check', '--quiet', '--output-format', 'json', '.']
    res = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if res.returncode > 1:
        raise SystemExit(res.stderr)
    return json.loads(res.stdout)


def exceeded(found, allowed):
    "The findings in files that have more of them than they may"
    count = Counter(o['path'] for o in found)
    return [o for o in found if count[o['path']] > allowed.get(o['path'], 0)]


def told(o):
    "A finding on a line"
    cell = f"cell {o['cell']}, " if o.get('cell') else ''
    return f"{o['path']}: {cell}line {o['location']['row']}: {o['code']} {o['message']}"


def main(change):
    "Format if asked to, then check; the exit status"
    style = [*ruff, 'format', '--quiet', *([] if change else ['--check']), '.']
    badly = subprocess.run(style, cwd=root, stdout=subprocess.DEVNULL).returncode
    allowed = json.loads(left.read_text()) if left.exists() else {}
    found = [o | {'path': str(Path(o['filename']).relative_to(root))} for o in findings()]
    wrong = exceeded(found, allowed)
    print(*map(told, wrong), sep='\n', end='\n' if wrong else '')
    if badly:
        print('not formatted: run `make prepare`')
    if change and allowed and not wrong:
        count = Counter(o['path'] for o in found)
        left.write_text(json.dumps({p: count[p] for p in sorted(allowed) if count[p]}, indent=1))
    return bool(wrong or badly)


if __name__ == '__main__':
    sys.exit(main(change='check' not in sys.argv[1:]))
