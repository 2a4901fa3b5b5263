"""The manifests against the API's own schemas, in which an unknown field is an error, as a server with strict field
validation has it; and what the fields have to agree on among themselves."""

from __future__ import annotations

import copy
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import inventory

FOLDER = Path(__file__).resolve().parents[2] / "jobs" / "deploy" / "kubernetes"
KUBERNETES = ("1.27", "1.37")  # timeZone of a CronJob is stable since 1.27


def manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def of_kind(name: str, kind: str) -> dict[str, Any]:
    (found,) = (manifest for manifest in manifests(name) if manifest["kind"] == kind)
    return found


def rayjob() -> dict[str, Any]:
    return of_kind("rayjob.yaml", "RayJob")


def templates(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The pod templates of a RayJob."""
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group["template"]


def pods() -> list[dict[str, Any]]:
    """The pod of each template, as a controller makes it."""
    made = [*templates(rayjob()), of_kind("cronjob.yaml", "CronJob")["spec"]["jobTemplate"]["spec"]["template"]]
    return [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **template} for template in made]


@pytest.fixture(scope="module")
def validate():
    return pytest.importorskip("kubernetes_validate").validate


@pytest.mark.parametrize("release", KUBERNETES)
@pytest.mark.parametrize("manifest", manifests("cronjob.yaml"), ids=lambda manifest: manifest["kind"])
def test_a_manifest_is_what_the_api_takes(validate, manifest: dict[str, Any], release: str) -> None:
    validate(manifest, release, strict=True)


@pytest.mark.parametrize("release", KUBERNETES)
@pytest.mark.parametrize("pod", pods(), ids=["head", "worker", "cron"])
def test_a_pod_is_what_the_api_takes(validate, pod: dict[str, Any], release: str) -> None:
    validate(pod, release, strict=True)


def test_a_misspelt_field_would_be_found(validate) -> None:
    manifest = of_kind("cronjob.yaml", "CronJob")
    pod = manifest["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    pod["containers"][0]["securityContext"]["allowPrivilegeEscalations"] = False
    with pytest.raises(Exception, match="allowPrivilegeEscalations"):
        validate(manifest, KUBERNETES[-1], strict=True)


# The RayJob of KubeRay 1.7.0 around its pod templates, as far as ours uses it: of each field, what it is.
TEXTS = {str: str}
RAYJOB = {
    "apiVersion": "ray.io/v1",
    "kind": "RayJob",
    "metadata": {"name": str},
    "spec": {
        "entrypoint": str,
        "shutdownAfterJobFinishes": bool,
        "backoffLimit": int,
        "activeDeadlineSeconds": int,
        "rayClusterSpec": {
            "rayVersion": str,
            "authOptions": {"mode": "token"},
            "headGroupSpec": {"rayStartParams": TEXTS, "template": dict},
            "workerGroupSpecs": [
                {
                    "groupName": str,
                    "replicas": int,
                    "minReplicas": int,
                    "maxReplicas": int,
                    "rayStartParams": TEXTS,
                    "template": dict,
                }
            ],
        },
    },
}


def assert_like(value: Any, form: Any, at: str) -> None:
    if form is TEXTS:
        assert all(type(word) is str for pair in value.items() for word in pair), at
    elif isinstance(form, dict):
        assert value.keys() == form.keys(), at
        for name, each in form.items():
            assert_like(value[name], each, f"{at}.{name}")
    elif isinstance(form, list):
        for number, each in enumerate(value):
            assert_like(each, form[0], f"{at}[{number}]")
    elif isinstance(form, type):
        assert type(value) is form, at
    else:
        assert value == form, at


def test_the_rayjob_has_the_fields_that_kuberay_knows() -> None:
    assert_like(rayjob(), RAYJOB, "")


@pytest.fixture(scope="module")
def of_the_crd():
    """A validator of KubeRay's own CRD, helm-chart/kuberay-operator/crds/ray.io_rayjobs.yaml of a release."""
    jsonschema = pytest.importorskip("jsonschema")
    if "KUBERAY_RAYJOBS_CRD" not in os.environ:
        pytest.skip("KUBERAY_RAYJOBS_CRD names no file")
    crd = yaml.load(Path(os.environ["KUBERAY_RAYJOBS_CRD"]).read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = (version for version in crd["spec"]["versions"] if version["name"] == "v1")
    return jsonschema.Draft202012Validator(closed(version["schema"]["openAPIV3Schema"]))


def closed(schema: dict[str, Any], root: bool = True) -> dict[str, Any]:
    """Return a structural schema as JSON Schema that refuses what an API server with strict validation refuses.

    That is every field without a property, but where x-kubernetes-preserve-unknown-fields keeps them; `metadata` of
    the object itself is the server's to check. x-kubernetes-int-or-string has no type. Formats are not checked.
    """
    made = {key: value for key, value in schema.items() if key in ("type", "enum", "required", "pattern", "anyOf")}
    made |= {key: value for key, value in schema.items() if key.startswith(("min", "max"))}
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
        made["type"] = ["integer", "string"]
    if schema.get("nullable"):
        made["type"] = [made["type"], "null"]
    if "items" in schema:
        made["items"] = closed(schema["items"], False)
    if "properties" in schema:
        made["properties"] = {name: closed(each, False) for name, each in schema["properties"].items()}
        if root:
            made["properties"]["metadata"] = {"type": "object"}
    if isinstance(schema.get("additionalProperties"), dict):
        made["additionalProperties"] = closed(schema["additionalProperties"], False)
    elif "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made["additionalProperties"] = False
    return made


def test_the_rayjob_is_what_the_crd_takes(of_the_crd) -> None:
    of_the_crd.validate(rayjob())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.entrypoints", "x"),
        ("spec.backoffLimit", "0"),
        ("spec.rayClusterSpec.authOptions.mode", "tokens"),
        ("spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.imagePullPolicies", "Always"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.template.spec.containers.0.securityContext.privileged", "yes"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.rayStartParams.num-cpus", 1),
    ],
)
def test_the_crd_refuses_what_is_wrong(of_the_crd, path: str, value: Any) -> None:
    wrong = copy.deepcopy(rayjob())
    *parents, last = path.split(".")
    place = wrong
    for name in parents:
        place = place[int(name)] if isinstance(place, list) else place[name]
    place[last] = value
    assert not of_the_crd.is_valid(wrong)


