"""What KubeRay 1.7 takes, as far as configs/cluster/ uses it: a JSON schema by hand, where unknown fields are errors.

Written from the types in ray-operator/apis/ray/v1/{raycluster,rayjob}_types.go of github.com/ray-project/kuberay, which
its CRDs are made from, and from what ray-operator/controllers/ray/utils/validation.go refuses. Of Kubernetes' pods, the
fields used. A field that is not here is not forbidden there: look it up, and add it.
"""

import re
from typing import Any

QUANTITY = {"type": "string", "pattern": r"^\d+(\.\d+)?(m|[KMGT]i?)?$"}
NAME = {"type": "string", "pattern": r"^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
COUNT = {"type": "integer", "minimum": 0}


def exact(required: str, **properties: Any) -> dict[str, Any]:
    """An object of these properties and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def each(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1}


RESOURCES = {"type": "object", "additionalProperties": QUANTITY}
CONTAINER = exact(
    "name image resources",
    name=NAME,
    image={"type": "string"},
    ports=each(exact("name containerPort", name=NAME, containerPort={"type": "integer", "maximum": 65535})),
    envFrom=each(exact("secretRef", secretRef=exact("name", name=NAME, optional={"type": "boolean"}))),
    resources=exact("requests limits", requests=RESOURCES, limits=RESOURCES),
    volumeMounts=each(exact("name mountPath", name=NAME, mountPath={"type": "string", "pattern": "^/"})),
)
VOLUME = exact(
    "name",
    name=NAME,
    configMap=exact("name", name=NAME),
    emptyDir=exact("", medium={"enum": ["", "Memory"]}, sizeLimit=QUANTITY),
)
TOLERATION = exact(
    "operator",
    key={"type": "string"},
    operator={"enum": ["Exists", "Equal"]},
    value={"type": "string"},
    effect={"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]},
)
POD = exact(
    "containers",
    containers=each(CONTAINER),
    volumes=each(VOLUME),
    nodeSelector=STRINGS,
    tolerations=each(TOLERATION),
    terminationGracePeriodSeconds=COUNT,
)
TEMPLATE = exact("spec", spec=POD)
WORKERS = exact(
    "groupName rayStartParams template minReplicas maxReplicas",
    groupName=NAME,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    rayStartParams=STRINGS,
    template=TEMPLATE,
)
CLUSTER = exact(
    "headGroupSpec rayVersion authOptions",
    rayVersion={"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
    authOptions=exact("mode", mode={"enum": ["disabled", "token"]}),
    enableInTreeAutoscaling={"type": "boolean"},
    autoscalerOptions=exact(
        "", idleTimeoutSeconds=COUNT, upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]}
    ),
    headGroupSpec=exact("rayStartParams template", rayStartParams=STRINGS, template=TEMPLATE),
    workerGroupSpecs=each(WORKERS),
)
JOB = exact(
    "entrypoint rayClusterSpec",
    entrypoint={"type": "string"},
    backoffLimit=COUNT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    shutdownAfterJobFinishes={"type": "boolean"},
    ttlSecondsAfterFinished=COUNT,
    preRunningDeadlineSeconds={"type": "integer", "minimum": 1},
    rayClusterSpec=CLUSTER,
)
SPECS = {"RayCluster": CLUSTER, "RayJob": JOB}
"""Kind -> the schema of its spec."""

OLDEST_RAY_WITH_TOKENS = (2, 52, 0)


def schema(kind: str) -> dict[str, Any]:
    """The schema of a document of this kind."""
    return exact(
        "apiVersion kind metadata spec",
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=exact("name", name=NAME | {"maxLength": 47}),  # KubeRay adds to it: names of pods have 63 characters
        spec=SPECS[kind],
    )


def refused(document: dict[str, Any]) -> list[str]:
    """What the operator refuses although the schema admits it (validation.go)."""
    spec = document["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    found = []
    version = tuple(map(int, re.findall(r"\d+", cluster["rayVersion"])))
    if cluster["authOptions"]["mode"] == "token" and version < OLDEST_RAY_WITH_TOKENS:
        found.append("tokens need Ray 2.52")
    if spec.get("ttlSecondsAfterFinished") and not spec.get("shutdownAfterJobFinishes"):
        found.append("ttlSecondsAfterFinished needs shutdownAfterJobFinishes")
    for group in cluster["workerGroupSpecs"]:
        if group["minReplicas"] > group["maxReplicas"]:
            found.append(f"{group['groupName']}: minReplicas is greater than maxReplicas")
    if spec.get("backoffLimit") and spec.get("submissionMode") == "InteractiveMode":
        found.append("backoffLimit is incompatible with InteractiveMode")
    return found
