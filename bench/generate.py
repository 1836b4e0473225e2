"""Seconds are an anecdote. Seconds beside the work done and the speed of the machine are a
measurement."""

import copy
import math
import re
import resource
import statistics
import subprocess
import sys
import time
import torch
import torch.nn.functional as F
from dataclasses import dataclass, field, replace
from fastcore.script import call_parse, store_true
from pathlib import Path
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from nfig.core.presets import Experiment, get_preset
from nfig.core.record import about, write_result
from nfig.tokenizer.frvae import build_tokenizer
from nfig.transformer.model import NFIGTransformer
from nfig.transformer.pipeline import NFIGPipeline, generate
from nfig.fast.packed import PackedLinear, can_pack
from nfig.fast.faster import faster


def _packed(x, w, *_, out_shape, **kw):
    return 2 * math.prod(x) * out_shape[-1]  # shapes; a linear layer on packed weights


def _cpu_attention():
    "The CPU's attention kernels with the counter's own formulas, and `packed.packed_linear`"
    a, m = torch.ops.aten, torch.ops.mkldnn
    return ({m._linear_pointwise: _packed} if hasattr(m, '_linear_pointwise') else {}) | {
        a._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **kw: sdpa_flop_count(
            q, k, v
        ),
        a._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **kw: (
            sdpa_backward_flop_count(g, q, k, v)
        ),
    }


def count_flops(
    fn,  # called once, without arguments
) -> int:  # floating-point operations; a multiply and an add are two
    "Operations in the matrix products, convolutions and attention of `fn`"
    with FlopCounterMode(display=False, custom_mapping=_cpu_attention()) as m:
        fn()
    return m.get_total_flops()


@dataclass(eq=False)
class Part:
    "Something to time, and what came out"

    name: str  # what it does
    dtype: str  # 'fp32' or 'bf16'
    fn: object  # called without arguments
    batch: int = 1  # images a call makes or uses
    # the `Part` that does the same in the usual way: its operations are counted, not this one's
    like: object = None
    flops: int = 0  # operations of a call; counted at the first one
    times: list = field(default_factory=list)  # seconds of every call
    busy: list = field(
        default_factory=list
    )  # the processor's seconds in every call, over all threads
    memory: float = 0.0  # largest memory during a call, GiB

    @property
    def seconds(self) -> float:
        return statistics.median(self.times)

    @property
    def rate(self) -> float:
        return self.flops / self.seconds / 1e9  # GFLOP/s


dtypes = dict(fp32=torch.float32, bf16=torch.bfloat16)


