"""From a model of timm to a verified file: export, quantize on pictures, compare, and run in onnxruntime.

    python from_torch.py PHOTOS [MODEL]

PHOTOS is a folder of a few hundred JPEG or PNG files; MODEL is a name that timm knows.
"""

import sys

import onnxruntime as ort
import timm
import torch

import fqvit_opt


def main(photos: str, name: str = "vit_tiny_patch16_224", pretrained: bool = True) -> fqvit_opt.Result:
    model = timm.create_model(name, pretrained=pretrained).eval()
    config = timm.data.resolve_model_data_config(model)
    size = config["input_size"]
    torch.onnx.export(
        model,
        (torch.zeros(1, *size),),
        f"{name}.onnx",
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        opset_version=17,
        dynamo=False,
    )
    crop = size[-1]
    result = fqvit_opt.quantize(
        f"{name}.onnx",
        photos,
        mean=config["mean"],
        std=config["std"],
        resize=round(crop / config["crop_pct"]),
    )
    print(result.report)
    result.save(f"{name}.q.onnx")
    ort.InferenceSession(f"{name}.q.onnx")
    return result


if __name__ == "__main__":
    main(*sys.argv[1:])
