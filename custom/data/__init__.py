"""From files to batches: data lists, checks, readers, streams."""

from .caching import cached_dataset
from .channels import Grouping, group_channels
from .checks import CaseRule, check_cases, image_problems, read_image, read_label
from .datalist import LISTS, default_evaluation_list, load_datalist, overlap_problems, read_lists
from .dicom import SeriesReader, check_series, dicom_files
from .dicom_headers import Series, Slice, read_series
from .dicom_seg import SaveDicomSegmentationd, is_series, refuse_without_highdicom, segmentation_problem
from .finding import VOLUME_SUFFIXES, Listing, list_scans, tell_left_out
from .folders import walk
from .geometry import foreign_unit, grid_problem, has_volume, lacks_spacing, size_problem
from .labels import to_label
from .loading import CheckScand, ScanLoader, Unreadable
from .nifti import NiftiWriter, SeriesWriter
from .photos import PHOTO_SUFFIXES, PhotoReader, is_colored, is_photo
from .readers import LoadLabel, LoadScan, LoadScand
from .record import InferenceRecord
from .scans import find_scans, share_out
from .streams import ResumableSampler, SeededDataset, SeededIndex, StreamLoader, TwoStreamLoader, default_num_workers
