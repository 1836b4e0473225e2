"""The site. `python .ci/docs.py` builds it in _docs/: it works from any folder that a web server
serves, and asks for nothing that lies elsewhere.

stage    notebooks, as nbdev prepares them, into _proc/; the code that they export is shown,
         instruments wait behind a picture, and a page with the import graph is added
render   _proc/ -> HTML with smalldocs
finish   the HTML to _docs/, beside it copies of the notebooks for Colab, and what the pages would
         fetch from elsewhere: models and runtime of the instruments, scripts and fonts of formulas;
         broken internal links end it"""

import ast
import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlparse

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root))  # the modules beside this file, not those of another checkout
proc = root / '_proc'
out = root / '_docs'
nbs = root / 'nbs'
colab = """# On Colab: the package, and the files that the lessons read
!git clone -q --depth 1 {git_url} && pip install -q ./nfig
%cd nfig/{folder}"""


def settings():
    from nbdev.config import get_config

    return get_config(path=root)


def read(path):
    return json.loads(path.read_text(encoding='utf-8'))


def write(nb, path):
    path.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')


def source(cell):
    return ''.join(cell['source'])


# Stage


def only_imports(code):
    return all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(code).body)


def defined(code):
    """What nbdev's links call the functions and classes of a cell.

    `name`, or `Class.method` for a patch
    """
    for n in ast.parse(code).body:
        if not isinstance(n, (ast.FunctionDef, ast.ClassDef)):
            continue
        patched = any('patch' in ast.unparse(d) for d in n.decorator_list)
        yield f'{ast.unparse(n.args.args[0].annotation)}.{n.name}' if patched else n.name


def show_exports(nb):
    """Code that is exported becomes code like any other, behind an anchor.

    Nbdev would put its signature in its place
    """
    cells = []
    for c in nb['cells']:
        text = source(c)
        exported = c['cell_type'] == 'code' and re.search(r'^#\| *export\b.*\n', text, re.M)
        if exported and not only_imports(text):
            c['source'] = text = text.replace(exported[0], '', 1)
            cells += (
                [markdown(''.join(f'<span id="{o.lower()}"></span>' for o in names))]
                if (names := [*defined(text)])
                else []
            )
        cells.append(c)
    nb['cells'] = cells


def markdown(text):
    return dict(cell_type='markdown', id=f'{abs(hash(text)):x}'[:8], metadata={}, source=text)


def copy_shown(folder):
    "The notebooks, with the code that they export"
    shutil.copytree(nbs, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns('.*', '_proc'))
    for path in folder.rglob('*.ipynb'):
        nb = read(path)
        show_exports(nb)
        write(nb, path)


def text_shown(c):
    "The Markdown that a cell without visible code shows, or nothing"
    shown = [
        o['data']['text/markdown']
        for o in c.get('outputs', [])
        if 'text/markdown' in o.get('data', {})
    ]
    return (
        ''.join(shown[0])
        if len(shown) == 1 and re.search(r'^#\| *echo: *false', source(c), re.M)
        else None
    )


def outside(link, folder):
    """Where a relative link of a page in `folder` leads in the repository, if it leaves nbs/.

    Nothing if it stays
    """
    to = os.path.normpath(os.path.join('nbs', folder, link))
    return None if to.startswith('nbs/') else to


def for_the_page(nb, path, cfg):
    """A staged notebook, changed in place.

    The HTML of instruments in place of widgets, links to files that are not on the site, and one
    to Colab; computed text becomes text, so that its links follow the pages' names
    """
    nb['cells'] = [markdown(t) if (t := text_shown(c)) else c for c in nb['cells']]
    name = path.name

    def link(m):
        to = outside(m[3], path.parent)
        if not to:
            return m[0]
        if m[1]:  # a picture: into the page, which asks for nothing outside of the site
            data = base64.b64encode((root / to).read_bytes()).decode()
            return f'{m[1]}{m[2]}data:image/png;base64,{data}'
        return f'{m[2]}{cfg.git_url}/blob/{cfg.branch}/{to}'

    for c in nb['cells']:
        if c['cell_type'] == 'markdown':
            c['source'] = re.sub(r'(!?)(\[[^\]]*\]\()(\.\./[^)#\s]*)', link, source(c))
    for o in (o for c in nb['cells'] for o in c.get('outputs', [])):
        if 'text/html' in o.get('data', {}):
            o['data'].pop('application/vnd.jupyter.widget-view+json', None)
            html = ''.join(o['data']['text/html'])
            o['data']['text/html'] = from_depth(html, len(path.parent.parts))
    colab = f'https://colab.research.google.com/github/{cfg.user}/{cfg.repo}/blob/gh-pages/colab'
    link = f'<a class="nfig-colab" href="{colab}/{name}">Open in Colab</a>'
    nb['cells'].insert(
        1 if name != 'index.ipynb' else 2, markdown(link if name != 'index.ipynb' else growth())
    )


