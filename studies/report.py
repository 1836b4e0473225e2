"""Reading the results of a study: means over seeds, and what may be called a difference."""

import json
from math import nan
from pathlib import Path
from statistics import mean, stdev


def fewest_codes(tokenizer: dict) -> float:  # from 0 to 1
    "Codes used at the stage that uses the smallest share of what it could"
    return min(c['used'] / c['could'] for c in tokenizer['codes'])


# name -> (1 if more is better, else -1; what it is of; how it is had)
measures = {
    'PSNR': (1, 'tokenizer', lambda t: t['psnr']),
    'SSIM': (1, 'tokenizer', lambda t: t['ssim']),
    'distance': (-1, 'tokenizer', lambda t: t['EffNetLite0 distance']),
    'rFD': (-1, 'tokenizer', lambda t: t['FD-EffNetLite0']),
    'keep': (1, 'tokenizer', lambda t: 100 * t['keep']),
    'PSD rec.': (-1, 'tokenizer', lambda t: t['psd_distance']),
    'use': (1, 'tokenizer', fewest_codes),
    'rest': (-1, 'tokenizer', lambda t: t['error_whole'][-1]),
    'gFD': (-1, 'generator', lambda g: g['FD-EffNetLite0']),
    'precision': (1, 'generator', lambda g: g['precision-EffNetLite0']),
    'PSD drawn': (-1, 'generator', lambda g: g['psd_distance']),
    # of studies.dropout, whose samples are drawn without guidance and with it
    'first stage': (1, 'tokenizer', lambda t: t['stages']['psnr'][0]),
    'gFD plain': (-1, 'transformer', lambda t: t['samples'][0]['FD-EffNetLite0']),
    'gFD guided': (-1, 'transformer', lambda t: t['samples'][1]['FD-EffNetLite0']),
    'precise': (1, 'transformer', lambda t: t['samples'][0]['precision']),
    'recall': (1, 'transformer', lambda t: t['samples'][0]['recall']),
}


def read(
    folder,  # of results, for one data set
    order=(),  # cases in the order in which they are shown; others behind
) -> dict:  # case -> list of records, by seed
    "All results in a folder; FileNotFoundError if there are none"
    found = {}
    for path in sorted(Path(folder).glob('*.json')):
        record = json.loads(path.read_text())
        found.setdefault(record['case'], []).append(record)
    if not found:
        raise FileNotFoundError(f"no results in {folder}: run python -m studies.run first")
    names = [c for c in order if c in found]
    return {c: found[c] for c in [*names, *(c for c in found if c not in names)]}


def values(
    records: list,  # of one case
    measure: str,  # a key of `measures`
) -> list:  # a number a seed
    "One measure of all seeds"
    _, part, get = measures[measure]
    return [get(r[part]) for r in records]


def difference(
    a: list,
    b: list,  # numbers, one a seed
) -> tuple:  # (mean of a minus mean of b, the same in units of its uncertainty)
    "How far two cases are apart; the second is nan with fewer than two seeds a case"
    d = mean(a) - mean(b)
    if min(len(a), len(b)) < 2:
        return d, nan
    uncertainty = (stdev(a) ** 2 / len(a) + stdev(b) ** 2 / len(b)) ** 0.5
    return d, d / uncertainty if uncertainty else float('inf') * ((d > 0) - (d < 0))


def better(
    found: dict,  # from `read`
    case: str,
    against: str,  # two cases
    measure: str,  # a key of `measures`
) -> float:  # in units of the uncertainty; negative is worse
    "By how much one case is better than another"
    a, b = (values(found[c], measure) for c in (case, against))
    return measures[measure][0] * difference(a, b)[1]


def best(
    found: dict,  # from `read`
    measure: str,  # a key of `measures`
) -> str:  # a case
    "The case with the best mean"
    return max(found, key=lambda c: measures[measure][0] * mean(values(found[c], measure)))


def spread(numbers: list) -> str:  # 'mean ± standard deviation'
    "Mean and standard deviation over seeds, in a few digits"
    return f'{mean(numbers):.4g}' + (f' ± {stdev(numbers):.2g}' if len(numbers) > 1 else '')


def table(
    found: dict,  # from `read`
    columns: list,  # keys of `measures`
    against: str = 'VAR',  # case that the others are compared with
) -> str:  # markdown
    "Means and spreads; from three seeds on bold is clearly better than one case, italic worse"

    def cell(case, column):
        text = spread(values(found[case], column))
        if case == against or min(len(found[case]), len(found[against])) < 3:
            return text
        z = better(found, case, against, column)
        return f'**{text}**' if z > 3 else f'*{text}*' if z < -3 else text

    arrows = {1: ' ↑', -1: ' ↓'}
    head = ['case', 'seeds', *(c + arrows[measures[c][0]] for c in columns)]
    rows = [[case, str(len(found[case])), *(cell(case, c) for c in columns)] for case in found]
    return '\n'.join('| ' + ' | '.join(r) + ' |' for r in [head, ['---'] * len(head), *rows])


# For the pages of chapter 9

results = Path(__file__).resolve().parent.parent / 'results'


def record(
    name: str,  # of a JSON file in results/
) -> dict:
    "A committed result"
    return json.loads((results / name).read_text())


def rows_of(
    head,  # names of the columns
    rows,  # a sequence of values each
) -> str:  # markdown
    "A table"
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join('| ' + ' | '.join(map(str, line)) + ' |' for line in lines)
