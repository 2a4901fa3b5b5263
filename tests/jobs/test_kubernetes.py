"""The manifests, validated with the API's schemas and checked for consistency.

As in a server with strict field validation, an unknown field is an error.
"""

from __future__ import annotations

import copy
import hashlib
import lzma
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pipeline import inventory

FOLDER = Path(__file__).resolve().parents[2] / "jobs" / "deploy" / "kubernetes"
KUBERAY = Path(__file__).parent / "kuberay"
KUBERNETES = ("1.27", "1.37")  # timeZone of a CronJob is stable since 1.27


def manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def manifest_of_kind(name: str, kind: str) -> dict[str, Any]:
    (manifest,) = (manifest for manifest in manifests(name) if manifest["kind"] == kind)
    return manifest


def rayjob() -> dict[str, Any]:
    return manifest_of_kind("rayjob.yaml", "RayJob")


def templates(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The pod templates of a RayJob."""
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group["template"]


def pods() -> list[dict[str, Any]]:
    """The pod of each template, as a controller creates it."""
    pod_templates = [
        *templates(rayjob()),
        manifest_of_kind("cronjob.yaml", "CronJob")["spec"]["jobTemplate"]["spec"]["template"],
    ]
    return [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **template} for template in pod_templates]


@pytest.fixture(scope="module")
def validate():
    return pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate").validate


@pytest.mark.parametrize("release", KUBERNETES)
@pytest.mark.parametrize("manifest", manifests("cronjob.yaml"), ids=lambda manifest: manifest["kind"])
def test_a_manifest_is_what_the_api_takes(validate, manifest: dict[str, Any], release: str) -> None:
    validate(manifest, release, strict=True)


@pytest.mark.parametrize("release", KUBERNETES)
@pytest.mark.parametrize("pod", pods(), ids=["head", "worker", "cron"])
def test_a_pod_is_what_the_api_takes(validate, pod: dict[str, Any], release: str) -> None:
    validate(pod, release, strict=True)


def test_a_misspelt_field_would_be_found(validate) -> None:
    manifest = manifest_of_kind("cronjob.yaml", "CronJob")
    pod = manifest["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    pod["containers"][0]["securityContext"]["allowPrivilegeEscalations"] = False
    with pytest.raises(Exception, match="allowPrivilegeEscalations"):
        validate(manifest, KUBERNETES[-1], strict=True)


@cache
def crd(kind: str) -> str:
    """KubeRay's definition of a kind; README.md beside it names the source."""
    return lzma.decompress((KUBERAY / f"ray.io_{kind}.yaml.xz").read_bytes()).decode()


@cache
def crd_validator(kind: str) -> jsonschema.Validator:
    """A validator for v1 of a kind, as strict as an API server with strict field validation."""
    definition = yaml.load(crd(kind), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = (version for version in definition["spec"]["versions"] if version["name"] == "v1")
    map_rule = {"x-kubernetes-list-map-keys": unique}
    validator = jsonschema.validators.extend(jsonschema.Draft202012Validator, map_rule)
    return validator(strict_schema(version["schema"]["openAPIV3Schema"]))


def strict_schema(schema: dict[str, Any], root: bool = True) -> dict[str, Any]:
    """Return a structural schema as JSON Schema that refuses what an API server with strict validation refuses.

    It refuses every field without a property, except where x-kubernetes-preserve-unknown-fields keeps them. `metadata`
    of the object itself is left to the server. x-kubernetes-int-or-string has no type. A field with a CEL rule, which
    cannot be evaluated here, is always refused.
    """
    if "x-kubernetes-validations" in schema:
        return {"not": {}}
    keywords = ("type", "enum", "pattern", "anyOf", "x-kubernetes-list-map-keys")
    json_schema = {key: value for key, value in schema.items() if key in keywords or key.startswith(("min", "max"))}
    if schema.get("x-kubernetes-int-or-string"):
        json_schema["type"] = ["integer", "string"]
    if schema.get("nullable"):
        json_schema["type"] = [json_schema["type"], "null"]
    if schema.get("format") in ("int32", "int64"):
        bits = int(schema["format"].removeprefix("int")) - 1
        json_schema = {"minimum": -(1 << bits), "maximum": (1 << bits) - 1} | json_schema
    json_schema["uniqueItems"] = schema.get("x-kubernetes-list-type") == "set"
    properties = schema.get("properties", {})
    # The server fills in defaults before it validates.
    json_schema["required"] = [name for name in schema.get("required", ()) if "default" not in properties[name]]
    if "items" in schema:
        json_schema["items"] = strict_schema(schema["items"], False)
    if properties:
        json_schema["properties"] = {name: strict_schema(property, False) for name, property in properties.items()}
        if root:
            json_schema["properties"]["metadata"] = {"type": "object"}
    if isinstance(schema.get("additionalProperties"), dict):
        json_schema["additionalProperties"] = strict_schema(schema["additionalProperties"], False)
    elif properties and not schema.get("x-kubernetes-preserve-unknown-fields"):
        json_schema["additionalProperties"] = False
    return json_schema


def unique(_: Any, keys: list[str], items: list[dict[str, Any]], schema: Any) -> Iterator[jsonschema.ValidationError]:
    """Yield an error if two items of a list of type map have the same keys."""
    values = [tuple(item.get(key) for key in keys) for item in items]
    if len(set(values)) < len(values):
        yield jsonschema.ValidationError(f"two items with the same {keys}")


@pytest.mark.parametrize("kind", ["rayjobs", "raycronjobs"])
def test_the_crds_are_those_that_their_readme_names(kind: str) -> None:
    assert hashlib.sha256(crd(kind).encode()).hexdigest() in (KUBERAY / "README.md").read_text()


def test_the_rayjob_is_what_the_crd_takes() -> None:
    crd_validator("rayjobs").validate(rayjob())


def test_the_rayjob_is_what_a_raycronjob_takes_as_its_template() -> None:
    """docs/deploy.md describes this use."""
    spec = {"schedule": "17 2 * * *", "timeZone": "Etc/UTC", "jobTemplate": rayjob()["spec"]}
    manifest = {"apiVersion": "ray.io/v1", "kind": "RayCronJob", "metadata": {"name": "lru-audit"}, "spec": spec}
    crd_validator("raycronjobs").validate(manifest)
    spec["concurrencyPolicy"] = "Forbid"
    with pytest.raises(jsonschema.ValidationError, match="concurrencyPolicy"):
        crd_validator("raycronjobs").validate(manifest)


WORKER = "spec.rayClusterSpec.workerGroupSpecs.0"
HEAD_CONTAINER = "spec.rayClusterSpec.headGroupSpec.template.spec.containers.0"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.entrypoints", "x"),
        ("spec.backoffLimit", "0"),
        ("spec.backoffLimit", 1 << 31),
        ("spec.managedBy", "anybody"),
        ("spec.preRunningDeadlineSeconds", 0),
        ("spec.rayClusterSpec.authOptions.mode", "tokens"),
        ("spec.rayClusterSpec.headGroupSpec", {}),
        (f"{HEAD_CONTAINER}.imagePullPolicies", "Always"),
        (f"{HEAD_CONTAINER}.resources.limits.memory", "4 gigabytes"),
        (f"{HEAD_CONTAINER}.env.0", {"value": "/data"}),
        (f"{HEAD_CONTAINER}.env", [{"name": "LRU_AUDIT_DATA", "value": "/data"}] * 2),
        (f"{WORKER}.template.spec.containers.0.securityContext.privileged", "yes"),
        (f"{WORKER}.rayStartParams.num-cpus", 1),
    ],
)
def test_the_crd_refuses_what_is_wrong(path: str, value: Any) -> None:
    manifest = copy.deepcopy(rayjob())
    *parents, last = path.split(".")
    node: Any = manifest
    for name in parents:
        node = node[int(name)] if isinstance(node, list) else node[name]
    node[int(last) if isinstance(node, list) else last] = value
    assert not crd_validator("rayjobs").is_valid(manifest)


