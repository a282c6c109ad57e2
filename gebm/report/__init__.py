"""What a run says of itself: tables of text, and one page to look at."""

from gebm.report.contents import Chains, Neighbours, Report, Setting
from gebm.report.memorisation import closeness, nearest
from gebm.report.page import render
from gebm.report.text import (
    ess_row,
    estimate,
    gain,
    kale_rows,
    metric_note,
    metric_rows,
    mixing_rows,
    mixing_warning,
    nll_rows,
    partition_rows,
    sampler_row,
    side_by_side,
    table,
    tail_text,
)

__all__ = ["Chains", "Neighbours", "Report", "Setting", "closeness", "ess_row", "estimate", "gain"]
__all__ += ["kale_rows", "metric_note", "metric_rows", "mixing_rows", "mixing_warning", "nll_rows", "nearest"]
__all__ += ["partition_rows", "render", "sampler_row", "side_by_side", "table", "tail_text"]
