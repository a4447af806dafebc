"""Training, Stage I and II: distil the text LLM into its speech-adapted copy.

Run one with `python launch_gpu.py RECIPE`; what that starts is `python -m salad.training --lab LAB RUN_ID`, under torchrun
where there are several GPUs, which runs or resumes the run whose config.json lies in lab/runs/RUN_ID. Exit status: 0 done,
75 preempted (SIGTERM, checkpoint written), anything else failed.

loop: the loop · step: forward, backward, update · start: what a run begins with · schedule: learning rates · metrics ·
checkpoints · distributed: several processes.
"""

from salad.training.command import main
from salad.training.loop import train
from salad.training.metrics import PEAK_TFLOPS, flops
from salad.training.schedule import decay_start, learning_rate
from salad.training.start import load_data, prepare, prepared, resolve, start_model
from salad.training.step import one_step

__all__ = ["PEAK_TFLOPS", "decay_start", "flops", "learning_rate", "load_data", "main", "one_step", "prepare", "prepared",
           "resolve", "start_model", "train"]  # fmt: skip
