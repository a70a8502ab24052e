# Sourced by asr.sh: how jobs are run. Choose with cmd_backend=..., see docs/slurm.md.
#   local   on this machine
#   slurm   on a Slurm cluster, with the options of conf/slurm.conf
#   NAME    as conf/cmd_NAME.sh says
# Options behind a command are those of its jobs, e.g. train_cmd="slurm.pl --mem 4G --time 2:00:00".
cmd_backend="${cmd_backend:-local}"

case "${cmd_backend}" in
local) train_cmd="python -m espnet_ext.bin.run_jobs" cuda_cmd="${train_cmd}" decode_cmd="${train_cmd}" ;;
slurm)
    PATH="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/espnet_ext/jobs:${PATH}"
    train_cmd="slurm.pl"             # statistics
    cuda_cmd="slurm.pl"              # training, decoding with --gpu_inference true
    decode_cmd="slurm.pl"            # decoding
    ;;
*)
    if [ ! -f "conf/cmd_${cmd_backend}.sh" ]; then
        echo "cmd.sh: error: cmd_backend=${cmd_backend} is neither local nor slurm, and there is no conf/cmd_${cmd_backend}.sh" >&2
        return 1
    fi
    . "conf/cmd_${cmd_backend}.sh"
    ;;
esac
export train_cmd cuda_cmd decode_cmd
