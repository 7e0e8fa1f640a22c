"""Detectors of torchvision on transformers, as FQ-ViT's own table has them, scaled down."""

import timm
import torch
import torchvision
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.ssd import SSD
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

CLASSES = 5
SIDE = 128


class Detector(torch.nn.Module):
    """One picture in, boxes, labels, scores and perhaps masks out."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return tuple(self.model([x[0]])[0].values())


class SwinPyramid(torch.nn.Module):
    """Three levels of a Swin transformer and a feature pyramid over them."""

    def __init__(self):
        super().__init__()
        swin = torchvision.models.SwinTransformer(
            patch_size=[4, 4], embed_dim=24, depths=[2, 2, 2], num_heads=[2, 2, 4], window_size=[4, 4]
        )
        self.features = swin.features
        self.pyramid = FeaturePyramidNetwork([24, 48, 96], 32)
        self.out_channels = 32

    def forward(self, x):
        levels = {}
        for i, part in enumerate(self.features):
            x = part(x)
            if i in (1, 3, 5):
                levels[str(len(levels))] = x.permute(0, 3, 1, 2)
        return self.pyramid(levels)


class VitLevels(torch.nn.Module):
    """The patches of a ViT as a map, and one of half its size."""

    def __init__(self):
        super().__init__()
        self.vit = timm.create_model(
            "vit_tiny_patch16_224", img_size=SIDE, embed_dim=96, depth=2, num_heads=3, num_classes=0
        )
        self.down = torch.nn.Conv2d(96, 64, 3, 2, 1)
        self.out_channels = [96, 64]

    def forward(self, x):
        tokens = self.vit.forward_features(x)[:, 1:]
        patches = tokens.transpose(1, 2).reshape(-1, 96, SIDE // 16, SIDE // 16)
        return {"0": patches, "1": torch.relu(self.down(patches))}


def of_regions(masks):
    pool = lambda size: MultiScaleRoIAlign(["0", "1", "2"], size, 2)
    how = dict(
        min_size=SIDE,
        max_size=SIDE,
        rpn_anchor_generator=AnchorGenerator(((16,), (32,), (64,)), ((0.5, 1.0, 2.0),) * 3),
        rpn_pre_nms_top_n_test=60,
        rpn_post_nms_top_n_test=40,
        box_roi_pool=pool(7),
        box_head=TwoMLPHead(32 * 7 * 7, 64),
        box_predictor=FastRCNNPredictor(64, CLASSES),
        box_score_thresh=0.0,
        box_detections_per_img=20,
    )
    if not masks:
        return FasterRCNN(SwinPyramid(), **how)
    predictor = MaskRCNNPredictor(32, 16, CLASSES)
    return MaskRCNN(
        SwinPyramid(), mask_roi_pool=pool(14), mask_head=MaskRCNNHeads(32, (32,), 1), mask_predictor=predictor, **how
    )


def single_shot():
    boxes = DefaultBoxGenerator([[2], [2, 3]], scales=[0.1, 0.4, 0.8])
    return SSD(
        VitLevels(), boxes, (SIDE, SIDE), CLASSES, score_thresh=0.0, detections_per_img=20, topk_candidates=40
    )


def row(make):
    # Only the older exporter takes them.
    return "script", lambda: (Detector(make()), (torch.randn(1, 3, SIDE, SIDE),))


ROWS = {
    "torchvision_faster_rcnn_swin": row(lambda: of_regions(masks=False)),
    "torchvision_mask_rcnn_swin": row(lambda: of_regions(masks=True)),
    "torchvision_ssd_vit": row(single_shot),
}
