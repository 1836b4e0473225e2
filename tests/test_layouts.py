"Files as others write them: hubs, torchvision, Kaggle, archives, captions; read as it was meant"

import io
import json
import shutil
import tarfile
import warnings
from pathlib import Path

import nfig.data.sets as S
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from nfig.data.sources import load_data
from PIL import Image


def picture(i, size=(12, 10)):
    "A JPEG that says which one it is"
    buffer = io.BytesIO()
    Image.fromarray(np.full((*size[::-1], 3), i, np.uint8)).save(buffer, 'JPEG')
    return buffer.getvalue()


def write(path, i=0):
    "A picture at a path"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(i))


def classes(root, names='abc', each=4):
    "Class folders"
    for c, name in enumerate(names):
        for i in range(each):
            write(root / name / f'{i}.JPEG', 10 * c + i)


def strict(*args):
    "Load, and let every warning be an error"
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        return load_data(*args)


def counts(data):
    return dict(zip(data.classes, data.labels.bincount(minlength=len(data.classes)).tolist()))


# torchvision
@pytest.mark.parametrize('words', [('train', 'val'), ('Training', 'Testing'), ('train', 'dev')])
def test_train_and_val(tmp_path, words):
    for word, each in zip(words, (4, 2)):
        classes(tmp_path / word, each=each)
    assert counts(strict(tmp_path, 8)) == dict(a=4, b=4, c=4)
    assert counts(strict(tmp_path, 8, 'val')) == dict(a=2, b=2, c=2)


def test_imagenet_of_torchvision_leaves_its_archives_beside_the_folders(tmp_path):
    for split in ('train', 'val'):
        classes(tmp_path / split, ('n01440764', 'n01443537'))
    (tmp_path / 'ILSVRC2012_img_train.tar').write_bytes(b'\0' * 10240)
    (tmp_path / 'ILSVRC2012_devkit_t12.tar.gz').write_bytes(b'x')
    (tmp_path / 'meta.bin').write_bytes(b'x')
    data = load_data(tmp_path, 8)
    assert counts(data) == dict(n01440764=4, n01443537=4)


def test_an_archive_that_unpacks_into_a_folder_of_its_own(tmp_path):
    classes(tmp_path / 'pets' / 'pets')
    (tmp_path / 'pets' / 'README.md').write_text('pets')
    assert counts(strict(tmp_path / 'pets', 8)) == dict(a=4, b=4, c=4)


def test_captions_and_thumbnails_beside_the_pictures(tmp_path):
    classes(tmp_path)
    for path in list(tmp_path.rglob('*.JPEG')):
        path.with_suffix('.txt').write_text('a caption')
    (tmp_path / 'a' / 'Thumbs.db').write_bytes(b'x')
    (tmp_path / 'LICENSE.txt').write_text('MIT')
    assert counts(strict(tmp_path, 8)) == dict(a=4, b=4, c=4)


def test_flat_splits_are_one_class_of_one_name(tmp_path):
    for split in ('train', 'val'):
        write(tmp_path / 'birds' / split / '0.jpg')
    assert [strict(tmp_path / 'birds', 8, s).classes for s in ('train', 'val')] == [['birds']] * 2


# a flat folder with a table
def flat(root, n=6):
    for i in range(n):
        write(root / f'{i:03d}.jpg', i)


@pytest.mark.parametrize('form', ['csv', 'jsonl'])
def test_metadata_of_the_hub(tmp_path, form):
    "Hugging Face's imagefolder: file_name and label in metadata.csv or .jsonl, in each split"
    for split, n in dict(train=6, test=2).items():
        flat(tmp_path / split, n)
        rows = [dict(file_name=f'{i:03d}.jpg', label=['cat', 'dog'][i % 2]) for i in range(n)]
        if form == 'jsonl':
            text = '\n'.join(map(json.dumps, rows))
        else:
            text = 'file_name,label\n' + '\n'.join(','.join(r.values()) for r in rows)
        (tmp_path / split / f'metadata.{form}').write_text(text)
    assert counts(strict(tmp_path, 8)) == dict(cat=3, dog=3)
    assert counts(strict(tmp_path, 8, 'test')) == dict(cat=1, dog=1)


