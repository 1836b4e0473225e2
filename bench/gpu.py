"""Images a second and training steps a second, as one runs them on a GPU: in bfloat16, in large
batches, compiled.

Every row is measured in a process of its own and written at once: a row that fails, or takes
too long, costs itself and nothing else. The most wanted rows come first; what there is no time
for is listed as left out."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from fastcore.script import call_parse

from bench.generate import (
    Part,
    bench_experiment,
    count_flops,
    faster_for,
    interleave,
    matmul_parts,
    peaks,
    row,
    some_labels,
    table,
)
from bench.tokenizer_step import random_task
from nfig.core.presets import Experiment
from nfig.core.record import about, write_result
from nfig.core.tensors import searched_kernels
from nfig.fast.faster import extras
from nfig.tokenizer.frvae import build_decoder, build_encoder, build_tokenizer
from nfig.train.status import train_flops
from nfig.train.transformer import TransformerTask
from nfig.transformer.model import NFIGTransformer
from nfig.transformer.pipeline import NFIGPipeline, generate


def work(
    e: Experiment,  # the row of the table
) -> dict:  # operations for one image: 'generate' (guided), 'decode', 'train' and 'tokenizer'
    "Products and convolutions of the plain model; a tokenizer's step without what judges it"
    with torch.device('meta'):
        t = NFIGTransformer(e.transformer).eval()
        decoder, encoder = build_decoder(e.tokenizer).eval(), build_encoder(e.tokenizer).eval()
        c, side = e.transformer, e.tokenizer.image_size
        with torch.no_grad():
            decode = count_flops(
                lambda: decoder(torch.zeros(1, c.latent_dim, e.tokenizer.side, e.tokenizer.side))
            )
            encode = count_flops(lambda: encoder(torch.zeros(1, 3, side, side)))

        def stages():
            cache = t.new_cache(2, torch.float32)
            cond = t.embed_class(torch.zeros(2, dtype=torch.int64))
            for i, (a, b) in enumerate(zip([0] + t.ends, t.ends)):
                t.stage(i, cond, torch.zeros(2, b - a, c.latent_dim) if i else None, cache)

        with torch.no_grad():
            generate = count_flops(stages)
    both = 3 * (encode + decode)  # forward, and twice as much backward
    return dict(generate=generate, decode=decode, train=train_flops(e.transformer), tokenizer=both)


def fast_pipeline(
    e: Experiment,  # all sizes
    device: str,  # where
    without=(),  # of `faster.extras`
) -> NFIGPipeline:
    "A fast pipeline of random weights in bfloat16"
    t = NFIGTransformer(e.transformer)
    pipe = NFIGPipeline(build_tokenizer(e.tokenizer), t, sample=e.sample)
    return faster_for(pipe, torch.bfloat16, device, without)


def counted(
    name: str,  # what it does
    batch: int,  # images of a call
    flops: int,  # operations of an image, from `work`
    fn,  # called without arguments
) -> Part:
    "Something to time in bfloat16 whose operations are known"
    return Part(name, 'bf16', fn, batch, like=Part('', 'bf16', None, 1, flops=flops))


def image_part(
    pipe: NFIGPipeline,  # fast
    batch: int,  # images at once
    flops: int,  # operations of an image
    batches: int = 1,  # of a call
    **sample,  # settings of the sampling
) -> Part:
    "Whole images, from classes to pixels"
    n = batch * batches
    labels = some_labels(pipe, n).tolist()
    return counted('images', n, flops, lambda: pipe(labels, batch_size=batch, **sample))


def series(
    e: Experiment,  # the row of the table
    batch: int,  # images at once
    device: str,  # where
    w: dict,  # from `work`
    without=(),  # of `faster.extras`
) -> Part:
    "Whole images in four batches a call, perhaps with an extra left out"
    pipe = fast_pipeline(e, device, without)
    return image_part(pipe, batch, w['generate'] + w['decode'], batches=4)


def token_part(
    pipe: NFIGPipeline,  # fast
    batch: int,  # images at once
    flops: int,  # operations of an image
) -> Part:
    "Tokens alone, which is what most published figures are of"
    labels, q = some_labels(pipe, batch), pipe.tokenizer.quantizer
    draw = partial(generate, pipe.transformer, q, labels, pipe.sample)
    return counted('tokens', batch, flops, draw)


def decoder_part(
    pipe: NFIGPipeline,  # fast
    batch: int,  # images at once
    flops: int,  # operations of an image
) -> Part:
    "Latents to pixels"
    c = pipe.tokenizer.config
    f_hat = torch.randn(batch, c.latent_dim, c.side, c.side, device=pipe.device)
    return counted('decoder', batch, flops, lambda: pipe.decode_latent(f_hat))


def training_part(
    e: Experiment,  # model and its training
    batch: int,  # images a step
    flops: int,  # operations for one image
    device: str,  # where
    **cfg,  # fields of its `TransformerTraining`
) -> Part:
    "The trainer's own step on cached tokens: loss, gradients, clipping, AdamW, average"
    tok = build_tokenizer(e.tokenizer).to(device)
    pipe = NFIGPipeline(tok, NFIGTransformer(e.transformer).to(device), sample=e.sample)
    tokens = torch.randint(e.tokenizer.codebook_size, (1, batch, e.tokenizer.tokens)).short()
    settings = replace(e.train, batch_size=batch, steps=1_000, epochs=0, accumulate=1, **cfg)
    task = TransformerTask(pipe, tokens, torch.arange(batch) % e.transformer.classes, settings)
    return counted('training step', batch, flops, lambda: task.step(1))


def tokenizer_part(
    e: Experiment,  # tokenizer and its training
    batch: int,  # images a step
    flops: int,  # operations for one image
    device: str,  # where
    search: bool = True,  # for the kernels of convolutions, as `TrainConfig.search`
) -> Part:
    "The tokenizer's own step on images of noise, after the critic's start"
    task = random_task(e, batch, device, compiled=None)

    def step():
        "As `fit` takes it"
        with searched_kernels(search):
            task.step(1)

    return counted('tokenizer step', batch, flops, step)


def waiting(seconds: int) -> Part:
    "A row that only takes time, to try the limits"
    return counted('waiting', 1, 1, lambda: time.sleep(seconds))


makers = {  # kind of row -> (experiment, batch, device, operations of an image) -> `Part`
    'images': lambda e, n, d, w: image_part(fast_pipeline(e, d), n, w['generate'] + w['decode']),
    'logits-guided': lambda e, n, d, w: image_part(
        fast_pipeline(e, d), n, w['generate'] + w['decode'], guide_hidden=False
    ),
    'tokens': lambda e, n, d, w: token_part(fast_pipeline(e, d), n, w['generate']),
    'decoder': lambda e, n, d, w: decoder_part(fast_pipeline(e, d), n, w['decode']),
    'training': lambda e, n, d, w: training_part(e, n, w['train'], d),
    'recomputed': lambda e, n, d, w: training_part(e, n, w['train'], d, recompute=True),
    'eager': lambda e, n, d, w: training_part(e, n, w['train'], d, compile=False),
    'tokenizer': lambda e, n, d, w: tokenizer_part(e, n, w['tokenizer'], d),
    'unsearched': lambda e, n, d, w: tokenizer_part(e, n, w['tokenizer'], d, search=False),
    'series': series,
    **{f'without-{name}': partial(series, without=(name,)) for name in extras},
    'waiting': lambda e, n, d, w: waiting(n),
}
wanted = (  # the most wanted first: kind:batch
    'images:128 tokens:64 training:64 decoder:128 images:1 eager:64 recomputed:64 '
    'logits-guided:128 images:8 images:256 '
    'series:128 without-beside:128 without-search:128 without-joined:128 tokenizer:8 unsearched:8'
)


def measured(
    preset: str,  # row of the presets table
    kind: str,  # a key of `makers`
    batch: int,  # images at once
    device: str,  # where
    repeats: int,  # rounds
) -> dict:  # as `row` gives it
    "One row, beside matrix products in the same minute"
    if kind not in makers:
        raise ValueError(f'unknown row {kind!r}: choose from {", ".join(makers)}')
    e = bench_experiment(preset)
    gpu = device.startswith('cuda')
    peak = matmul_parts('bf16', device, 8192 if gpu else 512)
    part = makers[kind](e, batch, device, work(e))
    best = peaks(interleave([*peak, part], repeats, device))
    return row(part, best) | dict(kind=kind, peak=round(best['bf16'], 1))


def in_a_process(
    preset: str,
    kind: str,
    batch: int,
    device: str,
    repeats: int,  # as for `measured`
    limit: float,  # seconds
) -> dict:  # the row, or its `kind`, `batch` and `failed`: why
    "A row from a process that can be stopped and whose memory is its own"
    asked = ', '.join(map(repr, (preset, kind, batch, device, repeats)))
    code = f'from bench.gpu import *; print(json.dumps(measured({asked})))'
    began = time.monotonic()
    try:
        p = subprocess.run(
            [sys.executable, '-c', code], capture_output=True, text=True, timeout=limit
        )
        failed = None if p.returncode == 0 else (p.stderr.strip().splitlines() or ['?'])[-1][:500]
    except subprocess.TimeoutExpired:
        failed = f'stopped after {limit:.0f} s'
    took = dict(took=round(time.monotonic() - began, 1))
    if failed:
        return dict(kind=kind, batch=batch, failed=failed) | took
    return json.loads(p.stdout.splitlines()[-1]) | took


@call_parse
def bench_gpu(
    preset: str = 'nfig_d16',  # row of the presets table
    device: str = 'cuda',  # cuda, or cpu for a trial at a small size
    rows: str = wanted,  # kind:batch, the most wanted first, with blanks between
    repeats: int = 5,  # rounds; the table shows medians
    budget: float = 900,  # seconds for all rows
    limit: float = 240,  # seconds for one row
    out: str = 'results',  # folder for bench_<device>.json
):
    "Images a second and training steps in large batches, a row at a time"
    gpu = device.startswith('cuda')
    if gpu and not torch.cuda.is_available():
        raise ValueError(
            f'device {device!r} given, but PyTorch finds no CUDA device here: '
            'bench/h100.sh is meant for a machine with a GPU'
        )
    record = about('python -m bench.gpu', preset=preset)
    path = Path(out) / ('bench_cuda.json' if gpu else 'bench_gpu_trial.json')
    end = time.monotonic() + budget
    done, left_out = [], []
    for name in rows.split():
        kind, _, batch = name.partition(':')
        left = end - time.monotonic()
        if left < 1:
            left_out.append(name)
            continue
        r = in_a_process(preset, kind, int(batch or 1), device, repeats, min(limit, left))
        if 'failed' in r:
            print(f'{name}: {r["failed"]}', flush=True)
        else:
            seconds = r['seconds_per_image']
            r['images_per_second'] = round(1 / seconds, 2) if seconds else None
            print(table([r]), flush=True)
        done.append(r)
        whole = dict(**record, rows=done, left_out=left_out)
        write_result(path, whole)
    if left_out:
        print(f'no time for {", ".join(left_out)}')
        write_result(path, dict(**record, rows=done, left_out=left_out))
