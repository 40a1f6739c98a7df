"""Models of text that are given an image, for `export_models.py`: its places among the tokens are marked."""

from __future__ import annotations

from typing import Any

from export_configs import Recipe, Sets
from export_configs_media import TWO
from export_configs_parts import ROPE, WINDOWS
from export_configs_rest import rest

IMAGE = 100
SINGLE: Sets = (("one", {"batch": 1}), ("again", {"batch": 1}))


def seeing(
    name: str,
    model: str,
    places: int,
    truth: int = 4,
    pixels: str = "float batch 3 32 32",
    more: dict[str, str] | None = None,
    sets: Sets = TWO,
    **options: Any,
) -> Recipe:
    """A model whose image stands at `places` tokens, before four of text."""
    tokens = ",".join(map(str, [IMAGE] * places + [7, 8, 9, 10]))
    inputs = {"input_ids": f"={tokens} batch {places + 4}", "attention_mask": f"ones batch {places + 4}"}
    inputs |= {"pixel_values": pixels} | (more or {})
    options.setdefault("image_token_id", IMAGE)
    return rest(name, model, "decoder", truth, inputs=inputs, sets=sets, **options)


INDEX = {"image_token_index": IMAGE}  # how some name the same
CONSTANT = "the first attention among the queries depends on nothing that is given"
GRID = {"image_grid_thw": "=1,4,4 1 3"}

RECIPES = (
    seeing("llava_image", "LlavaForConditionalGeneration", 16, 3, **INDEX, note="the last layer but one of the images"),
    seeing("vipllava_image", "VipLlavaForConditionalGeneration", 16, **INDEX, vision_feature_layers=[-1, -2]),
    seeing("paligemma_image", "PaliGemmaForConditionalGeneration", 16, **INDEX),
    seeing("idefics2_image", "Idefics2ForConditionalGeneration", 64, 6, "float batch 1 3 32 32"),
    seeing("idefics3_image", "Idefics3ForConditionalGeneration", 4, 4, "float batch 1 3 32 32", scale_factor=2),
    seeing("smolvlm_image", "SmolVLMForConditionalGeneration", 4, 4, "float batch 1 3 32 32", scale_factor=2),
    seeing("aya_image", "AyaVisionForConditionalGeneration", 4, **INDEX, downsample_factor=2),
    seeing("cohere2_image", "Cohere2VisionForConditionalGeneration", 4, downsample_factor=2),
    seeing(
        "mistral3_image",
        "Mistral3ForConditionalGeneration",
        4,
        more={"image_sizes": "=32,32 batch 2"},
        sets=SINGLE,
        **INDEX,
    ),
    seeing(
        "internvl_image",
        "InternVLForConditionalGeneration",
        4,
        vision_config={"image_size": [32, 32], "patch_size": [8, 8]},
    ),
    seeing(
        "gemma3_image",
        "Gemma3ForConditionalGeneration",
        16,
        more={"token_type_ids": f"={','.join('1' * 16 + '0' * 4)} batch 20"},
        mm_tokens_per_image=16,
        **INDEX,
        note="an image sees itself wholly",
    ),
    seeing("deepseek_vl_image", "DeepseekVLForConditionalGeneration", 16),
    seeing("ovis2_image", "Ovis2ForConditionalGeneration", 16),
    seeing("blip2_image", "Blip2ForConditionalGeneration", 8, 6, **INDEX, num_query_tokens=8, note=CONSTANT),
    seeing(
        "instructblip_image",
        "InstructBlipForConditionalGeneration",
        8,
        7,
        more={"qformer_input_ids": "ids batch 5"},
        **INDEX,
        num_query_tokens=8,
    ),
    seeing(
        "qwen2_5_vl_image",
        "Qwen2_5_VLForConditionalGeneration",
        4,
        7,
        "float 16 384",
        GRID,
        SINGLE,
        text_config=ROPE,
        vision_config=WINDOWS,
    ),
    *(
        seeing(
            f"{name}_image",
            f"{cls}ForConditionalGeneration",
            4,
            4,
            "float 16 384",
            GRID | {"mm_token_type_ids": "=1,1,1,1,0,0,0,0 1 8"},
            SINGLE,
            text_config=ROPE,
            vision_config=vision,
        )
        for name, cls, vision in (
            ("qwen2_vl", "Qwen2VL", {}),
            ("qwen3_vl", "Qwen3VL", {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}),
            ("glm4v", "Glm4v", {}),
        )
    ),
    seeing(
        "lfm2_vl_image",
        "Lfm2VlForConditionalGeneration",
        4,
        4,
        "float batch 16 192",
        {"spatial_shapes": "=4,4 batch 2", "pixel_attention_mask": "ones batch 16"},
        downsample_factor=2,
    ),
)
