"""Put trained weights into a bundle: ``python -m tools.ship_weights runs/NAME/models/model.pt bundles/crossmatch_la``.

They are stored in float16, half the size, unless ``--half false`` is given; networks load them as float32.
"""

from __future__ import annotations

from pathlib import Path

from monai.bundle import ConfigParser

from custom.utils.errors import UserError
from custom.utils.files import atomic_write, sha256_of
from custom.utils.weights import read_settings, read_weights, save_tensors, settings_path

from .cli import run


def ship_weights(weights: str, bundle: str, half: bool = True) -> None:
    """Store weights and their settings in a bundle, as models/model.pt and models/model.json.

    Args:
        weights: file that a training wrote, with its settings beside it.
        bundle: folder such as bundles/crossmatch_la.
        half: store them in float16; score both before it is decided.

    Raises:
        UserError: when there are no settings beside the weights, when the weights do not fit the bundle's network, or
            when a weight is too large for float16.
    """
    source, folder = Path(str(weights)), Path(str(bundle))
    if not settings_path(source).is_file():
        raise UserError(f"{settings_path(source)}: no such file; give weights as a training leaves them.")
    read_settings(source)  # which names what is no file of settings
    parser = ConfigParser(ConfigParser.load_config_file(folder / "configs" / "inference.yaml"))
    parser["bundle_root"] = str(folder)
    state = read_weights(source, parser.get_parsed_content("network_def"), "ship weights of the full-width network")
    if half:
        state = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    large = [name for name, value in state.items() if not bool(value.isfinite().all())]
    if large:
        raise UserError(f"{source}: not representable in float16:", large)
    target = folder / "models" / "model.pt"
    save_tensors(state, target)
    with atomic_write(settings_path(target)) as part:
        part.write_bytes(settings_path(source).read_bytes())
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB, {settings_path(target).name} beside it")
    digest = sha256_of(target)
    print(f'In configs/metadata.json: "weights_sha256": "{digest}", and their eval_metrics and weights_license.')


if __name__ == "__main__":
    run(ship_weights)