def from_depth(html, depth):
    "An instrument's HTML for a page that lies so many folders deep"
    return html.replace("'instruments/page.js'", f"'{'../' * depth}instruments/page.js'")


def growth():
    "For the front page: the instrument in which an image grows, from the outputs of Explore"
    found = [
        ''.join(o['data']['text/html'])
        for c in read(nbs / 'explore.ipynb')['cells']
        for o in c.get('outputs', [])
        if 'text/html' in o.get('data', {})
    ]
    figure = next(f for f in found if 'data-kind="grow"' in f)
    return (
        'Press the button, and a trained model draws, in this page. '
        f'[More to play with](explore.ipynb).\n\n```{{=html}}\n{figure}\n```'
    )


def stage():
    "Fill _proc/"
    from nbdev.quarto import refresh_quarto_yml
    from nbdev.serve import proc_nbs

    cfg = settings()
    refresh_quarto_yml()
    with tempfile.TemporaryDirectory() as d:
        copy_shown(Path(d) / 'nbs')
        proc_nbs(path=Path(d) / 'nbs', force=True, n_workers=0)
    for path in proc.rglob('*.ipynb'):
        nb = read(path)
        for_the_page(nb, path.relative_to(proc), cfg)
        write(nb, path)
    (proc / 'modules.md').write_text(module_page(), encoding='utf-8')


# The import graph, from the code


def imports(path):
    """What a module imports from nfig, as `tokenizer.codebook`

    and, for names, as `tokenizer.codebook.Codebook`"""
    for n in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(n, ast.ImportFrom):
            base = ('nfig', *path.relative_to(root / 'nfig').parts[:-1])
            full = (
                '.'.join([*base[: len(base) - n.level + 1], *filter(None, [n.module])])
                if n.level
                else n.module
            )
            if (full + '.').startswith('nfig.'):
                yield from [full[5:], *(f'{full}.{a.name}'[5:] for a in n.names)]
        elif isinstance(n, ast.Import):
            yield from (a.name[5:] for a in n.names if a.name.startswith('nfig.'))


def modules():
    return {
        '.'.join(p.relative_to(root / 'nfig').with_suffix('').parts): p
        for p in sorted((root / 'nfig').rglob('*.py'))
        if p.stem[0] != '_'
    }


def graph():
    "{module: modules it imports}, in alphabetical order"
    names = modules()
    return {k: sorted({o for o in imports(p) if o in names and o != k}) for k, p in names.items()}


def layers(g):
    """Modules in rows: each stands one row below the lowest of those it imports.

    ValueError on a cycle
    """
    depth, left = {}, dict(g)
    while left:
        ready = [k for k, v in left.items() if all(o in depth for o in v)]
        if not ready:
            raise ValueError(f"modules that import each other: {', '.join(sorted(left))}")
        for k in ready:
            depth[k] = 1 + max((depth[o] for o in left.pop(k)), default=-1)
    return [[k for k in g if depth[k] == i] for i in range(max(depth.values()) + 1)]


def direct(g):
    "The graph without the arrows that follow from others"

    def below(k, seen):
        for o in g[k]:
            if o not in seen:
                seen.add(o)
                below(o, seen)
        return seen

    return {
        k: [o for o in v if not any(o in below(p, set()) for p in v if p != o)]
        for k, v in g.items()
    }


