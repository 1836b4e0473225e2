"Token caches: killed, made by several processes, spoilt; whole and undisturbed, or refused"

import os
import signal
import sys
from pathlib import Path

import pytest
import torch

import nfig.data.tokens as T
from nfig.core.presets import get_preset
from nfig.data.sources import from_arrays, load_data, square
from nfig.tokenizer.frvae import build_tokenizer
from nfig.core.io import weights_hash
from nfig.data.tokens import CachePlan, TokenCache, cache_tokens, plan_for, shard_path, token_cache


@pytest.fixture(scope='module')
def tok():
    torch.manual_seed(0)
    return build_tokenizer(get_preset('tiny').tokenizer).eval()


@pytest.fixture(scope='module')
def data():
    "Pictures of 40 pixels, squares of 32: room for crops"
    small = load_data('fashion-mnist-5k').subset(range(0, 5000, 50))
    return from_arrays(square(small.images, 40)[:, 0], small.labels, small.classes, 32)


@pytest.fixture(scope='module')
def plan(tok, data):
    return plan_for(tok, data, views=2, crop='var', flips=True, amp=False, shard=16)


@pytest.fixture(scope='module')
def whole(tok, data, plan, tmp_path_factory):
    d = tmp_path_factory.mktemp('whole')
    assert cache_tokens(d, tok, data, plan, progress=False)
    return contents(d)


def contents(d):
    return {p.name: p.read_bytes() for p in sorted(Path(d).iterdir())}


def child(work):
    "Do `work` in a process of its own; how it ended"
    if pid := os.fork():
        return os.waitpid(pid, 0)[1]
    try:
        torch.set_num_threads(1)
        work()
        os._exit(0)
    except BaseException as e:
        print(e, file=sys.stderr)
        os._exit(1)


def dies(module, name, nth, when):
    "Let the nth call of a function end this process: before it, after it, or amid writing"
    old, calls = getattr(module, name), [0]

    def f(*args, **kwargs):
        calls[0] += 1
        if calls[0] != nth:
            return old(*args, **kwargs)
        if when == 'after':
            old(*args, **kwargs)
        if when == 'amid':
            Path(args[1]).write_bytes(b'half of what was to be written')
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(module, name, f)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='this system has no fork')
@pytest.mark.parametrize(
    'module,name,nth,when',
    [
        (T, 'save_file', 1, 'before'),
        (T, 'save_file', 3, 'amid'),
        (T, 'save_file', 7, 'after'),
        (os, 'replace', 1, 'before'),
        (os, 'replace', 4, 'after'),
        (os, 'fsync', 2, 'after'),
        (T, 'write_manifest', 1, 'before'),
        (os, 'replace', 8, 'before'),
        (os, 'replace', 8, 'after'),
    ],
)
def test_killed_and_started_again(tok, data, plan, whole, tmp_path, module, name, nth, when):
    "No file is there before all of it is; a second start makes what is missing, byte by byte"

    def work():
        dies(module, name, nth, when)
        cache_tokens(tmp_path, tok, data, plan, progress=False)

    assert child(work) == signal.SIGKILL
    there = contents(tmp_path)
    assert all(whole[k] == v for k, v in there.items() if k in whole) and set(there) != set(whole)
    made = []
    old = T.encode_shard
    with pytest.MonkeyPatch.context() as m:
        m.setattr(T, 'encode_shard', lambda *a: made.append(1) or old(*a))
        cache_tokens(tmp_path, tok, data, plan, progress=False)
    assert len(made) == 7 - len([k for k in there if k in whole])  # what was done is not done again
    assert {k: v for k, v in contents(tmp_path).items() if k in whole} == whole and not list(
        tmp_path.glob('tokens*.tmp')
    )


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='this system has no fork')
def test_two_processes_that_know_each_other(tok, data, plan, whole, tmp_path):
    "As torchrun would start them: both see the whole cache when they are through"

    def work(rank):
        import torch.distributed as dist

        dist.init_process_group(
            'gloo', init_method=f'file://{tmp_path}/meet', rank=rank, world_size=2
        )
        assert (
            cache_tokens(tmp_path / 'c', tok, data, plan, progress=False)
            and len(TokenCache(tmp_path / 'c', tok).labels) == 100
        )
        dist.destroy_process_group()

    pid = os.fork()
    if not pid:
        try:
            torch.set_num_threads(1)
            work(1)
            os._exit(0)
        except BaseException as e:
            print(e, file=sys.stderr)
            os._exit(1)
    assert child(lambda: work(0)) == 0 and os.waitpid(pid, 0)[1] == 0
    assert contents(tmp_path / 'c') == whole