@pytest.mark.parametrize("pod", pods(), ids=["head", "worker", "cron"])
def test_what_is_mounted_is_there(pod: dict[str, Any]) -> None:
    volumes = {volume["name"] for volume in pod["spec"].get("volumes", ())}
    for container in pod["spec"]["containers"]:
        mounts = {mount["name"] for mount in container.get("volumeMounts", ())}
        assert mounts == volumes
        paths = [Path(mount["mountPath"]) for mount in container.get("volumeMounts", ())]
        # No mount point can be created in a read-only volume, such as that of a ConfigMap.
        assert not [(parent, path) for parent in paths for path in paths if parent in path.parents]


def test_the_claim_and_the_configuration_are_those_of_the_same_file() -> None:
    cron = pods()[2]["spec"]["volumes"]
    claims = {volume["persistentVolumeClaim"]["claimName"] for volume in cron if "persistentVolumeClaim" in volume}
    assert claims == {manifest_of_kind("cronjob.yaml", "PersistentVolumeClaim")["metadata"]["name"]}
    assert {volume["configMap"]["name"] for volume in cron if "configMap" in volume} == {
        manifest_of_kind("cronjob.yaml", "ConfigMap")["metadata"]["name"]
    }


def test_the_script_gets_paths_that_are_mounted() -> None:
    (cron,) = pods()[2]["spec"]["containers"]
    config = manifest_of_kind("cronjob.yaml", "ConfigMap")["data"]
    paths = [Path(word) for word in cron["args"] if word.startswith("/")]
    assert {str(path.parent) for path in paths} == {"/etc/lru-audit"}
    assert {path.name for path in paths} == set(config)
    head = shlex.split(rayjob()["spec"]["entrypoint"])
    assert cron["command"] == head[:1] == ["nightly.sh"]
    for container in (cron, next(templates(rayjob()))["spec"]["containers"][0]):
        (data,) = (variable["value"] for variable in container["env"] if variable["name"] == "LRU_AUDIT_DATA")
        assert data in [mount["mountPath"] for mount in container["volumeMounts"]]


