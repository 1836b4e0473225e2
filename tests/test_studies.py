"The studies: a case from pixels to a file, results that do not mix, and what counts as better."

from dataclasses import replace

import pytest

from nfig.data.sources import load_data
from studies import dropout, report
from studies.cases import case, studies
from studies.run import Measure, run_case, settings_of, settled


def test_a_case_from_pixels_to_its_file(tmp_path):
    "Two steps of each training; the file is there, is read, and is refused for other settings"
    data = load_data('fashion-mnist-5k', 32).subset(range(0, 5000, 125))
    study = replace(studies['orders'], steps=(2, 2), batch=8, n=20, images=None)
    out = tmp_path / 'results' / 'raster-0.json'
    assert not settled(out, settings_of(study))
    measure = Measure(data, 20, side=48)
    made = run_case('raster', 0, study, data, measure, tmp_path / 'runs', out)
    assert made['size']['tokens'] == 64 and made['tokenizer']['images'] == 20
    assert settled(out, settings_of(study))
    found = report.read(out.parent)
    assert report.values(found['raster'], 'gFD') == [made['generator']['FD-EffNetLite0']]
    with pytest.raises(ValueError, match='n 20, now 30'):
        settled(out, settings_of(replace(study, n=30)))


def test_committed_results_have_the_settings_of_their_study():
    folder = report.results / 'studies' / 'orders' / 'fashion-mnist'
    wanted = settings_of(studies['orders'])
    for records in report.read(folder).values():
        assert len(records) == 3 and all(r['settings'] == wanted for r in records)


def test_committed_results_of_the_dropout_study_are_alike():
    "One length, one size and one number of images for all, and a record that says how it was made"
    every = [o for v in report.read(report.results / 'dropout').values() for o in v]
    assert all(o['settings'] == every[0]['settings'] for o in every)
    for o in every:
        assert {'tokenizer', 'transformer', 'about'} <= set(o)
        assert dropout.case(o['case'], o['seed'], o['settings']['length']).train.steps == 1500


def test_cases_differ_in_what_they_say():
    var, phi = (case(name, studies['tokenizers']).tokenizer for name in ('VAR', 'VAR.no-phi'))
    assert (var.target, phi.target, phi.phi) == ('full', 'full', 0) and var.phi != 0
    with pytest.raises(ValueError, match="'VAR'"):
        case('VRA', studies['orders'])


def test_looks_differ_in_the_transformer_alone():
    every, last = (dropout.case(name, 0, 2) for name in ('area-50', 'area-50-sees1'))
    assert (every.transformer.sees, last.transformer.sees) == (None, 1)
    assert replace(last, transformer=every.transformer) == every
    with pytest.raises(ValueError, match="'sees1'"):
        dropout.case('area-50-see1', 0, 2)


def made(*decibels):
    return [dict(tokenizer=dict(psnr=v)) for v in decibels]


def test_what_is_clearly_better():
    "Three uncertainties, three seeds, and the sign of the measure"
    found = dict(VAR=made(20, 20.1, 20.2), ours=made(21, 21.1, 21.2), one=made(25))
    assert report.better(found, 'ours', 'VAR', 'PSNR') > 3
    assert report.best(found, 'PSNR') == 'one'
    lines = report.table(found, ['PSNR']).splitlines()
    assert '**21.1 ± 0.1**' in lines[3] and '*' not in lines[4]
