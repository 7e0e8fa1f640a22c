#!/usr/bin/env python3
"""Makes the small pictures of this folder and pil.npz, what PIL makes of them.

NAME: open, convert to RGB, resize the short side to 40 with the antialiased bicubic filter, centre crop 32; bytes,
channels last. NAME.raw: the same without the resize. normalised: rgb.png without the resize, as
(x / 255 - mean) / std with the ImageNet values, float32, channels first.
Needs: pip install numpy pillow
"""
import os
import numpy as np
from PIL import Image

here = os.path.dirname(os.path.abspath(__file__))
rng = np.random.default_rng(7)
h, w = 75, 101
y, x = np.mgrid[0:h, 0:w]
base = np.stack([128 + 90 * np.sin(x / 7.0 + c) * np.cos(y / (5.0 + c)) for c in range(3)], -1)
base[20:50, 30:70] = [220, 40, 90]
base += rng.normal(0, 12, base.shape)
rgb = Image.fromarray(base.clip(0, 255).astype(np.uint8), "RGB")

exif = Image.Exif()
exif[0x0112] = 6  # "rotate by 90 degrees", which open() does not do
rgb.save(os.path.join(here, "rgb.png"))
rgb.save(os.path.join(here, "rgb.jpg"), quality=90, subsampling=0)
rgb.save(os.path.join(here, "subsampled.jpg"), quality=85, subsampling=2)
rgb.save(os.path.join(here, "progressive.jpg"), quality=90, progressive=True)
rgb.save(os.path.join(here, "exif.jpg"), quality=90, exif=exif)
rgb.convert("L").save(os.path.join(here, "grey.png"))
rgb.convert("L").save(os.path.join(here, "grey.jpg"), quality=90)
rgb.convert("CMYK").save(os.path.join(here, "cmyk.jpg"), quality=90)
rgb.convert("P", palette=Image.ADAPTIVE, colors=32).save(os.path.join(here, "palette.png"))
rgba = rgb.convert("RGBA")
rgba.putalpha(Image.fromarray((x * 2).astype(np.uint8), "L"))
rgba.save(os.path.join(here, "rgba.png"))
rgb.resize((120, 75), Image.NEAREST).transpose(Image.ROTATE_90).save(os.path.join(here, "tall.png"))

mean = np.array([0.485, 0.456, 0.406], np.float32)
std = np.array([0.229, 0.224, 0.225], np.float32)
out = {}


def crop(im, size=32):
    w, h = im.size
    l, t = (w - size) // 2, (h - size) // 2
    return np.asarray(im.crop((l, t, l + size, t + size)))


for name in sorted(os.listdir(here)):
    if not name.endswith((".png", ".jpg")):
        continue
    im = Image.open(os.path.join(here, name)).convert("RGB")
    out[name + ".raw"] = crop(im)
    w, h = im.size
    s = 40 / min(w, h)
    im = im.resize((round(w * s), round(h * s)), Image.BICUBIC)
    out[name] = crop(im)
out["normalised"] = ((out["rgb.png.raw"].astype(np.float32) / 255 - mean) / std).transpose(2, 0, 1)
np.savez_compressed(os.path.join(here, "pil.npz"), **out)
