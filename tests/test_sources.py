"Sources of images behind one interface: whatever they are kept in, the same properties"

import io
import pickle
import random
import re
import shutil
import warnings
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import nfig.core.distributed as dist
import nfig.data.shards as S
from nfig.data.sets import loader
from nfig.data.sources import load_data
from nfig.data.sets import from_files
from nfig.data.shards import TarFiles, load_arrow, load_tar
from nfig.data.shards import StreamData, hub_stream, tar_stream

n, classes = 220, ['cat', 'dog', 'eel']


def picture(i):
    "A picture that says which one it is: its number above, noise below that does not compress"
    a = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    a[:8] = i
    buf = io.BytesIO()
    Image.fromarray(a).save(buf, 'PNG')
    return buf.getvalue()


@pytest.fixture(scope='module')
def contents():
    return [picture(i) for i in range(n)]


def write(kind, folder, files):
    "The files of a set in one of the forms"
    import pyarrow as pa
    import pyarrow.parquet as pq
    import webdataset as wds

    if kind in ('folder', 'memory'):
        for c in classes:
            (folder / c).mkdir(parents=True)
        for i, b in enumerate(files):
            (folder / classes[i % 3] / f'{i:03d}.png').write_bytes(b)
        return
    folder.mkdir()
    for k in range(4):
        part = range(55 * k, 55 * k + 55)
        if 'tar' in kind:
            with wds.TarWriter(str(folder / f'set-{k}.tar')) as w:
                for i in part:
                    w.write(dict(__key__=f'{i:03d}', png=files[i], cls=str(i % 3)))
        else:
            pq.write_table(
                pa.Table.from_pylist(
                    [
                        dict(
                            image=dict(bytes=files[i], path=f'{i:03d}.png'),
                            label=i % 3,
                            name=classes[i % 3],
                        )
                        for i in part
                    ]
                ),
                folder / f'set-{k}.parquet',
            )
    (folder / 'classes.txt').write_text('\n'.join(classes))


def read(kind, folder, tmp):
    "The set; all but `memory` are decoded when asked for"
    if kind == 'memory':
        return load_data(folder, 16)
    if kind == 'folder':
        files = sorted(map(str, folder.rglob('*.png')))
        return from_files(
            files, [classes.index(Path(f).parent.name) for f in files], classes, 16, memory=0
        )
    if kind == 'tar':
        return lazily(load_tar, folder, 16, 'train', tmp / 'index')
    if kind == 'arrow':
        return lazily(load_arrow, sorted(folder.glob('*.parquet')), 16, tmp / 'hf')
    if kind == 'tar stream':
        return StreamData(tar_stream(f'{folder}/set-{{0..3}}.tar', 40), n, 16, classes)
    import datasets

    datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = (
        0.1  # else it waits five seconds after each epoch
    )
    return StreamData(
        hub_stream(
            datasets.load_dataset(
                'parquet',
                data_files=[str(f) for f in sorted(folder.glob('*.parquet'))],
                split='train',
                streaming=True,
            ),
            40,
        ),
        n,
        16,
        classes,
    )


def lazily(load, *args):
    "As if the set were too large for memory"
    with pytest.MonkeyPatch.context() as m:
        m.setattr(S, 'from_files', lambda *a: from_files(*a, memory=0))
        return load(*args)


indexed = ['memory', 'folder', 'tar', 'arrow']
streams = ['tar stream', 'hub stream']
all_kinds = pytest.mark.parametrize('kind', indexed + streams)


@pytest.fixture
def make(tmp_path, contents):
    def f(kind, **broken):  # number of a file -> what stands in its place
        write(kind, tmp_path / 'set', [broken.get(f'i{i}', b) for i, b in enumerate(contents)])
        return read(kind, tmp_path / 'set', tmp_path)

    return f


def numbers(x):
    return x[:, 0, 0, 0].tolist()


def take(data, k, **kw):
    return [(numbers(x), y.tolist()) for x, y in islice(loader(data, 12, seed=4, **kw), k)]


@all_kinds
def test_same_images_labels_and_names(make, kind, contents):
    data = make(kind)
    seen = take(data, 18)
    ids = sum((i for i, _ in seen), [])
    assert (
        len(data) == n and data.classes == classes and len(set(ids)) == 216
    )  # an epoch of 18 batches repeats nothing
    assert all(y == [i % 3 for i in ids] for ids, y in seen)
    x, _ = next(iter(loader(data, 12, seed=4)))
    i = numbers(x)[5]
    assert torch.equal(
        x[5], torch.from_numpy(np.array(Image.open(io.BytesIO(contents[i])))).permute(2, 0, 1)
    )


@all_kinds
def test_resumed_in_the_middle_of_an_epoch(make, kind):
    data = make(kind)
    whole = take(data, 24)
    for k in (7, 18):
        assert take(data, 24 - k, start_step=k) == whole[k:]
    assert whole[0] != whole[18]  # the next epoch has another order
    if kind != 'memory':
        assert take(data, 24 - 7, start_step=7, workers=1) == whole[7:]


@all_kinds
def test_shares_are_disjoint_and_complete(make, kind, monkeypatch):
    data = make(kind)
    whole = take(data, 18)
    parts = []
    for r in range(2):
        monkeypatch.setattr(dist, 'world', lambda r=r: (r, 2))
        parts.append(take(data, 18))
    for (ids, _), (a, _), (b, _) in zip(whole, *parts):
        assert a == ids[::2] and b == ids[1::2]


