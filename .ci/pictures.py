"""Pictures that lessons and README show, drawn by code into nbs/images/: the whole, and its growth.

    .venv/bin/python .ci/pictures.py             # growth, diagrams
    .venv/bin/python .ci/pictures.py data/emoji  # page 90's pictures, too

Lines and letters are grey in the middle between black and white, and the background is left out: a
picture can be read on a light page and on a dark one. A lesson shows the copy in which its own part
has kept its colour.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch
from PIL import Image, ImageDraw, ImageFont

from nfig.bands.show import neighbours_figure, save_figure
from nfig.core.io import assets
from nfig.core.tensors import to_pil
from nfig.data.sources import load_data
from nfig.transformer.pipeline import NFIGPipeline
from nfig.use.sample import nearest, pipeline_figures

images = Path(__file__).resolve().parent.parent / 'nbs' / 'images'

ink = '#808080'  # can be read on white and on black
faded = '#b0b0b0'  # a part that is not the present lesson's
accents = {'bands': '#2a9d8f', 'tokenizer': '#3a7dc9', 'transformer': '#d1703c', 'data': '#8a6fc0'}


def draw_box(
    ax,  # axes to draw on
    x: float,  # centre
    y: float,  # centre
    text: str,  # the word in the box
    colour: str,  # of frame and word
    width: float = 1.25,  # of the box
):
    "Draw a rounded box with a word in it"
    corner = (x - width / 2, y - 0.4)
    style = 'round,pad=0.02,rounding_size=0.12'
    ax.add_patch(FancyBboxPatch(corner, width, 0.8, boxstyle=style, lw=1.4, fc='none', ec=colour))
    ax.text(x, y, text, ha='center', va='center', fontsize=8, color=colour)


def draw_arrow(
    ax,  # axes to draw on
    start: tuple,  # (x, y)
    end: tuple,  # (x, y)
    bend: float = 0.0,  # 0 is straight
):
    "Draw an arrow from one point to another"
    style = dict(arrowstyle='-|>', mutation_scale=9, lw=1.1, shrinkA=0, shrinkB=0)
    bow = f'arc3,rad={bend}'
    ax.add_patch(FancyArrowPatch(start, end, color=ink, connectionstyle=bow, **style))


def field_means(
    image,  # (H,W) array
    side: int,  # fields a row
):  # (side,side) array
    "Mean of an image over side x side fields"
    edges = np.linspace(0, len(image), side + 1).astype(int)
    spans = list(zip(edges, edges[1:]))
    return np.array([[image[a:b, c:d].mean() for c, d in spans] for a, b in spans])


def said_by_grids(
    image,  # (H,W) array
    scales: tuple,  # sides of the grids
) -> list:  # arrays (s,s): the first is the mean, each further one what is then still missing
    "What each grid adds to the sum of those before it: together they are the image, nearly"
    missing = np.array(image, dtype=float)
    grids = []
    for side in scales:
        grids.append(field_means(missing, side))
        edges = np.linspace(0, len(image), side + 1).astype(int)
        lengths = np.diff(edges)
        missing = missing - grids[-1].repeat(lengths, 0).repeat(lengths, 1)
    return grids


def draw_grid(
    ax,  # axes to draw on
    x: float,  # centre
    y: float,  # centre
    values,  # (s,s) array, positive where the grid adds light and negative where it takes some away
    colour: str,  # of the lines between the cells
    size: float = 0.62,  # of the square
):
    "Draw a square of coloured cells"
    half = size / 2
    place = (x - half, x + half, y - half, y + half)
    ax.imshow(values, extent=place, cmap='PuOr_r', vmin=-0.5, vmax=0.5, interpolation='nearest')
    thin = 0.4 if len(values) < 5 else 0.2
    for t in np.linspace(-half, half, len(values) + 1):
        ax.plot([x + t, x + t], [y - half, y + half], color=colour, lw=thin)
        ax.plot([x - half, x + half], [y + t, y + t], color=colour, lw=thin)


def draw_image(
    ax,  # axes to draw on
    x: float,  # centre
    y: float,  # centre
    image,  # (H,W) array
):
    "Draw a small picture"
    ax.imshow(image, extent=(x - 0.5, x + 0.5, y - 0.5, y + 0.5), cmap='gray')


def draw_tokenizer(
    ax,  # axes to draw on
    y: float,  # height of the row
    image,  # (H,W) array from 0 to 1
    scales: tuple,  # sides of the grids
    colour: dict,  # part -> colour
):
    "Draw the way from a picture to its token grids and back"
    at = [4.5 + 0.78 * i for i in range(len(scales))]
    for x in (0.6, 11.8):
        draw_image(ax, x, y, image)
    draw_box(ax, 2.1, y, 'encoder', colour['tokenizer'])
    draw_box(ax, 10.2, y, 'decoder', colour['tokenizer'])
    for x, side, grid in zip(at, scales, said_by_grids(image, scales)):
        draw_grid(ax, x, y, grid, colour['bands'])
        ax.text(x, y - 0.5, side * side, ha='center', va='center', fontsize=7, color=ink)
    for a, b in zip(at, at[1:]):
        ax.text((a + b) / 2, y, '+', ha='center', va='center', fontsize=10, color=ink)
    for a, b in ((1.15, 1.45), (2.77, 4.1), (at[-1] + 0.4, 9.53), (10.87, 11.25)):
        draw_arrow(ax, (a, y), (b, y))
    ax.text(3.4, y + 0.2, 'latent\n16x8x8', ha='center', fontsize=7, color=ink)
    ax.text(0.6, y - 0.72, 'image 3x32x32', ha='center', fontsize=7, color=ink)
    middle = (at[0] + at[-1]) / 2
    words = 'low to high frequencies: one token grid a stage'
    ax.text(middle, y + 0.58, words, ha='center', fontsize=8, color=colour['bands'])
    title = 'Tokenizer: a picture to six grids and back'
    ax.text(0.05, y + 1.0, title, fontsize=9, color=colour['tokenizer'])


def draw_generator(
    ax,  # axes to draw on
    y: float,  # height of the row
    image,  # (H,W) array from 0 to 1
    colour: dict,  # part -> colour
):
    "Draw the way from a class to a picture"
    draw_box(ax, 0.85, y, '"boot"', colour['data'])
    draw_box(ax, 3.0, y, 'transformer', colour['transformer'], width=1.6)
    draw_grid(ax, 5.3, y, said_by_grids(image, (1, 2, 3, 4))[-1], colour['bands'])
    draw_box(ax, 7.5, y, 'running sum', colour['bands'], width=1.6)
    draw_box(ax, 10.2, y, 'decoder', colour['tokenizer'])
    draw_image(ax, 11.8, y, image)
    for a, b in ((1.5, 2.18), (3.82, 4.93), (5.68, 6.68), (8.32, 9.55), (10.87, 11.25)):
        draw_arrow(ax, (a, y), (b, y))
    draw_arrow(ax, (7.5, y + 0.42), (3.0, y + 0.42), bend=0.28)
    labels = {(5.3, -0.55): 'grid of stage i', (4.37, 0.1): 'sample', (8.95, 0.1): 'after the last'}
    labels[(5.25, 0.6)] = 'brought down to the next grid'
    for (x, up), text in labels.items():
        ax.text(x, y + up, text, ha='center', fontsize=7, color=ink)
    title = 'Generator: a class to a picture,\nall tokens of a stage at once'
    ax.text(0.05, y + 0.95, title, fontsize=9, color=colour['transformer'])


def draw_whole(
    image,  # (H,W) array from 0 to 1
    scales: tuple = (1, 2, 3, 4, 6, 8),  # sides of the grids
    part: str = '',  # a key of `accents` that keeps its colour; all of them if empty
    width: float = 9.0,  # of the figure, in hundreds of pixels
) -> Figure:
    "Draw tokenizer and generator in one picture; ValueError on a part that is not in it"
    if part and part not in accents:
        raise ValueError(f'part {part!r} given: choose one of {", ".join(accents)}, or none')
    colour = {k: c if part in ('', k) else faded for k, c in accents.items()}
    fig = plt.figure(figsize=(9, 3.5), dpi=100 * width / 9, facecolor='none')  # letters shrink, too
    plt.close(fig)  # it is returned, and shown once
    ax = fig.add_axes([0, 0, 1, 1])
    draw_tokenizer(ax, 3.3, image, scales, colour)
    draw_generator(ax, 0.75, image, colour)
    ax.set(xlim=(0, 12.4), ylim=(-0.35, 4.5), aspect='equal')
    ax.axis('off')
    return fig


def draw_sum(
    ax,  # axes to draw on
    x: float,  # centre
    y: float,  # centre
    colour: str,  # of the sign and its circle
):
    "Draw a plus in a circle"
    ax.add_patch(Circle((x, y), 0.2, fc='none', ec=colour, lw=1.4))
    ax.text(x, y, '+', ha='center', va='center_baseline', fontsize=10, color=colour)


def draw_tensors() -> Figure:
    "Draw the way of the tensors through the transformer"
    fig = plt.figure(figsize=(8.4, 3.05), dpi=130, facecolor='none')
    plt.close(fig)
    ax = fig.add_axes([0, 0, 1, 1])
    ax.set(xlim=(0, 13.2), ylim=(1.6, 6.4), aspect='equal')
    ax.axis('off')
    blue = accents['tokenizer']
    red = accents['transformer']
    draw_box(ax, 1.2, 5.1, 'class  (B,)', ink, 2.0)
    draw_box(ax, 3.9, 5.1, 'class embedding\n(B, D)', red, 2.2)
    draw_box(ax, 8.6, 5.1, "blocks' modulations\n6 x (B, 1, D) each", red, 2.7)
    draw_box(ax, 11.9, 5.1, "head's modulation\n2 x (B, 1, D)", red, 2.4)
    draw_box(ax, 1.2, 3.7, 'start place\n(1, 1, D)', red, 2.0)
    draw_box(ax, 1.2, 2.2, 'sums so far\n(B, L-1, C)', blue, 2.0)
    draw_box(ax, 3.9, 2.2, 'linear C to D\n(B, L-1, D)', red, 2.2)
    draw_box(ax, 5.9, 3.7, 'tokens\n(B, L, D)', red, 1.3)
    draw_box(ax, 7.2, 2.2, 'position + stage\n(1, L, D)', red, 2.2)
    draw_box(ax, 9.3, 3.7, 'blocks, with the\nstairs (B, L, D)', red, 2.3)
    draw_box(ax, 11.9, 3.7, 'head\nlinear D to K', red, 1.9)
    draw_box(ax, 11.9, 2.2, 'logits\n(B, L, K)', blue, 1.9)
    draw_sum(ax, 3.9, 3.7, red)
    draw_sum(ax, 7.2, 3.7, red)
    across = {1.2: ((5.1, 2.22, 2.78), (3.7, 2.22, 3.68), (2.2, 2.22, 2.78))}
    across[3.9] = ((3.7, 4.12, 5.23),)
    across[7.2] = ((3.7, 6.57, 6.98), (3.7, 7.42, 8.13), (3.7, 10.47, 10.93))
    for rows in across.values():
        for y, start, end in rows:
            draw_arrow(ax, (start, y), (end, y))
    draw_arrow(ax, (5.02, 2.5), (5.6, 3.28))
    down = ((3.9, 4.68, 3.92), (8.6, 6.0, 5.52), (11.9, 6.0, 5.52), (9.0, 4.68, 4.12))
    for x, start, end in (*down, (11.9, 4.68, 4.12), (11.9, 3.28, 2.62), (7.2, 2.62, 3.48)):
        draw_arrow(ax, (x, start), (x, end))
    ax.plot([3.9, 3.9, 11.9], [5.52, 6.0, 6.0], color=ink, lw=1.1)
    ax.text(4.65, 3.82, 'first', fontsize=7, color=ink, ha='center')
    ax.text(5.72, 2.8, 'the others', fontsize=7, color=ink, ha='left')
    return fig


def draw_growth(
    path: Path,  # of the GIF
    model: str,  # a bundled pipeline
    columns: int,  # pictures a row
    seed: int = 0,  # of the first picture
):
    "An animated picture: one of every class after each grid, and how many tokens that took"
    pipe = NFIGPipeline.from_pretrained(model)
    scales = pipe.tokenizer.config.scales
    total = sum(s * s for s in scales)
    rows = -(-len(pipe.classes) // columns)
    frames, tokens = [], 0
    for side, pictures in zip(scales, pipe.partials(list(range(len(pipe.classes))), seed=seed)):
        tokens += side * side
        tiles = [o.resize((128, 128), Image.Resampling.NEAREST) for o in to_pil(pictures)]
        light = tiles[0].convert('L').getpixel((0, 0)) > 127  # what is around the pictures
        frame = Image.new('RGB', (columns * 132, rows * 132 + 36), 'white' if light else 'black')
        for i, tile in enumerate(tiles):
            frame.paste(tile, (2 + 132 * (i % columns), 2 + 132 * (i // columns)))
        said = f'{tokens} token{"s" if tokens > 1 else ""} of {total}'
        middle = (frame.width // 2, frame.height - 18)
        pen = ImageDraw.Draw(frame)
        font = ImageFont.load_default(22)
        pen.text(middle, said, fill=(100,) * 3 if light else (200,) * 3, font=font, anchor='mm')
        frames.append(frame.quantize(128, dither=Image.Dither.NONE))
    times = [1000] * (len(frames) - 1) + [3000]  # milliseconds
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=times, loop=0)


def draw_bundled(
    emoji: Path,  # folder of the emoji set, as `studies.make_emoji` makes it
):
    "What the bundled models draw, with the nearest of the pictures that they learnt from"
    for name, suffix in (('fashion-mnist', ''), ('emoji', '-emoji')):
        for what, figure in pipeline_figures(name, seed=0).items():
            if what != 'growth':  # it moves, see `draw_growth`
                save_figure(figure, images / f'{what}{suffix}.png')
    pipe = NFIGPipeline.from_pretrained('emoji')
    x = pipe(list(range(len(pipe.classes))), seed=0)
    near = nearest(x, load_data(emoji, x.shape[-1]))
    figure = neighbours_figure(x, near, names=pipe.classes)
    save_figure(figure, images / 'neighbours-emoji.png')


def main():
    "Draw all of them; what needs the emoji set only if its folder is given"
    draw_growth(images / 'growth.gif', 'fashion-mnist', columns=5)
    draw_growth(images / 'growth-emoji.gif', 'emoji', columns=6)
    if sys.argv[1:]:
        draw_bundled(Path(sys.argv[1]))
    stored = np.load(assets / 'fashion-mnist-5k.npz')
    boot = np.pad(stored['images'][np.argmax(stored['labels'] == 9)] / 255, 2)
    draw_whole(boot).savefig(images / 'whole.png', dpi=140)
    for part in ('bands', 'tokenizer', 'transformer'):
        draw_whole(boot, part=part).savefig(images / f'whole-{part}.png', dpi=100)
    draw_tensors().savefig(images / 'tensors.png', dpi=130)


if __name__ == '__main__':
    main()
