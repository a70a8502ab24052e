"""Serve models to a live page and to programs: text as it is spoken, and what each model holds.

Every EXPDIR hears the same microphone or file, side by side. Without one it is the small model in
the package, which knows the digits in English. With --runtime onnxruntime every EXPDIR is what
espnet-ext export has made. Open the address that is printed; docs/serving.md has the protocol.
"""

import ipaddress
import secrets
from pathlib import Path

from espnet_ext import model_options as shared
from espnet_ext.errors import UserError, cli
from espnet_ext.files import MB
from espnet_ext.options import (
    Parser,
    chosen,
    listed,
    maybe,
    path,
    port,
    positive,
    positive_int,
    text,
)
from espnet_ext.pretrained import PRETRAINED, RECORDING
from espnet_ext.serve.limits import Limits

LIMITS = {
    "max_clients": (positive_int, "connections at once"),
    "max_message": (positive_int, "bytes of a message"),
    "max_messages": (positive_int, "messages of a client a second"),
    "max_speed": (positive, "times real time that audio is taken at"),
    "max_seconds": (positive, "length of a stream"),
    "idle_seconds": (positive, "without a packet"),
    "stop_seconds": (positive, "to finish streams after SIGTERM"),
}


def local(host):
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@cli
def main(argv=None):
    """Run the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("expdirs", nargs="*", type=path, metavar="EXPDIR")
    shared.add_checkpoint(parser)
    shared.add_device(parser)
    shared.add_stream(parser)
    shared.add_runtime(parser)
    shared.add_ctc_search(parser)
    shared.add_endpoint(parser)
    parser.option("host", text, "127.0.0.1", "address to listen on; another needs a token")
    parser.option("port", port, 8000, "0: any that is free")
    parser.option("token", maybe(text), help="word to know [none; random for another --host]")
    parser.option(
        "allowed_origins", listed(text), [], "pages elsewhere that may connect, https://example.org"
    )
    parser.option("certfile", maybe(path), help="PEM, for https, which microphones need")
    parser.option("keyfile", maybe(path), help="its key")
    parser.option("budget_mb", positive, 256, "MB that the streams of each model may hold")
    parser.option("max_batch", positive_int, 32, "streams in one step")
    for name, (kind, said) in LIMITS.items():
        parser.option(name, kind, getattr(Limits, name), said)
    args = parser.parse_args(argv)
    try:
        from espnet_ext.serve.server import check_certificate, serve
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name}: missing; pip install 'espnet-ext[serve]'") from None
    check_certificate(args.certfile, args.keyfile)
    from espnet_ext.serve.engine import load_models

    exported = args.runtime != "torch"
    if exported and not args.expdirs:
        raise UserError("EXPDIR: missing; give directories that espnet-ext export has made")
    folders = args.expdirs or [RECORDING.parent]
    names = [Path(folder).resolve().name for folder in args.expdirs] or [PRETRAINED]
    args.token = args.token or (None if local(args.host) else secrets.token_urlsafe(16))
    args.allowed_origins = tuple(origin.rstrip("/") for origin in args.allowed_origins)
    limits = Limits(**chosen(args, Limits))
    if exported:
        files = [shared.exported_files(args, folder) for folder in folders]
    else:
        import torch

        torch.set_num_threads(args.threads)
        files = [shared.trained_files(args, folder) for folder in folders]
    models = load_models(
        list(zip(names, files, strict=True)),
        shared.stream_options(args),
        int(args.budget_mb * MB),
        args.max_seconds,
        args.max_batch,
    )
    for model in models:
        print(f"{model.name}: {model.pool.max_streams} streams in {args.budget_mb:g} MB")
    serve(
        models, limits, args.host, args.port, args.certfile, args.keyfile,
        lambda url: print(f"Open {url}", flush=True),
    )  # fmt: skip


if __name__ == "__main__":
    main()
