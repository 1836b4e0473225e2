"Input that is wrong: every fault has a message that names it and says what to do."

import gzip
import shutil
import warnings
from itertools import islice
from pathlib import Path
import numpy as np
import pytest
import torch
from PIL import Image
import nfig.data.sources as D
from nfig.data.sets import batches, loader
from nfig.data.sources import load_data
from nfig.data.sets import from_files


def noise(path, seed=0, size=(40, 30)):
    "A picture that does not compress, so that half of its file is half of a picture"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    ).save(path)


@pytest.fixture
def folder(tmp_path):
    "Three classes of four images"
    for c in 'abc':
        for i, ext in enumerate(('png', 'jpg', 'bmp', 'webp')):
            noise(tmp_path / 'set' / c / f'{i}.{ext}', i)
    return tmp_path / 'set'


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def refuses(match, *args, kind=(ValueError, FileNotFoundError), **kw):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with pytest.raises(kind) as e:
            load_data(*args, **kw)
    for m in (match,) if isinstance(match, str) else match:
        assert m in str(e.value)


# broken files
@pytest.mark.parametrize('name', ['0.png', '1.jpg', '2.bmp', '3.webp'])
def test_truncated_file_is_skipped_and_named(folder, name):
    truncate(folder / 'b' / name)
    with pytest.warns(UserWarning, match=name):
        data = load_data(folder, 16)
    assert (
        len(data) == 11
        and [Path(n).name for n, _ in data.skipped] == [name]
        and data.labels.bincount().tolist() == [4, 3, 4]
    )


@pytest.mark.parametrize(
    'content', [b'', b'some notes', b'\x89PNG\r\n\x1a\n', b'\xff\xd8\xff' + bytes(100)]
)
def test_non_image_is_skipped_and_named(folder, content):
    (folder / 'a' / 'odd.png').write_bytes(content)
    with pytest.warns(UserWarning, match='left out 1 file'):
        data = load_data(folder, 16)
    assert len(data) == 12 and Path(data.skipped[0][0]).name == 'odd.png' and data.skipped[0][1]


def test_dangling_link_and_loose_file_are_named(folder):
    (folder / 'a' / 'link.png').symlink_to(folder / 'gone.png')
    noise(folder / 'loose.png')
    (folder / '.hidden').write_text('x')
    with pytest.warns(UserWarning):
        data = load_data(folder, 16)
    assert len(data) == 12 and {Path(n).name for n, _ in data.skipped} == {'link.png', 'loose.png'}


def test_all_broken_is_an_error(folder):
    for p in folder.rglob('*.*'):
        truncate(p)
    refuses(('none of the 12', '0.png'), folder, 16)
    for p in folder.rglob('*.*'):
        p.write_bytes(b'')
    refuses(('none of the 12', '0.png'), folder)


def test_class_that_loses_all_images_is_named(folder):
    for p in (folder / 'b').iterdir():
        truncate(p)
    refuses(('left in class b', 'replace its files or remove it'), folder, 16)


