"""Copy what all bundles share from the left atrium's configs into the others.

``train.yaml`` and ``inference.yaml`` share the text after their marker line; the other files named below are shared
whole. Each bundle keeps a copy, since MONAI's clients read the files of one folder.

    python -m tools.sync_configs
"""

from __future__ import annotations

from pathlib import Path

BUNDLES = Path(__file__).resolve().parent.parent / "bundles"
MARKER = "# ==== the method: from here on all bundles are the same"
SHARED_TAILS = ("train.yaml", "inference.yaml")
SHARED_WHOLE = ("evaluate.yaml", "multi_gpu_train.yaml", "multi_gpu_inference.yaml", "logging.conf")


def sync_configs(bundles: Path = BUNDLES) -> list[Path]:
    """Bring the configs of all bundles into step.

    Args:
        bundles: folder with ``crossmatch_la`` and its siblings.

    Returns:
        The files that were changed.
    """
    source = bundles / "crossmatch_la" / "configs"
    changed = []
    for folder in sorted(bundles.glob("*/configs")):
        for name in SHARED_TAILS + SHARED_WHOLE:
            path = folder / name
            text = (source / name).read_text()
            if name in SHARED_TAILS:
                text = path.read_text().partition(MARKER)[0] + MARKER + text.partition(MARKER)[2]
            if path.read_text() != text:
                path.write_text(text)
                changed.append(path)
    return changed


if __name__ == "__main__":
    for path in sync_configs():
        print(f"changed {path.relative_to(BUNDLES.parent)}")
