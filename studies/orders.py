"Six ways to order an image, each trained from pixels to samples with the same means, three times."

import json
import sys
import time
import torch
from datetime import datetime, timezone
from fastcore.script import call_parse
from pathlib import Path
from statistics import mean, stdev
from nfig.core.config import did_you_mean
from nfig.core.presets import Experiment, get_preset, one_scale
from nfig.core.io import replacing
from nfig.core.record import machine
from nfig.tokenizer.features import EffNetFeatures, Moments, frechet_distance
from nfig.data.sets import ImageData
from nfig.data.sources import load_data
from nfig.train.tokenizer import train_tokenizer
from nfig.train.transformer import train_nfig
from nfig.evaluate.metrics import (
    image_batches,
    log_distance,
    power_profile,
    precision_recall,
    rounding_power,
)
from nfig.evaluate.tokenizer import evaluate_tokenizer
from studies.tokenizers import difference, parse_shard, settled, targets

orders = {k: (v, {}) for k, v in targets.items()} | {
    'raster': (one_scale | dict(scales=(8,)), dict(order='raster'))
}  # case -> what is special about its tokenizer and its transformer
common = dict(
    scales=(1, 2, 3, 4, 6, 8), codebook_size=256, gains=True, beta=0.02
)  # what all tokenizers have


def small_case(
    name: str,  # a key of `orders`
    seed: int,  # of initialisation and data order
    steps: tuple,  # of the tokenizer and of the transformer
    batch: int,  # images a step
) -> Experiment:  # what is trained
    "A case of the grid, from the `tiny` preset; sampled as the model says, without guidance or truncation"
    if name not in orders:
        raise ValueError(did_you_mean(name, orders, 'case'))
    run = dict(batch_size=batch, epochs=0, seed=seed, flip=False)
    tok, model = orders[name]
    return get_preset(
        'tiny',
        tokenizer=common | tok,
        transformer=model,
        train_tokenizer=run | dict(steps=steps[0]),
        train=run | dict(steps=steps[1]),
        sample=dict(cfg_scale=0.0),
    )


@torch.no_grad()
def extract_features(
    features,  # `EffNetFeatures`
    images,  # see `image_batches`
    n: int,  # how many
) -> tuple:  # ((n,D) features, (R,) mean power on rings)
    "What the network and the spectrum say about a set"
    f, power = [], 0.0
    for x in image_batches(images, 50, n):
        f.append(features.pooled(x))
        power = power + power_profile(x).sum(0)
    return torch.cat(f), power / n


def set_scores(
    real: tuple,  # what `extract_features` gave for the real images
    fake: tuple,  # and for the generated ones
    side: int,  # of the images, pixels
) -> dict:  # plain data
    "Distances between two sets"
    (f, p), (g, q) = real, fake
    precision, recall = precision_recall(f, g)
    fd = frechet_distance(*[Moments(o.shape[1]).add(o) for o in (f, g)])
    return {
        'FD-EffNetLite0': fd,
        'precision': precision,
        'recall': recall,
        'psd_distance': log_distance(p, q, rounding_power((side, side))),
    }


