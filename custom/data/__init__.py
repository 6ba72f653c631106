"""From files to batches: data lists, checks, readers, streams."""

from .caching import cached_dataset
from .checks import CaseRule, check_cases
from .datalist import default_evaluation_list, load_datalist, read_lists
from .dicom_seg import SaveDicomSegmentationd
from .finding import list_scans
from .labels import to_label
from .loading import CheckScand, ScanLoader, Unreadable
from .nifti import NiftiWriter, SeriesWriter
from .photos import PhotoReader
from .readers import LoadLabel, LoadScan, LoadScand
from .record import InferenceRecord
from .scans import find_scans, share_out
from .streams import ResumableSampler, SeededDataset, StreamLoader, TwoStreamLoader, default_num_workers