def matmul_parts(
    dtype: str,  # 'fp32' or 'bf16'
    device: str = 'cpu',  # where
    n: int = 2048,  # side of the matrices
) -> list:  # of `Part`
    """Matrix products whose best rate is the machine's peak: as a linear layer, as a 1x1
    convolution, and with packed weights where there are any"""
    a, w = (torch.randn(n, n, device=device, dtype=dtypes[dtype]) for _ in range(2))
    x, v = (
        t.clone().to(memory_format=torch.channels_last)
        for t in (a.view(1, n, 32, n // 32), w[:, :, None, None])
    )  # each pixel is a row
    p = PackedLinear(w, w[0])
    packed = [Part('matmul packed', dtype, lambda: p(a))] if can_pack(w) else []
    usual = Part('matmul', dtype, lambda: F.linear(a, w))
    return [usual, Part('matmul 1x1', dtype, lambda: F.conv2d(x, v), like=usual)] + [
        replace(o, like=usual) for o in packed
    ]


def sync(device: str):  # where
    "Wait until the device has finished"
    if str(device).startswith('cuda'):
        torch.cuda.synchronize()


def reset_peak(device: str):  # where
    "Start a new measurement of the largest memory"
    if str(device).startswith('cuda'):
        return torch.cuda.reset_peak_memory_stats()
    try:
        Path('/proc/self/clear_refs').write_text('5')  # Linux: the process's high-water mark
    except OSError:
        pass


def peak_memory(
    device: str,  # where
) -> float:  # GiB
    """Largest memory since `reset_peak` (of the process on a CPU; since its start where the
    system cannot reset it)"""
    if str(device).startswith('cuda'):
        return torch.cuda.max_memory_allocated() / 2**30
    try:
        kib = int(re.search(r'VmHWM:\s*(\d+)', Path('/proc/self/status').read_text())[1])
    except (OSError, TypeError):
        kib = 0  # not Linux; some containers give 0
    return (
        kib / 2**20
        if kib
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        / (2**30 if sys.platform == 'darwin' else 2**20)
    )


def interleave(
    parts: list,  # of `Part`; one that stands there twice is timed twice a round
    repeats: int = 3,  # rounds
    device: str = 'cpu',  # where
) -> list:  # the same parts, filled in
    "Time the parts in turn; the first, untimed call is counted"
    for p in dict.fromkeys(parts):
        if p.like is None:
            p.flops = count_flops(p.fn)
            continue
        if p.like.batch == p.batch or p.like.fn is None:
            p.fn()  # else a smaller one of its kind has touched and chosen
        p.like.flops = p.like.flops or count_flops(p.like.fn)
        p.flops = p.like.flops * p.batch // p.like.batch
    for _ in range(repeats):
        for p in parts:
            reset_peak(device)
            sync(device)
            t, c = time.perf_counter(), time.process_time()
            p.fn()
            sync(device)
            p.times.append(time.perf_counter() - t)
            p.busy.append(time.process_time() - c)
            p.memory = max(p.memory, peak_memory(device))
    return parts


def peaks(
    parts: list,  # timed, with those of `matmul_parts` among them
) -> dict:  # dtype -> GFLOP/s
    "The best rate of a matrix product in each precision"
    return {
        d: max(
            p.flops / min(p.times) / 1e9
            for p in parts
            if p.dtype == d and p.name.startswith('matmul')
        )
        for d in dict.fromkeys(p.dtype for p in parts)
    }


def bench_experiment(
    preset: str,  # a key of `presets`
) -> Experiment:
    "The preset, with VAR's CNN (width 160) as encoder and decoder if it has others"
    e = get_preset(preset)
    if (e.tokenizer.encoder, e.tokenizer.decoder) == ('cnn', 'cnn'):
        return e
    return replace(
        e,
        tokenizer=replace(
            e.tokenizer,
            encoder='cnn',
            decoder='cnn',
            width=160,
            multipliers=(1, 1, 2, 2, 4),
            blocks=2,
        ),
    )


def build_pipelines(
    e: Experiment,  # the row of the table
    device: str = 'cpu',  # where
) -> dict:  # dtype -> `NFIGPipeline`
    "One model of random weights, in both precisions, as it is trained and saved"
    torch.manual_seed(0)

    def pipe():
        return NFIGPipeline(
            build_tokenizer(e.tokenizer), NFIGTransformer(e.transformer), sample=e.sample
        )

    base = pipe().to(
        device, torch.float32
    )  # also brings the convolutions' weights into channels_last
    return dict(fp32=base, bf16=copy.deepcopy(base).to(device, torch.bfloat16))


class JoinedCache:
    "Keys and values by concatenation"

    def __init__(self, blocks: int):
        self.filled = [0] * blocks
        self.kept = {}
        self.modulation = None

    def append(
        self,
        block: int,
        k,
        v,  # as for `KVCache.append`
    ) -> tuple:  # (keys, values)
        "Put the new ones behind the old ones, in new memory"
        if block in self.kept:
            k, v = (torch.cat(o, 2) for o in zip(self.kept[block], (k, v)))
        self.kept[block], self.filled[block] = (k, v), k.shape[2]
        return k, v


class AsPublished:
    """A transformer used the way published VAR code does it: nothing is kept between stages but
    keys and values"""

    def __init__(self, t: NFIGTransformer):
        if t.config.sees is not None:
            raise ValueError(f'sees={t.config.sees} given: published VAR code keeps all stages')
        self.t = t
        self.config = t.config
        self.embed_class = t.embed_class

    def eval(self):
        return self

    def new_cache(self, batch: int) -> JoinedCache:
        return JoinedCache(self.config.depth)

    def stage(self, i: int, cond, x, cache):  # as for `NFIGTransformer.stage`
        "One stage"
        if i:
            cache.modulation = self.t.modulations(cond)
        return self.t.stage(i, cond, x, cache)


def reference(
    pipe: NFIGPipeline,  # stays as it is
) -> NFIGPipeline:  # the same maths, done as published VAR code does it
    "What a fast pipeline is compared with"
    plain = copy.copy(pipe)
    plain.transformer = AsPublished(pipe.transformer)
    plain.tokenizer = copy.deepcopy(pipe.tokenizer).to(memory_format=torch.contiguous_format)
    return plain


def some_labels(pipe: NFIGPipeline, batch: int) -> torch.Tensor:  # (B,) int64
    "Any labels will do"
    return torch.arange(batch, device=pipe.device) % len(pipe.classes)


def some_tokens(pipe: NFIGPipeline, batch: int) -> list:  # n tensors (B,s_i^2) int64
    "Any tokens will do"
    q = pipe.tokenizer.quantizer
    return [torch.randint(q.codebook.size, (batch, s * s), device=pipe.device) for s in q.scales]


def image_parts(
    pipe: NFIGPipeline,  # any kind
    dtype: str,  # 'fp32' or 'bf16'
    batch: int = 1,  # images at once
    name: str = '',  # in front of the parts' names
    like=(None, None),  # the same parts of another pipeline, see `Part`
) -> list:  # two `Part`s
    "Generation with guidance, split into transformer and decoder"
    labels = some_labels(pipe, batch)
    tokens = some_tokens(pipe, batch)
    tok = pipe.tokenizer
    return [
        Part(
            name + 'transformer',
            dtype,
            lambda: generate(pipe.transformer, tok.quantizer, labels, pipe.sample),
            batch,
            like[0],
        ),
        Part(name + 'decoder', dtype, lambda: tok.decode(tokens), batch, like[1]),
    ]


def both_ways(
    pipes: dict,  # from `build_pipelines`
    batches=(1,),  # images at once
) -> list:  # of `Part`
    """The reference's parts in float32, and those of fast pipelines in both precisions, for each
    batch"""
    ref = reference(pipes['fp32'])
    fast = {d: faster(pipes['fp32'], dtypes[d], anyway=True) for d in pipes}
    done = []
    for b in batches:
        done += image_parts(ref, 'fp32', b, 'reference ', done[:2] or (None, None))
        like = done[-2:] if b == batches[0] else done[:2]
        done += [p for d, f in fast.items() for p in image_parts(f, d, b, '', like)]
    return done


def encode_part(
    pipe: NFIGPipeline,  # models in `dtype`
    dtype: str,  # 'fp32' or 'bf16'
    batch: int = 4,  # images at once
) -> Part:
    "Images to tokens"
    side = pipe.tokenizer.config.image_size
    x = (
        torch.rand(batch, 3, side, side, device=pipe.device, dtype=dtypes[dtype]).contiguous(
            memory_format=torch.channels_last
        )
        * 2
        - 1
    )
    return Part('encode', dtype, lambda: pipe.tokenizer.encode(x), batch)


def train_step(
    pipe: NFIGPipeline,  # weights in fp32
    labels,
    tokens,  # (B,), and n tensors (B,s_i^2)
    amp: bool = False,  # bf16 by autocast
    masked: bool = False,  # attention over everything, under a mask, as published code has it
):
    "Loss and gradients of the transformer on given tokens, without the optimiser's step"
    transformer = pipe.transformer.train()
    transformer.zero_grad(set_to_none=True)
    cuts = transformer.chunks
    if masked:
        transformer.chunks = ()
    with torch.no_grad():
        x = pipe.tokenizer.quantizer.teacher_inputs(tokens)
    with torch.autocast(pipe.device.type, torch.bfloat16, enabled=amp):
        logits = transformer(labels, x)
    F.cross_entropy(logits.flatten(0, 1), torch.cat(tokens, 1).flatten()).backward()
    transformer.eval()
    transformer.chunks = cuts


def train_part(
    pipe: NFIGPipeline,  # weights in fp32
    dtype: str,  # 'fp32', or 'bf16' for autocast
    batch: int = 2,  # images a step
    masked: bool = False,  # as for `train_step`
) -> Part:
    "Forward and backward pass"
    labels = some_labels(pipe, batch)
    tokens = some_tokens(pipe, batch)
    return Part(
        'reference train' if masked else 'train',
        dtype,
        lambda: train_step(pipe, labels, tokens, dtype == 'bf16', masked),
        batch,
    )


def images(
    parts: list,  # timed `Part`s
) -> list:  # `Part`s, a transformer and its decoder added up
    "Whole images: transformer plus decoder, for each precision and batch"

    def add(a, b):
        return replace(
            a,
            name=a.name.replace('transformer', 'image'),
            fn=None,
            flops=a.flops + b.flops,
            times=[x + y for x, y in zip(a.times, b.times)],
            memory=max(a.memory, b.memory),
        )

    of = {(p.name, p.dtype, p.batch): p for p in parts}
    return [
        add(p, of[p.name.replace('transformer', 'decoder'), p.dtype, p.batch])
        for p in parts
        if p.name.endswith('transformer')
    ]


def row(
    p: Part,  # timed
    peak: dict,  # from `peaks`
) -> dict:  # plain data
    "What is reported of a part"
    return dict(
        part=p.name,
        dtype=p.dtype,
        batch=p.batch,
        seconds=round(p.seconds, 4),
        seconds_per_image=round(p.seconds / p.batch, 4),
        gflop=round(p.flops / 1e9, 3),
        gflops=round(p.rate, 1),
        share=round(p.rate / peak[p.dtype], 3),
        memory_gib=round(p.memory, 2),
        times=[round(t, 4) for t in p.times],
    )


def table(
    rows: list,  # from `row`
) -> str:  # lines
    "Rows as an aligned table"
    head = (
        f"{'part':<22}{'dtype':<6}{'batch':>5}{'seconds':>10}{'s/image':>10}{'GFLOP':>10}"
        f"{'GFLOP/s':>10}{'of peak':>9}{'GiB':>7}"
    )
    line = (
        "{part:<22}{dtype:<6}{batch:>5}{seconds:>10.3f}{seconds_per_image:>10.3f}{gflop:>10.1f}"
        "{gflops:>10.0f}{share:>9.0%}{memory_gib:>7.2f}"
    )
    return '\n'.join([head, *(line.format(**r) for r in rows)])


def all_parts(
    pipes: dict,  # from `build_pipelines`
    batches=(1,),  # images at once, for generation
    full: bool = False,  # training and encoding in bf16, too
    only: str = '',  # a pattern that part and precision have to match
) -> list:  # of `Part`
    "Everything that is measured, with matrix products before each part"
    device = pipes['fp32'].device
    small = pipes['fp32'].transformer.config.width < 512
    n = 8192 if device.type == 'cuda' else 512 if small else 2048
    peak = [p for d in dtypes for p in matmul_parts(d, device, n)]
    work = both_ways(pipes, batches)
    work += [train_part(pipes['fp32'], 'fp32', masked=True)] + [
        p
        for d in (dtypes if full else ('fp32',))
        for p in (encode_part(pipes[d], d), train_part(pipes['fp32'], d))
    ]
    return [p for w in work if re.search(only, f'{w.name} {w.dtype}') for p in (*peak, w)]


def report(
    record: dict,  # preset, command, date and machine
    peak: dict,  # dtype -> GFLOP/s
    rows: list,  # from `row`
    path: Path,  # JSON file to write
):
    "Print the table and write everything to `path`"
    where = record['gpu'] or record['cpu']
    print(
        f"{record['preset']} on {where}, {record['threads']} threads, torch {record['torch']}, "
        f"load {record['load']}"
    )
    print(
        f"peak: {', '.join(f'{d} {r:.0f} GFLOP/s' for d, r in peak.items())}\n{table(rows)}\n"
        f"written to {path}"
    )
    write_result(path, dict(**record, peak={d: round(r, 1) for d, r in peak.items()}, rows=rows))


def memory_alone(
    preset: str,  # row of the presets table
    dtype: str,  # 'fp32' or 'bf16'
    batch: int,  # images at once
) -> float:  # GiB; the largest memory of the process
    "What a process needs that only generates (on the CPU)"
    code = f"""import torch
from bench.generate import *
from bench.generate import dtypes
pipe = faster_alone({preset!r}, dtypes[{dtype!r}])
reset_peak('cpu')
pipe(list(range({batch})), batch_size={batch})
print(peak_memory('cpu'))"""
    p = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parent.parent,
    )
    if p.returncode:
        raise RuntimeError(f"the process that was to be measured failed: {p.stderr[-500:]}")
    return round(float(p.stdout), 2)


def faster_for(
    pipe: NFIGPipeline, dtype: torch.dtype, device: str = 'cpu', without=()
) -> NFIGPipeline:  # `pipe` is used up
    "A fast pipeline, whose original may go"
    return faster(pipe.to(device), dtype, anyway=True, without=without)


def faster_alone(
    preset: str, dtype: torch.dtype
) -> NFIGPipeline:  # with nothing beside it in memory
    "A fast pipeline of random weights"
    e = bench_experiment(preset)
    return faster_for(
        NFIGPipeline(build_tokenizer(e.tokenizer), NFIGTransformer(e.transformer), sample=e.sample),
        dtype,
    )


@call_parse
def bench(
    preset: str = 'nfig_d16',  # row of the presets table
    device: str = 'cpu',  # 'cpu' or 'cuda'
    repeats: int = 3,  # rounds; the table shows medians
    threads: int = 0,  # processor threads; 0 leaves PyTorch's choice
    batches: str = '1',  # images at once, for generation: numbers between commas
    full: store_true = False,  # training and encoding in bf16, too
    only: str = '',  # a pattern that part and precision match, as 'transformer|decoder'
    memory: store_true = False,  # also of a process that only generates, the largest batch
    out: str = 'results',  # folder for bench_<device>.json
):
    "Time generation, training and encoding beside this machine's matrix product"
    if device.startswith('cuda') and not torch.cuda.is_available():
        raise ValueError(
            f"device {device!r} given, but PyTorch finds no CUDA device here: use --device cpu"
        )
    if threads:
        torch.set_num_threads(threads)
    record = about('python -m bench.generate', preset=preset)
    if not device.startswith('cuda'):
        record['gpu'] = None  # there may be one, but it is not what is measured
    sizes = [int(b) for b in batches.split(',')]
    alone = {d: memory_alone(preset, d, max(sizes)) for d in dtypes} if memory else None
    if alone:
        record['memory_gib_alone'] = dict(batch=max(sizes), **alone)
    parts = interleave(
        all_parts(build_pipelines(bench_experiment(preset), device), sizes, full, only),
        repeats,
        device,
    )
    parts = list(dict.fromkeys(parts))
    peak = peaks(parts)
    report(
        record,
        peak,
        [row(p, peak) for p in parts + images(parts)],
        Path(out) / f"bench_{device.split(':')[0]}.json",
    )
