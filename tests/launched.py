"""Commands in two processes on the CPU."""

import os
import subprocess
import sys

# `accelerate launch --cpu --num_processes 2` starts one process: on the CPU it leaves more to MPI. With
# --multi_gpu it starts two, GPUs or not, which tests/test_processes.py looks at.
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
LAUNCH += ["--num_machines", "1", "--main_process_port", "0", "--mixed_precision", "no"]
LAUNCH += ["--dynamo_backend", "no"]


def launch(*words: object) -> subprocess.CompletedProcess[str]:
    """Run a script, or a module after `-m`, in two processes."""
    return subprocess.run(
        [*LAUNCH, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        # One thread each, and no GPU that two processes would have to share.
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
