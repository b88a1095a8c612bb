"""The shape of ``broker.yaml``: one frozen model per section, defaults included.

Sizes are MiB, times are seconds. Where a key is documented in the README it is not explained
again here; the validators say what makes a value wrong.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

import jmespath
from jmespath.exceptions import JMESPathError
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
)
from yarl import URL

from mgpu.core.model import LockMode, NothingToEvict, Order, Victims


class Section(BaseModel):
    """A part of the file: frozen, and no key goes unnoticed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _compiles(expression: str) -> str:
    try:
        jmespath.compile(expression)
    except (JMESPathError, RecursionError) as error:
        raise ValueError(f"not a JMESPath expression: {error}") from error
    return expression


def _absolute(path: str) -> str:
    if not path.startswith("/"):
        raise ValueError("must start with /")
    return path


def _names_no_host(path: str) -> str:
    """Refuse what a URL reader might take for another host."""
    if _absolute(path).startswith(("//", "/\\")):
        raise ValueError("must be a path: no // and no /\\ at its start")
    return path


def _stays_below_the_origin(path: str) -> str:
    """Refuse what a URL reader might take for another host, and what no path can hold."""
    _absolute(path)
    if path.startswith("//") or set(path) & set("\\#") or not path.isascii():
        raise ValueError("must be a path in ASCII: no //, backslash or fragment")
    if not path.isprintable() or " " in path:
        raise ValueError("must be a path without blanks and control characters")
    return path


def _words(command: Any) -> Any:
    """Take a line apart as a shell does, without one: no variables, no wildcards, no pipes."""
    return tuple(shlex.split(command)) if isinstance(command, str) else command


def _not_empty(command: tuple[str, ...]) -> tuple[str, ...]:
    if not command or not command[0]:
        raise ValueError("must name a program")
    return command


def _as_text(value: Any) -> Any:
    """Numbers are text in an environment; true and false are not, as nobody agrees on how."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


JmesPath = Annotated[str, AfterValidator(_compiles)]
CallPath = Annotated[str, AfterValidator(_stays_below_the_origin)]
Port = Annotated[int, Field(ge=1, le=65535)]
UrlPath = Annotated[str, AfterValidator(_absolute)]
UpstreamPath = Annotated[str, AfterValidator(_names_no_host)]
"""A path at a consumer that is still to be encoded or filled in."""
Command = Annotated[tuple[str, ...], BeforeValidator(_words), AfterValidator(_not_empty)]
EnvironmentValue = Annotated[str, BeforeValidator(_as_text)]
Seconds = Annotated[float, Field(gt=0)]
Mib = Annotated[int, Field(ge=0)]
Status = Annotated[int, Field(ge=100, le=599)]
Method = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]


class ServerConfig(Section):
    """Where the broker listens, and whom it lets in."""

    listen: str = "127.0.0.1:7070"
    allowed_hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "[::1]")
    allowed_origins: tuple[str, ...] = ()
    api_keys: tuple[SecretStr, ...] = ()
    api_keys_file: Path | None = None
    max_body_mib: Annotated[int, Field(gt=0)] = 256
    drain_timeout_s: Seconds = 30.0


class SimulatedGpuConfig(Section):
    """A GPU that is not there, for trying the broker out."""

    total_mib: Annotated[int, Field(gt=0)] = 24576
    directory: Path | None = None
    """Where processes write down what they hold (``mgpu.gpu.simulated.HeldMemory``); None: what the
    broker has loaded counts as held."""


class GpuConfig(Section):
    """Which GPUs, how they are read and how they are shared."""

    backend: Literal["nvml", "simulated"] = "nvml"
    devices: Literal["all"] | tuple[int | str, ...] = "all"
    cushion_mib: Mib = 256
    lock: LockMode = LockMode.EXCLUSIVE
    sample_interval_s: Seconds = 1.0
    settle_timeout_s: Seconds = 5.0
    simulated: SimulatedGpuConfig = SimulatedGpuConfig()


class SchedulerConfig(Section):
    """Who is served next, and who has to leave."""

    order: Order = Order.PLANNED
    victims: Victims = Victims.LRU
    max_queue: Annotated[int, Field(gt=0)] = 512
    max_wait_s: Seconds = 600.0
    max_overtake_s: Annotated[float, Field(ge=0)] = 120.0
    min_resident_s: Annotated[float, Field(ge=0)] = 0.0
    max_resident: Annotated[int, Field(ge=0)] = 0
    prefetch: bool = True
    max_parallel_loads: Annotated[int, Field(gt=0)] = 2
    restore_when_idle: bool = False
    when_nothing_to_evict: NothingToEvict = NothingToEvict.REJECT


class RequestConfig(Section):
    """A request to a consumer itself: never to another host than that of its ``url``."""

    method: Method = "GET"
    path: CallPath
    port: Port | None = None
    body: Any = None
    headers: dict[str, str] = Field(default_factory=dict)


class CallConfig(RequestConfig):
    """A request to a consumer's own endpoint that makes it load or unload."""

    method: Method = "POST"
    timeout_s: Seconds
    ok: tuple[Status, ...] = (200, 202, 204)
    when: JmesPath | None = None
    repeatable: bool = True


class LoadConfig(CallConfig):
    """The call that loads."""

    timeout_s: Seconds = 120.0


class ForEachConfig(RequestConfig):
    """Where a consumer says what to unload: one call for each item."""

    items: JmesPath


class UnloadConfig(CallConfig):
    """The call that unloads."""

    timeout_s: Seconds = 30.0
    for_each: ForEachConfig | None = None
    until_absent: bool = False


