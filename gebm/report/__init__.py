"""What a run says of itself: tables of text, and one page to look at."""

from gebm.report.text import (
    distance_row,
    distance_rows,
    kale_rows,
    mixing_rows,
    mixing_warning,
    partition_rows,
    sampler_row,
    table,
)

__all__ = ["distance_row", "distance_rows", "kale_rows", "mixing_rows", "mixing_warning", "partition_rows"]
__all__ += ["sampler_row", "table"]
