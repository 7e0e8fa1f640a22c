"""Models of timm, transformers and torchvision, scaled down: name -> (exporter, what makes model and example inputs)."""

import timm
import torch
import torchvision
import transformers as tr
from timm.layers import GatedMlp
from timm.models.focalnet import FocalNet
from timm.models.gcvit import GlobalContextVit
from timm.models.levit import Levit
from timm.models.mambaout import MambaOut
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock, SpatialGatingBlock
from timm.models.nest import Nest
from timm.models.pit import PoolingVisionTransformer
from timm.models.sequencer import Sequencer2d
from timm.models.visformer import Visformer
from timm.models.volo import VOLO

# Classes of every classifier.
CLASSES = 10
# Width, depth and heads of a plain encoder.
D, DEPTH, HEADS = 96, 2, 3
SMALL = dict(embed_dim=D, depth=DEPTH, num_heads=HEADS)


def pictures(side=64, batch=1):
    return torch.randn(batch, 3, side, side)


def ids(length=9, most=100):
    return torch.randint(3, most, (1, length))


def from_timm(exporter, name, side=64, fixed=True, **how):
    if fixed:
        how["img_size"] = side

    def make():
        return timm.create_model(name, num_classes=CLASSES, **how), (pictures(side, 2 if exporter == "any" else 1),)

    return exporter, make


def of_class(exporter, cls, side=64, **how):
    return exporter, lambda: (cls(num_classes=CLASSES, **how), (pictures(side),))


