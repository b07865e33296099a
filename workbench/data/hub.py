"""Data sets and models by their id on the hub: a mirror, the libraries' cache, or the network.

Named files of the forms that we read ourselves are only fetched, so complaints name file and row
and one odd row is no reason to refuse the rest; anything else goes through ``datasets``. Both are
imported when an id is named and not before, show no progress and report nothing about the user.
No code of a data set is run. Knows nothing of what rows hold.
"""

import difflib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import DataError

MIRROR = "WORKBENCH_HUB_MIRROR"

_CONNECT_SECONDS = 10.0  # as the hub's library
_NO_CONNECTION = frozenset({"ConnectError", "ConnectTimeout", "ConnectionError", "ProxyError"})


@dataclass(frozen=True)
class HubSplit:
    """One split of a data set, as tables on this machine.

    Attributes:
        name: of the split.
        files: Arrow streams, in the order of their rows.
    """

    name: str
    files: tuple[Path, ...]


def fetch_files(hub_id: str, files: Sequence[str], where: str) -> list[Path]:
    """Give files of a data set as files on this machine, fetched if they are not here yet.

    Args:
        hub_id: owner/name.
        files: paths within the data set.
        where: the key of the config, for complaints.

    Raises:
        DataError: the data set or a file is not there, may not be read, or there is no network.
    """
    mirrored = _in_mirror(hub_id)
    if mirrored is not None:
        for name in files:
            if not (mirrored / name).is_file():
                held = [str(file.relative_to(mirrored)) for file in _files_below(mirrored)]
                raise _no_file(hub_id, name, held, where)
        return [mirrored / name for name in files]
    hub = _import_hub()
    _settle_reach(hub)
    # What the libraries' cache holds is enough when either of them is told to stay offline.
    offline = hub.constants.HF_HUB_OFFLINE or _is_set("HF_DATASETS_OFFLINE")
    fetched = []
    for name in files:
        with _explained(hub_id, where):
            try:
                path = hub.hf_hub_download(
                    hub_id, name, repo_type="dataset", local_files_only=offline
                )
            except hub.errors.RemoteEntryNotFoundError as error:
                held = hub.HfApi().list_repo_files(hub_id, repo_type="dataset")
                raise _no_file(hub_id, name, held, where) from error
        fetched.append(Path(path))
    return fetched


def load_split(hub_id: str, files: Sequence[str], split: str | None, where: str) -> HubSplit:
    """Give one split of a data set as the hub's library reads it.

    Args:
        hub_id: owner/name.
        files: paths or patterns within the data set; empty takes what its card names.
        split: its name; None takes the only one, or the one called train.
        where: the key of the config, for complaints.

    Raises:
        DataError: the data set is not there, may not be read or cannot be built; it has no such
            split, or several of which none is meant; or there is no network.
    """
    datasets = _import_datasets()
    mirrored = _in_mirror(hub_id)
    if mirrored is None and not datasets.config.HF_HUB_OFFLINE:
        datasets.config.HF_HUB_OFFLINE = not _settle_reach(_import_hub())
    with _explained(hub_id, where):
        splits = datasets.load_dataset(
            str(mirrored or hub_id), data_files=list(files) or None, keep_in_memory=False
        )
    name = choose_split(list(splits), split, hub_id, where)
    tables = splits[name].cache_files
    return HubSplit(name, tuple(Path(table["filename"]) for table in tables))


def fetch_model(hub_id: str) -> Path:
    """Download a model into the cache of the hub's library; give its folder there.

    Weights in one form alone: safetensors, else ``.bin``. No code of its author comes along.

    Raises:
        DataError: it is not there, may not be read, has no weights, or there is no network.
    """
    hub = _import_hub()
    _settle_reach(hub)
    try:
        files = hub.HfApi().list_repo_files(hub_id)
        return Path(hub.snapshot_download(hub_id, allow_patterns=model_files(files)))
    except Exception as error:
        names = {kind.__name__ for cause in _causes(error) for kind in type(cause).__mro__}
        raise _explain_model(names, hub_id, " ".join(str(error).split())) from error


