"""CrossMatch for MONAI: the parts that MONAI, Ignite and PyTorch do not have.

The bundles under ``bundles/`` wire these parts together in YAML; the modules here do not know each other's
configuration and are handed everything they need.

Source of the method: Zhao, Wang, Ding, "CrossMatch: Enhance Semi-Supervised Medical Image Segmentation with
Perturbation Strategies and Knowledge Distillation", IEEE JBHI 2024, doi:10.1109/JBHI.2024.3463711.
"""

import logging
import warnings

__version__ = "0.3.0"

# With pydicom installed, MONAI 1.6.1 says twice of every reader that an optional GPU decoder is not there.
warnings.filterwarnings("ignore", "NvImgCodecPydicomReader: nvImageCodec decoder plugin did not register")
logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