TIMM = {
    "timm_vit_relpos": from_timm("script", "vit_relpos_small_patch16_224", **SMALL),
    "timm_vit_siglip": from_timm("any", "vit_base_patch16_siglip_224", **SMALL),
    "timm_vit_parallel": from_timm("dynamo", "vit_small_patch16_18x2_224", **SMALL),
    "timm_vit_reg_swiglu": from_timm("any", "vit_small_patch14_reg4_dinov2", 56, **SMALL),
    "timm_vit_dinov3": from_timm("dynamo", "vit_tiny_patch16_dinov3_qkvb", **SMALL),
    "timm_deit3": from_timm("script", "deit3_small_patch16_224", **SMALL),
    "timm_beit": from_timm("script", "beit_base_patch16_224", **SMALL),
    "timm_beitv2": from_timm("script", "beitv2_base_patch16_224", **SMALL),
    "timm_eva02": from_timm("dynamo", "eva02_tiny_patch14_224", 56, **SMALL),
    "timm_cait": from_timm("dynamo", "cait_xxs24_224", **SMALL),
    "timm_xcit": from_timm("script", "xcit_nano_12_p16_224", **SMALL),
    "timm_flexivit": from_timm("any", "flexivit_small", **SMALL),
    "timm_naflexvit": from_timm("dynamo", "naflexvit_base_patch16_gap", fixed=False, **SMALL),
    "timm_aimv2": from_timm("dynamo", "aimv2_large_patch14_224", 56, **SMALL),
    "timm_convit": from_timm("script", "convit_tiny", embed_dim=32, depth=3, num_heads=3, local_up_to_layer=2),
    "timm_tnt": from_timm(
        "dynamo", "tnt_s_legacy_patch16_224", embed_dim=D, inner_dim=24, depth=2, num_heads_outer=3
    ),
    "timm_samvit": from_timm(
        "script", "samvit_base_patch16", neck_chans=32, window_size=3, global_attn_indexes=(1,), **SMALL
    ),
    "timm_swinv2": from_timm(
        "dynamo", "swinv2_tiny_window8_256", embed_dim=48, depths=(2, 2), num_heads=(2, 4), window_size=4
    ),
    "timm_swinv2_cr": from_timm("script", "swinv2_cr_tiny_224", embed_dim=48, depths=(2, 2), num_heads=(2, 4)),
    "timm_davit": from_timm(
        "dynamo", "davit_tiny", fixed=False, depths=(1, 1), embed_dims=(48, 96), num_heads=(3, 6)
    ),
    "timm_hiera": from_timm("script", "hiera_tiny_224", embed_dim=48, stages=(1, 1, 2, 1)),
    "timm_twins_pcpvt": from_timm(
        "dynamo",
        "twins_pcpvt_small",
        embed_dims=(32, 64, 80, 96),
        depths=(1, 1, 1, 1),
        num_heads=(1, 2, 5, 3),
    ),
    "timm_twins_svt": from_timm(
        "script",
        "twins_svt_small",
        224,
        fixed=False,
        embed_dims=(32, 64, 80, 96),
        depths=(1, 1, 1, 2),
        num_heads=(1, 2, 5, 3),
    ),
    "timm_mobilevit": from_timm("dynamo", "mobilevit_xxs", fixed=False),
    "timm_mobilevitv2": from_timm("script", "mobilevitv2_050", fixed=False),
    "timm_edgenext": from_timm("dynamo", "edgenext_xx_small", fixed=False),
    "timm_fastvit": from_timm("script", "fastvit_t8", fixed=False, layers=(1, 1, 1, 1)),
    "timm_efficientvit": from_timm("dynamo", "efficientvit_b0", fixed=False),
    "timm_levit": of_class(
        "dynamo", Levit, img_size=64, embed_dim=(64, 96, 128), key_dim=16, depth=(1, 1, 1), num_heads=(2, 3, 4)
    ),
    "timm_pit": of_class(
        "script",
        PoolingVisionTransformer,
        img_size=64,
        patch_size=16,
        stride=8,
        base_dims=[24, 24, 24],
        depth=[1, 1, 1],
        heads=[1, 2, 4],
        mlp_ratio=4,
    ),
    "timm_nest": of_class(
        "script", Nest, img_size=64, embed_dims=(48, 96, 96), depths=(1, 1, 1), num_heads=(3, 3, 3)
    ),
    "timm_visformer": of_class(
        "script", Visformer, img_size=64, init_channels=16, embed_dim=96, depth=(1, 1, 1), num_heads=3
    ),
    "timm_volo": of_class(
        "dynamo", VOLO, img_size=64, layers=[1, 1], embed_dims=[48, 96], num_heads=[3, 3], outlook_attention=(True, False)
    ),
    "timm_gcvit": of_class(
        "script",
        GlobalContextVit,
        img_size=(64, 64),
        embed_dim=32,
        depths=(1, 1),
        num_heads=(2, 4),
        window_size=(4, 4),
    ),
    "timm_focalnet": of_class("script", FocalNet, embed_dim=48, depths=(1, 1, 2, 1)),
    "timm_mambaout": of_class("dynamo", MambaOut, depths=(1, 1, 1, 1), dims=(24, 48, 64, 96)),
    "timm_mixer": of_class("dynamo", MlpMixer, img_size=64, embed_dim=D, num_blocks=2),
    "timm_resmlp": of_class(
        "script", MlpMixer, img_size=64, embed_dim=D, num_blocks=2, mlp_ratio=4, block_layer=ResBlock, norm_layer=Affine
    ),
    "timm_gmlp": of_class(
        "dynamo",
        MlpMixer,
        img_size=64,
        embed_dim=D,
        num_blocks=2,
        mlp_ratio=6,
        block_layer=SpatialGatingBlock,
        mlp_layer=GatedMlp,
    ),
    "timm_sequencer": of_class(
        "script",
        Sequencer2d,
        img_size=56,
        side=56,
        layers=(1, 1, 1, 1),
        patch_sizes=(7, 2, 1, 1),
        embed_dims=(48, 64, 64, 64),
        hidden_sizes=(12, 16, 16, 16),
    ),
}


class Outputs(torch.nn.Module):
    """A model of transformers by the names of its inputs, and of the outputs that are wanted."""

    def __init__(self, model, inputs, outputs):
        super().__init__()
        self.model, self.inputs, self.outputs = model, inputs, outputs

    def forward(self, *args):
        made = self.model(**dict(zip(self.inputs, args)))
        return tuple(getattr(made, name) for name in self.outputs)


def from_hf(exporter, model, config, outputs="logits", inputs=None):
    """`inputs`: a function that makes them by name, or the side of a picture."""

    def make():
        feed = inputs() if callable(inputs) else {"pixel_values": pictures(inputs or 64)}
        made = getattr(tr, model)(config())
        return Outputs(made, list(feed), outputs.split()), tuple(feed.values())

    return exporter, make


PLAIN = dict(
    hidden_size=D,
    num_hidden_layers=DEPTH,
    num_attention_heads=HEADS,
    intermediate_size=192,
    image_size=64,
    patch_size=16,
)
HIDDEN = "last_hidden_state"


