"""Upload a packed model and its results to a repository of the Hugging Face hub."""

import argparse

from huggingface_hub import HfApi, get_token

from espnet_ext.errors import UserError, cli


@cli
def main(argv=None):
    """Upload the files in ``argv``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repo", required=True, help="OWNER/NAME")
    parser.add_argument("files", nargs="+")
    args = parser.parse_args(argv)
    if not get_token():
        raise UserError("no token: set HF_TOKEN, or keep --skip_upload_hf true")
    api = HfApi()
    api.create_repo(args.repo, exist_ok=True)
    for file in args.files:
        api.upload_file(
            path_or_fileobj=file, path_in_repo=file.rsplit("/", 1)[-1], repo_id=args.repo
        )


if __name__ == "__main__":
    main()
