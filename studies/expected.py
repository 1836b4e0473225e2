"""What each measuring command of the docs should print for the models that come with the package.

`python -m studies.expected` runs them all and says which number is off; `--write` writes
results/expected.json again, as is due when a bundled model is replaced."""

import json
import shlex
import sys
import tempfile
from pathlib import Path

from fastcore.script import call_parse, store_true

from nfig.core.record import about, provenance
from nfig.use.evaluate import analyses, evaluate

path = Path(__file__).resolve().parent.parent / 'results' / 'expected.json'

# command -> (how far a number may be off, names of the numbers). Drawing samples on another
# machine flips a token now and then, so what is measured on samples has more room.
small = '--data fashion-mnist-5k --n 200'
commands = {
    f'nfig_evaluate tokenizer fashion-mnist {small} --split train --extractor effnet': (
        0.005,
        'psnr ssim keep psd_distance FD-EffNetLite0',
    ),
    'nfig_evaluate tokenizer emoji --data emoji-held-out --n 200 --extractor effnet': (
        0.005,
        'psnr ssim keep psd_distance FD-EffNetLite0',
    ),
    f'nfig_evaluate generator fashion-mnist {small} --extractor effnet': (
        0.03,
        'FD-EffNetLite0 IS-EffNetLite0 precision-EffNetLite0 recall-EffNetLite0',
    ),
    f'nfig_paper figure4 fashion-mnist {small} --split train': (0.005, 'held_out.psnr'),
}


def run(
    command: str,  # as in the docs, without --out
) -> dict:  # what it wrote
    "Run a command in this process, in a folder that is removed afterwards"
    name, *words = shlex.split(command)
    function = evaluate if name == 'nfig_evaluate' else analyses[words.pop(0)]
    with tempfile.TemporaryDirectory() as d:
        words += ['--out', f'{d}/result.json' if name == 'nfig_evaluate' else d]
        function.main(words)
        (file,) = Path(d).glob('*.json')
        return json.loads(file.read_text())


def numbers(
    result: dict,  # what a command wrote
    names: str,  # between blanks; 'a.b' is b in a
) -> dict:  # name -> number or list of numbers
    "The numbers of a result that are compared"
    found = {}
    for name in names.split():
        value = result
        for key in name.split('.') if name not in result else [name]:
            value = value[key]
        found[name] = value
    return found


def off(
    row: dict,  # of results/expected.json
    found: dict,  # what came out now, see `numbers`
) -> list:  # sentences
    "Which numbers are not the expected ones"
    sentences = []
    for name, expected in row['prints'].items():
        pairs = (
            zip(expected, found[name]) if isinstance(expected, list) else [(expected, found[name])]
        )
        if any(abs(new - old) > row['within'] * abs(old) for old, new in pairs):
            sentences.append(f"{row['command']}: {name} is {found[name]}, expected {expected}")
    return sentences


@call_parse
def main(
    only: str = '',  # a part of the commands that are to be run; all if empty
    write: store_true = False,  # write results/expected.json again
):
    "Run the commands of the docs, and compare what comes out with what is expected"
    chosen = {c: how for c, how in commands.items() if only in c}
    found = {c: numbers(run(c), names) for c, (_, names) in chosen.items()}
    rows = json.loads(path.read_text()) if path.exists() else []
    if write:
        made = provenance(about('python -m studies.expected'))
        rows = [r for r in rows if r['command'] in commands and r['command'] not in found]
        rows += [
            dict(command=c, within=commands[c][0], prints=n, measured=made)
            for c, n in found.items()
        ]
        rows.sort(key=lambda r: list(commands).index(r['command']))
        path.write_text(json.dumps(rows, indent=1) + '\n')
        print(f'{path.name}: {len(found)} of {len(rows)} rows written')
        return
    sentences = [s for r in rows if r['command'] in found for s in off(r, found[r['command']])]
    print('\n'.join(sentences) or f'{len(found)} commands print what is expected')
    sys.exit(bool(sentences))
