"One training step taken apart while it runs, and the two ways of encoding side by side."

import statistics
import time
import torch
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from fastcore.script import call_parse
from pathlib import Path
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from nfig.core.presets import Experiment, get_preset
from nfig.core.record import about, write_result
from nfig.tokenizer.codebook import refresh_codebook
from nfig.tokenizer.frvae import build_tokenizer
from nfig.data.sets import ImageData
from nfig.train.tokenizer import TokenizerTask
from nfig.fast.winograd import fast
from bench.generate import Part, _cpu_attention, bench_experiment, interleave, matmul_parts, sync


def random_task(
    e: Experiment,  # whose tokenizer and training
    batch: int,  # images a step
    device: str = 'cpu',  # where
    gan: bool = True,  # has the discriminator started?
    compiled: bool | None = False,  # None compiles on a GPU
) -> TokenizerTask:
    "The preset's trainer with random weights and random images"
    side = e.tokenizer.image_size
    cfg = replace(
        e.train_tokenizer,
        steps=1000,
        epochs=0,
        batch_size=batch,
        accumulate=1,
        gan_start=0.0 if gan else 1.0,
        vgg='random' if e.train_tokenizer.features == 'lpips' else '',
        dino='random',
        compile=compiled,
        crop='center',  # the noise has the size already
    )
    data = ImageData(
        torch.randint(256, (batch, 3, side, side), dtype=torch.uint8), [0] * batch, ['noise'], side
    )
    return TokenizerTask(build_tokenizer(e.tokenizer), data, cfg, torch.device(device))


class Timeline:
    "Seconds and operations between marks, added up under the names that the marks give"

    def __init__(self, device: str = 'cpu'):  # where the work is done
        self.device, self.counter = device, None
        self.restart()

    def restart(self):
        "Start at zero"
        self.seconds = {}
        self.work = {}
        self.counted = 0
        sync(self.device)
        self.last = time.perf_counter()

    def mark(self, name: str):  # to whom the time since the last mark belongs
        "Close a stretch of time"
        sync(self.device)
        now = time.perf_counter()
        total = self.counter.get_total_flops() if self.counter else 0
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.last
        self.work[name] = self.work.get(name, 0) + total - self.counted
        self.counted = total
        self.last = time.perf_counter()


def marked(
    line: Timeline,  # where to mark
    name: str,  # of the part
    fn,  # a function of the part
    before: str = 'other',  # whose the time before the call is
):  # the function, with marks
    "Mark before and after every call"

    def call(*args, **kwargs):
        line.mark(before)
        out = fn(*args, **kwargs)
        line.mark(name)
        return out

    return call


def left(
    line: Timeline,  # where to mark
    name: str,  # of the part that the tensor enters
    t: torch.Tensor,  # an input of the part, with gradient
) -> torch.Tensor:  # a view of it, for this part only
    "Mark when the backward pass has left the part through this input"
    t = t.view_as(t)
    if t.requires_grad:
        t.register_hook(lambda g: line.mark(name))
    return t


def _patches(task, line):
    "(object, name of a method, what replaces it) for every border"
    model, critic = task.model, task.critic

    encode = marked(line, 'encoder', model.latent)
    quantise_plainly = marked(line, 'quantiser', model.quantizer.forward)
    decode = marked(line, 'decoder', model.decode_latent)

    def latent(x):
        return left(line, 'quantiser', encode(x))

    def quantise(f, *stop):
        z = quantise_plainly(f, *stop)
        z.f_hat = left(line, 'decoder', z.f_hat)
        return z

    def paint(f):
        return left(line, 'other', decode(f))

    yield from [
        (model, 'latent', latent),
        (model.quantizer, 'forward', quantise),
        (model, 'decode_latent', paint),
    ]
    yield from [
        (o, n, marked(line, 'optimiser', getattr(o, n), before='optimiser'))
        for o, n in ((task.opt, 'step'), (task.ema, 'update'))
    ]
    if task.perceptual:
        compare = marked(line, 'perceptual', task.perceptual.forward)

        def perceptual(x, x_hat):
            return compare(x, left(line, 'perceptual', x_hat))

        yield task.perceptual, 'forward', perceptual
    if critic:
        yield from [
            (critic, 'generator_loss', marked(line, 'discriminator', critic.generator_loss)),
            (critic, 'learn', marked(line, 'discriminator', critic.learn)),
        ]


@contextmanager
def watching(
    task: TokenizerTask,  # whose step is taken apart
    line: Timeline,  # receives the marks
):
    "Marks at all borders of a training step, as long as the context lasts"
    patches = list(_patches(task, line))
    weights = [
        p
        for m in (task.model.encoder, task.model.quant_conv)
        for p in m.parameters()
        if p.requires_grad
    ]
    hooks = [p.register_post_accumulate_grad_hook(lambda p: line.mark('encoder')) for p in weights]
    for o, name, fn in patches:
        setattr(o, name, fn)
    try:
        yield line
    finally:
        for o, name, _ in patches:
            delattr(o, name)  # what the class has shows through again
        for h in hooks:
            h.remove()


