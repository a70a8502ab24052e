"""Upload a packed model to the Hugging Face hub, such that ESPnet's from_pretrained reads it.

The token is that of HF_TOKEN or of `hf auth login`.
"""

import tempfile
import zipfile
from pathlib import Path

from espnet_ext.errors import UserError, cli
from espnet_ext.options import Parser, repository

CARD = """---
tags: [espnet, audio, automatic-speech-recognition]
library_name: espnet
---
# {repo}

An ESPnet2 model that needs `espnet_ext`:

    import espnet_ext
    from espnet2.bin.asr_inference import Speech2Text

    speech2text = Speech2Text.from_pretrained("{repo}")

{results}
"""


@cli
def main(argv=None):
    """Upload the archive in ``argv``."""
    parser = Parser(description=__doc__)
    parser.option("repo", repository, help="OWNER/NAME", required=True)
    parser.add_argument("archive", help=".zip of stage 14")
    args = parser.parse_args(argv)
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError

    if not get_token():
        raise UserError("no token: set HF_TOKEN, or keep --skip_upload_hf true")
    api = HfApi()
    try:
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(args.archive) as archive:
            archive.extractall(folder)
            results = "".join(
                path.read_text(encoding="utf-8", errors="replace")
                for path in Path(folder).rglob("RESULTS.md")
            )
            card = CARD.format(repo=args.repo, results=results)
            Path(folder, "README.md").write_text(card, encoding="utf-8")
            api.create_repo(args.repo, exist_ok=True)
            api.upload_folder(repo_id=args.repo, folder_path=folder)
    except (HfHubHTTPError, HFValidationError, HTTPError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{args.repo}: refused by the hub, or no way to it ({reason})") from None
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{args.archive}: cannot be read or unpacked ({error})") from error


if __name__ == "__main__":
    main()
