#!/usr/bin/env bash
# Jobs on a Slurm cluster, under the name by which ESPnet's launcher knows that it may call srun.
exec python -m espnet_ext.bin.run_jobs --backend slurm "$@"
