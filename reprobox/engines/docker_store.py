"""The image store behind Docker's API (docker-py): Docker's own two stores, and Podman's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any, Final, cast

from reprobox import reference
from reprobox.engines import transfer
from reprobox.engines.builders import build_buildkit, build_classic, choose_builder
from reprobox.engines.connection import NoSuchThing, engine_errors
from reprobox.engines.digests import config_digest_of, has_containerd_store, known_digest, note_digest, patient
from reprobox.engines.store import ImageStore, StoredImage
from reprobox.errors import BuildError, EngineError, ImageNotFound
from reprobox.limits import default_processes
from reprobox.stopping import undivided

if TYPE_CHECKING:
    from collections.abc import Callable

    import docker
    from reprobox.engines.store import Builder, BuildJob, Reporter, Step
    from reprobox.engines.transfer import Patience
    from reprobox.reference import Reference

__all__ = ["DockerImageStore"]

CHUNK: Final = 1 << 20
_OURS: Final = "reprobox.input"
"""The label that every image of reprobox's has."""


class DockerImageStore(ImageStore):
    """The images of the engine that ``client`` is connected to.

    :param described: gives what the engine answers to ``GET /info``; it is asked here by default.
    """

    def __init__(self, client: docker.DockerClient, described: Callable[[], Mapping[str, Any]] | None = None) -> None:
        self._client = client
        self._described = described or client.info

    @cached_property
    def keeps_manifests(self) -> bool:  # type: ignore[override]  # an attribute that is found out when it is asked for
        with engine_errors("describe itself"):
            return has_containerd_store(self._described())

    def inspect(self, name: str) -> StoredImage:
        found = self.find(name)
        if found is None:
            raise ImageNotFound(f"the engine has no image {name}", remedy="build, pull or load it first")
        return found

    def find(self, name: str) -> StoredImage | None:
        try:
            with engine_errors(f"look up the image {name}"):
                return _stored(self._client.images.get(name).attrs)
        except NoSuchThing:
            return self._by_image_id(name) if reference.is_image_id(name) and self.keeps_manifests else None

    def _by_image_id(self, image_id: str) -> StoredImage | None:
        """Return the image of this config digest, which is no name where ids are manifests' digests.

        An image whose digest is not known yet is asked for it only where it is one of reprobox's: it is read whole.
        """
        for engine_id in self.ids():
            with suppress(ImageNotFound):
                image = self.inspect(engine_id)
                digest = known_digest(engine_id)
                if digest is None and _OURS in image.labels:
                    digest = self.image_id(image)
                if digest == image_id:
                    return image
        return None

    def image_id(self, image: StoredImage) -> str:
        if not self.keeps_manifests:
            return image.engine_id
        if digest := known_digest(image.engine_id):
            return digest
        with engine_errors(f"say what the image {image.engine_id} is"), patient(self._client):
            digest = config_digest_of(image.engine_id, self._client.api.get_image(image.engine_id, chunk_size=CHUNK))
        note_digest(image.engine_id, digest)
        return digest

    def note_image_id(self, image: StoredImage, image_id: str) -> None:
        if self.keeps_manifests:
            note_digest(image.engine_id, image_id)

    def ids(self, *, label: str | None = None, hidden: bool = False) -> tuple[str, ...]:
        filters = {"label": label, "dangling": True} if label else None
        with engine_errors("list its images"):
            return tuple(str(image["Id"]) for image in self._client.api.images(filters=filters, all=hidden))

    def history(self, name: str) -> tuple[str, ...]:
        with _about(name, f"say how {name} was made"):
            return tuple(str(line["CreatedBy"]) for line in reversed(self._client.api.history(name)))

    def load(self, archive: Iterable[bytes], log: Callable[[str], None]) -> None:
        with engine_errors("load the image"), patient(self._client):
            sent = cast("bytes", iter(archive))  # the stubs know no iterator
            for message in self._client.api.load_image(sent) or ():
                if problem := (message.get("errorDetail") or {}).get("message") or message.get("error"):
                    raise EngineError(
                        f"the engine could not load the image: {' '.join(str(problem).split())}",
                        remedy="see whether it has room, and whether it is an engine of this architecture",
                    )
                log(str(message.get("stream", "")).strip())

    def export(self, name: str) -> Iterator[bytes]:
        with _about(name, f"save {name}"), patient(self._client):
            yield from self._client.api.get_image(name, chunk_size=CHUNK)

    @contextmanager
    def files(self, name: str) -> Iterator[Iterable[bytes]]:
        with self._container(name, command=["true"], network_disabled=True) as made:
            yield self._exported(name, made)

    def _exported(self, name: str, container: str) -> Iterator[bytes]:
        with engine_errors(f"show what is in {name}"), patient(self._client):
            yield from self._client.api.export(container)

    @contextmanager
    def _container(self, image: str, **arguments: Any) -> Iterator[str]:
        """Make a container of an image, which goes when the ``with`` block ends, and give its id."""
        with ExitStack() as stack:
            with undivided(), _about(image, f"make a container of {image}"):
                made = self._client.api.create_container(image, use_config_proxy=False, **arguments)["Id"]
                stack.callback(self._remove_container, made, image)
            yield str(made)

    def _remove_container(self, container: str, image: str) -> None:
        with engine_errors(f"remove a container of {image}"):
            self._client.api.remove_container(container, force=True, v=True)

    def tag(self, name: str, new: str) -> None:
        wanted = reference.parse(new)
        with _about(name, f"name the image {new}"):
            self._client.api.tag(name, wanted.name, tag=wanted.tag or "latest")

    def remove(self, name: str, *, force: bool = False) -> None:
        with _about(name, f"remove {name}"):
            self._client.api.remove_image(name, force=force)

    def choose_builder(self, wanted: Builder | None, report: Reporter) -> Builder:
        return choose_builder(wanted, client=self._client, report=report)

    def build(self, job: BuildJob, builder: Builder, report: Reporter) -> StoredImage:
        if builder == "classic":
            build_classic(job, client=self._client, report=report)
        else:
            build_buildkit(job, client=self._client, report=report)
        if (found := self.find(job.tag)) is None:
            raise BuildError(
                "the image could not be built: the engine ended the build without an image",
                remedy="see what its builder says with --verbose",
            )
        return found

    @contextmanager
    def step(
        self, image: str, command: Sequence[str], *, environment: Mapping[str, str] | None = None, label: str = ""
    ) -> Iterator[Step]:
        program, *arguments = command
        with self._container(
            image, command=arguments, entrypoint=[program], user="0:0", environment=dict(environment or {}),
            labels={"reprobox.stage": label} if label else None,
            host_config=self._client.api.create_host_config(network_mode="none", pids_limit=default_processes()),
        ) as made:  # fmt: skip
            yield _DockerStep(self._client, made)

    def pull(
        self, wanted: Reference, report: Reporter, *, patience: Patience | None = None, platform: str | None = None
    ) -> str:
        return transfer.pull(self._client, wanted, report, patience=patience, platform=platform)

    def push(self, wanted: Reference, report: Reporter, *, patience: Patience | None = None) -> str:
        return transfer.push(self._client, wanted, report, patience=patience)


