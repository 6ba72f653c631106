"""What a run leaves behind: run.json, pictures, one page."""

from .drawing import COLORS, Panel, case_panels, draw_panels, largest_slice, new_figure
from .page import report
from .pages import Curve, draw_curves, embedded, overall, read_curves, read_rows, saved, write_page
from .record import RECORD, data_list_record, read_run_record, training_seconds, write_run_record
