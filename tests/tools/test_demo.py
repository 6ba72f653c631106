"""The demo's task is one in which few labels cannot suffice: the labeled hearts show only part of what there is."""

import json

import nibabel as nib
import numpy as np
from scipy.ndimage import center_of_mass

from tools.demo import SIZE, VARIETY
from tools.synthetic import write_hearts


def test_labeled_hearts_resemble_each_other_and_unseen_ones_do_not(tmp_path):
    counts = {"validation": 12, "training": 12}  # whatever the order of the lists
    datalist = write_hearts(tmp_path, counts, SIZE, **VARIETY)
    spread = {}
    for name in counts:
        labels = [tmp_path / case["label"] for case in json.loads(datalist.read_text())[name]][::2]
        places = [center_of_mass(np.asarray(nib.load(path).dataobj) > 1)[:2] for path in labels]
        spread[name] = np.std(places, axis=0).mean()
    assert spread["validation"] > 2 * spread["training"]