def model_files(files: Sequence[str]) -> list[str]:
    """Choose what belongs to a model of the files at the top of a repository.

    Raises:
        ValueError: none of them holds weights.
    """
    top = [name for name in files if "/" not in name]
    forms = (("model", ".safetensors"), ("pytorch_model", ".bin"))
    for begin, end in forms:
        weights = [name for name in top if name.startswith(begin) and name.endswith(end)]
        if weights:
            beside = [
                name
                for name in top
                if name.endswith((".json", ".jinja", ".model", ".txt"))
                and not name.endswith(".index.json")
            ]
            licenses = [name for name in top if name.startswith(("LICENSE", "NOTICE"))]
            index = [name for name in top if name == f"{begin}{end}.index.json"]
            return sorted({*weights, *index, *beside, *licenses})
    raise ValueError("none of its files holds weights that are read here")


def _explain_model(names: set[str], hub_id: str, said: str) -> DataError:
    where = f"model {hub_id}"
    if "GatedRepoError" in names:
        return DataError(
            "is gated, and access to it is not granted here",
            where=where,
            remedy="accept its terms on its page, then set HF_TOKEN to a token of yours",
        )
    if names & {"OfflineModeIsEnabled", "ConnectError", "TimeoutException", "ConnectionError"}:
        return DataError(
            "is not on this machine, and the hub cannot be reached from here",
            where=where,
            remedy=f"run `hf download {hub_id}` where it can be reached, and name the folder",
        )
    if names & {"RepositoryNotFoundError", "HFValidationError"}:
        return DataError(
            "is not on the hub",
            where=where,
            remedy="correct the id; for a private model set HF_TOKEN to a token that may read it",
        )
    return DataError(
        f"cannot be fetched: {said}", where=where, remedy="try again later, or name a folder"
    )


def choose_split(names: Sequence[str], split: str | None, hub_id: str, where: str) -> str:
    """Choose a split: the one asked for, else the only one, else the one called train.

    Raises:
        DataError: there is no such split, or several of which none is meant.
    """
    listed = ", ".join(names)
    if split is None:
        if len(names) == 1:
            return names[0]
        if "train" in names:
            return "train"
        what = f"{hub_id} has the splits {listed} and none called train"
        raise DataError(what, where=where, remedy=f"choose one: {where}.split: {names[0]}")
    if split in names:
        return split
    near = difflib.get_close_matches(split, names, n=1) or list(names[:1])
    raise DataError(
        f"{hub_id} has no split {split!r}, its splits are {listed}",
        where=f"{where}.split",
        remedy=f"set it to {near[0]}",
    )


# ---- where a data set is looked for ----------------------------------------------------------


def _in_mirror(hub_id: str) -> Path | None:
    """Find a data set's folder in the mirror; None without one, or if it is not there."""
    mirror = os.environ.get(MIRROR, "")
    if not mirror:
        return None
    root = Path(mirror).expanduser()
    if not root.is_dir():
        raise DataError(
            "is no folder", where=f"{MIRROR}={mirror}", remedy="create it, or unset the variable"
        )
    folders = (root / "datasets" / hub_id, root / hub_id)
    return next((folder for folder in folders if folder.is_dir()), None)