def test_metadata_at_the_top_names_files_in_the_splits(tmp_path):
    rows = []
    for split, n in dict(train=6, val=2).items():
        flat(tmp_path / split, n)
        rows += [
            dict(file_name=f'{split}/{i:03d}.jpg', label=i % 2 + (split == 'val')) for i in range(n)
        ]
    (tmp_path / 'metadata.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    assert strict(tmp_path, 8).labels.tolist() == [0, 1] * 3
    assert strict(tmp_path, 8, 'val').labels.tolist() == [1, 2]


def test_a_table_of_kaggle(tmp_path):
    "train.csv beside train/, with an id that lacks the extension; test/ has no labels"
    flat(tmp_path / 'train')
    flat(tmp_path / 'test', 2)
    rows = [f"{i:03d},{['pug', 'beagle'][i % 2]}" for i in range(6)]
    (tmp_path / 'train.csv').write_text('id,breed\n' + '\n'.join(rows))
    (tmp_path / 'sample_submission.csv').write_text('id,breed\n')
    data = strict(tmp_path, 8)
    assert counts(data) == dict(beagle=3, pug=3) and data.labels.tolist() == [1, 0] * 3
    with pytest.raises(FileNotFoundError, match='no table of its images'):
        load_data(tmp_path, 8, 'test')


def test_a_table_that_names_no_file_is_an_error(tmp_path):
    flat(tmp_path)
    (tmp_path / 'labels.csv').write_text('image,label\nx.jpg,0\n')
    with pytest.raises(ValueError, match='names x.jpg .* none of its 1 files'):
        load_data(tmp_path, 8)


def test_captions_are_no_classes(tmp_path):
    flat(tmp_path)
    rows = [json.dumps(dict(file_name=f'{i:03d}.jpg', text=f'picture {i}')) for i in range(6)]
    (tmp_path / 'metadata.jsonl').write_text('\n'.join(rows))
    with pytest.warns(UserWarning, match='all images are one class'):
        assert load_data(tmp_path, 8).classes == ['image']


def test_pictures_that_the_table_does_not_name_are_told(tmp_path):
    flat(tmp_path)
    (tmp_path / 'labels.csv').write_text(
        'image,label\n' + '\n'.join(f'{i:03d}.jpg,{i}' for i in range(5))
    )
    with pytest.warns(UserWarning, match='005.jpg .is not named in labels.csv'):
        assert len(load_data(tmp_path, 8)) == 5


# Parquet, as Hugging Face's library writes it
def hub(path, image='image', label='label', names=('sky', 'sea'), n=6):
    import datasets

    features = {image: datasets.Image(), label: datasets.ClassLabel(names=list(names))}
    rows = {
        image: [dict(bytes=picture(i), path=f'{i}.jpg') for i in range(n)],
        label: [i % 2 for i in range(n)],
    }
    found = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        found.to_parquet(str(path))
    return found


@pytest.mark.parametrize(
    'image,label', [('image', 'label'), ('img', 'label'), ('img', 'fine_label')]
)
def test_names_of_classes_in_the_metadata(tmp_path, image, label):
    "Names in the schema's metadata, under `huggingface`; several files, columns by other names"
    for k in range(2):
        hub(tmp_path / 'data' / f'train-{k:05d}-of-00002.parquet', image, label)
    (tmp_path / 'README.md').write_text('a card')
    write(tmp_path / 'preview.png')
    data = strict(tmp_path, 8)
    assert counts(data) == dict(sky=6, sea=6)


def test_names_of_classes_survive_the_way_over_arrow(tmp_path, monkeypatch):
    import nfig.data.shards as shards

    hub(tmp_path / 'train.parquet', 'img', 'fine_label')
    monkeypatch.setenv('HF_DATASETS_CACHE', str(tmp_path / 'cache'))
    assert shards.load_arrow([tmp_path / 'train.parquet'], 8, tmp_path / 'hf').classes == [
        'sky',
        'sea',
    ]


def test_a_table_without_labels_is_one_class(tmp_path):
    pq.write_table(pa.table(dict(image=[picture(i) for i in range(3)])), tmp_path / 'x.parquet')
    assert counts(strict(tmp_path / 'x.parquet', 8)) == dict(image=3)


def test_what_save_to_disk_wrote(tmp_path):
    import datasets

    found = hub(None, 'img', 'label')
    parts = datasets.DatasetDict(train=found.select(range(4)), test=found.select([5, 4]))
    parts.save_to_disk(str(tmp_path / 'many'))
    found.save_to_disk(str(tmp_path / 'one'))
    assert counts(strict(tmp_path / 'many', 8)) == dict(sky=2, sea=2)
    assert strict(tmp_path / 'many', 8, 'test').labels.tolist() == [1, 0]
    assert counts(strict(tmp_path / 'one', 8)) == dict(sky=3, sea=3)


# tar
def pack(path, files):
    "A tar file of {name: content}"
    with tarfile.open(path, 'w') as t:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            t.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize('label', ['cls', 'json', 'none', 'folders'])
def test_shards_of_others(tmp_path, label):
    "WebDataset's .cls or .json, img2dataset's captions without labels, a folder of folders"
    files = {}
    for i in range(6):
        where = f"set/{'cd'[i % 2]}/{i}" if label == 'folders' else f'{i:05d}'
        files[f'{where}.jpg' if label != 'cls' else f'{where}.image.jpg'] = picture(i)
        if label == 'cls':
            files[f'{where}.cls'] = b'1\n' if i % 2 else b'0\n'
        if label == 'json':
            files[f'{where}.json'] = json.dumps(dict(label=i % 2, width=12)).encode()
        if label == 'none':
            files |= {f'{where}.txt': b'a caption', f'{where}.json': b'{"url": "x"}'}
    (tmp_path / 'set').mkdir()
    pack(tmp_path / 'set' / 'shard-00000.tar', files)
    expected = dict(
        cls={'0': 3, '1': 3}, json={'0': 3, '1': 3}, none=dict(image=6), folders=dict(c=3, d=3)
    )
    assert counts(strict(tmp_path / 'set', 8)) == expected[label]


# a large folder starts at once
def test_a_large_folder_is_not_decoded_before_the_first_batch(tmp_path, monkeypatch):
    "5,000 small files: the first batch decodes itself and no more, a second look nothing"
    for c in range(2):
        write(tmp_path / str(c) / '0.jpg', c)
        for i in range(1, 2500):
            (tmp_path / str(c) / f'{i}.jpg').hardlink_to(tmp_path / str(c) / '0.jpg')
    calls = []
    old = S.try_decode
    monkeypatch.setattr(S, 'try_decode', lambda *a: calls.append(1) or old(*a))
    data = strict(tmp_path, 8)
    assert len(data) == 5000 and len(calls) == 0
    x, _ = next(iter(S.loader(data, 64, workers=0)))
    assert len(x) == 64 and len(calls) == 64
    again, _ = next(iter(S.loader(data, 64, workers=0)))
    assert len(calls) == 64 and again.equal(x)


def test_what_a_worker_decodes_is_kept_for_all(tmp_path):
    names = [str(tmp_path / f'{i}.jpg') for i in range(8)]
    for i, name in enumerate(names):
        write(Path(name), i)
    data = S.from_files(names, [0] * 8, 'a', 8, now=4)
    first = next(iter(S.loader(data, 8, workers=1)))[0]
    assert data.there.all()
    shutil.rmtree(tmp_path)
    assert next(iter(S.loader(data, 8, workers=0)))[0].equal(first)  # no file is left
