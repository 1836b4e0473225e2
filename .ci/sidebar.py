"nbs/sidebar.yml from the numbers of folders and notebooks: chapters 1 to 9, then 0, where one looks things up"

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
top = 'index.ipynb', 'explore.ipynb', 'architecture.md'  # the last is written by docs.py


def sidebar(nbs=root / 'nbs') -> str:  # the whole file
    "Every chapter with its lessons in the order of their numbers; ValueError for a folder without a title"
    folders = {p.parent.name for p in Path(nbs).glob('[0-9]_*/[0-9]*.ipynb')}
    if unknown := folders - set(titles):
        raise ValueError(f"no title for {', '.join(sorted(unknown))}: enter it in .ci/sidebar.py")
    lines = ['website:', '  sidebar:', '    contents:', *[f'      - {name}' for name in top]]
    for folder in [name for name in titles if name in folders]:
        lines += [f'      - section: "{titles[folder]}"', '        contents:']
        lines += [
            f'          - {folder}/{p.name}'
            for p in sorted((Path(nbs) / folder).glob('[0-9]*.ipynb'))
        ]
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    (root / 'nbs' / 'sidebar.yml').write_text(sidebar(), encoding='utf-8')
