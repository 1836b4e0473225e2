"What generation costs against depth, tokens and batch, beside the law that it should follow."

import torch
from dataclasses import replace
from fastcore.script import call_parse, store_true
from pathlib import Path
from nfig.core.presets import resized
from nfig.core.record import about, write_result
from nfig.tokenizer.frvae import build_tokenizer
from nfig.transformer.model import NFIGTransformer
from nfig.transformer.pipeline import NFIGPipeline
from bench.gpu import work
from bench.generate import (
    Part,
    bench_experiment,
    dtypes,
    faster_for,
    image_parts,
    interleave,
    matmul_parts,
    peaks,
    row,
)


def star(
    depths,
    batches,
    sides,  # what each axis takes; the first value is the centre's
) -> list:  # of (depth, batch, side)
    "The centre, and all cells that differ from it along one axis"
    d = depths[0]
    b = batches[0]
    s = sides[0]
    return (
        [(d, b, s)]
        + [(o, b, s) for o in depths[1:]]
        + [(d, o, s) for o in batches[1:]]
        + [(d, b, o) for o in sides[1:]]
    )


def grid(depths, batches, sides) -> list:
    return [(d, b, s) for d in depths for b in batches for s in sides]  # all of them


def sized(
    preset: str,  # a key of `presets`
    depth: int,  # blocks; width and heads follow
    side: int,  # pixels
    dtype: torch.dtype,  # of the weights
    device: str,  # where
) -> NFIGPipeline:  # fast, for generation
    "A pipeline of a given size"
    e = bench_experiment(preset)
    tok = resized(e.tokenizer, side)
    wide = (
        {}
        if depth == e.transformer.depth
        else dict(depth=depth, width=None, heads=None, drop_path=None)
    )
    with torch.device('meta'):
        t = NFIGTransformer(replace(e.transformer, scales=tok.scales, **wide))
    t = t.to_empty(device='cpu')
    with torch.no_grad():
        for o in t.parameters():
            o.fill_(0.01)
    fresh = NFIGTransformer(replace(e.transformer, scales=tok.scales, depth=1, width=64, heads=1))
    for n, o in fresh.named_buffers():
        t.get_buffer(n).copy_(o)
    return faster_for(NFIGPipeline(build_tokenizer(tok), t, sample=e.sample), dtype, device)


def measured(
    depth: int,
    side: int,
    batches: list,  # one cell for each batch
    preset: str,
    dtype: str,
    device: str,
    repeats: int,  # as for `growth`
) -> list:  # rows
    "The cells of one model"
    pipe = sized(preset, depth, side, dtypes[dtype], device)
    sizes = dict(tokenizer=pipe.tokenizer.config, transformer=pipe.transformer.config)
    flops = work(replace(bench_experiment(preset), **sizes))
    like = [Part('', dtype, None, 1, flops=flops[k]) for k in ('generate', 'decode')]
    parts = matmul_parts(dtype, device, 8192 if device.startswith('cuda') else 2048)
    for b in batches:
        parts += image_parts(pipe, dtype, b, '', like)
    interleave(parts, repeats, device)
    peak = peaks(parts)
    more = dict(depth=depth, side=side, tokens=pipe.tokenizer.config.tokens)
    return [row(p, peak) | more for p in parts if not p.name.startswith('matmul')]


def measure(
    cells: list,  # of (depth, batch, side)
    preset: str,
    dtype: str,
    device: str,
    repeats: int,  # as for `growth`
    keep=lambda rows: None,  # called with all rows so far, whenever there are more
) -> list:  # rows as in `bench.row`, with depth, side and tokens
    """Time every cell; a model is built once for all batches of a size. What fails costs its own
    rows"""
    rows = []
    for d, s in dict.fromkeys((d, s) for d, _, s in cells):
        try:
            new = measured(
                d,
                s,
                sorted({b for D, b, S in cells if (D, S) == (d, s)}),
                preset,
                dtype,
                device,
                repeats,
            )
        except Exception as e:  # as out of memory
            print(f'depth {d}, side {s}: {type(e).__name__}: {e}', flush=True)
            continue
        print('\n'.join(shown(new)), flush=True)
        rows += new
        keep(rows)
    return rows


head = (
    f"{'depth':>5}{'side':>6}{'batch':>6}  "
    f"{'part':<12}{'seconds':>9}{'s/image':>9}{'GFLOP':>10}{'GFLOP/s':>9}{'of peak':>9}{'GiB':>7}"
)


def shown(
    rows: list,  # from `measure`
) -> list:  # of lines
    "Rows of a table"
    return [
        (
            "{depth:>5}{side:>6}{batch:>6}  {part:<12}{seconds:>9.3f}{seconds_per_image:>9.3f}"
            "{gflop:>10.1f}{gflops:>9.0f}{share:>9.0%}{memory_gib:>7.2f}"
        ).format(**r)
        for r in rows
    ]


def numbers(s: str) -> list:
    return [int(o) for o in s.split(',')]  # '1,2' -> [1,2]


@call_parse
def growth(
    depths: str = '16,12,20,24,30',  # blocks of the transformer; the first one is the centre's
    batches: str = '1,4,16,64',  # images at once
    sides: str = '256,128,512',  # pixels
    full: store_true = False,  # all combinations, not just the star
    preset: str = 'nfig_d16',  # everything else
    dtype: str = 'bf16',  # fp32 or bf16
    device: str = 'cpu',  # cpu or cuda
    repeats: int = 2,  # rounds; the table shows medians
    threads: int = 0,  # processor threads; 0 leaves PyTorch's choice
    out: str = 'results',  # folder for growth_<device>.json
):
    "Time generation against depth, batch and image size"
    if threads:
        torch.set_num_threads(threads)
    record = about('python -m bench.scaling', preset=preset, dtype=dtype)
    if not device.startswith('cuda'):
        record['gpu'] = None
    print(
        f"{record['gpu'] or record['cpu']}, {record['threads']} threads, {dtype}, load "
        f"{record['load']}\n{head}"
    )
    path = Path(out) / f"growth_{device.split(':')[0]}.json"

    def keep(rows):
        write_result(path, dict(**record, rows=rows))

    cells = (grid if full else star)(*map(numbers, (depths, batches, sides)))
    measure(cells, preset, dtype, device, repeats, keep)