class ProbeConfig(RequestConfig):
    """A question to a consumer that changes nothing."""

    format: Literal["json", "prometheus"] = "json"


class HealthConfig(ProbeConfig):
    """Where a consumer says that it is well."""

    ok: tuple[Status, ...] = (200,)
    when: JmesPath | None = None


class ResidentConfig(ProbeConfig):
    """Where a consumer says whether its weights are in VRAM."""

    when: JmesPath
    absent: tuple[Status, ...] = ()


class BusyConfig(ProbeConfig):
    """Where a consumer says whether it computes, for whomever."""

    when: JmesPath


class ModelsConfig(Section):
    """Where a consumer says which models it serves."""

    path: CallPath = "/v1/models"
    names: JmesPath = "data[].id"


class PollConfig(Section):
    """Where a consumer says what has become of one piece of work."""

    path: UpstreamPath
    interval_s: Seconds = 0.25
    until: JmesPath
    failed: JmesPath | None = None
    error: JmesPath | None = None


class ListedConfig(Section):
    """Where a consumer names all the work that is not over."""

    path: UpstreamPath
    ids: JmesPath


class ResultsConfig(Section):
    """What has come of a piece of work."""

    path: UpstreamPath
    files: JmesPath | None = None


class CancelConfig(Section):
    """A request that makes a consumer drop a piece of work."""

    method: Method = "POST"
    path: UpstreamPath
    body: Any = None


class CompletionConfig(Section):
    """When work is over that goes on after the answer to the request for it."""

    requests: tuple[str, ...]
    id: JmesPath
    poll: PollConfig
    listed: ListedConfig | None = None
    results: ResultsConfig | None = None
    cancel: tuple[CancelConfig, ...] = ()


class WorkflowConfig(Section):
    """A workflow of the user's that simple requests are filled into."""

    file: Path
    path: UpstreamPath = "/prompt"
    places: dict[str, str | tuple[str, ...]]
    defaults: dict[str, Any] = Field(default_factory=dict)


class ConsumerConfig(Section):
    """One service that uses the GPU."""

    url: str
    preset: str | None = None
    parameters: dict[str, str] = Field(default_factory=dict)
    headers: dict[str, str] = Field(default_factory=dict)
    gpus: Literal["auto"] | tuple[Annotated[int, Field(ge=0)], ...] = "auto"
    footprint_mib: Literal["auto"] | Mib = 0
    residual_mib: Mib = 0
    can_coexist_with: tuple[str, ...] = ()
    vram_managed: bool = False
    concurrency: Annotated[int, Field(gt=0)] = 1
    max_queue: Annotated[int, Field(ge=0)] = 64
    priority: int = 0
    pinned: bool = False
    idle_unload_s: Annotated[float, Field(ge=0)] | None = None
    load: LoadConfig | None = None
    unload: UnloadConfig | None = None
    health: HealthConfig | None = None
    resident: ResidentConfig | None = None
    busy: BusyConfig | None = None
    systemd_unit: str | None = None
    systemd_scope: Literal["system", "user"] = "system"
    container: str | None = None
    container_socket: str | None = None
    command: Command | None = None
    cwd: Path | None = None
    environment: dict[str, EnvironmentValue] = Field(default_factory=dict)
    stop_grace_s: Annotated[float, Field(ge=0)] = 10.0
    initially: Literal["auto", "resident", "absent"] = "auto"
    not_activity: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    drop_headers: tuple[str, ...] = ()
    models: ModelsConfig | None = None
    listen: str | None = None
    paths: dict[UrlPath, UpstreamPath] = Field(default_factory=dict)
    completion: CompletionConfig | None = None
    workflows: dict[str, WorkflowConfig] = Field(default_factory=dict)
    job_timeout_s: Seconds = 600.0
    busy_timeout_s: Seconds | None = None

    @property
    def is_supervised(self) -> bool:
        """Whether there is a way to start and stop it as a whole."""
        return any(way is not None for way in (self.systemd_unit, self.container, self.command))

    @property
    def is_remembered(self) -> bool:
        """Whether only what was sent last tells what it holds.

        Sent twice, it does harm, and there is no route to ask. Until it is asked to unload it is
        resident.
        """
        once = not all(call.repeatable for call in (self.load, self.unload) if call is not None)
        return once and self.unload is not None and self.resident is None

    @field_validator("url")
    @classmethod
    def _http_origin(cls, url: str) -> str:
        parsed = URL(url)
        if parsed.scheme not in {"http", "https"} or not parsed.host:
            raise ValueError("must be http://HOST[:PORT] or https://HOST[:PORT]")
        if parsed.path not in {"", "/"} or parsed.query_string or parsed.fragment or parsed.user:
            raise ValueError("must end after the port: no path, query, fragment or user")
        return url.rstrip("/")


class RouteConfig(Section):
    """Where jobs of one path go."""

    consumer: str
    path: UpstreamPath
    workflow: str | None = None
    load_body: dict[str, Any] | None = None


class JobsConfig(Section):
    """Where the broker keeps what must survive a restart, and what it is to write down."""

    database: Path | None = None
    trace: Path | None = None


class Config(Section):
    """The whole file."""

    server: ServerConfig = ServerConfig()
    gpu: GpuConfig = GpuConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    consumers: dict[str, ConsumerConfig] = Field(default_factory=dict)
    routes: dict[UrlPath, RouteConfig] = Field(default_factory=dict)
    models: dict[str, str] = Field(default_factory=dict)
    jobs: JobsConfig = JobsConfig()
