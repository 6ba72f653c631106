"""What a run leaves behind: run.json, pictures, one page."""

from .page import report
from .record import data_list_record, refuse_older_weights, refuse_other_run, write_run_record
