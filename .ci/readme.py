"""README.md from nbs/index.ipynb, without Quarto.

Prose as it is, code as fences, links made to resolve from the top level
"""

import json
import re
from pathlib import Path

root = Path(__file__).resolve().parent.parent


def relink(
    md: str,  # Markdown of a cell in nbs/
) -> str:  # the same, readable from the top level
    "Point links and pictures that are relative to nbs/ there"
    return re.sub(r'(\]\(|(?:src|href)=")(?!https?:|mailto:|#|/)', r'\1nbs/', md).replace(
        'nbs/../', ''
    )


def output_text(
    o: dict,  # one output of a code cell
) -> str:  # what it printed or showed, as text
    "An output as Markdown; ValueError for a picture, which belongs in a file"
    data = o.get('data', {})
    if any(k.startswith('image/') for k in data):
        raise ValueError(
            'index.ipynb stores a figure in an output: save it under nbs/images/ and link it from '
            'a Markdown cell'
        )
    if 'text/markdown' in data:
        return relink(''.join(data['text/markdown']))
    text = ''.join(o.get('text') or data.get('text/plain') or '').rstrip()
    return text and f'```\n{text}\n```'


def cell_parts(
    cell: dict,  # one cell of the notebook
):  # blocks of Markdown
    "What a cell contributes; a cell with `#|hide` contributes nothing"
    src = ''.join(cell['source']).strip()
    if cell['cell_type'] == 'markdown':
        return [relink(src)]
    if cell['cell_type'] != 'code' or re.search(r'^#\|\s*hide', src, re.M):
        return []
    shown = not re.search(r'^#\|\s*echo:\s*false', src, re.M)
    lines = [line for line in src.splitlines() if shown and not line.startswith('#|')]
    code = '\n'.join(lines).strip()
    return [f'```python\n{code}\n```' if code else '', *map(output_text, cell.get('outputs', []))]


def readme(path=root / 'nbs/index.ipynb') -> str:  # the whole README
    "README.md as the notebook at `path` says it"
    cells = json.loads(Path(path).read_text(encoding='utf-8'))['cells']
    head = '<!-- Generated from nbs/index.ipynb by `make readme`: edit the notebook. -->'
    return '\n\n'.join([head, *[p for c in cells for p in cell_parts(c) if p]]) + '\n'


if __name__ == '__main__':
    (root / 'README.md').write_text(readme(), encoding='utf-8')
