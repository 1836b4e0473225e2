"""The house: number order is reading order is import order, every import names the module where a
thing is defined, and what is beside the package stays beside it."""

import ast
import importlib.util
import json
import re
from pathlib import Path

import nfig

root = Path(__file__).resolve().parent.parent
lessons = sorted((root / 'nbs').glob('[0-9]_*/*.ipynb'))
sources = {
    '.'.join(p.relative_to(root).with_suffix('').parts): p
    for folder in ('nfig', 'bench', 'studies')
    for p in sorted((root / folder).rglob('*.py'))
    if p.stem[0] != '_'
}
trees = {name: ast.parse(p.read_text(encoding='utf-8')) for name, p in sources.items()}
package = [name for name in sources if name.startswith('nfig.')]


def exports():
    "{module: number of the lesson that exports it}"
    found = {}
    for p in lessons:
        m = re.search(r'#\| *default_exp ([\w.]+)', p.read_text(encoding='utf-8'))
        if m:
            found['nfig.' + m[1]] = int(p.name[:2])
    return found


number = exports()


def imported(name, tree):
    "(module, name or None) of each import of ours in the code of module `name`, wherever it stands"
    for n in ast.walk(tree):
        if isinstance(n, ast.ImportFrom):
            base = name.split('.')[: -n.level] if n.level else []
            module = '.'.join([*base, *filter(None, [n.module])])
            for a in n.names:
                if f'{module}.{a.name}' in sources:
                    yield f'{module}.{a.name}', None
                elif module.split('.')[0] in ('nfig', 'bench', 'studies'):
                    yield module, a.name
        elif isinstance(n, ast.Import):
            for a in n.names:
                if a.name in sources:
                    yield a.name, None


def defined(tree):
    "Names that a module makes itself"
    names = set()
    for n in tree.body:
        if isinstance(n, (ast.FunctionDef, ast.ClassDef)):
            names.add(n.name)
        elif isinstance(n, (ast.Assign, ast.AnnAssign)):
            targets = n.targets if isinstance(n, ast.Assign) else [n.target]
            names |= {o.id for t in targets for o in ast.walk(t) if isinstance(o, ast.Name)}
    return names


def test_each_lesson_lies_in_its_chapter_and_exports_its_module():
    for p in lessons:
        chapter, folder = p.parent.name.split('_', 1)
        assert re.fullmatch(chapter + r'[0-9]_[a-z0-9_]+\.ipynb', p.name), (
            f'{p.name} does not belong into {p.parent.name}'
        )
        m = re.search(r'#\| *default_exp ([\w.]+)', p.read_text(encoding='utf-8'))
        assert not m or m[1] == f'{folder}.{p.stem[3:]}', f'{p.name} exports {m[1]}'
    assert set(number) == set(package), 'a module without a lesson, or a lesson without its module'
    numbers = [p.name[:2] for p in lessons]
    assert len({*numbers}) == len(numbers), 'two lessons have the same number'


def test_there_are_at_most_48_modules():
    assert len(package) <= 48


def test_imports_have_smaller_numbers():
    "A reader has met what a module imports; and a lesson exports it"
    links = [(name, module) for name in package for module, _ in imported(name, trees[name])]
    assert not [o for o in links if o[1] not in number or number[o[1]] >= number[o[0]]]


def test_evaluation_does_not_import_training():
    assert not [
        (n, m)
        for n in package
        if n.startswith('nfig.evaluate.')
        for m, _ in imported(n, trees[n])
        if m.startswith('nfig.train')
    ]


def wrong_home(name, tree):
    "Imports that name a module which does not define the thing"
    return [
        f'from {m} import {a}'
        for m, a in imported(name, tree)
        if a
        and not (m == 'nfig' and a in nfig._homes)  # the face
        and (m not in trees or a != '*' and a not in defined(trees[m]))
    ]


def test_imports_name_the_module_that_defines():
    tests = {
        p.stem: ast.parse(p.read_text(encoding='utf-8')) for p in (root / 'tests').glob('*.py')
    }
    assert not {k: w for k, tree in (trees | tests).items() if (w := wrong_home(k, tree))}


def code_of(path):
    "The code cells of a notebook as one tree each, without what only IPython understands"
    for c in json.loads(path.read_text(encoding='utf-8'))['cells']:
        if c['cell_type'] == 'code':
            yield ast.parse(re.sub(r'^[!%].*', 'pass', ''.join(c['source']), flags=re.M))


def test_lessons_import_from_where_things_are_defined():
    pages = [
        p
        for p in (root / 'nbs').rglob('[a-z0-9]*.ipynb')
        if not any(o[0] in '._' for o in p.relative_to(root).parts)
    ]
    wrong = {p.name: [w for tree in code_of(p) for w in wrong_home('lesson', tree)] for p in pages}
    assert not {k: w for k, w in wrong.items() if w}


def test_wrong_homes_are_found():
    "The check itself: a name that a module only imports, and one that nobody has"
    wrong = ['from nfig.core.config import Tensor', 'from nfig.tokenizer.quantizer import Codebook']
    right = 'from nfig.tokenizer.codebook import Codebook'
    assert wrong_home('x', ast.parse('\n'.join([*wrong, right]))) == wrong


def test_the_package_knows_nothing_of_benches_and_studies():
    assert not [
        (n, m) for n in package for m, _ in imported(n, trees[n]) if not m.startswith('nfig')
    ]


def test_sidebar_is_made_from_the_numbers():
    spec = importlib.util.spec_from_file_location('sidebar', root / '.ci' / 'sidebar.py')
    mod = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mod)
    text = mod.sidebar()
    assert text == (root / 'nbs' / 'sidebar.yml').read_text(encoding='utf-8'), 'run `make prepare`'
    assert set(re.findall(r'- (\S+\.ipynb)', text)) == {
        p.relative_to(root / 'nbs').as_posix()
        for p in (root / 'nbs').rglob('*.ipynb')
        if not any(o[0] in '._' for o in p.relative_to(root).parts)
    }


def unanswered(page):
    "Beginnings of a page's exercises that are not followed by a folded answer, form included"
    cells = json.loads(page.read_text(encoding='utf-8'))['cells']
    text = '\n'.join(''.join(c['source']) for c in cells)
    fold = re.compile(r'<details><summary>Answer</summary>\n\n.*?\n\n</details>', re.S)
    return [t[:60] for t in text.split('**Exercise')[1:] if not fold.search(t)]


def test_every_exercise_has_a_folded_answer():
    pages = [*lessons, *(root / 'nbs').glob('*.ipynb')]
    asked = sum(p.read_text(encoding='utf-8').count('**Exercise') for p in pages)
    assert asked > 50  # they are found
    assert {p.name: u for p in pages if (u := unanswered(p))} == {}
