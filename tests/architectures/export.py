#!/usr/bin/env python3
"""Exports the models of testdata/architectures: small ones of many architectures, by both exporters of torch.

    pip install torch torchvision timm transformers onnxscript
    python tests/architectures/export.py testdata/architectures [NAME-PART ...]

Weights are random, so only what they are drawn from is stored (see packed.py): a model takes some ten kilobytes.
"""

import io
import logging
import pathlib
import sys
import warnings

import detectors
import families
import onnx
import packed
import torch

# name -> (exporter, what makes the model and its example inputs). "dynamo" is the exporter of today, "script" the one
# before it, which traces; "any" is dynamo with an open batch size.
ROWS = {**families.TIMM, **families.TRANSFORMERS, **families.TORCHVISION, **detectors.ROWS}


def enliven(model, seed):
    """Parameters as training leaves them: gains about 1, biases, layer scales and running statistics that do something."""
    dice = torch.Generator().manual_seed(seed)

    def draw(p, centre, spread):
        p.copy_(centre + spread * torch.randn(p.shape, generator=dice))

    with torch.no_grad():
        for name, p in model.named_parameters():
            scale = any(part in name for part in ("gamma", "layer_scale", "lambda_"))
            if scale:
                draw(p, 0.3, 0.1)
            elif p.ndim <= 1:
                draw(p, *((1.0, 0.3) if name.endswith("weight") else (0.0, 0.1)))
            elif any(part in name for part in ("embed", "table", "token", "relative")):
                draw(p, 0.0, 0.5)
            else:
                draw(p, 0.0, p[0].numel() ** -0.5)
        for name, b in model.named_buffers():
            if name.endswith("running_mean"):
                draw(b, 0.0, 0.1)
            elif name.endswith("running_var"):
                draw(b, 1.3, 0.1)
    return model.eval()


def export(exporter, model, inputs):
    if exporter == "script":
        buffer = io.BytesIO()
        torch.onnx.export(model, inputs, buffer, dynamo=False, opset_version=17)
        return onnx.load_from_string(buffer.getvalue())
    open_batch = tuple({0: torch.export.Dim("batch")} for _ in inputs) if exporter == "any" else None
    program = torch.onnx.export(model, inputs, dynamo=True, dynamic_shapes=open_batch, verbose=False)
    return program.model_proto


def main():
    warnings.filterwarnings("ignore")
    logging.disable(logging.ERROR)
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    failed = 0
    for seed, (name, (exporter, make)) in enumerate(ROWS.items()):
        if sys.argv[2:] and not any(part in name for part in sys.argv[2:]):
            continue
        torch.manual_seed(seed)
        try:
            model, inputs = make()
            model = enliven(model, seed)
            with torch.no_grad():
                proto = export(exporter, model, inputs)
        except Exception as e:  # One library's change must not hide the other models.
            failed += 1
            print(f"FAIL {name}: {type(e).__name__}: {str(e).strip().splitlines()[:1]}", flush=True)
            continue
        size = packed.write(folder / f"{name}.onnx.xz", proto)
        print(f"ok   {name}: {size / 1e3:.0f} kB of {proto.ByteSize() / 1e6:.1f} MB", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
