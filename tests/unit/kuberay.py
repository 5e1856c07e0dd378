"""What KubeRay 1.7 takes, as far as configs/cluster/ uses it: the names of its fields, and what it refuses of values.

From ray-operator/apis/ray/v1/{raycluster,rayjob}_types.go and controllers/ray/utils/validation.go of KubeRay. A name
that is not here is not forbidden there: look it up, and add it.
"""

import re
from typing import Any

NAME = {"pattern": r"^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47}  # KubeRay adds to it: pods' names have 63
COUNT = {"type": "integer", "minimum": 0}
POSITIVE = {"type": "integer", "minimum": 1}
FIELDS = """apiVersion kind metadata name spec entrypoint backoffLimit submissionMode shutdownAfterJobFinishes
ttlSecondsAfterFinished preRunningDeadlineSeconds rayClusterSpec rayVersion authOptions mode enableInTreeAutoscaling
autoscalerOptions idleTimeoutSeconds upscalingMode headGroupSpec workerGroupSpecs groupName replicas minReplicas
maxReplicas template containers image ports containerPort envFrom secretRef optional resources volumeMounts mountPath
volumes configMap emptyDir medium sizeLimit terminationGracePeriodSeconds tolerations key operator value effect"""
VALUES = {
    "apiVersion": {"const": "ray.io/v1"},
    "name": NAME,
    "groupName": NAME,
    "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    "mode": {"enum": ["disabled", "token"]},
    "upscalingMode": {"enum": ["Default", "Aggressive", "Conservative"]},
    "preRunningDeadlineSeconds": POSITIVE,
} | dict.fromkeys(("backoffLimit", "replicas", "minReplicas", "maxReplicas"), COUNT)


def of_fields(names: str, maps: str, values: dict[str, Any]) -> dict[str, Any]:
    """The schema of a document whose fields, at any depth, have these names and values; those of `maps` have any."""
    each = {"$ref": "#/$defs/each"}
    fields = {name: {"allOf": [each, values.get(name, {})]} for name in names.split()}
    fields |= {name: {"type": "object", "additionalProperties": each} for name in maps.split()}
    return each | {"$defs": {"each": {"properties": fields, "additionalProperties": False, "items": each}}}


def schema(kind: str) -> dict[str, Any]:
    return of_fields(FIELDS, "rayStartParams nodeSelector requests limits", VALUES | {"kind": {"const": kind}})


def refused(document: dict[str, Any]) -> list[str]:
    """What the operator refuses although the schema admits it."""
    spec = document["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    groups = cluster["workerGroupSpecs"]
    return [
        reason
        for reason, holds in {
            "tokens need Ray 2.52": tuple(map(int, re.findall(r"\d+", cluster["rayVersion"]))) < (2, 52),
            "a time to live needs an end": "ttlSecondsAfterFinished" in spec and "shutdownAfterJobFinishes" not in spec,
            "minReplicas above maxReplicas": any(group["minReplicas"] > group["maxReplicas"] for group in groups),
        }.items()
        if holds
    ]
