"""GPU hours, days, disks and wires for four sizes of transformer on 1 to 64 H100s, from counted
operations and one assumption."""

import json
import torch
from dataclasses import asdict, dataclass, replace
from fastcore.script import call_parse
from pathlib import Path
from nfig.core.presets import Experiment, get_preset
from nfig.core.record import about, write_result
from nfig.tokenizer.frvae import build_tokenizer
from nfig.transformer.model import NFIGTransformer
from nfig.train.status import train_flops
from bench.generate import count_flops


def train_work(
    e: Experiment,  # whose transformer
) -> dict:  # plain data: parameters, gflop for one image, forward and backward
    "What a training step takes for each image, counted without computing anything"
    with torch.device('meta'):
        parameters = sum(p.numel() for p in NFIGTransformer(e.transformer).parameters())
    return dict(
        preset=e.name, parameters=parameters, gflop=round(train_flops(e.transformer) / 1e9, 3)
    )


@dataclass(frozen=True)
class Cluster:
    "H100s and what connects them; bandwidths are data sheets' numbers"

    peak: float = 798.0  # TFLOP/s of a GPU in bfloat16: a product of 8192^3, measured
    share: float = 0.45  # of that speed which training reaches: the assumption
    gpus_a_node: int = 8  # behind the same network cards
    inside: float = 450.0  # GB/s of each GPU's NVLink, one way
    between: float = 400.0  # GB/s of a node's network cards, one way


def exchange_seconds(
    c: Cluster,  # what connects them
    parameters: int,  # whose gradients are averaged, four bytes each
    gpus: int,  # taking part
) -> float:  # seconds
    "Time of averaging gradients in rings"
    size = 4 * parameters * 2 * (gpus - 1) / gpus / 1e9
    return size / (c.inside if gpus <= c.gpus_a_node else min(c.inside, c.between))


def largest_cluster(
    c: Cluster,  # what connects them
    parameters: int,  # of the model
    seconds: float,  # that one GPU takes for a step
) -> int:  # GPUs
    "Up to how many GPUs, in whole nodes, the exchange hides behind the backward pass"
    free = [
        n
        for n in range(c.gpus_a_node, 4097, c.gpus_a_node)
        if exchange_seconds(c, parameters, n) <= 2 / 3 * seconds / n
    ]
    return free[-1] if free else 1


def transformer_run(
    e: Experiment,  # its epochs and batch
    w: dict,  # from `train_work`
    gpus: int,  # at work
    c: Cluster = Cluster(),  # what they are
    images: int = 1_281_167,  # of the data set; ImageNet's training set if not given
) -> dict:  # plain data
    "Steps, GPU hours, days, seconds of a step and of its exchange, memory"
    # seconds of one GPU for a step
    steps = e.train.total_steps(images)
    work = 1e9 * w['gflop'] * e.train.batch_size / (c.peak * 1e12 * c.share)
    wires = exchange_seconds(c, w['parameters'], gpus)
    step = work / gpus + max(0, wires - 2 / 3 * work / gpus)
    whole = 20 * w['parameters'] / 1e9  # weights, gradients, two moments, average; 4 bytes each
    return dict(
        gpus=gpus,
        steps=steps,
        share=c.share,
        gpu_hours=round(steps * step * gpus / 3600),
        days=round(steps * step / 86400, 2),
        seconds_a_step=round(step, 3),
        exchange_ms=round(1e3 * wires, 1),
        bound=wires > 2 / 3 * work / gpus,
        gigabytes=round(whole, 1),
        gigabytes_sharded=round(whole / gpus, 1),
        images_a_gpu=e.train.batch_size / gpus,
    )


def storage(
    e: Experiment,  # tokens and views
    w: dict,  # from `train_work`
    views: int = 2,  # rows of an image in the token cache
    kept: int = 4,  # checkpoints: two, the best, and the one that is being written
    images: int = 1_281_167,  # of the data set
) -> dict:  # gigabytes
    "What lies on the disk"
    row = e.tokenizer.tokens * (2 if e.tokenizer.codebook_size <= 2**15 else 4)
    return dict(
        token_cache=round(images * views * row / 1e9, 2),
        checkpoint=round(16 * w['parameters'] / 1e9, 2),
        checkpoints=round(kept * 16 * w['parameters'] / 1e9, 1),
        pipeline_half=round(2 * w['parameters'] / 1e9, 2),
    )


def measured(
    path='results/bench_cuda.json',  # what `python -m bench.gpu` writes on a machine with a GPU
) -> dict:  # fields of `Cluster`; empty if nothing was measured
    "Peak and training's share of it, from the benchmark of a GPU"
    if not Path(path).is_file():
        return {}
    b = json.loads(Path(path).read_text())
    rows = [r for r in b['rows'] if r['part'] == 'training step' and r['share']]
    return dict(peak=round(b['peak']['bf16'] / 1e3, 1), share=rows[0]['share']) if rows else {}


def encode_work(e: Experiment) -> float:  # GFLOP for one image
    "What the tokenizer's encoder takes, counted with random weights"
    tok = build_tokenizer(e.tokenizer, False).eval()
    n = e.tokenizer.image_size
    return round(count_flops(lambda: tok.encode(torch.zeros(1, 3, n, n))) / 1e9, 2)


@call_parse
def cost_paper(
    presets: str = 'nfig_d16,nfig_d20,nfig_d24,nfig_d30',  # rows of nfig.core.presets
    gpus: str = '1,8,16,64',  # how many, numbers between commas
    bench: str = 'results/bench_cuda.json',  # of bench.gpu; without it 45 % of the peak are assumed
    out: str = 'results',  # folder for cost_paper.json
):
    "Compute what the paper's runs take on H100s"
    found = measured(bench)
    c = Cluster(**found)
    rows = []
    for e in map(get_preset, presets.split(',')):
        w = train_work(e)
        n = list(map(int, gpus.split(',')))
        one = transformer_run(e, w, 1, c)['seconds_a_step']
        slow = [replace(c, between=b) for b in (400.0, 50.0, 12.5)]
        rows.append(
            dict(
                w,
                runs=[transformer_run(e, w, k, c) for k in n],
                storage=storage(e, w),
                largest={str(s.between): largest_cluster(s, w['parameters'], one) for s in slow},
            )
        )
    record = about('python -m bench.cost_transformer')
    what = dict(
        cluster=asdict(c),
        share_is='measured' if found else 'assumed',
        encode_gflop=encode_work(e),
        models=rows,
        about=record,
    )
    path = Path(out) / 'cost_paper.json'
    write_result(path, what)
    print(
        f"{len(rows)} models on {gpus} GPUs at {c.share:.0%} of the peak ({what['share_is']}); "
        f"written to {path}"
    )
