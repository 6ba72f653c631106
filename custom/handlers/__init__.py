"""Ignite handlers, one idea a file."""

from .batch_norm import BatchNormRecalibration
from .best_weights import BestWeights, WeightsCheckpointLoader
from .checkpoints import Checkpoints, Stateful, has_checkpoint
from .guards import CollapseWarning, NonFiniteGuard, SizeAdvice
from .panels import CasePanels, TensorBoardSession, ViewPanels
from .precision import PrecisionCheck
from .progress import ProgressBar
from .review import ReviewPage
from .schedule import SigmoidRampUp
from .stopping import EXIT_STOPPED, stop_when_asked
from .tables import CaseTable, VolumeTable