def drawing(g, pages, wide=158, high=64):
    "The graph as SVG: boxes are links, lines lead up to what is imported"
    rows = layers(g)
    width = wide * max(map(len, rows))
    height = high * len(rows)
    at = {
        k: ((i + 0.5) * width / len(row), (j + 0.5) * high)
        for j, row in enumerate(rows)
        for i, k in enumerate(row)
    }

    def line(start, end):
        "A curve from the top of one box to the bottom of another"
        (x, y), (u, v) = start, end
        return (
            f'<path d="M{x:.0f} {y - 13:.0f} C{x:.0f} {y - 42:.0f} '
            f'{u:.0f} {v + 42:.0f} {u:.0f} {v + 13:.0f}"/>'
        )

    def box(module, x, y):
        "A module's name, a link to its page"
        return (
            f'<a href="{pages[module]}">'
            f'<title>{module} imports {", ".join(g[module]) or "nothing of nfig"}</title>'
            f'<rect x="{x - 74:.0f}" y="{y - 13:.0f}" width="148" height="26" rx="5"/>'
            f'<text x="{x:.0f}" y="{y + 4:.0f}">{module}</text></a>'
        )

    lines = [line(at[k], at[o]) for k, v in direct(g).items() for o in v]
    boxes = [box(k, x, y) for k, (x, y) in at.items()]
    return (
        f'<svg class="nfig-graph" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="import graph of the package">{"".join(lines)}{"".join(boxes)}</svg>'
    )


def definitions(name):
    "Lines of a list: the public classes and functions of a module and the sentence that each has"
    for n in ast.parse(modules()[name].read_text(encoding='utf-8')).body:
        patched = any('patch' in ast.unparse(d) for d in getattr(n, 'decorator_list', ()))
        if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name[0] != '_' and not patched:
            says = (ast.get_docstring(n) or '').split('\n')[0]
            yield f'- `{n.name}`: {says}' if says else f'- `{n.name}`'


def module_page():
    "The page: the graph and a table, from the modules as they are"
    g = graph()
    pages = {
        m[1]: p.relative_to(nbs).as_posix()
        for p in lessons()
        if (m := re.search(r'#\| *default_exp ([\w.]+)', p.read_text(encoding='utf-8')))
    }
    says = {
        k: (ast.get_docstring(ast.parse(modules()[k].read_text(encoding='utf-8'))) or '').split(
            '\n'
        )[0]
        for k in g
    }
    page = drawing(
        g,
        {
            k: (Path(v).parent / output_name(proc / v)).as_posix()
            for k, v in pages.items()
            if (proc / v).exists()
        },
    )
    rows = '\n'.join(
        f'| [{k}]({pages[k]}) | {says[k]} | {", ".join(v) or "–"} |' for k, v in g.items()
    )
    names = '\n\n'.join(
        f'## [{k}]({pages[k]})\n\n{says[k]}\n\n' + '\n'.join(definitions(k)) for k in g
    )
    return f"""---
title: Modules
description: Every module, what it imports and what it defines, read from the code.
---

Every module is exported from one notebook, and imports only from notebooks with smaller numbers.
So there are no cycles, and the package can be read from the top: the first row needs nothing else
of `nfig`. A line leads up to what a module imports; lines that follow from others are left out.
Each box is a link.

```{{=html}}
{page}
```

| module | what it is for | imports |
|---|---|---|
{rows}

{names}
"""


# Render and finish


def output_name(path):
    "The name of the HTML page of a staged notebook"
    m = (
        re.search(r'^output-file: *(\S+)', source(read(path)['cells'][0]), re.M)
        if path.suffix == '.ipynb'
        else None
    )
    return m[1] if m else path.with_suffix('.html').name


def rename_staged():
    """smalldocs names a page after its file.

    Give each staged notebook the name of its page, in links and sidebar too
    """
    new = {p.name: output_name(p).replace('.html', '.ipynb') for p in proc.rglob('*.ipynb')}
    pattern = re.compile(
        r'(?<![\w.])('
        + '|'.join(map(re.escape, sorted(new, key=len, reverse=True)))
        + r')(?=[)#\s"]|$)',
        re.M,
    )
    for p in [*proc.rglob('*.ipynb'), proc / 'sidebar.yml', proc / 'modules.md']:
        if p.suffix != '.ipynb':
            p.write_text(
                pattern.sub(lambda m: new[m[1]], p.read_text(encoding='utf-8')), encoding='utf-8'
            )
            continue
        nb = read(p)
        for c in nb['cells']:
            if c['cell_type'] == 'markdown':
                c['source'] = pattern.sub(lambda m: new[m[1]], source(c))
            elif c['cell_type'] == 'raw':
                c['source'] = re.sub(r'^output-file:.*\n', '', source(c), flags=re.M)
        p.unlink()
        write(nb, p.with_name(new[p.name]))


