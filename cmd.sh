# Sourced by asr.sh: how jobs are run. Choose with cmd_backend=...
#   local   on this machine
cmd_backend="${cmd_backend:-local}"

case "${cmd_backend}" in
local)
    train_cmd="python -m espnet_ext.bin.run_jobs"
    cuda_cmd="${train_cmd}"
    decode_cmd="${train_cmd}"
    ;;
*)
    echo "cmd.sh: error: cmd_backend=${cmd_backend} is unknown, use local" >&2
    return 1
    ;;
esac
export train_cmd cuda_cmd decode_cmd
