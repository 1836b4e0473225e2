"The benchmarks at a tiny size: what they count, measure and write. No test asserts a time."

from bench.cost_tokenizer import Saved, bytes_of, cost, fits, run_cost, step_cost
from bench.cost_transformer import (
    Cluster,
    cost_paper,
    exchange_seconds,
    largest_cluster,
    measured,
    storage,
    train_work,
    transformer_run,
)
from bench.generate import (
    Part,
    bench,
    bench_experiment,
    both_ways,
    build_pipelines,
    count_flops,
    dtypes,
    encode_part,
    images,
    interleave,
    matmul_parts,
    memory_alone,
    peak_memory,
    peaks,
    reference,
    report,
    reset_peak,
    row,
    some_labels,
    some_tokens,
    sync,
    train_part,
    train_step,
)
from bench.sampling import build_pipeline, measure_options
from bench.scaling import grid, growth, measure, sized, star
from bench.tokenizer_step import (
    Timeline,
    agreement,
    bench_tokenizer,
    encode_parts,
    encode_report,
    left,
    marked,
    parse_presets,
    random_task,
    step_report,
    time_steps,
    watching,
)
from bench.tokens import bench_tokens, drop_pages, made_cache, reading_share, timed
from contextlib import redirect_stdout
from dataclasses import replace
import fastcore.test as check
from io import StringIO
from nfig.core.presets import get_preset
from nfig.core.record import machine
from nfig.fast.faster import faster
from nfig.fast.packed import PackedLinear, can_pack
from nfig.tokenizer.frvae import build_tokenizer
from nfig.transformer.model import NFIGTransformer
from nfig.transformer.pipeline import NFIGPipeline
from pathlib import Path
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
import json
import tempfile
import time
import torch
import torch.nn.functional as F