def time_steps(
    task: TokenizerTask,  # the trainer
    repeats: int = 3,  # watched and unwatched steps each
) -> tuple:  # (seconds: list of dicts, operations: dict, unwatched seconds: list)
    "Steps taken apart, their operations, and whole steps for comparison"
    line = Timeline(str(task.device))
    parts = []
    whole = []
    with (
        watching(task, line),
        FlopCounterMode(display=False, custom_mapping=_cpu_attention()) as line.counter,
    ):
        task.step(1)
        line.mark('other')
    work, line.counter = dict(line.work), None
    for _ in range(repeats):
        line.restart()
        task.step(1)
        line.mark('step')
        whole.append(line.seconds['step'])
        with watching(task, line):
            line.restart()
            task.step(1)
            line.mark('other')
            parts.append(line.seconds)
    return parts, work, whole


def step_report(
    name: str,  # of the preset
    task: TokenizerTask,  # its trainer
    repeats: int = 3,  # rounds
) -> dict:  # plain data: preset, batch, seconds, unwatched, rows
    "One training step of a preset, taken apart"
    parts, work, whole = time_steps(task, repeats)
    median = {k: statistics.median(p[k] for p in parts) for k in parts[0]}
    total = sum(median.values())

    def row(k, s, w):
        return dict(
            part=k,
            seconds=round(s, 4),
            gflop=round(w / 1e9, 3),
            gflops=round(w / s / 1e9, 1),
            share=round(s / total, 4),
        )

    rows = [row(k, s, work.get(k, 0)) for k, s in sorted(median.items(), key=lambda o: -o[1])]
    return dict(
        preset=name,
        batch=task.cfg.batch_size,
        parameters=sum(p.numel() for p in task.model.parameters()),
        seconds=round(total, 4),
        unwatched=round(statistics.median(whole), 4),
        adds_up=round(statistics.median(sum(p.values()) / w for p, w in zip(parts, whole)), 3),
        gflop=round(sum(work.values()) / 1e9, 3),
        rows=rows,
    )


def step_table(
    r: dict,  # from `step_report`
) -> str:  # lines
    "The report of a step as an aligned table"
    line = '{part:<15}{seconds:>9.3f}{gflop:>11.1f}{gflops:>9.0f}{share:>9.1%}'
    head = (
        f"{r['preset']}, {r['batch']} images a step\n"
        f"{'part':<15}{'seconds':>9}{'GFLOP':>11}{'GFLOP/s':>9}{'share':>9}"
    )
    whole = dict(
        part='step',
        seconds=r['seconds'],
        gflop=r['gflop'],
        gflops=r['gflop'] / r['seconds'],
        share=1.0,
    )
    return '\n'.join(
        [
            head,
            *(line.format(**o) for o in [*r['rows'], whole]),
            f"unwatched step {r['unwatched']:.3f} s; watched/unwatched {r['adds_up']:.2f}",
        ]
    )


def encode_parts(
    e: Experiment,  # whose tokenizer is timed
    batch: int = 4,  # images at once
) -> list:  # of `Part`s: three ways to encode, and the quantiser
    "Images to tokens: plain, channels last, and `fast`"
    torch.manual_seed(0)
    last = build_tokenizer(e.tokenizer).eval()
    last.decoder = nn.Identity()  # not needed
    side = e.tokenizer.image_size
    x = torch.rand(batch, 3, side, side) * 2 - 1
    f = last.latent(x).detach()
    refresh_codebook(last.quantizer, f)
    # `fast` puts the shared weights channels last
    plain = deepcopy(last)
    quick = fast(last)
    xl = x.contiguous(memory_format=torch.channels_last)
    ways = dict(
        plain=lambda: plain.encode(x),
        channels_last=lambda: last.encode(xl),
        fast=lambda: quick.encode(xl),
    )

    @torch.no_grad()
    def quantise():
        return list(last.quantizer.encode(f))

    parts = [Part(n, 'fp32', fn, batch) for n, fn in (*ways.items(), ('quantise', quantise))]
    parts[0].latent, parts[2].latent = (
        torch.no_grad()(lambda m=m, v=v: m.latent(v)) for m, v in ((plain, x), (quick, xl))
    )
    return parts


def agreement(
    plain: Part,  # with `latent`
    quick: Part,  # with `latent`
) -> dict:  # plain data
    "How far two ways of encoding differ: in the latent, and in the share of equal tokens"
    f, g = plain.latent(), quick.latent()
    a, b = (torch.cat(p.fn(), 1) for p in (plain, quick))
    return dict(
        latent_difference=float(f'{(f - g).abs().max():.2e}'),
        latent_deviation=round(f.std().item(), 4),
        tokens=a.numel(),
        codes_used=a.unique().numel(),
        equal_tokens=round((a == b).float().mean().item(), 6),
    )


