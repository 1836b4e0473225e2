"""What the speedrun gave, beside what it gave when results/speedrun/expected.json was written.

python -m studies.speedrun runs/speedrun [--minutes 35] [--write]
"""

import argparse
import json
from pathlib import Path

from nfig.core.record import about, provenance, write_result

expected = Path('results/speedrun/expected.json')
wanted = {
    'tokenizer': ('psnr', 'FD-EffNetLite0'),
    'model': ('FD-EffNetLite0', 'precision', 'recall'),
}


def measured(folder):
    "{'tokenizer psnr': 25.1, ...} from the two evaluations in a folder"
    found = {}
    for part, names in wanted.items():
        result = json.loads((Path(folder) / f'{part}.json').read_text())
        values = {k.split('@')[0]: v for k, v in result.items()}
        found |= {f'{part} {n}': round(values[n], 3) for n in names if n in values}
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder', help='of the speedrun')
    parser.add_argument('--minutes', type=int, help='that it took, if it ran in one go')
    parser.add_argument('--write', action='store_true', help='let this be what is expected')
    args = parser.parse_args()
    now = measured(args.folder) | ({'minutes': args.minutes} if args.minutes else {})
    if args.write:
        write_result(expected, dict(values=now, about=about('studies/speedrun.sh')))
    before = json.loads(expected.read_text()) if expected.exists() else dict(values={}, about=None)
    print(f"{'':28}{'now':>10}{'expected':>10}")
    for name, value in now.items():
        print(f"{name:28}{value:>10}{before['values'].get(name, '-'):>10}")
    if before['about']:
        print('expected:', provenance(before['about']))


if __name__ == '__main__':
    main()
