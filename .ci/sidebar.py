"""nbs/sidebar.yml: the core path first, then every chapter's other lessons in the order of their
numbers"""

from pathlib import Path

root = Path(__file__).resolve().parent.parent
titles = {
    '1_bands': '1. Bands',
    '2_tokenizer': '2. Tokenizer',
    '3_transformer': '3. Transformer',
    '4_data': '4. Data',
    '5_train': '5. Training',
    '6_evaluate': '6. Evaluation',
    '7_fast': '7. Speed',
    '8_use': '8. Using it',
    '9_results': '9. Results',
    '0_core': '0. Toolbox',
}
top = 'index.ipynb', 'course.ipynb', 'explore.ipynb'
last = ('modules.md',)  # written by docs.py
# What everybody reads, in this order; a name without its number, so that lessons can move
path = [
    '1_bands/whole',
    '1_bands/frequency',
    '1_bands/resample',
    '1_bands/orders',
    '2_tokenizer/patches',
    '2_tokenizer/codebook',
    '2_tokenizer/quantizer',
    '2_tokenizer/autoencoder',
    '2_tokenizer/frvae',
    '3_transformer/attention',
    '3_transformer/model',
    '3_transformer/sampling',
    '3_transformer/pipeline',
    '3_transformer/raster',
    '5_train/tokenizer',
    '5_train/transformer',
    '8_use/own',
    '9_results/figure_4',
    '9_results/study_orders',
    '9_results/related',
]
found = sorted((root / 'nbs').glob('[0-9]_*/[0-9]*.ipynb'))
lessons = {f'{p.parent.name}/{p.stem.split("_", 1)[1]}': f'{p.parent.name}/{p.name}' for p in found}
core_path = [lessons[name] for name in path if name in lessons]


def others() -> dict:  # {title: [lesson, ...]}
    "Every chapter's lessons that are not on the core path; ValueError for a folder without a title"
    if unknown := {p.parent.name for p in found} - set(titles):
        raise ValueError(f"no title for {', '.join(sorted(unknown))}: enter it in .ci/sidebar.py")
    rest = [name for name in lessons.values() if name not in core_path]
    chapters = {t: [n for n in rest if n.split('/')[0] == folder] for folder, t in titles.items()}
    return {title: names for title, names in chapters.items() if names}


def sidebar() -> str:  # the whole file
    "The core path, and behind it the chapters"
    lines = ['website:', '  sidebar:', '    contents:', *[f'      - {name}' for name in top]]
    for title, names in {'The course': core_path, **others()}.items():
        lines += [f'      - section: "{title}"', '        contents:']
        lines += [f'          - {name}' for name in names]
    return '\n'.join(lines + [f'      - {name}' for name in last]) + '\n'


if __name__ == '__main__':
    (root / 'nbs' / 'sidebar.yml').write_text(sidebar(), encoding='utf-8')
