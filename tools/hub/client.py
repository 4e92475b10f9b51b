"""What Hugging Face's own packages do with the hub that the environment names: the Python half of interop.py.

    python tools/hub/client.py upload FOLDER REPOSITORY model|dataset
    python tools/hub/client.py download REPOSITORY model|dataset FOLDER
    python tools/hub/client.py load BASE ADAPTER
    python tools/hub/client.py cache REPOSITORY...
    python tools/hub/client.py offline BASE ADAPTER ROWS
    python tools/hub/client.py refusals REPOSITORY GATED
    python tools/hub/client.py commits REPOSITORY FILE
"""

import filecmp
import json
import sys
from pathlib import Path

import huggingface_hub
from huggingface_hub import HfApi


def upload(folder: str, repository: str, kind: str) -> None:
    """Makes a private repository and uploads a folder to it."""
    api = HfApi()
    api.create_repo(repository, repo_type=kind, private=True, exist_ok=True)
    print(api.upload_folder(folder_path=folder, repo_id=repository, repo_type=kind, commit_message="By Python").oid)


def download(repository: str, kind: str, folder: str) -> None:
    """Downloads a repository and compares it with a folder, file by file."""
    found = Path(huggingface_hub.snapshot_download(repository, repo_type=kind))
    names = {str(path.relative_to(found)) for path in found.rglob("*") if path.is_file()}
    same, other, missing = filecmp.cmpfiles(found, folder, names, shallow=False)
    print(json.dumps({"files": sorted(names), "same": sorted(same), "other": sorted(other), "missing": sorted(missing)}))


def load(base: str, adapter: str) -> None:
    """Loads a base with its tokenizer, and an adapter on it, with transformers and PEFT."""
    import torch
    from huggingface_hub import ModelCard
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, tuned_tokenizer = AutoTokenizer.from_pretrained(base), AutoTokenizer.from_pretrained(adapter)
    text = "Rest helps, and so does talking."
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert tuned_tokenizer(text, return_tensors="pt").input_ids.equal(ids), "the tokenizers differ"
    model = AutoModelForCausalLM.from_pretrained(base)
    before = model(ids).logits
    tuned = PeftModel.from_pretrained(model, adapter)
    after = tuned(ids).logits
    assert not torch.allclose(before, after), "the adapter does nothing"
    card = ModelCard.load(adapter).data.to_dict()
    config = tuned.peft_config["default"]
    print(json.dumps({"card": card, "base": config.base_model_name_or_path, "revision": config.revision}))


def cache(*repositories: str) -> None:
    """Looks at the cache as `hf cache` does: it is whole, and holds these."""
    found = huggingface_hub.scan_cache_dir()
    assert not found.warnings, found.warnings
    held = {repo.repo_id: sorted(file.file_name for revision in repo.revisions for file in revision.files) for repo in found.repos}
    assert set(repositories) <= set(held), held
    print(json.dumps(held))


def offline(base: str, adapter: str, rows: str) -> None:
    """Loads what somebody else has put into the cache."""
    import pyarrow.parquet
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert huggingface_hub.constants.HF_HUB_OFFLINE
    AutoTokenizer.from_pretrained(base)
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    huggingface_hub.snapshot_download(base)
    path = huggingface_hub.hf_hub_download(rows, "data/train-00001-of-00002.parquet", repo_type="dataset")
    kind = tuned.peft_config["default"].peft_type.value
    print(json.dumps({"rows": pyarrow.parquet.read_table(path).num_rows, "adapter": kind}))


def refusals(repository: str, gated: str) -> None:
    """Checks that what the hub refuses is known by its name."""
    from huggingface_hub import errors

    for expected, call in [
        (errors.RepositoryNotFoundError, lambda: HfApi().model_info(f"{repository}-none")),
        (errors.RepositoryNotFoundError, lambda: HfApi(token=False).model_info(repository)),
        (errors.RevisionNotFoundError, lambda: HfApi().model_info(repository, revision="v9")),
        (errors.RemoteEntryNotFoundError, lambda: huggingface_hub.hf_hub_download(repository, "none.json")),
        (errors.GatedRepoError, lambda: huggingface_hub.hf_hub_download(gated, "config.json", token=False)),
        (errors.HfHubHTTPError, lambda: HfApi(token="hf_old").whoami()),
    ]:
        try:
            call()
        except errors.HfHubHTTPError as error:
            assert type(error) is expected, (expected, type(error), error)
        except errors.LocalEntryNotFoundError as error:
            assert isinstance(error.__cause__, expected), (expected, error.__cause__)
        else:
            raise AssertionError(f"no {expected.__name__}")
    print(json.dumps({"checked": 6}))


def commits(repository: str, file: str) -> None:
    """Uploads a file that is there already and tells whether that made a commit."""
    api = HfApi()
    before = api.model_info(repository).sha
    path = huggingface_hub.hf_hub_download(repository, file)
    api.upload_file(path_or_fileobj=path, path_in_repo=file, repo_id=repository)
    print(json.dumps({"new": api.model_info(repository).sha != before}))


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    commands = [upload, download, load, cache, offline, refusals, commits]
    {function.__name__: function for function in commands}[command](*arguments)
