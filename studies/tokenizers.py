"Bands against the whole latent, and four ways to cut the bands: trained alike, with several seeds, measured alike."

import json
import sys
import time
from datetime import datetime, timezone
from fastcore.script import call_parse
from pathlib import Path
from statistics import mean, stdev
from nfig.core.config import did_you_mean
from nfig.core.presets import Experiment, get_preset
from nfig.core.io import replacing
from nfig.core.record import machine
from nfig.tokenizer.features import EffNetFeatures, FeatureDistance
from nfig.data.sources import load_data
from nfig.train.tokenizer import train_tokenizer
from nfig.evaluate.metrics import extract
from nfig.evaluate.tokenizer import evaluate_tokenizer

targets = {d: dict(target='band', division=d) for d in ('paper', 'area', 'nyquist', 'energy')} | {
    'VAR': dict(target='full')
}
changes = {'area-down': dict(down='area'), 'no-phi': dict(phi=0), 'no-gains': dict(gains=False)}


def study_case(
    name: str,  # a target, or a target, a dot and a change: 'energy', 'VAR.no-phi'
    seed: int = 0,  # of initialisation and data order
    steps: int = 300,  # of training
    batch: int = 16,  # images a step
    preset: str = 'small',  # what everything else is taken from
) -> Experiment:  # what is trained
    "A case of the grid; ValueError names the targets or changes that exist"
    target, *more = name.split('.')
    if target not in targets:
        raise ValueError(did_you_mean(target, targets, 'target'))
    for m in more:
        if m not in changes:
            raise ValueError(did_you_mean(m, changes, 'change'))
    tok = {k: v for d in (targets[target], *map(changes.get, more)) for k, v in d.items()}
    return get_preset(
        preset,
        tokenizer=tok,
        train_tokenizer=dict(steps=steps, epochs=0, batch_size=batch, seed=seed),
    )


def settled(
    path: Path,  # of a result
    settings: dict,  # that it must have been made with
) -> bool:
    "Is this result there? ValueError if it was made with other settings"
    if not path.exists():
        return False
    had = json.loads(path.read_text())['settings']
    if had != settings:
        raise ValueError(
            f"{path} was made with {had}, not with {settings}: choose another folder with --out, or the settings of these results"
        )
    return True