def plain(exporter, family, model=None, outputs=HIDDEN, **how):
    return from_hf(exporter, model or f"{family}Model", lambda: getattr(tr, f"{family}Config")(**{**PLAIN, **how}), outputs)


PYRAMID = dict(depths=[1, 1, 1, 1], hidden_sizes=[32, 48, 64, 96], num_attention_heads=[1, 2, 2, 3])
WINDOWS = dict(image_size=56, patch_size=4, embed_dim=48, depths=[2, 2], num_heads=[2, 4], window_size=7)
TEXT = dict(
    hidden_size=D, num_hidden_layers=DEPTH, num_attention_heads=HEADS, intermediate_size=192, vocab_size=100
)
RESNET = dict(embedding_size=16, hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 1, 1])
NECK = dict(neck_hidden_sizes=[16, 24, 32, 48], fusion_hidden_size=32)
LAYERS = dict(encoder_layers=2, decoder_layers=2, encoder_attention_heads=3, decoder_attention_heads=3)
QUERIES = dict(d_model=48, encoder_ffn_dim=96, decoder_ffn_dim=96, num_queries=10, num_labels=5, **LAYERS)
FOUND = "logits pred_boxes"


def resnet(*stages):
    return tr.ResNetConfig(out_features=list(stages), **RESNET)


def of_backbone(config, **how):
    return config(use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, **{**QUERIES, **how})


def frames(n, channels_first=False):
    shape = (1, 3, n, 64, 64) if channels_first else (1, n, 3, 64, 64)
    return lambda: {"pixel_values": torch.randn(*shape)}


def words():
    return {"input_ids": ids(), "attention_mask": torch.ones(1, 9, dtype=torch.long)}


def words_and_picture():
    return {"input_ids": ids(), "pixel_values": pictures(), "attention_mask": torch.ones(1, 9, dtype=torch.long)}


def clip_text():
    return dict(max_position_embeddings=16, bos_token_id=1, eos_token_id=2, **TEXT)


