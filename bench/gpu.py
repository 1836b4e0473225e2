"Images a second and training steps a second, as one runs them on a GPU: bfloat16, large batches, compiled."

import json
import sys
import torch
import torch.nn.functional as F
from datetime import datetime
from fastcore.script import call_parse
from pathlib import Path
from nfig.core.presets import Experiment
from nfig.core.device import autocast
from nfig.core.record import machine
from nfig.tokenizer.autoencoder import build_decoder
from nfig.tokenizer.frvae import build_tokenizer
from nfig.transformer.model import NFIGTransformer
from nfig.transformer.pipeline import NFIGPipeline
from nfig.train.loop import adamw
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


def work(
    e: Experiment,  # the row of the table
) -> dict:  # floating-point operations for one image: 'generate' (both streams of guidance, all stages), 'decode' and 'train'
    "Products and convolutions of the plain model"
    with torch.device('meta'):
        t = NFIGTransformer(e.transformer).eval()
        decoder = build_decoder(e.tokenizer).eval()
        c = e.transformer
        labels = torch.zeros(1, dtype=torch.int64)
        x = torch.zeros(1, t.ends[-1] - t.ends[0], c.latent_dim)
        with torch.no_grad():
            decode = count_flops(
                lambda: decoder(torch.zeros(1, c.latent_dim, e.tokenizer.side, e.tokenizer.side))
            )

        def stages():
            cache = t.new_cache(2, torch.float32)
            cond = t.embed_class(torch.zeros(2, dtype=torch.int64))
            for i, (a, b) in enumerate(zip([0] + t.ends, t.ends)):
                t.stage(i, cond, torch.zeros(2, b - a, c.latent_dim) if i else None, cache)

        with torch.no_grad():
            generate = count_flops(stages)
        return dict(
            generate=generate,
            decode=decode,
            train=count_flops(lambda: t.train()(labels, x).sum().backward()),
        )


def image_part(
    pipe: NFIGPipeline,  # fast
    batch: int,  # images at once
    flops: int,  # operations of an image
    dtype: str = 'bf16',  # 'fp32' or 'bf16'
) -> Part:
    "Whole images, from classes to pixels"
    labels = some_labels(pipe, batch).tolist()
    return Part(
        'images',
        dtype,
        lambda: pipe(labels, batch_size=batch),
        batch,
        like=Part('', dtype, None, 1, flops=flops),
    )


def training_part(
    e: Experiment,  # model and its training
    batch: int,  # images a step
    flops: int,  # operations for one image
    device: str,  # where
    recompute: bool = False,  # less memory, a third more work (which is not counted)
) -> Part:
    "An optimiser step on cached tokens in bfloat16"
    t = NFIGTransformer(e.transformer).to(device).train()
    q = build_tokenizer(e.tokenizer).quantizer.to(device)
    t.recompute = recompute
    opt = adamw(t, e.train)
    labels = torch.arange(batch, device=device) % e.transformer.classes
    tokens = [torch.randint(q.codebook.size, (batch, s * s), device=device) for s in q.scales]
    if device.startswith('cuda'):
        t.compile(dynamic=False)

    def step():
        with torch.no_grad():
            x = q.teacher_inputs(tokens)
        with autocast(torch.device(device), True):
            logits = t(labels, x)
        opt.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), torch.cat(tokens, 1).flatten()).backward()
        torch.nn.utils.clip_grad_norm_(t.parameters(), 2.0)
        opt.step()

    return Part(
        'recomputed step' if recompute else 'training step',
        'bf16',
        step,
        batch,
        like=Part('', 'bf16', None, batch, flops=flops * batch),
    )


@call_parse
def bench_gpu(
    preset: str = 'nfig_d16',  # row of the presets table
    device: str = 'cuda',  # cuda, or cpu for a trial at a small size
    batches: str = '1,8,128',  # images at once, numbers between commas
    train_batch: int = 64,  # images a training step
    repeats: int = 5,  # rounds; the table shows medians
    out: str = 'results',  # folder for bench_<device>.json
):
    "Images a second and training steps in large batches"
    if device.startswith('cuda') and not torch.cuda.is_available():
        raise ValueError(
            f"device {device!r} given, but PyTorch finds no CUDA device here: bench/h100.sh is meant for a machine with a GPU"
        )
    about = dict(
        preset=preset,
        command=' '.join(['python -m bench.gpu', *sys.argv[1:]]),
        date=datetime.now().isoformat(timespec='seconds'),
        **machine(),
    )
    e = bench_experiment(preset)
    flops = work(e)
    peak = matmul_parts('bf16', device, 8192 if device.startswith('cuda') else 512)
    rows, best = [], {}
    pipe = faster_for(
        NFIGPipeline(build_tokenizer(e.tokenizer), NFIGTransformer(e.transformer), sample=e.sample),
        torch.bfloat16,
        device,
    )
    makers = [
        lambda b=b: image_part(pipe, b, flops['generate'] + flops['decode'])
        for b in map(int, batches.split(','))
    ]
    makers += [
        lambda r=r: training_part(e, train_batch, flops['train'], device, r) for r in (False, True)
    ]
    for make in makers:  # one after the other: recordings of one batch size are kept
        part = make()
        done = interleave([*peak, part], repeats, device)
        best = peaks(done)
        rows.append(row(part, best))
        print(table(rows[-1:]), flush=True)
    path = (
        Path(out) / f"bench_{device.split(':')[0]}.json"
        if device.startswith('cuda')
        else Path(out) / 'bench_gpu_trial.json'
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    for r in rows:
        r['images_per_second'] = (
            round(1 / r['seconds_per_image'], 2) if r['seconds_per_image'] else None
        )
    path.write_text(json.dumps(dict(**about, peak=best, rows=rows), indent=1) + '\n')
