"All commands, given what they cannot use: one sentence, exit status 1, and no traceback."

import configparser
import importlib
import json
import re
import shutil
from pathlib import Path

import pytest

from nfig.core.config import TokenizerConfig, TransformerConfig
from nfig.core.io import assets
from nfig.tokenizer.frvae import FRVAE
from nfig.transformer.model import NFIGTransformer
from nfig.transformer.pipeline import NFIGPipeline

root = Path(__file__).resolve().parent.parent
parser = configparser.ConfigParser(delimiters=['='])
parser.read(root / 'settings.ini', encoding='utf-8')
scripts = dict(o.split('=') for o in parser['DEFAULT']['console_scripts'].split())
expected = (
    'nfig_train_tokenizer nfig_train nfig_cache_tokens nfig_sample nfig_evaluate nfig_paper '
    'nfig_status nfig_convert nfig_demo'
).split()


def command(name):
    module, _, function = scripts[name].partition(':')
    return getattr(importlib.import_module(module), function)


def typed(capsys, words):
    "Exit status, standard output and error output of a command line"
    name, *rest = words.split()
    try:
        command(name).main(rest)
        status = 0
    except SystemExit as e:
        status = e.code or 0
    out, err = capsys.readouterr()
    return status, out, err


def test_the_commands_are_these():
    assert sorted(scripts) == sorted(expected)


@pytest.mark.parametrize('name', expected)
def test_help_and_device(name, capsys):
    status, out, _ = typed(capsys, f'{name} --help')
    if name == 'nfig_paper':
        for one in re.findall(r'^  (\w+) ', out, flags=re.M):
            assert '--device' in typed(capsys, f'{name} {one} --help')[1]
    else:
        assert status == 0 and '--device' in out


def test_help_lists_every_field(capsys):
    out = typed(capsys, 'nfig_train --help')[1]
    assert 'train.label_smooth=0.0  label smoothing' in out and 'transformer.depth=4' in out
    assert 'sample.temperature' in out and 'run.save_every=' in out


asked = {
    'train.clip': 0.5,
    'train.ema': 0.9,
    'train.crop': 'xqgan',
    'train.gan_start': 0.2,
    'train.warmup': 0.1,
    'train.weight_decay': 0.2,
    'train.schedule': 'linear',
    'tokenizer.beta': 0.1,
    'tokenizer.metric': 'cosine',
    'tokenizer.latent_norm': False,
    'tokenizer.codebook_size': 64,
}


@pytest.mark.parametrize('way', ['--set', '--config'])
def test_settings_reach_the_trainer(way, capsys, tmp_path, monkeypatch):
    "By single fields and from a file; before, most had no flag. Checkpoints go by time"
    from nfig.use import train

    told = []
    monkeypatch.setattr(
        train.tokenizer_trainer, 'train_tokenizer', lambda e, *a, **how: told.append((e, how))
    )
    values = [f'{name}={json.dumps(value)}' for name, value in asked.items()]
    if way == '--config':
        sections = {}
        for name, value in asked.items():
            part, _, field = name.partition('.')
            sections.setdefault(part, {})[field] = value
        (tmp_path / 'c.json').write_text(json.dumps(sections))
        values = [str(tmp_path / 'c.json')]
    line = f'nfig_train_tokenizer --data fashion-mnist-5k --out {tmp_path}/run {way}'
    status, _, err = typed(capsys, ' '.join([line, *values]).replace('"', ''))
    assert status == 0, err
    ((e, how),) = told
    parts = dict(train=e.train_tokenizer, tokenizer=e.tokenizer)
    found = {name: getattr(parts[name.split('.')[0]], name.split('.')[1]) for name in asked}
    assert found == asked and (how['save_every'], how['save_minutes']) == (0, 10.0)