TRANSFORMERS = {
    "hf_deit": plain("dynamo", "DeiT", "DeiTForImageClassificationWithTeacher", "logits"),
    "hf_beit": plain("script", "Beit", "BeitForImageClassification", "logits", use_relative_position_bias=True),
    "hf_data2vec": plain("dynamo", "Data2VecVision", "Data2VecVisionForImageClassification", "logits"),
    "hf_dinov2_swiglu": plain("script", "Dinov2", mlp_ratio=2, use_swiglu_ffn=True),
    "hf_dinov3": plain("dynamo", "DINOv3ViT", num_register_tokens=2),
    "hf_ijepa": plain("script", "IJepa"),
    "hf_vit_msn": plain("dynamo", "ViTMSN"),
    "hf_clip_vision": plain("script", "CLIPVision", "CLIPVisionModelWithProjection", "image_embeds", projection_dim=64),
    "hf_siglip": plain("dynamo", "SiglipVision", outputs="pooler_output"),
    "hf_blip_vision": plain("script", "BlipVision"),
    "hf_owlvit_vision": plain("dynamo", "OwlViTVision", outputs="pooler_output"),
    "hf_aimv2": plain("script", "Aimv2Vision"),
    "hf_mlcd": plain("dynamo", "MLCDVision"),
    "hf_pixtral": plain("script", "PixtralVision"),
    "hf_internvit": plain("dynamo", "InternVLVision", image_size=[64, 64], patch_size=[16, 16]),
    "hf_yolos": plain(
        "script", "Yolos", "YolosForObjectDetection", FOUND, image_size=[64, 64], num_detection_tokens=10, num_labels=5
    ),
    "hf_vitdet": plain(
        "dynamo", "VitDet", window_block_indices=[0], window_size=3, use_relative_position_embeddings=True
    ),
    "hf_sam_vision": plain(
        "script", "SamVision", output_channels=32, window_size=3, global_attn_indexes=[1], mlp_dim=192
    ),
    "hf_timesformer": from_hf(
        "dynamo",
        "TimesformerForVideoClassification",
        lambda: tr.TimesformerConfig(num_frames=2, **PLAIN),
        inputs=frames(2),
    ),
    "hf_videomae": from_hf(
        "script", "VideoMAEForVideoClassification", lambda: tr.VideoMAEConfig(num_frames=4, **PLAIN), inputs=frames(4)
    ),
    "hf_vivit": from_hf(
        "dynamo",
        "VivitForVideoClassification",
        lambda: tr.VivitConfig(num_frames=4, **{k: v for k, v in PLAIN.items() if k != "patch_size"}),
        inputs=frames(4),
    ),
    "hf_audio_spectrogram": from_hf(
        "script",
        "ASTForAudioClassification",
        lambda: tr.ASTConfig(
            max_length=64, num_mel_bins=32, **{k: v for k, v in PLAIN.items() if k != "image_size"}
        ),
        inputs=lambda: {"input_values": torch.randn(1, 64, 32)},
    ),
    "hf_swinv2": from_hf(
        "script",
        "Swinv2ForImageClassification",
        lambda: tr.Swinv2Config(**{**WINDOWS, "image_size": 64, "window_size": 4}),
    ),
    "hf_swin2sr": from_hf(
        "dynamo",
        "Swin2SRForImageSuperResolution",
        lambda: tr.Swin2SRConfig(image_size=16, embed_dim=48, depths=[2, 2], num_heads=[2, 2], window_size=4),
        "reconstruction",
        16,
    ),
    "hf_donut_swin": from_hf("script", "DonutSwinModel", lambda: tr.DonutSwinConfig(**WINDOWS), HIDDEN, 56),
    "hf_maskformer_swin": from_hf("dynamo", "MaskFormerSwinModel", lambda: tr.MaskFormerSwinConfig(**WINDOWS), HIDDEN, 56),
    "hf_hiera": from_hf(
        "script",
        "HieraForImageClassification",
        lambda: tr.HieraConfig(embed_dim=48, image_size=[64, 64], depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8]),
    ),
    "hf_segformer": from_hf(
        "dynamo",
        "SegformerForSemanticSegmentation",
        lambda: tr.SegformerConfig(num_encoder_blocks=4, decoder_hidden_size=64, num_labels=7, **PYRAMID),
    ),
    "hf_pvt": from_hf("script", "PvtForImageClassification", lambda: tr.PvtConfig(image_size=64, **PYRAMID)),
    "hf_pvt_v2": from_hf("dynamo", "PvtV2ForImageClassification", lambda: tr.PvtV2Config(image_size=64, **PYRAMID)),
    "hf_levit": from_hf(
        "script",
        "LevitForImageClassification",
        lambda: tr.LevitConfig(
            image_size=64,
            hidden_sizes=[64, 96, 128],
            num_attention_heads=[2, 3, 4],
            depths=[1, 1, 1],
            key_dim=[16, 16, 16],
        ),
    ),
    "hf_mobilevit": from_hf(
        "dynamo",
        "MobileViTForImageClassification",
        lambda: tr.MobileViTConfig(
            image_size=64, hidden_sizes=[48, 64, 80], neck_hidden_sizes=[16, 16, 24, 32, 48, 64, 80]
        ),
    ),
    "hf_convnextv2": from_hf(
        "script",
        "ConvNextV2ForImageClassification",
        lambda: tr.ConvNextV2Config(depths=[1, 1, 1, 1], hidden_sizes=[32, 48, 64, 96]),
    ),
    "hf_poolformer": from_hf(
        "dynamo",
        "PoolFormerForImageClassification",
        lambda: tr.PoolFormerConfig(depths=[1, 1, 1, 1], hidden_sizes=[32, 48, 64, 96]),
    ),
    "hf_dpt": from_hf(
        "script",
        "DPTForDepthEstimation",
        lambda: tr.DPTConfig(
            backbone_out_indices=[0, 1, 2, 3],
            reassemble_factors=[4, 2, 1, 0.5],
            **NECK,
            **{**PLAIN, "num_hidden_layers": 4},
        ),
        "predicted_depth",
    ),
    "hf_depth_anything": from_hf(
        "dynamo",
        "DepthAnythingForDepthEstimation",
        lambda: tr.DepthAnythingConfig(
            backbone_config=tr.Dinov2Config(
                mlp_ratio=2, out_indices=[1, 2, 3, 4], reshape_hidden_states=False, **{**PLAIN, "num_hidden_layers": 4}
            ),
            patch_size=16,
            reassemble_hidden_size=D,
            head_hidden_size=16,
            **NECK,
        ),
        "predicted_depth",
    ),
    "hf_glpn": from_hf(
        "script", "GLPNForDepthEstimation", lambda: tr.GLPNConfig(decoder_hidden_size=32, **PYRAMID), "predicted_depth"
    ),
    "hf_detr": from_hf(
        "dynamo",
        "DetrForObjectDetection",
        lambda: of_backbone(tr.DetrConfig, backbone_config=resnet("stage4")),
        FOUND,
    ),
    "hf_conditional_detr": from_hf(
        "script",
        "ConditionalDetrForObjectDetection",
        lambda: of_backbone(tr.ConditionalDetrConfig, backbone_config=resnet("stage4")),
        FOUND,
    ),
    "hf_deformable_detr": from_hf(
        "dynamo",
        "DeformableDetrForObjectDetection",
        lambda: of_backbone(
            tr.DeformableDetrConfig,
            backbone_config=resnet("stage2", "stage3", "stage4"),
            num_feature_levels=3,
            d_model=64,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
        ),
        FOUND,
    ),
    "hf_rt_detr": from_hf(
        "dynamo",
        "RTDetrForObjectDetection",
        lambda: tr.RTDetrConfig(
            backbone_config=tr.RTDetrResNetConfig(
                layer_type="basic", out_features=["stage2", "stage3", "stage4"], **RESNET
            ),
            encoder_in_channels=[24, 32, 48],
            encoder_hidden_dim=48,
            decoder_in_channels=[48, 48, 48],
            decoder_n_points=2,
            anchor_image_size=None,
            **{k: v for k, v in QUERIES.items() if k != "encoder_layers"},
        ),
        FOUND,
    ),
    "hf_upernet_swin": from_hf(
        "script",
        "UperNetForSemanticSegmentation",
        lambda: tr.UperNetConfig(
            backbone_config=tr.SwinConfig(out_features=["stage1", "stage2"], **WINDOWS),
            hidden_size=32,
            pool_scales=[1],
            use_auxiliary_head=False,
            num_labels=7,
        ),
        inputs=56,
    ),
    "hf_vitpose": from_hf(
        "dynamo",
        "VitPoseForPoseEstimation",
        lambda: tr.VitPoseConfig(
            backbone_config=tr.VitPoseBackboneConfig(
                out_indices=[2], **{**PLAIN, "image_size": [64, 64], "patch_size": [16, 16]}
            ),
            num_labels=5,
        ),
        "heatmaps",
    ),
    "hf_clip": from_hf(
        "dynamo",
        "CLIPModel",
        lambda: tr.CLIPConfig(vision_config=PLAIN, text_config=clip_text(), projection_dim=64),
        "logits_per_image",
        words_and_picture,
    ),
    "hf_clipseg": from_hf(
        "script",
        "CLIPSegForImageSegmentation",
        lambda: tr.CLIPSegConfig(
            vision_config={**PLAIN, "num_hidden_layers": 3},
            text_config=clip_text(),
            projection_dim=64,
            reduce_dim=48,
            extract_layers=[0, 1, 2],
            decoder_num_attention_heads=3,
            decoder_intermediate_size=96,
        ),
        inputs=words_and_picture,
    ),
    "hf_owlvit": from_hf(
        "script",
        "OwlViTForObjectDetection",
        lambda: tr.OwlViTConfig(vision_config=PLAIN, text_config=clip_text(), projection_dim=D),
        FOUND,
        words_and_picture,
    ),
    "hf_bert": from_hf(
        "dynamo", "BertModel", lambda: tr.BertConfig(max_position_embeddings=32, **TEXT), HIDDEN, words
    ),
    # Four layers of the same weights.
    "hf_albert": from_hf(
        "script",
        "AlbertModel",
        lambda: tr.AlbertConfig(max_position_embeddings=32, embedding_size=48, **{**TEXT, "num_hidden_layers": 4}),
        HIDDEN,
        words,
    ),
    "hf_perceiver": from_hf(
        "script",
        "PerceiverForImageClassificationLearned",
        lambda: tr.PerceiverConfig(
            num_latents=16,
            d_latents=D,
            d_model=D,
            num_blocks=2,
            num_self_attends_per_block=2,
            num_self_attention_heads=4,
            num_cross_attention_heads=1,
            image_size=16,
            num_labels=CLASSES,
        ),
        inputs=lambda: {"inputs": pictures(16)},
    ),
    "hf_mgp_str": from_hf(
        "dynamo",
        "MgpstrForSceneTextRecognition",
        lambda: tr.MgpstrConfig(
            image_size=[16, 64],
            patch_size=4,
            max_token_length=7,
            num_character_labels=12,
            num_bpe_labels=20,
            num_wordpiece_labels=16,
            hidden_size=D,
            num_hidden_layers=DEPTH,
            num_attention_heads=HEADS,
        ),
        inputs=lambda: {"pixel_values": torch.randn(1, 3, 16, 64)},
    ),
    "hf_zoedepth": from_hf(
        "script",
        "ZoeDepthForDepthEstimation",
        lambda: tr.ZoeDepthConfig(
            backbone_config=tr.BeitConfig(
                out_indices=[1, 2, 3, 4],
                reshape_hidden_states=False,
                use_relative_position_bias=True,
                **{**PLAIN, "num_hidden_layers": 4},
            ),
            reassemble_factors=[4, 2, 1, 0.5],
            bottleneck_features=32,
            num_relative_features=16,
            **NECK,
        ),
        "predicted_depth",
    ),
    "hf_sam": from_hf(
        "script",
        "SamModel",
        lambda: tr.SamConfig(
            vision_config=dict(output_channels=32, window_size=3, global_attn_indexes=[1], mlp_dim=192, num_pos_feats=16, **PLAIN),
            prompt_encoder_config=dict(hidden_size=32, image_size=64, patch_size=16, mask_input_channels=4),
            mask_decoder_config=dict(
                hidden_size=32, mlp_dim=64, num_hidden_layers=2, num_attention_heads=2, iou_head_hidden_dim=32
            ),
        ),
        "iou_scores pred_masks",
        lambda: {"pixel_values": pictures(), "input_points": 64 * torch.rand(1, 1, 2, 2), "input_labels": torch.ones(1, 1, 2, dtype=torch.long)},
    ),
    "hf_layoutlmv3": from_hf(
        "dynamo",
        "LayoutLMv3Model",
        lambda: tr.LayoutLMv3Config(
            max_position_embeddings=32,
            coordinate_size=16,
            shape_size=16,
            max_2d_position_embeddings=128,
            input_size=64,
            **TEXT,
        ),
        HIDDEN,
        lambda: {"input_ids": ids(), "bbox": torch.tensor([[[4, 5, 60, 70]] * 9]), "attention_mask": torch.ones(1, 9, dtype=torch.long), "pixel_values": pictures()},
    ),
    "hf_trocr": from_hf(
        "script",
        "VisionEncoderDecoderModel",
        lambda: tr.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
            tr.ViTConfig(**PLAIN),
            tr.TrOCRConfig(
                d_model=D,
                decoder_layers=1,
                decoder_attention_heads=3,
                decoder_ffn_dim=192,
                vocab_size=100,
                max_position_embeddings=32,
                cross_attention_hidden_size=D,
                use_cache=False,
            ),
        ),
        inputs=lambda: {"pixel_values": pictures(), "decoder_input_ids": ids(7)},
    ),
}