def render():
    "HTML without Quarto"
    from smalldocs.site import build

    rename_staged()
    build(str(proc), quiet=True)


def lessons():
    "The notebooks of the site"
    return sorted(
        p for p in nbs.rglob('*.ipynb') if not any(o[0] in '._' for o in p.relative_to(nbs).parts)
    )


def for_colab(nb, git_url, folder):
    "A notebook with a first cell that installs the package and goes to the notebook's folder"
    first = dict(
        cell_type='code',
        id='colab',
        metadata={},
        execution_count=None,
        outputs=[],
        source=colab.format(git_url=git_url, folder=folder.as_posix()),
    )
    return nb | dict(cells=[first, *nb['cells']])


def add_instruments():
    "What the instruments and the formulas fetch; without a network, as much of it as there is"
    from nfig.use.widgets import BrowserFiles, npm_files

    try:
        shutil.copytree(npm_files('katex'), out / 'katex')
        BrowserFiles().write(out / 'instruments')
    except OSError as e:
        print(f'The site is not complete, some instruments will not start: {e}', file=sys.stderr)


def localise(page):
    "Formulas are set by the scripts and fonts beside the page, if they are there"
    if not (out / 'katex').is_dir():
        return
    text = page.read_text(encoding='utf-8')
    to = f'{"../" * (len(page.relative_to(out).parts) - 1)}katex'
    page.write_text(re.sub(r'https://cdn\.jsdelivr\.net/npm/katex@[.\d]+/dist', to, text), 'utf-8')


def finish():
    "The site in _docs/; exits with the broken links, if there are any"
    shutil.rmtree(out, ignore_errors=True)
    shutil.move(str(proc / '_docs'), out)
    (out / 'colab').mkdir()
    (out / '.nojekyll').touch()
    for p in lessons():
        write(
            for_colab(read(p), settings().git_url, p.parent.relative_to(root)),
            out / 'colab' / p.name,
        )
    add_instruments()
    for page in out.rglob('*.html'):
        localise(page)
    for sheet in out.rglob('*.css'):
        sheet.write_text(
            re.sub(r'@import url\(https?:[^)]*\);?', '', sheet.read_text('utf-8')), 'utf-8'
        )
    if broken := broken_links(out, settings().doc_host + settings().doc_baseurl):
        sys.exit('broken links:\n' + '\n'.join(broken))


class Links(HTMLParser):
    "Links and anchors of a page"

    def __init__(self, text):
        super().__init__()
        self.links, self.ids = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids |= {a[k] for k in ('id', 'name') if a.get(k)}
        self.links += [a[k] for k in ('href', 'src') if a.get(k) and tag not in ('base',)]


def broken_links(site, home):
    """Links of a built site that lead to no file or anchor of it.

    Addresses below `home` count as internal
    """
    pages = {
        p.resolve(): Links(p.read_text(encoding='utf-8')) for p in sorted(site.rglob('*.html'))
    }

    def missing(page, link):
        if link.startswith(home):
            link = '/' + link[len(home) :].lstrip('/')
        url = urlparse(link)
        if url.scheme or url.netloc or not link.strip('#'):
            return False
        to = (
            (
                (site if url.path.startswith('/') else page.parent) / unquote(url.path).lstrip('/')
            ).resolve()
            if url.path
            else page
        )
        if to.is_dir():
            to = to / 'index.html'
        return (
            not to.exists()
            or site.resolve() not in to.resolve().parents
            or bool(url.fragment and to in pages and unquote(url.fragment) not in pages[to].ids)
        )

    return [
        f'{page.relative_to(site.resolve())}: {link}'
        for page, found in pages.items()
        for link in dict.fromkeys(found.links)
        if missing(page, link)
    ]


if __name__ == '__main__':
    for step in sys.argv[1:] or ['stage', 'render', 'finish']:
        dict(stage=stage, render=render, finish=finish)[step]()
