#!/usr/bin/env python3
"""Holds pictures to Pillow: formats, orientations, filters, ways to fit, and what transformers and timm write beside a model.

A model that returns its input shows what `fqvit-opt` makes of a picture; here the same is made with Pillow.

Usage: pictures_cross.py fqvit-opt
"""
import json
import math
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image, ImageOps, features

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
HALF = ([0.5] * 3, [0.5] * 3)
CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
SIDE = 32


def picture(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(11)
    y, x = np.mgrid[0:height, 0:width]
    a = np.stack([128 + 90 * np.sin(x / 7.0 + c) * np.cos(y / (5.0 + c)) for c in range(3)], -1)
    a[height // 4 : height // 2, width // 3 : width // 2] = [220, 40, 90]
    return Image.fromarray((a + rng.normal(0, 12, a.shape)).clip(0, 255).astype(np.uint8))


def formats(folder: pathlib.Path) -> None:
    """One picture in every form that people have."""
    im = picture(61, 47)
    w, h = im.size
    alpha = Image.fromarray((np.mgrid[0:h, 0:w][1] * 3).astype(np.uint8))
    im.save(folder / "rgb.png")
    im.save(folder / "rgb.bmp")
    im.convert("P", palette=Image.ADAPTIVE, colors=16).save(folder / "palette.bmp")
    im.convert("L").save(folder / "grey.bmp")
    im.save(folder / "lossless.webp", lossless=True)
    rgba = im.convert("RGBA")
    rgba.putalpha(alpha)
    rgba.save(folder / "alpha.png")
    # Lossless WebP may lose colours below no alpha; `exact` keeps them.
    rgba.save(folder / "alpha.webp", lossless=True, exact=True)
    im.convert("LA").save(folder / "grey_alpha.png")
    im.convert("1").save(folder / "one_bit.png")
    im.convert("P", palette=Image.ADAPTIVE, colors=7).save(folder / "palette.png", bits=4, transparency=1)
    im.save(folder / "named_wrong.jpg", "PNG")
    im.save(folder / "quality.webp", quality=80)
    im.save(folder / "rgb.jpg", quality=90)
    im.convert("L").save(folder / "grey.jpg", quality=90)
    im.convert("CMYK").save(folder / "cmyk.jpg", quality=90)
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        im.save(folder / f"turned{turn}.jpg", quality=90, exif=exif)
    exif = Image.Exif()
    exif[0x0112] = 6
    im.save(folder / "turned6.png", exif=exif)
    im.save(folder / "turned6.webp", lossless=True, exif=exif)


def identity(path: pathlib.Path, dtype: int, channels: int = 3) -> None:
    shape = ["n", channels, SIDE, SIDE]
    x, y = helper.make_tensor_value_info("x", dtype, shape), helper.make_tensor_value_info("y", dtype, shape)
    g = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    onnx.save(helper.make_model(g, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


class Ours:
    """What the program makes of a folder, by name of the picture."""

    def __init__(self, program: str, folder: pathlib.Path) -> None:
        self.program, self.folder = program, folder

    def __call__(self, model: pathlib.Path, pictures: pathlib.Path, *flags: str) -> dict[str, np.ndarray]:
        out = self.folder / "out.npz"
        call = [self.program, "verify", model, model, "--data", pictures, "--outputs", out, "--no-bench", "--quiet"]
        subprocess.run([*map(str, call), *flags], check=True, stdout=subprocess.DEVNULL)
        names = sorted(p.name for p in pictures.iterdir())
        return dict(zip(names, np.load(out)["y"], strict=True))


def load(path: pathlib.Path, upright: bool = True) -> Image.Image:
    im = Image.open(path)
    return (ImageOps.exif_transpose(im) if upright else im).convert("RGB")


def crop(im: Image.Image, offset) -> Image.Image:
    left, top = offset(im.width - SIDE), offset(im.height - SIDE)
    return im.crop((left, top, left + SIDE, top + SIDE))


def floor_half(n: int) -> int:
    return n // 2


def near_half(n: int) -> int:
    return int(round(n / 2))


def normal(im: Image.Image, mean, std) -> np.ndarray:
    x = np.asarray(im, np.float32) / np.float32(255)
    return ((x - np.float32(mean)) / np.float32(std)).transpose(2, 0, 1)


def short(im: Image.Image, side: int, how, rule) -> Image.Image:
    w, h = im.size
    return im.resize((rule(w, side, min(w, h)), rule(h, side, min(w, h))), how)


def to_nearest(n: int, side: int, shortest: int) -> int:
    return round(n * (side / shortest))


def whole_part(n: int, side: int, shortest: int) -> int:
    return int(side * n / shortest)


def letterboxed(im: Image.Image, side: int, how, mean) -> Image.Image:
    by = side / max(im.size)
    small = im.resize((round(im.width * by), round(im.height * by)), how)
    out = Image.new("RGB", (side, side), tuple(int(math.floor(255 * m + 0.5)) for m in mean))
    out.paste(small, ((side - small.width) // 2, (side - small.height) // 2))
    return out


failed = []


def check(what: str, got: np.ndarray, want: np.ndarray, most: float, mean: float) -> None:
    d = np.abs(got.astype(np.float64) - want.astype(np.float64))
    if d.max() > most or d.mean() > mean:
        failed.append(what)
        print(f"FAILED {what}: largest {d.max():.4f}, mean {d.mean():.4f}")


def every_format(ours: Ours, folder: pathlib.Path) -> None:
    pictures = folder / "formats"
    pictures.mkdir()
    formats(pictures)
    model = folder / "bytes.onnx"
    identity(model, TensorProto.UINT8)
    for flags, upright in (([], True), (["--exif", "ignore"], False)):
        for name, got in ours(model, pictures, "--resize", "0", *flags).items():
            want = np.asarray(crop(load(pictures / name, upright), floor_half)).transpose(2, 0, 1)
            # PNG, BMP and lossless WebP have no freedom; the decoders of JPEG and WebP have a little.
            lossy = name.endswith(".jpg") and not name.startswith("named") or name == "quality.webp"
            check(f"{name} {flags}", got, want, *((3, 0.2) if lossy else (0, 0)))
    grey = folder / "grey.onnx"
    identity(grey, TensorProto.UINT8, 1)
    got = ours(grey, pictures, "--resize", "0")["rgb.png"][0]
    check("luma", got, np.asarray(crop(load(pictures / "rgb.png"), floor_half).convert("L")), 0, 0)


def every_filter(ours: Ours, folder: pathlib.Path) -> None:
    pictures = folder / "sizes"
    pictures.mkdir()
    sizes = {"wide": (101, 47), "tall": (49, 90), "odd": (67, 63), "small": (21, 30)}
    for name, size in sizes.items():
        picture(*size).save(pictures / f"{name}.png")
    model = folder / "bytes.onnx"
    filters = {"nearest": 0, "box": 4, "bilinear": 2, "hamming": 5, "bicubic": 3, "lanczos": 1}
    bytes_of = lambda im: np.asarray(im).transpose(2, 0, 1)  # noqa: E731
    for name, how in filters.items():
        flags = ["--interpolation", name]
        cases = {
            "--resize 40": lambda im: crop(short(im, 40, how, to_nearest), floor_half),
            "--crop-pct 0.9": lambda im: crop(short(im, 35, how, whole_part), near_half),
            "--fit squash": lambda im: im.resize((SIDE, SIDE), how),
            "--fit squash --crop-pct 0.8": lambda im: crop(im.resize((40, 40), how), near_half),
            "--fit letterbox": lambda im: letterboxed(im, SIDE, how, IMAGENET[0]),
        }
        for text, make in cases.items():
            for file, got in ours(model, pictures, *flags, *text.split()).items():
                want = bytes_of(make(load(pictures / file)))
                # Pillow takes rows or columns first, whichever is cheaper; between the two it rounds to a level.
                mean = 0.3 if "squash" in text else 0.02
                # Whether a pixel on the very edge of a box is inside it hangs on the last bit of the scale.
                most = 0 if name == "nearest" else 32 if name == "box" and "squash" in text else 1
                check(f"{name} {text} {file}", got, want, most, 0 if name == "nearest" else mean)


def every_config(ours: Ours, folder: pathlib.Path) -> None:
    """What others write beside a model is followed, and a flag counts before it."""
    pictures = folder / "sizes"

    def squash(side, how, norm):
        return lambda im: normal(crop(im.resize((side, side), how), floor_half), *norm)

    def cut(side, how, norm, rule=whole_part, offset=floor_half):
        return lambda im: normal(crop(short(im, side, how, rule), offset), *norm)

    vit = {
        "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": HALF[0], "image_std": HALF[1],
        "image_processor_type": "ViTImageProcessor", "resample": 2, "rescale_factor": 1 / 255,
        "size": {"height": SIDE, "width": SIDE},
    }  # fmt: skip
    clip = {
        "crop_size": {"height": SIDE, "width": SIDE}, "do_center_crop": True, "do_resize": True, "image_mean": CLIP[0],
        "image_std": CLIP[1], "resample": 3, "size": {"shortest_edge": 36}, "feature_extractor_type": "CLIPFeatureExtractor",
    }  # fmt: skip
    timm = {"input_size": [3, SIDE, SIDE], "interpolation": "bicubic", "mean": HALF[0], "std": HALF[1], "crop_pct": 0.9}
    p, t, c = "preprocessor_config.json", "config.json", "data_config.json"
    rows = [
        (p, vit, [], squash(SIDE, 2, HALF)),
        (p, {**vit, "size": SIDE, "resample": "bicubic"}, [], squash(SIDE, 3, HALF)),
        (p, {**vit, "do_normalize": False}, [], squash(SIDE, 2, ([0.0], [1.0]))),
        (p, {**vit, "do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3}, [], squash(SIDE, 2, HALF)),
        # Sizes for 64 pixels, and a model of 32.
        (p, {**vit, "size": {"height": 80, "width": 80}, "do_center_crop": True, "crop_size": 64}, [], squash(40, 2, HALF)),
        (p, clip, [], cut(36, 3, CLIP)),
        (p, {**clip, "size": 36, "crop_size": SIDE}, [], cut(36, 3, CLIP)),
        (p, {**clip, "size": {"shortest_edge": SIDE}, "do_center_crop": None, "crop_pct": 0.875, "crop_size": None}, [],
         cut(36, 3, CLIP)),
        (t, {"architecture": "vit_tiny", "pretrained_cfg": timm}, [], cut(35, 3, HALF, offset=near_half)),
        (c, {**timm, "interpolation": "bilinear", "crop_mode": "squash"}, [],
         lambda im: normal(crop(im.resize((35, 35), 2), near_half), *HALF)),
        (p, vit, ["--interpolation", "bicubic"], squash(SIDE, 3, HALF)),
        (p, vit, ["--mean", "0.485", "0.456", "0.406", "--std", "0.229", "0.224", "0.225"], squash(SIDE, 2, IMAGENET)),
        (p, vit, ["--preset", "clip", "--resize", "40"], cut(40, 3, CLIP, rule=to_nearest)),
        (p, vit, ["--preprocessor", "none"], cut(37, 3, IMAGENET, rule=to_nearest)),
    ]  # fmt: skip
    for i, (name, config, flags, make) in enumerate(rows):
        beside = folder / f"config{i}"
        # A repository of exported models has the file a folder above.
        at = beside / "onnx" if i % 2 else beside
        at.mkdir(parents=True)
        identity(at / "model.onnx", TensorProto.FLOAT)
        (beside / name).write_text(json.dumps(config))
        for file, got in ours(at / "model.onnx", pictures, *flags).items():
            level = 1 / 255 / 0.22
            check(f"{name} {i} {flags} {file}", got, make(load(pictures / file)), 1.01 * level, 0.3 * level)


def every_preset(ours: Ours, folder: pathlib.Path) -> None:
    pictures, model = folder / "sizes", folder / "float.onnx"
    identity(model, TensorProto.FLOAT)
    for names, (mean, std) in {
        ("imagenet", "imagenet_default", "deit"): IMAGENET,
        ("inception", "imagenet_inception", "imagenet-standard"): HALF,
        ("openai_clip", "CLIPImageProcessor"): CLIP,
    }.items():
        for name in names:
            side = SIDE if "clip" in name.lower() else 37
            for file, got in ours(model, pictures, "--preset", name).items():
                want = normal(crop(short(load(pictures / file), side, 3, to_nearest), floor_half), mean, std)
                check(f"preset {name} {file}", got, want, 1.01 / 255 / 0.22, 0.001)


def main() -> int:
    program = str(pathlib.Path(sys.argv[1]).resolve())
    assert features.check("webp")
    with tempfile.TemporaryDirectory() as t:
        folder = pathlib.Path(t)
        ours = Ours(program, folder)
        every_format(ours, folder)
        every_filter(ours, folder)
        every_config(ours, folder)
        every_preset(ours, folder)
    print(f"pictures: {len(failed)} differ from Pillow's" if failed else "pictures are those of Pillow")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
