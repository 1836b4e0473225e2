"Guidance, truncation and previews, in operations and in seconds."

import copy
import time
import torch
from fastcore.script import call_parse
from pathlib import Path
from statistics import median
from nfig.core.presets import get_preset
from nfig.core.record import about, write_result
from nfig.tokenizer.frvae import build_tokenizer
from nfig.transformer.model import NFIGTransformer
from nfig.transformer.pipeline import NFIGPipeline
from bench.generate import bench_experiment, count_flops

options = {  # name -> what the call says
    'paper': {},
    'coarse': dict(schedule='coarse'),
    'no guidance': dict(cfg_scale=0.0),
    'guided logits': dict(guide_hidden=False),
    'last unguided': dict(unguided_last=1),
    'top_p 0.95': dict(top_k=0, top_p=0.95),
    **{f'preview {k}': dict(stages=k) for k in (4, 6, 8)},
}


def build_pipeline(
    preset: str,  # a key of `presets`
) -> NFIGPipeline:  # random weights
    "A pipeline of a preset's size, with VAR's CNN as the decoder if the preset has another"
    e = bench_experiment(preset)
    torch.manual_seed(0)
    return NFIGPipeline(
        build_tokenizer(e.tokenizer), NFIGTransformer(e.transformer), sample=e.sample
    ).to('cpu', torch.float32)


def measure_options(
    pipe: NFIGPipeline,  # any size
    options: dict,  # name -> what the call says; shares are of the first one
    repeats: int = 2,  # rounds
) -> list:  # of dicts, ready for JSON
    """Operations and processor seconds of one image with each option: counted on tensors without
    memory, timed in turn"""
    shadow = copy.deepcopy(pipe).to('meta')
    flops = {name: count_flops(lambda kw=kw: shadow([0], **kw)) for name, kw in options.items()}
    times = {name: [] for name in options}
    first = next(iter(options))
    pipe([0], **options[first])  # once untimed
    for name in [*options] * repeats:
        t = time.process_time()
        pipe([0], **options[name])
        times[name].append(time.process_time() - t)
    return [
        dict(
            option=n,
            settings=kw,
            gflop=round(flops[n] / 1e9, 3),
            seconds=round(median(times[n]), 3),
            share_gflop=round(flops[n] / flops[first], 3),
            share_seconds=round(median(times[n]) / median(times[first]), 3),
            times=[round(t, 3) for t in times[n]],
        )
        for n, kw in options.items()
    ]


@call_parse
def sampling_cost(
    preset: str = 'nfig_d16',  # a row of nfig.core.presets
    only: str = '',  # options between commas; all of them if empty
    repeats: int = 2,  # rounds
    threads: int = 1,  # processor threads; one is least disturbed by other work
    out: str = 'results',  # folder for sampling_cost_<preset>.json
):
    "Measure what each sampling option costs, as a share of a full image"
    chosen = {o: options[o] for o in only.split(',')} if only else options
    e = get_preset(preset)
    torch.set_num_threads(threads)
    record = about('python -m bench.sampling')
    rows = measure_options(build_pipeline(preset), chosen, repeats)
    found = dict(
        about=record,
        preset=preset,
        steps=len(e.transformer.grids),
        tokens=e.tokenizer.tokens,
        options=rows,
    )
    write_result(Path(out) / f'sampling_cost_{preset}.json', found)
    for r in rows:
        print(
            f"{r['option']:12} {r['gflop']:8.1f} GFLOP {r['share_gflop']:6.1%}  "
            f"{r['seconds']:7.2f} s {r['share_seconds']:6.1%}"
        )
