"""Small contents of every kind that the readers are fed with, good ones and hostile ones."""

from __future__ import annotations

import json
import struct
from typing import Any


def text(value: Any) -> bytes:
    """Write JSON."""
    return json.dumps(value).encode()


def lines(*values: Any) -> bytes:
    """Write JSON lines."""
    return b"".join(text(value) + b"\n" for value in values)


REF = {"ref_id": 7, "ann_id": 3, "image_id": 9, "split": "val", "sent_ids": [3], "category_id": 1, "file_name": "a.jpg"}
REFS = [
    {**REF, "sentences": [{"sent": "left zebra", "raw": "Left zebra", "tokens": ["left", "zebra"], "sent_id": 3}]}
] * 3
INSTANCES = {
    "images": [{"id": 9, "file_name": "a.jpg", "width": 640, "height": 480}],
    "annotations": [{"id": 3, "image_id": 9, "category_id": 1, "bbox": [1, 2, 30, 40], "iscrowd": 0, "area": 1200.0}],
    "categories": [{"id": 1, "name": "zebra", "supercategory": "animal"}],
}
RECIPE = b"""# A recipe
detector:
  name: florence2
  settings: {model: florence-community/Florence-2-large, tasks: [rec, od], num_beams: 3}
candidates:
  nms_iou: 0.9
  cap: 20
  order: left_to_right
llm: {backend: transformers, model: x/y}
"""
ADAPTER = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "bias": "none",
    "target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": "x/y", "rank_pattern": {"q_proj": 4},
    "modules_to_save": None,
}  # fmt: skip
CHAT = {
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "1"}, "logprobs": {
        "content": [{"token": "1", "logprob": -0.1, "top_logprobs": [{"token": "0", "logprob": -2.5}]}]}}],
    "usage": {"completion_tokens": 1}, "model": "m",
}  # fmt: skip
FACTS = {
    "rows": [{"system": "llm", "n": 4}],
    "recipe": {"llm": {"model": "x"}, "data": {"name": "mine"}},
    "split": "val",
}
OWN_ROW = {"expression": "zebra", "box": [1, 2, 30, 40], "width": 640, "height": 480, "split": "val"}
OWN = [{"image": f"{number}.jpg", **OWN_ROW} for number in range(3)]
LINES = lines(
    {"image_id": "image0", "detections": [{"box": [1, 2, 30, 40], "label": "zebra", "score": 0.5}]},
    {"image_id": "image1", "detections": [{"bbox_xywh": [1, 2, 30, 40], "label": "zebra", "score": None}]},
)
RESULTS = [{"image_id": f"image{n}", "category_id": 1, "bbox": [1, 2, 30, 40], "score": 0.5} for n in range(3)]
SINK = (
    b"x_min,y_min,x_max,y_max,class_id,confidence,tracker_id,class_name,file_name\n1,2,30,40,0,0.5,,zebra,image0.jpg\n"
)
SCORED = lines(
    {"sample_id": "s0", "box": [1, 2, 30, 40]},
    {"sample_id": "s1", "response": '```json [{"bbox_2d": [1, 2, 3, 4]}]```'},
)
TEMPLATE = (
    b"{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    b"{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TEMPLATES = [
    b"{% for a in range(10**9) %}{% endfor %}",
    b"{{ 'x' * 10**10 }}",
    b"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
]
PICKLES = [
    *(
        b"Nr\xff\xff\xff\x0f.",
        b"X\xff\xff\xff\x7fx.",
        b"\x96" + struct.pack("<Q", 2**33) + b"x.",
        b"cos\nsystem\n(S'x'\ntR.",
    ),
    *(b"\x80\x02})" + b"\x85" * 500_000 + b"Ns.", b"]" * 100_000 + b"a" * 99_999 + b".", b"I" + b"9" * 4000 + b"\n."),
]
SHARED: list[Any] = ["x"]
for _ in range(60):
    SHARED = [SHARED, SHARED]