def test_the_inventory_of_the_example_is_one(tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(manifest_of_kind("cronjob.yaml", "ConfigMap")["data"]["fleet.yaml"])
    assert [target.name for target in inventory.load([], str(file))] == ["db1.example", "web1.example"]


def test_the_nodes_become_an_inventory(tmp_path: Path) -> None:
    """The command in the comment of rayjob.yaml, with the output of `kubectl get nodes -o name`."""
    file = tmp_path / "nodes.csv"
    file.write_text("target\nray:node-1\nray:ip-10-0-0-7.ec2.internal\n")
    assert [target.name for target in inventory.load([], str(file))] == ["node-1", "ip-10-0-0-7.ec2.internal"]


def test_only_the_workers_are_privileged_and_a_node_has_one() -> None:
    head, worker, cron = (pod["spec"] for pod in pods())
    assert worker["containers"][0]["securityContext"] == {"privileged": True, "runAsUser": 0}
    assert worker["hostNetwork"] is True
    (term,) = worker["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["labelSelector"]["matchLabels"] == pods()[1]["metadata"]["labels"]
    assert head["securityContext"]["runAsUser"] != 0
    assert "hostNetwork" not in head
    assert cron["securityContext"]["runAsNonRoot"] is True


def test_the_image_has_the_ray_that_the_manifest_names() -> None:
    base = next(line for line in (FOLDER / "Containerfile").read_text().splitlines() if line.startswith("FROM "))
    assert f":{rayjob()['spec']['rayClusterSpec']['rayVersion']}-" in base
    images = {container["image"] for pod in pods() for container in pod["spec"]["containers"]}
    assert len(images) == 1