@all_kinds
@pytest.mark.parametrize('workers', [0, 1])
def test_corrupt_image_is_replaced_counted_and_named(make, kind, workers, contents, tmp_path):
    if kind == 'memory':
        with pytest.warns(UserWarning, match='005.png'):
            data = make(kind, i5=contents[5][:400])
    else:
        data = make(kind, i5=contents[5][:400])
    data.log_to(tmp_path / 'skipped.txt')
    if kind == 'memory':
        take(data, 18)
    else:
        with pytest.warns(UserWarning, match=r'cannot read .*005\.png.*1 of 220'):
            seen = take(data, 36, workers=workers)
        assert all(len(ids) == 12 and 5 not in ids and y == [i % 3 for i in ids] for ids, y in seen)
        assert sum((i for i, _ in seen[:18]), []) == sum(
            (i for i, _ in take(data, 18)), []
        )  # the stand-in is the same every time
    assert [Path(name).name for name, _ in data.skipped] == ['005.png']
    assert re.fullmatch(r'.*005\.png\t.*truncated\n', (tmp_path / 'skipped.txt').read_text())


@all_kinds
def test_more_than_one_percent_stops_with_the_list(make, kind):
    bad = random.Random(0).sample(range(n), 3)
    with (
        pytest.raises(ValueError, match='more than 1 %') as e,
        warnings.catch_warnings(),
    ):  # in memory at once, else when the third is met
        warnings.simplefilter('ignore')
        take(make(kind, **{f'i{i}': b'no picture' for i in bad}), 40, workers=1)
    assert all(f'{i:03d}.png' in str(e.value) for i in bad) and str(e.value).startswith('3 of 220')


# what only some of them have
@pytest.mark.parametrize('kind', indexed)
def test_a_part(make, kind):
    part = make(kind).subset([3, 200, 7])
    x, y = part.__getitems__([2, 0])
    assert (
        len(part) == 3
        and numbers(x) == [i for i in (numbers(part.__getitems__([k])[0])[0] for k in (2, 0))]
        and y.shape == (2,)
    )
    assert numbers(part.subset([1]).__getitems__([0])[0]) == numbers(part.__getitems__([1])[0])


@pytest.mark.parametrize('kind', ['folder', 'tar', 'arrow'])
def test_a_worker_is_sent_little(make, kind):
    "Of an image a place and a name are known: a worker that is started anew gets no picture"
    data = make(kind)
    assert len(pickle.dumps(data)) / n < 150
    assert pickle.loads(pickle.dumps(data)).__getitems__([9])[0].equal(data.__getitems__([9])[0])


def test_memory_does_not_grow_with_what_is_read(tmp_path):
    def anonymous():
        return int(re.search(r'RssAnon:\s*(\d+)', Path('/proc/self/status').read_text())[1])

    if (
        not Path('/proc/self/status').exists()
        or 'RssAnon' not in Path('/proc/self/status').read_text()
    ):
        pytest.skip('no RssAnon in /proc/self/status here')
    (tmp_path / 'x.tar').write_bytes(bytes(2**20) * 64)
    source = TarFiles(
        [tmp_path / 'x.tar'], np.zeros(64, np.int32), np.arange(64) * 2**20, np.full(64, 2**20)
    )
    source[0]
    before = anonymous()
    assert (
        sum(len(source[i]) for i in range(64)) == 64 * 2**20 and anonymous() - before < 16 * 2**10
    )  # kB; 64 MB were read


def test_index_is_kept_and_made_again(tmp_path, contents, monkeypatch):
    write('tar', tmp_path / 'set', contents)
    load_tar(tmp_path / 'set', 16, folder=tmp_path / 'index')
    made = []
    monkeypatch.setattr(S, 'index_tars', lambda p, f=S.index_tars: made.append(1) or f(p))
    load_tar(tmp_path / 'set', 16, folder=tmp_path / 'index')
    assert not made  # found
    next((tmp_path / 'index').iterdir()).write_bytes(b'half')
    load_tar(tmp_path / 'set', 16, folder=tmp_path / 'index')
    assert len(made) == 1
    shutil.copy(tmp_path / 'set' / 'set-0.tar', tmp_path / 'set' / 'set-9.tar')
    assert (
        len(load_tar(tmp_path / 'set', 16, folder=tmp_path / 'index')) == n + 55 and len(made) == 2
    )  # other shards, another index


def test_tar_faults(tmp_path):
    import tarfile

    with pytest.raises(FileNotFoundError, match='no .tar file'):
        (tmp_path / 'e').mkdir()
        load_tar(tmp_path / 'e', 16)
    with tarfile.open(tmp_path / 'z.tar', 'w:gz') as t:
        t.add(__file__)
    with pytest.raises(ValueError, match='unpacked'):
        load_tar(tmp_path / 'z.tar', 16, folder=tmp_path)
    with tarfile.open(tmp_path / 't.tar', 'w') as t:
        t.add(__file__, 'notes.txt')
    with pytest.raises(ValueError, match='not one picture'):
        load_tar(tmp_path / 't.tar', 16, folder=tmp_path)