@torch.no_grad()
def draw_set(
    pipe,  # `NFIGPipeline`
    n: int,  # images in all, the same number of each class
    seed: int = 0,  # image i of a class has SEED + i
) -> tuple:  # ((n,3,H,H) images, processor seconds an image)
    "Balanced samples, and what one costs"
    k = len(pipe.classes)
    pipe(0)
    start = time.process_time()
    x = torch.cat([pipe(c, n=n // k, seed=seed + c * (n // k), batch_size=50) for c in range(k)])
    return x, (time.process_time() - start) / len(x)


def run_small(
    name: str,  # a key of `orders`
    seed: int,  # of the run
    train: ImageData,  # images to learn from
    test: ImageData,  # images to measure on
    settings: dict,  # data, images, steps, batch, n
    folder: Path,  # for the two runs
    out: Path,  # JSON file to write
    features,  # `EffNetFeatures`
    real: tuple,  # what `extract_features` gave for the test images
) -> dict:  # what was written
    "Train a case from pixels to samples, measure it, and write its numbers down"
    e = small_case(name, seed, settings['steps'], settings['batch'])
    clock = [time.process_time()]
    quiet = dict(progress=False, preview_every=10**9)
    tok = train_tokenizer(e, train, folder / 'tokenizer', data_name=settings['data'], **quiet)
    clock.append(time.process_time())
    pipe = train_nfig(e, tok, train, folder / 'transformer', data_name=settings['data'], **quiet)
    clock.append(time.process_time())
    log = [
        json.loads(l) for l in (folder / 'transformer' / 'metrics.jsonl').read_text().splitlines()
    ]
    m = evaluate_tokenizer(
        tok,
        test,
        settings['n'],
        features=features,
        reference=Moments(real[0].shape[1]).add(real[0]),
    )
    x, cost = draw_set(pipe, settings['n'])
    g = set_scores(real, extract_features(features, x, settings['n']), tok.config.image_size)
    size = dict(
        tokenizer=sum(p.numel() for p in tok.parameters()),
        transformer=sum(p.numel() for p in pipe.transformer.parameters()),
        tokens=tok.config.tokens,
    )
    about = dict(
        command=' '.join(['python -m studies.orders', *sys.argv[1:]]),
        date=datetime.now(timezone.utc).isoformat(timespec='seconds'),
        seconds_tokenizer=round(clock[1] - clock[0], 1),
        seconds_transformer=round(clock[2] - clock[1], 1),
        **machine(),
    )
    r = dict(
        case=name,
        seed=seed,
        settings=settings,
        size=size,
        loss=log[-1]['loss'],
        tokenizer=m,
        generator=g | dict(seconds=cost),
        about=about,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as tmp:
        tmp.write_text(json.dumps(r, indent=1) + '\n')
    return r


@call_parse
def small_study(
    data: str = 'fashion-mnist',  # as for nfig_train_tokenizer; its held-out part is measured
    cases: str = 'paper,area,nyquist,energy,VAR,raster',  # names of `orders`
    seeds: str = '0,1,2',  # of the runs
    images: int = 10_000,  # of the training part, evenly spaced
    tokenizer_steps: int = 300,  # of the tokenizer
    steps: int = 300,  # of the transformer
    batch_size: int = 32,  # images a step
    n: int = 1000,  # held-out images, and samples
    shard: str = '0/1',  # which part of the runs, for several processes
    runs: str = 'runs/small_study',  # folder for the runs
    out: str = 'results/small_study',  # folder for the results, which get a folder named after the data
):
    "Train tokenizers and transformers that differ in one thing, draw samples, measure; what is done already is not done again"
    (at, parts), cells = (
        parse_shard(shard),
        [(c, int(s)) for s in seeds.split(',') for c in cases.split(',')],
    )
    settings = dict(data=data, images=images, steps=[tokenizer_steps, steps], batch=batch_size, n=n)
    where = Path(data).name
    side = [small_case(c, s, settings['steps'], batch_size) for c, s in cells][
        0
    ].tokenizer.image_size  # all names are right

    def file(c, s):
        return Path(out) / where / f'{c}-{s}.json'

    todo = [o for o in cells[at::parts] if not settled(file(*o), settings)]
    print(f'{len(cells)} runs, {len(todo)} to do here', flush=True)
    if not todo:
        return
    train = load_data(data, side, 'train')
    test = load_data(data, side, 'test')
    features = EffNetFeatures()
    train = train.subset(
        torch.arange(min(images, len(train))) * len(train) // min(images, len(train))
    )
    real = extract_features(features, test, n)
    for c, s in todo:
        r = run_small(
            c, s, train, test, settings, Path(runs) / f'{where}-{c}-{s}', file(c, s), features, real
        )
        print(
            f"{c}, seed {s}: rFD {r['tokenizer']['FD-EffNetLite0']:.0f}, gFD {r['generator']['FD-EffNetLite0']:.0f}, {r['about']}",
            flush=True,
        )


small_measures = {
    'rFD': -1,
    'PSNR': 1,
    'keep': 1,
    'PSD rec.': -1,
    'gFD': -1,
    'precision': 1,
    'PSD drawn': -1,
}  # name -> 1 if more is better


def read_small(
    folder,  # of results, for one data set
) -> dict:  # case -> list of dicts with `seed`, the names of `small_measures`, and the file's own
    "All results in a folder, case by case; FileNotFoundError if there are none"
    found = {}
    for p in sorted(Path(folder).glob('*.json')):
        r = json.loads(p.read_text())
        t, g = r['tokenizer'], r['generator']
        values = (
            t['FD-EffNetLite0'],
            t['psnr'],
            100 * t['keep'],
            t['psd_distance'],
            g['FD-EffNetLite0'],
            g['precision'],
            g['psd_distance'],
        )
        found.setdefault(r['case'], []).append(r | dict(zip(small_measures, values)))
    if not found:
        raise FileNotFoundError(f"no results in {folder}: run python -m studies.orders first")
    return {k: found[k] for k in ('raster', 'VAR', *orders) if k in found}


def small_table(
    found: dict,  # from `read_small`
    against: str = 'VAR',  # case that the others are compared with
) -> str:  # markdown
    "Means and standard deviations over seeds; from three seeds on, bold is clearly better than one of them and italic clearly worse"

    def cell(c, k):
        "A case's mean of one measure, marked if it is clearly another than the reference's"
        v = [r[k] for r in found[c]]
        d, z = difference(found[c], found[against], k)
        text = f'{mean(v):.3g}' + (f' ± {stdev(v):.2g}' if len(v) > 1 else '')
        sure = min(len(v), len(found[against])) > 2 and abs(z) > 3 and c != against
        return text if not sure else f'**{text}**' if d * small_measures[k] > 0 else f'*{text}*'

    head = ['order', 'seeds', *(k + (' ↑' if w > 0 else ' ↓') for k, w in small_measures.items())]
    return '\n'.join(
        '| ' + ' | '.join(r) + ' |'
        for r in [
            head,
            ['---'] * len(head),
            *([c, str(len(found[c])), *(cell(c, k) for k in small_measures)] for c in found),
        ]
    )