wrong = {
    'nfig_train_tokenizer --preset smal': "Did you mean 'small'",
    'nfig_train_tokenizer --prest small': 'Did you mean --preset?',
    'nfig_train_tokenizer --data nowhere': 'nowhere',
    'nfig_train_tokenizer --data fashion-mnist-5k --steps x': 'steps=x',
    'nfig_train_tokenizer --data fashion-mnist-5k --batch_size 0': 'batch_size=0',
    'nfig_train_tokenizer --data fashion-mnist-5k --lr nan': 'lr=nan',
    'nfig_train_tokenizer --size 33': 'multiple of 4',
    'nfig_train_tokenizer --set train.gan=-1': 'gan=-1',
    'nfig_train_tokenizer --set tokenizer.codebook_size=1000000000': '1048576',
    'nfig_train_tokenizer --set train.lr': 'give a field and its value',
    'nfig_train_tokenizer --config nowhere.json': 'nowhere.json',
    'nfig_train --tokenizer nowhere': 'no tokenizer at nowhere',
    'nfig_train --set transfomer.depth=2': "Did you mean 'transformer'",
    'nfig_train --set transformer.depth=deep': "depth='deep'",
    'nfig_train --tokenizer fashion-mnist --tokens nowhere': 'nowhere',
    'nfig_cache_tokens --tokenizer fashion-mnist --shard 8/8': '8/8',
    'nfig_cache_tokens --set train.views=-1': 'views=-1',
    'nfig_sample --model nowhere': 'nowhere',
    'nfig_sample --labels Sneeker': 'Sneaker',
    'nfig_sample --n 0': 'n=0',
    'nfig_sample --set sample.top_p=2': 'top_p=2',
    'nfig_sample --set sample.schedule=rampe': 'ramp',
    'nfig_sample --device gpu': 'cpu or cuda',
    'nfig_sample --fast int8': 'fp32 or bf16',
    'nfig_evaluate': 'required: what, model',
    'nfig_evaluate tokeniser x': "Did you mean 'tokenizer'",
    'nfig_evaluate tokenizer nowhere': 'no tokenizer at nowhere',
    'nfig_evaluate generator nowhere --extractor effnet': 'nowhere',
    'nfig_evaluate generator fashion-mnist --extractor eyes': 'eyes',
    'nfig_evaluate generator fashion-mnist --n -3': 'n=-3',
    'nfig_paper figure6': "Did you mean 'figure",
    'nfig_paper figure5 nowhere': 'nowhere',
    'nfig_paper tables34 nowhere.json': 'nowhere.json',
    'nfig_status nowhere': 'not a run folder',
    'nfig_status': 'required: run',
    'nfig_convert a.pth b.pth': 'no file',
    'nfig_convert a.pth': 'two files are needed',
    'nfig_demo --sed 1': 'Did you mean --seed?',
    'nfig_demo --seed -1': 'seed=-1',
}


def test_every_command_is_tried():
    assert {o.split()[0] for o in wrong} == set(expected)


@pytest.mark.parametrize('words', wrong)
def test_a_mistake_is_a_sentence(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = typed(capsys, words)
    assert status == 1 and err.count('error: ') == 1 and 'Traceback' not in err
    assert wrong[words] in err.splitlines()[-1]


huge = {
    'tokenizer': dict(codebook_size=2**20, width=2**20, latent_dim=2**20),
    'transformer': dict(codebook_size=2**20, width=2**20, depth=64),
}


@pytest.fixture
def pipeline(tmp_path):
    shutil.copytree(assets / 'fashion-mnist', tmp_path / 'pipeline')
    return tmp_path / 'pipeline'


@pytest.mark.parametrize('part,field', [(p, f) for p in huge for f in huge[p]])
def test_sizes_are_compared_before_anything_is_allocated(part, field, pipeline):
    "A config that asks for more than the weights hold is refused while the model has no memory"
    path = pipeline / part / 'config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: huge[part][field]}))
    load = dict(tokenizer=FRVAE, transformer=NFIGTransformer)[part]
    with pytest.raises(ValueError, match='another architecture'):
        load.from_pretrained(pipeline / part)


@pytest.mark.parametrize('part', huge)
def test_a_billion_codes_are_not_even_tried(part, pipeline):
    path = pipeline / part / 'config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(codebook_size=10**9)))
    with pytest.raises(ValueError, match='codebook_size=1000000000'):
        NFIGPipeline.from_pretrained(pipeline)


values = [-1, 0, 1.5, 'x', None, [], [0], [1, 'x'], {}, True, 10**12, float('inf')]


@pytest.mark.parametrize('cls', [TokenizerConfig, TransformerConfig])
def test_no_value_of_a_config_gives_anything_but_a_sentence(cls):
    "Every field with a dozen values of all kinds: it is taken, or a ValueError of one line"
    for field in cls.__dataclass_fields__:
        for value in values:
            try:
                cls(**{field: value})
            except ValueError as e:
                assert '\n' not in str(e) and field in str(e), (field, value, str(e))
