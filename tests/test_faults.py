"""What goes wrong outside the data: names, sizes, checkpoints, disks, losses. Each fault has a
message that names it and says what to do, and leaves what was there as it was. (Faults of the
data are in test_data.py.)"""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
import nfig.tokenizer.frvae as T
from nfig.core.config import TokenizerConfig, save_config
from nfig.core.presets import get_preset
from nfig.data.sources import load_data
from nfig.core.io import write_folder
from nfig.tokenizer.frvae import FRVAE, build_decoder, build_encoder, build_tokenizer
from nfig.train.tokenizer import TokenizerTask, last_layer, train_tokenizer
from nfig.core.io import load_state, save_state
from nfig.train.run import Run

root = Path(__file__).resolve().parent.parent


def says(e, *parts):
    "The message of the error that `pytest.raises` caught holds every one of `parts`"
    for p in parts:
        assert p in str(e.value), str(e.value)


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob('*'))


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


def truncate(path, n=100):
    path.write_bytes(path.read_bytes()[:-n])


@pytest.fixture
def data():
    return load_data('fashion-mnist-5k')


@pytest.fixture
def tok():
    torch.manual_seed(0)
    return build_tokenizer(get_preset('tiny').tokenizer).eval()


@pytest.fixture
def saved(tok, tmp_path):
    tok.save_pretrained(tmp_path / 'tok')
    return tmp_path / 'tok'


# Names


def test_unknown_preset():
    with pytest.raises(ValueError) as e:
        get_preset('smal')
    says(e, "unknown preset 'smal'", "Did you mean 'small'", 'nfig_d16')


def test_unknown_field_of_a_preset():
    with pytest.raises(ValueError) as e:
        get_preset('small', tokenizer=dict(widht=64))
    says(e, 'widht')


@pytest.fixture
def pipe(tok):
    from nfig.core.config import TransformerConfig
    from nfig.transformer.pipeline import NFIGPipeline
    from nfig.transformer.model import NFIGTransformer

    c = tok.config
    model = NFIGTransformer(
        TransformerConfig(c.scales, c.codebook_size, c.latent_dim, classes=3, depth=1)
    )
    return NFIGPipeline(tok, model, ['Trouser', 'Sneaker', 'Ankle boot'])


def test_unknown_class_name(pipe):
    with pytest.raises(ValueError) as e:
        pipe('snekaer')
    says(e, "unknown class 'snekaer'", "Sneaker", 'Trouser', 'Ankle boot')


@pytest.mark.parametrize('label', [3, 17, -2])
def test_class_number_out_of_range(pipe, label):
    with pytest.raises(ValueError) as e:
        pipe(label)
    says(e, str(label))


# Sizes


def test_image_side_that_is_no_multiple():
    for build in (build_encoder, build_decoder):
        with pytest.raises(ValueError) as e:
            build(TokenizerConfig(image_size=30))
        says(e, 'image side 30', 'needs a multiple of 4')


def test_image_side_that_does_not_fit_the_scales():
    with pytest.raises(ValueError) as e:
        build_tokenizer(TokenizerConfig(image_size=64, groups=8))
    says(
        e,
        '64 pixels',
        '16x16 latent',
        'the last scale is 8',
        'let scales end at 16, or change image_size',
    )


def test_image_of_another_size_than_the_tokenizer(tok):
    with pytest.raises(ValueError) as e:
        tok.encode(torch.zeros(2, 3, 28, 28))
    says(e, '(2, 3, 28, 28)', '(B, 3, 32, 32)', 'load the data with size=32')


def test_data_of_another_size_than_the_tokenizer(data, tmp_path):
    small = load_data('fashion-mnist-5k', 16)
    with pytest.raises(ValueError) as e:
        train_tokenizer(get_preset('tiny'), small, tmp_path, progress=False)
    says(e, 'load the data with size=32')


# Checkpoints that cannot be loaded


def test_tokenizer_of_another_architecture(saved):
    save_config(get_preset('tiny', tokenizer=dict(width=32)).tokenizer, saved / 'config.json')
    with pytest.raises(ValueError) as e:
        FRVAE.from_pretrained(saved)
    says(
        e,
        str(saved),
        'another architecture',
        'in the model',
        'in the file',
        'config it was saved with',
    )