vision = torchvision.models


def from_torchvision(exporter, make, shape=(1, 3, 64, 64)):
    return exporter, lambda: (make(), (torch.randn(*shape),))


TORCHVISION = {
    "torchvision_swin_v2": from_torchvision(
        "script",
        lambda: vision.SwinTransformer(
            patch_size=[4, 4],
            embed_dim=48,
            depths=[2, 2],
            num_heads=[2, 4],
            window_size=[4, 4],
            num_classes=CLASSES,
            block=vision.swin_transformer.SwinTransformerBlockV2,
            downsample_layer=vision.swin_transformer.PatchMergingV2,
        ),
    ),
    "torchvision_swin_3d": from_torchvision(
        "dynamo",
        lambda: vision.video.SwinTransformer3d(
            patch_size=[2, 4, 4], embed_dim=24, depths=[2], num_heads=[2], window_size=[2, 4, 4], num_classes=CLASSES
        ),
        (1, 3, 4, 32, 32),
    ),
    "torchvision_maxvit": from_torchvision(
        "dynamo",
        lambda: vision.MaxVit(
            input_size=(64, 64),
            stem_channels=16,
            partition_size=2,
            block_channels=[16, 32],
            block_layers=[1, 1],
            head_dim=16,
            stochastic_depth_prob=0.0,
            num_classes=CLASSES,
        ),
    ),
}
