"""The card of a bundle as the Hugging Face Hub reads it: what the bundle's README says, behind data for its search.

MONAI's ``push_to_hf_hub`` writes a card too, but takes the licence of the code for that of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml


def model_card(metadata: Mapping[str, Any], readme: str, has_weights: bool, known: bool) -> str:
    """Write the ``README.md`` for the root of a repository on the Hub.

    Args:
        metadata: of the bundle; ``weights_license`` has the Hub's names for the licence of the weights, where it is
            another one than the code's, Apache-2.0.
        readme: the bundle's ``docs/README.md``.
        has_weights: whether weights come with it.
        known: whether they are those that the metadata's licence and figures are of.

    Returns:
        Markdown with front matter in YAML (https://huggingface.co/docs/hub/model-cards).
    """
    front: dict[str, Any] = {
        "library_name": "monai",
        "pipeline_tag": "image-segmentation",
        "tags": ["monai", "medical", "crossmatch", "semi-supervised"],
    }
    front |= metadata.get("weights_license", {}) if known else {}
    front.setdefault("license", "unknown" if has_weights and not known else "apache-2.0")
    if known and metadata.get("eval_metrics"):
        front["model-index"] = [{"name": metadata["name"], "results": [_result(metadata)]}]
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n{readme}"


def _result(metadata: Mapping[str, Any]) -> dict[str, Any]:
    source = metadata["data_source"]
    return {
        "task": {"type": "image-segmentation"},
        "dataset": {"name": source, "type": source},
        "metrics": [{"type": "dice", "name": name, "value": value} for name, value in metadata["eval_metrics"].items()],
    }
