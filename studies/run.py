"""The runner of the studies: train a case, measure it, write its numbers down.

`python -m studies.run tokenizers` and `python -m studies.run orders` made the files that the last
pages of chapter 9 read. What is there is not made again, within a run its checkpoints go on, and
several processes can share a study: `--shard 1/4`."""

import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from fastcore.script import call_parse

from nfig.core.config import did_you_mean
from nfig.core.record import about, parse_share, write_result
from nfig.data.sources import load_data
from nfig.evaluate.generator import GeneratedImages, compare_sets, measure_set
from nfig.evaluate.tokenizer import evaluate_tokenizer
from nfig.tokenizer.features import EffNetFeatures, FeatureDistance, Moments
from nfig.train.tokenizer import train_tokenizer
from nfig.train.transformer import train_nfig
from studies.cases import Study, case, studies


def settings_of(study: Study) -> dict:  # plain data
    "What a result must have been made with, to stand in one table with others"
    made = asdict(study)
    del made['cases']
    return json.loads(json.dumps(made))


def settled(
    path: Path,  # of a result
    settings: dict,  # that it must have been made with
) -> bool:
    "Is this result there? ValueError if it was made with other settings"
    if not path.exists():
        return False
    had = json.loads(path.read_text())['settings']
    differ = sorted(k for k in {*had, *settings} if had.get(k) != settings.get(k))
    if differ:
        what = ', '.join(f'{k} {had.get(k)}, now {settings.get(k)}' for k in differ)
        raise ValueError(
            f"{path} was made with other settings ({what}): choose another folder "
            "with --out, or the settings of these results"
        )
    return True


class Measure:
    "Held-out images, and the two networks that look at them"

    def __init__(
        self,
        test,  # `ImageData`
        n: int,  # images to measure on
        side: int = 112,  # pixels at which the network of the Fréchet distance looks
    ):
        self.test, self.n = test, n
        self.network, self.distance = EffNetFeatures(side), FeatureDistance()
        self.real = measure_set(test, self.network, n, progress=False)

    def tokenizer(self, tok) -> dict:  # plain data
        "Everything about a tokenizer"
        return evaluate_tokenizer(
            tok,
            self.test,
            self.n,
            features=self.network,
            perceptual=self.distance,
            reference=Moments.from_sums(self.real['sums']),
        )

    def generator(self, pipe) -> dict:  # plain data
        "Everything about as many samples as there are held-out images, and what one costs"
        samples = GeneratedImages(pipe, self.n, batch=50)
        start = time.process_time()
        drawn = samples.__getitems__(range(self.n))[0]
        seconds = (time.process_time() - start) / self.n
        fake = measure_set(drawn, self.network, progress=False)
        scores = compare_sets(self.real, fake, self.network.name, samples.size)
        return scores | dict(seconds=seconds)


def run_case(
    name: str,  # see `studies.cases.case`
    seed: int,  # of the run
    study: Study,  # what it has in common with the others
    train,  # `ImageData` to learn from
    measure: Measure,  # what its numbers come from
    folder: Path,  # for the runs
    out: Path,  # JSON file to write
) -> dict:  # what was written
    "Train a case from pixels to samples, measure it, and write its numbers down"
    experiment = case(name, study, seed)
    quiet = dict(data_name=study.data, progress=False, preview_every=10**9)
    clock = [time.process_time()]
    tok = train_tokenizer(experiment, train, folder / 'tokenizer', **quiet)
    clock.append(time.process_time())
    size = dict(tokenizer=sum(p.numel() for p in tok.parameters()), tokens=tok.config.tokens)
    result = dict(
        case=name,
        seed=seed,
        settings=settings_of(study),
        size=size,
        tokenizer=measure.tokenizer(tok),
    )
    if study.steps[1]:
        pipe = train_nfig(experiment, tok, train, folder / 'transformer', **quiet)
        clock.append(time.process_time())
        log = (folder / 'transformer' / 'metrics.jsonl').read_text().splitlines()
        size['transformer'] = sum(p.numel() for p in pipe.transformer.parameters())
        result |= dict(loss=json.loads(log[-1])['loss'], generator=measure.generator(pipe))
    names = ('seconds_tokenizer', 'seconds_transformer')
    seconds = {k: round(b - a, 1) for k, a, b in zip(names, clock, clock[1:])}
    result['about'] = about('python -m studies.run', **seconds)
    write_result(out, result)
    return result


@call_parse
def main(
    study: str,  # tokenizers or orders
    data: str = None,  # in place of the study's
    cases: str = None,  # in place of the study's: targets, or targets with a change, as VAR.no-phi
    seeds: str = '0,1,2',  # of the runs
    tokenizer_steps: int = None,  # in place of the study's
    steps: int = None,  # of the transformer, in place of the study's; 0 for none
    batch_size: int = None,  # images a step, in place of the study's
    n: int = None,  # held-out images and samples, in place of the study's
    shard: str = '0/1',  # which part of the runs, for several processes
    runs: str = 'runs',  # folder for the runs
    out: str = 'results/studies',  # folder for the results: OUT/STUDY/DATA/CASE-SEED.json
):
    "Train and measure models that differ in one thing; what is done already is not done again"
    if study not in studies:
        raise SystemExit('error: ' + did_you_mean(study, studies, 'study'))
    s = studies[study]
    given = dict(data=data, cases=cases, batch=batch_size, n=n)
    s = replace(s, **{k: v for k, v in given.items() if v is not None})
    s = replace(
        s, steps=tuple(b if a is None else a for a, b in zip((tokenizer_steps, steps), s.steps))
    )
    where = Path(study) / Path(s.data).name
    # all cases of the first seed before any of the second: what is stopped has whole rows
    cells = [(c, int(seed)) for seed in seeds.split(',') for c in s.cases.split(',')]
    side = [case(c, s) for c, _ in cells][0].tokenizer.image_size  # and all names are right
    file = {cell: Path(out) / where / f'{cell[0]}-{cell[1]}.json' for cell in cells}
    at, of = parse_share(shard)
    todo = [cell for cell in cells[at::of] if not settled(file[cell], settings_of(s))]
    print(f'{len(cells)} runs, {len(todo)} to do here', flush=True)
    if not todo:
        return
    train, measure = load_data(s.data, side, 'train'), Measure(load_data(s.data, side, 'test'), s.n)
    count = min(s.images or len(train), len(train))
    train = train.subset(torch.arange(count) * len(train) // count)
    for name, seed in todo:
        folder = Path(runs) / where / f'{name}-{seed}'
        r = run_case(name, seed, s, train, measure, folder, file[name, seed])
        distances = [r[k]['FD-EffNetLite0'] for k in ('tokenizer', 'generator') if k in r]
        print(
            f"{name}, seed {seed}: {r['tokenizer']['psnr']:.2f} dB, distances of "
            f"reconstructions and samples {[round(d) for d in distances]}",
            flush=True,
        )