def test_parts_in_any_order(tok, data, plan, whole, tmp_path):
    assert [
        cache_tokens(tmp_path, tok, data, plan, part=(r, 3), progress=False) for r in (1, 2, 0)
    ] == [False, False, True]
    assert contents(tmp_path) == whole


def test_what_does_not_match_is_refused(tok, data, plan, whole, tmp_path):
    for k, v in whole.items():
        (tmp_path / k).write_bytes(v)
    TokenCache(tmp_path, tok).verify()
    torch.manual_seed(1)
    other = build_tokenizer(get_preset('tiny').tokenizer).eval()
    with pytest.raises(
        ValueError, match=f'fingerprint {weights_hash(tok)}, this one has {weights_hash(other)}'
    ):
        TokenCache(tmp_path, other)
    with pytest.raises(ValueError, match='tokenizer: .* there, .* asked for'):
        token_cache(tmp_path, other, data, views=2, crop='var', flips=True, amp=False, shard=16)
    with pytest.raises(ValueError, match='data: .* there, .* asked for'):
        cache_tokens(
            tmp_path,
            tok,
            data,
            plan_for(
                tok,
                data.subset(range(99, -1, -1)),
                views=2,
                crop='var',
                flips=True,
                amp=False,
                shard=16,
            ),
        )
    (tmp_path / 'manifest.json').unlink()
    with pytest.raises(FileNotFoundError, match='7 of its files'):
        TokenCache(tmp_path, tok)


def test_files_that_were_exchanged_lost_or_changed(tok, whole, tmp_path):
    def spoil(f):
        for k, v in whole.items():
            (tmp_path / k).write_bytes(v)
        f(shard_path(tmp_path, 3))
        return TokenCache(tmp_path, tok)

    with pytest.raises(ValueError, match='tokens-00003.*not the file'):
        spoil(lambda p: p.write_bytes(whole['tokens-00001.safetensors']))
    with pytest.raises(FileNotFoundError):
        spoil(Path.unlink)
    with pytest.raises(ValueError, match='not a complete file of tokens'):
        spoil(lambda p: p.write_bytes(p.read_bytes()[:900]))
    with pytest.raises(ValueError, match='tokens-00003.*changed'):
        spoil(lambda p: p.write_bytes(p.read_bytes()[:-1] + b'\1')).verify()


def test_images_that_cannot_be_read_are_in_the_manifest(tok, tmp_path):
    from nfig.data.sets import from_files
    from PIL import Image

    for i in range(12):
        Image.new('RGB', (32, 32), (20 * i, 0, 0)).save(tmp_path / f'{i:02d}.png')
    (tmp_path / '05.png').write_bytes(b'no picture')
    lazy = from_files(
        [str(tmp_path / f'{i:02d}.png') for i in range(12)], [0] * 12, ['all'], 32, memory=0
    )
    with pytest.warns(UserWarning, match='05.png'):
        cache_tokens(
            tmp_path / 'c',
            tok,
            lazy,
            plan_for(tok, lazy, amp=False, shard=4),
            workers=1,
            progress=False,
        )
    cache = TokenCache(tmp_path / 'c', tok)
    assert [Path(n).name for n, _ in cache.manifest['skipped']] == ['05.png']
    assert torch.equal(cache[0, torch.tensor(5)], cache[0, torch.tensor(6)])  # the stand-in


def test_reading_needs_no_memory(tok, tmp_path):
    "Mapped files: what is read stays the system's, however large the cache"
    import re

    if 'RssAnon' not in (
        Path('/proc/self/status').read_text() if Path('/proc/self/status').exists() else ''
    ):
        pytest.skip('no RssAnon in /proc/self/status here')

    def anonymous():
        return int(re.search(r'RssAnon:\s*(\d+)', Path('/proc/self/status').read_text())[1])

    plan = CachePlan(weights_hash(tok), 'made', 4 * 8192, flips=True, shard=8192, amp=False)
    tokens = torch.randint(128, (2, 8192, 680), dtype=torch.int16)
    for i in range(4):
        T.write_shard(
            shard_path(tmp_path, i), plan, tokens, torch.zeros(8192, dtype=torch.int64)
        )  # 22 MB a file

    class data:
        classes = ['one']

    T.write_manifest(tmp_path, tok, data, plan)
    before = anonymous()
    cache = TokenCache(tmp_path, tok)
    rows = torch.randperm(4 * 8192)
    assert all(cache[1, rows[k : k + 512]].shape == (512, 680) for k in range(0, 4 * 8192, 512))
    assert anonymous() - before < 20 * 2**10  # kB; 89 MB were read