@pytest.mark.parametrize("pod", pods(), ids=["head", "worker", "cron"])
def test_what_is_mounted_is_there(pod: dict[str, Any]) -> None:
    volumes = {volume["name"] for volume in pod["spec"].get("volumes", ())}
    for container in pod["spec"]["containers"]:
        mounted = {mount["name"] for mount in container.get("volumeMounts", ())}
        assert mounted == volumes
        places = [Path(mount["mountPath"]) for mount in container.get("volumeMounts", ())]
        # Nobody can make a mount point in a volume that is read-only, as that of a ConfigMap is.
        assert not [(one, other) for one in places for other in places if one in other.parents]


def test_the_claim_and_the_configuration_are_those_of_the_same_file() -> None:
    cron = pods()[2]["spec"]["volumes"]
    claims = {volume["persistentVolumeClaim"]["claimName"] for volume in cron if "persistentVolumeClaim" in volume}
    assert claims == {of_kind("cronjob.yaml", "PersistentVolumeClaim")["metadata"]["name"]}
    assert {volume["configMap"]["name"] for volume in cron if "configMap" in volume} == {
        of_kind("cronjob.yaml", "ConfigMap")["metadata"]["name"]
    }


def test_the_script_gets_paths_that_are_mounted() -> None:
    (cron,) = pods()[2]["spec"]["containers"]
    config = of_kind("cronjob.yaml", "ConfigMap")["data"]
    named = [Path(word) for word in cron["args"] if word.startswith("/")]
    assert {str(path.parent) for path in named} == {"/etc/lru-audit"}
    assert {path.name for path in named} == set(config)
    head = shlex.split(rayjob()["spec"]["entrypoint"])
    assert cron["command"] == head[:1] == ["nightly.sh"]
    for container in (cron, next(templates(rayjob()))["spec"]["containers"][0]):
        (data,) = (variable["value"] for variable in container["env"] if variable["name"] == "LRU_AUDIT_DATA")
        assert data in [mount["mountPath"] for mount in container["volumeMounts"]]


def test_the_inventory_of_the_example_is_one(tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(of_kind("cronjob.yaml", "ConfigMap")["data"]["fleet.yaml"])
    assert [target.name for target in inventory.load([], str(file))] == ["db1.example", "web1.example"]


def test_the_nodes_become_an_inventory(tmp_path: Path) -> None:
    """What the comment in rayjob.yaml says, with what `kubectl get nodes -o name` prints."""
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
