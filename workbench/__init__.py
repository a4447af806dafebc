"""What people look at and press.

cli/        the command line `salad`: a module for each group of commands
arena/      the A/B app: ask by text or voice, compare answers, vote
review/     functions of notebooks/selection.py: texts, clusters, verdicts, exports
reports/    what came out: the report, its figures and tables, the findings of a study
charts/     one function per figure
panels/     what notebooks show beside charts
listening/  the widget that reads, plays and judges a text
divergences.py, control.py   functions of notebooks/divergences.py and notebooks/training.py
advice.py   what to do first in a lab that has nothing to show
tables.py   an Arrow table on the command line and in files
"""