def test_generate():
    # (B,heads,tokens,channels)
    q = torch.randn(2, 4, 10, 16)
    k = torch.randn(2, 4, 30, 16)
    with FlopCounterMode(display=False) as m, torch.no_grad():
        F.scaled_dot_product_attention(q, k, k)
    m.get_total_flops()
    check.test_eq(
        count_flops(lambda: F.scaled_dot_product_attention(q, k, k)), 2 * 2 * (2 * 4 * 10 * 30 * 16)
    )  # two products
    check.test_eq(count_flops(lambda: nn.Linear(64, 128)(torch.randn(5, 64))), 2 * 5 * 64 * 128)
    p = PackedLinear(torch.randn(128, 64), torch.randn(128))
    check.test_eq(count_flops(lambda: p(torch.randn(5, 64))), 2 * 5 * 64 * 128)
    check.test_eq(
        count_flops(lambda: nn.Conv2d(8, 4, 3, padding=1)(torch.randn(2, 8, 16, 16))),
        2 * 2 * 8 * 4 * 9 * 256,
    )

    one = Part('one', 'fp32', lambda: 0, flops=3 * 10**9, times=[1.0, 9.0, 2.0])
    check.test_eq((one.seconds, one.rate), (2.0, 1.5))
    reset_peak('cpu')
    before = peak_memory('cpu')
    big = torch.ones(2**26)
    after = peak_memory('cpu')
    del big  # a quarter of a GiB
    check.test_close(after - before, 0.25, eps=0.05)
    sync('cpu')
    calls = []
    ab = [Part(n, 'fp32', lambda n=n: calls.append(n)) for n in 'ab']
    interleave(ab, 2)
    check.test_eq(''.join(calls), 'ab' + 'abab')
    check.test_eq([(len(p.times), len(p.busy)) for p in ab], [(2, 2)] * 2)
    (nap,) = interleave([Part('nap', 'fp32', lambda: time.sleep(0.02))], 1)
    check.test_eq((nap.times[0] > 0.015, nap.busy[0] < 0.01), (True, True))
    mm = interleave([p for d in dtypes for p in matmul_parts(d, n=512)], 5)
    check.test_eq({p.flops for p in mm}, {2 * 512**3})
    bench_experiment('nfig_d16')
    tiny = bench_experiment('tiny')
    pipes = build_pipelines(tiny)
    check.test_eq({p.dtype for p in pipes['bf16'].transformer.parameters()}, {torch.bfloat16})
    check.test_eq(
        {p.dtype for p in pipes['bf16'].tokenizer.quantizer.parameters()}, {torch.float32}
    )
    with torch.no_grad():
        a, b, c = (
            p([1, 2], seed=3, top_k=1)
            for p in (reference(pipes['fp32']), pipes['fp32'], faster(pipes['fp32']))
        )
    check.test_close(a, b, eps=1e-4)
    check.test_close(a, c, eps=1e-4)
    parts = [
        *matmul_parts('fp32', n=512),
        *both_ways(pipes, (2,)),
        encode_part(pipes['fp32'], 'fp32'),
    ]
    interleave(parts, 3)
    t = train_part(pipes['fp32'], 'fp32')
    interleave([t], 2)
    check.test_eq(
        all(p.grad is not None for p in pipes['fp32'].transformer.blocks.parameters()), True
    )
    labels = some_labels(pipes['fp32'], 2)
    tokens = some_tokens(pipes['fp32'], 2)
    train_step(pipes['fp32'], labels, tokens, amp=True)
    forward = count_flops(
        lambda: pipes['fp32'].transformer(
            labels, pipes['fp32'].tokenizer.quantizer.teacher_inputs(tokens)
        )
    )
    check.test_eq(2.5 < t.flops / forward < 3.1, True)
    small = build_pipelines(bench_experiment('small'))['fp32']
    a, b = (train_part(small, 'fp32', masked=m) for m in (False, True))
    interleave([a, b], 1)
    check.test_eq(b.flops > a.flops, True)
    labels = some_labels(small, 2)
    tokens = some_tokens(small, 2)
    grads = []
    for masked in (False, True):
        torch.manual_seed(0)
        train_step(small, labels, tokens, masked=masked)
        grads.append(small.transformer.blocks[0].attn.qkv.weight.grad)
    check.test_close(*grads, eps=1e-5 * grads[0].abs().max().item())
    del small
    parts += [t]
    parts += interleave(matmul_parts('bf16', n=512), 3)
    rows = [row(p, peaks(parts)) for p in parts + images(parts)]
    check.test_eq(max(r['share'] for r in rows if r['part'].startswith('matmul')) <= 1.0, True)
    check.test_eq(
        images(parts)[0].flops, sum(p.flops for p in parts if p.name.startswith('reference'))
    )
    check.test_eq(
        [(p.name, p.dtype) for p in images(parts)],
        [('reference image', 'fp32'), ('image', 'fp32'), ('image', 'bf16')],
    )
    with tempfile.TemporaryDirectory() as d:
        with redirect_stdout(StringIO()) as shown:
            report(
                dict(preset='tiny', **machine()), peaks(parts), rows[:3], Path(d) / 'new' / 'b.json'
            )
        check.test_eq(shown.getvalue().startswith('tiny on'), True)
        check.test_eq(json.loads((Path(d) / 'new' / 'b.json').read_text())['rows'], rows[:3])
    m = memory_alone('tiny', 'fp32', 2)
    check.test_eq(0.05 < m < 4, True)
    with tempfile.TemporaryDirectory() as d:
        with redirect_stdout(StringIO()) as shown:
            bench('tiny', repeats=2, out=f'{d}/results')
        saved = json.loads(Path(f'{d}/results/bench_cpu.json').read_text())
    check.test_eq(
        {r['part'].split()[-1] for r in saved['rows']},
        {'matmul', '1x1', 'transformer', 'decoder', 'encode', 'train', 'image'}
        | ({'packed'} if can_pack(torch.ones(2, 2)) else set()),
    )
    if not torch.cuda.is_available():
        check.test_fail(lambda: bench('tiny', device='cuda'), contains='--device cpu')


def test_scaling():
    check.test_eq(len(star((12, 16, 20), (1, 8), (256, 128))), 5)
    check.test_eq(len(grid((12, 16, 20), (1, 8), (256, 128))), 12)
    sized('tiny', 3, 32, torch.float32, 'cpu')
    with redirect_stdout(StringIO()):
        rows = measure(star((3, 2), (1, 4), (32,)), 'tiny', 'fp32', 'cpu', 1)
    of = {(r['part'], r['depth'], r['batch']): r for r in rows}
    check.test_eq(len(rows), 6)
    check.test_close(
        of['transformer', 3, 4]['gflop'], 4 * of['transformer', 3, 1]['gflop'], eps=0.01
    )
    with tempfile.TemporaryDirectory() as d:
        with redirect_stdout(StringIO()):
            growth('2', '1', '32', preset='tiny', repeats=1, out=d)
        saved = json.loads((Path(d) / 'growth_cpu.json').read_text())
        check.test_eq([r['part'] for r in saved['rows']], ['transformer', 'decoder'])