def _files_below(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _near_in_mirror(hub_id: str) -> str:
    """Ask whether an id of the mirror is meant; nothing if none is like it."""
    mirror = os.environ.get(MIRROR, "")
    if not mirror:
        return ""
    root = Path(mirror).expanduser()
    folders = [*root.glob("*/*"), *(root / "datasets").glob("*/*")]
    ids = sorted(f"{folder.parent.name}/{folder.name}" for folder in folders if folder.is_dir())
    near = difflib.get_close_matches(hub_id, ids, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").upper() in ("1", "TRUE", "ON", "YES")


def _import_hub() -> Any:  # noqa: ANN401  the library has no types for what is used of it
    import huggingface_hub
    import huggingface_hub.errors
    from huggingface_hub.utils.tqdm import disable_progress_bars

    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
    if huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
        disable_progress_bars()
    return huggingface_hub


def _settle_reach(hub: Any) -> bool:  # noqa: ANN401  the library has no types
    """Say whether the hub can be reached; if not, this process is offline from now on.

    The libraries would try for half a minute before they look into their own cache. Only a
    connection that cannot be made counts, twice: whoever answers late is left to their patience.
    """
    if hub.constants.HF_HUB_OFFLINE:
        return False
    if _is_set("HF_DATASETS_OFFLINE"):
        return True  # nothing is asked: each of the libraries knows what it was told
    for _ in range(2):
        try:
            hub.get_session().head(hub.constants.ENDPOINT, timeout=_CONNECT_SECONDS)
        except Exception as error:  # noqa: BLE001 - of a library that goes by several names
            if not {kind.__name__ for kind in type(error).__mro__} & _NO_CONNECTION:
                return True
        else:
            return True
    hub.constants.HF_HUB_OFFLINE = True
    return False


def _import_datasets() -> Any:  # noqa: ANN401  the library has no types
    _import_hub()
    import datasets

    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    return datasets


# ---- what went wrong -------------------------------------------------------------------------


def _no_file(hub_id: str, name: str, held: Sequence[str], where: str) -> DataError:
    near = difflib.get_close_matches(name, held, n=1)
    shown = ", ".join(held[:_NAMES_SHOWN]) + (", …" if len(held) > _NAMES_SHOWN else "")
    return DataError(
        f"{hub_id} has no file {name}; it has {shown or 'none'}",
        where=f"{where}.files",
        remedy=f"did you mean {near[0]}?" if near else "name one of them",
    )


@contextmanager
def _explained(hub_id: str, where: str) -> Iterator[None]:
    """Turn what the hub's libraries raise into an error that says what to do."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # of a dozen kinds, from three libraries
        raise _explain(error, hub_id, where) from error


def _explain(error: Exception, hub_id: str, where: str) -> DataError:
    names = {kind.__name__ for cause in _causes(error) for kind in type(cause).__mro__}
    said = " ".join(str(error).split())
    if "is a gated dataset" in said:  # datasets drops the cause that says so by its kind
        names.add("GatedRepoError")
    for kinds, explain in _EXPLANATIONS:
        if names & kinds:
            what, remedy = explain(hub_id, said)
            return DataError(what, where=where, remedy=remedy)
    what, remedy = _unbuilt(hub_id, said)
    return DataError(what, where=where, remedy=remedy)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _gated(hub_id: str, said: str) -> tuple[str, str]:
    return (
        f"{hub_id} is a gated data set, and access to it is not granted here",
        "accept its terms on its page, then set HF_TOKEN to a token of yours",
    )


def _absent(hub_id: str, said: str) -> tuple[str, str]:
    return (
        f"there is no file or folder {hub_id}, and no data set of that name on the hub",
        "correct the path; for a private data set set HF_TOKEN to a token that may read it",
    )


def _unreachable(hub_id: str, said: str) -> tuple[str, str]:
    mirror = os.environ.get(MIRROR, "")
    looked = f", in the mirror {mirror}" if mirror else ""
    folder = mirror or "MIRROR"
    remedy = f"correct the path{_near_in_mirror(hub_id)}; or run `hf download {hub_id} "
    remedy += f"--repo-type dataset --local-dir {folder}/{hub_id}` where the hub can be reached"
    if not mirror:
        remedy += f", and set {MIRROR} to that folder MIRROR"
    return (
        f"there is no file or folder {hub_id}; as a data set of the hub it is not on this machine"
        f"{looked}, and the hub cannot be reached from here",
        remedy,
    )


def _failed(hub_id: str, said: str) -> tuple[str, str]:
    return (
        f"the hub does not give {hub_id}: {said}",
        f"try again later, or name a folder that holds it with {MIRROR}",
    )


def _several(hub_id: str, said: str) -> tuple[str, str]:
    return (
        f"{hub_id} holds no data that can be taken as a whole: {said}",
        "name its files under `files`",
    )


def _unbuilt(hub_id: str, said: str) -> tuple[str, str]:
    return (
        f"{hub_id} cannot be read as a whole: {said or 'the library gives no reason'}",
        "name its .json, .jsonl or .parquet files under `files`: they are read row by row",
    )


_NAMES_SHOWN = 8
# By name, so that the libraries are not imported for it; the first that fits wins.
_EXPLANATIONS: tuple[tuple[frozenset[str], Callable[[str, str], tuple[str, str]]], ...] = (
    (frozenset({"GatedRepoError"}), _gated),
    (frozenset({"OfflineModeIsEnabled", "ConnectError", "TimeoutException"}), _unreachable),
    (frozenset({"LocalEntryNotFoundError", "ConnectionError"}), _unreachable),
    (frozenset({"RepositoryNotFoundError", "HFValidationError", "DatasetNotFoundError"}), _absent),
    (frozenset({"HfHubHTTPError"}), _failed),
    (frozenset({"DatasetBuildError", "FileFormatError", "CastError"}), _unbuilt),
    (frozenset({"FileNotFoundError", "ValueError"}), _several),
)