class _DockerStep:
    """A container that was made for one command."""

    def __init__(self, client: docker.DockerClient, container: str) -> None:
        self._client, self._container = client, container

    def put(self, folder: str, tar: IO[bytes]) -> None:
        with engine_errors(f"copy files to {folder} of a container"), patient(self._client):
            self._client.api.put_archive(self._container, folder, cast("bytes", tar))

    def run(self) -> int:
        with engine_errors("run a container"), patient(self._client):
            self._client.api.start(self._container)
            return int(self._client.api.wait(self._container)["StatusCode"])

    def said(self, *, last: int | None = None, stderr: bool = True) -> str:
        with engine_errors("say what a container wrote"):
            said = self._client.api.logs(
                self._container, stdout=True, stderr=stderr, tail="all" if last is None else last
            )
        return said.decode(errors="replace")

    def get(self, path: str) -> Iterator[bytes]:
        with engine_errors(f"copy {path} out of a container"), patient(self._client):
            chunks, _ = self._client.api.get_archive(self._container, path)
            yield from chunks


@contextmanager
def _about(name: str, doing: str) -> Iterator[None]:
    """Turn docker-py's exceptions into ours; what is missing is the image ``name``."""
    try:
        with engine_errors(doing):
            yield
    except NoSuchThing as error:
        raise ImageNotFound(
            f"the engine has no image {name}", remedy="build, pull or load it first", detail=error.detail
        ) from error


def _stored(attributes: Mapping[str, Any]) -> StoredImage:
    return StoredImage(
        engine_id=str(attributes["Id"]),
        names=tuple(attributes.get("RepoTags") or ()),
        repo_digests=tuple(attributes.get("RepoDigests") or ()),
        created=str(attributes.get("Created") or ""),
        architecture=str(attributes.get("Architecture") or ""),
        os=str(attributes.get("Os") or ""),
        variant=attributes.get("Variant") or None,
        container=attributes.get("Config") or {},
        layers=tuple((attributes.get("RootFS") or {}).get("Layers") or ()),
    )
