"""What is shown to people: the HTML report of a run, and of a comparison of runs.

Files that explain themselves, without a server, a network or a script.
"""

from fewstep.report.comparison import DistanceCurve, plot_curves, write_comparison_report
from fewstep.report.run_report import write_run_report

__all__ = ["DistanceCurve", "plot_curves", "write_comparison_report", "write_run_report"]