def run_case(
    name: str,  # see `study_case`
    seed: int,  # of the run
    train,  # `ImageData` to learn from
    settings: dict,  # data, steps, batch, n, preset
    folder,  # for the run
    out: Path,  # JSON file to write
    **measure,  # data, features, perceptual, reference of `evaluate_tokenizer`
) -> dict:  # what was written
    "Train a case, measure it, and write its numbers down"
    e = study_case(name, seed, settings['steps'], settings['batch'], settings['preset'])
    start = time.perf_counter()
    tok = train_tokenizer(
        e,
        train,
        folder,
        data_name=settings['data'],
        progress=False,
        preview_every=settings['steps'],
    )
    seconds = time.perf_counter() - start
    m = evaluate_tokenizer(tok, n=settings['n'], **measure)
    about = dict(
        command=' '.join(['python -m studies.tokenizers', *sys.argv[1:]]),
        date=datetime.now(timezone.utc).isoformat(timespec='seconds'),
        seconds=round(seconds, 1),
        **machine(),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    r = dict(case=name, seed=seed, settings=settings, **m, about=about)
    with replacing(out) as tmp:
        tmp.write_text(json.dumps(r, indent=1) + '\n')
    return r


def parse_shard(
    text: str,  # '1/4'
) -> tuple:  # (1, 4)
    "Which part of the cells, counted from 0; ValueError unless it is written as 1/4"
    i, _, n = text.partition('/')
    if not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise ValueError(
            f"shard {text!r} given, expected a part of all parts counted from 0, as 0/2 and 1/2"
        )
    return int(i), int(n)


@call_parse
def study(
    data: str = 'cifar10',  # as for nfig_train_tokenizer; its held-out part is measured
    cases: str = 'paper,area,nyquist,energy,VAR',  # targets, or targets with a change: VAR.no-phi
    seeds: str = '0,1,2',  # of the runs
    steps: int = 300,  # of training
    batch_size: int = 16,  # images a step
    n: int = 1000,  # held-out images to measure on
    preset: str = 'small',  # what everything else is taken from
    shard: str = '0/1',  # which part of the runs, for several processes
    runs: str = 'runs/study',  # folder for the runs
    out: str = 'results/study',  # folder for the results, which get a folder named after the data
):
    "Train and measure tokenizers that differ in one thing; what is done already is not done again"
    (at, parts), cells = (
        parse_shard(shard),
        [(c, int(s)) for s in seeds.split(',') for c in cases.split(',')],
    )
    side = [study_case(c, s, preset=preset) for c, s in cells][
        0
    ].tokenizer.image_size  # all names are right
    settings = dict(data=data, steps=steps, batch=batch_size, n=n, preset=preset)
    where = Path(data).name

    def file(c, s):
        return Path(out) / where / f'{c}-{s}.json'

    todo = [o for o in cells[at::parts] if not settled(file(*o), settings)]
    print(f'{len(cells)} runs, {len(todo)} to do here', flush=True)
    if not todo:
        return
    train = load_data(data, side, 'train')
    test = load_data(data, side, 'test')
    features = EffNetFeatures()
    measure = dict(
        data=test,
        features=features,
        perceptual=FeatureDistance(),
        reference=extract(features.pooled, test, n=n),
    )
    for c, s in todo:
        r = run_case(c, s, train, settings, Path(runs) / f'{where}-{c}-{s}', file(c, s), **measure)
        print(f"{c}, seed {s}: {r['psnr']:.2f} dB, {r['about']['seconds']:.0f} s", flush=True)


measures = {
    'psnr': 1,
    'ssim': 1,
    'EffNetLite0 distance': -1,
    'FD-EffNetLite0': -1,
    'keep': 1,
    'use': 1,
    'rest': -1,
}  # name -> 1 if more is better


def read_study(
    folder,  # of results, for one data set
) -> dict:  # case -> list of results, by seed
    "All results in a folder; FileNotFoundError if there are none"
    found = {}
    for p in sorted(Path(folder).glob('*.json')):
        r = json.loads(p.read_text())
        r['use'], r['rest'] = min(c['used'] / c['could'] for c in r['codes']), r['error_whole'][-1]
        found.setdefault(r['case'], []).append(r)
    if not found:
        raise FileNotFoundError(f"no results in {folder}: run python -m studies.tokenizers first")
    return found


def difference(
    a,  # results of one case
    b,  # of another
    key: str,  # of `measures`
) -> tuple:  # (mean of a minus mean of b, in units of its uncertainty)
    "How far two cases are apart; the second is nan with fewer than two seeds a case"
    a, b = [r[key] for r in a], [r[key] for r in b]
    d = mean(a) - mean(b)
    if min(len(a), len(b)) < 2:
        return d, float('nan')
    s = (stdev(a) ** 2 / len(a) + stdev(b) ** 2 / len(b)) ** 0.5
    return d, d / s if s else float('inf') * ((d > 0) - (d < 0))


def best_case(
    found: dict,  # from `read_study`
    key: str,  # of `measures`
) -> str:  # the name of the case with the best mean
    "The case with the best mean"
    return max(found, key=lambda c: measures[key] * mean(r[key] for r in found[c]))


def study_table(
    found: dict,  # from `read_study`
    against: str = 'VAR',  # case that the others are compared with
) -> str:  # markdown
    "Means, standard deviations over seeds, and what is clearly better (bold) or worse (italic) than one of them"

    def cell(
        c, k
    ):  # a case's mean of one measure, marked if it is clearly another than the reference's
        v = [r[k] for r in found[c]]
        d, z = difference(found[c], found[against], k) if against in found else (0, 0)
        text = f'{mean(v):.4g}' + (f' ± {stdev(v):.2g}' if len(v) > 1 else '')
        return (
            (f'**{text}**' if d * measures[k] > 0 else f'*{text}*')
            if abs(z) > 3 and c != against
            else text
        )

    head = ['case', 'seeds', *(k + (' ↑' if w > 0 else ' ↓') for k, w in measures.items())]
    rows = [[c, str(len(found[c])), *(cell(c, k) for k in measures)] for c in found]
    return '\n'.join('| ' + ' | '.join(r) + ' |' for r in [head, ['---'] * len(head), *rows])
