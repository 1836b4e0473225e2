"The explorers in a real browser: a key moves a slider, the pictures change, and no log holds a traceback."

import json
from pathlib import Path

import pytest
from browser import lab, move, sources, traceback_in, views, voila

root = Path(__file__).resolve().parent.parent


def changed(page, view, handle=-1, key='ArrowRight'):
    before = sources(view)
    move(page, view, handle, key)
    return [a != b for a, b in zip(before, sources(view))]


@pytest.mark.needs('chromium')
def test_app(tmp_path):
    with voila(tmp_path) as (page, log):
        band, mix, stage, tok = (views(page).nth(i) for i in range(4))
        assert views(page).count() == 4
        for view in (band, mix, stage):
            assert changed(page, view) == [True] * 3
        assert changed(page, tok, key='ArrowLeft') == [
            False,
            True,
            True,
            True,
        ]  # the original stays

        before = sources(stage)  # draw the stage anew
        stage.get_by_role('button', name='draw this stage anew').click()
        page.wait_for_function(
            "before => document.querySelectorAll('img.widget-image').length && ![...document.querySelectorAll('img.widget-image')].some(o => o.src==before)",
            arg=before[0],
        )

        (tmp_path / 'words.txt').write_text('no picture')  # one's own picture, and what is none
        for name, expected in (('words.txt', 'words.txt cannot be read'), ('cat.png', None)):
            path = tmp_path / name
            if expected is None:
                picture(path)
            before = sources(tok)
            with page.expect_file_chooser() as chosen:
                tok.get_by_role('button', name='yours').click()
            chosen.value.set_files(path)
            if expected:
                tok.get_by_text(expected).wait_for()
            else:
                page.wait_for_function(
                    "before => ![...document.querySelectorAll('img.widget-image')].some(o => o.src==before)",
                    arg=before[0],
                )
        assert tok.locator('select').first.input_value() == 'cat.png'
        assert not traceback_in(log()) and not traceback_in(page.inner_text('body'))


def picture(path):
    from PIL import Image

    Image.radial_gradient('L').resize((80, 60)).save(path)


@pytest.mark.needs('chromium')
def test_notebook_in_jupyterlab(tmp_path):
    with lab(tmp_path) as (page, log):
        view = views(page).first
        assert changed(page, view) == [True] * 3
        assert not page.locator(
            '[data-mime-type="application/vnd.jupyter.stderr"], [data-mime-type="application/vnd.jupyter.error"]'
        ).count()
        assert not [l for l in traceback_in(log()) if 'Traceback' in l]


@pytest.mark.parametrize('path', sorted((root / 'nbs').glob('*.ipynb')), ids=lambda p: p.stem)
def test_no_widget_state_is_stored(path):
    "Stored state is large and of no use without a kernel; run notebooks with `store_widget_state=False`, or leave JupyterLab's saving of it off"
    assert 'widgets' not in json.loads(path.read_text(encoding='utf-8'))['metadata']