@pytest.mark.parametrize('cut', [1, 1000, 10**9])
def test_truncated_tokenizer(saved, cut):
    truncate(saved / 'model.safetensors', cut)
    with pytest.raises(ValueError) as e:
        FRVAE.from_pretrained(saved)
    says(e, 'model.safetensors', 'not a complete safetensors file', 'copy it again')


def test_corrupted_tokenizer(saved):
    (saved / 'model.safetensors').write_bytes(b'\xff' * 500_000)
    with pytest.raises(ValueError) as e:
        FRVAE.from_pretrained(saved)
    says(e, 'not a complete safetensors file')


@pytest.mark.parametrize(
    'file,part', [('config.json', 'no tokenizer at'), ('model.safetensors', 'no weights at')]
)
def test_missing_file_of_a_tokenizer(saved, file, part):
    (saved / file).unlink()
    with pytest.raises(FileNotFoundError) as e:
        FRVAE.from_pretrained(saved)
    says(e, part, 'expected a folder with config.json and model.safetensors')


def test_broken_config_of_a_tokenizer(saved):
    truncate(saved / 'config.json', 9)
    with pytest.raises(ValueError) as e:
        FRVAE.from_pretrained(saved)
    says(e, 'config.json', 'not valid JSON', 'copy it again')


def test_config_of_another_version(saved):
    (saved / 'config.json').write_text('{"colour_size": 3}')
    with pytest.raises(ValueError) as e:
        FRVAE.from_pretrained(saved)
    says(e, "'colour_size'", 'TokenizerConfig')


# A full disk. A limit on the size of files makes writes fail for real, inside safetensors as well
# as in Python

full = """import resource, signal, sys, torch
# the write fails with an error instead of ending the process
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from nfig.core.presets import get_preset
from nfig.tokenizer.frvae import build_tokenizer
from nfig.core.io import save_state
from nfig.train.run import Run
torch.manual_seed(1)
tok = build_tokenizer(get_preset('tiny').tokenizer)
state = dict(step=2, model=tok.state_dict())
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    {}
except OSError as e:
    print(e)
"""