def test_sampling():
    tiny = build_pipeline('tiny')
    rows = measure_options(
        tiny, {'full': {}, 'no guidance': dict(cfg_scale=0.0), 'preview 2': dict(stages=2)}, 1
    )
    check.test_eq(rows[0]['share_gflop'], 1.0)
    check.test_eq(rows[2]['gflop'] < rows[1]['gflop'] < rows[0]['gflop'], True)
    check.test_eq(
        rows[0]['gflop'], round(count_flops(lambda: tiny([0])) / 1e9, 3)
    )  # without memory as with it


def test_transformer_cost():
    tiny = get_preset('tiny')
    w = train_work(tiny)
    6 * w['parameters'] * sum(s * s for s in tiny.transformer.scales) / 1e9
    wide = train_work(replace(tiny, transformer=replace(tiny.transformer, width=256, heads=4)))
    check.test_eq(2 < wide['gflop'] / w['gflop'] < 4.1, True)  # width squared, nearly
    h100 = Cluster()
    campus = replace(h100, between=12.5)
    check.test_eq(exchange_seconds(h100, 310_000_000, 1), 0.0)
    check.test_close(
        exchange_seconds(h100, 310_000_000, 64), 2 * 4 * 0.31 / 400 * 63 / 64, eps=1e-9
    )
    check.test_eq(
        largest_cluster(h100, 310_283_520, 2.0) > largest_cluster(campus, 310_283_520, 2.0), True
    )
    fake = dict(preset='nfig_d16', parameters=310_000_000, gflop=900.0)
    e = get_preset('nfig_d16')
    one = transformer_run(e, fake, 1)
    eight = transformer_run(e, fake, 8)
    check.test_eq(one['steps'], 350 * 1_281_167 // 768)
    check.test_close(one['gpu_hours'], eight['gpu_hours'], eps=1)
    check.test_eq(transformer_run(e, fake, 64, campus)['bound'], True)
    s = storage(e, fake)
    check.test_eq(s['token_cache'], round(1_281_167 * 2 * 680 * 2 / 1e9, 2))
    with tempfile.TemporaryDirectory() as d:
        with redirect_stdout(StringIO()):
            cost_paper('tiny', '1,8', bench=f'{d}/none.json', out=d)
        saved = json.loads((Path(d) / 'cost_paper.json').read_text())
        check.test_eq(saved['share_is'], 'assumed')
        Path(d, 'b.json').write_text(
            json.dumps(
                dict(peak=dict(bf16=700_000.0), rows=[dict(part='training step', share=0.5)])
            )
        )
        check.test_eq(measured(Path(d, 'b.json')), dict(peak=700.0, share=0.5))


def test_tokenizer_step():
    cut = dict(crop='xqgan')  # as at 256 pixels: the noise has nothing to cut from
    tiny = get_preset('tiny', train_tokenizer=dict(gan=0.5, perceptual=1.0) | cut)
    task = random_task(tiny, 4)
    m = task.step(1)
    check.test_eq({'pixel', 'quantiser', 'perceptual', 'gan', 'critic'} <= set(m), True)
    line = Timeline()
    time.sleep(0.02)
    line.mark('sleep')
    torch.ones(9).sum()
    line.mark('sum')
    time.sleep(0.01)
    line.mark('sleep')
    check.test_eq(list(line.seconds), ['sleep', 'sum'])
    check.test_eq(0.03 < line.seconds['sleep'] < 0.2, True)
    line = Timeline()
    a = torch.randn(256, 256, requires_grad=True)
    a = a * 1.0

    def slow(x):
        return (x @ x @ x @ x).sum()

    y = marked(line, 'forward', slow)(left(line, 'backward', a))
    y.backward()
    line.mark('rest')
    check.test_eq(list(line.seconds), ['other', 'forward', 'backward', 'rest'])
    check.test_eq(line.seconds['rest'] < line.seconds['backward'], True)
    line = Timeline()
    with watching(task, line):
        line.restart()
        task.step(1)
        line.mark('other')
    check.test_eq(
        set(line.seconds),
        {'encoder', 'quantiser', 'decoder', 'perceptual', 'discriminator', 'optimiser', 'other'},
    )
    line.restart()
    task.step(1)
    check.test_eq(line.seconds, {})  # taken away
    parts, work, whole = time_steps(task, 2)
    check.test_eq((len(parts), len(whole)), (2, 2))
    total = count_flops(lambda: task.step(1))
    check.test_eq(sum(work.values()), total)
    r = step_report('tiny', task, 1)
    check.test_close(sum(o['share'] for o in r['rows']), 1, eps=0.01)
    e = get_preset('tiny', tokenizer=dict(width=64, groups=8))
    parts = encode_parts(e, 2)
    same = agreement(parts[0], parts[2])
    check.test_eq((same['latent_difference'] < 1e-4, same['equal_tokens'] > 0.99), (True, True))
    r = encode_report(e, 2, 1)
    check.test_eq([o['part'] for o in r['rows']], ['plain', 'channels_last', 'fast', 'quantise'])
    check.test_eq(parse_presets('tiny:8, small:64'), [('tiny', 8), ('small', 64)])
    check.test_fail(lambda: parse_presets('tiny'), contains='small:64')
    check.test_fail(lambda: parse_presets('tinny:2'), contains="'tiny'")
    with tempfile.TemporaryDirectory() as d:
        with redirect_stdout(StringIO()):
            bench_tokenizer('tiny:8', encode='', repeats=2, out=d)
        saved = json.loads((Path(d) / 'bench_tokenizer_cpu.json').read_text())
        check.test_eq(saved['steps'][0]['batch'], 8)
    if not torch.cuda.is_available():
        check.test_fail(lambda: bench_tokenizer('tiny:8', device='cuda'), contains='--device cpu')


def test_tokenizer_cost():
    torch.manual_seed(0)
    w = nn.Linear(100, 100, bias=False)
    x = torch.randn(50, 100, requires_grad=True)
    with Saved(w) as s:
        y = w(x).exp().sum()
        check.test_eq(s.now, 2 * 50 * 100 * 4)  # x for the weight's gradient, and what exp gave
        y.backward()
        check.test_eq(s.now, 0)
        check.test_eq(s.most, 2 * 50 * 100 * 4)
    check.test_eq(bytes_of(nn.Linear(3, 2), None), 4 * 8)
    tiny = get_preset('tiny', train_tokenizer=dict(gan=0.5))
    c = step_cost(tiny, 4)
    check.test_eq(c['with_critic']['gflop'] > c['without']['gflop'], True)
    check.test_close(step_cost(tiny, 8)['without']['gflop'], c['without']['gflop'], eps=0.05)
    e = get_preset('nfig_tokenizer_paper')
    fake = dict(
        fixed_gib=5.0,
        without=dict(gflop=500.0, saved_gib=1.0),
        with_critic=dict(gflop=1000.0, saved_gib=2.0),
    )
    r = run_cost(e, fake)
    check.test_eq(r['steps'], 200 * 1_281_167 // 1024)
    check.test_eq(run_cost(e, fake, gpus=16)['gpu_hours'], r['gpu_hours'])
    check.test_eq(fits(fake, 16)[0], 1)
    check.test_eq(fits(fake, 128)[0], 8)
    check.test_fail(lambda: fits(fake, 4, memory=8.0), contains='a larger GPU')
    with tempfile.TemporaryDirectory() as d:
        with redirect_stdout(StringIO()):
            cost('tiny', 4, out=d)
        saved = json.loads((Path(d) / 'cost_tiny.json').read_text())
        check.test_eq(saved['step']['preset'], 'tiny')
    check.test_fail(lambda: cost('tinny'), contains="'tiny'")


def test_tokens():
    tiny = get_preset('tiny')
    pipe = NFIGPipeline(build_tokenizer(tiny.tokenizer), NFIGTransformer(tiny.transformer))
    with tempfile.TemporaryDirectory() as d:
        cache = made_cache(d, pipe, 100, shard=32)
        drop_pages(cache)
        check.test_eq(cache.shape, (2, 100, 85))
        check.test_eq(len(list(Path(d).iterdir())), 5)
    check.test_eq(timed(lambda: None, 3) < 1, True)
    r = reading_share(tiny, 300, steps=2)
    check.test_eq(r['batch'], 32)
    with tempfile.TemporaryDirectory() as d:
        with redirect_stdout(StringIO()) as said:
            bench_tokens('tiny', 300, out=d)
        check.test_eq('a step' in said.getvalue(), True)
        check.test_eq(json.loads((Path(d) / 'token_cache_cpu.json').read_text())['images'], 300)
