"""Every setting of the server, in one object.

Values come from defaults, `firewall.toml`, environment variables `FIREWALL_<NAME>`, and flags of
`firewall serve`; later ones win. A flag is the field's name with hyphens. This object is also the
source of `firewall serve --help` and of docs/reference/settings.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from firewall.errors import ConfigError
from firewall.protocol.addresses import is_loopback
from firewall.serve.tls import Credentials
from firewall.validation import describe

#: Read from the working directory when no other file is named.
DEFAULT_FILE = "firewall.toml"
PREFIX = "FIREWALL_"
#: Variables with the prefix that other parts of the program read.
_OTHER_VARIABLES = {
    f"{PREFIX}{name}"
    for name in (
        "CONFIG", "CONFIG_DIR", "CACHE_DIR", "RUNTIME_DIR", "PEERS", "UPSTREAM_TOKEN",
        "STATE_URL", "QUARANTINE_URL", "QUARANTINE_IMAGES_URL", "WORKING_MEMORY_MIB",
    )
}  # fmt: skip

Port = Annotated[int, Field(ge=0, le=65535)]
Paths = Annotated[tuple[Path, ...], NoDecode]
Texts = Annotated[tuple[str, ...], NoDecode]


def _setting(default: Any, group: str, description: str, **bounds: Any) -> Any:
    """A field with the group under which the reference page lists it."""
    return Field(default, description=description, json_schema_extra={"group": group}, **bounds)


_MODELS = "Models"
_LISTEN = "Ports and processes"
_LIMITS = "Limits"
_CLIENTS = "Clients"
_ADMIN = "Administration"
_UPSTREAM = "Classifier served elsewhere"
_STATE = "What is remembered"
_OUTPUT = "Logs and traces"


class Settings(BaseSettings):
    """How a server runs. Immutable."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    # --- models
    bundles: Paths = _setting(
        (), _MODELS, "Folders of the bundles to serve; the default bundle when empty."
    )
    trust: Texts = _setting(
        (), _MODELS, "Public key files of signers (.pub), or NAME=FILE to trust a key only for "
        "the bundles of models whose names match NAME (* and ? allowed)."
    )  # fmt: skip
    policy: Path | None = _setting(
        None,
        _MODELS,
        "Policy file (TOML); the default policy when not set, which for the default "
        "bundle also names a query monitor that flags and refuses nothing.",
    )
    mode: Literal["enforce", "monitor", "off"] | None = _setting(
        None, _MODELS, "Overrides the policy's mode: enforce, monitor or off."
    )
    false_positive_rate: float | None = _setting(
        None, _MODELS, "Overrides the policy's false-positive rate, in (0, 0.5)."
    )
    watch: bool = _setting(False, _MODELS, "Reload bundles and policy when their files change.")
    allow_downgrade: bool = _setting(
        False, _MODELS, "Let a reload serve an older version than the live one."
    )
    device: Literal["cpu", "cuda"] = _setting("cpu", _MODELS, "Where graphs run: cpu or cuda.")
    inference_threads: int = _setting(
        0, _MODELS, "Threads per inference session (0 = one per core).", ge=0
    )

    # --- listening
    host: str = _setting(
        "::", _LISTEN, "Address of the gRPC and REST ports; :: is every address, IPv4 and IPv6."
    )
    grpc_port: Port = _setting(8081, _LISTEN, "gRPC port (0 = any free port).")
    rest_port: Port = _setting(8080, _LISTEN, "REST port (0 = any free port).")
    operations_host: str = _setting(
        "127.0.0.1", _LISTEN, "Address of /metrics, /healthz and /readyz; anyone who can reach "
        "it can read every metric."
    )  # fmt: skip
    operations_port: Port = _setting(
        8082, _LISTEN, "Port of /metrics, /healthz and /readyz (0 = any free port)."
    )
    workers: int = _setting(
        1, _LISTEN, "Processes that share the gRPC and REST ports.", ge=1, le=256
    )
    grace: float = _setting(
        15.0, _LISTEN, "Seconds that running requests get when the server stops.", ge=0
    )
    tls_cert: Path | None = _setting(
        None, _LISTEN, "The server's certificate chain (PEM); read again when it changes."
    )
    tls_key: Path | None = _setting(None, _LISTEN, "Private key of the certificate (PEM).")
    tls_client_ca: Path | None = _setting(
        None, _LISTEN, "Certificate authorities of clients (PEM); clients must then show a "
        "certificate."
    )  # fmt: skip

    # --- limits
    max_message_bytes: int = _setting(
        64 << 20, _LIMITS, "Bytes of one request or answer.", ge=1024, lt=1 << 31
    )
    max_rows: int = _setting(64, _LIMITS, "Rows of one request.", ge=1)
    max_pixels: int = _setting(
        25_000_000, _LIMITS, "Pixels of an encoded image; larger ones are refused unread.", ge=1
    )
    max_requests: int = _setting(
        64, _LIMITS, "Requests in progress at a time, over all protocols.", ge=1, le=4096
    )
    max_wait: float = _setting(
        1.0, _LIMITS, "Seconds that a request may be expected to wait; beyond, it is refused.",
        ge=0.01,
    )  # fmt: skip
    decoding_memory: int = _setting(
        256 << 20, _LIMITS, "Bytes of memory for images that are being decoded.", ge=1 << 20
    )
    decoding_timeout: float = _setting(
        10.0, _LIMITS, "Seconds after which the decoding of an image is killed.", gt=0
    )
    pad_latency: float = _setting(
        0.0, _LIMITS, "Seconds that every screened request takes at least (0 = off): hides by time "
        "which tier has run.", ge=0, le=10,
    )  # fmt: skip

    # --- clients
    tokens: Path | None = _setting(
        None, _CLIENTS, "Token hashes of clients (TOML), as `firewall token` prints them; read "
        "again when the file changes."
    )  # fmt: skip
    allow_anonymous: bool = _setting(
        False, _CLIENTS, "With tokens: answer clients without a token as well."
    )
    client_rate: float = _setting(
        0.0, _CLIENTS, "Rows a second of one client (0 = no limit).", ge=0
    )
    client_burst: float = _setting(
        0.0, _CLIENTS, "Rows of one client that may come at once (0 = twice the rate).", ge=0
    )

    # --- administration
    admin_socket: Path | None = _setting(
        None, _ADMIN, "Unix socket of the admin service, created with mode 0600; off opens none. "
        "When not set: admin-GRPC_PORT.sock in the folder FIREWALL_RUNTIME_DIR. Not opened beside "
        "an admin port."
    )  # fmt: skip
    admin_port: Port | None = _setting(
        None, _ADMIN, "TCP port of the admin service (0 = any free port); off when not set."
    )
    admin_host: str = _setting(
        "127.0.0.1", _ADMIN, "Address of the admin port; other than loopback needs mutual TLS."
    )
    admin_token_file: Path | None = _setting(
        None, _ADMIN, "File with the bearer token that the admin port asks for without mutual TLS."
    )
    admin_cert: Path | None = _setting(None, _ADMIN, "The admin port's certificate (PEM).")
    admin_key: Path | None = _setting(None, _ADMIN, "Private key of that certificate (PEM).")
    admin_client_ca: Path | None = _setting(
        None, _ADMIN, "Certificate authorities of operators (PEM)."
    )

    # --- upstream
    upstream: Texts = _setting(
        (), _UPSTREAM, "Where the classifier of a bundle is served: grpc://HOST:PORT/MODEL or "
        "http://HOST:PORT/v2/models/MODEL (grpcs://, https:// with TLS); NAME=URL for one of "
        "several bundles."
    )  # fmt: skip
    upstream_ca: Path | None = _setting(
        None, _UPSTREAM, "Certificate authorities of the upstream server (PEM)."
    )
    upstream_token_file: Path | None = _setting(
        None, _UPSTREAM, "File with the bearer token for the upstream server."
    )
    upstream_timeout: float = _setting(
        30.0, _UPSTREAM, "Seconds of an upstream call without a deadline.", gt=0
    )
    upstream_rows: int = _setting(
        256, _UPSTREAM, "Rows of one upstream call, views included.", ge=1
    )
    upstream_bytes: int = _setting(
        4_000_000, _UPSTREAM, "Tensor bytes of one upstream call.", ge=1024
    )

    # --- state
    state: str | None = _setting(
        None, _STATE, "Redis URL of what query monitors remember, for several replicas; in this "
        "process when not set. @FILE reads the URL from a file, @ from FIREWALL_STATE_URL."
    )  # fmt: skip
    state_key: Path | None = _setting(
        None, _STATE, "Secret of what monitors remember; replicas share it. Made if missing."
    )
    state_keys: int = _setting(
        250_000, _STATE, "Entries kept in this process, of about 200 bytes each.", ge=1000
    )
    quarantine: str | None = _setting(
        None, _STATE, "Database of refused and flagged rows: a file, sqlite:/// or "
        "postgresql+psycopg://. @FILE reads the URL from a file, @ from FIREWALL_QUARANTINE_URL."
    )  # fmt: skip
    quarantine_images: str | None = _setting(
        None, _STATE, "Folder or fsspec URL of their images; beside the database file when not "
        "set."
    )  # fmt: skip
    quarantine_key: Path | None = _setting(
        None, _STATE, "Key of clients' pseudonyms. Made if missing."
    )
    quarantine_days: float = _setting(30.0, _STATE, "Days for which a row is kept.", gt=0)
    quarantine_bytes: int = _setting(
        10 << 30, _STATE, "Bytes of images that are kept; the oldest go first.", ge=1 << 20
    )
    quarantine_sample: float = _setting(
        0.0, _STATE, "Percent of all screened rows to keep as well, accepted ones too.", ge=0,
        le=100,
    )  # fmt: skip

    # --- output
    audit_log: str = _setting(
        "-", _OUTPUT, "File to append audit events to as JSON lines; - is standard output."
    )
    traces: bool = _setting(
        False, _OUTPUT, "Send OpenTelemetry traces to OTEL_EXPORTER_OTLP_ENDPOINT."
    )

    @field_validator("bundles", "trust", "upstream", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """A variable holds several values separated by commas."""
        return tuple(part for part in value.split(",") if part) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        Credentials.of(self.tls_cert, self.tls_key, self.tls_client_ca, "--tls")
        admin = Credentials.of(self.admin_cert, self.admin_key, self.admin_client_ca, "--admin")
        if self.admin_port is not None:
            mutual = admin is not None and admin.clients is not None
            if not is_loopback(self.admin_host) and not mutual:
                raise ConfigError(
                    f"--admin-host: {self.admin_host} is no loopback address; expected mutual "
                    "TLS: --admin-cert, --admin-key and --admin-client-ca"
                )
            if not mutual and self.admin_token_file is None:
                raise ConfigError(
                    "--admin-port: asks nobody who they are; use --admin-socket, or "
                    "--admin-token-file, or mutual TLS"
                )
        if self.quarantine_sample and self.quarantine is None:
            raise ConfigError("--quarantine-sample: keeps rows in --quarantine, which is not set")
        if self.allow_anonymous and self.tokens is None:
            raise ConfigError("--allow-anonymous: is for --tokens; without them anyone may ask")
        if self.state is not None and self.state_key is None:
            raise ConfigError(
                "--state-key: is not set; replicas that share --state share a secret too"
            )
        return self

    @property
    def tls(self) -> Credentials | None:
        """TLS of the gRPC and REST ports; None means plain text."""
        return Credentials.of(self.tls_cert, self.tls_key, self.tls_client_ca, "--tls")

    @property
    def admin_tls(self) -> Credentials | None:
        """TLS of the admin port; None means plain text."""
        return Credentials.of(self.admin_cert, self.admin_key, self.admin_client_ca, "--admin")

    @classmethod
    def load(cls, flags: Mapping[str, Any], file: Path | None = None) -> Settings:
        """Read every source.

        Args:
            flags: by field name, without those that were not given.
            file: TOML file; `FIREWALL_CONFIG` or ./firewall.toml when None, if it exists.

        Raises:
            ConfigError: naming the setting, its value and what is expected.

        """
        named = file or (Path(name) if (name := os.environ.get("FIREWALL_CONFIG")) else None)
        if named is not None and not named.is_file():
            raise ConfigError(f"--config: {named} is not a file")
        path = named or Path(DEFAULT_FILE)

        class Loaded(cls):  # type: ignore[valid-type,misc]
            """Binds the file that was named."""

            @classmethod
            def settings_customise_sources(
                cls,
                settings_cls: type[BaseSettings],
                init_settings: PydanticBaseSettingsSource,
                env_settings: PydanticBaseSettingsSource,
                dotenv_settings: PydanticBaseSettingsSource,
                file_secret_settings: PydanticBaseSettingsSource,
            ) -> tuple[PydanticBaseSettingsSource, ...]:
                return (
                    init_settings,
                    env_settings,
                    TomlConfigSettingsSource(settings_cls, toml_file=path),
                )

        try:
            loaded: Settings = Loaded(**flags)
        except ValidationError as error:
            raise ConfigError(_problem(error, flags, path)) from error
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}: not TOML that can be read: {error}") from error
        return loaded

    def unknown_variables(self) -> list[str]:
        """Environment variables with the prefix that set nothing, such as misspelt ones."""
        known = {f"{PREFIX}{name}".upper() for name in Settings.model_fields} | _OTHER_VARIABLES
        return sorted(
            name for name in os.environ if name.startswith(PREFIX) and name.upper() not in known
        )


def _problem(error: ValidationError, flags: Mapping[str, Any], path: Path) -> str:
    """Name the source of the first setting that is wrong, and what is wrong with it."""
    name = str(next(iter(error.errors()[0]["loc"]), ""))
    if name in flags:
        where = f"--{name.replace('_', '-')}"
    elif f"{PREFIX}{name}".upper() in {key.upper() for key in os.environ}:
        where = f"environment variable {PREFIX}{name.upper()}"
    else:
        return f"{path}: {describe(error)}"
    return f"{where}: {describe(error).removeprefix(f'key {name!r} ')}"


def fields() -> Iterator[tuple[str, str, FieldInfo]]:
    """Name, group and definition of every setting."""
    for name, field in Settings.model_fields.items():
        extra = field.json_schema_extra
        assert isinstance(extra, dict)
        yield name, str(extra["group"]), field
