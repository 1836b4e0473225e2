"""How much of a training step is spent on taking a batch out of the token cache: measured, on a
cache of a real size."""

import os
import statistics
import tempfile
import time
import torch
from dataclasses import replace
from fastcore.script import call_parse
from pathlib import Path
from nfig.core.presets import Experiment, get_preset
from nfig.core.io import weights_hash
from nfig.core.record import about, write_result
from nfig.tokenizer.frvae import build_tokenizer
from nfig.transformer.model import NFIGTransformer
from nfig.transformer.pipeline import NFIGPipeline
from nfig.data.tokens import CachePlan, TokenCache, shard_path, write_manifest, write_shard
from nfig.train.transformer import TransformerTask


def made_cache(
    folder,  # where
    pipe: NFIGPipeline,  # whose tokenizer's grids and codes
    images: int,  # how many it seems to hold
    shard: int = 4096,  # images a file
) -> TokenCache:
    "A cache of two views of random tokens"
    q = pipe.tokenizer.config
    plan = CachePlan(weights_hash(pipe.tokenizer), 'random', images, shard=shard)
    tokens = torch.randint(q.codebook_size, (2, shard, q.tokens), dtype=torch.int16)
    labels = torch.arange(shard) % len(pipe.classes)
    for i in range(plan.files()):
        n = len(plan.span(i))
        write_shard(shard_path(folder, i), plan, tokens[:, :n], labels[:n])
    write_manifest(folder, pipe.tokenizer, pipe, plan)
    return TokenCache(folder, pipe.tokenizer)


def drop_pages(cache: TokenCache):  # whose files leave the system's memory, if it lets us
    "Make the next reading come from the disk (Linux)"
    if not hasattr(os, 'posix_fadvise'):
        return
    for s in cache.manifest['shards']:
        with open(cache.folder / s['file'], 'rb') as f:
            os.fsync(f.fileno())
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(f, n: int) -> float:  # seconds, the median of n calls
    "How long a call takes"
    times = []
    for _ in range(n):
        t = time.perf_counter()
        f()
        times.append(time.perf_counter() - t)
    return statistics.median(times)


def reading_share(
    e: Experiment,  # model and batch
    images: int,  # in the cache
    steps: int = 5,  # that are timed
    device: str = 'cpu',  # where the model runs
) -> dict:  # plain data
    "Seconds to read a batch, cold and warm, beside those of a step"
    torch.manual_seed(0)
    pipe = NFIGPipeline(
        build_tokenizer(e.tokenizer).to(device).eval(), NFIGTransformer(e.transformer).to(device)
    )
    b = e.train.batch_size
    with tempfile.TemporaryDirectory() as d:
        cache = made_cache(d, pipe, images)
        rows = iter(torch.randperm(images).split(b))
        drop_pages(cache)

        def read():
            cache[torch.randint(2, (b,)), next(rows)]

        cold = timed(read, min(50, images // b // 3))
        warm_rows = torch.randperm(images)[:b]
        cache[0, warm_rows]
        cache[1, warm_rows]
        warm = timed(lambda: cache[torch.randint(2, (b,)), warm_rows], 20)
        task = TransformerTask(pipe, cache, cache.labels, replace(e.train, steps=1000))
        task.step(0)
        k = iter(range(1, 1000))

        def step():
            task.step(next(k))
            torch.cuda.synchronize() if device != 'cpu' else None

        seconds = timed(step, steps)
        size = sum(p.stat().st_size for p in Path(d).iterdir())
    return dict(
        preset=e.name,
        batch=b,
        images=images,
        cache_mb=round(size / 1e6, 1),
        read_cold=round(cold, 6),
        read_warm=round(warm, 6),
        step=round(seconds, 4),
        share_cold=round(cold / seconds, 5),
        share_warm=round(warm / seconds, 5),
    )


@call_parse
def bench_tokens(
    preset: str = 'small',  # row of nfig.core.presets
    images: int = 200_000,  # in the cache
    device: str = 'cpu',  # where the model runs: cpu or cuda
    out: str = 'results',  # folder for token_cache_<device>.json
):
    "Time reading from a token cache beside training steps"
    r = reading_share(get_preset(preset), images, device=device)
    record = about('python -m bench.tokens')
    path = Path(out) / f"token_cache_{device.split(':')[0]}.json"
    write_result(path, dict(r, about=record))
    print(
        f"reading {r['batch']} of {images:,} images: {1e3 * r['read_cold']:.2f} ms cold, "
        f"{1e3 * r['read_warm']:.2f} ms warm; a step {1e3 * r['step']:.0f} ms: "
        f"{r['share_cold']:.3%} and {r['share_warm']:.3%}; written to {path}"
    )