def test_broken_file_found_while_training(folder):
    "Read from disk: the next image stands in, and the culprit is on the list"
    truncate(folder / 'b' / '3.webp')
    files = sorted(map(str, folder.rglob('*.*')))
    data = from_files(files, [i // 4 for i in range(12)], 'abc', 16, memory=0)
    assert data.lazy
    with pytest.warns(UserWarning, match='3.webp'):
        x, y = data.__getitems__([6, 7, 8])
    assert y.tolist() == [1, 2, 2] and torch.equal(x[1], x[2]) and len(data.skipped) == 1
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        data.__getitems__([7])  # told once
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match='disk'), pytest.warns(UserWarning):
        data.__getitems__([0])


def test_broken_file_in_a_worker(folder):
    truncate(folder / 'a' / '0.png')
    data = from_files(
        sorted(map(str, folder.rglob('*.*'))), [i // 4 for i in range(12)], 'abc', 16, memory=0
    )
    with pytest.warns(UserWarning, match='0.png'):
        got = list(islice(loader(data, 4, workers=2), 6))
    assert [Path(n).name for n, _ in data.skipped] == [
        '0.png'
    ]  # the parent knows, and knows it once
    assert all(x.shape == (4, 3, 16, 16) and x.dtype == torch.uint8 for x, _ in got)


# folders
def test_empty_class_folder(folder):
    (folder / 'd').mkdir()
    refuses(('no images in', str(folder / 'd'), 'or remove the folder'), folder, 16)


def test_no_images_at_all(tmp_path):
    refuses('CLASS/picture.png', tmp_path, 16)


def test_no_such_folder(tmp_path):
    refuses(('unknown data set or folder', 'A folder of your own'), tmp_path / 'nowhere')


def test_misspelt_name():
    refuses("Did you mean 'cifar10'", 'cifar-10')


def test_a_file_that_is_no_parquet(folder):
    refuses('give a folder', folder / 'a' / '0.png')


def test_nothing_held_out(folder):
    refuses(('has no held-out images', 'train/CLASS'), folder, 16, split='test')


def test_unknown_split(folder):
    refuses("Did you mean 'train'", folder, 16, split='trian')


@pytest.mark.parametrize('size', [0, -4, 3.5, '64px'])
def test_impossible_size(folder, size):
    refuses('whole number of pixels', folder, size)


def test_size_is_needed(folder):
    refuses(('40x30', 'give size='), folder)


def test_size_is_needed_where_sides_differ(folder):
    noise(folder / 'a' / 'big.png', size=(64, 64))
    refuses(('from 40x30 to 64x64', 'give size='), folder)


def test_flat_folder_is_one_class(folder):
    data = load_data(folder / 'a', 16)
    assert data.classes == ['a'] and len(data) == 4


def test_splits(folder, tmp_path):
    for split in ('train', 'val'):
        shutil.copytree(folder, tmp_path / 's' / split)
    (tmp_path / 's/val/c/0.png').unlink()
    assert [len(load_data(tmp_path / 's', 16, s)) for s in ('train', 'val', 'test')] == [12, 11, 11]


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', 'YCbCr', 'I;16'])
def test_modes(tmp_path, mode):
    (tmp_path / 'c').mkdir()
    im = (
        Image.fromarray(np.full((8, 8), 40000, np.uint16))
        if mode == 'I;16'
        else Image.new('RGB', (8, 8), (200, 120, 40)).convert(mode)
    )
    im.save(tmp_path / 'c' / ('x.tiff' if mode in ('CMYK', 'YCbCr') else 'x.png'))
    x, y = load_data(tmp_path)[0]
    assert x.shape == (3, 8, 8) and x.dtype == torch.uint8 and y == 0
    if mode in ('RGB', 'RGBA', 'P'):
        assert (x[:, 0, 0] - torch.tensor([200, 120, 40])).float().abs().max() <= 50
    if mode == 'I;16':
        assert x.unique().tolist() == [155]


# Parquet
def write(path, **columns):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path)


def test_parquet_faults(folder, tmp_path):
    good = (folder / 'a' / '0.png').read_bytes()
    p = tmp_path / 'x-train.parquet'
    write(p, picture=[good], label=[0])
    refuses('needed are image and label', p, 16)
    write(p, image=[good], label=[-1])
    refuses('whole numbers', p, 16)
    write(p, image=[good] * 2, label=[0, None])
    refuses('whole numbers', p, 16)
    write(p, image=[b'no', 'image'.encode()], label=[0, 1])
    refuses(('none of the 2', 'row 0'), p, 16)
    write(p, image=[good] * 2, label=['x', 'y'])
    refuses('for split', p, 16, split='test')
    truncate(p)
    refuses('is it complete?', p, 16)


def test_parquet_skips_broken_rows(folder, tmp_path):
    good = (folder / 'a' / '0.png').read_bytes()
    write(tmp_path / 'x.parquet', image=[good, None, good], label=[0, 0, 1])
    with pytest.warns(UserWarning, match='row 1'):
        data = load_data(tmp_path / 'x.parquet', 16)
    assert data.labels.tolist() == [0, 1] and len(data.skipped) == 1
    write(tmp_path / 'x.parquet', image=[good, b'bad', None, good], label=[0, 0, 1, 1])
    refuses(('2 of 4 images', 'row 1', 'row 2', 'more than 1 %'), tmp_path / 'x.parquet', 16)


def test_parquet_splits_and_shards(folder, tmp_path):
    good = (folder / 'a' / '0.png').read_bytes()
    (tmp_path / 'p').mkdir()
    for n, k in {
        'train-00000-of-00002': 3,
        'train-00001-of-00002': 2,
        'validation-00000-of-00001': 1,
    }.items():
        write(tmp_path / 'p' / f'{n}.parquet', image=[good] * k, label=[0] * k)
    assert [len(load_data(tmp_path / 'p', 16, s)) for s in ('train', 'val', 'test')] == [5, 1, 1]


# named sets
@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    "A computer without data sets and without a network"

    def offline(name):
        raise OSError('no network')

    monkeypatch.setattr(D, 'places', lambda: [tmp_path])
    monkeypatch.setattr(D, 'require', offline)
    return tmp_path


@pytest.mark.parametrize('name', ['fashion-mnist', 'cifar10'])
def test_missing_named_set_says_what_to_put_where(nowhere, name):
    refuses((name, 'no network', 'a folder called', str(nowhere), 'NFIG_DATA'), name)


def test_bundled_set_needs_nothing(nowhere):
    data = load_data('fashion-mnist-5k')
    assert len(data) == 5000 and data.size == 32 and data.labels.bincount().tolist() == [500] * 10
    assert load_data('fashion-mnist-5k', 16)[0][0].shape == (3, 16, 16)
    refuses('fashion-mnist with split', 'fashion-mnist-5k', split='test')


def test_damaged_idx(nowhere):
    (nowhere / 'fashion-mnist').mkdir()
    for kind in ('images-idx3', 'labels-idx1'):
        (nowhere / f'fashion-mnist/train-{kind}-ubyte.gz').write_bytes(
            gzip.compress(bytes(2000))[:20]
        )
    refuses(('is damaged', 'fetch it again'), 'fashion-mnist')


# order
def test_batch_larger_than_the_set():
    with pytest.raises(ValueError, match='from 1 to 10'):
        batches(10, 11)


def test_resumed_order_is_the_order():
    whole = list(islice(batches(50, 7, seed=3), 30))
    for k in range(30):
        assert torch.equal(next(batches(50, 7, seed=3, start_step=k)), whole[k])