def on_full_disk(command, *args):
    "What `command` says for itself in a process that can write no file larger than 50 kB"
    res = subprocess.run(
        [sys.executable, '-c', full.format(command), *map(str, args)],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert res.returncode == 0, res.stderr
    return res.stdout


def test_full_disk_while_saving_a_tokenizer(saved, tok, tmp_path):
    before = names(tmp_path)
    said = on_full_disk('tok.save_pretrained(sys.argv[1])', saved)
    assert all(
        o in said
        for o in (
            f'could not write {saved}',
            'What was there before is untouched',
            'free some space',
        )
    ), said
    assert same(FRVAE.from_pretrained(saved), tok) and names(tmp_path) == before


def test_full_disk_while_saving_the_first_tokenizer(tmp_path):
    assert 'could not write' in on_full_disk(
        'tok.save_pretrained(sys.argv[1])', tmp_path / 'new' / 'tok'
    )
    assert names(tmp_path) == ['new']


@pytest.mark.parametrize(
    'command',
    [
        "save_state(sys.argv[1]+'/checkpoints/step_00000002.safetensors', state)",
        'run = Run(sys.argv[1]); run.save(2, state); run.wait()',
    ],
)
def test_full_disk_while_saving_a_checkpoint(tmp_path, command):
    run = Run(tmp_path, dict(lr=0.1), keep=1)
    run.save(1, dict(step=1, w=torch.arange(3.0)))
    run.wait()
    before = names(tmp_path)
    said = on_full_disk(command, tmp_path)
    assert all(
        o in said
        for o in (
            'could not write',
            'step_00000002.safetensors',
            'Earlier checkpoints are untouched',
            'start again with the same command',
        )
    ), said
    assert names(tmp_path) == before and run.latest()['w'].tolist() == [0, 1, 2]


def test_full_disk_over_the_same_checkpoint(tmp_path):
    save_state(tmp_path / 'a.safetensors', dict(step=1))
    assert 'could not write' in on_full_disk(
        'save_state(sys.argv[1], state)', tmp_path / 'a.safetensors'
    )
    assert load_state(tmp_path / 'a.safetensors') == dict(step=1) and names(tmp_path) == [
        'a.safetensors'
    ]


# Folders are replaced as a whole


def test_failing_fill_leaves_the_folder(tmp_path):
    out = tmp_path / 'out'
    write_folder(out, lambda d: (d / 'a').write_text('old'))

    def fill(d):
        (d / 'a').write_text('new')
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(out, fill)
    assert names(tmp_path) == ['out', 'out/a'] and (out / 'a').read_text() == 'old'


def test_failing_swap_puts_the_old_folder_back(tmp_path, monkeypatch):
    out = tmp_path / 'out'
    write_folder(out, lambda d: (d / 'a').write_text('old'))
    rename = Path.rename

    def fails(self, to):
        if self.name == 'new':
            raise OSError(18, 'Invalid cross-device link')
        return rename(self, to)

    monkeypatch.setattr(T.Path, 'rename', fails)
    with pytest.raises(OSError) as e:
        write_folder(out, lambda d: (d / 'a').write_text('new'))
    says(e, f'could not write {out}', 'cross-device', 'untouched')
    assert names(tmp_path) == ['out', 'out/a'] and (out / 'a').read_text() == 'old'


def test_folder_with_other_files_is_not_replaced(tok, tmp_path):
    (tmp_path / 'work').mkdir()
    (tmp_path / 'work' / 'thesis.tex').write_text('years')
    with pytest.raises(ValueError) as e:
        tok.save_pretrained(tmp_path / 'work')
    says(e, 'thesis.tex', 'choose a new or an empty folder')
    assert names(tmp_path) == ['work', 'work/thesis.tex']


def test_place_that_is_a_file(tok, tmp_path):
    (tmp_path / 'a').write_text('x')
    with pytest.raises(ValueError):
        tok.save_pretrained(tmp_path / 'a')
    with pytest.raises(OSError) as e:
        tok.save_pretrained(tmp_path / 'a' / 'b')
    says(e, 'could not write', 'choose another folder')
    assert names(tmp_path) == ['a'] and (tmp_path / 'a').read_text() == 'x'


# Runs that were interrupted, damaged, or went astray

tiny = get_preset('tiny', train_tokenizer=dict(steps=12, batch_size=16))
every = dict(log_every=2, save_every=2, preview_every=100, progress=False)


def test_resumes_from_the_newest_valid_checkpoint(data, tmp_path, capsys):
    whole = train_tokenizer(tiny, data, tmp_path / 'whole', **every)
    train_tokenizer(tiny, data, tmp_path / 'run', stop_after=8, **every)
    run = Run(tmp_path / 'run')
    newest = run.checkpoints()[-1]
    truncate(newest)
    with open(tmp_path / 'run' / 'metrics.jsonl', 'a') as f:
        f.write('{"step": 9, "los')  # and the log was cut off too
    assert newest.name == 'step_00000008.safetensors' and run.latest()['step'] == 6
    assert 'skipped step_00000008.safetensors' in capsys.readouterr().out
    assert same(train_tokenizer(tiny, data, tmp_path / 'run', **every), whole)
    log = [[(m['step'], m['loss']) for m in Run(tmp_path / o).metrics()] for o in ('whole', 'run')]
    assert log[0] == log[1] and [s for s, _ in log[0]] == [2, 4, 6, 8, 10, 12]


def test_starts_anew_if_no_checkpoint_is_valid(data, tmp_path):
    whole = train_tokenizer(tiny, data, tmp_path / 'whole', **every)
    train_tokenizer(tiny, data, tmp_path / 'run', stop_after=4, **every)
    for p in Run(tmp_path / 'run').checkpoints():
        p.write_bytes(b'')
    assert same(train_tokenizer(tiny, data, tmp_path / 'run', **every), whole)


def test_flipped_bit_in_a_checkpoint(tmp_path, capsys):
    run = Run(tmp_path)
    for k in (1, 2):
        run.save(k, dict(step=k, w=torch.full((1000,), float(k))))
    content = bytearray(run.checkpoints()[-1].read_bytes())
    content[-1] ^= 1
    run.checkpoints()[-1].write_bytes(content)
    assert (
        run.latest()['step'] == 1
        and 'skipped step_00000002.safetensors: damaged: its checksum' in capsys.readouterr().out
    )


def test_best_checkpoint_is_kept(tmp_path):
    run = Run(tmp_path, keep=2)
    for k, loss in enumerate((3.0, 1.0, 2.0, 2.0, 2.0), 1):
        run.log(k, loss=9.0, val_loss=loss)
        run.save(k, dict(step=k), 'val_loss')
    assert [p.stem for p in run.checkpoints()] == [
        'step_00000002',
        'step_00000004',
        'step_00000005',
    ] and run.saved.best().stem == 'step_00000002'


def test_run_with_other_settings(data, tmp_path):
    train_tokenizer(tiny, data, tmp_path, stop_after=1, **every)
    other = replace(tiny, train_tokenizer=replace(tiny.train_tokenizer, ema=0.5))
    with pytest.raises(ValueError) as e:
        train_tokenizer(other, data, tmp_path, **every)
    says(e, 'other settings (train.ema)', 'choose another folder', 'train.lr')


def test_checkpoint_without_its_structure(tmp_path):
    from safetensors.torch import save_file

    save_file(dict(w=torch.ones(2)), tmp_path / 'a.safetensors')
    with pytest.raises(ValueError) as e:
        load_state(tmp_path / 'a.safetensors')
    says(e, 'a.safetensors', 'not a complete checkpoint')


@pytest.mark.parametrize(
    'tail', ['{"step": 3, "lo', '{"step": 3, "stage_error": [.1,', '\0\0\0\0', '{']
)
def test_cut_last_line_of_the_log(tmp_path, tail):
    run = Run(tmp_path)
    run.log(1, loss=0.5)
    run.log(2, loss=0.4)
    run.save(2, dict(step=2))
    with open(tmp_path / 'metrics.jsonl', 'a') as f:
        f.write(tail)
    assert [m['step'] for m in run.metrics()] == [1, 2]
    run.latest()
    run.log(3, loss=0.3)
    assert [m['step'] for m in run.metrics()] == [1, 2, 3] and tail not in (
        tmp_path / 'metrics.jsonl'
    ).read_text().splitlines()


def poisoned(tok, data, where):
    "A task one of whose weights is NaN"
    task = TokenizerTask(tok, data, tiny.train_tokenizer, torch.device('cpu'))
    nn.init.constant_(where(task).weight, float('nan'))
    return task


@pytest.mark.parametrize(
    'where,terms',
    [
        (lambda t: t.model.decoder.conv_out, 'pixel, loss, psnr, grad_norm not'),
        (
            lambda t: t.model.encoder.conv_in,
            'pixel, quantiser, loss, psnr, stage_error, grad_norm not',
        ),
    ],
)
def test_nan_loss_stops_and_names_the_term(tok, data, where, terms):
    task = poisoned(tok, data, where)
    task.model.quantizer.codebook.started.fill_(True)
    others = {n: p.detach().clone() for n, p in task.model.named_parameters() if p.isfinite().all()}
    with pytest.raises(FloatingPointError) as e:
        task.step(1)
    says(e, f'step 1: {terms} finite', 'The last checkpoint is unharmed', 'a lower --lr')
    assert all(torch.equal(p, others[n]) for n, p in task.model.named_parameters() if n in others)


def test_nan_loss_leaves_the_last_checkpoint(data, tmp_path, monkeypatch):
    step = TokenizerTask.step

    def breaks(self, k):
        if k == 5:
            nn.init.constant_(last_layer(self.model.decoder), float('nan'))
        return step(self, k)

    monkeypatch.setattr(TokenizerTask, 'step', breaks)
    with pytest.raises(FloatingPointError, match='step 5: pixel'):
        train_tokenizer(tiny, data, tmp_path / 'run', **every)
    state = Run(tmp_path / 'run').latest()
    assert state['step'] == 4 and all(v.isfinite().all() for v in state['task']['model'].values())
    monkeypatch.undo()
    train_tokenizer(tiny, data, tmp_path / 'run', **every)
    assert len(Run(tmp_path / 'run').metrics()) == 6