def encode_report(
    e: Experiment,  # its tokenizer
    batch: int = 4,  # images at once
    repeats: int = 5,  # rounds
) -> dict:  # plain data
    "The ways of encoding, timed in turn, and how far they agree"
    parts = encode_parts(e, batch)
    interleave(parts, repeats)
    plain, _, quick, q = parts

    def ratio(kind):
        return round(
            statistics.median(a / b for a, b in zip(getattr(quick, kind), getattr(plain, kind))), 3
        )

    rows = [
        dict(
            part=p.name,
            seconds=round(p.seconds, 4),
            best=round(min(p.times), 4),
            busy=round(statistics.median(p.busy), 4),
            gflop=round(p.flops / 1e9, 3),
            memory_gib=round(p.memory, 2),
            times=[round(t, 4) for t in p.times],
        )
        for p in parts
    ]
    return dict(
        image_size=e.tokenizer.image_size,
        batch=batch,
        rows=rows,
        ratio=ratio('times'),
        ratio_best=round(min(quick.times) / min(plain.times), 3),
        ratio_busy=ratio('busy'),
        quantiser_share=round(statistics.median(a / b for a, b in zip(q.busy, quick.busy)), 4),
        **agreement(plain, quick),
    )


def encode_table(
    r: dict,  # from `encode_report`
) -> str:  # lines
    "The ways of encoding as an aligned table"
    line = '{part:<15}{seconds:>9.3f}{best:>9.3f}{busy:>11.3f}{gflop:>10.1f}{memory_gib:>7.2f}'
    return '\n'.join(
        [
            f"encode {r['batch']} images of {r['image_size']} pixels\n"
            f"{'part':<15}{'seconds':>9}{'best':>9}{'processor':>11}{'GFLOP':>10}{'GiB':>7}",
            *(line.format(**o) for o in r['rows']),
            f"fast/plain {r['ratio']} (best of each {r['ratio_best']}, processor time "
            f"{r['ratio_busy']}); the quantiser is {r['quantiser_share']:.1%} of the fast way",
            f"latents differ by at most {r['latent_difference']} (deviation "
            f"{r['latent_deviation']}), {r['equal_tokens']:.2%} of {r['tokens']} tokens equal, "
            f"{r['codes_used']} codes in use",
        ]
    )


def parse_presets(
    presets: str,  # 'name:batch,name:batch'
) -> list:  # of (name, batch)
    "Presets and their batch sizes; ValueError if a size is missing or a name unknown"
    pairs = [p.strip().split(':') for p in presets.split(',') if p.strip()]
    for p in pairs:
        if len(p) != 2 or not p[1].isdigit() or not int(p[1]):
            raise ValueError(
                f"{':'.join(p)!r} given: write a preset and its batch size as small:64"
            )
        get_preset(p[0])
    return [(n, int(b)) for n, b in pairs]


@call_parse
def bench_tokenizer(
    presets: str = 'nfig_tokenizer_paper:2,small:64',  # presets and images a step
    encode: str = 'var_d16:4',  # whose tokenizer encodes, and how many images; empty for none
    repeats: int = 3,  # rounds; the tables show medians
    device: str = 'cpu',  # 'cpu' or 'cuda', for the training step
    threads: int = 0,  # processor threads; 0 leaves PyTorch's choice
    out: str = 'results',  # folder for bench_tokenizer_<device>.json
):
    "Take training steps of the tokenizer apart, and compare the ways to encode"
    if device.startswith('cuda') and not torch.cuda.is_available():
        raise ValueError(
            f"device {device!r} given, but PyTorch finds no CUDA device here: use --device cpu"
        )
    if threads:
        torch.set_num_threads(threads)
    jobs = parse_presets(presets)
    others = parse_presets(encode)
    record = about('python -m bench.tokenizer_step')
    record['peak'] = round(
        max(
            p.flops / min(p.times) / 1e9
            for p in interleave(matmul_parts('fp32', device), 5, device)
        ),
        1,
    )
    steps, encodes = [], []
    print(
        f"{record['gpu'] or record['cpu']}, {record['threads']} threads, torch {record['torch']}, "
        f"load {record['load']}, fp32 product {record['peak']:.0f} GFLOP/s"
    )
    for n, b in others:
        encodes.append(encode_report(bench_experiment(n), b, repeats + 2))
        print(
            encode_table(encodes[-1]), flush=True
        )  # in a fresh process, as one that encodes a data set
    for n, b in jobs:
        steps.append(step_report(n, random_task(get_preset(n), b, device), repeats))
        print(step_table(steps[-1]), flush=True)
    path = Path(out) / f"bench_tokenizer_{device.split(':')[0]}.json"
    write_result(path, dict(**record, steps=steps, encode=encodes))
    print(f'written to {path}')
